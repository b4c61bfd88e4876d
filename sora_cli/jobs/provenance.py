"""What `--sign` and `--label` do to a job: checked first, said in its recipe, done at its end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.errors import UsageError
from sora_cli.pipeline.events import Event, Observer

if TYPE_CHECKING:
    import numpy as np

    from sora_cli.jobs.job import Clock, Target, Work
    from sora_cli.media.output import Seal
    from sora_cli.media.provenance import Ingredient, Relation
    from sora_cli.media.provenance_keys import Signer
    from sora_cli.runs.run import Run

# Verbs whose every frame comes out of the model, whatever it was given.
_ALL_MADE = ("generate", "image", "animate")
# What is seen in the result, by the argument that named it; all else was given to the model:
# pictures to begin with, masks, references, LoRAs, latents.
_RELATIONS: Mapping[str, Relation] = {
    "clip": "parentOf",
    "first": "componentOf",
    "second": "componentOf",
}


def signer(target: Target, paths: list[str | Path], suffix: str) -> Signer | None:
    """Who signs a job's outputs; None where nobody does. Called before any work.

    Args:
        suffix: of what goes to stdout.

    Raises:
        UsageError: an output that cannot be signed, no certificate, a certificate that does not do.
    """
    if not target.sign:
        return None
    from sora_cli.media import output, provenance, provenance_keys

    for path in paths:
        text = os.fspath(path)
        kind = suffix if path == "-" else Path(text).suffix.lower()
        provenance.check_suffix("" if path != "-" and output.is_folder(text) else kind, path)
    found = provenance_keys.load(target.sign_certificate, target.sign_key)
    provenance.try_signer(found)
    return found


def fields(target: Target) -> dict[str, Any]:
    """What the recipe says of both."""
    from sora_cli.media.provenance_label import TEXT

    said: dict[str, Any] = {"signed": True} if target.sign else {}
    return {**said, "label": TEXT} if target.label else said


def as_before(
    recipe: Mapping[str, Any], marks: Mapping[str, Any], observer: Observer
) -> dict[str, Any]:
    """What a target has of both when a file is made again: as said now, else as its recipe says.

    A file that was signed is signed again by whoever is set up to sign here; where nobody is, a
    note says so.
    """
    from sora_cli.media import provenance_keys

    found = {"label": bool(recipe.get("label")), **marks}
    if "sign" in found or recipe.get("signed") is not True:
        return found
    try:
        provenance_keys.load(found.get("sign_certificate"), found.get("sign_key"))
    except UsageError as error:
        message = f"the file was signed, this one is not: {error.message}"
        observer(Event(phase="note", message=message))
        return found
    return {**found, "sign": True}


def labelled(frames: Iterator[np.ndarray], target: Target) -> Iterator[np.ndarray]:
    """The frames, with the mark where one is wanted: those that were given too."""
    if not target.label:
        return frames
    from sora_cli.media.provenance_label import burn

    return burn(frames)


def seal(work: Work, path: str | Path, target: Target, run: Run, clock: Clock) -> Seal | None:
    """What is to be done to a finished file before it takes its place."""
    if work.signer is None:
        return None
    signs, call = work.signer, target.call

    def put(source: Path, signed: Path, suffix: str) -> None:
        from importlib.metadata import version

        from sora_cli.media import provenance

        verb = work.verb
        made = all_made(verb.extra)
        story = provenance.Story(
            title="" if path == "-" else Path(path).name,
            verb=str(verb.extra.get("verb", "generate")) if call is None else call.verb,
            version=version("sora-cli"),
            source=provenance.ALL_MADE if made else provenance.PART_MADE,
            ingredients=tuple(_ingredients(run, clock)),
        )
        for note in provenance.sign(source, signed, suffix, story, signs):
            clock.note(note)
        clock.note(f"signed: {signs.name}")

    return put


def all_made(recipe: Mapping[str, Any]) -> bool:
    """Whether a model made all that is seen, as far as recipes say: nothing real is in it.

    The recipes of parents are believed; the word of a parent without one is that of a camera.
    """
    from sora_cli.media.recipe import parents_of

    if recipe.get("verb", "generate") in _ALL_MADE:
        return True
    parents = parents_of(dict(recipe))
    if recipe.get("verb") == "storyboard":
        parents = parents[1:]  # the first is the storyboard itself
    elif not parents:
        return recipe.get("verb") == "loop"  # from a prompt; another's must be somewhere
    own = [parent.get("recipe") for parent in parents]
    return all(isinstance(found, dict) and all_made(found) for found in own)


def _ingredients(run: Run, clock: Clock) -> Iterator[Ingredient]:
    """The files that the call works from, each once, where they are still what they were."""
    from sora_cli.media.provenance import Ingredient
    from sora_cli.runs.calls import fingerprint

    told: set[tuple[Path, Relation]] = set()
    for name, known in run.recipe.get("inputs", {}).items():
        path = Path(known["path"])
        unnamed = f"{path.name} is not named in the signature"
        if path.is_dir():
            clock.note(f"{unnamed}: it is a folder")
            continue
        try:
            same, relation = fingerprint(path) == known["sha256"], _relation(name, path)
        except OSError as error:
            clock.note(f"{unnamed}: {error.strerror or error}")
            continue
        if not same:
            clock.note(f"{unnamed}: it has changed meanwhile")
        elif (path, relation) not in told:
            told.add((path, relation))
            yield Ingredient(path=path, relation=relation)


def _relation(name: str, path: Path) -> Relation:
    if not name.startswith("shot "):
        return _RELATIONS.get(name, "inputTo")
    from sora_cli.media import stills

    with path.open("rb") as file:
        return "inputTo" if stills.kind(file.read(64)) == "still" else "componentOf"
