"""A mark that people see: a few words in a corner of every frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# True of what a model made alone and of a real clip that it continued.
TEXT, SHORT = "made with AI", "AI"
SHARE = 0.045  # of the shorter side: the height of the letters
SMALLEST = 9  # pixels; below, letters are no letters any more
WIDEST = 0.6  # of the width; what is wider becomes SHORT


def burn(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same frames [t, H, W, 3] uint8 with the mark in the lower right corner.

    Its ground is opaque and its place even, so that marking twice is marking once and chroma at
    half the resolution does not run.
    """
    for chunk in chunks:
        height, width = chunk.shape[1:3]
        mark = draw(width, height)
        tall, wide = mark.shape[:2]
        right, low = _margin(width, wide), _margin(height, tall)
        marked = chunk.copy()
        marked[:, height - low - tall : height - low, width - right - wide : width - right] = mark
        yield marked


def _margin(side: int, taken: int) -> int:
    """Pixels between the mark and the edge; the mark begins at an even one."""
    margin = min(round(side * 0.02), side - taken)
    return margin + (side - taken - margin) % 2 if margin + taken < side else margin


@cache
def draw(width: int, height: int) -> np.ndarray:
    """The mark for frames of a size, uint8 [h, w, 3]; at most as large as they are."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    size = max(SMALLEST, round(min(width, height) * SHARE))
    font = ImageFont.load_default(size)
    text = TEXT if font.getlength(TEXT) + size <= WIDEST * width else SHORT
    left, top, right, bottom = font.getbbox(text)
    pad = max(2, size // 3)
    wide, tall = round(right - left) + 2 * pad, round(bottom - top) + 2 * pad
    wide, tall = min(wide + wide % 2, width), min(tall + tall % 2, height)
    mark = Image.new("RGB", (wide, tall), (0, 0, 0))
    ImageDraw.Draw(mark).text((pad - left, pad - top), text, (255, 255, 255), font)
    return np.asarray(mark)
