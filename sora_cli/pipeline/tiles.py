"""Canvases larger than a model was trained on: one denoising, in overlapping tiles.

MultiDiffusion (arXiv 2302.08113): at every step the transformer sees each tile alone, and where
tiles overlap their velocities are averaged, with weights that fall to the tiles' edges. Shapes:
(T, H, W) latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

OVERLAP = 0.25  # of a tile, at least

# (latents, timesteps, context, rows, columns) → velocity: the model on one tile of the canvas.
TileModel = Callable[[Tensor, Tensor, object, slice, slice], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """How a plane of latents is cut: starts of the tiles along both sides, and a tile's size."""

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    height: int
    width: int


def cut(height: int, width: int, tile: tuple[int, int], multiple: int = 1) -> Tiling:
    """Tiles of at most `tile` (height, width) that cover a plane, evenly, on multiples.

    Args:
        multiple: of the starts (the transformer's patch); it divides all sizes.
    """
    tall, wide = min(tile[0], height), min(tile[1], width)
    return Tiling(
        tops=_starts(height, tall, multiple), lefts=_starts(width, wide, multiple),
        height=tall, width=wide,
    )  # fmt: skip


def _starts(length: int, size: int, multiple: int) -> tuple[int, ...]:
    room = length - size
    if room == 0:
        return (0,)
    most = max(multiple, int(size * (1 - OVERLAP)) // multiple * multiple)  # between two starts
    steps = -(-room // most)
    starts = [round(i * room / steps / multiple) * multiple for i in range(steps)]
    return (*starts, room)


def tiled(model: TileModel, tiling: Tiling) -> Callable[[Tensor, Tensor, object], Tensor]:
    """The model on the whole plane: every tile's velocity, averaged where tiles overlap."""

    def whole(latents: Tensor, timesteps: Tensor, context: object) -> Tensor:
        total = torch.zeros_like(latents)
        weights = latents.new_zeros(latents.shape[-2:])  # [H, W]
        window = _window(tiling, latents)
        for top in tiling.tops:
            for left in tiling.lefts:
                rows = slice(top, top + tiling.height)
                columns = slice(left, left + tiling.width)
                part = latents[..., rows, columns]
                velocity = model(part, timesteps, context, rows, columns)
                total[..., rows, columns] += velocity.to(total) * window
                weights[rows, columns] += window
        return total / weights

    return whole


def _window(tiling: Tiling, like: Tensor) -> Tensor:
    """Weights [h, w] of a tile: a tent in both directions, nowhere 0."""
    sides = []
    for size in (tiling.height, tiling.width):
        place = torch.arange(1, size + 1, device=like.device, dtype=like.dtype)
        sides.append(torch.minimum(place, size + 1 - place))
    return sides[0][:, None] * sides[1]
