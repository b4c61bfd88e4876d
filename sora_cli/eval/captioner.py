"""Rows of the report card: what the captioner says of clips whose scenes are known.

`python -m sora_cli.eval.captioner` measures a captioner and prints its rows, one JSON object a
line, as tiny.json has them. Renders are told by what was drawn; generated clips by the prompt that
they were made from, and by what the judge reads in them, since a clip need not show its prompt.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sora_cli.eval import report
from sora_cli.eval.clips import Studio, make
from sora_cli.eval.judge import read as read_clips
from sora_cli.eval.lessons import judge_options, obtain_judge
from sora_cli.eval.report import Bar, Row
from sora_cli.eval.rows import Exam
from sora_cli.eval.truth import Prompt, render_all
from sora_cli.models.captioner import Captioner
from sora_cli.pipeline.caption import spread
from sora_cli.runtime.device import choose_device
from sora_cli.runtime.paths import cache_dir
from sora_cli.train.captions import attributes, read, vocabulary
from sora_cli.train.world import SPLITS
from sora_cli.weights import store

ABILITY = "captioner"
ATTRIBUTES = ("kind", "color", "size", "motion", "floor", "sky", "camera", "count")
_SHARE = Bar(first=90.0, goal=99.0)
BARS: dict[tuple[str, str], Bar] = {
    **{(ABILITY, f"clips: {name}, % right"): _SHARE for name in (*ATTRIBUTES, "mean")},
    (ABILITY, "pictures: mean, % right"): _SHARE,
    (ABILITY, "generated clips: as the prompt, %"): Bar(),
    (ABILITY, "generated clips: as the judge reads them, %"): Bar(),
    (ABILITY, "captions in the world's language, %"): Bar(first=99.0, goal=100.0),
}
report.BARS.update(BARS)
Tally = dict[str, list[bool]]


def rows(exam: Exam) -> list[Row]:
    """What the model's captioner says of renders, of their reconstructions and of generated clips.

    Nothing of a model that has no captioner of its own.
    """
    folder = exam.studio.model.parts.get("captioner")
    if folder is None:
        return []
    asked = exam.prompts("dense")
    exam.studio.say(f"captions of {len(asked)} clips, three times\n")
    with Captioner(folder) as captioner:
        told = [captions(captioner, f) for f in (exam.truth()[0], exam.truth_reconstructed())]
        found = _of_clips(exam, asked, *told)
        stills = exam.prompts("dense", num_frames=1)  # other scenes: a picture's camera is still
        pictures = render_all([prompt.scene for prompt in stills], str(exam.studio.device))[0]
        told.append(captions(captioner, pictures))
        found.append(_of_pictures(exam, stills, told[-1]))
        latents = make(exam.studio, asked)
        if latents:
            found += _of_generated(exam, asked[: len(latents)], latents, captioner, told)
    valid = [in_language(text) for texts in told for text in texts]
    return [*found, _row(exam, "captions in the world's language, %", _percent(valid), len(valid))]


def captions(captioner: Captioner, clips: Tensor) -> list[str]:
    """What is said of clips, uint8 [B, T, H, W, 3]; of clip i with seed i."""
    return [
        captioner.describe(spread(clip.numpy()), seed=number) for number, clip in enumerate(clips)
    ]


def in_language(text: str) -> bool:
    """Whether a caption has the world's words alone, and says all that a caption says."""
    said = read(text)
    known = vocabulary()
    words = [word.strip(".,").lower() for word in text.replace("-", " ").split()]
    things = int(said["count"])
    needed = [f"{name}{i}" for i in range(things) for name in ("kind", "color", "size")]
    complete = things in (1, 2) and all(name in said for name in (*needed, "floor", "sky"))
    return complete and all(word in known for word in words)


def compared(wanted: dict[str, str], text: str, tally: Tally) -> None:
    """Count which of some attributes a caption names rightly, by attribute."""
    said = read(text)
    for name, value in wanted.items():
        tally.setdefault(name.rstrip("01"), []).append(said.get(name) == value)


def _of_clips(exam: Exam, asked: list[Prompt], texts: list[str], of_copies: list[str]) -> list[Row]:
    tally: Tally = {}
    copies: Tally = {}
    for prompt, text, of_copy in zip(asked, texts, of_copies, strict=True):
        compared(attributes(prompt.scene), text, tally)
        compared(attributes(prompt.scene), of_copy, copies)
    value, copy = _shares(tally), _shares(copies)
    return [
        _row(exam, f"clips: {name}, % right", value[name], len(asked),
             {"VAE round trip": copy[name]})
        for name in (*ATTRIBUTES, "mean")
    ]  # fmt: skip


def _of_pictures(exam: Exam, asked: list[Prompt], texts: list[str]) -> Row:
    tally: Tally = {}
    for prompt, text in zip(asked, texts, strict=True):
        wanted = attributes(prompt.scene)
        compared({k: v for k, v in wanted.items() if k in prompt.caption.named}, text, tally)
    return _row(exam, "pictures: mean, % right", _shares(tally)["mean"], len(asked))


def _of_generated(
    exam: Exam, asked: list[Prompt], latents: list[Tensor], captioner: Captioner,
    told: list[list[str]],
) -> list[Row]:  # fmt: skip
    clips = exam.decoded(latents)
    texts = captions(captioner, clips)
    told.append(texts)
    exam.sheet("captioner", list(clips.numpy()), texts)
    as_asked: Tally = {}
    as_judged: Tally = {}
    judge_as_asked: Tally = {}
    for prompt, text, reading in zip(asked, texts, read_clips(exam.judge, clips), strict=True):
        wanted = attributes(prompt.scene)
        compared(wanted, text, as_asked)
        alone = reading.values["count"] == "1"  # a second thing's values then mean nothing
        judged = {k: v for k, v in reading.values.items() if not (alone and k.endswith("1"))}
        compared(judged, text, as_judged)
        for name in judged.keys() & wanted.keys():
            judge_as_asked.setdefault(name.rstrip("01"), []).append(judged[name] == wanted[name])
    return [
        _row(exam, "generated clips: as the prompt, %", _shares(as_asked)["mean"], len(asked),
             {"the judge": _shares(judge_as_asked)["mean"]}),
        _row(exam, "generated clips: as the judge reads them, %", _shares(as_judged)["mean"],
             len(asked)),
    ]  # fmt: skip


def _percent(rights: Sequence[bool]) -> float:
    return 100 * sum(rights) / len(rights)


def _shares(tally: Tally) -> dict[str, float]:
    """% right by attribute, and their plain mean."""
    table = {name: _percent(rights) for name, rights in tally.items()}
    return table | {"mean": sum(table.values()) / len(table)}


def _row(
    exam: Exam, measure: str, value: float, samples: int, baselines: dict[str, float] | None = None
) -> Row:
    return Row(
        ability=ABILITY, measure=measure, value=value, baselines=baselines or {}, samples=samples,
        split=exam.split,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.eval.captioner", description=__doc__)
    parser.add_argument("--model", default="tiny", help="a name or a diffusers folder")
    parser.add_argument("--captioner", type=Path, default=None, help="another folder than its own")
    parser.add_argument("--samples", type=int, default=64, help="scenes")
    parser.add_argument("--split", choices=list(SPLITS)[1:], default="development")
    parser.add_argument("--minutes", type=float, default=60.0, help="generate no clip after these")
    judge_options(parser)
    parser.add_argument("--work", type=Path, default=None, help="of the clips made so far")
    arguments = parser.parse_args(argv)
    say: Callable[[str], object] = sys.stderr.write
    plan, model = choose_device("cpu"), store.locate(arguments.model)
    if arguments.captioner:
        model = replace(model, parts={**model.parts, "captioner": arguments.captioner})
    judge = obtain_judge(arguments.judge, minutes=arguments.judge_minutes, pool=None, say=say)
    studio = Studio(
        model=model, device=plan.device, dtype=plan.dtype,
        work=arguments.work or cache_dir() / "eval" / "clips",
        deadline=time.monotonic() + 60 * arguments.minutes, say=say,
    )  # fmt: skip
    studio.work.mkdir(parents=True, exist_ok=True)
    exam = Exam(studio=studio, judge=judge, samples=arguments.samples, split=arguments.split)
    for row in rows(exam):
        sys.stdout.write(json.dumps(row.to_json()) + "\n")


if __name__ == "__main__":
    main()
