"""Building blocks of the transformers: norms, embeddings of time and images, RoPE, attention.

Shapes: B batch, L tokens, D width, N heads, K head dim, F latent frames. Source: Wan2.1's
`wan/modules/model.py`; what that code runs in fp32 stays in fp32 here, whatever the dtype of the
weights and whether or not autocast is on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sora_cli.models import attention, fused

Tensors = tuple[Tensor, ...]
KeysValues = tuple[Tensor, ...]  # [B, rows, N, K]: the text's key and value, then any image's


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, computed and returned in fp32 (`[..., D]`).

    T5's layer norm and the query/key norm of Wan, which covers all the heads at once.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        # vector_norm reads x once; square().mean() would write a temporary of x's size, and this
        # is a memory-bound operation.
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # [..., 1]
        if torch.is_grad_enabled():
            scale = torch.rsqrt(length.square() / x.shape[-1] + self.eps)
            return wide * scale * self.weight.float()
        # The same products, written over each other; over the input only where it is a copy.
        scale = length.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        normed = wide * scale if wide is x else wide.mul_(scale)
        return normed.mul_(self.weight.float())


def modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """normed · (1 + scale) + shift, of `[B, L, D]` by `[B or 1, G, D]`, a row over L/G tokens."""
    grouped = normed.unflatten(1, (shift.shape[1], -1))  # [B, G, L/G, D]
    return torch.addcmul(shift[:, :, None], grouped, 1 + scale[:, :, None]).flatten(1, 2)


class LayerNorm(nn.Module):
    """Layer norm over the last dimension, computed and returned in fp32 (`[..., D]`).

    Without weights of its own it may be modulated: then it takes a shift and a scale too.
    """

    def __init__(self, width: int, eps: float = 1e-6, *, affine: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(
        self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """Normed, and where a shift and a scale `[B or 1, G, D]` are given then modulated."""
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        if shift is None or scale is None:
            return F.layer_norm(x.float(), x.shape[-1:], weight, bias, self.eps)
        assert weight is None and bias is None, "a norm with weights is not modulated"
        if shift.shape[:2] == (1, 1) and not torch.is_grad_enabled():
            # One row for all tokens is the norm's own weight and bias: one pass, not two.
            weight, bias = 1 + scale.flatten(), shift.flatten()
            return F.layer_norm(x.float(), x.shape[-1:], weight, bias, self.eps)
        return modulate(F.layer_norm(x.float(), x.shape[-1:], eps=self.eps), shift, scale)


class Linear(nn.Linear):
    """A linear layer whose bias, where oneDNN computes in bfloat16, is added to the sums.

    By itself torch first fills the result with copies of the bias: of 840 tokens of width 256 that
    is a quarter of the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and _asks_onednn(x, self.bias):
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return super().forward(x)


class FeedForward(nn.Sequential):
    """Two linear layers with GELU, in its tanh form, between them; `[..., D]` in and out."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__(nn.Linear(width, inner), nn.GELU(approximate="tanh"), Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        widen, activation, narrow = self
        if _asks_onednn(x, widen.bias):
            # torch's own tanh GELU takes as long as the matmul before it. oneDNN applies it to the
            # sums while they are still in registers, and before they are rounded. In bfloat16 even
            # so tanh costs twice what the products do, and erf, whose GELU the tanh form is within
            # 4.8e-4 of, half of that: the rounding beside it is thirty times the difference.
            form = "none" if x.dtype == torch.bfloat16 else "tanh"
            hidden = torch.ops.mkldnn._linear_pointwise(
                x, widen.weight, widen.bias, "gelu", [], form
            )
        elif torch.is_grad_enabled():
            hidden = tanh_gelu(widen(x)) if torch.compiler.is_compiling() else activation(widen(x))
        else:  # in place: the widest tensor of a block is then there once
            hidden = torch.ops.aten.gelu_(widen(x), approximate="tanh")
        return narrow(hidden)


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, as x · σ(2u): the same function, compiled for a CPU at a third."""
    wide = x.float()
    twice = 2 * (2 / math.pi) ** 0.5
    return (wide * torch.sigmoid(wide * (twice + twice * 0.044715 * wide.square()))).to(x.dtype)


def _asks_onednn(x: Tensor, bias: Tensor) -> bool:
    """Whether oneDNN is asked directly for a linear layer: on an x86 CPU, in inference."""
    return (
        x.device.type == "cpu"
        and x.dtype == bias.dtype  # else autocast is on
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and has_onednn()
    )


@cache
def has_onednn() -> bool:
    """Whether this is an x86 CPU whose torch can be asked for oneDNN's kernels directly."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def call_fp32(module: nn.Module, x: Tensor) -> Tensor:
    """Apply `module` in fp32 even where its weights are bf16; call it with autocast disabled."""
    weights = {name: weight.float() for name, weight in module.named_parameters()}
    return functional_call(module, weights, (x.float(),))


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype a matmul of `x` with `weight` runs in: autocast's if it is on, else the weight's.

    Casting an activation once, by hand, saves autocast from casting it for each of its readers.
    Ask with a bias where the matrices may be stored in a narrower format than they compute in.
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding, cosines first, with angles t · 10000^(-i / (width/2)) in float64.

    Args:
        timesteps: any shape, in 0..1000.
        width: even.

    Returns:
        float32 `[*timesteps.shape, width]`.
    """
    half = width // 2
    # float64, as in Wan2.1: an angle goes up to 1000 rad, where fp32 resolves only 6e-5. MPS has
    # no float64, so there it is done on the CPU.
    device = torch.device("cpu") if timesteps.device.type == "mps" else timesteps.device
    rates = torch.pow(10000.0, -torch.arange(half, dtype=torch.float64, device=device) / half)
    angles = timesteps.detach().to(device).double()[..., None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float().to(timesteps.device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a cached inference tensor could not be used in training later
def rope_table(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Rotations of 3D rotary embeddings for a grid of tokens, as unit complex numbers.

    A head's dimensions are split between time, height and width (44, 42, 42 of 128); the angle of
    pair i of n on an axis is position · 10000^(-i/n). Kept out of the state dict: a buffer would
    stay on `meta` after an assigning load.

    Args:
        grid: tokens along (t, h, w).

    Returns:
        `[L, 1, K/2, 2]` float32, the last axis being (cos, sin).
    """
    spatial = 2 * (head_dim // 6)
    angles = []
    for axis, width in enumerate((head_dim - 2 * spatial, spatial, spatial)):
        rates = torch.pow(10000.0, -torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.arange(grid[axis], dtype=torch.float64)[:, None] * rates  # [n, width/2]
        shape = [1, 1, 1, width // 2]
        shape[axis] = grid[axis]
        angles.append(angle.view(shape).expand(*grid, -1))
    angle = torch.cat(angles, dim=-1).flatten(0, 2)[:, None]  # [L, 1, K/2]
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float().to(device)


def apply_rope(x: Tensor, table: Tensor, *, in_place: bool = False) -> Tensor:
    """Rotate interleaved pairs of `x` `[B, L, N, K]` by `rope_table` `[L, 1, K/2, 2]`, in fp32.

    in_place: x may be written over; it is where that is possible.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    # MPS has no complex kernels worth using, and torch's compiler makes none.
    if x.device.type == "mps" or torch.compiler.is_compiling():
        return rotate_real(pairs, table).flatten(-2)
    if in_place:
        torch.view_as_complex(pairs).mul_(torch.view_as_complex(table))
        return pairs.flatten(-2)
    return rotate_complex(pairs, table).flatten(-2)


def rotate_complex(pairs: Tensor, table: Tensor) -> Tensor:
    """Rotate `[..., 2]` by (cos, sin) as one complex product: one pass over memory each way."""
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))


def rotate_real(pairs: Tensor, table: Tensor) -> Tensor:
    """The same in real arithmetic, equal to rounding."""
    (even, odd), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)


class Attention(nn.Module):
    """Projections of multi-head attention, with the query and key norms across all heads."""

    def __init__(self, width: int, num_heads: int, *, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.o = Linear(width, width)
        self.norm_q = RMSNorm(width, eps) if qk_norm else nn.Identity()
        self.norm_k = RMSNorm(width, eps) if qk_norm else nn.Identity()

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))  # [B, L, N, K]

    def normed_heads(
        self, norms: Sequence[nn.Module], tensors: Sequence[Tensor], rope: Tensor | None = None
    ) -> Tensors:
        """Query, or query and key, normed, split and turned: `[B, L, D]` to `[B, L, N, K]` each.

        In their own dtype: only norm and rotation are in fp32.
        """
        assert all(isinstance(norm, RMSNorm) == isinstance(norms[0], RMSNorm) for norm in norms)
        args = tuple(norms), tuple(tensors), rope, self.num_heads
        if fused.usable(tensors[0]) and isinstance(norms[0], RMSNorm):
            return _NORM_ROTATE(*args)
        return _plain_norm_rotate(*args)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Unmasked attention of `[B, L, N, K]`: `[B, L, D]`, not yet projected."""
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [B, N, L, K]
        if query.device.type == "cpu" and torch.is_grad_enabled():
            # Written out for training: torch's fused attention goes backward on a CPU at a third
            # of the speed of these matmuls (docs/log.md).
            scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)  # [B, N, L, L]
            out = scores.softmax(-1) @ value
        elif query.is_cuda and not torch.is_grad_enabled():
            out = attention.attend(query, key, value)
        else:
            out = F.scaled_dot_product_attention(query, key, value)
        return out.transpose(1, 2).flatten(2)


class SelfAttention(Attention):
    """Attention among the tokens of the grid, with rotary positions."""

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """Attention within `x` `[B, L, D]` under the rotations of `rope_table`."""
        query, key = self.normed_heads((self.norm_q, self.norm_k), (self.q(x), self.k(x)), rope)
        return self.o(self.attend(query, key, self.split_heads(self.v(x))))


class CrossAttention(Attention):
    """Attention from the tokens of the grid to those of the text and, with `image`, of an image."""

    def __init__(
        self, width: int, num_heads: int, *, qk_norm: bool, eps: float, image: bool = False
    ) -> None:
        super().__init__(width, num_heads, qk_norm=qk_norm, eps=eps)
        self.k_img = nn.Linear(width, width) if image else None
        self.v_img = nn.Linear(width, width) if image else None
        if image:
            self.norm_k_img = RMSNorm(width, eps) if qk_norm else nn.Identity()

    def keys_values(self, context: Tensor, image: Tensor | None = None) -> KeysValues:
        """What attention needs of the context: keys and values `[B, rows, N, K]`.

        Args:
            context: embedded text `[B, text_len, D]`.
            image: embedded image `[B, rows, D]`; given if and only if the layer has that branch.
        """
        assert (image is None) == (self.k_img is None), "an image for a layer without its branch"
        value = self.split_heads(self.v(context))
        key = self.split_heads(self.norm_k(self.k(context)))
        if image is None or self.k_img is None or self.v_img is None:
            return key.to(value.dtype), value
        image_value = self.split_heads(self.v_img(image))
        image_key = self.split_heads(self.norm_k_img(self.k_img(image)))
        return key.to(value.dtype), value, image_key.to(image_value.dtype), image_value

    def forward(self, x: Tensor, keys_values: KeysValues) -> Tensor:
        """Attention from `x` `[B or 1, L, D]` over every context token, padding included.

        Text and image have a softmax each; what they give is summed before the projection.
        """
        (query,) = self.normed_heads((self.norm_q,), (self.q(x),))
        key, value, *image = keys_values
        query = query.expand(len(key), -1, -1, -1)
        out = self.attend(query, key, value)
        if image:
            out = out + self.attend(query, *image)
        return self.o(out)


def _plain_norm_rotate(
    norms: Sequence[nn.Module], tensors: Sequence[Tensor], rope: Tensor | None, heads: int
) -> Tensors:
    """What `Attention.normed_heads` does, written out: it trains, and kernels are held to it."""

    def one(norm: nn.Module, x: Tensor) -> Tensor:
        normed = norm(x)
        split = normed.unflatten(-1, (heads, -1))  # [B, L, N, K]
        if rope is not None:
            own = normed is not x and not torch.is_grad_enabled()
            split = apply_rope(split, rope, in_place=own)
        return split.to(x.dtype)

    return tuple(one(norm, x) for norm, x in zip(norms, tensors, strict=True))


def _fused_norm_rotate(
    norms: Sequence[RMSNorm], tensors: tuple[Tensor, ...], rope: Tensor | None, heads: int
) -> Tensors:
    from sora_cli.models import kernels

    weights = tuple(norm.weight for norm in norms)
    found = kernels.norm_rotate(tensors, weights, rope, heads=heads, eps=norms[0].eps)
    return tuple(x.unflatten(-1, (heads, -1)) for x in found)


def _sample_norm_rotate(some: Tensor, args: tuple[Any, ...]) -> tuple[Any, ...]:
    norms, tensors, rope, heads = args
    return norms, tuple(x[:, some] for x in tensors), None if rope is None else rope[some], heads


_NORM_ROTATE = fused.Kernel(
    "norm and rotation", _fused_norm_rotate, _plain_norm_rotate, _sample_norm_rotate
)


class ImageEmbedding(nn.Module):
    """CLIP's tokens of one image, or of two with positions, at the transformer's width."""

    def __init__(self, image_dim: int, width: int, positions: int | None) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            LayerNorm(image_dim, 1e-5, affine=True),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, width),
            LayerNorm(width, 1e-5, affine=True),
        )
        # Tells the first frame's tokens from the last's (FLF2V).
        self.emb_pos = (
            None if positions is None else nn.Parameter(torch.zeros(1, positions, image_dim))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, rows, image_dim]` to `[B, rows, D]`, the norms in fp32."""
        normed, inner, activation, outer, norm = self.proj
        dtype = compute_dtype(tokens, inner.bias)
        if self.emb_pos is not None:
            assert tokens.shape[1] == self.emb_pos.shape[1], "tokens of two images are expected"
            tokens = tokens.float() + self.emb_pos.float()
        return norm(outer(activation(inner(normed(tokens).to(dtype))))).to(dtype)
