"""Diffusers' names and configs of the Wan autoencoder, in both directions.

The layouts differ only in what modules are called, so the map is a table of module paths: a
parameter's last word (`weight`, `bias`, `gamma`) is the same on both sides. Source: the
converter of diffusers 0.42.1, checked against `AutoencoderKLWan`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch

from sora_cli.models.vae import VAE, VAEConfig

# Diffusers' word for a part of a block → the original word.
RESIDUAL_BLOCK = MappingProxyType(
    {
        "norm1": "residual.0",
        "conv1": "residual.2",
        "norm2": "residual.3",
        "conv2": "residual.6",
        "conv_shortcut": "shortcut",
    }
)
RESAMPLE = MappingProxyType({"resample.1": "resample.1", "time_conv": "time_conv"})
ATTENTION = MappingProxyType({"norm": "norm", "to_qkv": "to_qkv", "proj": "proj"})
TOP = MappingProxyType({"quant_conv": "conv1", "post_quant_conv": "conv2"})
ENDS = MappingProxyType({"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"})
MIDDLE = MappingProxyType(
    {
        "mid_block.resnets.0": "middle.0",
        "mid_block.attentions.0": "middle.1",
        "mid_block.resnets.1": "middle.2",
    }
)


def vae_diffusers(config: VAEConfig) -> Mapping[str, str]:
    """Diffusers' module path → the original one, for every module that owns parameters.

    Raises ValueError for numbers that make no network of this layout.
    """
    with torch.device("meta"):
        owners = {name.rpartition(".")[0] for name, _ in VAE(config).named_parameters()}
    pairs = dict(_candidates(len(config.dim_mult), config.num_res_blocks, config.residual))
    table = {theirs: ours for theirs, ours in pairs.items() if ours in owners}
    if len(table) != len(owners):
        raise ValueError("its numbers make no network of this layout")
    return MappingProxyType(table)


def vae_original(config: VAEConfig) -> Mapping[str, str]:
    """The original module path → diffusers', the inverse of `vae_diffusers`."""
    return MappingProxyType({ours: theirs for theirs, ours in vae_diffusers(config).items()})


def rename_parameter(name: str, modules: Mapping[str, str]) -> str:
    """Translate one parameter's name. Raises KeyError for a name outside the layout."""
    module, _, parameter = name.rpartition(".")
    if module not in modules:
        raise KeyError(f"{name} is not in this layout")
    return f"{modules[module]}.{parameter}"


def rename_vae(names: Iterable[str]) -> dict[str, str]:
    """Diffusers' parameter names → the original ones, for an autoencoder of any numbers.

    How many levels and blocks there are is in the names themselves.

    Raises KeyError for a name outside the layout.
    """
    names = list(names)
    numbers = [match for match in map(_UP_BLOCK.match, names) if match]
    levels = 1 + max((int(match[1]) for match in numbers), default=0)
    blocks = max((int(match[2]) for match in numbers), default=0)  # the decoder has one more
    residual = any(name.startswith("encoder.down_blocks.0.resnets.") for name in names)
    table = dict(_candidates(levels, blocks, residual))
    return {name: rename_parameter(name, table) for name in names}


_UP_BLOCK = re.compile(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.")


def _candidates(levels: int, blocks: int, residual: bool) -> Iterator[tuple[str, str]]:
    yield from TOP.items()
    for side in ("encoder", "decoder"):
        levels_of = _down_blocks if side == "encoder" else _up_blocks
        stages = [*MIDDLE.items(), *levels_of(levels, blocks, residual)]
        yield from ((f"{side}.{theirs}", f"{side}.{ours}") for theirs, ours in ENDS.items())
        for theirs, ours in stages:
            # A name belongs to one kind of block only, so trying every kind is unambiguous.
            for part, original in (*RESIDUAL_BLOCK.items(), *RESAMPLE.items(), *ATTENTION.items()):
                yield f"{side}.{theirs}.{part}", f"{side}.{ours}.{original}"


def _down_blocks(levels: int, blocks: int, residual: bool) -> Iterator[tuple[str, str]]:
    if not residual:
        for index in range(levels * (blocks + 1) - 1):
            yield f"down_blocks.{index}", f"downsamples.{index}"
        return
    for level in range(levels):
        for block in range(blocks):
            yield f"down_blocks.{level}.resnets.{block}", f"downsamples.{level}.downsamples.{block}"
        yield f"down_blocks.{level}.downsampler", f"downsamples.{level}.downsamples.{blocks}"


def _up_blocks(levels: int, blocks: int, residual: bool) -> Iterator[tuple[str, str]]:
    for level in range(levels):
        for block in range(blocks + 2):
            resampler = "upsampler" if residual else "upsamplers.0"
            part = f"resnets.{block}" if block <= blocks else resampler
            flat = f"upsamples.{level * (blocks + 2) + block}"
            ours = f"upsamples.{level}.upsamples.{block}" if residual else flat
            yield f"up_blocks.{level}.{part}", ours


def vae_config_from_diffusers(config: Mapping[str, Any]) -> VAEConfig:
    """Read a diffusers `vae/config.json`. Raises KeyError where a needed number is missing."""
    return VAEConfig(
        z_dim=config["z_dim"],
        encoder_dim=config["base_dim"],
        decoder_dim=config.get("decoder_base_dim") or config["base_dim"],
        dim_mult=tuple(config["dim_mult"]),
        num_res_blocks=config["num_res_blocks"],
        temporal_downsample=tuple(config["temperal_downsample"]),  # diffusers' spelling
        residual=config.get("is_residual", False),
        patch_size=config.get("patch_size") or 1,
        latents_mean=tuple(config["latents_mean"]),
        latents_std=tuple(config["latents_std"]),
    )


def vae_config_to_diffusers(config: VAEConfig) -> dict[str, Any]:
    """The `vae/config.json` with which diffusers' `AutoencoderKLWan` builds the same network."""
    time, height, _ = config.scale_factors
    return {
        "_class_name": "AutoencoderKLWan",
        "_diffusers_version": "0.42.1",
        "base_dim": config.encoder_dim,
        "decoder_base_dim": config.decoder_dim,
        "z_dim": config.z_dim,
        "dim_mult": list(config.dim_mult),
        "num_res_blocks": config.num_res_blocks,
        "attn_scales": [],
        "temperal_downsample": list(config.temporal_downsample),
        "dropout": 0.0,
        "latents_mean": list(config.latents_mean),
        "latents_std": list(config.latents_std),
        "is_residual": config.residual,
        "in_channels": config.pixel_channels,
        "out_channels": config.pixel_channels,
        "patch_size": None if config.patch_size == 1 else config.patch_size,
        "scale_factor_temporal": time,
        "scale_factor_spatial": height,
    }
