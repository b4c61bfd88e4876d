"""Clips at other frame rates, one chunk in memory at a time.

`nearest` (the default) shows the source frame that is on display at the middle of each new one: no
ghosts, and frames stay bit for bit. `blended` mixes the two source frames around that moment in
proportion: smoother when the rates are close, ghosts on fast motion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Literal

import numpy as np

from sora_cli.media.decode import chunk_frames
from sora_cli.media.timing import exact

Rate = float | Fraction
How = Literal["nearest", "blended"]


def count(num_frames: int, from_fps: Rate, to_fps: Rate) -> int:
    """How many frames `to_rate` gives for `num_frames`: the duration kept to half a frame."""
    assert num_frames >= 0
    if not num_frames:
        return 0
    ratio = exact(to_fps) / exact(from_fps)
    return max(1, math.ceil(num_frames * ratio - Fraction(1, 2)))


def source_index(index: int, from_fps: Rate, to_fps: Rate) -> int:
    """The source frame on display at the middle of frame `index` of the new rate."""
    return math.floor((index + Fraction(1, 2)) * exact(from_fps) / exact(to_fps))


def to_rate(
    chunks: Iterable[np.ndarray], from_fps: Rate, to_fps: Rate, how: How = "nearest"
) -> Iterator[np.ndarray]:
    """Chunks uint8 [t, H, W, 3] at one rate as chunks at another; the same ones when they agree.

    Gives exactly `count(n, from_fps, to_fps)` frames for n.
    """
    if exact(from_fps) == exact(to_fps):
        yield from chunks
        return
    made = _nearest if how == "nearest" else _blended
    yield from _gathered(made(_single(chunks), exact(from_fps), exact(to_fps)))


def _single(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for chunk in chunks:
        yield from chunk


def _gathered(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    waiting: list[np.ndarray] = []
    for frame in frames:
        waiting.append(frame)
        if len(waiting) >= chunk_frames(frame.shape[1], frame.shape[0]):
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)


def _nearest(
    frames: Iterator[np.ndarray], from_fps: Fraction, to_fps: Fraction
) -> Iterator[np.ndarray]:
    made = 0
    frame = None
    for number, frame in enumerate(frames):
        while source_index(made, from_fps, to_fps) == number:
            yield frame
            made += 1
    if frame is not None and made == 0:
        yield frame


def _blended(
    frames: Iterator[np.ndarray], from_fps: Fraction, to_fps: Fraction
) -> Iterator[np.ndarray]:
    """Frame k lies at source position (k + ½) · from / to − ½; before 0 and after the end, held."""
    made, number = 0, 0
    before = after = None
    for number, after in enumerate(frames):
        while (position := _position(made, from_fps, to_fps)) <= number:
            share = max(Fraction(0), position - (number - 1)) if before is not None else Fraction(1)
            yield after if before is None else _mixed(before, after, float(share))
            made += 1
        before = after
    if before is None:
        return
    for _ in range(made, count(number + 1, from_fps, to_fps)):
        yield before


def _position(index: int, from_fps: Fraction, to_fps: Fraction) -> Fraction:
    return (index + Fraction(1, 2)) * from_fps / to_fps - Fraction(1, 2)


def _mixed(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    mixed = before.astype(np.float32) * (1 - share) + after.astype(np.float32) * share
    return np.rint(mixed).astype(np.uint8)
