"""Every join: how made frames meet what stands before and after them.

The frames of a canvas come with those that were given on it, decoded. Against the given frames
themselves that shows what the autoencoder did: the boundary residual, original minus
decode(encode(original)). It is added to the made frames and fades out, and what stood still before
the boundary goes on standing still behind it, so that a join shows no step in sharpness or colour.
Frames are uint8 [H, W, 3], one by one, so a video's length costs no memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from sora_cli.pipeline.pieces import Piece

Resize = Callable[[np.ndarray], np.ndarray]  # uint8 [t, h, w, 3] → uint8 [t, H, W, 3]

FADE = 16  # frames over which a boundary's correction fades out
EDGE = 4  # pixels over which the edge of a mask is softened

# Of a boundary, in pixels and 8-bit steps. Set on the embedded model over 16 development scenes,
# between values that were tried, by three things that pull apart: the jump at the seam, likeness of
# the next 8 frames to the truth, and ghosts on contact sheets, of which large motion leaves some.
_COARSE, _NEAR = 4, 3  # reach of the blurs: of the residual, and of "how much changes here"
_MOTION = 50.0  # a step this large is motion, and left alone
_MOVED = 25.0  # where a made frame has moved on by this much the correction ends
_TINT, _TINT_FRAMES = 8, 5  # reach of the blur, and frames, that colours are compared on
_MOST_GAIN, _MOST_SHIFT = 0.05, 8.0  # of colour and contrast
KNOWN = 9  # known frames that say how much changes from frame to frame


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """The frames that a video is made of, where they are not the model's own.

    resize: model frames to this size.
    """

    width: int
    height: int
    fps: float
    resize: Resize


def fade(step: int, length: int = FADE) -> float:
    """Weight of a correction `step` frames from its boundary: 1 at 0, 0 from `length` + 1 on."""
    if step > length:
        return 0.0
    return 0.5 + 0.5 * math.cos(math.pi * step / (length + 1))


class Boundary:
    """What is added to made frames beside a known one, frame after frame away from it.

    Two parts. The coarse boundary residual, which is the autoencoder's doing. And of the step that
    is left from the known frame to the first made one, as much as goes beyond the change that the
    known frames show there themselves: where nothing moved, nothing jumps. A large step is motion
    and stays; and where the made frames move on, the correction ends, for it would be a ghost.
    """

    def __init__(self, known: np.ndarray, decoded: np.ndarray, first: np.ndarray) -> None:
        """known: true frames [T, H, W, 3], the nearest to the boundary first. decoded: what the
        canvas shows for that one. first: the made frame next to it."""
        nearest = known[0].astype(np.float32)
        self._first = first.astype(np.float32)
        self._coarse = blurred(nearest - decoded, _COARSE)
        step = nearest - self._first - self._coarse
        size = blurred(np.abs(step).mean(-1), _NEAR)  # [H, W]
        excess = np.clip(1 - _own_change(known) / np.maximum(size, 1e-3), 0, 1)
        self._step = (excess * np.exp(-((size / _MOTION) ** 2)))[..., None] * step
        self._still = np.ones_like(size)
        self._distance = 0

    def correct(self, frame: np.ndarray) -> np.ndarray:
        """The next frame away from the boundary, float32."""
        self._distance += 1
        weight = fade(self._distance)
        if weight == 0:
            return frame.astype(np.float32)
        moved = blurred(np.abs(frame - self._first).mean(-1), _NEAR)
        self._still = np.minimum(self._still, np.exp(-((moved / _MOVED) ** 2)))
        return frame + weight * (self._coarse + self._still[..., None] * self._step)


@dataclass(frozen=True, slots=True)
class Tint:
    """What a canvas does to colour and contrast, undone: gain and offset of each channel [3].

    Measured on the frames that were given, known against decoded, so that no true change of the
    picture counts. Every canvas is brought to the one before it, and so to the first: what the
    autoencoder adds each time does not add up. Bounded, and measured on coarse pictures, where a
    softer picture is not one of less contrast.
    """

    gain: np.ndarray
    offset: np.ndarray

    @classmethod
    def between(cls, known: np.ndarray, decoded: Sequence[np.ndarray]) -> Tint:
        """known: true frames [T, H, W, 3]. decoded: as many, as the canvas shows them."""
        true, seen = (
            np.concatenate([blurred(frame, _TINT).reshape(-1, 3) for frame in frames])
            for frames in (known, decoded)
        )
        gain = np.clip((true.std(0) + 1) / (seen.std(0) + 1), 1 - _MOST_GAIN, 1 + _MOST_GAIN)
        middle = seen.mean(0)
        shift = np.clip(true.mean(0) - middle, -_MOST_SHIFT, _MOST_SHIFT)
        return cls(gain, shift + middle * (1 - gain))

    def undo(self, frame: np.ndarray) -> np.ndarray:
        """The frame in the colours of the given ones, float32."""
        return frame * self.gain + self.offset


def _own_change(known: np.ndarray) -> np.ndarray:
    """Mean change from frame to frame about each pixel, [H, W]; infinite where nobody knows it."""
    frames = [frame.astype(np.float32) for frame in known[:KNOWN]]
    if len(frames) < 2:
        return np.full(frames[0].shape[:2], np.inf, np.float32)
    changes = [np.abs(one - two).mean(-1) for one, two in pairwise(frames)]
    return blurred(np.mean(changes, axis=0), _NEAR)


def mend(
    frames: Iterator[np.ndarray],
    piece: Piece,
    *,
    before: np.ndarray | None = None,
    after: np.ndarray | None = None,
    shown: int = 0,
    held: int = 0,
) -> Iterator[np.ndarray]:
    """The `new` frames of a decoded canvas, fitted to the frames on both sides.

    Args:
        frames: every frame of the canvas, uint8 [H, W, 3]; read to the end.
        before: true frames [T, H, W, 3]; the last one stands under the last of the head.
        after: true frames; the first one stands under the first that follows the new frames.
        shown, held: how many of the head's last and of the tail's first frames go into the video
            too, as decoded.

    Yields:
        shown + piece.new + held frames, uint8 [H, W, 3].
    """
    first = piece.lead + piece.head
    last = first + piece.new
    decoded: deque[np.ndarray] = deque(maxlen=_TINT_FRAMES)
    start: Boundary | None = None
    tint: Tint | None = None
    waiting: deque[np.ndarray] = deque()
    for index, frame in enumerate(frames):
        if piece.lead <= index < first:
            decoded.append(frame)
        if index == first and before is not None and decoded:
            tint = Tint.between(before[-len(decoded) :], decoded)
            start = Boundary(before[::-1], tint.undo(decoded[-1]), tint.undo(frame))
        if first - shown <= index < last + held:
            if tint and start and first <= index < last:
                frame = as_frame(start.correct(tint.undo(frame)))
            waiting.append(frame)
            if after is None or len(waiting) > FADE:
                yield waiting.popleft()
        elif index == last and after is not None:
            _correct_back(waiting, Boundary(after, frame, waiting[-1]))
            yield from waiting
            waiting.clear()
    assert not waiting, "a canvas with something after it decodes at least one frame of that"


def dissolved(ending: Sequence[np.ndarray], frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """`frames` whose first ones grow out of `ending`, frame by frame: a cross-fade of made frames,
    slow at both ends, so that neither shows a step."""
    for number, last in enumerate(ending, start=1):
        share = np.float32(1 - fade(number, len(ending)))
        yield as_frame((1 - share) * last + share * next(frames))
    yield from frames


def composited(
    frames: Iterator[np.ndarray], originals: Iterator[np.ndarray], masks: Iterator[np.ndarray]
) -> Iterator[np.ndarray]:
    """Made frames inside the mask, the originals [H, W, 3] untouched outside it.

    masks: [H, W], not 0 where a pixel is made anew; its edge is softened inward.
    """
    for frame, original, mask in zip(frames, originals, masks, strict=True):
        inside = np.minimum(2 * blurred(mask != 0, EDGE) - 1, mask != 0).clip(0)[..., None]
        yield as_frame(original + inside * (frame.astype(np.float32) - original))


def blurred(image: np.ndarray, reach: int) -> np.ndarray:
    """Each pixel of [H, W] the mean of those up to `reach` away, edges repeated; float32."""
    for axis in (0, 1):
        padding = [(0, 0)] * image.ndim
        padding[axis] = (reach + 1, reach)
        sums = np.cumsum(np.pad(image.astype(np.float32), padding, mode="edge"), axis=axis)
        size = image.shape[axis]
        high = np.take(sums, np.arange(2 * reach + 1, 2 * reach + 1 + size), axis=axis)
        image = (high - np.take(sums, np.arange(size), axis=axis)) / (2 * reach + 1)
    return image


def as_frame(frame: np.ndarray) -> np.ndarray:
    """float [H, W, 3] → uint8, rounded and clipped."""
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """Kept frames beside a span at the output's size and, as the model has seen it, the nearest.

    known: [T, H, W, 3], the nearest first, as far apart in time as the model's frames are.
    seen: [h, w, 3].
    """

    known: np.ndarray
    seen: np.ndarray


def resized(
    frames: Iterator[np.ndarray],
    output: Output,
    before: Neighbour | None,
    after: Neighbour | None,
) -> Iterator[np.ndarray]:
    """Frames at the output's size, fitted to what is kept beside them: the detail that was lost
    when the kept frames were brought to the model's size and back does not end at the seam."""
    start: Boundary | None = None
    waiting: deque[np.ndarray] = deque()
    for frame in frames:
        large = output.resize(frame[None])[0]
        if before is not None:
            start = start or Boundary(before.known, output.resize(before.seen[None])[0], large)
            large = as_frame(start.correct(large))
        waiting.append(large)
        if after is None or len(waiting) > FADE:
            yield waiting.popleft()
    if after is not None:
        _correct_back(
            waiting, Boundary(after.known, output.resize(after.seen[None])[0], waiting[-1])
        )
    yield from waiting


def _correct_back(waiting: deque[np.ndarray], end: Boundary) -> None:
    """Corrects the frames before a boundary, the nearest first."""
    for near in range(len(waiting) - 1, -1, -1):
        waiting[near] = as_frame(end.correct(waiting[near]))


def retimed(
    frames: Iterator[np.ndarray],
    times: Sequence[float],
    count: int,
    before: np.ndarray | None,
    after: np.ndarray | None,
) -> Iterator[np.ndarray]:
    """`count` frames at the model's rate → those at `times` (`frame_times`), in-between ones
    blended. `before` stands just before the first, `after` just after the last."""
    known: deque[tuple[int, np.ndarray]] = deque(maxlen=2)
    if before is not None:
        known.append((-1, before))
    source = chain(enumerate(frames), [] if after is None else [(count, after)])
    for time in times:
        while not known or known[-1][0] < time - 1e-6:
            following = next(source, None)
            if following is None:
                break
            known.append(following)
        (early, first), (late, second) = known[0], known[-1]
        share = np.float32(1 if late == early else min(1, (time - early) / (late - early)))
        yield second if share > 1 - 1e-6 else as_frame((1 - share) * first + share * second)
    for _ in source:  # whatever decodes frames must come to its end
        pass


def frame_times(count: int, rate: float, *, head: bool, tail: bool) -> list[float]:
    """Where the output's frames of a span lie, counted in frames of the model (0 = its first).

    head, tail: whether a frame stands just before (at -1) and just after (at `count`).
    """
    if head and tail:
        gaps = max(2, round((count + 1) * rate))
        return [-1 + step * (count + 1) / gaps for step in range(1, gaps)]
    made = max(1, round(count * rate))
    if head:
        return [-1 + step * count / made for step in range(1, made + 1)]
    if tail:
        return [count - step * count / made for step in range(made, 0, -1)]
    return [min(step / rate, count - 1) for step in range(made)]
