"""The diffusion transformer of the Wan family (Wan2.1, Wan2.2), predicting velocity.

Module names are the original Wan names, which LoRA and single-file weights use. Shapes: B batch,
C channels, (T, H, W) latent grid, L tokens, D width, N heads, K head dim, G groups of tokens that
share a timestep. Source: Wan2.1's `wan/modules/model.py`, whose fp32 islands are kept: the time
MLP, modulation, norms, head and the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sora_cli.models.layers import (
    CrossAttention,
    LayerNorm,
    SelfAttention,
    call_fp32,
    compute_dtype,
    rope_table,
    timestep_embedding,
)

KeysValues = tuple[Tensor, Tensor]  # [B, text_len, N, K] each


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTConfig:
    """Numbers of a transformer, in the names of the published configs.

    num_heads divides hidden_size; channels are of the latents; text_len is the number of context
    rows that are attended to, zeros included; patch_size is (t, h, w) in latent positions.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_dim: int
    in_channels: int
    out_channels: int
    text_dim: int
    text_len: int = 512
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    cross_attn_norm: bool = True
    qk_norm: bool = True

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextCache:
    """A prompt as the blocks read it: each block's cross-attention keys and values."""

    keys_values: tuple[KeysValues, ...]


def patchify(latents: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Cut `[B, C, T, H, W]` into tokens `[B, L, pt·ph·pw·C]`, channels fastest."""
    batch, channels, *size = latents.shape
    (pt, ph, pw), grid = patch_size, token_grid(size, patch_size)
    x = latents.reshape(batch, channels, grid[0], pt, grid[1], ph, grid[2], pw)
    return x.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(batch, math.prod(grid), -1)


def unpatchify(tokens: Tensor, grid: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """The inverse of `patchify`: `[B, L, pt·ph·pw·C]` to `[B, C, T, H, W]`."""
    x = tokens.reshape(tokens.shape[0], *grid, *patch_size, -1)
    x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # [B, C, t, pt, h, ph, w, pw]
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def token_grid(size: Sequence[int], patch_size: Sequence[int]) -> tuple[int, int, int]:
    """Tokens along (t, h, w) of a latent grid of `size` (T, H, W)."""
    assert all(n % p == 0 for n, p in zip(size, patch_size, strict=True)), (size, patch_size)
    t, h, w = (n // p for n, p in zip(size, patch_size, strict=True))
    return t, h, w


def modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """normed · (1 + scale) + shift, of `[B, L, D]` by `[B, G, D]`, each row over L/G tokens."""
    grouped = normed.unflatten(1, (shift.shape[1], -1))  # [B, G, L/G, D]
    return torch.addcmul(shift[:, :, None], grouped, 1 + scale[:, :, None]).flatten(1, 2)


def add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update · gate, of `[B, L, D]` by `[B, G, D]`: the fp32 residual stream."""
    groups = (gate.shape[1], -1)
    out = torch.addcmul(x.unflatten(1, groups), update.unflatten(1, groups), gate[:, :, None])
    return out.flatten(1, 2)


class DiTBlock(nn.Module):
    """Self-attention, cross-attention over the text, feed-forward; each adds to the residual."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.eps
        self.norm1 = LayerNorm(width, eps)
        self.self_attn = SelfAttention(width, config.num_heads, qk_norm=config.qk_norm, eps=eps)
        # Out of order in Wan's names: norm3 stands before cross-attention, norm2 before the ffn.
        self.norm3 = LayerNorm(width, eps, affine=True) if config.cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(width, config.num_heads, qk_norm=config.qk_norm, eps=eps)
        self.norm2 = LayerNorm(width, eps)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, width),
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, width).normal_(std=width**-0.5))

    def forward(self, x: Tensor, time: Tensor, keys_values: KeysValues, rope: Tensor) -> Tensor:
        """One block.

        Args:
            x: residual stream `[B, L, D]`, float32.
            time: time projection `[B, G, 6, D]`, float32.
            keys_values: of the text, from `CrossAttention.keys_values`.
            rope: `rope_table` of the token grid.

        Returns:
            `[B, L, D]`, float32.
        """
        dtype = compute_dtype(x, self.self_attn.q.weight)
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.float() + time).unbind(2)
        update = self.self_attn(modulate(self.norm1(x), shift1, scale1).to(dtype), rope)
        x = add_gated(x, update, gate1)
        x = x + self.cross_attn(self.norm3(x).to(dtype), keys_values)
        update = self.ffn(modulate(self.norm2(x), shift2, scale2).to(dtype))
        return add_gated(x, update, gate2)


class Head(nn.Module):
    """Final modulated norm and projection to patches, in fp32."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm = LayerNorm(width, config.eps)
        self.head = nn.Linear(width, config.out_channels * math.prod(config.patch_size))
        self.modulation = nn.Parameter(torch.empty(1, 2, width).normal_(std=width**-0.5))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x` `[B, L, D]` and the time embedding `[B, G, D]` to `[B, L, pt·ph·pw·C]`."""
        shift, scale = (self.modulation.float() + time[:, :, None]).unbind(2)  # [B, G, D]
        return call_fp32(self.head, modulate(self.norm(x), shift, scale))


class DiT(nn.Module):
    """The transformer: noisy latents, their timesteps and a text to the velocity noise − x0."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_channels, width, patch, stride=patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.num_layers))
        self.head = Head(config)

    def prepare_context(self, context: Tensor) -> ContextCache:
        """Embed the text and compute every block's cross-attention keys and values, exactly.

        Args:
            context: text embeddings `[B, text_len, text_dim]`, zero-padded. Attention is unmasked
                over all of text_len, as the published weights were trained.
        """
        context = context.to(compute_dtype(context, self.patch_embedding.weight))
        embedded = self.text_embedding(context)  # [B, text_len, D]
        blocks = cast("Iterable[DiTBlock]", self.blocks)
        return ContextCache(
            keys_values=tuple(block.cross_attn.keys_values(embedded) for block in blocks)
        )

    def forward(self, latents: Tensor, timesteps: Tensor, context: Tensor | ContextCache) -> Tensor:
        """Predict velocity.

        Args:
            latents: `[B, C, T, H, W]`, multiples of the patch size.
            timesteps: in 0..1000, `[B]`, or `[B, T/pt]` for one per latent frame, or `[B, L]`.
            context: `[B, text_len, text_dim]`, or the result of `prepare_context`.

        Returns:
            `[B, out_channels, T, H, W]`, float32.
        """
        cache = context if isinstance(context, ContextCache) else self.prepare_context(context)
        grid = token_grid(latents.shape[2:], self.config.patch_size)
        rope = rope_table(grid, self.config.head_dim, latents.device)
        x = self._embed_patches(latents)  # [B, L, D]
        time, projected = self._embed_time(timesteps)  # [B, G, D], [B, G, 6, D]
        for block, keys_values in zip(self.blocks, cache.keys_values, strict=True):
            x = block(x, projected, keys_values, rope)
        with torch.autocast(x.device.type, enabled=False):
            tokens = self.head(x, time)
        return unpatchify(tokens, grid, self.config.patch_size)

    def _embed_patches(self, latents: Tensor) -> Tensor:
        # A convolution whose stride is its kernel is a matmul over patches, and much faster so.
        weight = self.patch_embedding.weight.permute(0, 2, 3, 4, 1).flatten(1)  # [D, pt·ph·pw·C]
        tokens = patchify(latents, self.config.patch_size)
        tokens = tokens.to(compute_dtype(tokens, weight))
        return F.linear(tokens, weight, self.patch_embedding.bias).float()

    def _embed_time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        timesteps = timesteps if timesteps.ndim == 2 else timesteps[:, None]  # [B, G]
        with torch.autocast(timesteps.device.type, enabled=False):
            time = timestep_embedding(timesteps, self.config.freq_dim)
            time = call_fp32(self.time_embedding, time)  # [B, G, D]
            projected = call_fp32(self.time_projection, time)
        return time, projected.unflatten(-1, (6, -1))  # [B, G, 6, D]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise for training from scratch as Wan does; the first velocity is exactly 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, DiTBlock | Head):
                nn.init.normal_(module.modulation, std=self.config.hidden_size**-0.5)
        for layer in (*self.text_embedding, *self.time_embedding):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)
