"""The canvas: a latent grid, part of which may already be known.

Every verb is a canvas. generate knows nothing; an image is the case T = 1; animate knows the
first latent frame; extend knows the first or the last ones. A verb writes `Conditioning` rows,
`conditioning.translate` turns them into a canvas in the form that the model's family takes, and
the sampler makes the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
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
    mask: [1, 1, T, H, W], 1 where a pixel is given, 0 where it is to be made; None = all given.
    """

    frames: Tensor
    index: int
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """A latent grid with what is known on it, in the form that the model takes.

    latents_shape: (C, T, H, W).
    denoise_mask: [T] or [T, H, W], 1 = to be made, 0 = given.
    clean_latents: [C, T, H, W], zero where nothing is given.
    holds: how given latents are kept while sampling. "clean": they enter the model clean, at
        timestep 0 (Wan2.2-TI2V and tiny). "noised": the model knows nothing of them; they are put
        back at each step's own noise level (RePaint, arXiv 2201.09865).
    given_sigma: the noise level at which the model sees latents that are held clean, while what is
        made is above it; in the end they are clean again. 0: always clean.
    patch_size: (h, w) latent positions of a token, for timesteps by token.
    channels: [C', T, H, W] that the model reads beside the noisy latents (I2V, FLF2V), or None.
    control: [96, T, H, W] for VACE's branch, or None.
    pictures: [1, N, D] CLIP tokens of the given pictures, or None.
    lead: latent frames before the clip that only carry references; dropped before decoding.
    """

    latents_shape: Shape
    denoise_mask: Tensor
    clean_latents: Tensor
    holds: Literal["clean", "noised"] = "clean"
    given_sigma: float = 0.0
    patch_size: tuple[int, int] = (1, 1)
    channels: Tensor | None = None
    control: Tensor | None = None
    pictures: Tensor | None = None
    lead: int = 0

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
        """Whether any latent is known."""
        return bool((self.denoise_mask == 0).any())

    @property
    def made(self) -> Tensor:
        """[1, 1, T, H or 1, W or 1]: 1 where latents are made, 0 where they are given."""
        return 1 - self._given().to(self.clean_latents)

    def to(self, device: torch.device | str) -> Canvas:
        """The same canvas on another device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            denoise_mask=self.denoise_mask.to(device),
            clean_latents=self.clean_latents.to(device),
            channels=moved(self.channels),
            control=moved(self.control),
            pictures=moved(self.pictures),
        )

    def give(self, latents: Tensor, start: int, given: Tensor | None = None) -> Canvas:
        """This canvas with `latents` [C, k, H, W] known from latent frame `start` on.

        given: [k, H, W], which of them; None = all.
        """
        stop = start + latents.shape[1]
        assert 0 <= start < stop <= self.latents_shape[1], "given latents outside the canvas"
        assert bool(self.denoise_mask[start:stop].all()), "two conditionings on one latent frame"
        denoise_mask, clean_latents = self.denoise_mask.clone(), self.clean_latents.clone()
        clean_latents[:, start:stop] = latents.to(clean_latents)
        if given is None:
            denoise_mask[start:stop] = 0
        else:
            if denoise_mask.ndim == 1:
                _, _, height, width = self.latents_shape
                denoise_mask = denoise_mask[:, None, None].repeat(1, height, width)
            denoise_mask[start:stop] = (given == 0).to(denoise_mask)
        return replace(self, denoise_mask=denoise_mask, clean_latents=clean_latents)

    def hold(self, latents: Tensor, sigma: float = 0.0, noise: Tensor | None = None) -> Tensor:
        """`latents` [B, C, T, H, W] at noise level `sigma` with the given ones put back.

        "clean" puts them back bit for bit (under noise of `given_sigma` at most); "noised" as
        (1 - σ)·x0 + σ·noise.
        """
        known = self.clean_latents.to(latents.dtype)
        sigma = min(self.given_sigma, sigma) if self.holds == "clean" else sigma
        if sigma > 0 or self.holds == "noised":
            assert noise is not None or sigma == 0, "noised latents need the noise"
            known = known if noise is None else (1 - sigma) * known + sigma * noise
        return torch.where(self._given(), known, latents)

    def timesteps(self, timestep: float, batch: int) -> Tensor:
        """What the model is told about the noise: `timestep`, and where latents are given that of
        `given_sigma`, 0 where that is not set.

        [B] where nothing is given clean, else [B, T] or, with regions, [B, L] by token
        (Wan2.2-TI2V's timesteps by frame and by token).
        """
        mask = self.denoise_mask
        if not self.has_given or self.holds == "noised":
            return mask.new_full((batch,), timestep)  # [B]
        if mask.ndim == 3:  # a token is as noisy as the first of its latents, as in Wan's own code
            mask = mask[:, :: self.patch_size[0], :: self.patch_size[1]].flatten()  # [L]
        given = (1 - mask) * min(1000 * self.given_sigma, timestep)
        return (mask * timestep + given).expand(batch, -1)  # [B, T] or [B, L]

    def _given(self) -> Tensor:
        mask = self.denoise_mask
        mask = mask if mask.ndim == 3 else mask[:, None, None]
        return (mask == 0)[None, None]  # [1, 1, T, H or 1, W or 1]


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


def place(rows: Sequence[Conditioning], num_frames: int) -> list[tuple[Conditioning, int]]:
    """The rows with the pixel frame at which each starts, in order.

    Raises AssertionError where a row lies outside the clip.
    """
    placed = []
    for row in rows:
        start = row.index if row.index >= 0 else num_frames + row.index
        assert 0 <= start <= num_frames - row.frames.shape[2], "given frames outside the clip"
        placed.append((row, start))
    return sorted(placed, key=lambda pair: pair[1])


def lay_out(encode: Encode, shape: Shape, rows: Sequence[Conditioning], scale_t: int = 4) -> Canvas:
    """The canvas of latents `shape` on which the rows' latents are known.

    A row that starts at the first frame is a head; any other starts a latent frame (pixel frame
    1 + scale_t·i) and covers whole ones, and is encoded as a tail. The frames encode on whatever
    device they are on, and the canvas is made on the CPU.
    """
    canvas = Canvas.blank(shape)
    num_frames = scale_t * (shape[1] - 1) + 1
    for row, start in place(rows, num_frames):
        assert start == 0 or start % scale_t == 1, "given frames start a latent frame"
        side: Side = "tail" if start else "head"
        latents = encode_given(encode, row.frames, side, scale_t)[0]  # [C, k, H, W]
        first = (start - 1) // scale_t + 1 if start else 0
        given = None if row.mask is None else _latent_mask(row.mask, latents, side, scale_t)
        canvas = canvas.give(latents, first, given)
    return canvas


def _latent_mask(mask: Tensor, latents: Tensor, side: Side, scale_t: int) -> Tensor:
    """Pixels given [1, 1, T, H, W] → latents given [k, H', W']: those whose pixels all are."""
    _, _, frames, height, width = mask.shape
    stride = (height // latents.shape[2], width // latents.shape[3])
    given = -F.max_pool2d(-mask[0, 0][:, None].float(), stride, stride)[:, 0]  # [T, H', W']
    if side == "head":  # the first latent frame covers one pixel frame, the others scale_t
        given = torch.cat([given[:1].expand(scale_t - 1, -1, -1), given])
    return given.unflatten(0, (-1, scale_t)).amin(1)  # [k, H', W']
