"""Small random Wan pipelines, saved to folders by diffusers itself, for tests of `-m FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

FLOW_SHIFT = 3.0  # no family's default, so a test sees whether it was read
WORDS = ("a", "red", "ball", "bounces", "on", "the", "snow", "it's", "▁")
# Both forms of everything that cleaning rewrites, so that a missed rewrite changes the tokens.
SIGNS = "abcdefghijklmnopqrstuvwxyz.,!?;:'\"&<>()-“”‘’，。！？；：（）色调艳丽过曝静态"

Z_21, Z_22 = 16, 48
HEADS = (3, 28)  # how many, how wide; the published ones are all 128 wide
CLIP_WIDTH, CLIP_TOKENS = 160, 5  # of one picture
BOUNDARIES = {"t2v": 0.875, "i2v": 0.9}  # between two experts, as published


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
    parts = _parts(vae21(), scheduler)
    return _quiet(WanPipeline(**parts, transformer=transformer(), expand_timesteps=False))


def wan22(scheduler: Any = None) -> WanPipeline:
    """Wan 2.2 text and image to video: strides 4×16×16, 48 channels, a timestep per frame."""
    parts = _parts(vae22(), scheduler)
    network = transformer(in_channels=Z_22, out_channels=Z_22)
    return _quiet(WanPipeline(**parts, transformer=network, expand_timesteps=True))


def t2v_a14b(heads: tuple[int, int] = HEADS) -> WanPipeline:
    """Wan 2.2 text to video: two experts."""
    experts = {"transformer": transformer(heads), "transformer_2": transformer(heads, seed=3)}
    return _quiet(WanPipeline(**_parts(vae21()), **experts, boundary_ratio=BOUNDARIES["t2v"]))


def i2v_a14b(heads: tuple[int, int] = HEADS) -> WanImageToVideoPipeline:
    """Wan 2.2 image to video: two experts, mask and picture as channels, no CLIP."""
    channels = 2 * Z_21 + 4
    experts = {
        "transformer": transformer(heads, in_channels=channels),
        "transformer_2": transformer(heads, seed=3, in_channels=channels),
    }
    parts = _parts(vae21())
    return _quiet(WanImageToVideoPipeline(**parts, **experts, boundary_ratio=BOUNDARIES["i2v"]))


def i2v21(heads: tuple[int, int] = HEADS, *, pictures: int = 1) -> WanImageToVideoPipeline:
    """Wan 2.1 image to video: as channels and through CLIP; of two pictures it is FLF2V."""
    network = transformer(
        heads,
        in_channels=2 * Z_21 + 4,
        image_dim=CLIP_WIDTH,
        added_kv_proj_dim=heads[0] * heads[1],
        pos_embed_seq_len=2 * CLIP_TOKENS if pictures == 2 else None,
    )
    side = 28
    encoder = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=CLIP_WIDTH, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=2, image_size=side, patch_size=14, hidden_act="gelu",
        )
    )  # fmt: skip
    randomise(encoder.eval(), seed=4)
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    return _quiet(
        WanImageToVideoPipeline(
            **_parts(vae21()), transformer=network, image_encoder=encoder, image_processor=processor
        )
    )


def flf2v(heads: tuple[int, int] = HEADS) -> WanImageToVideoPipeline:
    """Wan 2.1 first and last frame to video: positions tell CLIP's two pictures apart."""
    return i2v21(heads, pictures=2)


def as_image_to_video(pipeline: WanPipeline) -> WanImageToVideoPipeline:
    """Wan 2.2 TI2V's other pipeline, of the same parts."""
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    return _quiet(WanImageToVideoPipeline(**parts, expand_timesteps=True))


def vace(heads: tuple[int, int] = HEADS) -> WanVACEPipeline:
    """Wan 2.1 VACE: a control branch beside the blocks."""
    network = transformer(
        heads, kind=WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=96
    )
    return _quiet(WanVACEPipeline(**_parts(vae21()), transformer=network))


def vae21() -> AutoencoderKLWan:
    """Strides 4×8×8."""
    return AutoencoderKLWan(base_dim=8, z_dim=Z_21, dim_mult=[1, 2, 4, 4])


def vae22() -> AutoencoderKLWan:
    """Strides 4×16×16, in residual blocks."""
    return AutoencoderKLWan(
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


def transformer(
    heads: tuple[int, int] = HEADS,
    *,
    seed: int = 2,
    kind: type[nn.Module] = WanTransformer3DModel,
    **options: Any,
) -> nn.Module:
    """A random transformer of three blocks; 16 channels in and out unless `options` differ."""
    number, width = heads
    network = kind(
        **{
            "patch_size": (1, 2, 2), "num_attention_heads": number, "attention_head_dim": width,
            "in_channels": Z_21, "out_channels": Z_21, "text_dim": 32, "freq_dim": 256,
            "ffn_dim": 136, "num_layers": 3, **options,
        }
    )  # fmt: skip
    randomise(network.eval(), seed=seed)
    return network


def save(pipeline: DiffusionPipeline, folder: Path, *, shards: bool = False) -> Path:
    """Save as diffusers does; with `shards`, the transformer in several files and an index."""
    pipeline.save_pretrained(folder, max_shard_size="200KB" if shards else "10GB")
    if shards:
        assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    return folder


def _parts(vae: AutoencoderKLWan, scheduler: Any = None) -> dict[str, Any]:
    """What all pipelines have beside transformers."""
    tokenizer = _tokenizer()
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer) + 7,  # as published: more rows than tokens
            d_model=32, d_kv=12, d_ff=40, num_layers=2, num_heads=3,
        )
    )  # fmt: skip
    for number, network in enumerate((vae, text_encoder)):
        randomise(network.eval(), seed=number)
    if not vae.config.is_residual:  # so that a given picture weighs as much as the noise
        vae.quant_conv.weight.data *= 3
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": vae,
        "scheduler": scheduler or unipc(),
    }


def _quiet(pipeline: DiffusionPipeline) -> Any:
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
        elif name.endswith("pos_embed"):
            pass  # positions as large as what they are added to
        elif parameter.ndim == 1 or name.endswith("table"):
            values = 0.3 * values
        else:
            values = values * parameter[0].numel() ** -0.5
        if name == "vace_patch_embedding.weight":
            values = values * 2  # so that one given frame is seen in the others
        if name.endswith("attn2.norm_q.weight"):
            values = values * 4  # so that a few words stand out among 512 rows of padding
        if name.endswith("SelfAttention.q.weight"):
            values = values * 12**-0.5  # T5 keeps the 1/√K that attention lacks in this scale
        parameter.copy_(values)
