"""A span of frames made canvas by canvas, at the model's own size and rate.

Each next canvas is given the last frames of what was made, as `Conditioning` rows; a span before
known frames closes onto them; a span that only has an end is made from there backward. A span with
a source is re-made from it at part of the noise (SDEdit, arXiv 2108.01073).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sora_cli.pipeline.canvas import Canvas, Conditioning, noise
from sora_cli.pipeline.generate import (
    Keeper,
    Texts,
    decode_frames,
    encode_frames,
    lay_canvas,
    make_video_latents,
    schedule_of,
)
from sora_cli.pipeline.networks import Networks
from sora_cli.pipeline.pieces import Piece, Reach, plan
from sora_cli.pipeline.request import MAX_SEED, Settings
from sora_cli.pipeline.sampler import SamplerState
from sora_cli.pipeline.stitch import composited, dissolved, mend

# A step into the tail of more than this many times the steps on the way there is a cut. Of 24 loops
# of the embedded model 16 stay below 5; ways between scenes are above 11 (docs/log.md).
UNREACHED = 5.0

# (start, stop) → the frames [start, stop), uint8 [t, H, W, 3], in pieces of any length.
Frames = Callable[[int, int], Iterator[np.ndarray]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Frames to be made, counted at the model's rate.

    prompt: what is to be seen, as the text encoder gets it.
    head: frames known before the span, oldest first, uint8 [T, h, w, 3] at the model's size and
        rate; the last ones are used, `Reach.head_frames` of them at most. "before": what the span
        before this one made. None: nothing is known.
    tail: frames known after it, the first ones used, `Reach.tail_frames` at most. A single picture
        is one frame.
    shows_head, shows_tail: that end is part of the video and of num_frames, decoded (animate, a
        storyboard's pictures); else the video goes on from there. A tail that is shown is held for
        up to a latent's length, so that the canvas comes out even.
    blend: frames over which the span before dissolves into this one; both lose as many.
    source: frames of the span, at the model's size and rate, that are to change in part. strength:
        how much may change, 0 to 1; 1 without a source.
    end_prompt: what is to be seen near the tail, where that is another scene; None: the prompt.
    mask: of the source, uint8 [t, h, w], not 0 where it is to be made anew; None: everywhere.
    references: pictures [h, w, 3] that say how things look, for families that take them.
    head_latents: the head as `encode_given` made it once, [C, k, h', w'] (`sidecar`), where the
        family takes latents; else, and without a head, not looked at.
    """

    num_frames: int
    prompt: str
    head: np.ndarray | Literal["before"] | None = None
    tail: np.ndarray | None = None
    shows_head: bool = False
    shows_tail: bool = False
    blend: int = 0
    source: Frames | None = None
    strength: float = 1.0
    end_prompt: str | None = None
    mask: Frames | None = None
    head_latents: Tensor | None = None
    references: tuple[np.ndarray, ...] = ()


def canvas_seed(seed: int, number: int) -> int:
    """The seed of canvas `number` of a video: the first has the video's own."""
    if number == 0:
        return seed
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % (MAX_SEED + 1)


def as_row(frames: np.ndarray, index: int, mask: np.ndarray | None = None) -> Conditioning:
    """uint8 [T, h, w, 3] as given frames from pixel frame `index` of a canvas on.

    mask: [T, h, w], 1 where a pixel is given.
    """
    given = None if mask is None else torch.from_numpy(mask.astype(np.float32))[None, None]
    return Conditioning(frames=as_video(frames), index=index, mask=given)


def as_video(frames: np.ndarray) -> Tensor:
    """uint8 [T, h, w, 3] → [1, 3, T, h, w] in ±1."""
    video = torch.tensor(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None]
    return video.float() / 127.5 - 1


def held_frames(span: Span, pieces: list[Piece]) -> int:
    """Frames of the tail that a span shows."""
    if not span.shows_tail:
        return 0
    shown = pieces[0].head if span.shows_head else 0
    return span.num_frames - shown - sum(piece.new for piece in pieces)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sides:
    """What stands at both ends of a span, and whether its frames are to meet it exactly.

    head, tail: known frames at the model's size, or None. meets_head, meets_tail: the frames next
    to the span go into the video as they are, so the span's are fitted to them.
    """

    head: np.ndarray | None
    tail: np.ndarray | None
    meets_head: bool
    meets_tail: bool


@dataclass(kw_only=True)
class SpanMaker:
    """Makes the spans of one video, one after the other.

    texts: contexts by prompt. number: of the next canvas. made: the last frames made.
    """

    networks: Networks
    settings: Settings
    reach: Reach
    texts: dict[str, Texts]
    seed: int
    keeper: Keeper | None = None
    number: int = 0
    made: np.ndarray | None = None  # uint8 [T, h, w, 3]

    @property
    def _takes_single_frames(self) -> bool:
        """Whether the family is told of each frame that it is given, not of each latent."""
        return self.networks.model.spec.conditioning in ("channels", "vace")

    def pieces(self, span: Span, sides: Sides) -> list[Piece]:
        """The span's canvases, in the order of the video."""
        head, tail, reach = sides.head, sides.tail, self.reach
        if span.tail is not None and len(span.tail) == 1 and self._takes_single_frames:
            reach = replace(reach, tail=1, still=True)
        if span.source is not None:  # guided in every canvas, which are as long as they are
            reach = replace(reach, onward=0)
        known = 0 if head is None else len(head)
        new = span.num_frames - (reach.fitting_head(known) if span.shows_head else 0)
        assert new > 0, "a span has frames besides the head it shows"
        ends = 0 if tail is None else len(tail)
        if tail is None or not span.shows_tail:
            return plan(new, known, ends, reach)
        # Up to a latent of it is shown, whatever makes the fewest canvases with nothing dropped.
        ways = [
            plan(max(1, new - held), known, ends, reach) for held in range(1, reach.scale_t + 1)
        ]
        return min(ways, key=lambda pieces: (len(pieces), pieces[-1].surplus))

    def frames(self, span: Span, sides: Sides, pieces: list[Piece]) -> Iterator[np.ndarray]:
        """The span's frames, uint8 [h, w, 3], fitted to what stands on both sides."""
        frames = self._frames(span, sides, pieces)
        if span.source is None or span.mask is None:
            return frames
        originals, masks = span.source(0, span.num_frames), span.mask(0, span.num_frames)
        return composited(frames, single(originals), single(masks))

    def _frames(self, span: Span, sides: Sides, pieces: list[Piece]) -> Iterator[np.ndarray]:
        if sides.head is None and sides.tail is not None:
            yield from self._backward(span, sides, sides.tail, pieces)
            return
        head, start = sides.head, 0
        total = held_frames(span, pieces)
        for number, piece in enumerate(pieces):
            shown = piece.head if span.shows_head and number == 0 else 0
            held = total if number == len(pieces) - 1 else 0
            ending = sides.tail if piece.tail else None
            onward = number > 0 and ending is None and span.source is None
            latents = self.latents(span, piece, start, head, ending, onward=onward)
            meets_head = not shown and (sides.meets_head or number > 0) and head is not None
            fitted = mend(
                single(decode_frames(self.networks, latents)), piece, shown=shown, held=held,
                before=head if meets_head else None,
                after=ending if sides.meets_tail else None,
            )  # fmt: skip
            if (
                ending is not None
                and sides.meets_tail
                and not self._reaches(latents, piece, ending)
            ):
                fitted = self._dissolved(span, piece, latents, head, ending)
            made = []
            for frame in fitted:
                made.append(frame)
                yield frame
            joined = made if head is None or shown else [*head, *made]
            head = np.stack(joined[-self.reach.head_frames :])
            start += piece.new
        self.made = head

    def _reaches(self, latents: Tensor, piece: Piece, tail: np.ndarray) -> bool:
        """Whether a canvas has found its way to the tail, or only shows it all at once."""
        first, last = piece.head, piece.head + piece.new
        steps, previous = [], None
        for index, frame in enumerate(single(decode_frames(self.networks, latents))):
            if first < index < last and previous is not None:
                steps.append(_change(previous, frame))
            if index < last:
                previous = frame
        assert previous is not None
        own = max(float(np.median(steps)) if steps else 0.0, _change(tail[0], tail[1]), 1.0)
        return _change(previous, tail[0]) <= UNREACHED * own

    def _dissolved(
        self, span: Span, piece: Piece, latents: Tensor, head: np.ndarray | None, tail: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Between two scenes that the model does not lead from one into the other: frames made on
        from the head, which dissolve into frames made backward from the tail."""
        toward = replace(span, prompt=span.end_prompt or span.prompt, source=None, mask=None)
        sides = Sides(head=None, tail=tail, meets_head=False, meets_tail=True)
        pieces = plan(piece.new, 0, len(tail), self.reach)
        ending = list(self._backward(toward, sides, tail, pieces))
        onward = list(mend(single(decode_frames(self.networks, latents)), piece, before=head))
        yield from dissolved(onward, iter(ending))

    def _backward(
        self, span: Span, sides: Sides, tail: np.ndarray, pieces: list[Piece]
    ) -> Iterator[np.ndarray]:
        """Pieces made from the last to the first; their latents wait to be decoded in order."""
        waiting: list[tuple[Piece, Tensor, np.ndarray | None]] = []
        start, meets = sum(piece.new for piece in pieces), sides.meets_tail
        for piece in reversed(pieces):
            start -= piece.new
            onward = bool(waiting) and span.source is None
            latents = self.latents(span, piece, start, None, tail, onward=onward).cpu()
            after = tail if meets else None
            waiting.append((piece, latents, after))
            if start:
                frames = mend(single(decode_frames(self.networks, latents)), piece, after=after)
                tail = np.concatenate([np.stack(list(frames)), tail])[: self.reach.tail_frames]
            meets = True
        while waiting:
            piece, latents, after = waiting.pop()
            made = []
            device = self.networks.model.device
            decoded = single(decode_frames(self.networks, latents.to(device)))
            for frame in mend(decoded, piece, after=after):
                made.append(frame)
                yield frame
            earlier = [] if self.made is None else list(self.made)
            self.made = np.stack([*earlier, *made][-self.reach.head_frames :])

    def latents(
        self,
        span: Span,
        piece: Piece,
        start: int,
        head: np.ndarray | None,
        tail: np.ndarray | None,
        *,
        onward: bool = False,
    ) -> Tensor:
        """One canvas made: [1, C, T, H', W'].

        start: the span's frame that `new` begins with. onward: it goes on from the span's own.
        """
        settings = replace(
            self.settings, num_frames=piece.num_frames, chunk_frames=piece.num_frames
        )
        if onward and settings.guidance_scale_onward is not None:
            settings = replace(settings, guidance_scale=settings.guidance_scale_onward)
        number, self.number = self.number, self.number + 1
        seed, keeper = canvas_seed(self.seed, number), self.keeper
        given = _Given(
            head=head[-piece.head :] if head is not None and piece.head else None,
            tail=tail[piece.surplus :][: piece.tail] if tail is not None and piece.tail else None,
        )
        whole = given.around(span.source, span.num_frames, piece, start) if span.source else None
        looks = [as_video(picture[None]) for picture in span.references]
        if span.mask is not None and whole is not None:
            known = 1 - given.around(span.mask, span.num_frames, piece, start, known=0).clip(0, 1)
            canvas = lay_canvas(self.networks, settings, [as_row(whole, 0, known)], looks)
        else:
            canvas = self._lay(span, settings, given, start)
        if onward:
            canvas = replace(canvas, given_sigma=settings.given_sigma_onward)
        if whole is not None and span.strength < 1:
            settings = replace(settings, begin_at=span.strength)
            keeper = self._begun(whole, canvas, settings, seed)
        return make_video_latents(
            self.networks, self.texts[span.prompt], canvas, settings, seed, keeper,
            name=f"{self.seed}-{number}",
        )  # fmt: skip

    def _lay(self, span: Span, settings: Settings, given: _Given, start: int) -> Canvas:
        """The canvas with the head and the tail on it; the span's own latents of its head."""
        rows, latents = [], span.head_latents
        if given.tail is not None:
            rows.append(as_row(given.tail, -len(given.tail)))
        ready = (
            start == 0
            and latents is not None
            and given.head is not None
            and len(given.head) == self.reach.scale_t * (latents.shape[1] - 1) + 1
            and self.networks.model.spec.conditioning in ("tokens", "replace")
        )
        if given.head is not None and not ready:
            rows.append(as_row(given.head, 0))
        looks = [as_video(picture[None]) for picture in span.references]
        canvas = lay_canvas(self.networks, settings, rows, looks)
        return canvas.give(latents, 0) if ready and latents is not None else canvas

    def _begun(self, whole: np.ndarray, canvas: Canvas, settings: Settings, seed: int) -> Keeper:
        """A canvas on which the source stands already, under noise of the level it begins at."""
        video = as_video(whole).to(self.networks.model.device)
        latents = encode_frames(self.networks, video).cpu()
        latents = F.pad(latents, (0, 0, 0, 0, canvas.lead, 0))  # references stand before the clip
        sigma = schedule_of(settings).sigmas[0]
        fresh = noise(canvas.latents_shape, seed)
        latents = canvas.hold((1 - sigma) * latents + sigma * fresh, sigma, fresh)
        return _Begun(SamplerState(latents=latents, seed=seed), self.keeper)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Given:
    """What one canvas is given: frames [T, h, w, 3] at both ends."""

    head: np.ndarray | None
    tail: np.ndarray | None

    def around(
        self, source: Frames, length: int, piece: Piece, start: int, known: int | None = None
    ) -> np.ndarray:
        """All of the canvas's frames: `source`'s (of `length` frames) between the given ones.

        Where the canvas reaches beyond the source its first or last frame stands still. known: a
        number to stand for the given frames, for masks.
        """
        first, stop = start - piece.lead, start + piece.new + piece.surplus
        low, high = max(first, 0), min(stop, length)
        middle = np.concatenate(list(source(low, high)))
        inside = np.clip(np.arange(first, stop) - low, 0, high - low - 1)
        parts = [self.head, middle[inside], self.tail]
        if known is not None:
            shape = middle.shape[1:]
            sizes = (piece.head, 0, piece.tail)
            parts = [
                part if size == 0 else np.full((size, *shape), known, middle.dtype)
                for part, size in zip(parts, sizes, strict=True)
            ]
        return np.concatenate([part for part in parts if part is not None])


@dataclass(frozen=True, slots=True)
class _Begun:
    """A keeper whose canvas is never blank: work on it begins from `state` at the earliest."""

    state: SamplerState
    inner: Keeper | None

    def recall(self, name: str) -> SamplerState | None:
        kept = self.inner.recall(name) if self.inner else None
        return self.state if kept is None else kept

    def keep(self, name: str, state: SamplerState, total: int) -> None:
        if self.inner:
            self.inner.keep(name, state, total)


def _change(one: np.ndarray, two: np.ndarray) -> float:
    """Mean |difference| of two frames, in 8-bit steps."""
    return float(np.abs(one.astype(np.float32) - two).mean())


def single(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Chunks of frames, frame by frame."""
    for chunk in chunks:
        yield from chunk
