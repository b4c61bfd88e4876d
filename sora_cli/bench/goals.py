"""What a workload on a GPU is held to: the card's own floors, and bounds for each workload.

Everything is reckoned from the figures alone, so that a page can be written again from them. The
practical floor of a transformer is its attention at the best rate of attention measured on the
card, and the rest at that of the matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sora_cli.bench.breakdown import PYTHON

Kind = Literal[
    "ratio", "compiled", "fp32", "seconds", "floor", "rate", "memory", "multiple", "flat", "busy"
]
Result = Mapping[str, Any]
GIGA = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """A bound on one figure of a workload.

    kind: "ratio", "compiled", "fp32": how many times diffusers takes, as it is, compiled, in fp32;
        "seconds": ours, `times` over; "floor": the share of the practical floor; "rate": GB/s;
        "memory": GB at the peak; of whole jobs, against what stands beside them, "multiple": times
        its seconds, "flat": times its memory, "busy": the share of the time in which the device
        works. AT_MOST may be less, the others more.
    what: in words, where the kind does not say it.
    """

    kind: Kind
    bound: float
    times: float = 1.0
    what: str = ""

    def met(self, value: float) -> bool:
        """Whether a measured value keeps the bound."""
        return value <= self.bound if self.kind in AT_MOST else value >= self.bound


AT_MOST: tuple[Kind, ...] = ("seconds", "memory", "multiple", "flat")
SHARES: tuple[Kind, ...] = ("floor", "busy")
NAMES: Mapping[str, str] = {
    "ratio": "against diffusers", "compiled": "against diffusers compiled",
    "fp32": "against diffusers in fp32", "seconds": "seconds", "floor": "share of the floor",
    "rate": "GB/s", "memory": "peak memory, GB", "multiple": "times what stands beside it",
    "flat": "times its memory", "busy": "time in which the device works",
}  # fmt: skip
UNITS: Mapping[str, str] = {
    "ratio": "×", "compiled": "×", "fp32": "×", "rate": " GB/s", "seconds": " s", "memory": " GB",
    "multiple": "×", "flat": "×",
}  # fmt: skip
THEIRS_FP32 = "diffusers in fp32"  # a variant of this name stands for the kind "fp32"


def best_rate(result: Result, start: str, dtype: str) -> float | None:
    """The best of the ceilings whose name begins so, in its unit a second."""
    rates = [
        c["rate"] for c in result["ceilings"]
        if c["name"].startswith(start) and c["dtype"] == dtype and c["rate"]
    ]  # fmt: skip
    return max(rates, default=None)


def floor(result: Result, row: Result, beside: Result) -> float | None:
    """Seconds of the practical floor of a transformer's step; None of what has none."""
    attention = best_rate(result, "attention", row["dtype"])
    product = best_rate(result, "matmul", row["dtype"])
    share = beside.get("attention_flops")
    if attention is None or product is None or share is None:
        return None
    return (share / attention + (row["flops"] - share) / product) / GIGA


def value(goal: Goal, result: Result, row: Result, beside: Result) -> float | None:
    """What was measured of a goal; None where it was not."""
    least, size = floor(result, row, beside), beside.get("size")
    theirs = beside.get("variants", {}).get(THEIRS_FP32)
    other = beside.get("theirs_peak_memory")
    idle = beside.get("breakdown", {}).get("ours", {}).get(PYTHON)
    found: dict[str, float | None] = {
        "ratio": row["ratio"],
        "compiled": beside.get("compiled_ratio"),
        "fp32": theirs / row["ours_s"] if theirs else None,
        "seconds": row["ours_s"] * goal.times,
        "floor": least / row["ours_s"] if least else None,
        "rate": size / row["ours_s"] / GIGA if size else None,
        "memory": row["peak_memory"] / GIGA if row["peak_memory"] else None,
        "multiple": 1 / row["ratio"] if row["ratio"] else None,
        "flat": row["peak_memory"] / other if row["peak_memory"] and other else None,
        "busy": None if idle is None else 1 - idle,
    }
    return found[goal.kind]


def goal_rows(result: Result) -> list[list[str]]:
    """A line for each goal: workload, what is bounded, the bound, the figure, whether it is met."""
    lines = []
    for row, beside in zip(result["workloads"], result["details"], strict=True):
        for written in beside.get("goals", ()):
            goal = Goal(**written)
            measured, unit = value(goal, result, row, beside), UNITS.get(goal.kind, "")
            sign = "≤" if goal.kind in AT_MOST else "≥"
            shown = "" if measured is None else _say(measured, unit, goal.kind)
            verdict = "not measured" if measured is None else "met"
            if measured is not None and not goal.met(measured):
                verdict = "**missed**"
            lines.append([
                beside["what"], goal.what or NAMES[goal.kind],
                f"{sign} {_say(goal.bound, unit, goal.kind)}", shown, verdict,
            ])  # fmt: skip
    return lines


def floor_rows(result: Result) -> list[list[str]]:
    """A line for each workload: its floor, its memory against the plan's, and its other ways."""
    lines = []
    for row, beside in zip(result["workloads"], result["details"], strict=True):
        least, planned = floor(result, row, beside), beside.get("predicted_memory")
        if least is None and planned is None and not beside.get("variants"):
            continue
        peak, rate = row["peak_memory"], ""
        if beside.get("size"):
            rate = f"{beside['size'] / row['ours_s'] / GIGA:.1f} GB/s"
        memory = ""
        if planned and peak:
            memory = f"{peak / GIGA:.2f} of {planned / GIGA:.2f} GB planned"
        ways = [f"{name} {taken:.3g} s" for name, taken in beside.get("variants", {}).items()]
        lines.append([
            beside["what"], f"{row['ours_s']:.3g} s", "" if least is None else f"{least:.3g} s",
            rate if least is None else f"{least / row['ours_s']:.0%}", memory, "; ".join(ways),
        ])  # fmt: skip
    return lines


def notes(details: Sequence[Result]) -> list[str]:
    """What was chosen and what was switched off on the way, each once."""
    said = [note for beside in details for note in beside.get("notes", ())]
    return list(dict.fromkeys(said))


def _say(number: float, unit: str, kind: str) -> str:
    return f"{number:.0%}" if kind in SHARES else f"{number:.3g}{unit}"
