"""Plots of growth, drawn with Pillow: seconds above, memory below, a column for each axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

PANEL = (300, 210)  # pixels, with its margins
LEFT, TOP, RIGHT, BOTTOM = 46, 30, 14, 34  # margins within a panel
INK, FAINT, SECONDS, MEMORY = (40, 40, 40), (222, 222, 222), (28, 99, 184), (190, 74, 30)


def draw(axes: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the picture of `growth.report`'s axes: a PNG of few colours."""
    picture = Image.new("RGB", (PANEL[0] * len(axes), PANEL[1] * 2), "white")
    canvas = ImageDraw.Draw(picture)
    for column, (name, axis) in enumerate(axes.items()):
        values = [point["value"] for point in axis["points"]]
        seconds = [point["cpu_s"] for point in axis["points"]]
        memory = [point["peak_bytes"] / 1e6 for point in axis["points"]]
        corner = (column * PANEL[0], 0)
        _panel(canvas, corner, f"{name}: seconds", axis["unit"], values, seconds, SECONDS)
        corner = (column * PANEL[0], PANEL[1])
        _panel(canvas, corner, f"{name}: peak memory, MB", axis["unit"], values, memory, MEMORY)
    picture.quantize(32).save(path, optimize=True)


def _panel(
    canvas: ImageDraw.ImageDraw, corner: tuple[int, int], title: str, unit: str,
    values: Sequence[float], heights: Sequence[float], colour: tuple[int, int, int],
) -> None:  # fmt: skip
    """One plot, both axes from zero: what lies on a line through any two points grows evenly."""
    font = ImageFont.load_default(size=12)
    left, top = corner[0] + LEFT, corner[1] + TOP
    right, bottom = corner[0] + PANEL[0] - RIGHT, corner[1] + PANEL[1] - BOTTOM
    widest, highest = max(values), _round_up(max(heights))

    def place(value: float, height: float) -> tuple[float, float]:
        return left + (right - left) * value / widest, bottom - (bottom - top) * height / highest

    canvas.text((corner[0] + LEFT, corner[1] + 8), title, fill=INK, font=font)
    for share in (0.0, 0.5, 1.0):
        level = place(0, highest * share)[1]
        canvas.line([(left, level), (right, level)], fill=FAINT)
        label = f"{highest * share:g}"
        canvas.text((left - 6, level), label, fill=INK, font=font, anchor="rm")
    canvas.line([(left, top), (left, bottom), (right, bottom)], fill=INK)
    end = f"{values[-1]:g} {unit}"
    canvas.text((right, bottom + 6), end, fill=INK, font=font, anchor="ra")
    canvas.text((left, bottom + 6), "0", fill=INK, font=font, anchor="ma")
    points = [place(*point) for point in zip(values, heights, strict=True)]
    canvas.line(points, fill=colour, width=2)
    for x, y in points:
        canvas.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)


def _round_up(number: float) -> float:
    """The next number that a person would write at the top of an axis."""
    scale = 1.0
    while scale * 10 < number:
        scale *= 10
    while scale >= number:
        scale /= 10
    return next(scale * step for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if scale * step >= number)
