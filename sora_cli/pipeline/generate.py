"""THE path: prompt → context → canvas → latents → frames, for every verb and every model.

These are the steps of one canvas; a video is a chain of them (`timeline`), often of one. Shapes:
B batch, L tokens, D width, (C, T, H, W) latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sora_cli.models.dit import ContextCache, DiT
from sora_cli.models.specs import ModelSpec
from sora_cli.models.vae import VAE
from sora_cli.pipeline.canvas import Canvas, Conditioning, latents_shape, noise
from sora_cli.pipeline.conditioning import Encoders, translate
from sora_cli.pipeline.events import Event, Observer, ignore
from sora_cli.pipeline.networks import Networks
from sora_cli.pipeline.request import Settings
from sora_cli.pipeline.sampler import (
    Guidance,
    SamplerState,
    Schedule,
    begin,
    denoise,
    make_schedule,
    sample,
)
from sora_cli.pipeline.shortcuts import WHOLE, Velocity, every_step, guided_steps, step_cache
from sora_cli.pipeline.tiles import cut, tiled
from sora_cli.pipeline.transfer import to_host

# Latents (batch × grid) up to which both halves of guidance go through the network in one call:
# beyond it a second batch of activations costs memory and saves no time.
BATCHED_GUIDANCE_TOKENS = 4096


class Keeper(Protocol):
    """Where unfinished work is kept, so that it can be taken up again (`runs`)."""

    def recall(self, name: str) -> SamplerState | None:
        """The last state kept under this name, on the CPU."""

    def keep(self, name: str, state: SamplerState, total: int) -> None:
        """Called after every step of `total`; keeps what it finds worth keeping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """What a canvas is to show and what not: [B, text_len, D] each; no negative at scale 1."""

    context: Tensor
    negative: Tensor | None


def read_texts(networks: Networks, prompt: str, settings: Settings) -> Texts:
    """The prompt's context and, where guidance needs it, the negative prompt's."""
    prompts = [prompt]
    if settings.guidance_scale != 1 or settings.guidance_scale_2 not in (None, 1):
        prompts.append(settings.negative_prompt)
    context, *negative = networks.contexts(prompts)
    return Texts(context=context, negative=negative[0] if negative else None)


def lay_canvas(
    networks: Networks,
    settings: Settings,
    rows: Sequence[Conditioning] = (),
    references: Sequence[Tensor] = (),
) -> Canvas:
    """The canvas of a clip, with what is given on it in the form that the family takes."""
    spec, device = networks.model.spec, networks.model.device
    shape = latents_shape(
        channels=networks.latent_channels, num_frames=settings.num_frames, height=settings.height,
        width=settings.width, scale_factors=spec.vae_scale_factors,
    )  # fmt: skip
    if not rows and not references and spec.conditioning not in ("channels", "vace"):
        return Canvas.blank(shape)
    networks.observer(Event(phase="encode"))
    rows = tuple(
        Conditioning(frames=row.frames.to(device), index=row.index, mask=row.mask) for row in rows
    )

    def encode(frames: Tensor) -> Tensor:
        with networks.vae(exact=True) as vae:
            networks.observer(Event(phase="encode"))  # loading is over
            return vae.encode(frames.to(device))  # a clip of nothing known comes on the CPU

    def pictures(frames: Tensor) -> Tensor:
        with networks.image_encoder() as encoder:
            return encoder.encode(frames)

    encoders = Encoders(encode=encode, pictures=pictures if spec.image_encoder else None)
    side = spec.size_multiple // spec.vae_scale_factors[1]
    return translate(
        rows, spec, shape, encoders, size=(settings.width, settings.height),
        patch_size=(side, side), references=[picture.to(device) for picture in references],
    )  # fmt: skip


def make_video_latents(
    networks: Networks,
    texts: Texts,
    canvas: Canvas,
    settings: Settings,
    seed: int,
    keeper: Keeper | None = None,
    name: str = "0",
) -> Tensor:
    """One canvas from its seed's noise to latents [1, C, T, H, W] fp32, references dropped.

    Two experts share the steps: the first works down to the model's boundary, the second from
    there on, each loaded once. `name` is what the keeper keeps the states under.
    """
    observer, device = networks.observer, networks.model.device
    schedule = schedule_of(settings)
    start = noise(canvas.latents_shape, seed).to(device)
    canvas = canvas.to(device)
    state = keeper.recall(name) if keeper else None
    state = begin(start, canvas, schedule, seed) if state is None else state.to(device)
    total, parts = len(schedule.timesteps), _experts(networks.model.spec, settings, schedule)
    velocity_at = _velocity_at(settings, canvas, schedule, [stop for *_, stop in parts])

    def keep(state: SamplerState) -> None:
        if keeper:
            keeper.keep(name, state, total)

    if state.step == total and state.skipped:  # made before; else the last step tells
        observer(Event(phase="denoise", step=total, total=total, skipped=state.skipped))
    for part, scale, stop in parts:
        if state.step >= stop:
            continue
        with networks.transformer(part) as dit:
            observer(Event(phase="denoise", step=state.step, total=total))
            state = denoise(
                as_model(dit, canvas, _tile(settings, networks.model.spec)),
                state,
                canvas,
                schedule,
                noise=start,
                sampler=settings.sampler,
                guidance=_guidance(dit, texts, canvas, start, scale, _guided(settings, total)),
                velocity_at=velocity_at,
                stop=stop,
                observer=observer,
                keep=keep,
            )
    return state.latents[:, :, canvas.lead :]


def _tile(settings: Settings, spec: ModelSpec) -> tuple[int, int] | None:
    """(height, width) in latents of the tiles that the settings ask for."""
    if settings.tile is None:
        return None
    _, tall, wide = spec.vae_scale_factors
    return settings.tile[1] // tall, settings.tile[0] // wide


def schedule_of(settings: Settings) -> Schedule:
    """The noise levels that the settings ask for."""
    return make_schedule(
        settings.num_inference_steps, settings.shift, sampler=settings.sampler,
        grid=settings.sigma_grid, fixed_sigmas=settings.fixed_sigmas, begin_at=settings.begin_at,
    )  # fmt: skip


def _experts(
    spec: ModelSpec, settings: Settings, schedule: Schedule
) -> list[tuple[str, float, int]]:
    """Which transformer works at which guidance scale, and the step it stops before."""
    total, scale = len(schedule.timesteps), settings.guidance_scale
    if spec.boundary is None:
        return [("transformer", scale, total)]
    limit = spec.boundary * 1000
    high = sum(timestep >= limit for timestep in schedule.timesteps)
    low_scale = scale if settings.guidance_scale_2 is None else settings.guidance_scale_2
    return [("transformer", scale, high), ("transformer_2", low_scale, total)]


def _guided(settings: Settings, total: int) -> range | None:
    """The steps that are guided; None: all."""
    interval = settings.guidance_interval
    return None if interval == WHOLE else guided_steps(interval, total)


def _velocity_at(
    settings: Settings, canvas: Canvas, schedule: Schedule, stops: Sequence[int]
) -> Velocity:
    """How a step comes by its velocity. stops: where another expert goes on, and the end."""
    if settings.step_cache is None:
        return every_step
    guided = _guided(settings, len(schedule.timesteps))
    changes = {*stops} if guided is None else {*stops, guided.start, guided.stop}
    return step_cache(settings.step_cache, schedule.sigmas, canvas.made, frozenset(changes))


def as_model(
    dit: DiT, canvas: Canvas, tile: tuple[int, int] | None = None
) -> Callable[[Tensor, Tensor, object], Tensor]:
    """The transformer as the sampler calls it, fed with what the canvas gives beside latents.

    tile: (height, width) in latents of what it sees at once; None = all of the canvas.
    """

    def model(
        latents: Tensor, timesteps: Tensor, context: object,
        rows: slice = slice(None), columns: slice = slice(None),
    ) -> Tensor:  # fmt: skip
        batch = latents.shape[0]
        if canvas.channels is not None:
            extra = canvas.channels[..., rows, columns].to(latents)
            latents = torch.cat([latents, extra.expand(batch, -1, -1, -1, -1)], dim=1)
        if canvas.control is None:
            return dit(latents, timesteps, context)
        control = canvas.control[..., rows, columns].to(latents)
        return dit(latents, timesteps, context, control=control.expand(batch, -1, -1, -1, -1))

    if tile is None:
        return model
    height, width = canvas.latents_shape[2:]
    assert canvas.denoise_mask.ndim == 1, "regions are not given in tiles"
    return tiled(model, cut(height, width, tile, dit.config.patch_size[1]))


@torch.no_grad()
def make_latents(
    dit: DiT, texts: Texts, canvas: Canvas, noise: Tensor, settings: Settings,
    observer: Observer = ignore,
) -> Tensor:  # fmt: skip
    """Denoise a batch of canvases of one layout with one transformer.

    Args:
        texts: [B, text_len, D] each.
        canvas: what is given, the same for the whole batch.
        noise: [B, C, T, H, W] fp32 on the transformer's device.

    Returns:
        normalised latents [B, C, T, H, W] fp32.
    """
    canvas, schedule = canvas.to(noise.device), schedule_of(settings)
    guided = _guided(settings, len(schedule.timesteps))
    return sample(
        as_model(dit, canvas), noise, canvas, schedule, sampler=settings.sampler,
        guidance=_guidance(dit, texts, canvas, noise, settings.guidance_scale, guided),
        velocity_at=_velocity_at(settings, canvas, schedule, ()), observer=observer,
    )  # fmt: skip


@torch.no_grad()
def _guidance(
    dit: DiT, texts: Texts, canvas: Canvas, noise: Tensor, scale: float, steps: range | None
) -> Guidance:
    """The texts as the blocks read them: one double batch while memory allows, else two."""
    pictures = canvas.pictures

    def prepare(context: Tensor) -> ContextCache:
        shown = None if pictures is None else pictures.expand(context.shape[0], -1, -1)
        return dit.prepare_context(context.to(noise.device), shown)

    if scale == 1 or texts.negative is None:
        return Guidance(context=prepare(texts.context))
    if noise[:, 0].numel() <= BATCHED_GUIDANCE_TOKENS:
        both = prepare(torch.cat([texts.context, texts.negative]))
        context = both.rows(len(texts.context))
        return Guidance(context=context, batched_context=both, scale=scale, steps=steps)
    return Guidance(
        context=prepare(texts.context), negative_context=prepare(texts.negative), scale=scale,
        steps=steps,
    )  # fmt: skip


def encode_frames(networks: Networks, video: Tensor) -> Tensor:
    """Latents [1, C, T', H', W'] of a clip [1, 3, T, H, W] in ±1, whole or in tiles by the plan."""
    tile = networks.model.plan.tile
    with networks.vae(exact=True) as vae:
        if tile is None:
            return vae.encode(video)
        from sora_cli.models.vae_tiles import encode_tiled

        return encode_tiled(vae, video, tile)


def decode_frames(networks: Networks, latents: Tensor) -> Iterator[np.ndarray]:
    """Frames of latents [1, C, T, H, W], uint8 [t, H, W, 3], a latent frame at a time."""
    total, observer, tile = latents.shape[2], networks.observer, networks.model.plan.tile

    def told(done: int, total: int) -> None:
        observer(Event(phase="decode", step=done, total=total))

    def decoded(vae: VAE) -> Iterator[Tensor]:
        told(0, total)
        moved = latents.to(next(vae.parameters()).dtype)
        for step, chunk in enumerate(_stream(vae, moved, tile, told), start=1):
            pixels = (chunk[0].float() / 2).add_(0.5).mul_(255).round_()  # [3, t, H, W]
            frames = pixels.to(torch.uint8)
            if tile is None:  # tiles tell of themselves
                told(step, total)
            yield frames.permute(1, 2, 3, 0)

    with networks.vae(exact=False) as vae:
        yield from to_host(decoded(vae))


def _stream(
    vae: VAE, latents: Tensor, tile: int | None, told: Callable[[int, int], None]
) -> Iterator[Tensor]:
    """Decoded chunks [1, 3, t, H, W], whole or in tiles."""
    if tile is None:
        return vae.decode_stream(latents)
    from sora_cli.models.vae_tiles import decode_stream_tiled

    return decode_stream_tiled(vae, latents, tile, progress=told)
