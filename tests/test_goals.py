"""What a GPU's figures are held to, and the pages that are written of them, from figures alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sora_cli.bench import __main__ as bench
from sora_cli.bench import breakdown, goals, report
from sora_cli.bench.cases import CUDA_CASES
from sora_cli.bench.goals import Goal
from sora_cli.bench.measure import Conditions, measure
from sora_cli.models.fused import take_notes


def figures(**more: Any) -> dict[str, Any]:
    """A step of 2 TFLOP, half of it attention, in 10 ms on a card of 500 and 250 TFLOP/s."""
    row = {"name": "a", "dtype": "bfloat16", "ours_s": 0.01, "theirs_s": 0.02, "ratio": 2.0,
           "flops": int(2e12), "share_of_matmul_rate": 0.4, "peak_memory": int(3e9)}  # fmt: skip
    beside = {"what": "a step", "attention_flops": int(1e12), "predicted_memory": int(4e9),
              "compiled_ratio": 0.9, "size": int(5e8), "goals": [], "theirs_peak_memory": int(2e9),
              "breakdown": {"ours": {breakdown.PYTHON: 0.02}},
              "variants": {goals.THEIRS_FP32: 0.05, "without kernels": 0.012}} | more  # fmt: skip
    rates = {
        "matmul 8192³": 500e3, "attention, 16,384 tokens, cudnn": 200e3,
        "attention, 32,768 tokens, flash": 250e3, "attention, 16,384 tokens, math": None,
    }  # fmt: skip
    ceilings = [{"name": name, "dtype": "bfloat16", "rate": rate} for name, rate in rates.items()]
    return {"workloads": [row], "details": [beside], "ceilings": ceilings}


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (Goal(kind="ratio", bound=2.0), 2.0, True),
        (Goal(kind="compiled", bound=1.0), 0.9, False),
        (Goal(kind="fp32", bound=5.0), 5.0, True),
        (Goal(kind="seconds", bound=0.5, times=50), 0.5, True),
        (Goal(kind="seconds", bound=0.009), 0.01, False),
        (Goal(kind="floor", bound=0.61), 0.6, False),  # 4 ms of attention, 2 ms of the rest
        (Goal(kind="rate", bound=10), 50.0, True),
        (Goal(kind="memory", bound=2.9), 3.0, False),
        (Goal(kind="multiple", bound=0.49), 0.5, False),
        (Goal(kind="flat", bound=1.5), 1.5, True),
        (Goal(kind="busy", bound=0.97), 0.98, True),
    ],
)
def test_a_goal_is_met_or_not(goal: Goal, value: float, met: bool) -> None:
    result = figures()
    found = goals.value(goal, result, result["workloads"][0], result["details"][0])
    assert found == pytest.approx(value) and goal.met(found) == met


def test_what_was_not_measured_is_said_to_be_so() -> None:
    result = figures(goals=[vars_of(Goal(kind="compiled", bound=1.05))])
    del result["details"][0]["compiled_ratio"]
    (line,) = goals.goal_rows(result)
    assert line == ["a step", "against diffusers compiled", "≥ 1.05×", "", "not measured"]


def vars_of(goal: Goal) -> dict[str, Any]:
    return {"kind": goal.kind, "bound": goal.bound, "times": goal.times, "what": goal.what}


def test_a_line_says_floor_memory_and_other_ways() -> None:
    result = figures()
    (line,) = goals.floor_rows(result)
    assert line == [
        "a step", "0.01 s", "0.006 s", "60%", "3.00 of 4.00 GB planned",
        "diffusers in fp32 0.05 s; without kernels 0.012 s",
    ]  # fmt: skip
    result["ceilings"] = []
    assert goals.floor(result, result["workloads"][0], result["details"][0]) is None


def test_older_figures_make_the_same_page() -> None:
    """Those of the CPU have no goals, and keep their page."""
    found = json.loads(Path("docs/reference/speed.json").read_text(encoding="utf-8"))
    page = report.markdown(found)
    assert "## Targets" not in page and "## Floors" not in page


def test_published_workloads_have_the_goals_that_they_were_given() -> None:
    kinds = {case.name: [goal.kind for goal in case.goals] for case in CUDA_CASES}
    assert all(kinds.values())
    assert kinds["1.3b-480p-step"] == ["seconds", "ratio", "compiled", "floor", "memory"]
    for case in CUDA_CASES:
        targets = [goal.bound for goal in case.goals if goal.kind == "ratio"]
        assert targets == ([] if case.target is None else [case.target])


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("1.3b-480p-step", 4, 6), ("5b-704p-step", 11.5, 14), ("umt5-xxl", 11, 12.5)],
)
def test_the_planner_expects_what_the_goals_allow(name: str, low: float, high: float) -> None:
    """With the network alone on the card, in bfloat16, one row of guidance after the other."""
    (case,) = (case for case in CUDA_CASES if case.name == name)
    predicted = case.predicted_memory("bfloat16", "cuda", 1)
    assert predicted is not None and low < predicted / 1e9 < high


def test_one_failing_way_does_not_cost_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler of theirs that gives up leaves the row, and a note of it."""
    from sora_cli.bench import theirs

    def fails(_: object) -> None:
        raise TypeError("no such kernel")

    monkeypatch.setattr(theirs, "compile_blocks", fails)
    (case,) = (case for case in CUDA_CASES if case.name == "14b-blocks-480p")
    on = Conditions(table="cuda", device=torch.device("cpu"), scale=0.04, rounds=1, seconds=5,
                    compiled=True)  # fmt: skip
    row, beside = measure(bench.scaled(replace(case, goals=()), 0.04), "bfloat16", on)
    assert row.ratio is not None and "compiled_ratio" not in beside
    assert beside["notes"] == ["diffusers compiled: TypeError: no such kernel"]
    assert take_notes() == ()
