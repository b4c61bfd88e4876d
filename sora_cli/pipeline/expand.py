"""From the prompt a person typed to the caption a model was trained on, remembered on disk.

Sora's report: a language model turns short prompts into captions like those the video model was
trained with. Loading one takes seconds, so an expansion is kept under a hash of the prompt, the
seed and the language model, and transformers is imported only when a new one has to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sora_cli.pipeline.answers import length_in_words, objection, unquoted, words
from sora_cli.pipeline.ask import Question, ask, recall, remember, sees
from sora_cli.pipeline.checking import MALFORMED, faults, with_steps
from sora_cli.pipeline.instructions import TEXT_MODEL, VISION_MODEL, GivenAs, instructions_for
from sora_cli.pipeline.lexicon import Lexicon, bases, read_lexicon
from sora_cli.pipeline.prompt import clean_text
from sora_cli.pipeline.reading import Reading, read_prompt
from sora_cli.pipeline.remember import Memory

if TYPE_CHECKING:
    import numpy as np
    import torch

PICTURE = "a picture. "  # train/prompts.py's mark of a caption in which nothing moves
MAX_REMEMBERED = 2000  # expansions, of about half a kilobyte each
MAX_NAMED = 8  # unknown words in a note
DENSE_WORDS = 13  # the fewest words in which every attribute can be named
GRAVE = 100  # an answer that is no caption is worse than one with so many faults


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
    known, world = known_words(folder), _World.of(text, folder)
    notes = world.notes(model) if world else _told(unknown_note(text, known, model=model))
    untouched = Expansion(prompt=prompt, expanded_prompt=text, notes=notes)
    if not enabled or (not text and given_as is None):
        return replace(untouched, notes=_told(unknown_note(text, known, model=model)))
    if folder is None:
        return _excused(untouched, f"no language model is here: {_way_to_one(given_as)}")
    question = _question(text, known, world, folder, seed, picture, tuple(given), given_as)
    if question is None:
        return untouched
    memory = Memory(folder=cache_dir / "expansions", suffix=".json", limit=MAX_REMEMBERED)
    facts = question.facts()
    if remembered := recall(memory, facts, "expanded_prompt"):
        return _answered(untouched, remembered, world, picture, "remembered")
    try:
        answer = ask(
            question, device=device, dtype=dtype, faults=world.judge(picture) if world else None
        )
    except Exception as error:  # whatever it was, the video can still be made from the prompt
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return _excused(untouched, f"it could not be expanded: {reason}")
    if amiss := objection(question.prompt, answer, question.instructions):
        return _excused(untouched, amiss)
    remember(memory, facts, prompt=question.prompt, expanded_prompt=answer)
    return _answered(untouched, answer, world, picture, "model")


def _answered(
    untouched: Expansion, answer: str, world: _World | None, still: bool,
    source: Literal["model", "remembered"],
) -> Expansion:  # fmt: skip
    """The answer, and what of the prompt it does not keep."""
    answer = with_steps(answer, world.reading, world.lexicon) if world else answer
    lost = faults(answer, world.reading, world.lexicon, still=still) if world else []
    if lost == [MALFORMED]:
        return _excused(untouched, "no caption came of it")
    if lost and world and world.reading.events:  # what happens is worse told wrongly than tersely
        return _excused(untouched, f"no caption kept: {', '.join(lost[:MAX_NAMED])}")
    notes = (f"the caption may not keep: {', '.join(lost[:MAX_NAMED])}",) if lost else ()
    made = replace(untouched, expanded_prompt=answer, source=source)
    return replace(made, notes=(*untouched.notes, *notes))


def _question(
    text: str, known: frozenset[str], world: _World | None, folder: Path, seed: int, still: bool,
    given: tuple[np.ndarray, ...], given_as: GivenAs | None,
) -> Question | None:  # fmt: skip
    """What to ask, or None where the prompt says enough or nothing can be asked."""
    if known:
        enough = world.lexicon.caption_words if world else known
        if not text or (is_dense(text, enough) and not (world and world.reading.denies)):
            return None
        mark = PICTURE if still else ""
        if world is None:
            return Question(folder=folder, prompt=mark + text, seed=seed)
        retold = world.reading.retold and mark + world.reading.retold
        return Question(folder=folder, prompt=mark + world.reading.text, seed=seed, retold=retold)
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
    stems = _known_bases(known)
    found: dict[str, str] = {}
    for word in words(prompt):
        folded = word.casefold()
        if folded in known or (len(word) == 1 and word.isascii()) or bases(folded) & stems:
            continue
        found.setdefault(folded, word)
    return list(found.values())


def unknown_note(
    prompt: str, known: frozenset[str], *, model: str = "tiny", reading: Reading | None = None
) -> str | None:
    """A sentence that names the unknown words and the way to a model that knows them, or None.

    reading: tells which of them were only misspelt, and what stands for which.
    """
    mended = {typed for typed, _ in reading.mended} if reading else set()
    shown = dict(reading.stand_ins) if reading else {}
    # In the prompt's order: what nothing stands for, and what something does, with that.
    rows = {w: None for w in unknown_words(prompt, known) if w.casefold() not in mended}
    parts = {part for typed in shown for part in typed.split()}
    strange = [_cut(word) for word in rows if word.casefold() not in parts]
    named = [f"{_cut(typed)} (here: {word})" for typed, word in shown.items()] + strange
    if not named:
        return None
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return (
        f"{model} never learned: {', '.join(named[:MAX_NAMED])}{more}; "
        "get an open-domain model: sora weights list"
    )


def _cut(word: str) -> str:
    return word if len(word) <= 24 else word[:23] + "…"


def _told(note: str | None) -> tuple[str, ...]:
    return (note,) if note else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _World:
    """A prompt read by the lexicon of the world that the language model was taught."""

    text: str
    known: frozenset[str]
    lexicon: Lexicon
    reading: Reading

    @classmethod
    def of(cls, text: str, folder: Path | None) -> _World | None:
        """None for a model of the open world."""
        known, lexicon = known_words(folder), read_lexicon(folder)
        if lexicon is None or not known:
            return None
        reading = read_prompt(text, lexicon, known)
        return cls(text=text, known=known, lexicon=lexicon, reading=reading)

    def notes(self, model: str) -> tuple[str, ...]:
        """What the user should know of how the prompt was read."""
        reading = self.reading
        notes = []
        if reading.mended:
            pairs = [f"{_cut(typed)} as {meant}" for typed, meant in reading.mended[:MAX_NAMED]]
            notes.append(f"read {', '.join(pairs)}")
        known = self.known | self.lexicon.many
        notes += _told(unknown_note(self.text, known, model=model, reading=reading))
        if reading.too_many:
            notes.append(f"{model} shows {self.lexicon.most_things} things at most")
        if self.text and not reading.mentions:
            notes.append(f"{model} knows nothing that this prompt names: the scene is its own idea")
        return tuple(notes)

    def judge(self, still: bool) -> Callable[[str], int]:
        """How much is wrong with a caption of the prompt."""

        def count(caption: str) -> int:
            lost = faults(caption, self.reading, self.lexicon, still=still)
            return GRAVE if lost == [MALFORMED] else len(lost)

        return count


@lru_cache(maxsize=4)
def _known_bases(known: frozenset[str]) -> frozenset[str]:
    return frozenset(base for word in known for base in bases(word))
