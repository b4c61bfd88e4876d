"""What `extend` and `edit --from --to` leave of the frames in a lossless file: all of them.

The verbs are called as the command line calls them, from a file to a file. What is made between the
given frames does not matter here, so it gets few steps. Frames are uint8 [T, H, W, 3].
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from sora_cli import app
from sora_cli.eval.clips import request_of
from sora_cli.eval.report import Row
from sora_cli.eval.rows import Exam
from sora_cli.eval.truth import Prompt, render_all
from sora_cli.jobs.job import Target
from sora_cli.media import reader, video

STEPS = 4
BY = 1.0  # s that a clip is extended by, at both ends
CUT = (1.0, 2.0)  # s: the part that is made anew
_EXTEND = "extend: given frames identical, % of clips"
_CUT_ANEW = "re-cut: the rest identical, % of clips"


def given_are_inside(given: np.ndarray, made: np.ndarray) -> bool:
    """Whether a clip extended at both ends alike holds the given frames bit for bit."""
    before = (len(made) - len(given)) // 2
    return before > 0 and bool(np.array_equal(made[before : before + len(given)], given))


def rest_is_kept(given: np.ndarray, made: np.ndarray, first: int, last: int) -> bool:
    """Whether the frames from `first` to before `last` were made anew, and no others."""
    if len(made) != len(given) or np.array_equal(made[first:last], given[first:last]):
        return False
    ends = (slice(None, first), slice(last, None))
    return all(np.array_equal(made[end], given[end]) for end in ends)


def untouched(exam: Exam) -> list[Row]:
    """True clips written losslessly, extended and re-cut, and read again."""
    asked = exam.prompts("dense", cap="file")
    frames = render_all([p.scene for p in asked], str(exam.studio.device))[0].numpy()
    found: dict[str, list[bool]] = {_EXTEND: [], _CUT_ANEW: []}
    for prompt, clip in zip(asked, frames, strict=True):
        if time.monotonic() > exam.studio.deadline:
            break
        for name, same in _checked(exam, prompt, clip).items():
            found[name].append(same)
    return [
        Row(
            ability="files", measure=name, value=100 * sum(rows) / len(rows), samples=len(rows),
            split=exam.split,
        )
        for name, rows in found.items()
        if rows
    ]  # fmt: skip


def _checked(exam: Exam, prompt: Prompt, clip: np.ndarray) -> dict[str, bool]:
    request = replace(
        request_of(exam.studio.model, prompt), num_inference_steps=STEPS, width=None, height=None,
        num_frames=None, fps=None, device=exam.studio.device.type,
    )  # fmt: skip
    height, width = clip.shape[1:3]
    fps = prompt.scene.fps
    with tempfile.TemporaryDirectory(prefix="sora-eval-") as name:
        given, longer, anew = (Path(name) / f"{part}.mkv" for part in ("given", "longer", "anew"))
        video.write(given, [clip], width=width, height=height, fps=fps)
        target = Target(output=longer)
        list(app.extend(given, request, by=BY, direction="both", target=target))
        list(app.edit(given, request, between=CUT, target=Target(output=anew)))
        whole, cut = (reader.open_clip(path).head(10_000) for path in (longer, anew))
    first, last = (round(second * fps) for second in CUT)
    return {
        _EXTEND: given_are_inside(clip, whole),
        _CUT_ANEW: rest_is_kept(clip, cut, first, last),
    }
