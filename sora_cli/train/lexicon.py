"""lexicon.json: what the world's words mean, for whoever reads prompts and captions of it.

`pipeline/reading.py` knows nothing of the world; it reads this table, which is written beside the
caption LLM's weights. All of it follows from captions.py and wordings.py.
"""

from __future__ import annotations

from typing import Any

from sora_cli.train import stories
from sora_cli.train.asking import EVENT_PHRASES, NUMBERS, OUTCOMES
from sora_cli.train.captions import vocabulary
from sora_cli.train.grid_game import BOARDS
from sora_cli.train.plainest import FIRST, patterns, values
from sora_cli.train.stories import BOARD_WORDS
from sora_cli.train.things import WALLS
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
    ROUND,
    SIDES,
    SYNONYMS,
    THROWN,
    Words,
)
from sora_cli.train.words import (
    ALL_KINDS,
    ALL_MOTIONS,
    COUNTS,
    FLOOR_PHRASES,
    SKY_PHRASES,
)
from sora_cli.train.world import COLORS

MOST_THINGS = 3
IMPLIED = {  # attributes that only scenes with an event have
    "wall": "behind", "paint": "trail", "bites": "eaten",
    "pieces": "broken", "player": "game", "board": "game", "coins": "game", "taken": "game",
}  # fmt: skip
_SMALL = ("a", "an", "the")


def lexicon() -> dict[str, Any]:
    """The table, as JSON holds it.

    phrases: attribute → value → the wordings that mean it.
    implied: attribute → the event that a scene must have which has the attribute.
    nearest: attribute → value → words for what the world lacks, to which it comes closest.
    shown: attribute → value → the word to put in the place of such a word.
    sides: phrases that say where a thing is, not how it moves.
    lookalikes: real words that are no misspelling of one of the world's.
    many: words for more things than `most_things`.
    caption: patterns that plain captions match, of scenes and of each event, and what their
        groups' words mean.
    """
    return {
        "schema": 1,
        "phrases": {name: _phrases(name) for name in FIRST} | _story_phrases(),
        "implied": IMPLIED,
        "nearest": {name: {v: list(ws) for v, ws in table.items()} for name, table in
                    NEAREST.items()},
        "places": {name: dict(table) for name, table in PLACES.items()},
        "shown": _shown(),
        "sides": list(SIDES),
        "lookalikes": LOOKALIKES.split(),
        "many": list(MANY),
        "most_things": MOST_THINGS,
        "caption": {
            "patterns": patterns(), "values": values(),
            "words": sorted(vocabulary() | stories.vocabulary()),
        },
    }  # fmt: skip


def _phrases(name: str) -> dict[str, list[str]]:
    tables: list[Words] = [FIRST[name], SYNONYMS.get(name, {})]
    if name == "motion":
        tables = [ALL_MOTIONS, DOING, DOES]
    if name == "camera":
        tables.append(DENIED["camera"])
    rows: dict[str, list[str]] = {}
    for value in FIRST[name]:
        own = [value] if name in ("kind", "color") else []
        for table in tables:
            own += [p for phrase in table.get(value, ()) for p in _going(phrase)]
        if name == "kind":
            own += [f"{phrase}s" for phrase in own if " " in phrase]  # one word's is found anyway
        rows[value] = _with_terse(own)
    for value, own in _VAGUE.get(name, {}).items():
        rows[value] = _with_terse([*rows.get(value, ()), *own])
    return rows


_VAGUE: dict[str, dict[str, list[str]]] = {  # a value that begins so is meant, whichever
    "motion": {"thrown": [*THROWN, "is thrown", "is tossed", "in an arc", "flies in an arc",
                          "flies through the air", "flies"],
               "away": ["into the distance", "then away"],
               "circles": ["in a circle", "in circles", "around in a circle"]},
    "camera": {"orbit": [*ROUND, "camera orbits", "orbiting camera", "camera circles", "orbit shot",
                         "camera circles around it", "camera goes around", "camera orbit",
                         "orbiting camera around",
                         "camera orbits around", "camera circles around", "camera moves around",
                         "camera going around"]},
}  # fmt: skip


def _story_phrases() -> dict[str, dict[str, list[str]]]:
    """The wordings of events and of what belongs to them."""
    spoken = {n: (word, digit) for n, (word, digit) in enumerate(zip(COUNTS, NUMBERS, strict=True))}
    walls = {wall: [f"{wall} wall"] for wall in WALLS}
    walls["grey"].append("gray wall")
    said = ("trail", "trail stays", "line", "stripe", "streak", "paint", "stripe of paint")
    left = tuple(f"{verb} {an}{{}} {line}" for verb in ("leaves", "leaving")
                 for an in ("a ", "an ", "") for line in said[:5])  # fmt: skip
    ground = ("the ground {}", "ground {}", "the floor {}", "trail of {}", "line of {}")
    return {
        "event": {event: sorted({phrase for row in rows for phrase in _going(row)})
                  for event, rows in EVENT_PHRASES.items()},
        "outcome": {outcome: [f"{joint}{row}" for row in rows
                              for joint in ("and ", "then ", *("",) * row.endswith("back"))]
                    for outcome, rows in OUTCOMES.items()},
        "wall": walls,
        "paint": {color: [*(f"{color} {word}" for word in said),
                          *(g.format(color) for g in left + ground)]
                  for color in COLORS},
        "bites": _numbers(spoken, "{} bites", "{} bite", "bitten {} times"),
        "pieces": _numbers(spoken, "{} pieces", "{} parts", "{} bits", "breaks in {}"),
        "coins": _numbers(spoken, "{} coins", "{} coin"),
        "taken": {str(n): [f"{verb} {word} coin{'s' * (n > 1)}" for verb in ("takes", "collects",
                  "gets", "collecting", "taking") for word in (*words, *["a"] * (n == 1))]
                  for n, words in spoken.items() if n},
        "player": {color: [f"{color} player"] for color in COLORS},
        "board": {b: [f"{word} board" for word in BOARD_WORDS[b]] for b in BOARDS},
    }  # fmt: skip


def _numbers(spoken: dict[int, tuple[str, str]], *rows: str) -> dict[str, list[str]]:
    return {str(n): [row.format(word) for word in words for row in rows]
            for n, words in spoken.items() if n}  # fmt: skip


def _with_terse(phrases: list[str]) -> list[str]:
    return sorted({form for phrase in phrases for form in (phrase, _terse(phrase))} - {""})


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
        "kind": {kind: kind for kind in ALL_KINDS},
        "color": {color: color for color in COLORS},
        "floor": {value: floor.get(value, value) for value in FLOOR_PHRASES},
        "sky": {value: "clouds" if value == "overcast" else value for value in SKY_PHRASES},
        "motion": {value: phrases[0] for value, phrases in DOING.items()},
        "event": {"behind": "wall"},
    }
