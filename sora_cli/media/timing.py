"""When each frame is shown: timestamps to one constant rate.

A file stores frames with timestamps; everything after reading counts frames at a constant rate.
Where the timestamps lie on a constant grid, within half a period, a stored frame is a frame. Where
they do not (variable frame rate), frame k is the stored one that a player shows at its middle,
(k + ½) / fps: some are repeated, some left out, and motion keeps its speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

SINGLE = Fraction(25)  # of a picture, or one frame without a rate
FASTEST, SLOWEST = Fraction(120), Fraction(1, 1000)  # of a clip with a variable rate
_THOUSANDTHS = (24, 30, 48, 60, 120)
STANDARD = tuple(
    sorted([Fraction(n) for n in range(1, 121)] + [Fraction(n * 1000, 1001) for n in _THOUSANDTHS])
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """A clip's constant rate and what it shows.

    `shown[k]` is the stored frame of frame k; None when that is k.
    """

    fps: Fraction
    average_fps: Fraction  # stored frames / duration
    num_frames: int
    shown: np.ndarray | None  # int64 [num_frames], not decreasing

    def stored(self, index: int) -> int:
        """The stored frame that frame `index` shows."""
        return index if self.shown is None else int(self.shown[index])


def constant(count: int, fps: Fraction) -> Timing:
    """The timing of frames that come one after the other, as in a folder."""
    return Timing(fps=fps, average_fps=fps, num_frames=count, shown=None)


def timing(
    ticks: np.ndarray, tick: Fraction, last_ticks: int, told: Fraction | None, max_frames: int
) -> Timing | None:
    """The constant rate for timestamps (int64, increasing, in units of `tick` seconds).

    Args:
        last_ticks: how long the last frame is shown; 0 when unknown.
        told: the rate that the file says it has.
        max_frames: more frames than this is no clip: None is returned.
    """
    count = len(ticks)
    told = told if told and _sane(told) else None
    if count == 1:
        return constant(1, told or SINGLE)
    times = (ticks - ticks[0]).astype(np.float64) * float(tick)  # s
    steps = np.diff(times)
    mean = (count - 1) / float(times[-1])
    guesses = (snapped(mean), snapped(1 / float(np.median(steps))), Fraction(mean))
    for fps in filter(_sane, (told, *guesses) if told else guesses):
        if np.abs(times * float(fps) - np.arange(count)).max() < 0.5:
            return constant(count, fps if fps in STANDARD else fps.limit_denominator(1001))
    return _variable(times, steps, last_ticks * float(tick), max_frames)


def _sane(fps: Fraction) -> bool:
    return SLOWEST <= fps <= 1000


def _variable(times: np.ndarray, steps: np.ndarray, last: float, max_frames: int) -> Timing | None:
    # the rate of the fast parts, so that no motion is lost where frames come quickly
    fast = 1 / float(np.percentile(steps, 10, method="lower"))
    fps = max(SLOWEST, min(FASTEST, snapped(fast)))
    duration = float(times[-1]) + (last or float(np.median(steps)))
    num_frames = max(1, round(duration * float(fps)))
    if num_frames > max_frames:
        return None
    middles = (np.arange(num_frames) + 0.5) / float(fps)
    shown = np.searchsorted(times, middles, side="right") - 1
    average = Fraction(len(times) / duration).limit_denominator(1001)
    return Timing(fps=fps, average_fps=average, num_frames=num_frames, shown=shown)


def exact(fps: float | Fraction) -> Fraction:
    """A rate as the fraction that it means: 23.976 and 24000/1001 are the same one."""
    nearest = min(STANDARD, key=lambda known: abs(float(known) - float(fps)))
    if isinstance(fps, Fraction) or abs(float(nearest) - fps) > 0.0005:
        return Fraction(fps).limit_denominator(1001)
    return nearest


def snapped(fps: float) -> Fraction:
    """The usual rate within half a percent, else a fraction with a small denominator."""
    nearest = min(STANDARD, key=lambda known: abs(float(known) - fps))
    if abs(float(nearest) - fps) <= 0.005 * fps:
        return nearest
    return Fraction(fps).limit_denominator(1001)
