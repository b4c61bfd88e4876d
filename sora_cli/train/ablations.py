"""What each choice of the recipe brings: the same small training, with one choice taken back.

`python -m sora_cli.train.ablations LATENTS TOKENIZER WORK` trains a narrow transformer with its
text encoder from nothing once for each row of ARMS: the same clips, batches, noises, first weights
and steps. Losses are taken on clips of the development split, without anything given and with their
first latent given; fidelity is what the judge reads in what the arm makes of dense prompts. It
writes docs/reference/ablations.md and a picture, and resumes from WORK.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from sora_cli.errors import OutputError
from sora_cli.eval.judge import Reading
from sora_cli.eval.plot import Line, chart
from sora_cli.eval.program import ended
from sora_cli.eval.recaptioning import Development, Figure, measured
from sora_cli.eval.sampling import last_lines, sitting, write
from sora_cli.eval.truth import Prompt, middle, project
from sora_cli.models.text_encoder import Tokenizer
from sora_cli.train.captions import dense
from sora_cli.train.dit import GIVE_LATENTS
from sora_cli.train.things import extent
from sora_cli.train.trial import (
    BATCH,
    LOSS_CLIPS,
    NARROW,
    Clips,
    Recipe,
    comparison_parser,
    train_arm,
    wanted_arms,
)
from sora_cli.train.world import IN_PLACE
from sora_cli.weights import store

SQUARE, BROAD = (64, 64, 17), (96, 64, 17)  # width, height, frames
READ = 100  # steps of reading alone: a small encoder's, from nothing


def only_late(count: int, tokens: int) -> Tensor:
    """Noise levels without the early half of `draw_sigmas`: logit-normal, shifted."""
    shift = min(max((tokens / 60) ** 0.5, 1.0), 3.0)
    sigmas = torch.sigmoid(torch.randn(count))
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def unshifted(count: int, tokens: int) -> Tensor:
    """Logit-normal noise levels, whatever the size."""
    return torch.sigmoid(torch.randn(count))


def even(count: int, tokens: int) -> Tensor:
    """Noise levels of all sizes alike."""
    return torch.rand(count)


WHOLE = Recipe(given=GIVE_LATENTS, read=READ)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A recipe, the size of the clips it is tried on, and what its row says."""

    name: str
    says: str
    recipe: Recipe
    size: tuple[int, int, int] = SQUARE


ARMS = (
    Arm(name="whole", says="the recipe", recipe=WHOLE),
    Arm(name="adamw", says="AdamW for all, at a quarter of the rate",
        recipe=replace(WHOLE, muon=False)),
    Arm(name="raw", says="the last weights, no average", recipe=replace(WHOLE, averaged=False)),
    Arm(name="late", says="no early half of noise levels", recipe=replace(WHOLE, levels=only_late)),
    Arm(name="unshifted", says="nor their shift by size", recipe=replace(WHOLE, levels=unshifted)),
    Arm(name="even", says="all noise levels alike", recipe=replace(WHOLE, levels=even)),
    Arm(name="unread", says="no reading beside", recipe=replace(WHOLE, read=0)),
    Arm(name="undropped", says="no prompt left out", recipe=replace(WHOLE, drop=0.0)),
    Arm(name="ungiven", says="nothing given", recipe=replace(WHOLE, given=0.0)),
    Arm(name="native", says="the recipe, 96x64 clips", recipe=WHOLE, size=BROAD),
    Arm(name="crops", says="square crops of them", recipe=replace(WHOLE, square=True), size=BROAD),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of an arm.

    curve: "samples" and development losses, as `Development.losses` has them. fidelity: of dense
    prompts. inside: how much of a lone thing's width is in the frame, %.
    """

    arm: Arm
    curve: list[dict[str, float]]
    fidelity: Figure
    inside: float


def share_inside(asked: Sequence[Prompt], readings: Sequence[Reading]) -> float:
    """How much of its width a thing that is alone and stays in place has in the frame, %; the mean.

    The judge says where its middle is; how wide it is at that place, the scene.
    """
    shares = []
    for prompt, reading in zip(asked, readings, strict=True):
        scene = prompt.scene
        if len(scene.things) != 1 or scene.things[0].motion not in IN_PLACE:
            continue
        thing = scene.things[0]
        x, y, z = middle(thing, 0.0)
        reach = extent(thing.kind)[0] * thing.scale
        left, right = (project(scene, (x + side * reach, y, z), 0.0)[0] for side in (-1, 1))
        half = abs(right - left) / 2 / scene.width
        for place in reading.places[:, 0, 0].tolist():
            seen = min(place + half, 1.0) - max(place - half, 0.0)
            shares.append(min(1.0, max(0.0, seen / (2 * half))))
    return 100 * statistics.fmean(shares) if shares else float("nan")


def page(outcomes: Sequence[Outcome], last: Sequence[str]) -> str:
    """docs/reference/ablations.md."""
    head = [
        "# What each choice of the recipe brings", "",
        "Made by `python -m sora_cli.train.ablations`; the same figures are in",
        "[ablations.json](ablations.json). One small transformer with its text encoder is trained",
        "from nothing once a row: the same clips, batches, noises, first weights and steps; one",
        "choice of the recipe is taken back in each. *Loss*: mean squared velocity error on clips",
        "of the development split under dense prompts, in brackets with their first latent given.",
        "*Fidelity*: % of what dense prompts name that the judge reads in what the arm makes of",
        "them, in brackets where 95 % of such means lie when the prompts are drawn again.",
        "*Inside*: how much of the width of a thing that is alone and stays in place is in the",
        "frame, %.", "",
        "![losses](../pictures/ablations.png)", "",
        "| taken back | loss (first latent given) | fidelity | thing | color | motion | inside |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    rows = []
    for one in outcomes:
        found, shares = one.fidelity, one.fidelity.shares
        each = " | ".join(f"{shares[name]:.1f}" for name in ("thing", "color", "motion"))
        rows.append(
            f"| {one.arm.says} | {one.curve[-1]['dense']:.4f} ({one.curve[-1]['given']:.4f}) | "
            f"**{shares['mean']:.1f}** ({found.low:.1f}–{found.high:.1f}) | {each} | "
            f"{one.inside:.1f} |"
        )
    return "\n".join([*head, *rows, "", *last, ""])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    names = [arm.name for arm in ARMS]
    parser = comparison_parser("ablations", __doc__, "ablations", names, steps=250, samples=48)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Train what is not trained yet, then let the judge read what comes of it.

    Raises:
        UsageError: an unknown arm, no latents, or a time box too short.
    """
    known = {arm.name: arm for arm in ARMS}
    wanted = wanted_arms(arguments, list(known))
    model, tokenizer = store.locate("tiny"), Tokenizer.from_folder(arguments.tokenizer)
    arms = [known[name] for name in wanted]
    schools = {size: Development(LOSS_CLIPS, size, model) for size in {arm.size for arm in arms}}
    curves = {arm.name: _trained(arm, arguments, tokenizer, schools[arm.size]) for arm in arms}
    exam = sitting(argparse.Namespace(**{**vars(arguments), "work": arguments.work / "c"}), model)
    outcomes = []
    for arm in arms:
        folder = arguments.work / arm.name
        answers = measured(exam, arm.name, folder, arm.size, ("dense",))["dense"]
        outcomes.append(
            Outcome(
                arm=arm,
                curve=curves[arm.name],
                fidelity=answers.figure,
                inside=share_inside(answers.asked, answers.readings),
            )  # fmt: skip
        )
    publish(outcomes, arguments)
    sys.stdout.write(f"{arguments.out / 'ablations.md'}\n{arguments.picture}\n")


def _trained(
    arm: Arm, arguments: argparse.Namespace, tokenizer: Tokenizer, development: Development
) -> list[dict[str, float]]:
    clips = Clips.of(arguments.latents, arm.size)
    texts = [dense(s, random.Random(f"ablation/{n}")).text for n, s in enumerate(clips.scenes)]
    return train_arm(
        arm.name, clips, texts, tokenizer, arguments.work / arm.name, steps=arguments.steps,
        seed=arguments.seed, development=development, recipe=arm.recipe,
    )  # fmt: skip


def publish(outcomes: Sequence[Outcome], arguments: argparse.Namespace) -> None:
    """Write the table, its JSON and the picture.

    Raises:
        OutputError: one of them cannot be written.
    """
    lines = [
        Line(name=one.arm.says, points=[(p["samples"], p["dense"]) for p in one.curve])
        for one in outcomes
    ]
    try:
        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        chart(lines, arguments.picture, title="Development loss, one choice taken back in each",
              x="clips seen", y="velocity error", log_y=True)  # fmt: skip
    except OSError as error:
        raise OutputError(
            f"cannot write {arguments.picture}: {error}", hint="--picture FILE.png"
        ) from error
    typed = ["LATENTS", "TOKENIZER", "WORK", "--steps", str(arguments.steps)]
    typed += ["--samples", str(arguments.samples), "--seed", str(arguments.seed)]
    typed += ["--arms", arguments.arms]
    last = last_lines(
        arguments, "sora_cli.train.ablations", typed, arguments.device, arguments.samples
    )
    about = (
        f"- {arguments.steps:,} steps of {BATCH} clips; transformer {NARROW.hidden_size} wide, "
        f"{NARROW.num_layers} layers; first weights, batches and noises of seed {arguments.seed}"
    )
    content: dict[str, object] = {
        "arms": {
            one.arm.name: {
                "says": one.arm.says, "size": one.arm.size, "curve": one.curve,
                "fidelity": asdict(one.fidelity), "inside": one.inside,
            }
            for one in outcomes
        },
    }  # fmt: skip
    write(arguments.out, "ablations", content, page(outcomes, [about, *last]))


def main(argv: list[str] | None = None) -> int:
    """The exit code of the program."""
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
