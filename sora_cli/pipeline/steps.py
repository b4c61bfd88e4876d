"""The steps of a game as people tell them: "left twice, then two steps up" → left 2, up 2."""

from __future__ import annotations

import re
from collections.abc import Sequence

WAYS = ("left", "right", "up", "down")
COUNTED = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip
_TIMES = {"once": 1, "twice": 2, "thrice": 3} | {word: n for n, word in enumerate(COUNTED)}
_NUMBER = rf"(?:{'|'.join(_TIMES)}|\d\d?)"
_CELLS = r"(?:steps?|cells?|times|squares?|fields?|x)"
_WAY = rf"(?<!-)(?:to the )?({'|'.join(WAYS)})"
# "two steps left", "twice up"; "left two times", "left 2", "left".
_STEP = re.compile(
    rf"\b({_NUMBER})(?: {_CELLS})? {_WAY}\b|\b{_WAY}(?:(?: for)? ({_NUMBER})\b(?: {_CELLS}\b)?)?"
)
_PART = re.compile(r"[.,;:!?/()\n]|\b(?:then|and)\b")


def steps_of(text: str) -> tuple[tuple[str, int], ...]:
    """(way, how often) in order, runs of like steps as one; nothing where none are told."""
    found: list[tuple[str, int]] = []
    for part in _PART.split(text.casefold()):
        for number, way, other, times in _STEP.findall(" ".join(part.split())):
            counted = number or times or "one"
            count = _TIMES.get(counted) or int(counted) if counted.isdigit() else _TIMES[counted]
            if found and found[-1][0] == (way or other):
                count += found.pop()[1]
            found.append((way or other, count))
    return tuple((way, count) for way, count in found if count)


def spelt(steps: Sequence[tuple[str, int]]) -> str:
    """Steps as captions tell them: "left twice, then up"."""
    words = []
    for way, count in steps:
        number = COUNTED[count] if count < len(COUNTED) else str(count)
        words.append({1: way, 2: f"{way} twice"}.get(count, f"{way} {number} times"))
    return ", then ".join(words)
