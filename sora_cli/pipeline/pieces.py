"""How a span of any length is made canvas by canvas: plain arithmetic, no torch.

A piece is one canvas of a span: frames known at its start (`head`), frames to be made, frames known
at its end (`tail`). Each next piece is given the last frames of the one before. All numbers are
frames at the model's own rate; `scale_t` is the VAE's stride in time (4).
"""

from __future__ import annotations

from dataclasses import dataclass

from sora_cli.models.specs import ModelSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One canvas of a span, in order: `lead`, `head`, `new`, `surplus`, `tail`.

    lead: made and dropped: fills a canvas that has no head.
    head: known frames at the start, scale_t·(k-1) + 1 of them, or none.
    new: frames that go into the video.
    surplus: made and dropped: fills the canvas; before a tail it covers the tail's first frames.
    tail: known frames at the end, whole latents, or none.
    """

    new: int
    lead: int = 0
    head: int = 0
    surplus: int = 0
    tail: int = 0

    @property
    def num_frames(self) -> int:
        """Frames of the canvas."""
        return self.lead + self.head + self.new + self.surplus + self.tail


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """How much a model family can be given, and how much it makes at a time.

    head, tail: latents (each but a head's first stands for scale_t frames) that it was trained
        with at most; tail 0: none.
    canvas: frames of its longest canvas. onward: of one that goes on from what the span made, where
        that is longer.
    still: the family takes single pictures rather than moving ends (FLF2V, I2V).
    """

    head: int
    tail: int
    canvas: int
    scale_t: int = 4
    still: bool = False
    onward: int = 0

    @property
    def head_frames(self) -> int:
        """The most frames of a head."""
        return self.scale_t * (self.head - 1) + 1

    @property
    def tail_frames(self) -> int:
        """The most frames of a tail that are of use, those covered by a surplus included."""
        return (1 if self.still else self.scale_t * self.tail) + self.scale_t - 1

    def fitting_head(self, frames: int) -> int:
        """The longest legal head among `frames` known ones, 0 where there are none."""
        frames = min(frames, self.head_frames)
        return frames - (frames - 1) % self.scale_t if frames > 0 else 0


# What tiny was trained with: a block of 1 to 3 given latents. LongCat and SkyReels-V2 continue
# from 4 or 5 latents; a published model that takes a single picture takes single pictures here.
GIVEN_LATENTS = 3


def reach_of(spec: ModelSpec, width: int, height: int, chunk_frames: int) -> Reach:
    """What the model can be given, and the frames of one canvas at a size (`chunk_frames`, but not
    fewer than the model's own length, so that there is room for what is given)."""
    canvas = min(spec.longest(width, height), max(chunk_frames, spec.num_frames))
    onward = spec.onward(width, height)
    scale_t = spec.vae_scale_factors[0]
    if "given" in spec.abilities:
        most = max(1, min(GIVEN_LATENTS, (canvas - 1) // scale_t // 2))
        return Reach(head=most, tail=most, canvas=canvas, scale_t=scale_t, onward=onward)
    tail = 1 if "flf2v" in spec.abilities else 0
    return Reach(head=1, tail=tail, canvas=canvas, scale_t=scale_t, still=True)


def plan(num_frames: int, head: int, tail: int, reach: Reach) -> list[Piece]:
    """The pieces of a span of `num_frames` new frames, in the order of the video.

    Args:
        head: known frames before the span; pieces after the first always have a head.
        tail: known frames after the span.

    Returns:
        pieces whose `new` add up to num_frames. With a tail and no head the pieces are made from
        the last to the first, each before the one that follows it.
    """
    assert num_frames > 0 and head >= 0
    assert tail == 0 or reach.tail, "the family takes no known end"
    assert tail == 0 or tail >= least_tail(reach), "a surplus covers a tail's first frames"
    if tail and not head:
        return _backward(num_frames, tail, reach)
    if tail:
        return _between(num_frames, head, tail, reach)
    return _forward(num_frames, head, reach)


def least_tail(reach: Reach) -> int:
    """The fewest frames of a tail: its latents, and those that a surplus may cover."""
    return (1 if reach.still else reach.scale_t) + reach.scale_t - 1


def _forward(num_frames: int, head: int, reach: Reach) -> list[Piece]:
    """Pieces from the start on, the first without a head where nothing is known."""
    first_head = reach.fitting_head(head)
    room = reach.canvas - first_head
    first = min(num_frames, room)
    pieces = [_to_the_end(first, first_head, reach)]
    left, known = num_frames - first, head + first
    while left:
        context = reach.fitting_head(known)
        share = _share(left, max(reach.canvas, reach.onward) - context, reach.scale_t)
        pieces.append(_to_the_end(share, context, reach))
        left, known = left - share, known + share
    return pieces


def _to_the_end(new: int, head: int, reach: Reach) -> Piece:
    """A piece that nothing known follows."""
    return Piece(new=new, head=head, surplus=(1 - head - new) % reach.scale_t)


def _share(left: int, most: int, scale_t: int) -> int:
    """The next piece's part of what is left, so that all pieces are about as long."""
    pieces = -(-left // most)
    even = -(-left // pieces)
    return min(left, most, -(-even // scale_t) * scale_t)


def _between(num_frames: int, head: int, tail: int, reach: Reach) -> list[Piece]:
    """Pieces from the start on, the last of which closes onto the tail."""
    closing = _closing(num_frames, head, tail, reach)
    if closing is not None:
        return [closing]
    longest = _longest_closing(tail, reach)
    context = reach.fitting_head(head)
    share = _share(num_frames - longest, reach.canvas - context, reach.scale_t)
    piece = _to_the_end(min(share, num_frames - 1), context, reach)
    return [piece, *_between(num_frames - piece.new, head + piece.new, tail, reach)]


def _closing(num_frames: int, head: int, tail: int, reach: Reach) -> Piece | None:
    """One canvas for all of the span, with as much given on both sides as fits; None: none fits.

    Where two latents of the past are known they are given: one alone says nothing of motion.
    """
    least = min(2, reach.head, 1 + (head - 1) // reach.scale_t)
    pieces = []
    for k in range(least, reach.head + 1):
        for m in range(1, reach.tail + 1):
            known = reach.scale_t * (k - 1) + 1
            ending = 1 if reach.still else reach.scale_t * m
            surplus = (1 - known - num_frames - ending) % reach.scale_t
            piece = Piece(new=num_frames, head=known, surplus=surplus, tail=ending)
            if known <= head and surplus + ending <= tail and piece.num_frames <= reach.canvas:
                pieces.append(piece)
    return max(pieces, key=lambda p: (min(p.head, p.tail), p.head + p.tail), default=None)


def _longest_closing(tail: int, reach: Reach) -> int:
    """The most new frames that one canvas between two known ends holds."""
    known = reach.head_frames
    fits = (n for n in range(reach.canvas, 0, -1) if _closing(n, known, tail, reach))
    longest = next(fits, 0)
    assert longest, "the canvas has no room between what is given"
    return longest


def _backward(num_frames: int, tail: int, reach: Reach) -> list[Piece]:
    """Pieces before something known; what fills a canvas is dropped from its front."""
    pieces: list[Piece] = []
    left, known = num_frames, tail
    # As many frames as a head has, but for its first: of three latents too little room is left.
    most = max(1, min(reach.tail, reach.head - 1))
    while left:
        ending = 1 if reach.still else min(most, known // reach.scale_t) * reach.scale_t
        canvas = max(reach.canvas, reach.onward) if pieces else reach.canvas
        share = _share(left, canvas - ending, reach.scale_t)
        lead = (1 - share - ending) % reach.scale_t
        pieces.append(Piece(new=share, lead=lead, tail=ending))
        left, known = left - share, known + share
    return pieces[::-1]
