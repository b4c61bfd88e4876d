"""The canvas: a latent grid, part of which may already be known.

Every verb is a canvas. generate knows nothing; an image is the case T = 1; animate knows the
first latent frame; extend knows the first or the last ones. A verb writes `Conditioning` rows,
`lay_out` turns them into a canvas, and the sampler makes the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Side = Literal["head", "tail"]
Encode = Callable[[Tensor], Tensor]  # [B, 3, T, H, W] in ±1 → normalised latents [B, C, T', H', W']
Shape = tuple[int, int, int, int]  # (C, T, H, W) of the latents

# Latents of the repeated warm-up frames before a tail. They are dropped, so that what stays was
# encoded with a past behind it, as latents in the middle of a clip are.
_WARM_UP_LATENTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """Frames that are given, and where they stand.

    frames: [1, 3, T, H, W] in ±1, at the canvas's size in pixels.
    index: pixel frame of the first of them; negative counts from the end (-8 = the last eight).
    """

    frames: Tensor
    index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """A latent grid with what is known on it.

    latents_shape: (C, T, H, W).
    denoise_mask: [T], 1 = to be made, 0 = given.
    clean_latents: [C, T, H, W], zero where nothing is given.
    """

    latents_shape: Shape
    denoise_mask: Tensor
    clean_latents: Tensor

    @classmethod
    def blank(cls, latents_shape: Shape) -> Canvas:
        """A canvas on which nothing is known, on the CPU in fp32."""
        return cls(
            latents_shape=latents_shape,
            denoise_mask=torch.ones(latents_shape[1]),  # [T]
            clean_latents=torch.zeros(latents_shape),  # [C, T, H, W]
        )

    @property
    def has_given(self) -> bool:
        """Whether any latent frame is known."""
        return bool((self.denoise_mask == 0).any())

    def to(self, device: torch.device | str) -> Canvas:
        """The same canvas on another device."""
        return replace(
            self,
            denoise_mask=self.denoise_mask.to(device),
            clean_latents=self.clean_latents.to(device),
        )

    def give(self, latents: Tensor, start: int) -> Canvas:
        """This canvas with `latents` [C, k, H, W] known from latent frame `start` on."""
        stop = start + latents.shape[1]
        assert 0 <= start < stop <= self.latents_shape[1], "given latents outside the canvas"
        assert bool(self.denoise_mask[start:stop].all()), "two conditionings on one latent frame"
        denoise_mask, clean_latents = self.denoise_mask.clone(), self.clean_latents.clone()
        denoise_mask[start:stop] = 0
        clean_latents[:, start:stop] = latents.to(clean_latents)
        return replace(self, denoise_mask=denoise_mask, clean_latents=clean_latents)

    def hold(self, latents: Tensor) -> Tensor:
        """`latents` [B, C, T, H, W] with the given frames put back, bit for bit."""
        given = (self.denoise_mask == 0).view(1, 1, -1, 1, 1)
        return torch.where(given, self.clean_latents.to(latents.dtype), latents)

    def timesteps(self, timestep: float, batch: int) -> Tensor:
        """What the model is told about the noise: 0 where latents are given, else `timestep`.

        [B] where nothing is given, [B, T] otherwise (Wan2.2-TI2V's per-frame timesteps).
        """
        if not self.has_given:
            return self.denoise_mask.new_full((batch,), timestep)  # [B]
        return (self.denoise_mask * timestep).expand(batch, -1)  # [B, T]


def latent_frames(num_frames: int, scale_t: int = 4) -> int:
    """Latent frames of a clip: the first frame has one to itself, then one for every scale_t."""
    assert num_frames >= 1 and (num_frames - 1) % scale_t == 0, "num_frames must be scale_t·k + 1"
    return (num_frames - 1) // scale_t + 1


def latents_shape(
    *, channels: int, num_frames: int, height: int, width: int, scale_factors: tuple[int, int, int]
) -> Shape:
    """(C, T, H, W) of the latents of a clip of legal size."""
    scale_t, scale_h, scale_w = scale_factors
    assert height % scale_h == 0 and width % scale_w == 0, "size must divide by the VAE's stride"
    return channels, latent_frames(num_frames, scale_t), height // scale_h, width // scale_w


def noise(shape: Shape, seed: int) -> Tensor:
    """Standard normal noise [1, C, T, H, W], fp32, on the CPU.

    Drawn on the CPU whatever the device, so that a seed means the same picture everywhere; the
    same numbers as diffusers' Wan pipelines draw from `torch.Generator("cpu")`.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)


def encode_given(encode: Encode, frames: Tensor, side: Side, scale_t: int = 4) -> Tensor:
    """The latents of given frames, the one way used in training and by every verb.

    head: scale_t·(k-1) + 1 frames, encoded as a fresh clip → k latents for the start.
    tail: scale_t·k frames, after the first of them repeated 9 times (scale_t 4) as a fresh clip;
        the latents of the repetition are dropped → k latents for the end, each of scale_t frames.

    Never a slice of a whole clip's latents: those remember frames that will not be there.

    Args:
        encode: the VAE's `encode`.
        frames: [B, 3, T, H, W] in ±1.
        side: which end of the canvas the latents are for.
        scale_t: pixel frames per latent frame.

    Returns:
        normalised latents [B, C, k, H', W'].
    """
    num_frames = frames.shape[2]
    if side == "head":
        assert num_frames % scale_t == 1, "a head is scale_t·(k-1) + 1 frames"
        return encode(frames)  # [B, C, k, H', W']
    assert num_frames > 0 and num_frames % scale_t == 0, "a tail is scale_t·k frames"
    repeats = scale_t * (_WARM_UP_LATENTS - 1) + 1
    warm_up = frames[:, :, :1].expand(-1, -1, repeats, -1, -1)
    return encode(torch.cat([warm_up, frames], dim=2))[:, :, _WARM_UP_LATENTS:]


def lay_out(encode: Encode, shape: Shape, rows: Sequence[Conditioning], scale_t: int = 4) -> Canvas:
    """The canvas of latents `shape` on which the rows' frames are known.

    A row starts at the canvas's first frame (a head) or ends at its last one (a tail); the frames
    encode on whatever device they are on, and the canvas is made on the CPU.
    """
    canvas = Canvas.blank(shape)
    num_frames = scale_t * (shape[1] - 1) + 1
    for row in rows:
        given = row.frames.shape[2]
        start = row.index if row.index >= 0 else num_frames + row.index
        assert start == 0 or start + given == num_frames, "given frames start or end the canvas"
        side: Side = "head" if start == 0 else "tail"
        latents = encode_given(encode, row.frames, side, scale_t)[0]  # [C, k, H, W]
        canvas = canvas.give(latents, 0 if side == "head" else shape[1] - latents.shape[1])
    return canvas
