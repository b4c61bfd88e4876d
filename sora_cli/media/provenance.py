"""Signing what was made: a C2PA manifest in the file that says that a model made it, and from what.

C2PA Technical Specification 2.4 through c2pa-python. Nothing here uses the network: no time-stamp
authority, no remote manifests, no revocation lists. What is signed is the file as it will lie
there, its recipe included, so a signature is the last thing that is put in.
"""

from __future__ import annotations

import io
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from sora_cli.errors import OutputError, UsageError

if TYPE_CHECKING:
    from sora_cli.media.provenance_keys import Signer

Relation = Literal["parentOf", "componentOf", "inputTo"]

# What c2pa-python signs, of what sora writes.
SIGNABLE = {
    ".mp4": "video/mp4",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}
# IPTC NewsCodes "digitalsourcetype": all of it by a model, or a model's work in something that
# was there before.
_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
ALL_MADE = f"{_TYPES}trainedAlgorithmicMedia"
PART_MADE = f"{_TYPES}compositeWithTrainedAlgorithmicMedia"

OFFLINE: Mapping[str, Any] = {
    "version": 1,
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": True},
    "core": {"allowed_network_hosts": []},
    "builder": {"thumbnail": {"enabled": False}},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingredient:
    """A file that something was made from, and how: `parentOf` is changed or continued,
    `componentOf` is seen as it was, `inputTo` was given to the model."""

    path: Path
    relation: Relation


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """What a manifest says. title: the file's name. verb, version: of sora. source: a digital
    source type; ingredients: at most one of them is `parentOf`."""

    title: str
    verb: str
    version: str
    source: str
    ingredients: Sequence[Ingredient] = ()


def check_suffix(suffix: str, path: object) -> None:
    """Raises UsageError for a kind of file that cannot carry a signature, with those that can."""
    if suffix not in SIGNABLE:
        known = ", ".join(name for name in SIGNABLE if name != ".jpeg")
        what = f"{suffix} files" if suffix else "folders of pictures"
        raise UsageError(
            f"{path} cannot be signed: {what} hold no signature; these do: {known}",
            hint="choose one of them with -o, or leave the signature out with --no-sign",
        )


def try_signer(signer: Signer) -> None:
    """Sign a picture of one pixel, so that what is wrong is said before any work.

    Raises:
        UsageError: the certificate is none that C2PA signs with.
    """
    import c2pa
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (1, 1)).save(picture, "PNG")
    story = Story(title="", verb="image", version="0", source=ALL_MADE)
    try:
        _sign(picture, io.BytesIO(), "image/png", _definition(story, []), [], signer)
    except c2pa.C2paError as error:
        raise UsageError(
            f"the certificate of {signer.name} cannot sign: {_first_line(error)}",
            hint="what it must have is in docs/guides/provenance.md; or: sora provenance init",
        ) from None


def sign(source: Path, target: Path, suffix: str, story: Story, signer: Signer) -> tuple[str, ...]:
    """Write `source` with a signed manifest into `target`, a file that is there already.

    Returns:
        notes: ingredients that could not be read are left out.

    Raises:
        OutputError: it could not be signed or written.
    """
    import c2pa

    kept, notes = [], []
    for ingredient in story.ingredients:
        try:
            with ingredient.path.open("rb") as file:
                _try_ingredient(ingredient, file)
            kept.append(ingredient)
        except (c2pa.C2paError, OSError) as error:
            said = _first_line(error)
            notes.append(f"{ingredient.path.name} is not named in the signature: {said}")
    try:
        with source.open("rb") as unsigned, target.open("w+b") as signed:
            definition = _definition(story, kept)
            _sign(unsigned, signed, SIGNABLE[suffix], definition, kept, signer)
    except (c2pa.C2paError, OSError) as error:
        raise OutputError(
            f"could not sign {story.title or 'the stream'}: {_first_line(error)}",
            hint="the work is kept; once that is mended: sora resume",
        ) from None
    return tuple(notes)


def _try_ingredient(ingredient: Ingredient, file: BinaryIO) -> None:
    """Raises C2paError where the SDK cannot take a file; a builder that failed is of no use."""
    import c2pa

    with c2pa.Context.from_dict(dict(OFFLINE)) as context, c2pa.Builder({}, context) as builder:
        builder.add_ingredient({"relationship": ingredient.relation}, _mime(ingredient.path), file)


def _sign(
    source: BinaryIO, target: BinaryIO, mime: str, definition: dict[str, Any],
    ingredients: Sequence[Ingredient], signer: Signer,
) -> None:  # fmt: skip
    import c2pa

    info = c2pa.C2paSignerInfo(signer.algorithm.encode(), signer.chain, signer.key, None)
    with (
        c2pa.Context.from_dict(dict(OFFLINE)) as context,
        c2pa.Signer.from_info(info) as how,
        c2pa.Builder(definition, context) as builder,
    ):
        for number, ingredient in enumerate(ingredients):
            said = {
                "title": ingredient.path.name,
                "relationship": ingredient.relation,
                "label": _label(number),
            }
            with ingredient.path.open("rb") as file:
                builder.add_ingredient(said, _mime(ingredient.path), file)
        builder.sign(how, mime, source, target)


def _definition(story: Story, ingredients: Sequence[Ingredient]) -> dict[str, Any]:
    """A manifest as the SDK takes it: what happened, in order."""
    named: dict[str, list[str]] = {"parentOf": [], "componentOf": [], "inputTo": []}
    for number, ingredient in enumerate(ingredients):
        named[ingredient.relation].append(_label(number))
    assert len(named["parentOf"]) <= 1, "one parent"
    made: dict[str, Any] = {
        "action": "c2pa.edited" if named["parentOf"] else "c2pa.created",
        "digitalSourceType": story.source,
        "softwareAgent": {"name": "sora", "version": story.version},
        "description": f"sora {story.verb}",
        "when": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
    if named["inputTo"]:
        made["parameters"] = {"ingredientIds": named["inputTo"]}
    actions = [
        {"action": "c2pa.opened", "parameters": {"ingredientIds": [label]}}
        for label in named["parentOf"]
    ]
    actions.append(made)
    actions += [
        {"action": "c2pa.placed", "parameters": {"ingredientIds": [label]}}
        for label in named["componentOf"]
    ]
    definition: dict[str, Any] = {
        "claim_generator_info": [{"name": "sora", "version": story.version}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }
    return {**definition, "title": story.title} if story.title else definition


def _label(number: int) -> str:
    return f"ingredient-{number + 1}"


def _mime(path: Path) -> str:
    """A guess; the SDK looks at the bytes where it knows them."""
    known = SIGNABLE.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0]
    return known or "application/octet-stream"


def _first_line(error: Exception) -> str:
    """What a library says, on one line that cannot be long."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
