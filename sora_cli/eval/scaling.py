"""What more training brings: `python -m sora_cli.eval.scaling SAMPLES=FOLDER…`.

The same loss (fixed clips of the development split, fixed noises and noise levels) and the same
fidelity of several sets of weights, a power law through the losses, and a chart. A folder holds
`transformer/` and `text_encoder/` as a recipe writes them; autoencoder and tokenizer are those of
the embedded model.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from sora_cli.errors import OutputError, UsageError
from sora_cli.eval.clips import encode, make
from sora_cli.eval.lessons import judge_options
from sora_cli.eval.plot import Line, chart
from sora_cli.eval.program import ended, say
from sora_cli.eval.report import machine
from sora_cli.eval.rows import Exam
from sora_cli.eval.sampling import sitting, write
from sora_cli.eval.sizes import fidelity
from sora_cli.eval.truth import Prompt
from sora_cli.eval.verbs import bench_of
from sora_cli.pipeline.canvas import noise
from sora_cli.pipeline.generate import read_texts
from sora_cli.weights import load, store

SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels of the loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One set of weights: clips seen in training, mean squared velocity error, % right."""

    samples: int
    loss: float
    fidelity: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """loss = factor · samples^-exponent, and the largest relative error at the points."""

    factor: float
    exponent: float
    error: float

    def at(self, samples: float) -> float:
        """The loss that it says."""
        return float(self.factor * samples**-self.exponent)


def fitted(points: Sequence[Point]) -> Law:
    """The power law that fits best: least squares on logarithms."""
    assert len({point.samples for point in points}) > 1, "a line needs two points"
    x = [math.log(point.samples) for point in points]
    y = [math.log(point.loss) for point in points]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    slope /= sum((a - x_mean) ** 2 for a in x)
    law = Law(factor=math.exp(y_mean - slope * x_mean), exponent=-slope, error=0.0)
    return replace(law, error=max(abs(law.at(p.samples) / p.loss - 1) for p in points))


def loss_of(exam: Exam, asked: Sequence[Prompt], latents: Sequence[Tensor]) -> float:
    """Mean squared velocity error over the clips' latents [C, T, H, W] at all of SIGMAS.

    Clip i has noise of seed i, another one at each level; nothing is given.
    """
    errors: list[float] = []
    with bench_of(exam) as bench, torch.no_grad(), bench.networks.transformer() as dit:
        device = exam.studio.device
        settings = replace(bench.settings, guidance_scale=1.0)
        for prompt, one in zip(asked, latents, strict=True):
            texts = read_texts(bench.networks, prompt.caption.text, settings)
            context = texts.context.to(device).expand(len(SIGMAS), -1, -1)
            shape = (one.shape[0], one.shape[1], one.shape[2], one.shape[3])
            drawn = torch.cat(
                [noise(shape, 1000 * prompt.seed + n) for n in range(len(SIGMAS))]
            ).to(device)  # [N, C, T, H, W]
            sigmas = torch.tensor(SIGMAS, device=device)
            level = sigmas.view(-1, 1, 1, 1, 1)
            clean = one.to(device)
            velocity = dit(
                (1 - level) * clean + level * drawn, 1000 * sigmas, dit.prepare_context(context)
            )
            errors.append(float((velocity.float() - (drawn - clean)).square().mean()))
    return sum(errors) / len(errors)


def model_of(folder: Path, like: store.Installed, into: Path) -> store.Installed:
    """A whole model: `folder`'s transformer and text encoder in the place of the embedded ones.

    Raises:
        UsageError: the folder has not both.
    """
    missing = [part for part in ("transformer", "text_encoder") if not (folder / part).is_dir()]
    if missing:
        raise UsageError(
            f"{folder} has no {' and no '.join(missing)}",
            hint="SAMPLES=FOLDER, a folder that the recipe train.dit wrote: 81000=runs/tiny",
        )
    assert like.folder is not None, "the embedded model is a folder"
    into.mkdir()
    for path in like.folder.iterdir():
        source = folder / path.name if path.name in ("transformer", "text_encoder") else path
        (into / path.name).symlink_to(source.resolve())
    return store.locate(str(into))


def parse_points(words: Sequence[str]) -> list[tuple[int, Path]]:
    """`81000=runs/first` as (81000, its folder), in the order of samples.

    Raises:
        UsageError: a word of another form, or the same number of samples twice.
    """
    found = {}
    for word in words:
        number, _, folder = word.partition("=")
        if not number.isdigit() or not int(number) or not folder:
            raise UsageError(
                f"{word!r} is not SAMPLES=FOLDER", hint="clips seen, then where: 81000=runs/tiny"
            )
        found[int(number)] = Path(folder)
    if len(found) < 2:
        raise UsageError("a law needs two sets of weights at least", hint="81000=A 164000=B")
    return sorted(found.items())


def page(points: Sequence[Point], law: Law, clips: int, last_lines: Sequence[str]) -> str:
    """The table for people."""
    monotone = all(a.loss > b.loss for a, b in zip(points, points[1:], strict=False))
    better = all(a.fidelity <= b.fidelity for a, b in zip(points, points[1:], strict=False))
    rows = [f"| {p.samples:,} | {p.loss:.4f} | {law.at(p.samples):.4f} | {p.fidelity:.1f} |"
            for p in points]  # fmt: skip
    ahead = points[-1].samples * 4
    return "\n".join([
        "# What more training brings", "",
        "Made by `python -m sora_cli.eval.scaling`; the same figures are in",
        f"[scaling.json](scaling.json). *Loss*: mean squared velocity error on {clips} clips of",
        "the development split under their dense prompts, the same noises and noise levels "
        f"({', '.join(f'{s:g}' for s in SIGMAS)}) for all.",
        "*Fidelity*: % of what the prompts name that generated clips show. Each point is the end",
        "of a run of its own from nothing, with a whole learning-rate schedule.", "",
        "![losses against clips seen](../pictures/scaling.png)", "",
        "| clips seen | loss | by the law | fidelity, % |", "|---|---|---|---|", *rows, "",
        f"loss = {law.factor:.3g} · clips^-{law.exponent:.3f}, at most {100 * law.error:.1f} % off "
        f"at these {len(points)} points. With {ahead:,} clips it would be {law.at(ahead):.4f}.",
        f"The loss falls from each to the next: {'yes' if monotone else 'no'}. The fidelity "
        f"never falls: {'yes' if better else 'no'}.", "", *last_lines, "",
    ])  # fmt: skip


def draw(points: Sequence[Point], law: Law, path: Path) -> None:
    """The losses and the law through them.

    Raises:
        OutputError: the picture cannot be written.
    """
    first, last = points[0].samples, points[-1].samples * 2
    ways = [first * (last / first) ** (n / 40) for n in range(41)]
    lines = [
        Line(name="measured", points=[(p.samples, p.loss) for p in points], joined=False),
        Line(name=f"clips^-{law.exponent:.3f}", points=[(n, law.at(n)) for n in ways]),
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        chart(lines, path, title="Development loss against clips seen", x="clips seen",
              y="velocity error", log_x=True, log_y=True)  # fmt: skip
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}", hint="--picture FILE.png") from error


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.eval.scaling", description=__doc__)
    parser.add_argument("points", nargs="+", metavar="SAMPLES=FOLDER")
    parser.add_argument("--samples", type=int, default=32, help="prompts, and clips of the loss")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no clip after these")
    parser.add_argument("--device", default=None, help="cpu, cuda; the fastest there is")
    parser.add_argument("--out", type=Path, default=Path("docs/reference"))
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/scaling.png"))
    parser.add_argument("--work", type=Path, default=None, help="of the clips made so far")
    judge_options(parser)
    return parser.parse_args(argv)


def measured(exam: Exam, samples: int, latents: Sequence[Tensor]) -> Point:
    """Loss and fidelity of the sitting's model.

    Raises:
        UsageError: the time box left no clip.
    """
    asked = exam.prompts("dense")
    loss = loss_of(exam, asked, latents)
    made = make(exam.studio, asked)
    if len(made) < len(asked):
        raise UsageError("the time is over", hint="--minutes with more, or fewer --samples")
    point = Point(samples=samples, loss=loss, fidelity=fidelity(exam, asked, exam.decoded(made)))
    say(f"{samples:,} clips: loss {loss:.4f}, fidelity {point.fidelity:.1f} %\n")
    return point


def run(arguments: argparse.Namespace) -> None:
    """Measure each set of weights, fit, draw."""
    chosen = parse_points(arguments.points)
    if arguments.samples < 1:
        raise UsageError("--samples must be at least 1", hint="--samples 32")
    embedded, began = store.locate("tiny"), time.monotonic()
    exam = sitting(arguments, embedded)
    part, device = embedded.parts["vae"], exam.studio.device
    frames = exam.truth()[0]
    with load.vae(part, device=device, dtype=torch.float32) as vae:
        latents = encode(vae, frames)
    points = []
    with tempfile.TemporaryDirectory(prefix="sora-scaling-") as name:
        for samples, folder in chosen:
            model = model_of(folder, embedded, Path(name) / str(samples))
            studio = replace(exam.studio, model=model)
            points.append(measured(replace(exam, studio=studio, kept={}), samples, latents))
    law = fitted(points)
    draw(points, law, arguments.picture)
    command = ["python", "-m", "sora_cli.eval.scaling", "--samples", str(arguments.samples)]
    command += [f"{samples}=…" for samples, _ in chosen]
    end = [
        f"- Date: {datetime.now(UTC).strftime('%Y-%m-%d')}. Machine: {machine()}",
        f"- Command: `{shlex.join(command)}`",
        f"- Seeds: scenes 0 to {arguments.samples - 1} of seed 0 of the development split; clip "
        "i's noise has seed i",
    ]
    content: dict[str, object] = {
        "points": [asdict(point) for point in points], "law": asdict(law),
    }  # fmt: skip
    write(arguments.out, "scaling", content, page(points, law, len(latents), end))
    say(f"measured in {time.monotonic() - began:.0f} s\n")
    for path in (arguments.out / "scaling.json", arguments.out / "scaling.md", arguments.picture):
        sys.stdout.write(f"{path}\n")


def main(argv: list[str] | None = None) -> int:
    """The exit code of the program."""
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
