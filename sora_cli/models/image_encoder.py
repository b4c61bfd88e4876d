"""CLIP's view of a picture, which Wan2.1's image to video attends to besides the text.

The vision transformer of open_clip's XLM-RoBERTa ViT-H/14, up to its last block but one, whose
output the transformer was trained on: the last block and everything after it are never computed,
so they are not here. Written out, rather than wrapped: transformers 5 has renamed the modules of
its `CLIPVisionModel` and keeps a buffer that an assigning load leaves behind. Module names are
transformers'. Shapes: B batch, L tokens (1 + 16·16), D width. Sources: Radford et al. 2021 (CLIP);
Wan2.1's `wan/modules/clip.py`; parity is tested against transformers' `CLIPVisionModel`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sora_cli.models.layers import LayerNorm, compute_dtype

Activation = Literal["gelu", "quick_gelu"]
Fit = Literal["crop", "square", "original"]
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageEncoderConfig:
    """Numbers of a CLIP vision transformer.

    num_layers counts the last block, which is not computed; image_size and patch_size in pixels.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_dim: int
    image_size: int = 224
    patch_size: int = 14
    activation: Activation = "gelu"
    eps: float = 1e-5

    @property
    def num_tokens(self) -> int:
        """Tokens of one picture: its patches, and the one that stands for all of it."""
        return (self.image_size // self.patch_size) ** 2 + 1


VIT_HUGE = ImageEncoderConfig(num_layers=32, hidden_size=1280, num_heads=16, ffn_dim=5120)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How a picture of any size becomes the square that CLIP reads.

    fit: "crop" scales the shorter side to the square's and keeps the middle, as diffusers does
        (CLIP's own way, and the default: the published diffusers folders ask for it); "square"
        scales both sides, distorting; "original" does so too, but as Wan2.1's own code, without
        smoothing before it shrinks. "crop" and "square" resize 8-bit values with PIL's bicubic
        filter, "original" floats with torch's.
    mean, std: of each channel (R, G, B), for values in 0..1.
    """

    fit: Fit = "crop"
    mean: Triple = (0.48145466, 0.4578275, 0.40821073)
    std: Triple = (0.26862954, 0.26130258, 0.27577711)


def preprocess(frames: Tensor, size: int, preprocessing: Preprocessing) -> Tensor:
    """Pictures to what CLIP reads.

    Args:
        frames: `[B, 3, H, W]`, uint8, or float in −1..1.
        size: side of the square, in pixels.

    Returns:
        `[B, 3, size, size]` float32, normalised, on the frames' device.
    """
    if preprocessing.fit == "original":
        x = frames.float() / 127.5 - 1 if frames.dtype == torch.uint8 else frames.float()
        x = F.interpolate(x, size=(size, size), mode="bicubic", align_corners=False) * 0.5 + 0.5
    else:
        if frames.dtype != torch.uint8:
            frames = ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        square = preprocessing.fit == "square"
        pictures = [_resize(frame, size, square=square) for frame in frames.cpu()]
        x = torch.stack(pictures).to(frames.device).float() / 255
    mean, std = (x.new_tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return (x - mean) / std


def _resize(frame: Tensor, size: int, *, square: bool) -> Tensor:
    """`[3, H, W]` to `[3, size, size]`, uint8: the middle, or with `square` all of it."""
    picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
    width, height = picture.size
    shorter = min(width, height)
    wide, high = (size, size) if square else (size * n // shorter for n in (width, height))
    picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    picture = picture.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


class Embeddings(nn.Module):
    """Patches, after a learned token for the whole picture, with learned positions."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(config.num_tokens, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """`[B, 3, S, S]` to `[B, L, D]`, float32."""
        pixels = pixels.to(compute_dtype(pixels, self.patch_embedding.weight))
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2).float()
        whole = self.class_embedding.float().expand(len(patches), 1, -1)
        return torch.cat([whole, patches], dim=1) + self.position_embedding.weight.float()


class VisionAttention(nn.Module):
    """Attention among all the tokens of a picture."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within `x` `[B, L, D]`."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, N, L, K]
            for layer in layers
        )
        out = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class VisionBlock(nn.Module):
    """Attention and feed-forward, each pre-normed and added to the fp32 residual stream."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.ffn_dim
        activation = nn.GELU() if config.activation == "gelu" else QuickGELU()
        self.layer_norm1 = LayerNorm(width, config.eps, affine=True)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = LayerNorm(width, config.eps, affine=True)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, inner), act=activation, fc2=nn.Linear(inner, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x, self.self_attn.q_proj.weight)
        x = x + self.self_attn(self.layer_norm1(x).to(dtype))
        return x + self.mlp(self.layer_norm2(x).to(dtype))


class ImageEncoder(nn.Module):
    """Pictures to the tokens that `DiT.prepare_context` takes as `image_context`."""

    def __init__(
        self, config: ImageEncoderConfig, preprocessing: Preprocessing | None = None
    ) -> None:
        """Build it.

        Args:
            preprocessing: of `encode`; that of the diffusers folders when not given.
        """
        super().__init__()
        self.config = config
        self.preprocessing = preprocessing or Preprocessing()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.eps, affine=True)
        blocks = (VisionBlock(config) for _ in range(config.num_layers - 1))
        self.encoder = nn.ModuleDict({"layers": nn.Sequential(*blocks)})

    def forward(self, pixels: Tensor) -> Tensor:
        """The penultimate block's output.

        Args:
            pixels: `[B, 3, image_size, image_size]`, normalised, from `preprocess`.

        Returns:
            `[B, L, D]`, float32.
        """
        size = self.config.image_size
        assert pixels.shape[-2:] == (size, size), "pixels are not preprocessed"
        return self.encoder["layers"](self.pre_layrnorm(self.embeddings(pixels)))

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """See pictures: `[B, 3, H, W]`, uint8 or float in −1..1, to `[B, L, D]`, float32.

        Give them as they came, not cut to the size of the video, as the published code does. For
        FLF2V put the tokens of the two pictures one after the other, `[1, 2·L, D]`.
        """
        frames = frames.to(self.embeddings.class_embedding.device)
        return self(preprocess(frames, self.config.image_size, self.preprocessing))
