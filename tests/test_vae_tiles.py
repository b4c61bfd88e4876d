"""The autoencoder in tiles against itself in one piece, and against diffusers' tiles."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sora_cli
from sora_cli.models.vae import VAE, VAEConfig
from sora_cli.models.vae_layers import unpatchify
from sora_cli.models.vae_tiles import decode_stream_tiled, encode_tiled, spread
from sora_cli.weights import load
from sora_cli.weights.keymaps_vae import (
    rename_parameter,
    vae_config_to_diffusers,
    vae_diffusers,
)
from tests import figures
from tests.live_tensors import LiveTensors

WAN_21 = VAEConfig(
    z_dim=4, encoder_dim=8, decoder_dim=8, dim_mult=(1, 1, 2, 2), num_res_blocks=1,
    temporal_downsample=(False, True, True), residual=False,
    latents_mean=(0.1, -0.2, 0.3, -0.4), latents_std=(1.5, 0.5, 2.0, 0.8),
)  # fmt: skip
WAN_22 = VAEConfig(
    z_dim=4, encoder_dim=8, decoder_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1,
    temporal_downsample=(True, True), residual=True, patch_size=2,
    latents_mean=(0.1, -0.2, 0.3, -0.4), latents_std=(1.5, 0.5, 2.0, 0.8),
)  # fmt: skip
TINY = Path(sora_cli.__file__).parent / "assets" / "tiny"
LAYOUTS = pytest.mark.parametrize("config", [WAN_21, WAN_22], ids=["2.1", "2.2"])


@cache
def build(config: VAEConfig) -> tuple[AutoencoderKLWan, VAE]:
    """The same random network in both codebases."""
    reference = AutoencoderKLWan.from_config(vae_config_to_diffusers(config)).eval()
    generator = torch.Generator().manual_seed(7)
    for name, parameter in sorted(reference.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator)
        scale = max(parameter[0].numel(), 4) ** -0.5
        parameter.data = 1 + 0.3 * values if name.endswith("gamma") else values * scale
    modules = vae_diffusers(config)
    state = {rename_parameter(name, modules): v for name, v in reference.state_dict().items()}
    vae = VAE(config).eval()
    vae.load_state_dict(state, strict=True)
    return reference, vae.requires_grad_(False)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def video(config: VAEConfig, frames: int, rows: int, columns: int) -> Tensor:
    _, tall, wide = config.scale_factors
    return random(1, 3, frames, rows * tall, columns * wide).clamp(-1, 1)


def decode_tiled(vae: VAE, latents: Tensor, tile: int, **how: object) -> Tensor:
    return torch.cat(list(decode_stream_tiled(vae, latents, tile, **how)), dim=2)  # type: ignore[arg-type]


@LAYOUTS
def test_one_tile_is_the_untiled_network_bit_for_bit(config: VAEConfig) -> None:
    """A tile size that a small picture does not reach must change nothing."""
    _, vae = build(config)
    latents, clip = random(1, 4, 3, 5, 4), video(config, 5, 5, 4)
    whole = torch.cat(list(vae.decode_stream(latents)), dim=2)
    assert torch.equal(decode_tiled(vae, latents, 48, overlap=8), whole)
    assert torch.equal(encode_tiled(vae, clip, 48), vae.encode(clip))


@LAYOUTS
def test_both_ways_of_holding_tiles_give_the_same_bits_in_the_same_chunks(
    config: VAEConfig,
) -> None:
    _, vae = build(config)
    latents, told = random(1, 4, 3, 7, 9), []
    kept, streamed = (
        list(
            decode_stream_tiled(
                vae, latents, 32, 8, hold=hold, progress=lambda done, total: told.append(done)
            )
        )
        for hold in ("frames", "streams")
    )
    untiled = list(vae.decode_stream(latents))
    assert [chunk.shape for chunk in kept] == [chunk.shape for chunk in untiled]
    assert all(torch.equal(a, b) for a, b in zip(kept, streamed, strict=True))
    assert told == [*range(1, len(told) // 2 + 1)] * 2  # each says every step once, in order


@LAYOUTS
def test_streamed_tiles_are_one_pass_tiles(config: VAEConfig) -> None:
    """A tile is a fresh clip: decoding it in one pass gives what its stream gives."""
    _, vae = build(config)
    latents = random(1, 4, 3, 4, 7)  # one row of tiles of 4, 5 columns of them wide
    side, starts = spread(7, 4, 1)
    scale = config.scale_factors[2] // config.patch_size
    raw = vae.denormalize(latents)
    with torch.no_grad():
        tiles = [vae.decoder(vae.conv2(raw[..., at : at + side])) for at in starts]
    wanted = torch.zeros(*tiles[0].shape[:-1], 7 * scale)
    wanted[..., : side * scale] = tiles[0]
    for tile, (before, at) in zip(tiles[1:], pairwise(starts), strict=True):
        common = (before + side - at) * scale
        weight = torch.arange(common) / common
        start = wanted[..., at * scale : at * scale + common]
        tile[..., :common] = start * (1 - weight) + tile[..., :common] * weight
        wanted[..., at * scale : (at + side) * scale] = tile
    wanted = unpatchify(wanted, config.patch_size).clamp(-1, 1)
    stride = config.scale_factors[2]
    found = decode_tiled(vae, latents, 4 * stride, overlap=stride)
    figures.within(2e-5, "streamed tiles against tiles in one pass", found, wanted)


@LAYOUTS
def test_parity_with_diffusers_tiles(config: VAEConfig) -> None:
    """Same tiles, same blending, corners too. diffusers adds a strip at the right and bottom end,
    which its own last tile covers already; what comes before that strip is compared."""
    reference, vae = build(config)
    stride = config.scale_factors[1]
    latents, clip = random(1, 4, 2, 7, 10), video(config, 5, 7, 10)
    try:
        with torch.no_grad():
            reference.enable_tiling(*[4 * stride] * 2, *[3 * stride] * 2)
            wanted = reference.decode(vae.denormalize(latents)).sample
            # Its encoder counts a tile in patches of pixels, where its decoder counts in pixels.
            inner = stride // config.patch_size
            reference.enable_tiling(*[4 * inner] * 2, *[3 * inner] * 2)
            moments = reference.encode(clip).latent_dist.mode()
    finally:
        reference.use_tiling = False
    ours, encoded = decode_tiled(vae, latents, 4 * stride), encode_tiled(vae, clip, 4 * stride)
    last = 6, 9  # latents where diffusers' strip begins
    pixels = (..., slice(last[0] * stride), slice(last[1] * stride))
    figures.within(2e-5, "VAE tiles, decode", ours[pixels], wanted[pixels])
    both = (encoded, vae.normalize(moments))
    figures.within(2e-5, "VAE tiles, encode", *(x[..., : last[0], : last[1]] for x in both))
    assert (ours - wanted).abs().max() > 1e-3  # the strip is another picture


def test_tiles_of_the_embedded_model_are_close_to_the_whole() -> None:
    """What tiling costs on weights that mean something: nothing that can be seen."""
    with load.vae(TINY / "vae", device="cpu", dtype=torch.float32) as vae:
        rows, columns = torch.meshgrid(
            torch.linspace(0, 6, 96), torch.linspace(0, 9, 160), indexing="ij"
        )
        frames = [torch.stack([(rows + t / 4).sin(), columns.cos(), (rows * columns / 9).sin()])
                  for t in range(5)]  # fmt: skip
        clip = 0.8 * torch.stack(frames, dim=1)[None]
        latents = vae.encode(clip)
        whole = vae.decode(latents)
        tiled = decode_tiled(vae, latents, 96)
        around = encode_tiled(vae, clip, 96)
    psnr = 10 * torch.log10(4 / (whole - tiled).square().mean())
    assert psnr >= 40
    assert (around - latents).square().mean() <= 0.01  # latents have unit scale


@LAYOUTS
def test_memory_does_not_grow_with_the_number_of_tiles(config: VAEConfig) -> None:
    """Beyond the clip itself. Holding streams instead grows with the tiles, which is why not."""
    _, vae = build(config)
    stride = config.scale_factors[1]

    def beyond(columns: int, hold: str) -> int:
        latents = random(1, 4, 2, 4, columns)
        clip = 3 * 5 * 4 * columns * stride**2 * 4
        with LiveTensors([latents, *vae.parameters()]) as live:
            for chunk in decode_stream_tiled(vae, latents, 4 * stride, hold=hold):  # type: ignore[arg-type]
                del chunk
        return live.peak - clip

    assert beyond(16, "frames") <= 1.1 * beyond(7, "frames")
    assert beyond(16, "streams") > 1.5 * beyond(7, "streams")


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 63))
def test_tiles_cover_a_side_with_at_least_the_overlap(size: int, tile: int, overlap: int) -> None:
    overlap = min(overlap, tile - 1)
    side, starts = spread(size, tile, overlap)
    assert 1 <= side <= tile or len(starts) == 1
    assert side <= max(tile, 1) and starts[0] == 0 and starts[-1] + side == size
    for before, after in pairwise(starts):
        assert before < after <= before + side - overlap
