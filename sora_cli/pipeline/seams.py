"""How well a video's parts join, measured while its frames stream by.

Everything is in 8-bit steps of one channel, so "/255": a jump of 1 is one step in every pixel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

NEAR = 8  # changes from frame to frame that count as "near the seam"
LEAST_CHANGE = 1.0  # a still picture's own change counts as one step (issue: max(own, 1/255))


@dataclass(frozen=True, kw_only=True, slots=True)
class Seam:
    """One join.

    frame: the first frame after it, counted in the video; for a loop the video's length.
    kind: what meets there, "kept-made", "made-made", "made-kept", or "cut" where a new shot begins.
    jump: mean |difference| of the frames on both sides.
    own: mean change from frame to frame near the seam, on the side that was given; of two made
        parts, before it.
    colour: mean signed difference, (red, green, blue).
    """

    frame: int
    kind: str
    jump: float
    own: float
    colour: tuple[float, float, float]

    @property
    def ratio(self) -> float:
        """The jump over max(own, 1): 1 is a join that nobody sees."""
        return self.jump / max(self.own, LEAST_CHANGE)

    def say(self) -> str:
        """One line for a person."""
        if self.kind == "cut":
            return f"cut at frame {self.frame}"
        red, green, blue = self.colour
        where = f"seam at frame {self.frame} ({self.kind.replace('-', ' to ')})"
        jump = f"jump {self.ratio:.2f}x the clip's own change"
        return f"{where}: {jump}, colour shift {red:+.1f} {green:+.1f} {blue:+.1f} of 255"

    def to_json(self) -> dict[str, Any]:
        """As a recipe keeps it."""
        rounded = {"jump": round(self.jump, 3), "own": round(self.own, 3)}
        colour = [round(value, 3) for value in self.colour]
        return {**asdict(self), **rounded, "colour": colour, "ratio": round(self.ratio, 3)}


@dataclass(slots=True)
class _Open:
    """A seam that still waits for the changes after it."""

    frame: int
    kind: str
    jump: float
    colour: tuple[float, float, float]
    before: float | None
    after: list[float] = field(default_factory=list)


class Journal:
    """What a caller hands to `timeline.play` to learn how the joins came out.

    seams: the joins, in order, complete when the video is.
    drift: mean colour (red, green, blue) of the last `window` frames minus the first ones'; None
        for a video that is shorter than two windows.
    tail: the last frames made or kept, at the model's size and rate, for a later extend: uint8
        [T, h, w, 3], or None where the video ends in kept frames.
    """

    def __init__(self, window: int = 24) -> None:
        self.seams: list[Seam] = []
        self.tail: np.ndarray | None = None
        self._window, self._count = window, 0
        self._first: list[np.ndarray] = []
        self._last: deque[np.ndarray] = deque(maxlen=window)
        self._frame: np.ndarray | None = None
        self._opening: list[np.ndarray] = []
        self._changes: deque[float] = deque(maxlen=NEAR)
        self._open: list[_Open] = []

    @property
    def drift(self) -> tuple[float, float, float] | None:
        """How far the colours have moved from the video's beginning to its end."""
        if self._count < 2 * self._window:
            return None
        red, green, blue = np.mean(self._last, axis=0) - np.mean(self._first, axis=0)
        return float(red), float(green), float(blue)

    def watch(
        self, frames: Iterator[tuple[np.ndarray, str | None]], *, closing: str | None
    ) -> Iterator[np.ndarray]:
        """Passes frames on, each with the kind of the seam before it or None.

        closing: what meets where the last frame is followed by the first one again (a loop): one
            seam more, at the video's end. None: the video just ends.
        """
        for frame, kind in frames:
            self._see(frame, kind)
            yield frame
        if closing and self._count > 1:
            for number, frame in enumerate(list(self._opening)):
                self._see(frame, None if number else closing, again=True)
        for seam in list(self._open):
            self._close(seam)

    def _see(self, frame: np.ndarray, kind: str | None, *, again: bool = False) -> None:
        if self._frame is not None:
            difference = frame.astype(np.float32) - self._frame
            change = float(np.abs(difference).mean())
            for seam in list(self._open):
                if not kind:
                    seam.after.append(change)
                if len(seam.after) == NEAR or kind:
                    self._close(seam)
            if kind:
                red, green, blue = difference.mean(axis=(0, 1))
                colour = (float(red), float(green), float(blue))
                before = float(np.mean(self._changes)) if self._changes else None
                self._open.append(_Open(self._count, kind, change, colour, before))
                self._changes.clear()
            else:
                self._changes.append(change)
        self._frame = frame
        if again:
            return
        mean = frame.mean(axis=(0, 1), dtype=np.float64)
        if len(self._first) < self._window:
            self._first.append(mean)
        self._last.append(mean)
        if len(self._opening) <= NEAR:
            self._opening.append(frame)
        self._count += 1

    def _close(self, seam: _Open) -> None:
        self._open.remove(seam)
        after = float(np.mean(seam.after)) if seam.after else None
        sides = (after, seam.before) if seam.kind == "made-kept" else (seam.before, after)
        own = next((side for side in sides if side is not None), 0.0)
        self.seams.append(
            Seam(frame=seam.frame, kind=seam.kind, jump=seam.jump, own=own, colour=seam.colour)
        )
