"""The diffusion transformer of the Wan family (Wan2.1, Wan2.2, VACE), predicting velocity.

Module names are the original Wan names, which LoRA and single-file weights use. Shapes: B batch,
C channels, (T, H, W) latent grid, L tokens, D width, N heads, K head dim, G groups of tokens that
share a timestep. Source: Wan2.1's `wan/modules/model.py` and `vace_model.py`, whose fp32 islands
are kept: the time MLP, modulation, norms, head and the residual stream.
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
    FeedForward,
    ImageEmbedding,
    KeysValues,
    LayerNorm,
    SelfAttention,
    call_fp32,
    compute_dtype,
    rope_table,
    timestep_embedding,
)
from sora_cli.models.residual import add_gated, added_normed, normed


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTConfig:
    """Numbers of a transformer, in the names of the published configs.

    num_heads divides hidden_size; channels are of the latents; text_len is the number of context
    rows that are attended to, zeros included; patch_size is (t, h, w) in latent positions.

    image_dim: width of the image tokens that Wan2.1's image to video attends to besides the text;
        None: it has no such branch, as neither have text to video and all of Wan2.2.
    pos_embed_len: rows of a position table for those tokens, where two images are given (FLF2V).
    vace_layers: blocks that a block of the VACE branch adds its hint to, 0 among them; () is none.
    vace_in_channels: channels of the control that the branch reads.
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
    image_dim: int | None = None
    pos_embed_len: int | None = None
    vace_layers: tuple[int, ...] = ()
    vace_in_channels: int | None = None

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextCache:
    """A prompt, and its image, as the blocks read them: cross-attention's keys and values.

    keys_values has an entry for each block, vace_keys_values for each of the VACE branch's.
    """

    keys_values: tuple[KeysValues, ...]
    vace_keys_values: tuple[KeysValues, ...] = ()

    def rows(self, count: int) -> ContextCache:
        """The first `count` texts of the batch."""

        def first(blocks: tuple[KeysValues, ...]) -> tuple[KeysValues, ...]:
            return tuple(tuple(tensor[:count] for tensor in block) for block in blocks)

        return ContextCache(
            keys_values=first(self.keys_values), vace_keys_values=first(self.vace_keys_values)
        )


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


def _once(rows: Tensor) -> Tensor:
    """`[1, ...]` of a batch that is one row expanded, as both halves of guidance are."""
    return rows[:1] if rows.stride(0) == 0 else rows


def _rows_agree(timesteps: Tensor) -> bool:
    """Whether a batch shares its timesteps `[B, G]`, though each row has its own.

    Asked in inference on a CPU alone: elsewhere to look would be to wait for the device.
    """
    if timesteps.device.type != "cpu" or torch.is_grad_enabled():
        return False
    return bool((timesteps == timesteps[:1]).all())


class DiTBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward; each adds to the residual."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.eps
        self.norm1 = LayerNorm(width, eps)
        self.self_attn = SelfAttention(width, config.num_heads, qk_norm=config.qk_norm, eps=eps)
        # Out of order in Wan's names: norm3 stands before cross-attention, norm2 before the ffn.
        self.norm3 = LayerNorm(width, eps, affine=True) if config.cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(
            width,
            config.num_heads,
            qk_norm=config.qk_norm,
            eps=eps,
            image=config.image_dim is not None,
        )
        self.norm2 = LayerNorm(width, eps)
        self.ffn = FeedForward(width, config.ffn_dim)
        self.modulation = nn.Parameter(torch.empty(1, 6, width).normal_(std=width**-0.5))

    def forward(self, x: Tensor, time: Tensor, keys_values: KeysValues, rope: Tensor) -> Tensor:
        """One block.

        Args:
            x: residual stream `[B or 1, L, D]`, float32; one row where all texts have it still.
            time: time projection `[B or 1, G, 6, D]`, float32.
            keys_values: of the context, from `CrossAttention.keys_values`.
            rope: `rope_table` of the token grid.

        Returns:
            `[B, L, D]`, float32.
        """
        dtype = compute_dtype(x, self.self_attn.q.bias)
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.float() + time).unbind(2)
        update = self.self_attn(normed(self.norm1, x, dtype, shift1, scale1), rope)
        x, reading = added_normed(self.norm3, x, update, gate1, dtype)
        update = self.cross_attn(reading, keys_values)  # [B, L, D]
        x = x.expand_as(update)
        x, reading = added_normed(self.norm2, x, update, None, dtype, shift2, scale2)
        return add_gated(x, self.ffn(reading), gate2)


class VaceBlock(DiTBlock):
    """A block of VACE's branch: the control's own residual stream, and a hint for the main one."""

    def __init__(self, config: DiTConfig, *, first: bool) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.before_proj = nn.Linear(width, width) if first else None
        self.after_proj = nn.Linear(width, width)

    def forward(  # type: ignore[override]
        self, control: Tensor, time: Tensor, keys_values: KeysValues, rope: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One block of the branch.

        Args:
            control: the branch's residual stream, float32; it and the others as `DiTBlock`'s.
            x: the embedded patches `[B or 1, L, D]`, which the first block adds to the control.

        Returns:
            The stream after this block, float32, and the hint, both `[B, L, D]`.
        """
        dtype = compute_dtype(control, self.self_attn.q.bias)
        if self.before_proj is not None:
            control = x + self.before_proj(control.to(dtype))
        control = super().forward(control, time, keys_values, rope)
        return control, self.after_proj(control.to(dtype))


class Head(nn.Module):
    """Final modulated norm and projection to patches, in fp32."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm = LayerNorm(width, config.eps)
        self.head = nn.Linear(width, config.out_channels * math.prod(config.patch_size))
        self.modulation = nn.Parameter(torch.empty(1, 2, width).normal_(std=width**-0.5))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x` `[B, L, D]` and the time embedding `[B or 1, G, D]` to `[B, L, pt·ph·pw·C]`."""
        shift, scale = (self.modulation.float() + time[:, :, None]).unbind(2)  # [B, G, D]
        return call_fp32(self.head, self.norm(x, shift, scale))


class DiT(nn.Module):
    """The transformer: noisy latents, their timesteps and a text to the velocity noise − x0.

    Wan2.1's image to video has `img_emb` (CLIP's view of the image), VACE has `vace_blocks`.
    """

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
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config.image_dim, width, config.pos_embed_len)
        if config.vace_layers:
            assert config.vace_in_channels is not None
            self.vace_patch_embedding = nn.Conv3d(
                config.vace_in_channels, width, patch, stride=patch
            )
        self.vace_blocks = nn.ModuleList(
            VaceBlock(config, first=number == 0) for number in range(len(config.vace_layers))
        )

    def prepare_context(self, context: Tensor, image_context: Tensor | None = None) -> ContextCache:
        """Embed text and image and compute every block's cross-attention keys and values, exactly.

        Args:
            context: text embeddings `[B, text_len, text_dim]`, zero-padded. Attention is unmasked
                over all of text_len, as the published weights were trained.
            image_context: CLIP's tokens of the image, `[B or 1, 257, image_dim]`; of the first
                and the last image, one after the other, where the config has pos_embed_len (514).
                Given if and only if the config has image_dim.
        """
        assert (image_context is None) == (self.config.image_dim is None), "an image, or none"
        context = context.to(compute_dtype(context, self.patch_embedding.weight))
        embedded = self.text_embedding(context)  # [B, text_len, D]
        image = None
        if image_context is not None:
            image = self.img_emb(image_context).expand(len(context), -1, -1)  # [B, rows, D]

        def keys_values(blocks: nn.ModuleList) -> tuple[KeysValues, ...]:
            each = cast("Iterable[DiTBlock]", blocks)
            return tuple(block.cross_attn.keys_values(embedded, image) for block in each)

        return ContextCache(
            keys_values=keys_values(self.blocks), vace_keys_values=keys_values(self.vace_blocks)
        )

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor | ContextCache,
        control: Tensor | None = None,
        control_scale: float = 1.0,
    ) -> Tensor:
        """Predict velocity.

        Args:
            latents: `[B, C, T, H, W]`, multiples of the patch size. Where in_channels exceed
                out_channels, the mask and the given latents stand after the noisy ones. Of one
                row expanded, and timesteps alike, everything before the first look at the text
                is computed once.
            timesteps: in 0..1000, `[B]`, or `[B, T/pt]` for one per latent frame, or `[B, L]`.
            context: `[B, text_len, text_dim]`, or the result of `prepare_context`.
            control: what VACE is shown, `[B or 1, vace_in_channels, T, H, W]`; for VACE alone.
            control_scale: factor of VACE's hints.

        Returns:
            `[B, out_channels, T, H, W]`, float32.
        """
        assert (control is None) == (not self.config.vace_layers), "a control, or none"
        cache = context if isinstance(context, ContextCache) else self.prepare_context(context)
        grid = token_grid(latents.shape[2:], self.config.patch_size)
        rope = rope_table(grid, self.config.head_dim, latents.device)
        time, projected = self._embed_time(timesteps)  # [B or 1, G, D], [B or 1, G, 6, D]
        if time.shape[0] == 1:
            latents, control = _once(latents), None if control is None else _once(control)
        x = self._embed_patches(latents, self.patch_embedding)  # [B or 1, L, D]
        stream = None if control is None else self._embed_control(control, latents)
        # The published code computes every hint of VACE first. Its branch reads nothing of the
        # main blocks, so in turn with them it gives the same, with one hint in memory instead of
        # 8 or 15: of 0.8 GB each in the 14B model at 1280×720 and 81 frames, in bfloat16.
        branch = zip(self.vace_blocks, cache.vace_keys_values, strict=True)
        for number, (block, keys_values) in enumerate(
            zip(self.blocks, cache.keys_values, strict=True)
        ):
            hint = None
            if number in self.config.vace_layers:
                vace_block, vace_keys_values = next(branch)
                stream, hint = vace_block(stream, projected, vace_keys_values, rope, x)
            x = block(x, projected, keys_values, rope)
            if hint is not None:
                x = torch.add(x, hint, alpha=control_scale)
        with torch.autocast(x.device.type, enabled=False):
            tokens = self.head(x, time)
        return unpatchify(tokens, grid, self.config.patch_size)

    def _embed_control(self, control: Tensor, latents: Tensor) -> Tensor:
        assert control.shape[2:] == latents.shape[2:], "a control of another size than the latents"
        tokens = self._embed_patches(control, self.vace_patch_embedding)
        return tokens.expand(len(latents), -1, -1)  # [B or 1, L, D]

    def _embed_patches(self, latents: Tensor, embedding: nn.Conv3d) -> Tensor:
        # A convolution whose stride is its kernel is a matmul over patches, and much faster so.
        weight = embedding.weight.permute(0, 2, 3, 4, 1).flatten(1)  # [D, pt·ph·pw·C]
        tokens = patchify(latents, self.config.patch_size)
        tokens = tokens.to(compute_dtype(tokens, weight))
        return F.linear(tokens, weight, embedding.bias).float()

    def _embed_time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        timesteps = _once(timesteps if timesteps.ndim == 2 else timesteps[:, None])  # [B, G]
        if _rows_agree(timesteps):
            timesteps = timesteps[:1]  # [1, G]
        with torch.autocast(timesteps.device.type, enabled=False):
            time = timestep_embedding(timesteps, self.config.freq_dim)
            time = call_fp32(self.time_embedding, time)  # [B or 1, G, D]
            projected = call_fp32(self.time_projection, time)
        return time, projected.unflatten(-1, (6, -1))  # [B or 1, G, 6, D]

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
        for name, parameter in self.vace_blocks.named_parameters():
            if "_proj." in name:  # a branch that begins by saying nothing
                nn.init.zeros_(parameter)
        for layer in (*self.text_embedding, *self.time_embedding):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)
