"""Sizes and lengths that were never trained, and short prompts with their expansion.

Both ask what "prompt fidelity" asks, of other clips. Clips are uint8 [B, T, H, W, 3].
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sora_cli.eval.clips import make
from sora_cli.eval.joins import Bench
from sora_cli.eval.judge import read
from sora_cli.eval.report import NEW_SIZES, Row
from sora_cli.eval.rows import Exam, percentages, scores
from sora_cli.eval.truth import Prompt, prompts, render_all
from sora_cli.eval.verbs import bench_of
from sora_cli.pipeline.expand import expand
from sora_cli.pipeline.request import Settings
from sora_cli.pipeline.spans import Span
from sora_cli.pipeline.timeline import play


def fidelity(exam: Exam, asked: list[Prompt], clips: Tensor, *, ordered: bool = True) -> float:
    """% of what the prompts name that the clips show, the mean over attributes."""
    return percentages(scores(asked, read(exam.judge, clips), ordered=ordered))["mean"]


# ---------------------------------------------------------------------- sizes


def continued(bench: Bench, settings: Settings, prompt: Prompt) -> dict[str, np.ndarray]:
    """A clip longer than a canvas, made as a user gets it: piece by piece."""
    span = Span(num_frames=settings.num_frames, prompt=prompt.caption.text)
    frames = play(bench.networks, settings, [span], seed=prompt.seed)
    return {"video": np.concatenate(list(frames))}


def _made(exam: Exam, asked: list[Prompt]) -> Tensor | None:
    """Clips of as many of the prompts as the time box allows; None: of none."""
    settings = exam.studio.settings(asked[0])
    if settings.num_frames <= settings.chunk_frames:
        latents = make(exam.studio, asked)
        return exam.decoded(latents) if latents else None
    videos = []
    with bench_of(exam) as bench:
        for prompt in asked:
            build = partial(continued, bench, settings, prompt)
            made = bench.made(f"{settings.num_frames} frames", [prompt], build)
            if made is None:
                break
            videos.append(torch.from_numpy(made["video"]))
    return torch.stack(videos) if videos else None


def sizes(exam: Exam) -> list[Row]:
    """Dense prompts at sizes and lengths that training never saw, against the default size."""
    usual, clips = exam.dense()
    usual = usual[: exam.most("size")]
    if not usual:
        return []
    default = fidelity(exam, usual, clips[: len(usual)])
    rows: list[Row] = []
    for width, height, num_frames in NEW_SIZES:
        asked = prompts(
            len(usual), split=exam.split, level="dense", width=width, height=height,
            num_frames=num_frames,
        )  # fmt: skip
        made = _made(exam, asked)
        if made is None:
            break
        asked = asked[: len(made)]
        exam.show(made, asked, f"size-{width}x{height}x{num_frames}")
        truth = render_all([p.scene for p in asked], str(exam.studio.device), batch=2)[0]
        rows.append(
            Row(
                ability="sizes", measure=f"{width}x{height}, {num_frames} frames, % right",
                value=fidelity(exam, asked, made), floor=fidelity(exam, asked, truth),
                baselines={"default size": default}, samples=len(asked), split=exam.split,
            )
        )  # fmt: skip
    if len(rows) < len(NEW_SIZES):
        return rows
    worst = Row(
        ability="sizes", measure="the worst of them under the default size, points",
        value=default - min(row.value for row in rows), samples=rows[-1].samples,
        split=exam.split,
    )  # fmt: skip
    return [*rows, worst]


# ---------------------------------------------------------------------- terse prompts


def expanded(exam: Exam, asked: list[Prompt]) -> list[Prompt] | None:
    """The prompts in the words of the model's language model; None where it has none.

    What counts stays what the user named.
    """
    folder = exam.studio.model.parts.get("language_model")
    if folder is None:
        return None
    found = []
    for prompt in asked:
        written = expand(
            prompt.caption.text, folder=folder, seed=prompt.seed, cache_dir=exam.studio.work,
            device=exam.studio.device,
        )  # fmt: skip
        caption = replace(prompt.caption, text=written.expanded_prompt)
        found.append(replace(prompt, caption=caption))
    return found


def terse(exam: Exam) -> list[Row]:
    """Short prompts expanded and as typed, counting only what they name."""
    asked = exam.prompts("short")
    longer = expanded(exam, asked)
    if longer is None:
        return []
    typed, written = make(exam.studio, asked), make(exam.studio, longer)
    asked = asked[: min(len(typed), len(written))]
    if not asked:
        return []
    clips = exam.decoded(written[: len(asked)])
    exam.show(clips, longer, "terse")
    on, off, floor = (
        fidelity(exam, asked, video, ordered=False)
        for video in (clips, exam.decoded(typed[: len(asked)]), exam.truth()[0][: len(asked)])
    )
    return [
        Row(
            ability="terse prompts", measure="expanded, % right", value=on, floor=floor,
            baselines={"as typed": off}, samples=len(asked), split=exam.split,
        ),
        Row(
            ability="terse prompts", measure="expanded over as typed, points", value=on - off,
            samples=len(asked), split=exam.split,
        ),
    ]  # fmt: skip
