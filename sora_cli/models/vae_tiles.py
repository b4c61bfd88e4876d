"""The autoencoder in tiles: for pictures whose whole frames do not fit into memory.

A frame is cut into tiles that overlap; each goes through the network by itself, as a clip with a
memory of its own, and neighbours are blended linearly over their overlap: first with the tile
above, then with the one to the left, as diffusers' `AutoencoderKLWan` does (`enable_tiling`).
A tile knows nothing of its surroundings (the middle block attends to all positions of a frame), so
tiled is not untiled; with one tile it is, bit for bit.

Two differences from diffusers. All tiles of a row have one size and are spread evenly, where
diffusers' last ones are what is left over, often a strip that its neighbour covers anyway. And a
tile's frames may be kept instead of its memory: a 2.1 decoder remembers 2,364 numbers a pixel, a
clip of 81 frames has 243.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from sora_cli.models.vae import VAE
from sora_cli.models.vae_layers import Stream, unpatchify

# What is held until a frame is whole: the finished frames of the tiles so far, on the host; or
# every tile's memory, on the device.
Hold = Literal["frames", "streams"]
Progress = Callable[[int, int], None]  # (done, total), in latent frames of a tile


def spread(size: int, tile: int, overlap: int) -> tuple[int, tuple[int, ...]]:
    """Tiles along one side: their common size, at most `tile`, and where each starts.

    As few as can overlap by `overlap` at least, then as small as that many can be.
    """
    assert 0 <= overlap < tile, "tiles overlap by less than their size"
    count = max(1, -(-(size - overlap) // (tile - overlap)))
    side = -(-(size + (count - 1) * overlap) // count)
    if count == 1:
        return side, (0,)
    return side, tuple(i * (size - side) // (count - 1) for i in range(count))


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """How a latent frame is cut: sides of a tile, and starts along (rows, columns)."""

    height: int
    width: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, vae: VAE, size: tuple[int, int], tile: int, overlap: int | None) -> Tiling:
        """Of latents of (height, width) `size`, with `tile` and `overlap` in pixels."""
        sides = []
        for length, scale in zip(size, vae.config.scale_factors[1:], strict=True):
            wanted = tile // 4 if overlap is None else overlap
            assert tile % scale == 0, f"a tile of {tile} pixels is no multiple of {scale}"
            sides.append(spread(length, tile // scale, min(-(-wanted // scale), tile // scale - 1)))
        (height, rows), (width, columns) = sides
        return cls(height=height, width=width, rows=rows, columns=columns)

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return len(self.rows) * len(self.columns)

    def cut(self, x: Tensor, scale: int = 1) -> Iterator[Tensor]:
        """The tiles of `x` [..., scale·H, scale·W], row by row, as views."""
        for top, left in product(self.rows, self.columns):
            bottom, right = top + self.height, left + self.width
            yield x[..., scale * top : scale * bottom, scale * left : scale * right]


class _Mosaic:
    """A picture [..., H, W] that is put together from tiles, taken row by row."""

    def __init__(self, tiling: Tiling, scale: int) -> None:
        self._tiling, self._scale = tiling, scale
        self._place = product(range(len(tiling.rows)), range(len(tiling.columns)))
        self._left: Tensor | None = None
        # The tiles of the row above and of this one, as far as the next row overlaps them.
        self._above: list[Tensor] = []
        self._below: list[Tensor] = []
        self.picture: Tensor | None = None

    def add(self, tile: Tensor) -> None:
        """Blend the next tile in; the mosaic owns it from now on."""
        tiling, scale = self._tiling, self._scale
        row, column = next(self._place)
        if column == 0:
            self._above, self._below = self._below, []
        if self.picture is None:
            size = tiling.rows[-1] + tiling.height, tiling.columns[-1] + tiling.width
            self.picture = tile.new_empty((*tile.shape[:-2], *(scale * n for n in size)))
        if row:
            _blend(self._above[column], tile, dim=-2)
        if column:
            assert self._left is not None
            _blend(self._left, tile, dim=-1)
        if row + 1 < len(tiling.rows):
            common = scale * (tiling.rows[row] + tiling.height - tiling.rows[row + 1])
            self._below.append(tile[..., -common:, :].clone())
        if column + 1 < len(tiling.columns):
            common = scale * (tiling.columns[column] + tiling.width - tiling.columns[column + 1])
            self._left = tile[..., -common:].clone()
        top, left = scale * tiling.rows[row], scale * tiling.columns[column]
        target = self.picture[..., top : top + tile.shape[-2], left : left + tile.shape[-1]]
        target.copy_(tile)


def _blend(before: Tensor, tile: Tensor, *, dim: int) -> None:
    """Let the start of `tile` along `dim` emerge from `before`, which lies on the same pixels."""
    common = before.shape[dim]
    weight = torch.arange(common, dtype=torch.float32, device=tile.device) / common
    start = tile.narrow(dim, 0, common)
    weight = weight if dim == -1 else weight[:, None]
    start.copy_(before * (1 - weight) + start * weight)


@torch.no_grad()
def encode_tiled(vae: VAE, video: Tensor, tile: int, overlap: int | None = None) -> Tensor:
    """`vae.encode` in tiles.

    Args:
        video: [B, 3, 1 + 4k, H, W] in [-1, 1].
        tile: side of a tile in pixels at most, a multiple of the stride.
        overlap: in pixels at least, rounded up to the stride; a quarter of the tile if None.

    Returns:
        latents at unit scale [B, z_dim, 1 + k, H/8, W/8] (or 16).
    """
    scale = vae.config.scale_factors[1]
    height, width = video.shape[3] // scale, video.shape[4] // scale
    tiling = Tiling.of(vae, (height, width), tile, overlap)
    if tiling.count == 1:
        return vae.encode(video)
    mosaic = _Mosaic(tiling, scale=1)
    for part in tiling.cut(video, scale):
        mosaic.add(vae.encode(part))
    assert mosaic.picture is not None
    return mosaic.picture


@torch.no_grad()
def decode_stream_tiled(
    vae: VAE,
    latents: Tensor,
    tile: int,
    overlap: int | None = None,
    *,
    hold: Hold = "frames",
    progress: Progress = lambda done, total: None,
) -> Iterator[Tensor]:
    """`vae.decode_stream` in tiles: the same chunks of frames, [B, 3, 1 or 4, 8H, 8W] (or 16).

    Args:
        latents: at unit scale, [B, z_dim, 1 + k, H, W].
        tile, overlap: as in `encode_tiled`.
        hold: "frames" decodes one tile after the other to the clip's end: memory on the device is
            that of one tile, the clip grows in the host's memory, and the first chunk comes when
            the last tile is done. "streams" advances all tiles by a latent frame at a time: chunks
            come as they are made and memory does not grow with the length, but it holds what every
            tile remembers. For clips that a transformer makes in one go the first is the smaller.
        progress: told after each latent frame of each tile.
    """
    tiling = Tiling.of(vae, (latents.shape[3], latents.shape[4]), tile, overlap)
    if tiling.count == 1:
        for step, chunk in enumerate(vae.decode_stream(latents), start=1):
            yield chunk
            progress(step, latents.shape[2])
        return
    streams = [_decode_patches(vae, part) for part in tiling.cut(latents)]
    told = _Told(progress, tiling.count * latents.shape[2])
    pieces = _whole_clip(vae, streams, tiling, told) if hold == "frames" else None
    for patches in pieces or _frame_by_frame(vae, streams, tiling, told):
        yield unpatchify(patches, vae.config.patch_size).clamp(-1.0, 1.0)


class _Told:
    """Counts latent frames of tiles for whoever watches."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def step(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)


def _decode_patches(vae: VAE, latents: Tensor) -> Iterator[Tensor]:
    """Patches of pixels, not clamped: blending comes before both, as in diffusers."""
    stream = Stream()
    for latent in vae.denormalize(latents).split(1, dim=2):
        with torch.no_grad():  # not around the yield, which would leave it on for the caller
            patches = vae.decoder(vae.conv2(latent), stream)
        yield patches


def _scale(vae: VAE) -> int:
    """Patches of pixels per latent, along a side."""
    return vae.config.scale_factors[1] // vae.config.patch_size


def _whole_clip(
    vae: VAE, streams: list[Iterator[Tensor]], tiling: Tiling, told: _Told
) -> Iterator[Tensor]:
    mosaic, lengths = _Mosaic(tiling, _scale(vae)), []
    while streams:
        chunks = []
        for patches in streams.pop(0):  # its memory ends with it
            chunks.append(patches.cpu())
            told.step()
        lengths = [chunk.shape[2] for chunk in chunks]
        mosaic.add(torch.cat(chunks, dim=2))
    assert mosaic.picture is not None
    yield from mosaic.picture.split(lengths, dim=2)


def _frame_by_frame(
    vae: VAE, streams: list[Iterator[Tensor]], tiling: Tiling, told: _Told
) -> Iterator[Tensor]:
    for chunks in zip(*streams, strict=True):
        mosaic = _Mosaic(tiling, _scale(vae))
        for patches in chunks:
            mosaic.add(patches)
            told.step()
        assert mosaic.picture is not None
        yield mosaic.picture
