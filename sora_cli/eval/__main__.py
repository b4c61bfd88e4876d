"""Measure a model and write its report card: `python -m sora_cli.eval`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from sora_cli.errors import UsageError
from sora_cli.eval.abilities import ABILITIES
from sora_cli.eval.clips import Studio
from sora_cli.eval.judge import Judge
from sora_cli.eval.lessons import judge_options, obtain_judge, source_key
from sora_cli.eval.program import ended, say
from sora_cli.eval.report import Circumstances, Row, write
from sora_cli.eval.rows import CAPS, Exam, judge_accuracy
from sora_cli.models.specs import TINY
from sora_cli.runtime.device import choose_device
from sora_cli.runtime.paths import cache_dir
from sora_cli.train.world import SPLITS
from sora_cli.weights import store


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.eval", description=__doc__)
    parser.add_argument("--model", default="tiny", help="a name or a diffusers folder")
    parser.add_argument("--samples", type=int, default=128, help="prompts for each row")
    for name, (default, what) in CAPS.items():
        parser.add_argument(f"--{name}-samples", type=int, default=default, help=f"most {what}")
    parser.add_argument("--split", choices=list(SPLITS)[1:], default="final")
    parser.add_argument("--rows", default=",".join(ABILITIES), help="which, with commas between")
    parser.add_argument("--minutes", type=float, default=240.0, help="begin no clip after these")
    parser.add_argument("--device", default=None, help="cpu, cuda; the fastest there is")
    parser.add_argument("--out", type=Path, default=Path("docs/reference"))
    parser.add_argument("--work", type=Path, default=None, help="of the clips made so far")
    judge_options(parser)
    parser.add_argument("--judge-only", action="store_true", help="train and test it, no more")
    parser.add_argument("--pool", type=Path, default=None, help="rendered clips to train it on")
    return parser.parse_args(argv)


def as_typed(arguments: argparse.Namespace, model: str) -> str:
    """The command that makes these figures; folders that change no figure are left out."""
    words = ["python", "-m", "sora_cli.eval", "--model", model]
    for name in ("samples", "split", "rows"):
        words += [f"--{name}", str(getattr(arguments, name))]
    for name, (default, _) in CAPS.items():
        value = getattr(arguments, f"{name}_samples")
        words += [f"--{name}-samples", str(value)] if value != default else []
    return shlex.join(words)


def check_judge(arguments: argparse.Namespace, judge: Judge) -> None:
    """Write the judge's own accuracy on ground truth to stdout."""
    figures = judge_accuracy(
        judge, samples=arguments.samples, split=arguments.split, width=TINY.width,
        height=TINY.height, num_frames=TINY.num_frames,
    )  # fmt: skip
    sys.stdout.write(json.dumps({name: round(value, 2) for name, value in figures.items()}) + "\n")


def measure(arguments: argparse.Namespace, chosen: list[str], judge: Judge) -> None:
    """One ability after the other; the report is written after each."""
    plan, model = choose_device(arguments.device), store.locate(arguments.model)
    began = time.monotonic()
    studio = Studio(
        model=model, device=plan.device, dtype=plan.dtype,
        work=arguments.work or cache_dir() / "eval" / "clips",
        deadline=began + 60 * arguments.minutes, say=say,
    )  # fmt: skip
    studio.work.mkdir(parents=True, exist_ok=True)
    exam = Exam(
        studio=studio, judge=judge, samples=arguments.samples, split=arguments.split,
        caps={name: getattr(arguments, f"{name}_samples") for name in CAPS},
    )  # fmt: skip
    how = Circumstances(
        model=model.spec.name, weights=store.identity(model),
        date=datetime.now(UTC).strftime("%Y-%m-%d"), command=as_typed(arguments, model.spec.name),
        seeds=f"scenes 0 to {arguments.samples - 1} of seed 0 of the {arguments.split} split; "
              "the noise of clip i has seed i",
        judge=f"source {source_key()}; its own accuracy is the floor column",
        device=f"{plan.device_name}, {plan.dtype_name}",
    )  # fmt: skip
    rows: list[Row] = []
    for name in chosen:
        rows += ABILITIES[name](exam)
        numbers, page = write(rows, how, arguments.out)
        say(f"{name}: measured after {time.monotonic() - began:.0f} s\n")
    sys.stdout.write(f"{numbers}\n{page}\n")


def run(arguments: argparse.Namespace) -> None:
    """Check the command line, get the judge, measure."""
    chosen = [name.strip() for name in arguments.rows.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in ABILITIES]
    if unknown or not chosen:
        raise UsageError(
            f"unknown rows: {', '.join(unknown)}" if unknown else "no rows were asked for",
            hint=f'--rows "{",".join(ABILITIES)}"',
        )
    counts = {"samples": 128, **{f"{name}-samples": most for name, (most, _) in CAPS.items()}}
    for name, default in counts.items():
        if getattr(arguments, name.replace("-", "_")) < 1:
            raise UsageError(f"--{name} must be at least 1", hint=f"--{name} {default}")
    judge = obtain_judge(
        arguments.judge, minutes=arguments.judge_minutes, pool=arguments.pool,
        device=choose_device(arguments.device).device_name, say=say,
    )  # fmt: skip
    if arguments.judge_only:
        check_judge(arguments, judge)
    else:
        measure(arguments, chosen, judge)


def main(argv: list[str] | None = None) -> int:
    """The exit code of the program."""
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
