"""The networks and the job as plain numbers: what a plan is reckoned from, with no torch.

Shapes come from a model's configs (`*.of`, which read attributes of the same names) or, for a
model that is not on this machine, from the published numbers at the end. Parameter counts are
formulas of the shapes and equal those of the networks in `sora_cli/models`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

DeviceKind = Literal["cpu", "cuda", "mps"]
Storage = Literal["dtype", "fp8"]

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def _linear(fan_in: int, fan_out: int) -> int:
    return fan_in * fan_out + fan_out


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerShape:
    """A diffusion transformer.

    image_dim: width of the CLIP tokens of Wan2.1's image-to-video branch, None without one;
        image_positions: the learned positions on them (514 for first-and-last, else 0).
    vace_layers: blocks of the VACE branch; vace_in_channels: of its input.
    experts: 2 for A14B, whose experts take turns.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_dim: int
    in_channels: int
    out_channels: int
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    image_dim: int | None = None
    image_positions: int = 0
    vace_layers: int = 0
    vace_in_channels: int = 96
    experts: int = 1

    @classmethod
    def of(cls, config: Any, *, experts: int = 1) -> Self:
        """The shape of a `DiTConfig`."""
        return cls(
            num_layers=config.num_layers, hidden_size=config.hidden_size,
            num_heads=config.num_heads, ffn_dim=config.ffn_dim,
            in_channels=config.in_channels, out_channels=config.out_channels,
            text_dim=config.text_dim, text_len=config.text_len, freq_dim=config.freq_dim,
            patch_size=tuple(config.patch_size),
            image_dim=getattr(config, "image_dim", None),
            image_positions=getattr(config, "pos_embed_len", None) or 0,
            vace_layers=len(getattr(config, "vace_layers", ())),
            vace_in_channels=getattr(config, "vace_in_channels", None) or 96,
            experts=experts,
        )  # fmt: skip

    @property
    def image_tokens(self) -> int:
        """CLIP tokens in the context: 257 of one picture, 514 of two."""
        return 0 if self.image_dim is None else self.image_positions or 257

    @property
    def block_parameters(self) -> int:
        """Of one block."""
        width = self.hidden_size
        attention = 4 * _linear(width, width) + 2 * width  # with the query and key norms
        feed_forward = _linear(width, self.ffn_dim) + _linear(self.ffn_dim, width)
        block = 2 * attention + feed_forward + 2 * width + 6 * width  # norm3, modulation
        if self.image_dim is not None:
            block += 2 * _linear(width, width) + width
        return block

    @property
    def vace_parameters(self) -> int:
        """Of the VACE branch: its blocks, their projections and its patch embedding."""
        if not self.vace_layers:
            return 0
        width, patch = self.hidden_size, math.prod(self.patch_size)
        projections = (self.vace_layers + 1) * _linear(width, width)
        embedding = _linear(self.vace_in_channels * patch, width)
        return self.vace_layers * self.block_parameters + projections + embedding

    @property
    def parameters(self) -> int:
        """Of one expert."""
        width, patch = self.hidden_size, math.prod(self.patch_size)
        embeddings = (
            _linear(self.in_channels * patch, width)
            + _linear(self.text_dim, width) + _linear(width, width)
            + _linear(self.freq_dim, width) + _linear(width, width) + _linear(width, 6 * width)
        )  # fmt: skip
        if (image := self.image_dim) is not None:
            embeddings += _linear(image, image) + _linear(image, width) + 2 * (image + width)
            embeddings += self.image_positions * image
        head = _linear(width, self.out_channels * patch) + 2 * width
        return self.num_layers * self.block_parameters + self.vace_parameters + embeddings + head


DECODED_AT_ONCE = 12_288  # as in `models.vae`: latent positions times the decoder's width


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderShape:
    """A video autoencoder, in the names of `VAEConfig`."""

    z_dim: int
    encoder_dim: int
    decoder_dim: int
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    residual: bool
    patch_size: int = 1

    @classmethod
    def of(cls, config: Any) -> Self:
        """The shape of a `VAEConfig`."""
        names = ("z_dim", "encoder_dim", "decoder_dim", "dim_mult", "num_res_blocks")
        more = ("temporal_downsample", "residual", "patch_size")
        return cls(**{name: getattr(config, name) for name in (*names, *more)})

    @property
    def scale_factors(self) -> tuple[int, int, int]:
        """Pixels per latent along (t, h, w)."""
        space = self.patch_size * 2 ** (len(self.dim_mult) - 1)
        return 2 ** sum(self.temporal_downsample), space, space

    def decoded_at_once(self, height: int, width: int) -> int:
        """Latent frames of so many positions that the decoder takes in one call."""
        return max(1, DECODED_AT_ONCE // (height * width * self.decoder_dim))


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoderShape:
    """A umT5 encoder, in the names of `TextEncoderConfig`."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    ffn_dim: int
    num_buckets: int = 32

    @classmethod
    def of(cls, config: Any) -> Self:
        """The shape of a `TextEncoderConfig`."""
        names = ("vocab_size", "hidden_size", "num_layers", "num_heads", "head_dim", "ffn_dim")
        return cls(**{name: getattr(config, name) for name in (*names, "num_buckets")})

    @property
    def parameters(self) -> int:
        """Of the encoder, its embedding among them."""
        width, inner = self.hidden_size, self.num_heads * self.head_dim
        block = 4 * width * inner + 3 * width * self.ffn_dim + 2 * width
        block += self.num_buckets * self.num_heads
        return self.vocab_size * width + self.num_layers * block + width


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkShapes:
    """Everything that a model is made of.

    image_encoder_parameters: of CLIP's vision tower, 0 where the family has none.
    disk_bytes: of the files; None where they are not known, then bfloat16 weights are assumed.
    """

    transformer: TransformerShape
    autoencoder: AutoencoderShape
    text_encoder: TextEncoderShape
    image_encoder_parameters: int = 0
    disk_bytes: int | None = None

    @classmethod
    def of(
        cls, transformer: Any, autoencoder: Any, text_encoder: Any, *, experts: int = 1, **more: Any
    ) -> NetworkShapes:
        """From the configs of `models`; `more` are the other fields."""
        return cls(
            transformer=TransformerShape.of(transformer, experts=experts),
            autoencoder=AutoencoderShape.of(autoencoder),
            text_encoder=TextEncoderShape.of(text_encoder),
            **more,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class JobShape:
    """What is to be made, and where.

    width, height: pixels; num_frames: scale_t·k + 1.
    steps: calls of the sampler. contexts: texts that the transformer reads: 2 with guidance, else
        1. batch: rows in one call of the transformer (2 where both halves of guidance go through
        at once, times the videos made at once).
    given_frames: pixel frames that the autoencoder has to encode, 0 for text to video.
    dtype: of the networks; the autoencoder is fp32 wherever it encodes.
    cores: of the CPU, for its rate. device_name: as the driver says it, for the rate of a GPU.
    tflops: the device's measured rate on this transformer, where one is known.
    kernels: those of `models/kernels.py` run where the device is a GPU of CUDA.
    """

    width: int
    height: int
    num_frames: int
    steps: int
    contexts: int = 2
    batch: int = 1
    given_frames: int = 0
    dtype: str = "bfloat16"
    device_kind: DeviceKind = "cuda"
    device_name: str = ""
    cores: int = 1
    tflops: float | None = None
    kernels: bool = True

    @property
    def item_bytes(self) -> int:
        """Bytes of one number of the networks' dtype."""
        return ITEM_BYTES[self.dtype]

    def latent_size(self, autoencoder: AutoencoderShape) -> tuple[int, int, int]:
        """(T, H, W) of the latents."""
        time, tall, wide = autoencoder.scale_factors
        return (self.num_frames - 1) // time + 1, self.height // tall, self.width // wide

    def tokens(self, shapes: NetworkShapes) -> int:
        """Tokens of one row."""
        size = self.latent_size(shapes.autoencoder)
        patch = shapes.transformer.patch_size
        return math.prod(n // p for n, p in zip(size, patch, strict=True))


UMT5_XXL = TextEncoderShape(
    vocab_size=256_384, hidden_size=4096, num_layers=24, num_heads=64, head_dim=64, ffn_dim=10_240
)
VAE_21 = AutoencoderShape(z_dim=16, encoder_dim=96, decoder_dim=96, residual=False)
VAE_22 = AutoencoderShape(
    z_dim=48, encoder_dim=160, decoder_dim=256, residual=True, patch_size=2
)  # fmt: skip
CLIP_VIT_H_PARAMETERS = 632_076_800  # the vision tower of ViT-H/14


def _wan(
    heads: int, layers: int, ffn: int, channels: tuple[int, int] = (16, 16), **more: Any
) -> TransformerShape:
    return TransformerShape(
        num_layers=layers, hidden_size=128 * heads, num_heads=heads, ffn_dim=ffn,
        in_channels=channels[0], out_channels=channels[1], **more,
    )  # fmt: skip


def _published(transformer: TransformerShape, vae: AutoencoderShape = VAE_21) -> NetworkShapes:
    clip = 0 if transformer.image_dim is None else CLIP_VIT_H_PARAMETERS
    return NetworkShapes(
        transformer=transformer, autoencoder=vae, text_encoder=UMT5_XXL,
        image_encoder_parameters=clip,
    )  # fmt: skip


# The published repositories' configs, for models that are not on this machine yet.
PUBLISHED: Mapping[str, NetworkShapes] = {
    "wan2.1-t2v-1.3b": _published(_wan(12, 30, 8960)),
    "wan2.1-t2v-14b": _published(_wan(40, 40, 13_824)),
    "wan2.1-i2v-14b": _published(_wan(40, 40, 13_824, (36, 16), image_dim=1280)),
    "wan2.1-flf2v-14b": _published(
        _wan(40, 40, 13_824, (36, 16), image_dim=1280, image_positions=514)
    ),
    "wan2.1-vace-1.3b": _published(_wan(12, 30, 8960, vace_layers=15)),
    "wan2.1-vace-14b": _published(_wan(40, 40, 13_824, vace_layers=8)),
    "wan2.2-ti2v-5b": _published(_wan(24, 30, 14_336, (48, 48)), VAE_22),
    "wan2.2-t2v-a14b": _published(_wan(40, 40, 13_824, experts=2)),
    "wan2.2-i2v-a14b": _published(_wan(40, 40, 13_824, (36, 16), experts=2)),
}


def published(name: str) -> NetworkShapes | None:
    """The shapes of a published model by its name in the manifest, variants of it included.

    `wan2.1-t2v-14b-fp8` and `fastwan2.2-ti2v-5b` are what they are made from; None for others.
    """
    known = [key for key in PUBLISHED if key in name]
    return PUBLISHED[max(known, key=len)] if known else None
