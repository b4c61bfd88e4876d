"""How well parts of a video join: extend, loop and connect, on ground-truth clips.

No judge: everything is a difference of frames in 8-bit steps. The floor is the same join with the
true latents in the place of the made ones; the baseline stands still on the last known frame.
Shapes: T frames of H×W pixels, uint8 [T, H, W, 3].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sora_cli.eval.report import Row
from sora_cli.eval.truth import Prompt
from sora_cli.pipeline.canvas import encode_given
from sora_cli.pipeline.generate import read_texts
from sora_cli.pipeline.networks import Networks
from sora_cli.pipeline.pieces import Piece, Reach, reach_of
from sora_cli.pipeline.request import Settings
from sora_cli.pipeline.seams import LEAST_CHANGE, NEAR
from sora_cli.pipeline.spans import Frames, Sides, Span, SpanMaker, as_video
from sora_cli.pipeline.timeline import Kept, Segment, play

CLOSED, JUMP = 1.5, 3.0  # times the median step: a loop that closes, a way that jumps
GIVEN, MADE = 25, 16  # frames of a given clip, and of what is made beside it
TRUTH = GIVEN + MADE  # frames of a ground-truth scene
CONTEXT = 16  # frames handed over at an end
LIKENESS = 8  # made frames that are compared with the truth: a second

_JUMP = "jump at the seam, times the clip's own change"
_COLOUR = "colour shift at the seam, of 255"
_LIKE = "likeness of the next second, dB"
_MOTION = "motion, % of the truth's"

# What is made, by (what it depends on, how to make it): None when there is no time left.
Keep = Callable[[str, Callable[[], dict[str, np.ndarray]]], dict[str, np.ndarray] | None]
Show = Callable[[str, Sequence[np.ndarray], Sequence[str]], None]  # name, clips, their words


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What joins are measured with.

    keep: gives what was made before instead of making it again. show: puts clips before people.
    """

    networks: Networks
    settings: Settings
    keep: Keep = lambda what, build: build()
    show: Show = lambda name, videos, texts: None

    def maker(self, prompt: str, seed: int) -> SpanMaker:
        """Makes spans as the verbs do."""
        return SpanMaker(
            networks=self.networks, settings=self.settings, seed=seed, reach=self.reach,
            texts={prompt: read_texts(self.networks, prompt, self.settings)},
        )  # fmt: skip

    def true_maker(self, truth: np.ndarray, before: int) -> TrueMaker:
        """Makes the spans of a true clip, `before` frames of which come before the span."""
        return TrueMaker(
            networks=self.networks, settings=self.settings, seed=0, reach=self.reach, texts={},
            truth=truth, before=before,
        )  # fmt: skip

    @property
    def reach(self) -> Reach:
        """How much a canvas can be given."""
        settings = self.settings
        spec = self.networks.model.spec
        return reach_of(spec, settings.width, settings.height, settings.chunk_frames)

    def made(
        self, kind: str, prompts: Sequence[Prompt], build: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray] | None:
        """`build()`, kept by the prompts that it is made from."""
        scenes = [(prompt.caption.text, prompt.seed, prompt.scene) for prompt in prompts]
        return self.keep(f"{kind} {scenes} {self.settings}", build)


@dataclass(kw_only=True)
class TrueMaker(SpanMaker):
    """Makes spans out of the true frames: what a perfect model's latents would give."""

    truth: np.ndarray = field(default_factory=lambda: np.zeros(0))  # around the span, see `latents`
    before: int = 0  # frames of it that come before the span

    def _reaches(self, latents: Tensor, piece: Piece, tail: np.ndarray) -> bool:
        return True  # what is true is never dissolved

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
        first = self.before + start - piece.lead - piece.head
        places = np.clip(np.arange(first, first + piece.num_frames), 0, len(self.truth) - 1)
        video = as_video(self.truth[places]).to(self.networks.model.device)
        with torch.no_grad(), self.networks.vae(exact=True) as vae:
            whole = vae.encode(video)
            if piece.tail and tail is not None:
                given = as_video(tail[piece.surplus :][: piece.tail]).to(video)
                latents = encode_given(vae.encode, given, "tail", self.reach.scale_t)
                whole[:, :, -latents.shape[2] :] = latents
        return whole


def change(frames: np.ndarray) -> np.ndarray:
    """Mean |difference| of each frame and the next, [T - 1]."""
    return np.array(
        [np.abs(a.astype(np.float32) - b).mean() for a, b in zip(frames, frames[1:], strict=False)]
    )


def likeness(made: np.ndarray, truth: np.ndarray) -> float:
    """PSNR in dB, 48 at most: a still scene that stands still is right to the last step."""
    error = float(np.square(made.astype(np.float32) - truth).mean())
    return float(10 * np.log10(255**2 / max(error, 1.0)))


def of_seam(given: np.ndarray, made: np.ndarray) -> tuple[float, float]:
    """(jump over the given clip's own change, colour shift) where `made` goes on from `given`."""
    own = change(given[-NEAR - 1 :]).mean()
    step = made[0].astype(np.float32) - given[-1]
    colour = float(np.abs(step.mean(axis=(0, 1))).max())
    return float(np.abs(step).mean() / max(own, LEAST_CHANGE)), colour


def filled(maker: SpanMaker, span: Span, sides: Sides) -> np.ndarray:
    """The span's frames."""
    return np.stack(list(maker.frames(span, sides, maker.pieces(span, sides))))


def beside(bench: Bench, prompt: Prompt, truth: np.ndarray, way: str) -> dict[str, np.ndarray]:
    """MADE frames after the first GIVEN of a clip of TRUTH, or before the last.

    Returns:
        "made", and "true": the same made of true latents.
    """
    text = prompt.caption.text
    forward = way == "forward"
    given = truth[:GIVEN] if forward else truth[MADE:]
    head, tail = (given[-CONTEXT:], None) if forward else (None, given[:CONTEXT])
    span = Span(num_frames=MADE, prompt=text, head=head, tail=tail)
    sides = Sides(head=head, tail=tail, meets_head=forward, meets_tail=not forward)
    true = bench.true_maker(truth, GIVEN if forward else 0)
    return {
        "made": filled(bench.maker(text, prompt.seed), span, sides),
        "true": filled(true, span, sides),
    }


def extend(
    bench: Bench, prompts: Sequence[Prompt], truths: Sequence[np.ndarray], way: str
) -> list[Row]:
    """Clips of TRUTH frames, of which GIVEN are given, continued ("forward" or "backward")."""
    found: list[list[tuple[float, ...]]] = [[], [], []]  # made, of true latents, standing still
    moved: list[float] = []  # by the truth
    shown: list[np.ndarray] = []
    turn = slice(None) if way == "forward" else slice(None, None, -1)  # so that time runs on
    for prompt, truth in zip(prompts, truths, strict=True):
        ways = bench.made(f"extend {way}", [prompt], partial(beside, bench, prompt, truth, way))
        if ways is None:
            break
        given, next_ = truth[turn][:GIVEN], truth[turn][GIVEN:]
        ordered = [ways["made"][turn], ways["true"][turn], np.repeat(given[-1:], MADE, axis=0)]
        moved.append(float(change(next_).mean()))
        for figures, made in zip(found, ordered, strict=True):
            like = likeness(made[:LIKENESS], next_[:LIKENESS])
            figures.append((*of_seam(given, made), like, float(change(made).mean())))
        shown.append(np.concatenate([given, ordered[0]])[turn])
    bench.show(f"extend-{way}", shown, [prompt.caption.text for prompt in prompts])
    return _extend_rows(way, found, moved) if shown else []


def _extend_rows(way: str, found: list[list[tuple[float, ...]]], moved: list[float]) -> list[Row]:
    """Means over the clips; motion is all theirs over all of the truth's: some stand still."""
    made, floor, still = (np.mean(figures, axis=0) for figures in found)
    motion = 100 / max(float(np.mean(moved)), 0.1)
    units = {_JUMP: 1.0, _COLOUR: 1.0, _LIKE: 1.0, _MOTION: motion}
    return [
        Row(
            ability=f"extend {way}", measure=measure, value=float(made[column]) * unit,
            floor=float(floor[column]) * unit, baselines={"copy": float(still[column]) * unit},
            samples=len(moved),
        )
        for column, (measure, unit) in enumerate(units.items())
    ]  # fmt: skip


def truly_between(bench: Bench, truth: np.ndarray) -> dict[str, np.ndarray]:
    """A true clip with its middle made of true latents between its own two ends: [TRUTH, H, W, 3].

    What loops and connections are measured against.
    """
    before = (TRUTH - MADE) // 2
    sides = Sides(
        head=truth[:before], tail=truth[before + MADE :], meets_head=True, meets_tail=True
    )
    span = Span(num_frames=MADE, prompt="", head=sides.head, tail=sides.tail)
    way = filled(bench.true_maker(truth, before), span, sides)
    return {"video": np.concatenate([truth[:before], way, truth[before + MADE :]])}


def floor_steps(bench: Bench, prompt: Prompt, truth: np.ndarray) -> np.ndarray | None:
    """The changes from the last frame before the made ones of `truly_between` to the first after
    them, [MADE + 1]; None: no time."""
    made = bench.made("truly between", [prompt], partial(truly_between, bench, truth))
    first = (TRUTH - MADE) // 2
    return None if made is None else change(made["video"][first - 1 : first + MADE + 1])


def closed(bench: Bench, prompt: Prompt, given: np.ndarray) -> dict[str, np.ndarray]:
    """A clip with the way back to its own start."""
    text = prompt.caption.text
    span = Span(num_frames=MADE, prompt=text, head=given[-CONTEXT:], tail=given[:CONTEXT])
    sides = Sides(head=given[-CONTEXT:], tail=given[:CONTEXT], meets_head=True, meets_tail=True)
    way = filled(bench.maker(text, prompt.seed), span, sides)
    return {"video": np.concatenate([given, way])}


def loop(bench: Bench, prompts: Sequence[Prompt], truths: Sequence[np.ndarray]) -> list[Row]:
    """Clips led back to their own start. The baseline plays the clip again from its start."""
    ends, floors, motions, hard, shown = [], [], [], [], []
    for prompt, truth in zip(prompts, truths, strict=True):
        given = truth[:GIVEN]
        made = bench.made("loop", [prompt], partial(closed, bench, prompt, given))
        floor = floor_steps(bench, prompt, truth)
        if made is None or floor is None:
            break
        video = made["video"]
        steps = change(np.concatenate([video, video[:1]]))
        own = float(np.median(change(given)))
        ends.append(float(steps[-1]) / max(float(np.median(steps[:-1])), LEAST_CHANGE))
        floors.append(float(floor[-1]) / max(float(np.median(floor[:-1])), LEAST_CHANGE))
        hard.append(float(change(np.stack([given[-1], given[0]]))[0]) / max(own, LEAST_CHANGE))
        if own >= LEAST_CHANGE:  # of a still clip there is no motion to keep
            motions.append(100 * float(np.median(steps[GIVEN:-1])) / own)
        shown.append(video)
    bench.show("loop", shown, [prompt.caption.text for prompt in prompts])
    rows = []
    if ends:
        rows.append(
            Row(
                ability="loop", measure="last to first, times the median change",
                value=float(np.mean(ends)), floor=float(np.mean(floors)),
                baselines={"cut": float(np.mean(hard))}, samples=len(ends),
            )
        )  # fmt: skip
        rows.append(
            Row(
                ability="loop", measure="ends within 1.5 times, %", samples=len(ends),
                value=_within(CLOSED, ends, floors), baselines={"the worst end": max(ends)},
            )
        )  # fmt: skip
    if motions:
        rows.append(
            Row(
                ability="loop", measure="motion, % of the clip's",
                value=float(np.median(motions)), samples=len(motions),
            )
        )  # fmt: skip
    return rows


def _within(bar: float, values: Sequence[float], floors: Sequence[float]) -> float:
    """How many of 100 are at most the bar, or at most 1.2 times their own floor."""
    pairs = zip(values, floors, strict=True)
    return 100 * float(np.mean([value <= max(bar, 1.2 * floor) for value, floor in pairs]))


def led(
    bench: Bench, one: tuple[Prompt, np.ndarray], two: tuple[Prompt, np.ndarray]
) -> dict[str, np.ndarray]:
    """A clip, MADE frames on the way to another one, and that one."""
    (prompt, first), (ending, second) = one, two
    span = Span(
        num_frames=MADE, prompt=prompt.caption.text, head=first[-CONTEXT:], tail=second[:CONTEXT],
        end_prompt=ending.caption.text,
    )  # fmt: skip
    ends = [Kept(num_frames=len(clip), frames=reader(clip)) for clip in (first, second)]
    segments: list[Segment] = [ends[0], span, ends[1]]
    frames = play(bench.networks, bench.settings, segments, seed=prompt.seed)
    return {"video": np.concatenate(list(frames))}


def connect(bench: Bench, prompts: Sequence[Prompt], truths: Sequence[np.ndarray]) -> list[Row]:
    """Each clip led to the next one: the largest step on the way over the median step.

    Its floor is a way within one true scene, so ways from scene to scene are harder by nature.
    """
    clips = [(prompt, truth[:GIVEN]) for prompt, truth in zip(prompts, truths, strict=True)]
    largest, floors, cuts, shown, same = [], [], [], [], 0
    for number, one in enumerate(clips):
        two = clips[(number + 1) % len(clips)]
        made = bench.made("connect", [one[0], two[0]], partial(led, bench, one, two))
        floor = floor_steps(bench, one[0], truths[number])
        if made is None or floor is None:
            break
        video = made["video"]
        steps = change(video[GIVEN - 1 : GIVEN + MADE + 1])
        typical = max(float(np.median(steps)), LEAST_CHANGE)
        largest.append(float(steps.max()) / typical)
        floors.append(float(floor.max()) / max(float(np.median(floor)), LEAST_CHANGE))
        cuts.append(float(change(np.stack([one[1][-1], two[1][0]]))[0]) / typical)
        same += np.array_equal(video[:GIVEN], one[1]) and np.array_equal(video[-GIVEN:], two[1])
        shown.append(video)
    bench.show("connect", shown, [prompt.caption.text for prompt in prompts])
    if not shown:
        return []
    return [
        Row(
            ability="connect", measure="largest step, times the median", samples=len(shown),
            value=float(np.mean(largest)), floor=float(np.mean(floors)),
            baselines={"cut": float(np.mean(cuts))},
        ),
        Row(
            ability="connect", measure="ways without a jump, %", samples=len(shown),
            value=_within(JUMP, largest, floors), baselines={"the worst way's step": max(largest)},
        ),
        Row(
            ability="connect", measure="given frames untouched, %", samples=len(shown),
            value=100 * same / len(shown),
        ),
    ]  # fmt: skip


def reader(frames: np.ndarray) -> Frames:
    """A clip in memory, as segments read it."""
    return lambda start, stop: iter([frames[start:stop]])
