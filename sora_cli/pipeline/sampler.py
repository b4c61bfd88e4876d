"""From noise to latents: the sigma grid, guidance, Euler and UniPC, and the denoising loop.

Rectified flow: x_σ = (1 - σ)·x0 + σ·noise, velocity = noise - x0, denoised = x_σ - σ·velocity.
Everything is a pure function; a sampler takes a frozen state and returns the next one. The
coefficients are Python floats (float64), the latents fp32.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sora_cli.models.specs import SamplerName, SigmaGrid
from sora_cli.pipeline.canvas import Canvas
from sora_cli.pipeline.events import Event, Observer, ignore
from sora_cli.pipeline.shortcuts import Computed, Velocity, every_step

NUM_TRAIN_TIMESTEPS = 1000

# The first and last sigma before the shift, and n+1 of them evenly spaced, the last one replaced
# by 0. diffusers: UniPCMultistepScheduler(use_flow_sigmas=True). original: Wan's FlowUniPC.
_GRID_ENDS: dict[SigmaGrid, tuple[float, float]] = {
    "diffusers": (1.0, 1 / NUM_TRAIN_TIMESTEPS),
    "original": (1 - 1 / NUM_TRAIN_TIMESTEPS, 0.0),
}

# (latents [B, C, T, H, W], timesteps [B] or [B, T] in 0..1000, context) → velocity, as latents.
Model = Callable[[Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """n steps of sampling.

    sigmas: n + 1 noise levels, falling to 0, each a float32 number.
    timesteps: n values in 0..1000, what the model is told at each step.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """Classifier-free guidance (arXiv 2207.12598) and the text it compares.

    scale: 1 = the prompt alone; above, away from the negative prompt.
    context: the prompt's, in the form the model takes.
    negative_context: the negative prompt's; None only with scale 1.
    batched_context: both, as a batch [context; negative_context]: then the model is called once
        on two rows instead of twice on one. Faster while memory lasts.
    steps: those that are guided, the others go by the prompt alone; None = all.
    """

    context: Any
    negative_context: Any = None
    batched_context: Any = None
    scale: float = 1.0
    steps: range | None = None

    def at(self, step: int) -> Guidance:
        """What holds at a step."""
        return self if self.steps is None or step in self.steps else replace(self, scale=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerState:
    """Where sampling stands before step `step`.

    latents: at sigmas[step], [B, C, T, H, W].
    corrected: UniPC's latents at sigmas[step - 1], after its corrector.
    denoised: predictions of x0 at the steps before, newest last; as many as the sampler needs.
    seed: of the noise that "renoise" draws at each step.
    computed: the last step that was computed, where later ones may use it again (`shortcuts`).
    """

    latents: Tensor
    step: int = 0
    corrected: Tensor | None = None
    denoised: tuple[Tensor, ...] = ()
    seed: int = 0
    computed: Computed | None = None

    @property
    def skipped(self) -> int:
        """Steps so far that used the velocity of an earlier one."""
        return 0 if self.computed is None else self.computed.skipped

    def to(self, device: torch.device | str) -> SamplerState:
        """The same state on another device."""
        return replace(
            self,
            latents=self.latents.to(device),
            corrected=None if self.corrected is None else self.corrected.to(device),
            denoised=tuple(tensor.to(device) for tensor in self.denoised),
            computed=None if self.computed is None else self.computed.to(device),
        )


Advance = Callable[[SamplerState, Tensor, Sequence[float]], SamplerState]


def sigma_grid(
    num_inference_steps: int, shift: float, grid: SigmaGrid = "diffusers"
) -> tuple[float, ...]:
    """n + 1 sigmas from (about) 1 to 0 in float64, after the shift.

    The shift s moves steps to where there is more noise, σ' = s·σ / (1 + (s - 1)·σ), for the
    larger canvases (Esser et al., arXiv 2403.03206, eq. 23).
    """
    assert num_inference_steps >= 1 and shift > 0
    first, last = _GRID_ENDS[grid]
    width = (last - first) / num_inference_steps
    even = [first + i * width for i in range(num_inference_steps)]
    return (*(shift * sigma / (1 + (shift - 1) * sigma) for sigma in even), 0.0)


def timesteps_from(sigmas: Sequence[float], *, truncate: bool) -> tuple[float, ...]:
    """What the model is told at each step: 1000·σ, cut to whole numbers where the source does."""
    timesteps = [sigma * NUM_TRAIN_TIMESTEPS for sigma in sigmas[:-1]]
    return tuple(float(int(timestep)) if truncate else timestep for timestep in timesteps)


def make_schedule(
    num_inference_steps: int,
    shift: float,
    *,
    sampler: SamplerName,
    grid: SigmaGrid = "diffusers",
    fixed_sigmas: tuple[float, ...] | None = None,
    begin_at: float = 1.0,
) -> Schedule:
    """The schedule that the published pipelines use for this sampler and grid.

    fixed_sigmas: the levels of a few-step model instead of the grid, without the final 0; where
        another number of steps is asked for, they are read off the line through them.
    begin_at: the level to begin exactly at, with what is below it (SDEdit, arXiv 2108.01073).

    UniPC needs log(1 - σ), so its first sigma is at most 1 - 1e-6. Wan's own code and diffusers'
    UniPC give the model whole timesteps; diffusers' Euler gives it fractions.
    """
    if fixed_sigmas is not None:
        sigmas = (*_resampled(fixed_sigmas, num_inference_steps), 0.0)
    else:
        sigmas = sigma_grid(num_inference_steps, shift, grid)
    if begin_at < 1:
        sigmas = (begin_at, *(sigma for sigma in sigmas if sigma < begin_at))
    if sampler == "unipc":
        sigmas = (min(sigmas[0], 1 - 1e-6), *sigmas[1:])
    # Both sources store sigmas as float32. UniPC feels it: 1 - σ of the first one changes by 1 %.
    stored = tuple(map(_float32, sigmas))
    if sampler == "unipc" or grid == "original":
        return Schedule(sigmas=stored, timesteps=timesteps_from(sigmas, truncate=True))
    return Schedule(sigmas=stored, timesteps=timesteps_from(stored, truncate=False))


def _resampled(levels: tuple[float, ...], count: int) -> tuple[float, ...]:
    """`count` levels on the line through (*levels, 0); the levels themselves for their number."""
    line, last = (*levels, 0.0), len(levels)
    places = [i * last / count for i in range(count)]
    return tuple(
        line[int(at)] + (at - int(at)) * (line[int(at) + 1] - line[int(at)]) for at in places
    )


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """The guided velocity: from the negative prompt's past the prompt's, `scale` times as far."""
    return uncond + scale * (cond - uncond)


def predict(model: Model, latents: Tensor, timesteps: Tensor, guidance: Guidance) -> Tensor:
    """The velocity at one step, guided: one call of the model, or two, or one on a double batch.

    With scale 1 the negative prompt is not computed. Guidance is in the latents' dtype.
    """
    if guidance.scale == 1:
        return model(latents, timesteps, guidance.context).to(latents.dtype)
    if guidance.batched_context is not None:
        both = model(_twice(latents), _twice(timesteps), guidance.batched_context)
        cond, uncond = both.to(latents.dtype).chunk(2)
    else:
        cond = model(latents, timesteps, guidance.context).to(latents.dtype)
        uncond = model(latents, timesteps, guidance.negative_context).to(latents.dtype)
    return guide(cond, uncond, guidance.scale)


def _twice(rows: Tensor) -> Tensor:
    """`[B, ...]` to `[2B, ...]`: of one row a view, by which the model knows that both are one."""
    return rows.expand(2, *rows.shape[1:]) if rows.shape[0] == 1 else torch.cat([rows, rows])


def euler(state: SamplerState, velocity: Tensor, sigmas: Sequence[float]) -> SamplerState:
    """One Euler step along the velocity: x' = x + (σ' - σ)·velocity."""
    change = sigmas[state.step + 1] - sigmas[state.step]
    return replace(state, latents=state.latents + change * velocity, step=state.step + 1)


def unipc(state: SamplerState, velocity: Tensor, sigmas: Sequence[float]) -> SamplerState:
    """One step of UniPC, order 2, B(h) = e^h - 1, first order at both ends (arXiv 2302.04867).

    The velocity first corrects the latents that the last step predicted, then the next ones are
    predicted. Wan's default; equal to diffusers' UniPCMultistepScheduler.
    """
    step, latents = state.step, state.latents
    denoised = (*state.denoised[-2:], latents - sigmas[step] * velocity)
    if state.corrected is not None:
        latents = _correct(state.corrected, denoised, sigmas, step)
    return replace(
        state,
        latents=_predict_next(latents, denoised, sigmas, step),
        step=step + 1,
        corrected=latents,
        denoised=denoised,
    )


def renoise(state: SamplerState, velocity: Tensor, sigmas: Sequence[float]) -> SamplerState:
    """Predict x0 and noise it afresh to the next level: few-step models trained by DMD (FastWan).

    x' = (1 - σ')·x0 + σ'·ε, with ε drawn on the CPU from the state's seed and the step's number,
    so that a run that is taken up again draws the same.
    """
    sigma, next_sigma = sigmas[state.step], sigmas[state.step + 1]
    latents = state.latents - sigma * velocity
    if next_sigma > 0:
        generator = torch.Generator("cpu").manual_seed((state.seed << 10 | state.step) % 2**63)
        fresh = torch.randn(latents.shape, generator=generator).to(latents)
        latents = (1 - next_sigma) * latents + next_sigma * fresh
    return replace(state, latents=latents, step=state.step + 1)


SAMPLERS: dict[SamplerName, Advance] = {"euler": euler, "unipc": unipc, "renoise": renoise}


def begin(noise: Tensor, canvas: Canvas, schedule: Schedule, seed: int = 0) -> SamplerState:
    """The state before the first step: noise [B, C, T, H, W], with what is given held in it."""
    return SamplerState(latents=canvas.hold(noise, schedule.sigmas[0], noise), seed=seed)


@torch.no_grad()
def denoise(
    model: Model,
    state: SamplerState,
    canvas: Canvas,
    schedule: Schedule,
    *,
    noise: Tensor,
    sampler: SamplerName,
    guidance: Guidance,
    velocity_at: Velocity = every_step,
    stop: int | None = None,
    observer: Observer = ignore,
    keep: Callable[[SamplerState], None] | None = None,
) -> SamplerState:
    """Makes what the canvas does not know yet: from the state's step up to `stop`.

    Given latents enter the model as the canvas says and come back unchanged, bit for bit.

    Args:
        model: latents, timesteps, context → velocity; it casts to its own dtype.
        state: from `begin`, or a later one of the same run.
        noise: what the run began with, [B, C, T, H, W] fp32, on the model's device, as the canvas.
        velocity_at: computes each step's velocity, or finds that an earlier one will do.
        stop: the step to stop before; None = the end.
        observer: hears of every finished step (phase "denoise").
        keep: gets every state after its step, to write it down.

    Returns:
        the state; at the end its latents are the normalised latents [B, C, T, H, W] fp32.
    """
    advance, total = SAMPLERS[sampler], len(schedule.timesteps)
    while state.step < (total if stop is None else stop):
        sigmas, step = schedule.sigmas, state.step
        timesteps = canvas.timesteps(schedule.timesteps[step], batch=noise.shape[0])
        compute = partial(predict, model, state.latents, timesteps, guidance.at(step))
        velocity, computed = velocity_at(compute, state.computed, step)
        state = advance(replace(state, computed=computed), velocity, sigmas)
        state = replace(state, latents=canvas.hold(state.latents, sigmas[state.step], noise))
        if keep is not None:
            keep(state)
        observer(Event(phase="denoise", step=state.step, total=total, skipped=state.skipped))
    return state


def sample(
    model: Model,
    noise: Tensor,
    canvas: Canvas,
    schedule: Schedule,
    *,
    sampler: SamplerName,
    guidance: Guidance,
    velocity_at: Velocity = every_step,
    observer: Observer = ignore,
) -> Tensor:
    """`denoise` from beginning to end with one model: the normalised latents."""
    state = begin(noise, canvas, schedule)
    state = denoise(
        model, state, canvas, schedule, noise=noise, sampler=sampler, guidance=guidance,
        velocity_at=velocity_at, observer=observer,
    )  # fmt: skip
    return state.latents


def _order(step: int, sigmas: Sequence[float]) -> int:
    """UniPC's order at a step: 1 at the first and at the last, else 2."""
    return min(2, step + 1, len(sigmas) - 1 - step)


def _log_snr(sigma: float) -> float:
    """λ = log(α / σ), UniPC's time; infinite where no noise is left."""
    return math.log1p(-sigma) - math.log(sigma) if sigma > 0 else math.inf


def _predict_next(
    latents: Tensor, denoised: tuple[Tensor, ...], sigmas: Sequence[float], step: int
) -> Tensor:
    """UniP: the latents at sigmas[step + 1] from those at sigmas[step]."""
    sigma, next_sigma = sigmas[step], sigmas[step + 1]
    h = _log_snr(next_sigma) - _log_snr(sigma)
    gain = (1 - next_sigma) * math.expm1(-h)  # α'·(e^-h - 1)
    now = denoised[-1]
    predicted = (next_sigma / sigma) * latents - gain * now
    if _order(step, sigmas) == 1:
        return predicted
    ratio = (_log_snr(sigmas[step - 1]) - _log_snr(sigma)) / h
    return predicted - (0.5 * gain / ratio) * (denoised[-2] - now)


def _correct(
    corrected: Tensor, denoised: tuple[Tensor, ...], sigmas: Sequence[float], step: int
) -> Tensor:
    """UniC: the latents at sigmas[step], now that x0 is predicted there too."""
    past_sigma, sigma = sigmas[step - 1], sigmas[step]
    h = _log_snr(sigma) - _log_snr(past_sigma)
    growth = math.expm1(-h)  # B(h) for data prediction
    gain = (1 - sigma) * growth
    now, past = denoised[-1], denoised[-2]
    latents = (sigma / past_sigma) * corrected - gain * past
    if _order(step - 1, sigmas) == 1:
        return latents - (0.5 * gain) * (now - past)
    ratio = (_log_snr(sigmas[step - 2]) - _log_snr(past_sigma)) / h
    # Two conditions for two weights: w_far + w_now = b1 and ratio·w_far + w_now = b2.
    phi2 = growth / -h - 1
    phi3 = phi2 / -h - 0.5
    b1, b2 = phi2 / growth, 2 * phi3 / growth
    w_far = (b2 - b1) / (ratio - 1)
    w_now = b1 - w_far
    return latents - gain * ((w_far / ratio) * (denoised[-3] - past) + w_now * (now - past))


def _float32(value: float) -> float:
    """The nearest float32 number."""
    return struct.unpack("f", struct.pack("f", value))[0]
