"""The numbers of a network, from the shapes of its tensors and what its `config.json` adds.

Shapes decide layers, widths, channels and branches: they win over a config that says otherwise (a
public mirror of TI2V-5B has one). The config supplies what no shape shows: heads, latent
statistics, context length, eps. Without one, a head is 128 wide and the statistics are the
published ones. Shapes are those of the original names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sora_cli.models.dit import DiTConfig
from sora_cli.models.text_encoder import TextEncoderConfig
from sora_cli.models.vae import VAEConfig

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Config = Mapping[str, Any]

HEAD_DIM = 128  # of every published transformer

# Mean and deviation per channel of the latents of the published autoencoders (vae2_1.py, vae2_2.py
# of the Wan repositories).
WAN21_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN21_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
)  # fmt: skip
WAN22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813,
    0.0891, 0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108,
    -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313,
    -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944,
    0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
WAN22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip


class UnfitShapesError(Exception):
    """Tensors that are missing, or of shapes that no network has."""


def dit_config(shapes: Shapes, config: Config) -> DiTConfig:
    """The transformer with these shapes.

    Args:
        shapes: by original names.
        config: of diffusers' or of the original form; may be empty.

    Raises:
        UnfitShapesError: a tensor that must be there is not, or is not of its shape.
        ValueError: the config's part is unusable, or needed and missing.
    """
    width, in_channels, pt, ph, pw = axes(shapes, "patch_embedding.weight", 5)
    _, position, _ = axes(shapes, "img_emb.emb_pos", 3, default=(0, 0, 0))
    (image,) = axes(shapes, "img_emb.proj.0.weight", 1, default=(0,))
    _, control, *_ = axes(shapes, "vace_patch_embedding.weight", 5, default=(0,) * 5)
    num_layers = count(shapes, "blocks")
    return DiTConfig(
        num_layers=num_layers,
        hidden_size=width,
        num_heads=_heads(width, config),
        ffn_dim=axes(shapes, "blocks.0.ffn.0.weight", 2)[0],
        in_channels=in_channels,
        out_channels=axes(shapes, "head.head.weight", 2)[0] // (pt * ph * pw),
        text_dim=axes(shapes, "text_embedding.0.weight", 2)[1],
        text_len=whole(config, "text_len", default=512),
        freq_dim=axes(shapes, "time_embedding.0.weight", 2)[1],
        patch_size=(pt, ph, pw),
        eps=small(config, "eps", default=1e-6),
        cross_attn_norm="blocks.0.norm3.weight" in shapes,
        qk_norm="blocks.0.self_attn.norm_q.weight" in shapes,
        image_dim=image or None,
        pos_embed_len=position or None,
        vace_layers=_vace_layers(count(shapes, "vace_blocks"), num_layers, config),
        vace_in_channels=control or None,
    )


def _heads(width: int, config: Config) -> int:
    heads = whole(config, "num_attention_heads", "num_heads", default=0)
    head_dim = whole(config, "attention_head_dim", default=0)
    of_this_width = heads * head_dim == width if head_dim else config.get("dim", width) == width
    if not (heads and of_this_width and width % heads == 0):
        # The config is of another network, or there is none; a head's width changes least.
        head_dim = head_dim if head_dim and width % head_dim == 0 else HEAD_DIM
        heads = width // head_dim
    if heads * (width // max(heads, 1)) != width or width // heads % 2:
        raise ValueError(
            f"its width of {width} is not made of heads of {HEAD_DIM}: "
            "a config.json must say the number of heads"
        )
    return heads


def _vace_layers(blocks: int, num_layers: int, config: Config) -> tuple[int, ...]:
    """Which block each control block adds to. Published ones are spread evenly: beside every
    second of 30 blocks (1.3B), every fifth of 40 (14B)."""
    if not blocks:
        return ()
    said = config.get("vace_layers")
    if isinstance(said, list) and len(said) == blocks:
        if not all(isinstance(n, int) and 0 <= n < num_layers for n in said) or (
            said != sorted(set(said)) or said[0] != 0
        ):
            raise ValueError(f"vace_layers is {said}, of {num_layers} blocks")
        return tuple(said)
    stride = math.ceil(num_layers / blocks)
    return tuple(range(0, stride * blocks, stride))


def vae_config(shapes: Shapes, config: Config) -> VAEConfig:
    """The autoencoder with these shapes; arguments and errors as `dit_config`."""
    residual = "encoder.downsamples.0.downsamples.0.residual.2.weight" in shapes
    levels, blocks = _vae_levels(shapes, residual=residual)
    encoder_dim, pixels, *_ = axes(shapes, "encoder.conv1.weight", 5)
    stage = "encoder.downsamples.{0}.downsamples.{1}" if residual else "encoder.downsamples.{2}"
    parts = [
        [stage.format(level, block, level * (blocks + 1) + block) for block in range(blocks + 1)]
        for level in range(levels)
    ]
    widths = [axes(shapes, f"{part[0]}.residual.2.weight", 5)[0] for part in parts]
    z_dim, patch = axes(shapes, "conv2.weight", 5)[0], math.isqrt(pixels // 3)
    mean, std = _statistics(z_dim, config, published=patch == 1 + residual and levels == 4)
    return VAEConfig(
        z_dim=z_dim,
        encoder_dim=encoder_dim,
        decoder_dim=axes(shapes, "decoder.head.2.weight", 5)[1] * encoder_dim // widths[0],
        dim_mult=tuple(width // encoder_dim for width in widths),
        num_res_blocks=blocks,
        temporal_downsample=tuple(f"{p[blocks]}.time_conv.weight" in shapes for p in parts[:-1]),
        residual=residual,
        patch_size=patch,
        latents_mean=mean,
        latents_std=std,
    )


def _vae_levels(shapes: Shapes, *, residual: bool) -> tuple[int, int]:
    """Levels of the encoder, and residual blocks of each."""
    if residual:
        levels = count(shapes, "encoder.downsamples")
        first = (n for n in shapes if n.startswith("encoder.downsamples.0.downsamples."))
        return levels, count((n for n in first if ".residual." in n), "encoder.downsamples.0.down"
                             "samples")  # fmt: skip
    numbers = (re.match(r"encoder\.downsamples\.(\d+)\.resample\.1\.weight", n) for n in shapes)
    halvings = sorted(int(match[1]) for match in numbers if match)
    blocks = halvings[0] if halvings else count(shapes, "encoder.downsamples")
    return len(halvings) + 1, blocks


def _statistics(
    z_dim: int, config: Config, *, published: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    said = config.get("latents_mean"), config.get("latents_std")
    if None not in said:
        for key, values in zip(("latents_mean", "latents_std"), said, strict=True):
            if not isinstance(values, list) or len(values) != z_dim:
                raise ValueError(f"{key} is not a list of {z_dim} numbers")
            if not all(_is_number(v) and (v > 0 or key != "latents_std") for v in values):
                raise ValueError(f"{key} has values that no statistics have")
        return tuple(map(float, said[0] or ())), tuple(map(float, said[1] or ()))
    known = {len(WAN21_MEAN): (WAN21_MEAN, WAN21_STD), len(WAN22_MEAN): (WAN22_MEAN, WAN22_STD)}
    if not published or z_dim not in known:
        raise ValueError("it is no published one: a config.json must give latents_mean and _std")
    return known[z_dim]


def text_encoder_config(shapes: Shapes, config: Config) -> TextEncoderConfig:
    """The umT5 encoder with these shapes; arguments and errors as `dit_config`."""
    vocab_size, width = axes(shapes, "token_embedding.weight", 2)
    num_buckets, num_heads = axes(shapes, "blocks.0.pos_embedding.embedding.weight", 2)
    inner = axes(shapes, "blocks.0.attn.q.weight", 2)[0]
    if inner % num_heads:
        raise UnfitShapesError(f"{inner} query channels are not those of {num_heads} heads")
    return TextEncoderConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_layers=count(shapes, "blocks"),
        num_heads=num_heads,
        head_dim=inner // num_heads,
        ffn_dim=axes(shapes, "blocks.0.ffn.fc1.weight", 2)[0],
        num_buckets=num_buckets,
        max_distance=whole(config, "relative_attention_max_distance", default=128),
        eps=small(config, "layer_norm_epsilon", default=1e-6),
    )


def axes(shapes: Shapes, name: str, number: int, *, default: Shape | None = None) -> Shape:
    """The shape of a tensor that has so many axes, none of them empty.

    Raises UnfitShapesError for another, and for a missing one without a default.
    """
    shape = shapes.get(name, default)
    if shape is None:
        raise UnfitShapesError(f"{name} is missing")
    if len(shape) != number or (name in shapes and 0 in shape):
        said = "×".join(map(str, shape)) or "a single number"
        raise UnfitShapesError(f"{name} is {said}, not of {number} axes")
    return shape


def count(names: Iterable[str], stem: str) -> int:
    """How many numbers follow `stem.` in the names: the length of a list of modules."""
    pattern = re.compile(re.escape(stem) + r"\.(\d+)\.")
    return len({match[1] for match in map(pattern.match, names) if match})


def whole(config: Config, *keys: str, default: int) -> int:
    """The first of the keys that the config has (null counts as absent), a positive integer.

    Raises ValueError for another value.
    """
    for key in keys:
        value = config.get(key)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{key} is {value!r}")
            return value
    return default


def small(config: Config, key: str, *, default: float) -> float:
    """A number in (0, 1), or the default. Raises ValueError for another value."""
    value = config.get(key)
    if value is None:
        return default
    if not _is_number(value) or not 0 < value < 1:
        raise ValueError(f"{key} is {value!r}")
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
