"""Guidance in a part of the steps, and steps that are not computed: off by default, exact where
they leave nothing out, decided by the step and the state alone, and written into the recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sora_cli.cli.main import main
from sora_cli.errors import UsageError
from sora_cli.eval import sampling
from sora_cli.eval import shortcuts as costs
from sora_cli.eval.judge import Judge
from sora_cli.media import recipe as recipes
from sora_cli.models.specs import FAMILIES, TINY
from sora_cli.pipeline.canvas import Canvas, noise
from sora_cli.pipeline.request import Request, resolve
from sora_cli.pipeline.sampler import (
    Guidance,
    SamplerState,
    Schedule,
    begin,
    denoise,
    make_schedule,
)
from sora_cli.pipeline.shortcuts import every_step, guided_steps, step_cache
from sora_cli.pipeline.units import parse_interval
from sora_cli.runs import checkpoints
from sora_cli.weights import store
from tests.test_resume import Stopping
from tests.test_sampler import context_model, toy_velocity
from tests.tiny_runs import PROMPT, frames_of

SHAPE = (4, 3, 6, 10)
QUIET = ("--progress", "none")
SMALL = ("--size", "64x64", "--num-frames", "9", "--steps", "14", "--no-expand", "--seed", "1")
NONE: frozenset[int] = frozenset()


def run(
    schedule: Schedule, *, threshold: float | None, canvas: Canvas | None = None,
    model: Any = toy_velocity, sampler: Any = "unipc", guidance: Guidance | None = None,
    changes: frozenset[int] = NONE, state: SamplerState | None = None, stop: int | None = None,
) -> SamplerState:  # fmt: skip
    """A run on the toy; from `state` on where one is given."""
    canvas, start = canvas or Canvas.blank(SHAPE), noise(SHAPE, seed=5)
    spared = every_step
    if threshold is not None:
        spared = step_cache(threshold, schedule.sigmas, canvas.made, changes)
    return denoise(
        model, state or begin(start, canvas, schedule), canvas, schedule, noise=start,
        sampler=sampler, guidance=guidance or Guidance(context=None), velocity_at=spared, stop=stop,
    )  # fmt: skip


def counted(calls: list[float], model: Any = toy_velocity) -> Any:
    def counting(latents: Tensor, timesteps: Tensor, context: Any) -> Tensor:
        calls.append(float(timesteps.flatten()[-1]))
        return model(latents, timesteps, context)

    return counting


# ---------------------------------------------------------------- guidance in a part of the steps


@pytest.mark.parametrize(
    ("interval", "total", "wanted"),
    [
        ((0.0, 1.0), 16, range(16)),
        ((0.0, 0.5), 16, range(8)),
        ((0.2, 0.8), 50, range(10, 40)),
        ((0.29, 1.0), 100, range(29, 100)),  # 0.29 · 100 is 28.999… in binary
        ((0.0, 0.01), 16, range(0)),
    ],
)
def test_which_steps_are_guided(interval: tuple[float, float], total: int, wanted: range) -> None:
    assert guided_steps(interval, total) == wanted


@pytest.mark.parametrize("batched", [False, True])
def test_only_the_interval_computes_the_negative_prompt(batched: bool) -> None:
    cond, uncond = torch.tensor([[1.0]]), torch.tensor([[0.5]])
    both = torch.cat([cond, uncond]) if batched else None
    whole = Guidance(context=cond, negative_context=uncond, batched_context=both, scale=4.0)
    schedule = make_schedule(6, 3.0, sampler="euler")
    exact: list[Any] = []
    model = context_model(exact)
    wanted = run(schedule, threshold=None, model=model, guidance=whole, sampler="euler").latents
    same = replace(whole, steps=range(6))
    found = run(schedule, threshold=None, model=model, guidance=same, sampler="euler").latents
    assert torch.equal(found, wanted), "all of the steps is all of it"

    calls: list[Any] = []
    part = replace(whole, steps=range(2, 4))
    run(schedule, threshold=None, model=context_model(calls), guidance=part, sampler="euler")
    alone, guided = [[1.0]], [[1.0, 0.5]] if batched else [[1.0], [0.5]]
    assert [context for _, context in calls] == [*alone * 2, *guided * 2, *alone * 2]


# ---------------------------------------------------------------- steps that are not computed


def test_nothing_is_spared_below_the_smallest_change() -> None:
    schedule = make_schedule(12, 3.0, sampler="unipc")
    exact, cached = run(schedule, threshold=None), run(schedule, threshold=1e-9)
    assert torch.equal(cached.latents, exact.latents) and cached.skipped == 0
    assert exact.computed is None, "off, nothing is remembered"


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_a_velocity_on_a_line_is_followed_exactly(sampler: Any) -> None:
    """What is drawn on instead of computed is exact where the velocity is linear in the noise."""
    base, slope = noise(SHAPE, seed=1), 0.3 * noise(SHAPE, seed=2)
    schedule = make_schedule(20, 3.0, sampler=sampler)
    level = dict(zip(schedule.timesteps, schedule.sigmas, strict=False))

    def model(latents: Tensor, timesteps: Tensor, context: Any) -> Tensor:
        return base + level[float(timesteps[0])] * slope

    # The told timesteps are floats of the schedule, in fp32.
    level = {float(torch.tensor(t)): sigma for t, sigma in level.items()}
    exact = run(schedule, threshold=None, model=model, sampler=sampler)
    cached = run(schedule, threshold=0.9, model=model, sampler=sampler)
    assert cached.skipped == 20 - 3 - 1, "all but the warm-up and the last"
    torch.testing.assert_close(cached.latents, exact.latents, atol=1e-5, rtol=0)


def test_a_larger_threshold_spares_more_and_costs_more() -> None:
    schedule = make_schedule(40, 5.0, sampler="unipc")
    exact = run(schedule, threshold=None).latents
    runs = [run(schedule, threshold=threshold) for threshold in (0.03, 0.08, 0.2)]
    skipped = [state.skipped for state in runs]
    errors = [float((state.latents - exact).norm() / exact.norm()) for state in runs]
    assert skipped == sorted(set(skipped)) and skipped[0] > 0
    assert errors == sorted(errors) and errors[0] < 1e-3 and errors[-1] < 0.1


@settings(max_examples=25, deadline=None)
@given(total=st.integers(1, 40), changes=st.frozensets(st.integers(0, 40), max_size=3))
def test_what_is_computed_in_any_case(total: int, changes: frozenset[int]) -> None:
    """The warm-up, the last step, and two steps wherever the model or its guidance changes."""
    schedule, calls = make_schedule(total, 3.0, sampler="euler"), []
    state = run(schedule, threshold=1.0, model=counted(calls), sampler="euler", changes=changes)
    made = {round(schedule.timesteps.index(min(schedule.timesteps, key=lambda t: abs(t - call))))
            for call in calls}  # fmt: skip
    needed = {0, 1, total - 1, *range(round(0.15 * total))}
    needed |= {step + more for step in changes for more in (0, 1)}
    assert {step for step in needed if step < total} <= made
    assert state.skipped == total - len(made)


def test_velocities_of_what_is_given_decide_nothing() -> None:
    """A model's velocity at given latents means nothing; here it is huge and changes wildly."""
    schedule = make_schedule(30, 3.0, sampler="euler")

    def wild(latents: Tensor, timesteps: Tensor, context: Any) -> Tensor:
        velocity = toy_velocity(latents, timesteps, context)
        velocity[:, :, 1] = 1e4 * torch.sin(timesteps.max())
        return velocity

    canvas = Canvas.blank(SHAPE).give(torch.ones(4, 1, 6, 10), 1)
    tame = run(schedule, threshold=0.1, canvas=canvas, sampler="euler")
    made = run(schedule, threshold=0.1, canvas=canvas, sampler="euler", model=wild)
    assert made.skipped == tame.skipped > 0
    torch.testing.assert_close(made.latents, tame.latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_a_state_on_disk_goes_on_with_the_same_bits(sampler: Any, tmp_path: Path) -> None:
    schedule = make_schedule(24, 3.0, sampler=sampler)
    whole = run(schedule, threshold=0.1, sampler=sampler)
    assert whole.skipped > 3
    for stop in range(1, 24):
        part = run(schedule, threshold=0.1, sampler=sampler, stop=stop)
        checkpoints.save(tmp_path / "s.safetensors", part)
        kept = checkpoints.load(tmp_path / "s.safetensors")
        assert kept is not None and kept.skipped == part.skipped
        rest = run(schedule, threshold=0.1, sampler=sampler, state=kept)
        assert torch.equal(rest.latents, whole.latents) and rest.skipped == whole.skipped, stop


# ---------------------------------------------------------------- as a user meets them


def test_neutral_settings_change_nothing(here: Path) -> None:
    words = ["generate", PROMPT, *SMALL, *QUIET]
    assert main([*words, "-o", "a.mkv"]) == 0
    assert main([*words, "--guidance-interval", "0:1", "--step-cache", "0", "-o", "b.mkv"]) == 0
    assert (frames_of(here / "a.mkv") == frames_of(here / "b.mkv")).all()
    one, two = (recipes.read(here / name) for name in ("a.mkv", "b.mkv"))
    assert set(one) == set(two)
    assert not {"guidance_interval", "step_cache", "skipped_steps", "fp8_matmul"} & set(one)


def test_the_recipe_says_it_and_replay_and_resume_repeat_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sora_cli.runs.run.KEEP_SECONDS", 0)
    monkeypatch.setattr("sora_cli.runs.run.KEEP_SHARE", 1e9)
    shortcuts = ["--guidance-interval", "0:0.6", "--step-cache", "0.6"]
    words = ["generate", PROMPT, *SMALL, *shortcuts, "--sampler", "unipc", *QUIET]
    assert main([*words, "-o", "a.mkv"]) == 0
    recipe = recipes.read(here / "a.mkv")
    assert recipe["guidance_interval"] == [0.0, 0.6] and recipe["step_cache"] == 0.6
    assert 0 < recipe["skipped_steps"] < 14

    capsys.readouterr()
    assert main(["replay", "a.mkv", "-o", "b.mkv", "--json", *QUIET]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["differs"] == {} and said["frames"]["identical"]
    assert main(["replay", "a.mkv", "-o", "c.mkv", "--step-cache", "0.01", "--json", *QUIET]) == 0
    differs = json.loads(capsys.readouterr().out)["differs"]
    assert differs["step_cache"] == {"then": 0.6, "now": 0.01} and "skipped_steps" in differs

    for phase, count in (("denoise", 10), ("decode", 2)):  # mid-way, and with a canvas all made
        assert main([*words, "-o", "d.mkv", "--force"], output=Stopping(phase, count)) == 130
        assert main(["resume", *QUIET]) == 0
        assert (frames_of(here / "d.mkv") == frames_of(here / "a.mkv")).all()
        assert recipes.read(here / "d.mkv")["skipped_steps"] == recipe["skipped_steps"]


@pytest.mark.parametrize(
    ("words", "threshold", "interval"),
    [
        (["--step-cache", "0.2", "--guidance-interval", "0:.5"], 0.2, [0.0, 0.5]),
        (["--fast"], 0.1, [0.0, 0.5]),
        (["--fast", "--step-cache", "0"], None, [0.0, 0.5]),
        (["--guidance-interval", "0:.75", "--fast"], 0.1, [0.0, 0.75]),
        ([], None, None),
    ],
)
def test_a_dry_run_says_it(
    words: list[str], threshold: float | None, interval: list[float] | None, here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """`--fast` is two of them, where they are not typed, and is never on by itself."""
    assert main(["generate", PROMPT, *SMALL, *words, "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said.get("step_cache"), said.get("guidance_interval")) == (threshold, interval)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"guidance_interval": (0.5, 0.5)}, "two rising numbers from 0 to 1, not 0.5:0.5"),
        ({"guidance_interval": (-0.1, 1.0)}, "two rising numbers"),
        ({"guidance_interval": (0.0, float("nan"))}, "two rising numbers"),
        ({"guidance_interval": (0, 10**400)}, "two rising numbers"),
        ({"guidance_interval": (0.0, 0.5), "guidance_scale": 1.0}, "nothing to leave out"),
        ({"step_cache": -1.0}, "--step-cache must be a number"),
        ({"step_cache": float("nan")}, "--step-cache must be a number"),
        ({"step_cache": 0.1, "sampler": "renoise"}, "cannot be used with --sampler renoise"),
        ({"fp8_matmul": "all"}, "--fp8-matmul 'all' is unknown"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        resolve(Request(prompt="a ball", **choices), TINY)
    assert "\n" not in caught.value.message and caught.value.hint


def test_one_expert_that_is_guided_is_enough() -> None:
    spec = FAMILIES["wan2.2-t2v-a14b"]
    request = Request(prompt="p", guidance_scale=1.0, guidance_interval=(0.0, 0.5))
    with pytest.raises(UsageError, match="guidance is off"):
        resolve(request, spec)
    settings_, _ = resolve(replace(request, guidance_scale_2=3.0), spec)
    assert settings_.guidance_interval == (0.0, 0.5)


def test_an_interval_is_read() -> None:
    assert parse_interval("0:0.5") == (0.0, 0.5) and parse_interval(" .2 : 1 ") == (0.2, 1.0)
    for text in ("", "0.5", "0-1", "a:b", "1:2:3", "-1:1"):
        with pytest.raises(UsageError, match="cannot read the interval"):
            parse_interval(text)


def test_they_stand_under_one_heading_in_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--help"]) == 0
    options, _, shortcuts = capsys.readouterr().out.partition("\nShortcuts (")
    for flag in ("--fast", "--guidance-interval", "--step-cache", "--fp8-matmul"):
        assert flag in shortcuts and flag not in options


# ---------------------------------------------------------------- what they cost


def test_their_costs_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exact against itself costs nothing, less work is less work, nothing is made twice."""
    judge, tiny = Judge().eval(), store.locate("tiny")
    spec = replace(tiny.spec, width=64, height=64, num_frames=9, num_inference_steps=8)
    monkeypatch.setattr(store, "locate", lambda name: replace(tiny, spec=spec))
    monkeypatch.setattr(sampling, "obtain_judge", lambda *_, **__: judge)
    monkeypatch.setattr(costs, "WAN_STEPS", 12)
    monkeypatch.setattr(costs, "WAN_LATENTS", (16, 2, 8, 8))
    half, *_, often, _, eight = costs.SHORTCUTS[1:]
    monkeypatch.setattr(costs, "SHORTCUTS", (half, often, eight))
    monkeypatch.setattr(costs, "SOLVERS", ())
    words = ["--samples", "1", "--networks", "1", "--device", "cpu", "--out", str(tmp_path)]
    words += ["--work", str(tmp_path / "work")]
    assert costs.main(words) == 0
    found = json.loads((tmp_path / "shortcuts.json").read_text())
    exact, gated, *_ = found["ways"]
    assert (exact["work"], exact["time"], exact["error"], exact["skipped"]) == (1, 1, 0, 0)
    assert gated["name"] == "--guidance-interval 0:0.5" and gated["work"] == 0.75
    assert 0 < gated["error"] < 1 and gated["psnr"] > 10
    by_name = {row["name"]: row for row in found["random"]}
    cached = by_name["--step-cache 0.3"]
    assert cached["skipped"] > 0 and cached["work"] == pytest.approx(1 - cached["skipped"] / 12)
    rounded = by_name["--fp8-matmul ffn"]
    assert rounded["time"] is None and 0 < rounded["error"] < 0.1
    text = (tmp_path / "shortcuts.md").read_text()
    assert "| --guidance-interval 0:0.5 | 0.75 |" in text and str(tmp_path) not in text
    capsys.readouterr()
    assert costs.main(words) == 0
    assert len(list((tmp_path / "work").glob("*.safetensors"))) == len(found["ways"])
    assert costs.main(["--samples", "-1"]) == 2
