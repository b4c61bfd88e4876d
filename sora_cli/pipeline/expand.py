"""From the prompt a person typed to the caption a model was trained on, remembered on disk.

Sora's report: a language model turns short prompts into captions like those the video model was
trained with. Loading one takes seconds, so an expansion is kept under a hash of the prompt, the
seed and the language model, and transformers is imported only when a new one has to be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sora_cli.pipeline.answers import length_in_words, objection, unquoted, words
from sora_cli.pipeline.ask import Question, ask, recall, remember, sees
from sora_cli.pipeline.instructions import TEXT_MODEL, VISION_MODEL, GivenAs, instructions_for
from sora_cli.pipeline.prompt import clean_text
from sora_cli.pipeline.remember import Memory

if TYPE_CHECKING:
    import numpy as np
    import torch

PICTURE = "a picture. "  # train/prompts.py's mark of a caption in which nothing moves
MAX_REMEMBERED = 2000  # expansions, of about half a kilobyte each
MAX_NAMED = 8  # unknown words in a note
DENSE_WORDS = 13  # the fewest words in which every attribute can be named
_ENDINGS = ("s", "es", "d", "ed", "ing", "ly", "y", "er", "ers", "n", "ish")


@dataclass(frozen=True, kw_only=True, slots=True)
class Expansion:
    """What was asked, what the video model will read instead, and what the user should know.

    prompt: the user's words, as typed.
    expanded_prompt: the caption; the cleaned prompt where nothing was expanded.
    notes: sentences for stderr and the recipe.
    source: "model" (written now), "remembered" (read from the cache) or "none" (not expanded).
    """

    prompt: str
    expanded_prompt: str
    notes: tuple[str, ...] = ()
    source: Literal["model", "remembered", "none"] = "none"


def expand(
    prompt: str, *, folder: Path | None, seed: int, cache_dir: Path, enabled: bool = True,
    picture: bool = False, model: str = "tiny", given: Sequence[np.ndarray] = (),
    given_as: GivenAs | None = None, device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Expansion:  # fmt: skip
    """Expand a prompt with the language model in `folder`; never fails, the user's text stands in.

    A folder with a list of known words holds a model that was taught to write captions of one
    world; any other is told how to by `instructions.py`.

    Args:
        folder: of a language model or a vision-language model; None where none is installed.
        seed: draws what the prompt leaves open; the same seed gives the same caption.
        cache_dir: where expansions are remembered, in `expansions/`.
        enabled: False leaves the prompt as it is (the note about unknown words is still made).
        picture: ask for the caption of one frame, in which nothing moves.
        model: the name of the video model in the notes.
        given: pictures that the video starts from, ends with or continues, uint8 [H, W, 3] each:
            shown to a model that can see. An empty prompt is then written from them alone.
        given_as: what they are; None where the video is made from text alone.
        device, dtype: where a large language model runs, as `ask.ask` takes them.
    """
    text = clean_text(prompt)
    known = known_words(folder)
    note = unknown_note(text, known, model=model)
    notes = (note,) if note else ()
    untouched = Expansion(prompt=prompt, expanded_prompt=text, notes=notes)
    if not enabled or (not text and given_as is None):
        return untouched
    if folder is None:
        return _excused(untouched, f"no language model is here: {_way_to_one(given_as)}")
    question = _question(text, known, folder, seed, picture, tuple(given), given_as)
    if question is None:
        return untouched
    memory = Memory(folder=cache_dir / "expansions", suffix=".json", limit=MAX_REMEMBERED)
    facts = question.facts()
    if remembered := recall(memory, facts, "expanded_prompt"):
        return replace(untouched, expanded_prompt=remembered, source="remembered")
    try:
        answer = ask(question, device=device, dtype=dtype)
    except Exception as error:  # whatever it was, the video can still be made from the prompt
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return _excused(untouched, f"it could not be expanded: {reason}")
    if amiss := objection(question.prompt, answer, question.instructions):
        return _excused(untouched, amiss)
    remember(memory, facts, prompt=question.prompt, expanded_prompt=answer)
    return replace(untouched, expanded_prompt=answer, source="model")


def _question(
    text: str, known: frozenset[str], folder: Path, seed: int, still: bool,
    given: tuple[np.ndarray, ...], given_as: GivenAs | None,
) -> Question | None:  # fmt: skip
    """What to ask, or None where the prompt says enough or nothing can be asked."""
    if known:
        if not text or is_dense(text, known):
            return None
        return Question(folder=folder, prompt=PICTURE + text if still else text, seed=seed)
    text = unquoted(text)
    shown = given if sees(folder) else ()
    told = instructions_for(prompt=text, still=still, given_as=given_as, seen=bool(shown))
    if told is None or (told.enough_words and length_in_words(text) >= told.enough_words):
        return None
    frames = shown if given_as is not None else ()
    return Question(folder=folder, prompt=text, seed=seed, instructions=told, frames=frames)


def _excused(untouched: Expansion, reason: str) -> Expansion:
    """The user's own text, or none where there was none, and why it stands."""
    stands = (
        "the prompt was used as it is" if untouched.expanded_prompt else "no prompt was written"
    )
    return replace(untouched, notes=(*untouched.notes, f"{stands}, because {reason}"))


def _way_to_one(given_as: GivenAs | None) -> str:
    return f"sora weights pull {TEXT_MODEL if given_as is None else VISION_MODEL}"


def is_dense(text: str, known: frozenset[str]) -> bool:
    """Whether a prompt already reads like a caption of the embedded model's world.

    Such a text is long enough to name everything, speaks of the camera, and has no strange words;
    rewriting it could only lose something.
    """
    said = [word.casefold() for word in words(text)]
    tells_camera = any(word in ("camera", "zoom", "zooms") for word in said)
    return len(said) >= DENSE_WORDS and tells_camera and not unknown_words(text, known)


# ---------------------------------------------------------------------- words never learned


def known_words(folder: Path | None) -> frozenset[str]:
    """The words that the language model's training covers; empty for an open-domain model."""
    if folder is None:
        return frozenset()
    try:
        return frozenset((folder / "known_words.txt").read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return frozenset()


def unknown_words(prompt: str, known: frozenset[str]) -> list[str]:
    """The words of a prompt, in any script, that are neither known nor inflections of known ones.

    In the prompt's order and spelling, each once. An emoji counts as a word; numbers, punctuation
    and single Latin letters do not. Nothing is unknown to a model without a list of known words.
    """
    if not known:
        return []
    bases = _known_bases(known)
    found: dict[str, str] = {}
    for word in words(prompt):
        folded = word.casefold()
        if folded in known or (len(word) == 1 and word.isascii()) or _bases(folded) & bases:
            continue
        found.setdefault(folded, word)
    return list(found.values())


def unknown_note(prompt: str, known: frozenset[str], *, model: str = "tiny") -> str | None:
    """A sentence that names the unknown words and the way to a model that knows them, or None."""
    named = [w if len(w) <= 24 else w[:23] + "…" for w in unknown_words(prompt, known)]
    if not named:
        return None
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return (
        f"{model} never learned: {', '.join(named[:MAX_NAMED])}{more}; "
        "get an open-domain model: sora weights list"
    )


def _bases(word: str) -> frozenset[str]:
    """What may stand before an English ending: bouncing → bounc, bounce; spinning → spin."""
    bases = {word}
    for ending in _ENDINGS:
        base = word.removesuffix(ending)
        if base == word or len(base) < 3:
            continue
        bases |= {base, base + "e"}
        if base[-1] == base[-2]:
            bases.add(base[:-1])
        if base[-1] == "i":
            bases.add(base[:-1] + "y")
    return frozenset(bases)


@lru_cache(maxsize=4)
def _known_bases(known: frozenset[str]) -> frozenset[str]:
    return frozenset(base for word in known for base in _bases(word))
