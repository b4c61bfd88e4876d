"""Charts as PNG, drawn with Pillow: lines for learning curves and laws, bars for shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sora_cli.eval.sheet import INK, PAPER

SIZE = (900, 540)  # pixels
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 44, 58  # margins, pixels
GRID = (222, 222, 218)
INKS = (
    (200, 60, 40), (40, 90, 180), (30, 140, 80), (150, 80, 170), (190, 130, 20), (20, 20, 20),
    (0, 150, 170), (220, 90, 150), (120, 120, 120), (130, 170, 30), (110, 60, 20), (120, 140, 240),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Points (x, y) under a name: joined, or dots where `joined` is False."""

    name: str
    points: Sequence[tuple[float, float]]
    joined: bool = True


def ticks(low: float, high: float, *, log: bool) -> list[float]:
    """Round numbers from `low` to `high`: 1, 2 or 5 times a power of ten.

    Where a logarithmic axis has fewer than three of them, they are evenly spaced.
    """
    if log:
        rows = [m * 10.0**e for e in range(-9, 13) for m in (1, 2, 5)]
        found = [value for value in rows if low * 0.999 <= value <= high * 1.001]
        if len(found) > 2:
            return found
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def said(value: float) -> str:
    """A tick's number, short: 0.12, 81k, 2M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:.6g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """From numbers to pixels along one side."""

    low: float
    high: float
    start: float  # pixels
    stop: float
    log: bool

    def place(self, value: float) -> float:
        """Where a number stands, in pixels."""
        low, high = (math.log(v) if self.log else v for v in (self.low, self.high))
        at = math.log(value) if self.log else value
        return self.start + (self.stop - self.start) * (at - low) / ((high - low) or 1.0)


def _range(values: list[float], log: bool) -> tuple[float, float]:
    """A little more than the values' own range."""
    low, high = min(values), max(values)
    if log:
        edge = (high / low) ** 0.06 if high > low else 1.2
        return low / edge, high * edge
    edge = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - edge, high + edge


def chart(
    lines: Sequence[Line], path: Path, *, title: str, x: str, y: str, log_x: bool = False,
    log_y: bool = False,
) -> None:  # fmt: skip
    """Write a chart.

    Args:
        lines: at least one with a point; numbers above 0 along a logarithmic axis.
        path: the PNG to write; its folder must exist.
        x, y: what stands at the axes.
    """
    points = [point for line in lines for point in line.points]
    assert points, "a chart shows something"
    wide, high = SIZE
    (x_low, x_high), (y_low, y_high) = (
        _range([p[side] for p in points], log) for side, log in ((0, log_x), (1, log_y))
    )
    across = Axis(low=x_low, high=x_high, start=LEFT, stop=wide - RIGHT, log=log_x)
    up = Axis(low=y_low, high=y_high, start=high - BOTTOM, stop=TOP, log=log_y)
    # The names stand below the axes, two in a row, where no line runs through them.
    picture = Image.new("RGB", (wide, high + 17 * -(-len(lines) // 2)), PAPER)
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    for value in ticks(x_low, x_high, log=log_x):
        at = across.place(value)
        draw.line((at, TOP, at, high - BOTTOM), fill=GRID)
        draw.text((at, high - BOTTOM + 6), said(value), fill=INK, font=small, anchor="ma")
    for value in ticks(y_low, y_high, log=log_y):
        at = up.place(value)
        draw.line((LEFT, at, wide - RIGHT, at), fill=GRID)
        draw.text((LEFT - 8, at), said(value), fill=INK, font=small, anchor="rm")
    draw.rectangle((LEFT, TOP, wide - RIGHT, high - BOTTOM), outline=INK)
    draw.text((LEFT, 14), title, fill=INK, font=font)
    draw.text(((LEFT + wide - RIGHT) / 2, high - 24), x, fill=INK, font=small, anchor="ma")
    draw.text((wide - RIGHT, 18), f"upward: {y}", fill=INK, font=small, anchor="ra")
    for number, line in enumerate(lines):
        _draw(draw, line, INKS[number % len(INKS)], across, up)
        spot = (LEFT + number % 2 * (wide - LEFT) // 2, high - 4 + 17 * (number // 2))
        draw.text(spot, line.name, fill=INKS[number % len(INKS)], font=small, anchor="la")
    picture.save(path, format="PNG", optimize=True)


def _draw(
    draw: ImageDraw.ImageDraw, line: Line, ink: tuple[int, int, int], across: Axis, up: Axis
) -> None:
    spots = [(across.place(a), up.place(b)) for a, b in line.points]
    if line.joined and len(spots) > 1:
        draw.line(spots, fill=ink, width=2, joint="curve")
        return
    for left, top in spots:
        draw.ellipse((left - 5, top - 5, left + 5, top + 5), fill=ink)


def bars(
    groups: Mapping[str, Mapping[str, float]], marks: Mapping[str, float], path: Path, *,
    title: str, y: str,
) -> None:  # fmt: skip
    """Write a chart of percentages, 0 to 100: a group of bars for each of `groups`.

    Args:
        groups: by what stands under a group, its bars by name; the same names in each.
        marks: by group, where a line stands across it.
        path: the PNG to write; its folder must exist.
    """
    wide, high = SIZE
    up = Axis(low=0.0, high=100.0, start=high - BOTTOM, stop=TOP, log=False)
    picture = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    for value in range(0, 101, 20):
        at = up.place(value)
        draw.line((LEFT, at, wide - RIGHT, at), fill=GRID)
        draw.text((LEFT - 8, at), said(value), fill=INK, font=small, anchor="rm")
    room = (wide - LEFT - RIGHT) / len(groups)  # pixels of a group, a fifth of them free
    for number, (group, shares) in enumerate(groups.items()):
        left, width = LEFT + room * (number + 0.1), 0.8 * room / len(shares)
        for place, share in enumerate(shares.values()):
            start, top = left + width * place, up.place(share)
            box = (start + 3, top, start + width - 3, high - BOTTOM)
            draw.rectangle(box, fill=INKS[place % len(INKS)])
            spot = (start + width / 2, top - 3)
            draw.text(spot, f"{share:.1f}", fill=INK, font=small, anchor="mb")
        at = up.place(marks[group])
        draw.line((left, at, left + 0.8 * room, at), fill=INK, width=2)
        spot = (left + 0.4 * room, high - BOTTOM + 6)
        draw.text(spot, group, fill=INK, font=small, anchor="ma")
    names = list(next(iter(groups.values())))
    draw.rectangle((LEFT, TOP, wide - RIGHT, high - BOTTOM), outline=INK)
    draw.text((LEFT, 14), title, fill=INK, font=font)
    draw.text((wide - RIGHT, 18), f"upward: {y}", fill=INK, font=small, anchor="ra")
    for place, name in enumerate(names):
        spot = (LEFT + (wide - LEFT - RIGHT) * (place + 0.5) / len(names), high - 24)
        draw.text(spot, name, fill=INKS[place % len(INKS)], font=small, anchor="ma")
    picture.save(path, format="PNG", optimize=True)
