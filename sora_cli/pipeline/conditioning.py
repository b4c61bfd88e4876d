"""The one place that translates given frames into the form a model family takes.

Rows of known frames (`canvas.Conditioning`) become a canvas. Families differ only here: by
per-frame timesteps (`tokens`), by extra input channels and CLIP tokens (`channels`), through
VACE's control branch (`vace`), or by putting known latents back at every step (`replace`).
Layouts: Wan's own pipelines, checked against diffusers 0.42.1 (docs/reference/parity.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sora_cli.models.specs import ModelSpec
from sora_cli.pipeline.canvas import Canvas, Conditioning, Encode, Shape, lay_out, place

EncodePictures = Callable[[Tensor], Tensor]  # [N, 3, H, W] in ±1 → CLIP tokens [N, 257, D]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoders:
    """What turns pixels into what a transformer reads.

    encode: the VAE's, [1, 3, T, H, W] in ±1 → normalised latents [1, C, T', H', W'].
    pictures: CLIP's, or None where the family has none.
    """

    encode: Encode
    pictures: EncodePictures | None = None


def translate(
    rows: Sequence[Conditioning],
    spec: ModelSpec,
    shape: Shape,
    encoders: Encoders,
    *,
    size: tuple[int, int],
    patch_size: tuple[int, int] = (1, 1),
    references: Sequence[Tensor] = (),
) -> Canvas:
    """The canvas of latents `shape` with the rows on it, as the family takes them.

    Args:
        rows: given frames; none of them for text to video.
        size: (width, height) of the clip in pixels.
        patch_size: (h, w) latents of one token.
        references: pictures [1, 3, 1, H, W] in ±1 that say how things look, for VACE.

    Returns:
        a canvas on the CPU; with references its latents are longer by `lead` frames.
    """
    scale_t = spec.vae_scale_factors[0]
    if spec.conditioning in ("tokens", "replace"):
        canvas = lay_out(encoders.encode, shape, rows, scale_t)
        noised = spec.conditioning == "replace"
        return replace(canvas, holds="noised" if noised else "clean", patch_size=patch_size)
    num_frames = scale_t * (shape[1] - 1) + 1
    frames, given = spread(rows, num_frames, size)
    if spec.conditioning == "vace":
        return _vace(frames, given, shape, spec, encoders, references)
    pictures = None
    if encoders.pictures is not None:
        assert rows, f"{spec.name} makes nothing without a picture"
        tokens = [encoders.pictures(picture) for picture in _shown(rows, num_frames)]
        pictures = torch.cat(tokens, dim=1).cpu()  # [1, 257 or 514, D]
    channels = _channels(frames, given, encoders.encode, scale_t, shape)
    return replace(Canvas.blank(shape), channels=channels, pictures=pictures)


def spread(
    rows: Sequence[Conditioning], num_frames: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The rows on a whole clip: frames [1, 3, T, H, W], 0 (mid grey) where unknown, and what is
    given, [1, 1, T, H, W] of 0 and 1."""
    width, height = size
    device = rows[0].frames.device if rows else None
    frames = torch.zeros(1, 3, num_frames, height, width, device=device)
    given = torch.zeros(1, 1, num_frames, height, width, device=device)
    for row, start in place(rows, num_frames):
        stop = start + row.frames.shape[2]
        known = torch.ones_like(row.frames[:, :1]) if row.mask is None else row.mask.to(given)
        frames[:, :, start:stop] = row.frames * known
        given[:, :, start:stop] = known
    return frames, given


def _shown(rows: Sequence[Conditioning], num_frames: int) -> list[Tensor]:
    """What CLIP is shown: the first given picture, and the last frame where that is given too."""
    placed = place(rows, num_frames)
    shown, (last, start) = [placed[0][0].frames[:, :, 0]], placed[-1]
    if len(placed) > 1 and start + last.frames.shape[2] == num_frames:
        shown.append(last.frames[:, :, -1])
    return shown  # [1, 3, H, W] each


def _channels(frames: Tensor, given: Tensor, encode: Encode, scale_t: int, shape: Shape) -> Tensor:
    """[4 + C, T, H, W]: which pixel frames of a latent frame are given, and the clip's latents.

    The first pixel frame stands for all scale_t of its latent frame.
    """
    whole = given.amin(dim=(3, 4))[0, 0]  # [T]: frames of which every pixel is given
    folded = torch.cat([whole[:1].expand(scale_t - 1), whole]).unflatten(0, (-1, scale_t))
    mask = folded.T[:, :, None, None].expand(-1, -1, *shape[2:])  # [4, T', H', W']
    latents = encode(frames)[0]  # [C, T', H', W']
    return torch.cat([mask.to(latents), latents]).cpu()


def _vace(
    frames: Tensor,
    given: Tensor,
    shape: Shape,
    spec: ModelSpec,
    encoders: Encoders,
    references: Sequence[Tensor],
) -> Canvas:
    """VACE's control: what is known, what is to change, and the mask by pixels of a latent.

    Its mask is 1 where something is to be made. In time it is sampled at the nearest frame, as the
    model was trained, not aligned with the latent frames.
    """
    made = 1 - given
    inactive, reactive = encoders.encode(frames * given), encoders.encode(frames * made)
    _, stride_h, stride_w = spec.vae_scale_factors
    pixels = F.pixel_unshuffle(made[0].transpose(0, 1), stride_h) if stride_h == stride_w else None
    assert pixels is not None, "VACE's latents cover squares of pixels"
    mask = F.interpolate(  # [1, 64, T, H', W'] → [1, 64, T', H', W']
        pixels.transpose(0, 1)[None], size=shape[1:], mode="nearest-exact"
    )
    control = torch.cat([inactive[0], reactive[0], mask[0].to(inactive)])  # [96, T', H', W']
    for picture in references:
        latent = encoders.encode(picture)[0]  # [C, 1, H', W']
        nothing = torch.zeros_like(latent)
        ahead = torch.cat([latent, nothing, control[-mask.shape[1] :, :1] * 0])
        control = torch.cat([ahead, control], dim=1)
    lead = len(references)
    channels, latent_frames, *sides = shape
    canvas = Canvas.blank((channels, latent_frames + lead, sides[0], sides[1]))
    return replace(canvas, control=control.cpu(), lead=lead)
