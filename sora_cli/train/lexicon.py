"""lexicon.json: what the world's words mean, for whoever reads prompts and captions of it.

`pipeline/reading.py` knows nothing of the world; it reads this table, which is written beside the
caption LLM's weights. All of it follows from captions.py and wordings.py.
"""

from __future__ import annotations

import re
from typing import Any

from sora_cli.train.captions import (
    CAMERA_PHRASES,
    FLOOR_PHRASES,
    KIND_WORDS,
    MOTION_PHRASES,
    MOVES,
    SIZE_WORDS,
    SKY_PHRASES,
    vocabulary,
)
from sora_cli.train.wordings import (
    DENIED,
    DOES,
    DOING,
    GOES,
    GOING,
    LOOKALIKES,
    MANY,
    NEAREST,
    PLACES,
    SIDES,
    SYNONYMS,
    Words,
)
from sora_cli.train.world import COLORS

FIRST: dict[str, Words] = {  # the tables whose first phrase is the plain caption's
    "kind": KIND_WORDS, "color": {color: (color,) for color in COLORS}, "size": SIZE_WORDS,
    "motion": MOTION_PHRASES, "floor": FLOOR_PHRASES, "sky": SKY_PHRASES, "camera": CAMERA_PHRASES,
}  # fmt: skip
MOST_THINGS = 2
_SMALL = ("a", "an", "the")


def lexicon() -> dict[str, Any]:
    """The table, as JSON holds it.

    phrases: attribute → value → the wordings that mean it.
    nearest: attribute → value → words for what the world lacks, to which it comes closest.
    shown: attribute → value → the word to put in the place of such a word.
    sides: phrases that say where a thing is, not how it moves.
    lookalikes: real words that are no misspelling of one of the world's.
    many: words for more things than `most_things`.
    caption: a pattern that plain captions match, and what its groups' words mean.
    """
    return {
        "schema": 1,
        "phrases": {name: _phrases(name) for name in FIRST},
        "nearest": {name: {v: list(ws) for v, ws in table.items()} for name, table in
                    NEAREST.items()},
        "places": {name: dict(table) for name, table in PLACES.items()},
        "shown": _shown(),
        "sides": list(SIDES),
        "lookalikes": LOOKALIKES.split(),
        "many": list(MANY),
        "most_things": MOST_THINGS,
        "caption": {"pattern": _pattern(), "values": _values(), "words": sorted(vocabulary())},
    }  # fmt: skip


def _phrases(name: str) -> dict[str, list[str]]:
    tables: list[Words] = [FIRST[name], SYNONYMS.get(name, {})]
    if name == "motion":
        tables = [MOTION_PHRASES, DOING, DOES]
    if name == "camera":
        tables.append(DENIED["camera"])
    rows: dict[str, list[str]] = {}
    for value in FIRST[name]:
        own = [value] if name in ("kind", "color") else []
        for table in tables:
            own += [p for phrase in table.get(value, ()) for p in _going(phrase)]
        rows[value] = sorted({form for phrase in own for form in (phrase, _terse(phrase))} - {""})
    return rows


def _terse(phrase: str) -> str:
    """As people write who leave out small words: "camera does not move"."""
    words = phrase.split()
    return " ".join(
        words[:1] * (words[0] not in _SMALL) + [w for w in words[1:] if w not in _SMALL]
    )


def _going(phrase: str) -> list[str]:
    if "{go}" not in phrase:
        return [phrase]
    return [phrase.replace("{go}", go) for go in (*GOES, *GOING)]


def _shown() -> dict[str, dict[str, str]]:
    """In the place of "street" stands "tiled floor": nouns, which fit where nouns stood."""
    floor = {"tiles": "tiled floor", "wood": "wooden floor"}
    return {
        "kind": {kind: kind for kind in KIND_WORDS},
        "color": {color: color for color in COLORS},
        "floor": {value: floor.get(value, value) for value in FLOOR_PHRASES},
        "sky": {value: "clouds" if value == "overcast" else value for value in SKY_PHRASES},
        "motion": {value: phrases[0] for value, phrases in DOING.items()},
    }


def _values() -> dict[str, dict[str, str]]:
    rows = {name: {table[v][0]: v for v in table} for name, table in FIRST.items()}
    rows["motion"] = {"stands": "still"}
    for motion, phrases in MOTION_PHRASES.items():
        for go in {*MOVES.values(), "slides"}:
            rows["motion"][phrases[0].format(go=go)] = motion
    return rows


def _pattern() -> str:
    """What `prompts.plain_caption` writes, in lower case."""

    def any_of(name: str, group: str) -> str:
        words = sorted(_values()[name], key=len, reverse=True)
        return f"(?P<{group}>{'|'.join(map(re.escape, words))})"

    def thing(number: int) -> str:
        names = ("size", "color", "kind", "motion")
        return "an? " + " ".join(any_of(name, f"{name}{number}") for name in names)

    both = rf"(?: on the left and {thing(1)} on the right\. it is)?"
    place = rf" {any_of('floor', 'floor')},? {any_of('sky', 'sky')}\."
    return rf"(?P<picture>a picture\. )?{thing(0)}{both}{place}(?: {any_of('camera', 'camera')}\.)?"
