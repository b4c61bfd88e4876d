"""Names and configs of the image encoder: transformers' folders and Wan2.1's own file.

Inside, modules have transformers' names. They are published in three layouts: transformers' own,
with `vision_model.` before each name (and without it since transformers 5); the same beside a text
model, or with a projection; and that of Wan2.1's code, in
`models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`, which keeps queries, keys and values in
one matrix. What has been checked: the first against `CLIPVisionModel` and
`CLIPVisionModelWithProjection` of transformers 5.23, in the tests; the last against the modules
that Wan2.1's `wan/modules/clip.py` builds, with random weights, and against the names and shapes
that two public converters expect of the published file, which itself has not been opened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from torch import Tensor

from sora_cli.errors import WeightsError
from sora_cli.models.image_encoder import Activation, ImageEncoderConfig, Preprocessing
from sora_cli.weights.keymaps import Rules, rename
from sora_cli.weights.store import read_json, say_config_error

PREFIX = re.compile(r"^(model\.)?(vision_model\.)?")
FUSED = ".attn.to_qkv."
VIT_HEAD_DIM = 80  # of ViT-H/14, which is what a file without a config is
BICUBIC = 3  # PIL's number for it

CLIP_ORIGINAL: Rules = MappingProxyType(
    {
        "visual.cls_embedding": "embeddings.class_embedding",
        "visual.patch_embedding": "embeddings.patch_embedding",
        "visual.pos_embedding": "embeddings.position_embedding.weight",
        "visual.pre_norm": "pre_layrnorm",
        "visual.transformer.*.norm1": "encoder.layers.*.layer_norm1",
        # q, k and v stand for the three parts of to_qkv, in that order along its first axis.
        "visual.transformer.*.attn.q": "encoder.layers.*.self_attn.q_proj",
        "visual.transformer.*.attn.k": "encoder.layers.*.self_attn.k_proj",
        "visual.transformer.*.attn.v": "encoder.layers.*.self_attn.v_proj",
        "visual.transformer.*.attn.proj": "encoder.layers.*.self_attn.out_proj",
        "visual.transformer.*.norm2": "encoder.layers.*.layer_norm2",
        "visual.transformer.*.mlp.0": "encoder.layers.*.mlp.fc1",
        "visual.transformer.*.mlp.2": "encoder.layers.*.mlp.fc2",
    }
)

# After the last block, or of the text model that CLIP was trained with.
UNUSED = re.compile(
    r"post_layernorm\.|visual_projection\.|text_|textual\.|logit_scale$|log_scale$"
    r"|visual\.(post_norm\.|head)|embeddings\.position_ids$"
)
LAYER = re.compile(r"^(?:encoder\.layers|visual\.transformer)\.(\d+)\.")


def image_encoder_tensors(name: str, tensor: Tensor, num_layers: int) -> dict[str, Tensor]:
    """What one tensor of a checkpoint is in an `ImageEncoder`.

    Args:
        name: in any of the layouts.
        num_layers: of the config; the last one is not read.

    Returns:
        Our names and tensors: one, three of a fused matrix, or none of what is not read.

    Raises:
        KeyError: a name outside the layouts.
    """
    name = PREFIX.sub("", name)
    layer = LAYER.match(name)
    if UNUSED.match(name) or (layer and int(layer[1]) >= num_layers - 1):
        return {}
    if not name.startswith("visual."):
        if layer or name.startswith(("embeddings.", "pre_layrnorm.")):
            return {name: tensor}
        raise KeyError(f"{name} is not in this layout")
    if FUSED in name:
        parts = zip("qkv", tensor.chunk(3), strict=True)
        tensors = {name.replace(FUSED, f".attn.{part}."): third for part, third in parts}
    elif name in ("visual.cls_embedding", "visual.pos_embedding"):
        tensors = {name: tensor.flatten(0, -2) if "pos" in name else tensor.flatten()}
    else:
        tensors = {name: tensor}
    names = rename(tensors, CLIP_ORIGINAL)
    return {names[theirs]: values for theirs, values in tensors.items()}


def image_encoder_config(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> ImageEncoderConfig:
    """The image encoder with these shapes.

    Args:
        shapes: of a checkpoint in any of the layouts. They decide whatever they show.
        config: transformers' `config.json`, of the vision model or of a whole CLIP, for the heads
            and the activation; empty where there is none, and then it is a ViT-H/14's.

    Raises:
        KeyError: a tensor that must be there is not.
        ValueError: the config's part is unusable.
    """
    shapes = {PREFIX.sub("", name): shape for name, shape in shapes.items()}
    config = config.get("vision_config") or config
    activation: Activation = config.get("hidden_act", "quick_gelu") if config else "gelu"
    original = "visual.cls_embedding" in shapes
    stem = "visual." if original else "embeddings."
    width, _, patch, _ = shapes[f"{stem}patch_embedding.weight"]
    rows = shapes[stem + ("pos_embedding" if original else "position_embedding.weight")][-2]
    first = "visual.transformer.0.mlp.0" if original else "encoder.layers.0.mlp.fc1"
    if activation not in get_args(Activation):
        raise ValueError(f"hidden_act is {activation!r}, not gelu or quick_gelu")
    heads = config.get("num_attention_heads", width // VIT_HEAD_DIM)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(f"a width of {width} is not made of {heads} heads")
    return ImageEncoderConfig(
        num_layers=1 + max(int(match[1]) for match in map(LAYER.match, shapes) if match),
        hidden_size=width,
        num_heads=heads,
        ffn_dim=shapes[f"{first}.weight"][0],
        image_size=math.isqrt(rows - 1) * patch,
        patch_size=patch,
        activation=activation,
        eps=float(config.get("layer_norm_eps", 1e-5)),
    )


def read_preprocessing(part: Path) -> Preprocessing:
    """How the pictures for an image encoder are prepared.

    Args:
        part: the encoder's folder, whose `preprocessor_config.json` is in it or in
            `image_processor` beside it, else CLIP's own way is taken; or one file, and then
            Wan2.1's own way is taken.

    Raises:
        WeightsError: the config cannot be read, or asks for what `Preprocessing` cannot do.
    """
    if not part.is_dir():
        return Preprocessing(fit="original")
    for folder in (part, part.parent / "image_processor"):
        path = folder / "preprocessor_config.json"
        if path.is_file():
            try:
                return preprocessing_from_hf(read_json(path))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise WeightsError(
                    f"{path} cannot be used: {say_config_error(error)}",
                    hint="download the whole folder again",
                ) from error
    return Preprocessing()


def preprocessing_from_hf(config: Mapping[str, Any]) -> Preprocessing:
    """Read CLIP's `preprocessor_config.json`, of the older form and of the newer.

    Raises ValueError where it asks for what `Preprocessing` cannot do. Numbers of pixels are not
    looked at: the encoder reads one size.
    """
    if config.get("resample", BICUBIC) != BICUBIC:
        raise ValueError(f"resample is {config['resample']}, not bicubic ({BICUBIC})")
    size = config.get("size", {})
    square = isinstance(size, Mapping) and "height" in size
    if not square and not config.get("do_center_crop", True):
        raise ValueError("do_center_crop is false, though size is of the shorter side alone")
    default = Preprocessing()
    mean, std = config.get("image_mean", default.mean), config.get("image_std", default.std)
    return Preprocessing(
        fit="square" if square else "crop",
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
    )
