"""Small random Wan pipelines, saved to folders by diffusers itself, for tests of `-m FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

FLOW_SHIFT = 3.0  # no family's default, so a test sees whether it was read
WORDS = ("a", "red", "ball", "bounces", "on", "the", "snow", "it's", "▁")
# Both forms of everything that cleaning rewrites, so that a missed rewrite changes the tokens.
SIGNS = "abcdefghijklmnopqrstuvwxyz.,!?;:'\"&<>()-“”‘’，。！？；：（）色调艳丽过曝静态"

Z_21, Z_22 = 16, 48


def unipc(shift: float = FLOW_SHIFT) -> UniPCMultistepScheduler:
    """The scheduler of the published folders."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


def euler(shift: float = FLOW_SHIFT) -> FlowMatchEulerDiscreteScheduler:
    """diffusers' own default, for some of the folders in circulation."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def wan21(scheduler: Any = None) -> WanPipeline:
    """Wan 2.1 text to video: strides 4×8×8, 16 latent channels, one timestep for all frames."""
    vae = AutoencoderKLWan(base_dim=8, z_dim=Z_21, dim_mult=[1, 2, 4, 4])
    return _pipeline(vae, Z_21, scheduler or unipc(), expand_timesteps=False)


def wan22(scheduler: Any = None) -> WanPipeline:
    """Wan 2.2 text and image to video: strides 4×16×16, 48 channels, a timestep per frame."""
    vae = AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=12,
        z_dim=Z_22,
        dim_mult=[1, 2, 4, 4],
        latents_mean=[0.5 - i / Z_22 for i in range(Z_22)],
        latents_std=[0.4 + i / Z_22 for i in range(Z_22)],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    return _pipeline(vae, Z_22, scheduler or unipc(), expand_timesteps=True)


def save(pipeline: WanPipeline, folder: Path, *, shards: bool = False) -> Path:
    """Save as diffusers does; with `shards`, the transformer in several files and an index."""
    pipeline.save_pretrained(folder, max_shard_size="200KB" if shards else "10GB")
    if shards:
        assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    return folder


def _pipeline(
    vae: AutoencoderKLWan, channels: int, scheduler: Any, *, expand_timesteps: bool
) -> WanPipeline:
    tokenizer = _tokenizer()
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer) + 7,  # as published: more rows than tokens
            d_model=32, d_kv=12, d_ff=40, num_layers=2, num_heads=3,
        )
    )  # fmt: skip
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=3, attention_head_dim=28, in_channels=channels,
        out_channels=channels, text_dim=32, freq_dim=256, ffn_dim=136, num_layers=3,
    )  # fmt: skip
    for number, network in enumerate((vae, text_encoder, transformer)):
        randomise(network.eval(), seed=number)
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        scheduler=scheduler,
        transformer=transformer,
        expand_timesteps=expand_timesteps,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _tokenizer() -> T5Tokenizer:
    """T5's pipeline over a small vocabulary: whole words, else single characters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}" if word != "▁" else word, -2.0) for word in WORDS]
    pieces += [(sign, -4.0) for sign in SIGNS]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


@torch.no_grad()
def randomise(network: nn.Module, seed: int) -> None:
    """New values everywhere: parameters that start as zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(network.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            values = 1 + 0.3 * values
        elif parameter.ndim == 1 or name.endswith("table"):
            values = 0.3 * values
        else:
            values = values * parameter[0].numel() ** -0.5
        if name.endswith("attn2.norm_q.weight"):
            values = values * 4  # so that a few words stand out among 512 rows of padding
        if name.endswith("SelfAttention.q.weight"):
            values = values * 12**-0.5  # T5 keeps the 1/√K that attention lacks in this scale
        parameter.copy_(values)
