"""A video as segments: frames that are kept, and spans to be made between them.

extend, loop, connect, re-cut, edit, storyboards and videos longer than a canvas are all timelines:

    extend             [Kept(clip), Span(head=the clip's tail)]
    extend backward    [Span(tail=the clip's head), Kept(clip)]
    connect            [Kept(a), Span(head=a's tail, tail=b's head), Kept(b)]
    loop               [Kept(clip), Span(head=its tail, tail=its head)], closed
    re-cut             [Kept(start), Span(head, tail), Kept(end)]
    edit               [Span(source=the clip, strength=0.6)]
    60 s from nothing  [Span(num_frames=481)]
    storyboard         [Span(prompt), Span(prompt, head="before"), ...]

`play` makes the video in order, a frame at a time; memory does not grow with its length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from sora_cli.pipeline.generate import Keeper, read_texts
from sora_cli.pipeline.networks import Networks
from sora_cli.pipeline.pieces import least_tail, reach_of
from sora_cli.pipeline.request import Settings
from sora_cli.pipeline.ring import decode_ring, make_ring, ring_frames
from sora_cli.pipeline.seams import Journal
from sora_cli.pipeline.spans import Frames, Sides, Span, SpanMaker, single
from sora_cli.pipeline.stitch import (
    KNOWN,
    Neighbour,
    Output,
    dissolved,
    frame_times,
    resized,
    retimed,
)

__all__ = ["Frames", "Kept", "Output", "Ring", "Segment", "Span", "play", "video_frames"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """Frames that go into the video untouched, at its own size and rate.

    frames: reads them; some at its beginning and end are also asked for on their own.
    """

    num_frames: int
    frames: Frames

    def some(self, places: Sequence[int]) -> np.ndarray:
        """Frames at these places, [T, H, W, 3], read in one go."""
        first, found = min(places), {}
        for number, frame in enumerate(single(self.frames(first, max(places) + 1)), start=first):
            if number in places:
                found[number] = frame
        return np.stack([found[place] for place in places])


@dataclass(frozen=True, kw_only=True, slots=True)
class Ring:
    """A loop from nothing (`ring`): alone in its timeline, which is closed.

    num_frames: about how many, at the model's rate; a ring has whole latents.
    """

    num_frames: int
    prompt: str


Segment = Kept | Span | Ring
Marked = tuple[np.ndarray, str | None]  # a frame, and the kind of the seam before it


def play(
    networks: Networks,
    settings: Settings,
    segments: Sequence[Segment],
    *,
    seed: int | None = None,
    output: Output | None = None,
    closed: bool = False,
    journal: Journal | None = None,
    keeper: Keeper | None = None,
) -> Iterator[np.ndarray]:
    """Make the video and yield it in order, uint8 [t, H, W, 3]. Read it to the end.

    Args:
        settings: size, rate and sampling of the model's canvases. `num_frames` is not looked at;
            `chunk_frames` is the most of one canvas.
        seed: of the whole video; None = the settings'. The first canvas takes it as it is, so
            that a long video begins like the short one.
        output: size and rate of the kept frames and of the video, where they are not the model's.
        closed: the video is to be played in a circle: its end meets its beginning.
        journal: hears of every join.
        keeper: keeps unfinished canvases.
    """
    journal = Journal() if journal is None else journal
    prompts = dict.fromkeys(prompt for segment in segments for prompt in _prompts(segment))
    spec = networks.model.spec
    maker = SpanMaker(
        networks=networks,
        settings=settings,
        reach=reach_of(spec, settings.width, settings.height, settings.chunk_frames),
        texts={prompt: read_texts(networks, prompt, settings) for prompt in prompts},
        seed=settings.seed if seed is None else seed,
        keeper=keeper,
    )
    frames = _video(maker, segments, output, closed)
    closing = _kind(segments[-1], segments[0], closing=True) if closed else None
    for frame in journal.watch(frames, closing=closing):
        yield frame[None]
    journal.tail = maker.made


def video_frames(
    segments: Sequence[Segment], settings: Settings, output: Output | None = None
) -> int:
    """How many frames `play` yields."""
    rate, total = _rate(settings, output), 0
    for segment in segments:
        if isinstance(segment, Kept):
            total += segment.num_frames
        elif isinstance(segment, Ring):
            total += ring_frames(segment.num_frames)
        else:
            total += len(_times(segment, rate)) - _blend(segment, rate)
    return total


def _prompts(segment: Segment) -> list[str]:
    if isinstance(segment, Kept):
        return []
    ending = segment.end_prompt if isinstance(segment, Span) else None
    return [segment.prompt] if ending is None else [segment.prompt, ending]


def _rate(settings: Settings, output: Output | None) -> float:
    return output.fps / settings.fps if output else 1.0


def _times(span: Span, rate: float) -> list[float]:
    """Where the span's frames lie at the output's rate, in frames of the model."""
    head = span.head is not None and not span.shows_head
    tail = span.tail is not None and not span.shows_tail
    return frame_times(span.num_frames, rate, head=head, tail=tail)


def _blend(segment: Segment | None, rate: float) -> int:
    """Frames of the output over which the segment before dissolves into this one."""
    if not isinstance(segment, Span) or segment.blend == 0:
        return 0
    return max(1, round(segment.blend * rate))


def _video(
    maker: SpanMaker, segments: Sequence[Segment], output: Output | None, closed: bool
) -> Iterator[Marked]:
    """Every frame of the video, with the kind of the seam before it."""
    rate = _rate(maker.settings, output)
    ending: list[np.ndarray] = []  # frames held back, which the next span dissolves
    last: np.ndarray | None = None
    for number, segment in enumerate(segments):
        before = segments[number - 1] if number else None
        after = segments[number + 1] if number + 1 < len(segments) else None
        held = _blend(after, rate)
        if after is None and closed:
            after = segments[0]
        kinds = {0: _kind(before, segment)}
        if isinstance(segment, Kept):
            maker.made = None
            frames = single(segment.frames(0, segment.num_frames))
        elif isinstance(segment, Ring):
            frames = _ring(maker, segment)
        else:
            frames, inner = _joined(maker, segment, before, after, output, last)
            kinds = {**inner, **kinds}
        waiting: deque[Marked] = deque()
        for index, frame in enumerate(dissolved(ending, frames)):
            waiting.append((frame, kinds.get(index)))
            last = frame
            if len(waiting) > held:
                yield waiting.popleft()
        ending = [frame for frame, _ in waiting]


def _ring(maker: SpanMaker, ring: Ring) -> Iterator[np.ndarray]:
    """The frames of a loop from nothing, in the order of its circle."""
    networks, texts = maker.networks, maker.texts[ring.prompt]
    latents = make_ring(
        networks, texts, maker.settings, maker.seed, ring_frames(ring.num_frames), maker.keeper
    )
    yield from single(decode_ring(networks, latents))


def _joined(
    maker: SpanMaker,
    span: Span,
    before: Segment | None,
    after: Segment | None,
    output: Output | None,
    last: np.ndarray | None,
) -> tuple[Iterator[np.ndarray], dict[int, str | None]]:
    """A span's frames at the output's size and rate, and the seams between its canvases."""
    sides = _sides(maker, span, before, after)
    pieces = maker.pieces(span, sides)
    rate = _rate(maker.settings, output)
    times = _times(span, rate)
    frames = maker.frames(span, sides, pieces)
    if output is not None:
        first = _neighbour(before, sides.head, rate, end=True) if sides.meets_head else None
        final = _neighbour(after, sides.tail, rate, end=False) if sides.meets_tail else None
        frames = resized(frames, output, first, final)
        if rate != 1:
            closing = None if final is None else final.known[0]
            if closing is None and sides.tail is not None and not span.shows_tail:
                closing = output.resize(sides.tail[:1])[0]
            frames = retimed(frames, times, span.num_frames, last, closing)
    shown = pieces[0].head if span.shows_head else 0
    starts = list(accumulate((piece.new for piece in pieces), initial=shown))[1:-1]
    seams = {
        next(i for i, time in enumerate(times) if time >= start - 1e-6): "made-made"
        for start in starts
    }
    return frames, dict(seams)


def _sides(maker: SpanMaker, span: Span, before: Segment | None, after: Segment | None) -> Sides:
    """What the span is made to meet. A tail of few frames stands still after its last one."""
    head = maker.made if isinstance(span.head, str) else span.head
    tail, least = span.tail, least_tail(maker.reach)
    if tail is not None and len(tail) < least:
        tail = np.concatenate([tail, np.repeat(tail[-1:], least - len(tail), axis=0)])
    return Sides(
        head=head,
        tail=tail,
        meets_head=head is not None and before is not None and not span.shows_head,
        meets_tail=tail is not None and isinstance(after, Kept) and not span.shows_tail,
    )


def _neighbour(
    segment: Segment | None, seen: np.ndarray | None, rate: float, *, end: bool
) -> Neighbour | None:
    """A kept segment's end or beginning as a span at another size meets it."""
    if not isinstance(segment, Kept) or seen is None:
        return None
    steps = (round(step * rate) for step in range(KNOWN))
    places = [step for step in steps if step < segment.num_frames]
    if end:
        places = [segment.num_frames - 1 - place for place in places]
    return Neighbour(known=segment.some(places), seen=seen[-1] if end else seen[0])


def _kind(before: Segment | None, segment: Segment, *, closing: bool = False) -> str | None:
    """What meets at a seam; None at the video's beginning."""
    if before is None:
        return None
    led = isinstance(before, Span) and before.tail is not None and not before.shows_tail
    goes_on = isinstance(segment, Span) and (
        segment.blend > 0 or (segment.head is not None and not segment.shows_head)
    )
    if not (led or goes_on or closing):
        return "cut"
    return "-".join("kept" if isinstance(side, Kept) else "made" for side in (before, segment))
