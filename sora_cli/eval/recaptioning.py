"""What models make of prompts that were trained on different captions of the same clips.

train/study.py trains the arms; here their clips are read by the judge and put in a table and a
picture, docs/reference/recaptioning.md and docs/pictures/recaptioning.png.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sora_cli.errors import OutputError, UsageError
from sora_cli.eval.clips import encode, make
from sora_cli.eval.judge import Reading
from sora_cli.eval.judge import read as read_clips
from sora_cli.eval.plot import Line, bars, chart
from sora_cli.eval.program import say
from sora_cli.eval.rows import Exam, percentages, scores
from sora_cli.eval.sampling import write
from sora_cli.eval.scaling import SIGMAS, model_of
from sora_cli.eval.sizes import expanded
from sora_cli.eval.truth import Prompt, prompts, render_all
from sora_cli.models.text_encoder import Tokenizer
from sora_cli.train.captions import attributes, read
from sora_cli.train.dit import TEXT_LEN, Captioned
from sora_cli.train.world import Scene
from sora_cli.weights import load, store

KINDS = ("dense", "short, expanded", "short")  # of prompts
RESAMPLES = 400  # of the prompts, for an interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Taught:
    """An arm after its training.

    folder: its transformer/ and text_encoder/. curve: "samples", and losses by level of prompt.
    words: of its captions, in the mean. named, right: % of what is true of the clips that its
        captions name; % of what they name that is true.
    """

    arm: str
    folder: Path
    curve: list[dict[str, float]]
    words: float
    named: float
    right: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """% right of what the prompts name: by attribute, the mean over attributes and its interval.

    low, high: where 95 % of the means lie when the prompts are drawn again from these.
    counts: attributes asked for, by name.
    """

    shares: dict[str, float]
    low: float
    high: float
    counts: dict[str, int]


def taught(
    arm: str, folder: Path, curve: list[dict[str, float]], captions: Sequence[str],
    scenes: Sequence[Scene],
) -> Taught:  # fmt: skip
    """An arm, with what its captions say held against what they describe."""
    told = [read(text) for text in captions]
    pairs = [
        (said.get(name), value)
        for said, scene in zip(told, scenes, strict=True)
        for name, value in attributes(scene).items()
    ]
    said = sum(len(one) for one in told)
    hits = sum(a == b for a, b in pairs)
    return Taught(
        arm=arm, folder=folder, curve=curve, named=100 * hits / len(pairs),
        right=100 * hits / said, words=statistics.fmean(len(text.split()) for text in captions),
    )  # fmt: skip


def figure(asked: Sequence[Prompt], readings: Sequence[Reading], *, ordered: bool) -> Figure:
    """What the judge's readings of clips make of their prompts."""
    each = [scores([p], [r], ordered=ordered) for p, r in zip(asked, readings, strict=True)]

    def pooled(rows: Sequence[dict[str, list[bool]]]) -> dict[str, list[bool]]:
        return {name: [right for row in rows for right in row[name]] for name in rows[0]}

    rng = random.Random("recaptioning")
    means = sorted(
        percentages(pooled(rng.choices(each, k=len(each))))["mean"] for _ in range(RESAMPLES)
    )
    found = pooled(each)
    return Figure(
        shares=percentages(found), low=means[RESAMPLES // 40], high=means[-1 - RESAMPLES // 40],
        counts={name: len(rows) for name, rows in found.items()},
    )  # fmt: skip


class Development:
    """The losses on clips of the development split, under dense and under short prompts."""

    def __init__(
        self, count: int, size: tuple[int, int, int], model: store.Installed, seed: int = 0
    ) -> None:
        width, height, num_frames = size
        asked = {
            level: prompts(
                count, split="development", level=level, width=width, height=height,
                num_frames=num_frames,
            )
            for level in ("dense", "short")
        }  # fmt: skip
        self.texts = {name: [one.caption.text for one in rows] for name, rows in asked.items()}
        frames = render_all([one.scene for one in asked["dense"]])[0]
        with load.vae(model.parts["vae"], device="cpu", dtype=torch.float32) as vae:
            self.latents = torch.stack(encode(vae, frames))  # [N, C, T, H, W]
        generator = torch.Generator().manual_seed(seed)
        shape = (len(SIGMAS), *self.latents.shape)
        self.noises = torch.randn(shape, generator=generator)

    def losses(self, model: Captioned, tokenizer: Tokenizer) -> dict[str, float]:
        """Mean squared velocity error over the clips and SIGMAS, by the prompts' level; `given`:
        under dense ones, with the clips' first latent given.
        """
        found = {level: self._loss(model, tokenizer, texts) for level, texts in self.texts.items()}
        return found | {"given": self._loss(model, tokenizer, self.texts["dense"], given=1)}

    @torch.no_grad()
    def _loss(
        self, model: Captioned, tokenizer: Tokenizer, texts: list[str], given: int = 0
    ) -> float:
        ids, attention = tokenizer.encode(texts, TEXT_LEN)
        errors = []
        for sigma, noise in zip(SIGMAS, self.noises, strict=True):
            noisy = torch.lerp(self.latents, noise, sigma)
            noisy[:, :, :given] = self.latents[:, :, :given]
            times = torch.full((len(texts), noisy.shape[2]), 1000 * sigma)
            times[:, :given] = 0
            with torch.autocast("cpu", torch.bfloat16):
                velocity = model(noisy, times, ids, attention)
            error = (velocity.float() - (noise - self.latents)).square()
            errors.append(error[:, :, given:].mean())
        return float(torch.stack(errors).mean())


def _asked(exam: Exam, size: tuple[int, int, int], level: str) -> list[Prompt]:
    width, height, num_frames = size
    return prompts(
        exam.samples, split=exam.split, level=level, width=width, height=height,
        num_frames=num_frames,
    )  # fmt: skip


def floor(exam: Exam, size: tuple[int, int, int]) -> dict[str, Figure]:
    """The same of the true renders, encoded and decoded, by level of prompt."""
    clips = exam.reconstructed(render_all([p.scene for p in _asked(exam, size, "dense")])[0])
    readings = read_clips(exam.judge, clips)
    return {
        level: figure(_asked(exam, size, level), readings, ordered=level == "dense")
        for level in ("dense", "short")
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What was asked of an arm, what the judge reads in its clips, and what share is right."""

    asked: list[Prompt]
    readings: list[Reading]
    figure: Figure


def measured(
    exam: Exam, arm: str, folder: Path, size: tuple[int, int, int], kinds: Sequence[str] = KINDS
) -> dict[str, Answers]:
    """The clips that an arm's transformer/ and text_encoder/ make, read, by kind of prompt.

    Raises:
        UsageError: the time box left no clip.
    """
    with tempfile.TemporaryDirectory(prefix="sora-study-") as name:
        model = model_of(folder, exam.studio.model, Path(name) / arm)
        studio = replace(exam.studio, model=model)
        own = replace(exam, studio=studio, kept={})
        found = {}
        for kind in kinds:
            asked = _asked(exam, size, _level(kind))
            worded = expanded(own, asked) if "expanded" in kind else asked
            assert worded is not None, "the embedded model has a language model"
            clips = _decoded(own, worded)
            own.sheet(f"study-{arm}-{kind.replace(', ', '-')}", list(clips.numpy()),
                      [prompt.caption.text for prompt in worded])  # fmt: skip
            readings = read_clips(own.judge, clips)
            right = figure(asked, readings, ordered=kind == "dense")
            found[kind] = Answers(asked=asked, readings=readings, figure=right)
            say(f"{arm}, {kind} prompts: {right.shares['mean']:.1f} %\n")
    return found


def _decoded(exam: Exam, asked: list[Prompt]) -> Tensor:
    latents = make(exam.studio, asked)
    if len(latents) < len(asked):
        raise UsageError("the time is over", hint="--minutes with more, or fewer --prompts")
    return exam.decoded(latents)


# ---------------------------------------------------------------------- on paper

Table = dict[str, dict[str, Figure]]  # by arm, then by kind of prompt
NAMES = {
    "short": "short, true", "dense": "dense, true", "captioner": "dense, by the captioner",
}  # fmt: skip


def page(
    arms: Sequence[Taught], table: Table, floors: dict[str, Figure], last_lines: Sequence[str]
) -> str:
    """docs/reference/recaptioning.md."""
    prompts_asked = next(iter(table.values()))["dense"].counts["count"]
    lines = [
        "# What captions are worth", "",
        "Made by `python -m sora_cli.train.study`; the same figures are in",
        "[recaptioning.json](recaptioning.json). One small transformer with its text encoder is",
        "trained from nothing once for each kind of captions: on the same clips, in the same",
        "batches, with the same noises and first weights. Each clip has one caption in each arm.",
        "*By the captioner*: what the embedded captioner says of the clip after the autoencoder,",
        "and no record of the scene.", "",
        "![losses and fidelity](../pictures/recaptioning.png)", "",
        "| captions | words each | of what is true they name, % | of what they name is true, % |",
        "|---|---|---|---|",
        *(f"| {NAMES[a.arm]} | {a.words:.1f} | {a.named:.1f} | {a.right:.1f} |" for a in arms),
        "", f"## Fidelity on {prompts_asked} prompts of the development split", "",
        "% of what the prompt names that the judge reads in the clip, the mean over attributes;",
        "in brackets where 95 % of such means lie when the prompts are drawn again. Of *expanded*",
        "prompts, in the caption LLM's words, counts what the short ones name. *Floor*: the true",
        "renders after the autoencoder.", "",
        "| captions | " + " | ".join(f"{kind} prompts" for kind in KINDS) + " |",
        "|---" * (1 + len(KINDS)) + "|",
    ]  # fmt: skip
    for arm in arms:
        cells = [
            f"**{f.shares['mean']:.1f}** ({f.low:.1f}–{f.high:.1f})"
            for f in (table[arm.arm][kind] for kind in KINDS)
        ]
        lines.append(f"| {NAMES[arm.arm]} | " + " | ".join(cells) + " |")
    cells = [f"{floors[_level(kind)].shares['mean']:.1f}" for kind in KINDS]
    lines += [f"| floor | {' | '.join(cells)} |", "", *_by_attribute(arms, table, floors), ""]
    ends = "; ".join(
        f"{NAMES[a.arm]} {a.curve[-1]['dense']:.4f} and {a.curve[-1]['short']:.4f}" for a in arms
    )
    return "\n".join([
        *lines, "## Losses at the end", "",
        "Mean squared velocity error of the averaged weights on clips of the development split,",
        f"noise levels {', '.join(f'{s:g}' for s in SIGMAS)}, under dense and under short prompts:",
        f"{ends}.", "", *last_lines, "",
    ])  # fmt: skip


def _level(kind: str) -> str:
    """Whose words count: those of the dense prompts, or of the short ones."""
    return "dense" if kind == "dense" else "short"


def _by_attribute(
    arms: Sequence[Taught], table: Table, floors: dict[str, Figure]
) -> list[str]:  # fmt: skip
    first = table[arms[0].arm]
    lines = []
    for kind in ("dense", "short"):
        names = [name for name in first[kind].shares if name != "mean"]
        counts = {("thing" if n == "kind" else n): c for n, c in first[kind].counts.items()}
        lines += [
            f"By attribute, {kind} prompts (asked for so many times):", "",
            "| captions | " + " | ".join(f"{name} ({counts[name]})" for name in names) + " |",
            "|---" * (1 + len(names)) + "|",
        ]  # fmt: skip
        rows = [(NAMES[arm.arm], table[arm.arm][kind]) for arm in arms] + [("floor", floors[kind])]
        for label, one in rows:
            cells = " | ".join(f"{one.shares[name]:.1f}" for name in names)
            lines.append(f"| {label} | {cells} |")
        lines.append("")
    return lines[:-1]


def draw(arms: Sequence[Taught], table: Table, floors: dict[str, Figure], path: Path) -> None:
    """Losses above, fidelity below.

    Raises:
        OutputError: the picture cannot be written.
    """
    lines = [
        Line(name=NAMES[a.arm], points=[(p["samples"], p["dense"]) for p in a.curve]) for a in arms
    ]
    groups = {
        f"{kind} prompts": {NAMES[a.arm]: table[a.arm][kind].shares["mean"] for a in arms}
        for kind in KINDS
    }
    marks = {f"{kind} prompts": floors[_level(kind)].shares["mean"] for kind in KINDS}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as name:
            above, below = (Path(name) / part for part in ("curves.png", "bars.png"))
            chart(lines, above, title="Development loss under dense prompts, by training captions",
                  x="clips seen", y="velocity error", log_y=True)  # fmt: skip
            bars(groups, marks, below, title="Fidelity by training captions",
                 y="% of what is named; line: floor")  # fmt: skip
            parts = [Image.open(file).convert("RGB") for file in (above, below)]
        whole = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)))
        whole.paste(parts[0], (0, 0))
        whole.paste(parts[1], (0, parts[0].height))
        whole.save(path, format="PNG", optimize=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}", hint="--picture FILE.png") from error


def publish(
    arms: Sequence[Taught], table: Table, floors: dict[str, Figure], *, out: Path, picture: Path,
    last_lines: Sequence[str],
) -> None:  # fmt: skip
    """Write the table, its JSON and the picture.

    Raises:
        OutputError: one of them cannot be written.
    """
    draw(arms, table, floors, picture)
    content: dict[str, object] = {
        "arms": {
            a.arm: {
                "words": round(a.words, 2), "named": round(a.named, 2), "right": round(a.right, 2),
                "fidelity": {kind: asdict(one) for kind, one in table[a.arm].items()},
                "curve": a.curve,
            }
            for a in arms
        },
        "floor": {level: asdict(one) for level, one in floors.items()},
    }  # fmt: skip
    write(out, "recaptioning", content, page(arms, table, floors, last_lines))
