"""Names of the umT5 encoder's modules in the layouts it is published in.

The original (`models_t5_umt5-xxl-enc-bf16.pth`) has our names. Transformers' folders and the single
files of ComfyUI have transformers' names (`keymaps.UMT5_HF`), GGUF files those of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from sora_cli.weights import keymaps

# llama.cpp's names, with `encoder.block` for its `enc.blk`.
UMT5_GGUF: keymaps.Rules = MappingProxyType(
    {
        "token_embd": "token_embedding",
        "enc.output_norm": "norm",
        "encoder.block.*.attn_norm": "blocks.*.norm1",
        **{f"encoder.block.*.attn_{a}": f"blocks.*.attn.{a}" for a in "qkvo"},
        "encoder.block.*.attn_rel_b": "blocks.*.pos_embedding.embedding",
        "encoder.block.*.ffn_norm": "blocks.*.norm2",
        "encoder.block.*.ffn_gate": "blocks.*.ffn.gate.0",
        "encoder.block.*.ffn_up": "blocks.*.ffn.fc1",
        "encoder.block.*.ffn_down": "blocks.*.ffn.fc2",
    }
)


def from_transformers(names: Iterable[str]) -> dict[str, str]:
    """Transformers' parameter names → ours. Raises KeyError for a name outside the layout."""
    names = list(names)
    # transformers 5 saves the embedding once, under either of its two tied names; others twice.
    if "shared.weight" in names:
        names = [name for name in names if name != "encoder.embed_tokens.weight"]
    return keymaps.rename(names, keymaps.UMT5_HF)


def from_gguf(names: Iterable[str]) -> dict[str, str]:
    """llama.cpp's parameter names → ours. Raises KeyError for a name outside the layout."""
    blocks = {name: name.replace("enc.blk.", "encoder.block.") for name in names}
    ours = keymaps.rename(blocks.values(), UMT5_GGUF)
    return {name: ours[path] for name, path in blocks.items()}
