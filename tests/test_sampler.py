"""The samplers against diffusers' schedulers, guidance, and what denoise promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sora_cli.pipeline.canvas import Canvas, noise
from sora_cli.pipeline.events import Event
from sora_cli.pipeline.sampler import (
    Guidance,
    SamplerState,
    begin,
    denoise,
    guide,
    make_schedule,
    predict,
    sample,
    sigma_grid,
    timesteps_from,
)
from tests import figures

SHAPE = (4, 3, 6, 10)  # C, T, H, W
CASES = [(steps, grid) for steps in (50, 20, 4) for grid in ("diffusers", "original")]


def toy_velocity(latents: Tensor, timesteps: Tensor, context: Any) -> Tensor:
    """A fixed, nonlinear denoiser in place of the transformer: x0 = tanh(2·x·(1.2 - σ))."""
    level = timesteps.to(latents).reshape(timesteps.shape[0], 1, -1, 1, 1) / 1000
    return (latents - torch.tanh(2 * latents * (1.2 - level))) / level.clamp(min=0.01)


def even_sigmas(steps: int, grid: str) -> np.ndarray:
    """The grids as wan.md's sources write them, before the shift."""
    first, last = {"diffusers": (1, 0.001), "original": (0.999, 0)}[grid]
    return np.linspace(first, last, steps + 1)[:-1]


def diffusers_trajectory(scheduler: Any, whole_timesteps: bool) -> list[Tensor]:
    latents = noise(SHAPE, seed=3)
    trajectory = []
    scheduler.set_begin_index(0)
    for timestep in scheduler.timesteps:
        told = timestep.long() if whole_timesteps else timestep
        velocity = toy_velocity(latents, told.expand(1), None)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        trajectory.append(latents)
    return trajectory


def our_trajectory(steps: int, shift: float, sampler: Any, grid: Any) -> list[Tensor]:
    """Our latents after each step, taken from what the model is shown at the next."""
    shown: list[Tensor] = []

    def model(latents: Tensor, timesteps: Tensor, context: Any) -> Tensor:
        shown.append(latents)
        return toy_velocity(latents, timesteps, context)

    schedule = make_schedule(steps, shift, sampler=sampler, grid=grid)
    start = noise(SHAPE, seed=3)
    end = sample(
        model, start, Canvas.blank(SHAPE), schedule, sampler=sampler, guidance=Guidance(context=0)
    )
    return [*shown[1:], end]


def worst(ours: list[Tensor], theirs: list[Tensor]) -> float:
    assert len(ours) == len(theirs)
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("steps", "grid"), CASES)
@pytest.mark.parametrize("shift", [3.0, 5.0])
def test_unipc_follows_diffusers(steps: int, grid: str, shift: float) -> None:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    if grid == "diffusers":
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(sigmas=even_sigmas(steps, grid))
    theirs = diffusers_trajectory(scheduler, whole_timesteps=True)
    difference = worst(our_trajectory(steps, shift, "unipc", grid), theirs)
    figures.within(1e-6, f"UniPC, {steps} steps, {grid} grid, shift {shift:g}", difference)


@pytest.mark.parametrize(("steps", "grid"), CASES)
def test_euler_follows_diffusers(steps: int, grid: Any) -> None:
    """Bit for bit when diffusers is handed our sigmas: it shifts its own in float32."""
    schedule = make_schedule(steps, 3.0, sampler="euler", grid=grid)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=schedule.sigmas[:-1])
    theirs = diffusers_trajectory(scheduler, whole_timesteps=grid == "original")
    difference = worst(our_trajectory(steps, 3.0, "euler", grid), theirs)
    figures.within(0, f"Euler, {steps} steps, {grid} grid", difference)

    shifting = FlowMatchEulerDiscreteScheduler(shift=3.0)
    shifting.set_timesteps(sigmas=even_sigmas(steps, grid))
    np.testing.assert_allclose(schedule.sigmas, shifting.sigmas, atol=1.2e-7, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 16.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 50, 333, 1000])
def test_timesteps_and_sigmas_are_diffusers_own(steps: int, shift: float) -> None:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(steps)
    schedule = make_schedule(steps, shift, sampler="unipc")
    assert list(schedule.timesteps) == scheduler.timesteps.tolist()
    assert list(schedule.sigmas) == scheduler.sigmas.tolist()


def test_the_two_grids_differ_as_published() -> None:
    assert sigma_grid(50, 5.0, "diffusers")[-2] == pytest.approx(0.0968, abs=5e-5)
    assert sigma_grid(50, 5.0, "original")[-2] == pytest.approx(0.0925, abs=5e-5)


def test_timesteps_are_cut_not_rounded() -> None:
    assert timesteps_from((0.9999, 0.5, 0.0), truncate=True) == (999.0, 500.0)
    assert timesteps_from((0.9999, 0.5, 0.0), truncate=False) == (0.9999 * 1000, 500.0)


@given(
    steps=st.integers(1, 60),
    shift=st.floats(0.5, 20),
    sampler=st.sampled_from(["euler", "unipc"]),
    grid=st.sampled_from(["diffusers", "original"]),
)
def test_sigmas_fall_to_zero(steps: int, shift: float, sampler: Any, grid: Any) -> None:
    schedule = make_schedule(steps, shift, sampler=sampler, grid=grid)
    assert len(schedule.sigmas) == len(schedule.timesteps) + 1 == steps + 1
    assert schedule.sigmas[-1] == 0 and 0 < schedule.sigmas[0] <= 1
    assert all(a > b for a, b in zip(schedule.sigmas, schedule.sigmas[1:], strict=False))


@settings(deadline=None, max_examples=20)
@given(steps=st.integers(1, 12), sampler=st.sampled_from(["euler", "unipc"]))
def test_a_straight_path_is_followed_exactly(steps: int, sampler: Any) -> None:
    """With the true velocity of one target, every number of steps ends at that target."""
    start, target = noise(SHAPE, seed=0), noise(SHAPE, seed=1)
    schedule = make_schedule(steps, 3.0, sampler=sampler)
    made = sample(
        lambda latents, timesteps, context: start - target,
        start,
        Canvas.blank(SHAPE),
        schedule,
        sampler=sampler,
        guidance=Guidance(context=None),
    )
    torch.testing.assert_close(made, target, atol=2e-5, rtol=0)


def test_guide() -> None:
    cond, uncond = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    assert torch.equal(guide(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond)
    torch.testing.assert_close(guide(cond, uncond, 3.0), torch.tensor([2.0, 8.0]))


def context_model(calls: list[tuple[int, Any]]) -> Any:
    """A model whose velocity depends on the context, and which notes its calls."""

    def model(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        calls.append((latents.shape[0], context.flatten().tolist()))
        return toy_velocity(latents, timesteps, None) * context.view(-1, 1, 1, 1, 1)

    return model


def run_guided(guidance: Guidance, canvas: Canvas | None = None) -> tuple[Tensor, list[Any]]:
    calls: list[Any] = []
    schedule = make_schedule(4, 3.0, sampler="unipc")
    made = sample(
        context_model(calls),
        noise(SHAPE, seed=5),
        canvas or Canvas.blank(SHAPE),
        schedule,
        sampler="unipc",
        guidance=guidance,
    )
    return made, calls


@pytest.mark.parametrize("with_given", [False, True])
def test_batched_guidance_equals_in_turn(with_given: bool) -> None:
    canvas = Canvas.blank(SHAPE)
    if with_given:
        canvas = canvas.give(torch.ones(4, 1, 6, 10), 0)
    cond, uncond = torch.tensor([[1.0]]), torch.tensor([[0.4]])
    in_turn, calls = run_guided(Guidance(context=cond, negative_context=uncond, scale=4.0), canvas)
    assert [rows for rows, _ in calls] == [1] * 8
    batched, calls = run_guided(
        Guidance(
            context=cond,
            negative_context=uncond,
            batched_context=torch.cat([cond, uncond]),
            scale=4.0,
        ),
        canvas,
    )
    assert [rows for rows, _ in calls] == [2] * 4
    torch.testing.assert_close(batched, in_turn, atol=1e-6, rtol=0)


def test_batched_guidance_says_that_both_rows_are_one() -> None:
    """By a view that takes no memory of its own; of more canvases each row is another."""
    seen: list[tuple[Tensor, Tensor]] = []

    def model(latents: Tensor, timesteps: Tensor, context: Any) -> Tensor:
        seen.append((latents, timesteps))
        return latents

    guidance = Guidance(context=None, negative_context=None, batched_context=object(), scale=2.0)
    for batch in (1, 3):
        latents = torch.randn(batch, 4, 1, 6, 10, generator=torch.Generator().manual_seed(1))
        assert torch.equal(predict(model, latents, torch.ones(batch, 2), guidance), latents)
    assert [tensor.stride(0) == 0 for pair in seen for tensor in pair] == [True, True, False, False]


def test_guidance_scale_one_computes_the_prompt_only() -> None:
    cond = torch.tensor([[1.0]])
    alone, _ = run_guided(Guidance(context=cond))
    made, calls = run_guided(
        Guidance(
            context=cond,
            negative_context=torch.zeros(1, 1),
            batched_context=torch.tensor([[1.0], [0.0]]),
            scale=1.0,
        )
    )
    assert calls == [(1, [1.0])] * 4
    assert torch.equal(made, alone)


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_given_latents_enter_clean_at_timestep_zero(sampler: Any) -> None:
    given_latents = noise(SHAPE, seed=9)[0, :, :1]
    canvas = Canvas.blank(SHAPE).give(given_latents, 0)
    schedule = make_schedule(6, 3.0, sampler=sampler)
    told: list[Tensor] = []

    def model(latents: Tensor, timesteps: Tensor, context: Any) -> Tensor:
        assert torch.equal(latents[0, :, :1], given_latents)
        told.append(timesteps)
        return toy_velocity(latents, timesteps, context)

    guidance = Guidance(context=None)
    start = noise(SHAPE, seed=2)
    made = sample(model, start, canvas, schedule, sampler=sampler, guidance=guidance)
    assert torch.equal(made[0, :, :1], given_latents)
    for timesteps, timestep in zip(told, schedule.timesteps, strict=True):
        assert timesteps.tolist() == [pytest.approx([0.0, timestep, timestep])]


def test_given_latents_do_not_disturb_the_others_sampler() -> None:
    """The samplers work on each token alone: the free ones come out as without the given ones,
    for a model that looks at each token alone."""
    schedule = make_schedule(8, 3.0, sampler="unipc")
    guidance = Guidance(context=None)
    free = sample(
        toy_velocity,
        noise(SHAPE, seed=2),
        Canvas.blank(SHAPE),
        schedule,
        sampler="unipc",
        guidance=guidance,
    )
    canvas = Canvas.blank(SHAPE).give(torch.full((4, 1, 6, 10), 2.0), 2)
    made = sample(
        toy_velocity, noise(SHAPE, seed=2), canvas, schedule, sampler="unipc", guidance=guidance
    )
    torch.testing.assert_close(made[:, :, :2], free[:, :, :2], atol=1e-6, rtol=0)


def test_every_step_is_reported() -> None:
    events: list[Event] = []
    sample(
        toy_velocity,
        noise(SHAPE, seed=0),
        Canvas.blank(SHAPE),
        make_schedule(3, 3.0, sampler="euler"),
        sampler="euler",
        guidance=Guidance(context=None),
        observer=events.append,
    )
    assert events == [Event(phase="denoise", step=step, total=3) for step in (1, 2, 3)]
    assert [event.finished for event in events] == [False, False, True]


def test_latents_stay_fp32_under_a_bf16_model() -> None:
    def model(latents: Tensor, timesteps: Tensor, context: Any) -> Tensor:
        return toy_velocity(latents, timesteps, context).bfloat16()

    made = sample(
        model,
        noise(SHAPE, seed=0),
        Canvas.blank(SHAPE),
        make_schedule(3, 3.0, sampler="unipc"),
        sampler="unipc",
        guidance=Guidance(context=None, negative_context=None, scale=2.0),
    )
    assert made.dtype == torch.float32


def test_fixed_levels_are_taken_as_they_are() -> None:
    """LightX2V's four and FastWan's three; other numbers of steps lie on the line through them."""
    levels = (1.0, 0.9375, 0.8333, 0.625)
    schedule = make_schedule(4, 5.0, sampler="euler", fixed_sigmas=levels)
    assert schedule.sigmas == pytest.approx((*levels, 0.0))
    schedule = make_schedule(2, 5.0, sampler="euler", fixed_sigmas=levels)
    assert schedule.sigmas == pytest.approx((1.0, 0.8333, 0.0))
    schedule = make_schedule(8, 5.0, sampler="euler", fixed_sigmas=levels)
    assert schedule.sigmas[::2] == pytest.approx((*levels, 0.0))


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
@pytest.mark.parametrize("level", [0.01, 0.3, 0.6, 0.9999])
def test_a_schedule_begins_exactly_where_it_is_told(sampler: Any, level: float) -> None:
    """With every level of the whole one below, none above, and as many timesteps as steps."""
    whole = make_schedule(8, 3.0, sampler=sampler)
    part = make_schedule(8, 3.0, sampler=sampler, begin_at=level)
    assert part.sigmas[0] == pytest.approx(level, abs=1e-6)
    assert part.sigmas[1:] == tuple(sigma for sigma in whole.sigmas if sigma < level)
    assert len(part.timesteps) == len(part.sigmas) - 1
    assert part.timesteps[1:] == whole.timesteps[len(whole.timesteps) - len(part.timesteps) + 1 :]


def test_renoise_ends_at_the_prediction_and_draws_the_same_again() -> None:
    levels = (1.0, 0.757, 0.522)
    schedule = make_schedule(3, 8.0, sampler="renoise", fixed_sigmas=levels)
    start, guidance = noise(SHAPE, seed=4), Guidance(context=None)
    states: list[SamplerState] = []
    options: Any = {"noise": start, "sampler": "renoise", "guidance": guidance}
    canvas = Canvas.blank(SHAPE)
    end = denoise(
        toy_velocity,
        begin(start, canvas, schedule, 9),
        canvas,
        schedule,
        keep=states.append,
        **options,
    )
    again = denoise(toy_velocity, states[0], canvas, schedule, **options)
    assert torch.equal(again.latents, end.latents)
    before = states[1].latents
    timestep = canvas.timesteps(schedule.timesteps[2], 1)
    x0 = before - schedule.sigmas[2] * toy_velocity(before, timestep, None)
    assert torch.equal(end.latents, x0)
    other = denoise(toy_velocity, begin(start, canvas, schedule, 8), canvas, schedule, **options)
    assert not torch.equal(other.latents, end.latents)


@pytest.mark.parametrize("sampler", ["euler", "unipc", "renoise"])
def test_a_run_taken_up_at_any_step_ends_with_the_same_bits(sampler: Any) -> None:
    schedule = make_schedule(7, 3.0, sampler=sampler)
    start, canvas = noise(SHAPE, seed=5), Canvas.blank(SHAPE)
    options: Any = {"noise": start, "sampler": sampler, "guidance": Guidance(context=None)}
    states = [begin(start, canvas, schedule, 3)]
    end = denoise(toy_velocity, states[0], canvas, schedule, keep=states.append, **options)
    for state in states:
        again = denoise(toy_velocity, state, canvas, schedule, **options)
        assert torch.equal(again.latents, end.latents)
    half = denoise(toy_velocity, states[0], canvas, schedule, stop=4, **options)
    assert half.step == 4 and torch.equal(half.latents, states[4].latents)
