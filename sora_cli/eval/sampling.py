"""What few steps cost: `python -m sora_cli.eval.sampling`.

Fidelity and seconds a clip for every sampler, number of steps and guidance scale, on the
development split: it is from this table that the defaults are chosen, so never on the final one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import median
from typing import get_args

from sora_cli.errors import OutputError, UsageError
from sora_cli.eval.clips import Studio, make_timed
from sora_cli.eval.lessons import judge_options, obtain_judge, source_key
from sora_cli.eval.physics import TIMES_VAE, physics
from sora_cli.eval.program import ended, say
from sora_cli.eval.report import machine
from sora_cli.eval.rows import Exam
from sora_cli.eval.sizes import fidelity
from sora_cli.models.specs import ModelSpec, SamplerName
from sora_cli.runtime.device import choose_device
from sora_cli.runtime.paths import cache_dir
from sora_cli.weights import store

STEPS, SCALES, SAMPLERS = (4, 8, 16, 32), (1.0, 2.0, 4.0, 6.0), ("euler", "unipc")


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way of sampling and what came of it.

    fidelity: % of what dense prompts name that the clips show. physics: the velocity error of what
    follows five true frames, times the autoencoder's own; None: not measured. seconds: of a clip,
    the median.
    """

    sampler: str
    steps: int
    guidance_scale: float
    fidelity: float
    seconds: float
    samples: int
    physics: float | None = None


def measured(exam: Exam, sampler: str, steps: int, scale: float) -> Way | None:
    """One way on the sitting's prompts; None where the time box left no clip."""
    changes = {"sampler": sampler, "num_inference_steps": steps, "guidance_scale": scale}
    studio = replace(exam.studio, changes=changes)
    asked = exam.prompts("dense")
    made = make_timed(studio, asked)
    if not made:
        return None
    asked = asked[: len(made)]
    rows = physics(replace(exam, studio=studio, kept={})) if exam.most("physics") else []
    errors = [row.value for row in rows if row.measure == TIMES_VAE]
    return Way(
        sampler=sampler, steps=steps, guidance_scale=scale, samples=len(made),
        physics=errors[0] if errors else None,
        fidelity=fidelity(exam, asked, exam.decoded([one["latents"] for one in made])),
        seconds=median(float(one["seconds"]) for one in made),
    )  # fmt: skip


def page(ways: list[Way], floor: float, spec: ModelSpec, last_lines: list[str]) -> str:
    """The table for people: slowest last, the default marked."""
    lines = [
        f"# Sampling with {spec.name}", "",
        "Made by `python -m sora_cli.eval.sampling`; the same figures are in",
        "[sampling.json](sampling.json). *Fidelity*: % of what dense prompts of the development",
        f"split name that the clips show (the true renders: {floor:.1f}). *Seconds*: a clip's",
        "share of its batch, from text to latents, networks loaded, not decoded; the median.",
        "*Velocity error*: of things in what follows five true frames, times that of the true clip",
        "after the autoencoder. *: no other way is both as quick and as faithful.", "",
        "| sampler | steps | guidance | fidelity, % | velocity error | seconds a clip | clips | |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for way in sorted(ways, key=lambda w: (w.steps, w.sampler, w.guidance_scale)):
        default = (way.sampler, way.steps, way.guidance_scale) == (
            spec.sampler, spec.num_inference_steps, spec.guidance_scale,
        )  # fmt: skip
        marks = " ".join(["default"] * default + ["*"] * unbeaten(way, ways))
        error = "" if way.physics is None else f"{way.physics:.2f}"
        cells = [way.sampler, str(way.steps), f"{way.guidance_scale:g}", f"{way.fidelity:.1f}",
                 error, f"{way.seconds:.2f}", str(way.samples), marks]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *last_lines, ""])


def unbeaten(way: Way, ways: list[Way]) -> bool:
    """Whether no other way is at least as quick and as faithful, and better in one of them."""
    return not any(
        other.seconds <= way.seconds and other.fidelity >= way.fidelity
        and (other.seconds, other.fidelity) != (way.seconds, way.fidelity)
        for other in ways
    )  # fmt: skip


def numbers(text: str) -> tuple[float, ...]:
    """`4,8,16` as numbers above 0.

    Raises:
        UsageError: what is no such list.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) <= 0:
        raise UsageError(f"{text!r} is not a list of numbers above 0", hint="--steps 4,8,16")
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.eval.sampling", description=__doc__)
    parser.add_argument("--model", default="tiny", help="a name or a diffusers folder")
    parser.add_argument("--samples", type=int, default=16, help="prompts for each way")
    parser.add_argument("--physics-samples", type=int, default=16, help="clips to go on with")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)))
    parser.add_argument("--scales", default=",".join(f"{scale:g}" for scale in SCALES))
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no clip after these")
    parser.add_argument("--device", default=None, help="cpu, cuda; the fastest there is")
    parser.add_argument("--out", type=Path, default=Path("docs/reference"))
    parser.add_argument("--work", type=Path, default=None, help="of the clips made so far")
    judge_options(parser)
    return parser.parse_args(argv)


def sitting(arguments: argparse.Namespace, model: store.Installed) -> Exam:
    """The development split before the judge, clips made at `arguments.work`."""
    plan = choose_device(arguments.device)
    judge = obtain_judge(
        arguments.judge, minutes=arguments.judge_minutes, pool=None, device=plan.device_name,
        say=say,
    )  # fmt: skip
    studio = Studio(
        model=model, device=plan.device, dtype=plan.dtype,
        work=arguments.work or cache_dir() / "eval" / "clips",
        deadline=time.monotonic() + 60 * arguments.minutes, say=say,
    )  # fmt: skip
    return Exam(
        studio=studio, judge=judge, samples=arguments.samples, split="development",
        caps={"physics": getattr(arguments, "physics_samples", 0)},
    )  # fmt: skip


def last_lines(
    arguments: argparse.Namespace, program: str, typed: list[str], device: str, samples: int
) -> list[str]:
    """When, where and how figures were made; folders that change no figure are left out."""
    return [
        f"- Date: {datetime.now(UTC).strftime('%Y-%m-%d')}. Machine: {machine()}; {device}",
        f"- Command: `{shlex.join(['python', '-m', program, *typed])}`",
        f"- Seeds: scenes 0 to {samples - 1} of seed 0 of the development split; the noise of "
        "clip i has seed i",
        f"- Judge: source {source_key()}",
    ]


def run(arguments: argparse.Namespace) -> None:
    """Every way in turn, the quickest first; the table is written after each."""
    if arguments.samples < 1:
        raise UsageError("--samples must be at least 1", hint="--samples 16")
    samplers = arguments.samplers.split(",")
    if unknown := [name for name in samplers if name not in get_args(SamplerName)]:
        raise UsageError(f"unknown samplers: {', '.join(unknown)}", hint="--samplers euler,unipc")
    steps = [int(number) for number in numbers(arguments.steps)]
    scales = numbers(arguments.scales)
    model = store.locate(arguments.model)
    exam = sitting(arguments, model)
    floor = fidelity(exam, exam.prompts("dense"), exam.truth()[0])
    plan = choose_device(arguments.device)
    typed = ["--samples", str(arguments.samples), "--steps", arguments.steps]
    typed += ["--scales", arguments.scales, "--samplers", arguments.samplers]
    typed += ["--physics-samples", str(arguments.physics_samples)]
    end = last_lines(
        arguments, "sora_cli.eval.sampling", typed, f"{plan.device_name}, {plan.dtype_name}",
        arguments.samples,
    )  # fmt: skip
    ways: list[Way] = []
    for count, scale, sampler in product(steps, scales, samplers):
        way = measured(exam, sampler, count, scale)
        if way is None:
            break
        ways.append(way)
        say(f"{sampler}, {count} steps, guidance {scale:g}: {way.fidelity:.1f} %, "
            f"{way.seconds:.2f} s a clip\n")  # fmt: skip
        content = {"weights": store.identity(model), "floor": round(floor, 2),
                   "ways": [asdict(one) for one in ways]}  # fmt: skip
        write(arguments.out, "sampling", content, page(ways, floor, model.spec, end))
    sys.stdout.write(f"{arguments.out / 'sampling.json'}\n{arguments.out / 'sampling.md'}\n")


def write(folder: Path, name: str, content: dict[str, object], text: str) -> None:
    """`name`.json and `name`.md in a folder.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        (folder / f"{name}.md").write_text(text, "utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the table: {error}", hint="--out FOLDER") from error


def main(argv: list[str] | None = None) -> int:
    """The exit code of the program."""
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
