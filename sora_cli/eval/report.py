"""The report card on paper: rows, their bars, tiny.json and the table for people."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sora_cli.errors import OutputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """What a measure should reach, and which way is better.

    of_floor: the first bar is also met by at most so many times the floor: no join can be asked to
        be smoother than the same join made of true latents.
    """

    first: float | None = None
    goal: float | None = None
    smaller_is_better: bool = False
    of_floor: float | None = None

    def met(self, value: float, floor: float | None) -> bool | None:
        """Whether the first bar is met; None where there is none."""
        if self.first is None:
            return None
        if self.of_floor is not None and floor is not None and value <= self.of_floor * floor:
            return True
        return value <= self.first if self.smaller_is_better else value >= self.first


_SHARE = Bar(first=92.0, goal=99.0)
_JOIN = Bar(first=1.5, goal=1.1, smaller_is_better=True, of_floor=1.2)
STRENGTHS = (0.3, 0.5, 0.7, 0.9)  # of an edit
ATTRIBUTES = ("thing", "color", "motion", "floor", "sky", "camera", "count")
TWINS = (  # what cannot happen
    "time reversed", "falls up", "jumps aside", "another colour", "another shape", "vanishes",
    "doubles",
)  # fmt: skip
NEW_SIZES = ((192, 80, 25), (80, 144, 25), (128, 128, 25), (160, 96, 49))  # never trained
BARS: dict[tuple[str, str], Bar] = {
    ("compression", "PSNR, dB"): Bar(first=30.0, goal=36.0),
    ("compression", "PSNR inside the things, dB"): Bar(first=24.0),
    ("compression", "PSNR after 12 trips, dB"): Bar(),
    ("compression", "position error, times the floor"): Bar(goal=1.1, smaller_is_better=True),
    **{("prompt fidelity", f"{name}, % right"): _SHARE for name in (*ATTRIBUTES, "mean")},
    ("prompt fidelity", "mean of short prompts, % right"): _SHARE,
    ("terse prompts", "expanded, % right"): Bar(),
    ("terse prompts", "expanded over as typed, points"): Bar(first=10.0),
    **{("sizes", f"{w}x{h}, {t} frames, % right"): Bar() for w, h, t in NEW_SIZES},
    ("sizes", "the worst of them under the default size, points"): Bar(
        goal=3.0, smaller_is_better=True
    ),
    ("physics", "velocity error, widths a second"): Bar(smaller_is_better=True),
    ("physics", "velocity error, times the floor"): Bar(
        first=2.2, goal=1.2, smaller_is_better=True
    ),
    ("physics", "velocity error, times the VAE floor"): Bar(smaller_is_better=True),
    ("physics", "gravity from a bounce, % off"): Bar(smaller_is_better=True),
    ("physics", "momentum after a collision, % off"): Bar(smaller_is_better=True),
    **{
        ("physics", f"Kang's preset, {kind}: velocity error, m/s"): Bar(
            first=0.022, goal=0.012, smaller_is_better=True, of_floor=2.2
        )  # their models of 22.5 and 310 million
        for kind in ("uniform", "parabola", "collision")
    },
    ("plausibility", "impossible is harder: all, % of pairs"): Bar(first=80.0, goal=95.0),
    **{("plausibility", f"impossible is harder: {kind}, % of pairs"): Bar() for kind in TWINS},
    ("permanence", "as many things at the end as at the start, %"): Bar(first=70.0, goal=95.0),
    ("permanence", "the same things at the end as at the start, %"): Bar(first=70.0, goal=95.0),
    ("permanence", "comes out from behind a wall, %"): Bar(first=70.0, goal=95.0),
    ("permanence", "behind a wall it is not seen, % of frames"): Bar(),
    ("permanence", "comes out, frames too soon or too late"): Bar(smaller_is_better=True),
    ("interaction", "paint stays, overlap of all that was with the last"): Bar(goal=0.9),
    ("interaction", "paint at the end, overlap with the true"): Bar(),
    ("interaction", "what is eaten never grows, % of steps"): Bar(goal=90.0),
    ("interaction", "as many bites as asked, %"): Bar(),
    ("interaction", "as many pieces as asked, % of the frames after"): Bar(goal=90.0),
    ("digital world", "legal transitions, %"): Bar(goal=98.0),
    ("digital world", "actions obeyed, %"): Bar(goal=98.0),
    ("digital world", "ends where the actions lead, %"): Bar(),
    ("3D consistency", "reprojection residual, of 255"): Bar(smaller_is_better=True),
    ("3D consistency", "reprojection residual, times the floor"): Bar(
        goal=1.2, smaller_is_better=True
    ),
    ("animate", "frame 0 PSNR, dB"): Bar(first=28.0),
    ("animate", "motion, % right"): Bar(),
    ("animate", "trajectory error, % of the width"): Bar(smaller_is_better=True),
    **{
        (f"extend {way}", measure): bar
        for way in ("forward", "backward")
        for measure, bar in (
            ("jump at the seam, times the clip's own change", _JOIN),
            ("colour shift at the seam, of 255", Bar(first=2.0, smaller_is_better=True)),
            ("likeness of the next second, dB", Bar()),
            ("motion, % of the truth's", Bar()),
        )
    },
    ("loop", "last to first, times the median change"): replace(_JOIN, goal=1.05),
    ("loop", "ends within 1.5 times, %"): Bar(),
    ("loop", "motion, % of the clip's"): Bar(first=60.0),
    ("connect", "largest step, times the median"): replace(_JOIN, first=3.0, goal=None),
    ("connect", "ways without a jump, %"): Bar(first=100.0),
    ("connect", "given frames untouched, %"): Bar(first=100.0),
    ("files", "extend: given frames identical, % of clips"): Bar(first=100.0),
    ("files", "re-cut: the rest identical, % of clips"): Bar(first=100.0),
    ("one minute", "attributes in the first 25 frames, % right"): Bar(),
    ("one minute", "attributes in the last 25 frames, % right"): Bar(),
    ("one minute", "attributes kept, last over first, %"): Bar(first=80.0, goal=98.0),
    ("one minute", "colour drift, of 255"): Bar(smaller_is_better=True),
    ("one minute", "jump at the seams, times the video's own change"): Bar(smaller_is_better=True),
    **{
        ("edit", f"strength {strength:g}: {what}, %"): Bar()
        for strength in STRENGTHS
        for what in ("changed as asked", "the rest kept")
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure. `floor`: the ground truth through the same judge; None where there is none."""

    ability: str
    measure: str
    value: float
    floor: float | None = None
    baselines: dict[str, float] = field(default_factory=dict)
    samples: int
    goal: float | None = None  # where it is itself measured; else the table's
    split: str = "final"

    def to_json(self) -> dict[str, Any]:
        """The row as tiny.json has it; `meets_first_bar` is computed here and nowhere else."""
        bar = BARS[self.ability, self.measure]
        goal = bar.goal if self.goal is None else self.goal
        named = "" if self.split == "final" else f" ({self.split})"
        return {
            "ability": self.ability + named,
            "measure": self.measure,
            "value": round(self.value, 3),
            "floor": None if self.floor is None else round(self.floor, 3),
            "baselines": {name: round(value, 3) for name, value in self.baselines.items()},
            "samples": self.samples,
            "first_bar": bar.first,
            "goal": None if goal is None else round(goal, 3),
            "meets_first_bar": bar.met(self.value, self.floor),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Circumstances:
    """How the figures were made, for the table's last lines."""

    model: str
    weights: str
    date: str
    command: str
    seeds: str
    judge: str
    device: str


def machine() -> str:
    """The processor and system, without the machine's name."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        rows = [r.split(":", 1)[1].strip() for r in info.read_text().splitlines()
                if r.startswith("model name")]  # fmt: skip
        name = f"{len(rows)} × {rows[0]}" if rows else name
    return f"{name}, {platform.system()}, Python {platform.python_version()}"


def merged(rows: list[Row], weights: str, path: Path) -> list[dict[str, Any]]:
    """The new rows, and the old ones of the same weights that were not measured again."""
    fresh = [row.to_json() for row in rows]
    measured = {(row["ability"], row["measure"]) for row in fresh}
    old: list[dict[str, Any]] = []
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["weights"] == weights:
            old = [r for r in content["rows"] if (r["ability"], r["measure"]) not in measured]
    order = {key: number for number, key in enumerate(BARS)}

    def rank(row: dict[str, Any]) -> tuple[str, int]:
        ability, _, split = row["ability"].partition(" (")
        return split, order[ability, row["measure"]]

    return sorted(fresh + old, key=rank)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def table(rows: list[dict[str, Any]], how: Circumstances) -> str:
    """The report card as a page."""
    lines = [
        f"# Report card of {how.model}",
        "",
        "Made by `python -m sora_cli.eval`; the same figures are in [tiny.json](tiny.json).",
        "*Floor*: the ground-truth render of the same scenes through the same judge.",
        "*VAE floor*: that render after encoding and decoding. Of joins the floor is the same join",
        "made of the true clip's latents; up to 1.2 times it meets the bar too. What each row",
        "measures, and what is not measured: [the report card's rows](rows.md).",
        "",
        "| ability | measure | value | floor | baselines | samples | first bar | met | goal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        baselines = "; ".join(f"{name} {_cell(v)}" for name, v in row["baselines"].items())
        met = {True: "yes", False: "no", None: ""}[row["meets_first_bar"]]
        cells = [
            row["ability"], row["measure"], f"**{_cell(row['value'])}**", _cell(row["floor"]),
            baselines, str(row["samples"]), _cell(row["first_bar"]), met, _cell(row["goal"]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Of the run that measured last:",
        "",
        f"- Weights: `{how.weights}`",
        f"- Date: {how.date}. Machine: {machine()}; {how.device}",
        f"- Command: `{how.command}`",
        f"- Seeds: {how.seeds}",
        f"- Judge: {how.judge}",
        "",
    ]
    return "\n".join(lines)


def write(rows: list[Row], how: Circumstances, folder: Path) -> tuple[Path, Path]:
    """Write tiny.json and tiny.md into `folder`.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        numbers, page = folder / "tiny.json", folder / "tiny.md"
        card = merged(rows, how.weights, numbers)
        content = {"weights": how.weights, "rows": card}
        numbers.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        page.write_text(table(card, how), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the report: {error}", hint="--out FOLDER") from error
    return numbers, page
