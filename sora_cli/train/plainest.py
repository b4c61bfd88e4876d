"""Dense captions in the plainest words, the form in which the caption LLM answers, as patterns.

Each thing is said in one way only: the wording that says the most, the first of those. So a
caption can be read back without loss: `patterns` has an expression for each form, whose groups are
attributes, and `values` what the words in them mean.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from sora_cli.train.captions import SIDES, dense
from sora_cli.train.grid_game import BOARDS, PLAYERS
from sora_cli.train.stories import AFTERWARDS, BOARD_WORDS, GAMES, TELLING, WAYS
from sora_cli.train.things import WALLS
from sora_cli.train.wordings import Words
from sora_cli.train.words import (
    ALL_CAMERAS,
    ALL_KINDS,
    ALL_MOTIONS,
    COUNTS,
    FLOOR_PHRASES,
    MOVES,
    SIZE_WORDS,
    SKY_PHRASES,
    WIDER_MOVES,
)
from sora_cli.train.world import COLORS, Scene

FIRST: dict[str, Words] = {  # the tables of which one phrase is the plain caption's
    "kind": ALL_KINDS, "color": {color: (color,) for color in COLORS}, "size": SIZE_WORDS,
    "motion": ALL_MOTIONS, "floor": FLOOR_PHRASES, "sky": SKY_PHRASES, "camera": ALL_CAMERAS,
}  # fmt: skip
GOES = tuple(sorted({*MOVES.values(), *WIDER_MOVES.values(), "slides"}))
EVENTS: dict[str, tuple[str, ...]] = {  # the rows of TELLING that tell of each
    "collision": ("runs into", "meets"), "behind": ("behind",), "trail": ("trail",),
    "eaten": ("eaten",), "broken": ("bursts", "drops"), "orbit": ("orbit",),
}  # fmt: skip
ENDINGS: dict[str, tuple[str, ...]] = {
    "collision": ("outcome", "pushed"), "trail": ("remains",), "eaten": ("left over",),
    "broken": ("stay",),
}  # fmt: skip
OUTCOMES = ("bounces back", "stops", "goes on")


def fullest(rows: Sequence[Any]) -> Any:
    """The wording with the most holes, the first of those."""
    return max(rows, key=lambda row: row.count("{") if isinstance(row, str) else 0)


class _Plainest(random.Random):
    """Chooses the fullest wording of every table: one way to say each thing, easiest to learn."""

    def choice(self, seq: Any) -> Any:
        """The fullest."""
        return fullest(seq)

    def random(self) -> float:
        """Never leaves anything out."""
        return 0.0


def plain_caption(scene: Scene) -> str:
    """The dense caption in the plainest words."""
    return dense(scene, _Plainest()).text


def values() -> dict[str, dict[str, str]]:
    """What the words in a plain caption's groups mean, by attribute."""
    rows = {name: {fullest(table[v]): v for v in table} for name, table in FIRST.items()}
    motions = {fullest(phrases): motion for motion, phrases in ALL_MOTIONS.items()}
    motions |= {f"{{go}} {ways[0]}": way for way, ways in WAYS.items()}
    rows["motion"] = {"stands": "still"} | {
        phrase.format(go=go): motion for phrase, motion in motions.items() for go in GOES
    }
    number = {word: str(n) for n, word in enumerate(COUNTS)} | {"a": "1"}
    rows |= dict.fromkeys(("bites", "pieces", "coins", "taken"), number)
    rows["outcome"] = {fullest(AFTERWARDS[o]).split("} ")[1]: o for o in OUTCOMES}
    rows["wall"], rows["player"] = {w: w for w in WALLS}, {c: c for c in COLORS}
    rows["board"] = {BOARD_WORDS[board][0]: board for board in BOARDS}
    return rows | {"paint": rows["color"]}


def patterns() -> list[tuple[str, str]]:
    """(event, expression) of every form, in lower case; the plain scenes' event is empty."""
    stories = [(event, _story(event, row)) for event, rows in EVENTS.items() for row in rows]
    return [("", _scene()), *stories, ("game", _game())]


def _any_of(name: str, group: str) -> str:
    words = sorted(values()[name], key=len, reverse=True)
    return f"(?P<{group}>{'|'.join(map(re.escape, words))})"


def _noun(number: int) -> str:
    names = ("size", "color", "kind")
    return "an? " + " ".join(_any_of(name, f"{name}{number}") for name in names)


def _place(camera: str) -> str:
    return rf" {_any_of('floor', 'floor')},? {_any_of('sky', 'sky')}\.{camera}"


def _scene() -> str:
    """One thing, two or three, each with what it does."""
    one, two, three = (f"{_noun(n)} {_any_of('motion', f'motion{n}')}" for n in range(3))
    left, right = SIDES[2][0]
    middle = SIDES[3][0][1]
    more = rf"(?: {left} and {two}(?: {middle} and {three})? {right}\. it is)?"
    camera = f"(?: {_any_of('camera', 'camera')}" + r"\.)?"
    return rf"(?P<picture>a picture\. )?{one}{more}{_place(camera)}"


def _story(event: str, row: str) -> str:
    """What happens, where, how it ends, the camera."""
    number = "bites" if event == "eaten" else "pieces"
    holes = {
        "a": _noun(0), "b": _noun(1), "go": f"(?:{'|'.join(GOES)})",
        "the_a": f"the (?:{'|'.join(ALL_KINDS)})", "the_b": f"the (?:{'|'.join(ALL_KINDS)})",
        "wall": _any_of("wall", "wall"), "a_paint": "an? " + _any_of("paint", "paint"),
        "n": _any_of(number, number), "off": "to the (?:left|right)",
    }  # fmt: skip
    told = fullest(TELLING[row]).replace("{go} {way}", _any_of("motion", "motion0"))
    told = told.replace("falls and", "(?P<motion0>falls) and").format(**holes)
    again = holes | {"paint": f"(?:{'|'.join(COLORS)})", "n": r"\w+"}
    ends = [
        f"{holes['the_a']} {_any_of('outcome', 'outcome')}"
        if name == "outcome" else fullest(AFTERWARDS[name]).format(**again)
        for name in ENDINGS.get(event, ())
    ]  # fmt: skip
    after = r" {}\.".format(" and ".join(ends)) if ends else ""
    camera = rf" {_any_of('camera', 'camera')}\."
    return told + _place(after + camera)


def _game() -> str:
    """The board, who plays, what it does; a picture has no actions."""
    board = f"{GAMES[0]}: an? {_any_of('player', 'player')} player on a {_any_of('board', 'board')}"
    coins = rf" board with walls and {_any_of('coins', 'coins')} coins?\."
    does = r" the player goes (?P<actions>[a-z, ]+)\."
    takes = rf"(?: it takes {_any_of('taken', 'taken')} coins?\.)?"
    return rf"(?P<picture>a picture\. )?{board}{coins}(?:{does}{takes})?"


assert set(PLAYERS) < set(COLORS)
