"""What the verbs do, as rows: joins, one minute and edit, each on the pipeline's own path.

Everything made is kept in the work folder, so a sitting that ends early goes on where it was.
Shapes: T frames of H×W pixels, uint8 [T, H, W, 3].
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from sora_cli.eval.clips import keep
from sora_cli.eval.edits import Change, changed, score
from sora_cli.eval.joins import TRUTH, Bench, connect, extend, filled, loop, reader
from sora_cli.eval.judge import read
from sora_cli.eval.report import STRENGTHS, Row
from sora_cli.eval.rows import Exam, percentages, scores
from sora_cli.eval.truth import Prompt, render_all
from sora_cli.pipeline.networks import Model, Networks
from sora_cli.pipeline.request import Request, resolve
from sora_cli.pipeline.seams import Journal
from sora_cli.pipeline.spans import Sides, Span
from sora_cli.pipeline.timeline import play
from sora_cli.runtime.plan import MemoryPlan
from sora_cli.train.lasting import long_after

MINUTE = 60.0  # seconds


@contextmanager
def bench_of(exam: Exam) -> Iterator[Bench]:
    """The model at its own size, with its default settings; nothing is expanded."""
    studio = exam.studio
    spec = studio.model.spec
    request = Request(
        prompt="-", width=spec.width, height=spec.height, num_frames=spec.num_frames, seed=0,
        expand=False,
    )  # fmt: skip
    model = Model(
        spec=spec, parts=studio.model.parts, device=studio.device, dtype=studio.dtype,
        plan=MemoryPlan(),
    )  # fmt: skip
    with Networks(model) as networks:
        yield Bench(
            networks=networks, settings=resolve(request, spec)[0], keep=partial(keep, studio),
            show=exam.sheet,
        )  # fmt: skip


Measure = Callable[[Bench, Sequence[Prompt], Sequence[np.ndarray]], list[Row]]
JOINS: dict[str, Measure] = {
    "extend forward": partial(extend, way="forward"),
    "extend backward": partial(extend, way="backward"),
    "loop": loop,
    "connect": connect,
}


def joins(exam: Exam, verb: str) -> list[Row]:
    """Ground-truth clips extended both ways, looped, or connected."""
    asked = exam.prompts("dense", cap="join", num_frames=TRUTH)
    exam.studio.say(f"rendering {len(asked)} scenes of {TRUTH} frames\n")
    truths = list(render_all([p.scene for p in asked], str(exam.studio.device))[0].numpy())
    rows: list[Row] = []
    with bench_of(exam) as bench:
        for name, measure in JOINS.items():
            if not name.startswith(verb):
                continue
            rows += measure(bench, asked, truths)
            exam.studio.say(f"{name}: done with {len(asked)} clips\n")
    return [replace(row, split=exam.split) for row in rows]


# ---------------------------------------------------------------------- one minute


def long_video(bench: Bench, prompt: Prompt, seconds: float) -> dict[str, np.ndarray]:
    """A video from a prompt that is far longer than a canvas.

    Returns:
        "first" and "last": as many of its frames as the prompt's scene has. "drift": of its
        colours, [3]. "ratios": the seams' jumps over the video's own change.
    """
    frames = round(seconds * bench.settings.fps / 4) * 4 + 1
    window = prompt.scene.num_frames
    settings = replace(bench.settings, num_frames=frames)
    span, journal = Span(num_frames=frames, prompt=prompt.caption.text), Journal()
    first: list[np.ndarray] = []
    last: list[np.ndarray] = []
    for chunk in play(bench.networks, settings, [span], seed=prompt.seed, journal=journal):
        first = [*first, *chunk][:window]
        last = [*last, *chunk][-window:]
    assert journal.drift is not None, "a long video has a drift"
    return {
        "first": np.stack(first), "last": np.stack(last), "drift": np.array(journal.drift),
        "ratios": np.array([seam.ratio for seam in journal.seams]),
    }  # fmt: skip


def one_minute(exam: Exam) -> list[Row]:
    """What is left of a prompt after a minute: the judge on the first frames and on the last.

    The floor of the last is the truth when all ways have ended: what has come stands there.
    """
    asked = exam.prompts("dense", cap="long")
    made: list[dict[str, np.ndarray]] = []
    with bench_of(exam) as bench:
        for prompt in asked:
            build = partial(long_video, bench, prompt, MINUTE)
            what = f"{MINUTE:g} seconds"
            video = bench.made(what, [prompt], build)
            if video is None:
                break
            made.append(video)
            exam.studio.say(f"{MINUTE:g} s: {len(made)}/{len(asked)} videos\n")
    asked = asked[: len(made)]
    if not made:
        return []
    right = {}
    for name in ("first", "last"):
        exam.sheet(f"minute-{name}", [m[name] for m in made], [p.caption.text for p in asked])
        frames = torch.from_numpy(np.stack([m[name] for m in made]))
        right[name] = percentages(scores(asked, read(exam.judge, frames)))["mean"]
    later = [long_after(random.Random(p.seed), p.scene) for p in asked]
    truth = {}
    for name, scenes in (("first", [prompt.scene for prompt in asked]), ("last", later)):
        true = render_all(scenes, str(exam.studio.device))[0]
        truth[name] = percentages(scores(asked, read(exam.judge, true)))["mean"]
    size = f"{asked[0].scene.num_frames} frames"
    drift = float(np.mean([np.abs(video["drift"]).max() for video in made]))
    jump = float(np.mean(np.concatenate([video["ratios"] for video in made])))
    rows: list[tuple[str, float, float | None]] = [
        (f"attributes in the first {size}, % right", right["first"], truth["first"]),
        (f"attributes in the last {size}, % right", right["last"], truth["last"]),
        (
            "attributes kept, last over first, %",
            100 * right["last"] / max(right["first"], 1.0),
            100 * truth["last"] / max(truth["first"], 1.0),
        ),
        ("colour drift, of 255", drift, None),
        ("jump at the seams, times the video's own change", jump, None),
    ]
    return [
        Row(
            ability="one minute", measure=measure, value=value, floor=floor, samples=len(made),
            split=exam.split,
        )
        for measure, value, floor in rows
    ]  # fmt: skip


# ---------------------------------------------------------------------- edit


def edited(
    bench: Bench, change: Change, frames: np.ndarray, strength: float
) -> dict[str, np.ndarray]:
    """A clip re-made with the changed prompt from part of the noise (SDEdit)."""
    text = change.asked.caption.text
    span = Span(num_frames=len(frames), prompt=text, source=reader(frames), strength=strength)
    sides = Sides(head=None, tail=None, meets_head=False, meets_tail=False)
    return {"video": filled(bench.maker(text, change.asked.seed), span, sides)}


def edit(exam: Exam) -> list[Row]:
    """True clips of which the prompt changes one attribute, at several strengths."""
    changes = [changed(p) for p in exam.prompts("dense", cap="edit")]
    frames = render_all([c.before.scene for c in changes], str(exam.studio.device))[0]
    after = render_all([c.asked.scene for c in changes], str(exam.studio.device))[0]
    truth = score(changes, read(exam.judge, after))
    untouched = score(changes, read(exam.judge, frames))
    rows: list[Row] = []
    with bench_of(exam) as bench:
        for strength in STRENGTHS:
            clips = _edits(bench, changes, frames.numpy(), strength)
            if not clips:
                break
            texts = [change.asked.caption.text for change in changes]
            exam.sheet(f"edit-{strength:g}", clips, texts)
            found = score(
                changes[: len(clips)], read(exam.judge, torch.from_numpy(np.stack(clips)))
            )
            rows += [
                Row(
                    ability="edit", measure=f"strength {strength:g}: {what}, %", value=found[what],
                    floor=truth[what], baselines={"the clip itself": untouched[what]},
                    samples=len(clips), split=exam.split,
                )
                for what in found
            ]  # fmt: skip
            exam.studio.say(f"edit {strength:g}: {len(clips)}/{len(changes)} clips\n")
    return rows


def _edits(
    bench: Bench, changes: Sequence[Change], frames: np.ndarray, strength: float
) -> list[np.ndarray]:
    """As many of the clips as the time box allows."""
    clips: list[np.ndarray] = []
    for change, clip in zip(changes, frames, strict=True):
        build = partial(edited, bench, change, clip, strength)
        made = bench.made(f"edit {strength:g}", [change.before, change.asked], build)
        if made is None:
            break
        clips.append(made["video"])
    return clips
