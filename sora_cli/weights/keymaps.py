"""Names and configs of the transformer (diffusers) and the text encoder (transformers).

Inside, modules have the original Wan names; the published folders use others. The layouts differ
only in what modules are called, so a map is a table of module paths, foreign → ours, with `*` for
the number of a block; a parameter's last word is the same on both sides. The autoencoder's map,
which depends on its config, is in `keymaps_vae`, the image encoder's in `keymaps_clip`. Source: the
converters of diffusers 0.42.1 and transformers 5, checked against `WanTransformer3DModel`,
`WanVACETransformer3DModel` and `UMT5EncoderModel`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from sora_cli.models.dit import DiTConfig
from sora_cli.models.text_encoder import TextEncoderConfig

Rules = Mapping[str, str]

QK_NORM = "rms_norm_across_heads"  # diffusers' name for the only kind of query/key norm
BLOCK_NUMBER = re.compile(
    r"(?<=^blocks\.)\d+|(?<=^vace_blocks\.)\d+|(?<=^encoder\.block\.)\d+"
    r"|(?<=^visual\.transformer\.)\d+"
)
# Saved in some folders of image to video, read by nobody, diffusers included.
UNUSED = re.compile(r"\.norm_added_q\.")

_ATTENTION = {
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"
}  # fmt: skip
_CROSS_ATTENTION = {
    **_ATTENTION, "add_k_proj": "k_img", "add_v_proj": "v_img", "norm_added_k": "norm_k_img"
}  # fmt: skip

# The norms change places: only the one before cross-attention has weights, and Wan calls it norm3.
_DIT_BLOCK = {
    **{f"attn1.{a}": f"self_attn.{b}" for a, b in _ATTENTION.items()},
    **{f"attn2.{a}": f"cross_attn.{b}" for a, b in _CROSS_ATTENTION.items()},
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
}
_VACE_BLOCK = {**_DIT_BLOCK, "proj_in": "before_proj", "proj_out": "after_proj"}

# All the family's parameters; a checkpoint has those of its branches.
DIT_DIFFUSERS: Rules = MappingProxyType(
    {
        "patch_embedding": "patch_embedding",
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
        "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
        "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
        "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
        "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
        **{f"blocks.*.{a}": f"blocks.*.{b}" for a, b in _DIT_BLOCK.items()},
        "vace_patch_embedding": "vace_patch_embedding",
        **{f"vace_blocks.*.{a}": f"vace_blocks.*.{b}" for a, b in _VACE_BLOCK.items()},
        "scale_shift_table": "head.modulation",
        "proj_out": "head.head",
    }
)

# The embedding is tied, and saved under either of its two names; `shared` is the usual one.
UMT5_HF: Rules = MappingProxyType(
    {
        "shared": "token_embedding",
        "encoder.embed_tokens": "token_embedding",
        "encoder.final_layer_norm": "norm",
        "encoder.block.*.layer.0.layer_norm": "blocks.*.norm1",
        **{f"encoder.block.*.layer.0.SelfAttention.{a}": f"blocks.*.attn.{a}" for a in "qkvo"},
        "encoder.block.*.layer.0.SelfAttention.relative_attention_bias": (
            "blocks.*.pos_embedding.embedding"
        ),
        "encoder.block.*.layer.1.layer_norm": "blocks.*.norm2",
        "encoder.block.*.layer.1.DenseReluDense.wi_0": "blocks.*.ffn.gate.0",
        "encoder.block.*.layer.1.DenseReluDense.wi_1": "blocks.*.ffn.fc1",
        "encoder.block.*.layer.1.DenseReluDense.wo": "blocks.*.ffn.fc2",
    }
)


def inverse(rules: Rules) -> Rules:
    """The rules ours → foreign; of two foreign names for one module, the first."""
    return MappingProxyType({ours: theirs for theirs, ours in reversed(list(rules.items()))})


def rename(names: Iterable[str], rules: Rules) -> dict[str, str]:
    """Translate parameter names, one to one.

    Args:
        names: of one checkpoint.
        rules: `DIT_DIFFUSERS`, `UMT5_HF`, or the `inverse` of one.

    Returns:
        Each name with its translation, in the order given, without those that nobody reads.

    Raises:
        KeyError: a name outside the layout, or two names for one parameter.
    """
    renamed = {name: _translate(name, rules) for name in names if not UNUSED.search(name)}
    if len(set(renamed.values())) < len(renamed):
        raise KeyError(f"two names for one parameter among {sorted(renamed)[:5]}…")
    return renamed


def _translate(name: str, rules: Rules) -> str:
    number = BLOCK_NUMBER.search(name)
    path = BLOCK_NUMBER.sub("*", name)
    module, _, leaf = path.rpartition(".")
    if path in rules:  # a parameter that stands alone, like modulation
        translated = rules[path]
    elif module in rules:
        translated = f"{rules[module]}.{leaf}"
    else:
        raise KeyError(f"{name} is not in this layout")
    return translated.replace("*", number[0]) if number else translated


def dit_config_to_diffusers(config: DiTConfig) -> dict[str, Any]:
    """The `transformer/config.json` with which diffusers builds the same network."""
    vace = bool(config.vace_layers)
    return {
        "_class_name": "WanVACETransformer3DModel" if vace else "WanTransformer3DModel",
        "_diffusers_version": "0.42.1",
        "patch_size": list(config.patch_size),
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "text_dim": config.text_dim,
        "text_len": config.text_len,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "cross_attn_norm": config.cross_attn_norm,
        "qk_norm": QK_NORM if config.qk_norm else None,
        "eps": config.eps,
        "image_dim": config.image_dim,
        "added_kv_proj_dim": None if config.image_dim is None else config.hidden_size,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": config.pos_embed_len,
        **(
            {"vace_layers": list(config.vace_layers), "vace_in_channels": config.vace_in_channels}
            if vace
            else {}
        ),
    }


def text_encoder_config_to_hf(config: TextEncoderConfig) -> dict[str, Any]:
    """The `text_encoder/config.json` with which transformers builds the same network."""
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_ff": config.ffn_dim,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.eps,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
