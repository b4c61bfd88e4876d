"""The words of a model's world, from the lexicon.json beside its language model.

The table says which wordings mean which value of which attribute, what comes closest to things the
world lacks, and what a caption of it looks like (`train/lexicon.py` writes it). So a prompt can be
read, and an answer held against it, without knowing anything of the world here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

Meaning = tuple[str, str]  # attribute and value: ("color", "red")
SIDE: Meaning = ("side", "")
_ENDINGS = ("s", "es", "d", "ed", "ing", "ly", "y", "er", "ers", "n", "ish")
_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Lexicon:
    """What words mean.

    phrases: wordings, as tuples of lower-case words, and what each means.
    longest: the number of words in the longest of them.
    nearest: words of things that the world lacks, and the meaning that comes closest.
    places: the same for words behind "on", "in", "at".
    shown: the word that says a meaning plainly.
    real: words that are no misspelling of others.
    targets: words that a misspelt word may have been.
    many: words for more things than `most_things`.
    patterns: (event, what its captions match, lower case; groups are attributes). The event of a
        scene in which none happens is empty.
    implied: of an attribute that only scenes with an event have, that event.
    values: of each attribute, what its words in captions mean.
    caption_words: all words of captions.
    """

    phrases: dict[tuple[str, ...], Meaning]
    longest: int
    nearest: dict[tuple[str, ...], Meaning]
    places: dict[str, Meaning]
    shown: dict[Meaning, str]
    real: frozenset[str]
    targets: tuple[str, ...]
    many: frozenset[str]
    most_things: int
    patterns: tuple[tuple[str, re.Pattern[str]], ...]
    implied: dict[str, str]
    values: dict[str, dict[str, str]]
    caption_words: frozenset[str]


@lru_cache(maxsize=4)
def read_lexicon(folder: Path | None) -> Lexicon | None:
    """The lexicon of a language model's folder; None where there is none that can be read."""
    if folder is None:
        return None
    try:
        table = json.loads((folder / "lexicon.json").read_text(encoding="utf-8"))
        return parse_lexicon(table) if table["schema"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error):
        return None


def parse_lexicon(table: dict[str, Any]) -> Lexicon:
    """The lexicon of such a table; raises what a damaged one leads to."""
    phrases = _meanings(table["phrases"])
    phrases |= {words_of(side): SIDE for side in table["sides"]}
    nearest = {key: m for key, m in _meanings(table["nearest"]).items() if key not in phrases}
    single = {word for key in phrases for word in key}
    strange = {word for key in nearest for word in key}
    caption = table["caption"]
    return Lexicon(
        phrases=phrases,
        longest=max(map(len, (*phrases, *nearest))),
        nearest=nearest,
        places={w: (name, v) for name, row in table["places"].items() for w, v in row.items()},
        shown={(name, v): w for name, row in table["shown"].items() for v, w in row.items()},
        real=frozenset(table["lookalikes"]) | single | strange,
        targets=tuple(sorted(word for word in single if len(word) >= 3)),
        many=frozenset(table["many"]),
        most_things=table["most_things"],
        patterns=tuple((event, re.compile(text)) for event, text in caption["patterns"]),
        implied=table["implied"],
        values=caption["values"],
        caption_words=frozenset(caption["words"]),
    )


def _meanings(table: dict[str, dict[str, list[str]]]) -> dict[tuple[str, ...], Meaning]:
    return {
        words_of(phrase): (name, value)
        for name, row in table.items()
        for value, phrases in row.items()
        for phrase in phrases
    }


def words_of(text: str) -> tuple[str, ...]:
    """The lower-case words of a phrase; a hyphen parts two."""
    return tuple(re.findall(r"[^\W_]+", text.casefold()))


def bases(word: str) -> frozenset[str]:
    """What may stand before an English ending: bouncing → bounc, bounce; spinning → spin."""
    found = {word}
    for ending in _ENDINGS:
        base = word.removesuffix(ending)
        if base == word or len(base) < 3:
            continue
        found |= {base, base + "e"}
        if base[-1] == base[-2]:
            found.add(base[:-1])
        if base[-1] == "i":
            found.add(base[:-1] + "y")
    return frozenset(found)


def forms(word: str) -> list[str]:
    """A word as it may stand in a table, likeliest first: itself, without its ending, with an s."""
    others = sorted(bases(word) - {word}, key=lambda base: (-len(base), base))
    return [word, *(base for base in others if len(base) > 2), word + "s"]


def one_slip(wrong: str, right: str) -> bool:
    """Whether one slip of the finger makes `wrong` of `right`; the first letter is never wrong.

    Two neighbours swapped; in words of four letters or more also one left out or one too many; in
    words of five or more also one in place of another.
    """
    if wrong[:1] != right[:1] or abs(len(wrong) - len(right)) > 1:
        return False
    at = next((i for i, (a, b) in enumerate(zip(wrong, right, strict=False)) if a != b), None)
    if at is None:
        return len(wrong) != len(right) and len(right) >= 4
    swapped = wrong[at : at + 2] == right[at : at + 2][::-1] and wrong[at + 2 :] == right[at + 2 :]
    if len(right) < 4:
        return swapped
    if len(wrong) < len(right):
        return wrong[at:] == right[at + 1 :]
    if len(wrong) > len(right):
        return wrong[at + 1 :] == right[at:]
    return swapped or (len(right) >= 5 and wrong[at + 1 :] == right[at + 1 :])
