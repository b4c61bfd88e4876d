"""What the shortcuts cost: `python -m sora_cli.eval.shortcuts`.

Each way of saving work against the exact run from the same noise, on the pipeline's own path, a
clip at a time as a user makes it: how far the latents and the frames are off, what the judge still
sees of what dense prompts name, and what was saved. Then the same, less the judge, on random
weights in the published models' shape. Development split: what is recommended is read off here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sora_cli.errors import UsageError
from sora_cli.eval.clips import keep
from sora_cli.eval.lessons import judge_options
from sora_cli.eval.program import ended
from sora_cli.eval.rows import Exam, psnr
from sora_cli.eval.sampling import last_lines, sitting, write
from sora_cli.eval.sizes import fidelity
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.fp8 import multiply_in_fp8
from sora_cli.models.specs import WAN21_T2V, ModelSpec
from sora_cli.pipeline.canvas import Canvas, noise
from sora_cli.pipeline.events import Event
from sora_cli.pipeline.generate import (
    Texts,
    lay_canvas,
    make_latents,
    make_video_latents,
    read_texts,
)
from sora_cli.pipeline.networks import Model, Networks
from sora_cli.pipeline.request import Request, Settings, resolve
from sora_cli.runtime.device import choose_device
from sora_cli.runtime.plan import MemoryPlan
from sora_cli.weights import store


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """A way of saving work. changes: to the settings of the exact run."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)


EXACT = Way(name="every step in full")
_GATES = (0.25, 0.5, 0.75)
_THRESHOLDS = (0.05, 0.1, 0.2, 0.3)
SHORTCUTS = (
    *(Way(name=f"--guidance-interval 0:{end:g}", changes={"guidance_interval": (0.0, end)})
      for end in _GATES),
    Way(name="--guidance-interval 0.25:1", changes={"guidance_interval": (0.25, 1.0)}),
    *(Way(name=f"--step-cache {level:g}", changes={"step_cache": level}) for level in _THRESHOLDS),
    Way(
        name="--step-cache 0.1 --guidance-interval 0:0.5",
        changes={"step_cache": 0.1, "guidance_interval": (0.0, 0.5)},
    ),
    Way(name="--fp8-matmul ffn", changes={"fp8_matmul": "ffn"}),
)  # fmt: skip
SOLVERS = tuple(
    Way(
        name=f"--sampler {sampler} --steps {steps}",
        changes={"sampler": sampler, "num_inference_steps": steps},
    )
    for sampler, counts in (("euler", (8, 12)), ("unipc", (6, 8, 12, 16)))
    for steps in counts
)

# The published shape, small: heads of 128, a feed-forward of three and a half widths, patches of 4.
WAN_SHAPED = DiTConfig(
    num_layers=6, hidden_size=256, num_heads=2, ffn_dim=896, in_channels=16, out_channels=16,
    text_dim=128, text_len=32,
)  # fmt: skip
WAN_LATENTS = (16, 5, 16, 16)
WAN_STEPS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a way saved and what that cost.

    work: rows that went through the transformer, of the exact run's. time: seconds to latents, of
        the exact run's, the median over clips; None where this device gains nothing by it.
    skipped: steps a clip that were not computed.
    error: relative RMS of the latents. psnr: of the frames, in dB. fidelity: % of what dense
        prompts name that the clips show. None where that is not asked.
    """

    name: str
    samples: int
    work: float
    time: float | None
    skipped: float
    error: float
    psnr: float | None = None
    fidelity: float | None = None


def off(found: Tensor, wanted: Tensor) -> float:
    """Relative RMS difference."""
    return float((found - wanted).norm() / wanted.norm())


class Counter:
    """Rows that a transformer was called on, and steps that it was not called for."""

    def __init__(self) -> None:
        self.rows = self.skipped = 0

    def hear(self, event: Event) -> None:
        """An observer."""
        if event.finished:
            self.skipped += event.skipped

    def watch(self, dit: DiT) -> Any:
        """Count a transformer's calls until the handle that is returned is removed."""

        def called(module: object, inputs: tuple[Tensor, ...], output: object) -> None:
            self.rows += len(inputs[0])

        return dit.register_forward_hook(called)


def made(networks: Networks, settings: Settings, prompt: str) -> dict[str, np.ndarray]:
    """One clip: "latents" [C, T, H, W], and "seconds", "rows", "skipped", [1] each."""
    counter = Counter()
    networks.observer = counter.hear
    texts, canvas = read_texts(networks, prompt, settings), lay_canvas(networks, settings)
    with networks.transformer() as dit:
        handle = counter.watch(dit)
        began = time.perf_counter()
        latents = make_video_latents(networks, texts, canvas, settings, settings.seed)
        seconds = time.perf_counter() - began
        handle.remove()
    numbers = {"seconds": seconds, "rows": counter.rows, "skipped": counter.skipped}
    return {"latents": latents[0].cpu().numpy()} | {
        name: np.array([value], np.float64) for name, value in numbers.items()
    }


def clips(exam: Exam, ways: Sequence[Way]) -> dict[str, list[dict[str, np.ndarray]]]:
    """Clips of every way, of as many prompts as the time box allows: prompt by prompt, so that a
    busy machine is as busy for all."""
    studio, found = exam.studio, {way.name: list[dict[str, np.ndarray]]() for way in ways}
    model = Model(
        spec=studio.model.spec, parts=studio.model.parts, device=studio.device,
        dtype=studio.dtype, plan=MemoryPlan(),
    )  # fmt: skip
    studio.work.mkdir(parents=True, exist_ok=True)
    layers = sorted({way.changes.get("fp8_matmul") for way in ways}, key=str)
    by_layers = {which: Networks(replace(model, fp8_matmul=which)) for which in layers}
    asked = exam.prompts("dense")
    try:
        for networks in by_layers.values():  # the first call is slower than all that follow
            made(networks, replace(studio.settings(asked[0]), num_inference_steps=2), "")
        for number, prompt in enumerate(asked):
            for way in ways:
                settings = replace(studio.settings(prompt), **way.changes)
                build = partial(made, by_layers[settings.fp8_matmul], settings, prompt.caption.text)
                one = keep(studio, f"shortcut {settings}", build)
                if one is None:
                    return {name: rows[:number] for name, rows in found.items()}
                found[way.name].append(one)
            studio.say(f"made clip {number + 1} of {exam.samples} in {len(ways)} ways\n")
    finally:
        for networks in by_layers.values():
            networks.release()
    return found


def costs(exam: Exam, ways: Sequence[Way]) -> Iterator[Cost]:
    """What each way cost on the sitting's prompts, the exact one first; none without a clip."""
    found = clips(exam, ways)
    exact = found[ways[0].name]
    asked = exam.prompts("dense")[: len(exact)]
    if not asked:
        return
    wanted = _frames(exam, exact)
    for way in ways:
        rows = found[way.name]
        frames = wanted if way is ways[0] else _frames(exam, rows)
        yield Cost(
            name=way.name, samples=len(rows),
            work=_total(rows, "rows") / _total(exact, "rows"),
            time=None if _only_rounded(way) else median(
                float(one["seconds"][0] / whole["seconds"][0])
                for one, whole in zip(rows, exact, strict=True)
            ),
            skipped=_total(rows, "skipped") / len(rows),
            error=mean(
                off(torch.from_numpy(one["latents"]), torch.from_numpy(whole["latents"]))
                for one, whole in zip(rows, exact, strict=True)
            ),
            psnr=None if way is ways[0] else psnr(frames, wanted),
            fidelity=fidelity(exam, asked, frames),
        )  # fmt: skip


def _frames(exam: Exam, rows: list[dict[str, np.ndarray]]) -> Tensor:
    return exam.decoded([torch.from_numpy(one["latents"]) for one in rows])


def _total(rows: list[dict[str, np.ndarray]], name: str) -> float:
    return sum(float(one[name][0]) for one in rows)


def _only_rounded(way: Way) -> bool:
    """Whether a way saves time on devices alone that multiply in 8 bits; here it is emulated."""
    return "fp8_matmul" in way.changes


# ---------------------------------------------------------------------- random weights


@torch.no_grad()
def random_dit(seed: int) -> DiT:
    """A transformer of the published shape with random weights, none of them 0, in fp32."""
    torch.manual_seed(seed)
    dit = DiT(WAN_SHAPED).eval().requires_grad_(False)
    dit.init_weights()
    for parameter in dit.head.head.parameters():
        parameter.normal_(std=0.5 * WAN_SHAPED.hidden_size**-0.5)
    return dit


@torch.no_grad()
def random_costs(ways: Sequence[Way], seeds: int) -> Iterator[Cost]:
    """Each way on random weights, fp32 on the CPU; the exact one first."""
    request = Request(prompt="-", num_inference_steps=WAN_STEPS, seed=0, expand=False)
    settings = resolve(request, WAN21_T2V)[0]
    canvas, exact = Canvas.blank(WAN_LATENTS), list[Tensor]()
    for way in ways:
        errors, seconds, counter = [], 0.0, Counter()
        for seed in range(seeds):
            dit = random_dit(seed)
            if way.changes.get("fp8_matmul"):
                multiply_in_fp8(dit)
            counter.watch(dit)
            text = noise((2, WAN_SHAPED.text_len, WAN_SHAPED.text_dim, 1), seed + 100)[0, ..., 0]
            texts, start = Texts(context=text[:1], negative=text[1:]), noise(WAN_LATENTS, seed)
            began = time.perf_counter()
            asked = replace(settings, **way.changes)
            found = make_latents(dit, texts, canvas, start, asked, counter.hear)
            seconds += time.perf_counter() - began
            exact += [found] if way is ways[0] else []
            errors.append(off(found, exact[seed]))
        if way is ways[0]:
            whole_rows, whole_seconds = counter.rows, seconds
        yield Cost(
            name=way.name, samples=seeds, work=counter.rows / whole_rows, error=mean(errors),
            time=None if _only_rounded(way) else seconds / whole_seconds,
            skipped=counter.skipped / seeds,
        )  # fmt: skip


# ---------------------------------------------------------------------- the page


def table(rows: Sequence[Cost]) -> list[str]:
    """Rows of Markdown; the columns that nobody was asked for are left out."""
    judged = rows[0].fidelity is not None
    head = ["", "work", "time", "steps skipped", "latents off by"]
    head += ["frames, dB", "fidelity, %"] if judged else []
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        time_said = "—" if row.time is None else f"{row.time:.2f}"
        cells = [row.name, f"{row.work:.2f}", time_said, f"{row.skipped:.1f}", f"{row.error:.4f}"]
        if judged:
            cells += ["" if row.psnr is None else f"{row.psnr:.1f}", f"{row.fidelity:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page(
    rows: Sequence[Cost], random: Sequence[Cost], floor: float, spec: ModelSpec, ends: list[str]
) -> str:
    """The tables for people."""
    shape = WAN_SHAPED
    lines = [
        f"# Shortcuts with {spec.name}", "",
        "Made by `python -m sora_cli.eval.shortcuts`; the same figures are in",
        "[shortcuts.json](shortcuts.json). What each does: [the guide](../guides/speed.md).",
        "Each way against the exact run from the same noise. *Work*: rows through the transformer,",
        "of the exact run's. *Time*: to the latents, of the exact run's, the median over clips; —",
        "where only a device that multiplies in 8 bits gains any (here its rounding is emulated).",
        "*Latents*: relative RMS difference. *Frames*: PSNR. *Fidelity*: % of what dense prompts",
        f"of the development split name that the clips show (the true renders: {floor:.1f}).", "",
    ]  # fmt: skip
    if rows:
        settings = f"{spec.num_inference_steps} steps of {spec.sampler}"
        lines += [f"{rows[0].samples} clips, {settings}, guidance {spec.guidance_scale:g}.", ""]
        lines += [*table(rows), ""]
    if random:
        lines += [
            "## On random weights in the published models' shape", "",
            f"{shape.num_layers} blocks of width {shape.hidden_size}, heads of {shape.head_dim}, "
            f"{WAN_STEPS} steps of {WAN21_T2V.sampler},",
            f"guidance {WAN21_T2V.guidance_scale:g}, shift {WAN21_T2V.shift:g}, fp32; "
            f"{random[0].samples} networks. Random weights prove the arithmetic and no quality:",
            "their velocity hardly turns, so much of it can be drawn on.", "",
            *table(random), "",
        ]  # fmt: skip
    return "\n".join([*lines, *ends, ""])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.eval.shortcuts", description=__doc__)
    parser.add_argument("--model", default="tiny", help="a name or a diffusers folder")
    parser.add_argument("--samples", type=int, default=24, help="prompts; 0: random weights alone")
    parser.add_argument("--networks", type=int, default=3, help="of random weights; 0: none")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no clip after these")
    parser.add_argument("--device", default=None, help="cpu, cuda; the fastest there is")
    parser.add_argument("--out", type=Path, default=Path("docs/reference"))
    parser.add_argument("--work", type=Path, default=None, help="of the clips made so far")
    judge_options(parser)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Both tables; the page is written after each."""
    if min(arguments.samples, arguments.networks) < 0 or not arguments.samples + arguments.networks:
        raise UsageError("--samples and --networks: 0 or more, not both 0", hint="--samples 24")
    model, floor, rows = store.locate(arguments.model), 0.0, list[Cost]()
    plan = choose_device(arguments.device)
    typed = ["--samples", str(arguments.samples), "--networks", str(arguments.networks)]
    where = f"{plan.device_name}, {plan.dtype_name}"
    ends = last_lines(
        arguments, "sora_cli.eval.shortcuts", typed, where, arguments.samples
    )  # fmt: skip
    ends = ends if arguments.samples else ends[:2]  # no scenes, no judge

    def written(random: Sequence[Cost]) -> None:
        content = {
            "weights": store.identity(model), "floor": round(floor, 2),
            "ways": [asdict(row) for row in rows], "random": [asdict(row) for row in random],
        }  # fmt: skip
        write(arguments.out, "shortcuts", content, page(rows, random, floor, model.spec, ends))

    if arguments.samples:
        exam = sitting(arguments, model)
        asked = exam.prompts("dense")
        floor = fidelity(exam, asked, exam.truth()[0])
        rows = list(costs(exam, (EXACT, *SHORTCUTS, *SOLVERS)))
        written(())
    if arguments.networks:
        written(list(random_costs((EXACT, *SHORTCUTS), arguments.networks)))
    sys.stdout.write(f"{arguments.out / 'shortcuts.json'}\n{arguments.out / 'shortcuts.md'}\n")


def main(argv: list[str] | None = None) -> int:
    """The exit code of the program."""
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
