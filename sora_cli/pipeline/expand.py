"""From the prompt a person typed to the caption a model was trained on, remembered on disk.

Sora's report: a language model turns short prompts into captions like those the video model was
trained with. Loading one takes seconds, so an expansion is kept under a hash of the prompt, the
seed and the language model, and transformers is imported only when a new one has to be written.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from sora_cli.models.language_model import LanguageModel
from sora_cli.pipeline.prompt import clean_text
from sora_cli.pipeline.remember import Memory, weights_facts

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
    picture: bool = False, model: str = "tiny",
) -> Expansion:  # fmt: skip
    """Expand a prompt with the caption LLM in `folder`; never fails, the user's text stands in.

    Args:
        folder: the model's `language_model/`, or None where a model has none.
        seed: draws what the prompt leaves open; the same seed gives the same caption.
        cache_dir: where expansions are remembered, in `expansions/`.
        enabled: False leaves the prompt as it is (the note about unknown words is still made).
        picture: ask for the caption of one frame, in which nothing moves.
        model: the name of the model in the notes.
    """
    text = clean_text(prompt)
    known = known_words(folder)
    note = unknown_note(text, known, model=model)
    notes = (note,) if note else ()
    untouched = Expansion(prompt=prompt, expanded_prompt=text, notes=notes)
    if not enabled or folder is None or not text or is_dense(text, known):
        return untouched
    asked = PICTURE + text if picture else text
    memory = Memory(folder=cache_dir / "expansions", suffix=".json", limit=MAX_REMEMBERED)
    facts = _facts(asked, seed, folder)
    if remembered := _recall(memory, facts):
        return Expansion(
            prompt=prompt, expanded_prompt=remembered, notes=notes, source="remembered"
        )
    try:
        answer = LanguageModel(folder).complete(asked, seed=seed)
    except Exception as error:  # whatever it was, the video can still be made from the prompt
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        failed = f"the prompt was used as it is, because it could not be expanded: {reason}"
        return Expansion(prompt=prompt, expanded_prompt=text, notes=(*notes, failed))
    if not any(character.isalpha() for character in answer):
        failed = "the prompt was used as it is, because the language model had no answer"
        return Expansion(prompt=prompt, expanded_prompt=text, notes=(*notes, failed))
    if facts:
        entry = {"prompt": asked, "expanded_prompt": answer}
        memory.remember((json.dumps(entry, ensure_ascii=False) + "\n").encode(), *facts)
    return Expansion(prompt=prompt, expanded_prompt=answer, notes=notes, source="model")


def is_dense(text: str, known: frozenset[str]) -> bool:
    """Whether a prompt already reads like a caption of the embedded model's world.

    Such a text is long enough to name everything, speaks of the camera, and has no strange words;
    rewriting it could only lose something.
    """
    words = [word.casefold() for word in _words(text)]
    tells_camera = any(word in ("camera", "zoom", "zooms") for word in words)
    return len(words) >= DENSE_WORDS and tells_camera and not unknown_words(text, known)


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
    for word in _words(prompt):
        folded = word.casefold()
        if folded in known or (len(word) == 1 and word.isascii()) or _bases(folded) & bases:
            continue
        found.setdefault(folded, word)
    return list(found.values())


def unknown_note(prompt: str, known: frozenset[str], *, model: str = "tiny") -> str | None:
    """A sentence that names the unknown words and the way to a model that knows them, or None."""
    words = [w if len(w) <= 24 else w[:23] + "…" for w in unknown_words(prompt, known)]
    if not words:
        return None
    more = f" and {len(words) - MAX_NAMED} more" if len(words) > MAX_NAMED else ""
    return (
        f"{model} never learned: {', '.join(words[:MAX_NAMED])}{more}; "
        "get an open-domain model: sora weights list"
    )


def _words(text: str) -> list[str]:
    """Runs of letters with their combining marks; an emoji is a word of its own."""
    words, run = [], ""
    for character in text:
        kind = unicodedata.category(character)
        if kind[0] == "L" or (kind[0] == "M" and run):
            run += character
            continue
        if run:
            words.append(run)
        run = ""
        if kind == "So" and ord(character) >= 0x2600:
            words.append(character)
    return [*words, run] if run else words


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


# ---------------------------------------------------------------------- remembering


def _recall(memory: Memory, facts: tuple[object, ...] | None) -> str | None:
    """A remembered expansion, or None; a damaged entry counts as none."""
    content = memory.recall(*facts) if facts else None
    try:
        expanded = json.loads(content)["expanded_prompt"] if content else None
    except (ValueError, KeyError, TypeError):
        return None
    return expanded if isinstance(expanded, str) else None


def _facts(asked: str, seed: int, folder: Path) -> tuple[object, ...] | None:
    """What an expansion follows from; None when the language model itself cannot be read."""
    try:
        return (asked, seed, weights_facts(folder))
    except OSError:
        return None
