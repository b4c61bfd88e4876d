"""The video autoencoder against diffusers' `AutoencoderKLWan`, and against itself in chunks."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from sora_cli.models.vae import VAE, VAEConfig
from sora_cli.models.vae_layers import Stream, patchify, unpatchify
from sora_cli.weights.keymaps_vae import (
    rename_parameter,
    vae_config_from_diffusers,
    vae_config_to_diffusers,
    vae_diffusers,
    vae_original,
)
from tests import figures

TOLERANCE = 2e-5

WAN_21 = VAEConfig(
    z_dim=4,
    encoder_dim=8,
    decoder_dim=8,
    dim_mult=(1, 2, 4, 4),
    temporal_downsample=(False, True, True),
    residual=False,
    latents_mean=(0.1, -0.2, 0.3, -0.4),
    latents_std=(1.5, 0.5, 2.0, 0.8),
)
WAN_22 = replace(WAN_21, encoder_dim=8, decoder_dim=16, residual=True, patch_size=2)
# The embedded model's layout.
TINY = replace(
    WAN_22,
    encoder_dim=32,
    decoder_dim=48,
    dim_mult=(1, 2, 2),
    temporal_downsample=(True, True),
    patch_size=4,
)
LAYOUTS = pytest.mark.parametrize("config", [WAN_21, WAN_22, TINY], ids=["2.1", "2.2", "tiny"])


def randomise(model: torch.nn.Module) -> None:
    """New values everywhere: parameters that start as zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in sorted(model.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma"):
            parameter.data = 1 + 0.3 * values
        else:
            parameter.data = values / max(parameter[0].numel(), 4) ** 0.5


@cache
def build(config: VAEConfig) -> tuple[AutoencoderKLWan, VAE]:
    """The same random network in both codebases."""
    reference = AutoencoderKLWan.from_config(vae_config_to_diffusers(config)).eval()
    randomise(reference)
    modules = vae_diffusers(config)
    state = {rename_parameter(name, modules): v for name, v in reference.state_dict().items()}
    vae = VAE(config).eval()
    vae.load_state_dict(state, strict=True)
    return reference, vae


def random_video(config: VAEConfig, latent_frames: int, batch: int = 1) -> Tensor:
    time, height, width = config.scale_factors
    generator = torch.Generator().manual_seed(3)
    frames = 1 + time * (latent_frames - 1)
    shape = (batch, 3, frames, 2 * height, 3 * width)
    return torch.rand(shape, generator=generator) * 2 - 1


def random_latents(config: VAEConfig, latent_frames: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn((batch, config.z_dim, latent_frames, 2, 3), generator=generator)


def say(config: VAEConfig) -> str:
    return f"VAE {'2.2' if config.residual else '2.1'}, patch {config.patch_size}"


def largest_difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


@LAYOUTS
@torch.no_grad()
def test_posterior_matches_diffusers(config: VAEConfig) -> None:
    reference, vae = build(config)
    video = random_video(config, latent_frames=4, batch=2)
    expected = reference.encode(video).latent_dist
    mean, logvar = vae.posterior(video)
    assert mean.std() > 0.1
    figures.within(TOLERANCE, f"{say(config)}, encode: mean", mean, expected.mean)
    figures.within(TOLERANCE, f"{say(config)}, encode: log-variance", logvar, expected.logvar)


@LAYOUTS
@torch.no_grad()
def test_decoded_video_matches_diffusers(config: VAEConfig) -> None:
    reference, vae = build(config)
    latents = random_latents(config, latent_frames=4, batch=2)
    expected = reference.decode(vae.denormalize(latents)).sample
    assert expected.std() > 0.1 and (expected.abs() < 1).float().mean() > 0.5
    figures.within(TOLERANCE, f"{say(config)}, decode", vae.decode(latents), expected)


@LAYOUTS
@torch.no_grad()
def test_streamed_encoding_is_the_posterior_mean(config: VAEConfig) -> None:
    _, vae = build(config)
    video = random_video(config, latent_frames=5)
    mean, _ = vae.posterior(video)
    latents = vae.encode(video)
    channel = (1, -1, 1, 1, 1)
    by_hand = mean - torch.tensor(config.latents_mean).view(channel)
    by_hand = by_hand / torch.tensor(config.latents_std).view(channel)
    assert largest_difference(latents, by_hand) <= TOLERANCE
    assert largest_difference(vae.denormalize(latents), mean) <= TOLERANCE


@LAYOUTS
def test_streamed_decoding_is_the_one_pass_video(config: VAEConfig) -> None:
    _, vae = build(config)
    latents = random_latents(config, latent_frames=5)
    chunks = list(vae.decode_stream(latents))
    time = config.scale_factors[0]
    assert [chunk.shape[2] for chunk in chunks] == [1, *[time] * 4]
    assert largest_difference(torch.cat(chunks, dim=2), vae.decode(latents)) <= TOLERANCE


@LAYOUTS
def test_one_image_is_a_clip_of_one_frame(config: VAEConfig) -> None:
    reference, vae = build(config)
    image = random_video(config, latent_frames=1)
    latents = vae.encode(image)
    assert latents.shape == (1, config.z_dim, 1, 2, 3)
    with torch.no_grad():
        expected = reference.decode(reference.encode(image).latent_dist.mode()).sample
    assert largest_difference(vae.decode(latents), expected) <= 5 * TOLERANCE  # two networks


@LAYOUTS
@torch.no_grad()
def test_stream_remembers_the_same_amount_however_long_the_clip(config: VAEConfig) -> None:
    _, vae = build(config)
    stream, held = Stream(), []
    for latent in random_latents(config, latent_frames=6).split(1, dim=2):
        vae.decoder(vae.conv2(latent), stream)
        tensors = stream.frames.values()
        held.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
        assert all(tensor.shape[2] <= 2 for tensor in tensors)
    assert held[2:] == [held[2]] * 4


@pytest.mark.parametrize("config", [WAN_21, TINY], ids=["2.1", "tiny"])
@settings(max_examples=5, deadline=None)
@given(frame=st.integers(1, 12))
def test_encoder_does_not_see_the_future(config: VAEConfig, frame: int) -> None:
    _, vae = build(config)
    video = random_video(config, latent_frames=4)
    edited = video.clone()
    edited[:, :, frame] = -edited[:, :, frame]
    change = (vae.encode(edited) - vae.encode(video)).abs().amax(dim=(0, 1, 3, 4))  # [T]
    own_latent = (frame + 3) // 4
    assert change[:own_latent].max() == 0
    assert change[own_latent] > 1e-3


@pytest.mark.parametrize("config", [WAN_21, TINY], ids=["2.1", "tiny"])
@settings(max_examples=4, deadline=None)
@given(index=st.integers(1, 3))
def test_decoder_does_not_see_the_future(config: VAEConfig, index: int) -> None:
    _, vae = build(config)
    latents = random_latents(config, latent_frames=4)
    edited = latents.clone()
    edited[:, :, index] += 1
    change = (vae.decode(edited) - vae.decode(latents)).abs().amax(dim=(0, 1, 3, 4))  # [T]
    first_own_frame = 4 * index - 3
    assert change[:first_own_frame].max() <= 1e-6
    assert change[first_own_frame] > 1e-3


@LAYOUTS
def test_training_in_bfloat16_reaches_every_parameter(config: VAEConfig) -> None:
    _, trained = build(config)
    vae = VAE(config).to_channels_last()
    vae.load_state_dict(trained.state_dict())
    video = random_video(config, latent_frames=3)
    video = video.contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        mean, logvar = vae.posterior(video)
        made = vae.decode_raw(mean)
    assert made.dtype == mean.dtype == torch.bfloat16 and made.shape == video.shape
    with torch.no_grad():
        expected, _ = trained.posterior(video)
    assert largest_difference(mean, expected) <= 0.1 * float(expected.abs().max())
    ((made.float() - video).square().mean() + logvar.float().square().mean()).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@LAYOUTS
def test_names_are_a_bijection_with_diffusers(config: VAEConfig) -> None:
    reference, vae = build(config)
    theirs, ours = set(reference.state_dict()), set(vae.state_dict())
    to_ours, to_theirs = vae_diffusers(config), vae_original(config)
    assert {rename_parameter(name, to_ours) for name in theirs} == ours
    assert {rename_parameter(name, to_theirs) for name in ours} == theirs
    with pytest.raises(KeyError):
        rename_parameter("encoder.unknown.weight", to_theirs)


def test_our_names_are_the_published_ones() -> None:
    """Diffusers' own converter of the original 2.1 checkpoint understands our state dict."""
    reference, vae = build(WAN_21)
    converted = convert_wan_vae_to_diffusers(vae.state_dict())
    assert set(converted) == set(reference.state_dict())
    assert all(torch.equal(converted[name], v) for name, v in reference.state_dict().items())
    names = set(build(WAN_22)[1].state_dict())
    assert "encoder.downsamples.1.downsamples.2.time_conv.weight" in names
    assert "decoder.upsamples.0.upsamples.3.resample.1.bias" in names


@LAYOUTS
def test_a_saved_folder_loads_in_diffusers(config: VAEConfig, tmp_path: Path) -> None:
    _, vae = build(config)
    modules = vae_original(config)
    state = {rename_parameter(name, modules): v for name, v in vae.state_dict().items()}
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(vae_config_to_diffusers(config)))
    loaded, report = AutoencoderKLWan.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert vae_config_from_diffusers(dict(loaded.config)) == config


def test_an_old_config_without_the_newer_keys_is_wan_21() -> None:
    saved = vae_config_to_diffusers(WAN_21)
    for key in ("is_residual", "patch_size", "decoder_base_dim"):
        del saved[key]
    assert vae_config_from_diffusers(saved) == WAN_21


def test_scale_factors_are_the_published_ones() -> None:
    assert WAN_21.scale_factors == (4, 8, 8)
    assert WAN_22.scale_factors == TINY.scale_factors == (4, 16, 16)


@given(size=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), patch=st.just(4))
@settings(max_examples=5, deadline=None)
def test_patches_are_the_same_pixels(size: tuple[int, int, int], patch: int) -> None:
    frames, rows, columns = size
    video = torch.rand(1, 3, frames, rows * patch, columns * patch)
    patches = patchify(video, patch)
    assert patches.shape == (1, 3 * patch**2, frames, rows, columns)
    assert torch.equal(unpatchify(patches, patch), video)
