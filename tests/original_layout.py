"""Rewrites a folder in diffusers' layout in the other layouts that the same weights come in.

The names are written out here once more, from diffusers' side, so that a mistake in the program's
own tables does not cancel out. Values are copied bit for bit.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from sora_cli.weights.configs import WAN22_MEAN, WAN22_STD
from tests import wan_folders

Parts = dict[str, Path]
State = dict[str, Tensor]

PREFIX = "model.diffusion_model."
UMT5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
EXPERTS = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}

TRANSFORMER = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("attn1.to_out.0", "self_attn.o"), ("attn2.to_out.0", "cross_attn.o"),
    ("attn1.to_", "self_attn."), ("attn2.to_", "cross_attn."),
    ("attn1.", "self_attn."), ("attn2.", "cross_attn."),
    ("add_k_proj", "k_img"), ("add_v_proj", "v_img"), ("norm_added_k", "norm_k_img"),
    (".norm2.", ".norm3."), ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"),
    ("proj_in", "before_proj"), ("blocks_proj_out", "after_proj"), ("proj_out.", "head.head."),
)  # fmt: skip
UMT5 = (
    ("shared.", "token_embedding."), ("encoder.embed_tokens.", "token_embedding."),
    ("encoder.final_layer_norm", "norm"), ("encoder.block.", "blocks."),
    ("layer.0.layer_norm", "norm1"), ("layer.1.layer_norm", "norm2"),
    ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
    ("layer.0.SelfAttention.", "attn."), ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
    ("layer.1.DenseReluDense.wi_1", "ffn.fc1"), ("layer.1.DenseReluDense.wo", "ffn.fc2"),
)  # fmt: skip
VAE = (
    ("post_quant_conv", "conv2"), ("quant_conv", "conv1"),
    ("coder.conv_in", "coder.conv1"), ("norm_out", "head.0"), ("conv_out", "head.2"),
    ("mid_block.resnets.0", "middle.0"), ("mid_block.attentions.0", "middle.1"),
    ("mid_block.resnets.1", "middle.2"),
    (".norm1.", ".residual.0."), (".norm2.", ".residual.3."), ("conv_shortcut", "shortcut"),
)  # fmt: skip
CLIP = (
    ("embeddings.class_embedding", "cls_embedding"),
    ("embeddings.position_embedding.weight", "pos_embedding"),
    ("embeddings.patch_embedding", "patch_embedding"), ("pre_layrnorm", "pre_norm"),
    ("post_layernorm", "post_norm"), ("encoder.layers.", "transformer."),
    ("self_attn.out_proj", "attn.proj"), ("layer_norm1", "norm1"), ("layer_norm2", "norm2"),
    ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2"),
)  # fmt: skip


def _replace(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def transformer_name(name: str) -> str:
    """diffusers → original."""
    if name == "scale_shift_table":
        return "head.modulation"
    name = name.replace("scale_shift_table", "modulation")
    name = re.sub(r"^(vace_blocks\.\d+\.)proj_out", r"\1blocks_proj_out", name)
    return _replace(name, TRANSFORMER)


def text_encoder_name(name: str) -> str:
    """transformers → original."""
    return _replace(name, UMT5)


def vae_name(name: str, version: str) -> str:
    """diffusers → original, with two residual blocks a level, as in every published one."""
    if version == "2.1":  # the original numbers all parts of a side in one row
        name = name.replace("down_blocks.", "downsamples.")
        pattern, flat = r"up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0)", "upsamples.{}"
        name = re.sub(pattern, lambda m: flat.format(4 * int(m[1]) + int(m[2] or 3)), name)
    else:
        for side, last in (("down", 2), ("up", 3)):
            pattern = rf"{side}_blocks\.(\d+)\.(?:resnets\.(\d+)|{side}sampler)"
            nested = f"{side}samples.{{}}.{side}samples.{{}}"
            name = re.sub(pattern, lambda m: nested.format(m[1], m[2] or last), name)  # noqa: B023
    for ours, theirs in (("conv1", "residual.2"), ("conv2", "residual.6")):
        name = re.sub(rf"(samples\.[\d.]+|resnets\.\d+\.){ours}\.", rf"\1{theirs}.", name)
    return _replace(name, VAE)


def vae_state(state: State) -> State:
    """A whole autoencoder under original names; which of the two it is shows in its names."""
    version = "2.2" if any("downsampler" in name for name in state) else "2.1"
    return rename_state(state, lambda name: vae_name(name, version))


def clip_state(state: State) -> State:
    """Transformers' vision model as Wan's own file has it, beside a text model."""
    out: State = {"textual.token_embedding.weight": torch.ones(3, 2), "log_scale": torch.ones(())}
    state = {re.sub(r"^(model\.)?(vision_model\.)?", "", name): t for name, t in state.items()}
    for name, tensor in state.items():
        if ".k_proj." in name or ".v_proj." in name or name.endswith("position_ids"):
            continue
        if ".q_proj." in name:
            parts = [state[name.replace(".q_proj.", f".{p}_proj.")] for p in "qkv"]
            name, tensor = name.replace("self_attn.q_proj", "attn.to_qkv"), torch.cat(parts)
        elif name == "embeddings.class_embedding":
            tensor = tensor[None, None]
        elif name == "embeddings.position_embedding.weight":
            tensor = tensor[None]
        out[f"visual.{_replace(name, CLIP)}"] = tensor
    return out


def read_state(folder: Path) -> State:
    """Every tensor of a part in diffusers' or transformers' layout."""
    state: State = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    assert state, folder
    return state


def rename_state(state: State, name_of: Callable[[str], str]) -> State:
    """A state dict under other names, one to one."""
    renamed = {name_of(name): tensor for name, tensor in state.items()}
    assert len(renamed) == len(state)
    return renamed


def original_config(config: dict[str, Any]) -> dict[str, Any]:
    """The original repositories' `config.json` of a transformer."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    ours = {
        "_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": width,
        "ffn_dim": config["ffn_dim"], "freq_dim": config["freq_dim"], "in_dim":
        config["in_channels"], "out_dim": config["out_channels"], "model_type": "t2v",
        "num_heads": config["num_attention_heads"], "num_layers": config["num_layers"],
        "text_len": 512, "eps": config["eps"],
    }  # fmt: skip
    if config.get("vace_layers"):
        ours |= {"vace_layers": config["vace_layers"], "vace_in_dim": config["vace_in_channels"]}
    return ours


def write_original(folder: Path, target: Path) -> Parts:
    """The layout of Wan's own repositories, with `.pth` files; the parts and where they are."""
    target.mkdir(parents=True)
    two = (folder / "transformer_2").is_dir()
    parts: Parts = {}
    for part in EXPERTS if two else ("transformer",):
        parts[part] = target / EXPERTS[part] if two else target
        parts[part].mkdir(exist_ok=True)
        state = rename_state(read_state(folder / part), transformer_name)
        save_file(state, parts[part] / "diffusion_pytorch_model.safetensors")
        config = json.loads((folder / part / "config.json").read_text())
        (parts[part] / "config.json").write_text(json.dumps(original_config(config)))
    vae = vae_state(read_state(folder / "vae"))
    version = "2.2" if any("downsamples.0.downsamples" in name for name in vae) else "2.1"
    parts["vae"] = target / f"Wan{version}_VAE.pth"
    torch.save(vae, parts["vae"])
    parts["text_encoder"] = target / UMT5_FILE
    torch.save(
        rename_state(read_state(folder / "text_encoder"), text_encoder_name), parts["text_encoder"]
    )
    parts["tokenizer"] = target / "google" / "umt5-xxl"
    shutil.copytree(folder / "tokenizer", parts["tokenizer"])
    if (folder / "image_encoder").is_dir():
        parts["image_encoder"] = target / CLIP_FILE
        torch.save(clip_state(read_state(folder / "image_encoder")), parts["image_encoder"])
    return parts


def write_single_files(folder: Path, target: Path, *, prefix: str = PREFIX) -> Parts:
    """One safetensors file a network, as ComfyUI repackages them; the parts and where they are.

    Original names, the transformer's behind a prefix; umT5 under transformers' names, with the
    place-holder of a tokenizer; CLIP under transformers' names.
    """
    target.mkdir(parents=True)
    parts: Parts = {"tokenizer": folder / "tokenizer"}
    states: dict[str, State] = {"vae": vae_state(read_state(folder / "vae"))}
    for part in ("transformer", "transformer_2"):
        if (folder / part).is_dir():
            states[part] = rename_state(
                read_state(folder / part), lambda name: prefix + transformer_name(name)
            )
    states["text_encoder"] = read_state(folder / "text_encoder") | {
        "spiece_model": torch.zeros(5, dtype=torch.uint8)
    }
    if (folder / "image_encoder").is_dir():
        names = read_state(folder / "image_encoder")
        states["image_encoder"] = {
            name if name.startswith("vision_model.") else f"vision_model.{name}": tensor
            for name, tensor in names.items()
        } | {"visual_projection.weight": torch.ones(2, 2)}
    for part, state in states.items():
        parts[part] = target / f"{part}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, parts[part])
    return parts


def published(pipeline: WanPipeline) -> WanPipeline:
    """The pipeline with heads of 128 and the published statistics: what needs no config.json."""
    channels = pipeline.vae.config.z_dim
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=128, in_channels=channels,
        out_channels=channels, text_dim=32, freq_dim=256, ffn_dim=136, num_layers=3,
    )  # fmt: skip
    wan_folders.randomise(transformer.eval(), seed=11)
    pipeline.register_modules(transformer=transformer)
    if channels == wan_folders.Z_22:
        pipeline.vae.register_to_config(latents_mean=list(WAN22_MEAN), latents_std=list(WAN22_STD))
    return pipeline
