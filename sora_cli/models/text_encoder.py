"""The umT5 encoder, which turns a prompt into the context of the diffusion transformer.

T5 with its own relative position bias in every block. Module names are those of Wan's
`wan/modules/t5.py`. Shapes: B batch, L tokens, D width, N heads, K head dim. Sources: Raffel et
al. 2020 (T5), Chung et al. 2023 (umT5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sora_cli.errors import WeightsError
from sora_cli.models.layers import RMSNorm, compute_dtype

PAD_TOKEN = "<pad>"
END_TOKEN = "</s>"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoderConfig:
    """Numbers of a umT5 encoder.

    num_heads · head_dim need not be hidden_size; num_buckets and max_distance shape the relative
    position bias.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    ffn_dim: int
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6


def position_buckets(length: int, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of the signed distance from each query to each key.

    Half of the buckets are for keys after the query. Of each half, the first half hold one
    distance each; the others widen logarithmically up to `max_distance`, and share the last.

    Returns:
        int64 `[L, L]` (query, key), in `0..num_buckets - 1`.
    """
    positions = torch.arange(length)
    offset = positions[None, :] - positions[:, None]
    half, distance = num_buckets // 2, offset.abs()
    exact = half // 2
    # clamp: log(0) has no integer value; those distances take the exact bucket anyway.
    octaves = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    wide = (exact + (octaves * (half - exact)).long()).clamp(max=half - 1)
    return (offset > 0) * half + torch.where(distance < exact, distance, wide)


class PositionBias(nn.Module):
    """A learned bias per head for each distance bucket."""

    def __init__(self, num_buckets: int, num_heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_buckets, num_heads)

    def forward(self, buckets: Tensor) -> Tensor:
        """Buckets `[L, L]` to the bias `[N, L, L]`."""
        return self.embedding(buckets).permute(2, 0, 1)


class T5Attention(nn.Module):
    """Self-attention with an additive bias and, as in every T5, no 1/√K scaling."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
        """Attend within `x`.

        Args:
            x: `[B, L, D]`.
            bias: added to the scores, `[N, L, L]`.
            keep: true at the real tokens, `[B, 1, 1, L]`.

        Returns:
            `[B, L, D]`.
        """
        heads = (layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.q, self.k, self.v))
        query, key, value = (head.transpose(1, 2) for head in heads)  # [B, N, L, K]
        lowest = torch.finfo(value.dtype).min
        scores_bias = bias.to(value.dtype).masked_fill(~keep, lowest)  # [B, N, L, L]
        # The softmax inside is fp32 for any dtype.
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=scores_bias, scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))


class T5FeedForward(nn.Module):
    """Gated GELU: fc2(fc1(x) · gelu(gate(x)))."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.ffn_dim
        self.gate = nn.Sequential(nn.Linear(width, inner, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = nn.Linear(width, inner, bias=False)
        self.fc2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x) * self.gate(x))


class T5Block(nn.Module):
    """Self-attention and feed-forward, each pre-normed and added to the fp32 residual stream."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, config.eps)
        self.attn = T5Attention(config)
        self.norm2 = RMSNorm(config.hidden_size, config.eps)
        self.ffn = T5FeedForward(config)
        self.pos_embedding = PositionBias(config.num_buckets, config.num_heads)

    def forward(self, x: Tensor, buckets: Tensor, keep: Tensor) -> Tensor:
        dtype = compute_dtype(x, self.attn.q.weight)
        x = x + self.attn(self.norm1(x).to(dtype), self.pos_embedding(buckets), keep)
        return x + self.ffn(self.norm2(x).to(dtype))


class TextEncoder(nn.Module):
    """Token ids to text embeddings."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(T5Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.eps)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed a text.

        Args:
            input_ids: int64 `[B, L]`.
            attention_mask: `[B, L]`, nonzero at the real tokens.

        Returns:
            `[B, L, D]` float32. What stands at padding is meaningless: zero it before the DiT.
        """
        config = self.config
        buckets = position_buckets(input_ids.shape[1], config.num_buckets, config.max_distance)
        buckets = buckets.to(input_ids.device)
        keep = attention_mask.bool()[:, None, None, :]  # [B, 1, 1, L]
        x = self.token_embedding(input_ids).float()
        for block in self.blocks:
            x = block(x, buckets, keep)
        return self.norm(x)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise for training from scratch, as T5 does.

        The 1/√K that attention lacks is in the scale of the query projection.
        """
        width = self.config.hidden_size
        nn.init.normal_(self.token_embedding.weight)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, PositionBias):
                nn.init.normal_(module.embedding.weight, std=width**-0.5)
        for module in self.modules():
            if isinstance(module, T5Attention):
                nn.init.normal_(module.q.weight, std=(width * self.config.head_dim) ** -0.5)


class Tokenizer:
    """The text encoder's tokenizer: a text to ids that end with `</s>`, padded with `<pad>`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, source: str = "the tokenizer") -> None:
        """Wrap a tokenizer whose post-processor appends `</s>`.

        Raises:
            WeightsError: it does not, or it has no `<pad>`.
        """
        # A tokenizer saved after use keeps the padding and truncation of its last call.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        pad_id, end_id = tokenizer.token_to_id(PAD_TOKEN), tokenizer.token_to_id(END_TOKEN)
        if pad_id is None or tokenizer.encode("").ids[-1:] != [end_id]:
            raise WeightsError(
                f"{source} is not a T5 tokenizer: it has no {PAD_TOKEN} or adds no {END_TOKEN}",
                hint="download the whole folder again",
            )
        self._tokenizer = tokenizer
        self._pad_id = pad_id

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        """Read `tokenizer.json` from a folder. Raises WeightsError if that cannot be done."""
        file = path / "tokenizer.json"
        try:
            # Not from_file: the library reports every failure as a bare Exception.
            tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:
            raise WeightsError(
                f"cannot read the tokenizer {file}: {error}", hint="download the whole folder again"
            ) from error
        return cls(tokenizer, source=str(file))

    def encode(self, texts: list[str], max_length: int) -> tuple[Tensor, Tensor]:
        """Tokenize, truncated to keep the final `</s>`, padded to `max_length`.

        Returns:
            `input_ids` and `attention_mask`, int64 `[B, max_length]`.
        """
        self._tokenizer.enable_truncation(max_length)
        self._tokenizer.enable_padding(length=max_length, pad_id=self._pad_id, pad_token=PAD_TOKEN)
        rows = self._tokenizer.encode_batch(texts)
        ids = torch.tensor([row.ids for row in rows], dtype=torch.int64)
        mask = torch.tensor([row.attention_mask for row in rows], dtype=torch.int64)
        return ids, mask

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text stands in it: characters [start, end)."""
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        return [(start, end) for start, end in self._tokenizer.encode(text).offsets]
