"""A loop from nothing: latents on a ring, so that the last frame runs into the first.

Mobius (arXiv 2502.20307): the latents stand on a ring and are rolled at every step, so that no
place of it is always the clip's beginning. The autoencoder is causal, and a clip's first latent
stands for one frame: the transformer sees the ring with the latents before its beginning once more
in front (their velocity is not used), and so does the decoder (their frames are dropped).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sora_cli.models.dit import DiT
from sora_cli.pipeline.canvas import Canvas, latents_shape
from sora_cli.pipeline.generate import Keeper, Texts, decode_frames, make_video_latents, schedule_of
from sora_cli.pipeline.networks import Networks
from sora_cli.pipeline.request import Settings

# Latents shown to the transformer before the ring's beginning. One: the clip's first latent stands
# for a single frame, and none of the ring's does.
LEAD = 1
# Latents decoded before the ring's beginning: the decoder remembers about as many.
WARM_UP = 3


def ring_frames(duration_frames: float, scale_t: int = 4) -> int:
    """The nearest length of a ring: whole latents, at least three of them."""
    return scale_t * max(3, round(duration_frames / scale_t))


def make_ring(
    networks: Networks,
    texts: Texts,
    settings: Settings,
    seed: int,
    num_frames: int,
    keeper: Keeper | None = None,
) -> Tensor:
    """Latents of a loop of `num_frames` (scale_t·k) frames: [1, C, k, H, W], each of scale_t."""
    spec = networks.model.spec
    latents = num_frames // spec.vae_scale_factors[0]
    assert num_frames == latents * spec.vae_scale_factors[0], "a ring has whole latents"
    shape = latents_shape(
        channels=networks.latent_channels, num_frames=num_frames - spec.vae_scale_factors[0] + 1,
        height=settings.height, width=settings.width, scale_factors=spec.vae_scale_factors,
    )  # fmt: skip
    canvas = Canvas.blank(shape)
    rolled = _RolledNetworks(networks, schedule_of(settings).timesteps)
    return make_video_latents(rolled, texts, canvas, settings, seed, keeper, name=f"{seed}-ring")


def decode_ring(networks: Networks, latents: Tensor) -> Iterator[np.ndarray]:
    """Frames of a ring's latents [1, C, k, H, W], uint8 [t, H, W, 3]: scale_t·k in all."""
    count = latents.shape[2]
    before = latents[:, :, torch.arange(-WARM_UP, 0) % count]
    chunks = decode_frames(networks, torch.cat([before, latents], dim=2))
    for number, frames in enumerate(chunks):
        if number >= WARM_UP:
            yield frames


class _RolledNetworks(Networks):
    """Networks whose transformers see latents as standing on a ring."""

    def __init__(self, networks: Networks, timesteps: Sequence[float]) -> None:
        super().__init__(networks.model, networks.observer)
        self._networks, self._timesteps = networks, timesteps

    @contextmanager
    def transformer(self, part: str = "transformer") -> Iterator[DiT]:
        # The expert for little noise settles details: rolling only blurs them (Wan 2.2, as users of
        # the method report).
        stride = 1 if part == "transformer" else 0
        with self._networks.transformer(part) as dit:
            yield cast("DiT", _Rolled(dit, self._timesteps, stride))


class _Rolled:
    """A transformer that sees, at step i, the ring from latent i·stride on."""

    def __init__(self, dit: DiT, timesteps: Sequence[float], stride: int) -> None:
        self._dit, self._timesteps, self._stride = dit, timesteps, stride
        self.prepare_context = dit.prepare_context

    def __call__(
        self, latents: Tensor, timesteps: Tensor, context: Any, control: Tensor | None = None
    ) -> Tensor:
        now = float(timesteps.flatten()[0])
        step = min(range(len(self._timesteps)), key=lambda i: abs(self._timesteps[i] - now))
        shift = step * self._stride
        seen = self._around(latents, shift)
        if control is None:
            velocity = self._dit(seen, timesteps, context)
        else:
            velocity = self._dit(seen, timesteps, context, control=self._around(control, shift))
        return velocity[:, :, LEAD:].roll(shift, dims=2)

    def _around(self, latents: Tensor, shift: int) -> Tensor:
        """[B, C, k, H, W] → [B, C, LEAD + k, H, W], from `shift` on."""
        count = latents.shape[2]
        return latents[:, :, torch.arange(shift - LEAD, shift + count) % count]
