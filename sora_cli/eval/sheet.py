"""Contact sheets: clips as rows of frames with their words below, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, LINE = 6, 14  # pixels
PAPER, INK = (250, 250, 248), (30, 30, 30)


def _wrapped(
    text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int
) -> list[str]:
    """`text` in lines of at most `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def contact_sheet(
    videos: Sequence[np.ndarray], labels: Sequence[str], path: Path, columns: int = 6
) -> None:
    """Write a PNG: one row for each clip, `columns` frames from first to last, its label below.

    Args:
        videos: uint8 [T, H, W, 3], of any sizes and lengths.
        labels: one text for each.
        path: the PNG to write; its folder must exist.
    """
    assert len(videos) == len(labels) and videos, "one label for each of at least one clip"
    font = ImageFont.load_default(size=12)
    width = MARGIN + max(columns * (v.shape[2] + MARGIN) for v in videos)
    texts = [_wrapped(label, font, width - 2 * MARGIN) for label in labels]
    heights = [v.shape[1] + LINE * len(t) + 2 * MARGIN for v, t in zip(videos, texts, strict=True)]
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for video, lines, height in zip(videos, texts, heights, strict=True):
        shown = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
        for column, frame in enumerate(shown):
            left = MARGIN + column * (video.shape[2] + MARGIN)
            sheet.paste(Image.fromarray(video[frame]), (left, top))
        for number, line in enumerate(lines):
            spot = (MARGIN, top + video.shape[1] + 1 + number * LINE)
            draw.text(spot, line, fill=INK, font=font)
        top += height
    sheet.save(path, format="PNG", optimize=True)
