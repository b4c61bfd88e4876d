"""A plain Llama without transformers: what the caption LLM of the embedded model is.

transformers reads any language model, and takes longer to import than such a small one to answer
a hundred times. So a folder that says nothing but "a plain Llama, drawn from by temperature, asked
by a template of one message" is read here, to the same words; of any other `read` gives None.

Shapes: B batch, L tokens, D width, N heads, K head dim, V vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

KeysValues = list[tuple[Tensor, Tensor]]  # of every layer, [B, N, L, K] each

# What a plain Llama's config.json says, by its numbers here, and what it must say.
_NUMBERS = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "head_dim": "head_dim", "intermediate_size": "ffn_dim",
    "max_position_embeddings": "max_position_embeddings", "rms_norm_eps": "eps",
}  # fmt: skip
_PLAIN: Mapping[str, Any] = {
    "model_type": "llama", "attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
    "pretraining_tp": 1, "tie_word_embeddings": True,
}  # fmt: skip
_PLAIN_DRAWING: Mapping[str, Any] = {"top_k": 0, "top_p": 1.0}
# Without these it is something else than plain, whatever its defaults are.
_NEEDED = {*_NUMBERS, "model_type", "tie_word_embeddings"}
# What changes no answer.
_IDLE = {
    "output_attentions", "output_hidden_states",
    "architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "use_cache",
    "initializer_range", "pad_token_id", "torch_dtype", "transformers_version",
}  # fmt: skip
_DRAWING = {"_from_model_config", "do_sample", "temperature"}
_TOKENIZER_KEYS = {
    "tokenizer_class", "clean_up_tokenization_spaces", "pad_token", "eos_token", "unk_token",
    "model_max_length", "extra_special_tokens", "chat_template",
}  # fmt: skip
_TEMPLATE = re.compile(
    r"(?P<before>[^{}]*)\{\{ messages\[-1\]\['content'\](?P<lower> \| lower)? \}\}(?P<after>[^{}]*)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Numbers of a plain Llama: as many keys as queries, tied embeddings, no biases.

    temperature: of the draw; 0 takes the likeliest token.
    end_ids: the tokens that end an answer.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    ffn_dim: int
    max_position_embeddings: int
    eps: float
    rope_theta: float
    temperature: float
    end_ids: tuple[int, ...]

    @classmethod
    def from_folder(cls, folder: Path) -> Self | None:
        """The numbers of the model in a folder; None where it is not plain, or not readable."""
        said, drawing = (_json(folder / name) for name in ("config.json", "generation_config.json"))
        if not said or not drawing:
            return None
        rope, keys = said.get("rope_parameters"), said.get("num_key_value_heads")
        plain = (
            said.keys() <= {*_NUMBERS, *_PLAIN, *_IDLE, "rope_parameters", "num_key_value_heads"}
            and drawing.keys() <= {*_PLAIN_DRAWING, *_IDLE, *_DRAWING}
            and all(said.get(key, value) == value for key, value in _PLAIN.items())
            and all(drawing.get(key) == value for key, value in _PLAIN_DRAWING.items())
            and keys == said.get("num_attention_heads")
            and isinstance(rope, dict)
            and rope.keys() == {"rope_theta", "rope_type"}
            and rope["rope_type"] == "default"
        )
        if not plain or not isinstance(rope, dict) or not said.keys() >= _NEEDED:
            return None
        end, temperature = drawing.get("eos_token_id"), drawing.get("temperature", 1.0)
        return cls(
            **{ours: said[theirs] for theirs, ours in _NUMBERS.items()},
            rope_theta=rope["rope_theta"],
            temperature=temperature if drawing.get("do_sample") else 0.0,
            end_ids=tuple(end) if isinstance(end, list) else (end,),
        )


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# ---------------------------------------------------------------------- the network


class _Norm(nn.Module):
    """Root mean square norm, computed in fp32 and returned in the dtype of `x` (`[..., D]`)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.num_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(width, inner, bias=False) for _ in range(3)
        )
        self.o_proj = nn.Linear(inner, width, bias=False)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend to `past` and to what stands before each token of `x` [B, L, D]."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        heads = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in layers)
        query, key, value = heads  # [B, N, L, K]
        query, key = _rotated(query, rotation), _rotated(key, rotation)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        return self.o_proj(out.transpose(1, 2).flatten(2)), (key, value)


class _FeedForward(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (
            nn.Linear(config.hidden_size, config.ffn_dim, bias=False) for _ in range(2)
        )
        self.down_proj = nn.Linear(config.ffn_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(config), _FeedForward(config)
        self.input_layernorm = _Norm(config.hidden_size, config.eps)
        self.post_attention_layernorm = _Norm(config.hidden_size, config.eps)


class _Body(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        # Not drawn: normal numbers on the meta device would import torch's compiler.
        self.embed_tokens = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.hidden_size)
        )
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.norm = _Norm(config.hidden_size, config.eps)


class Decoder(nn.Module):
    """A plain Llama, with the names of transformers' own."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config, self.model = config, _Body(config)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.model.norm.weight.device

    def forward(
        self, input_ids: Tensor, past: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Scores of what follows the last token, and what later tokens attend to.

        Args:
            input_ids: int64 `[B, L]`.
            past: of the tokens before them; then L is 1.

        Returns:
            `[B, V]` fp32, and the keys and values of all tokens so far.
        """
        length = 0 if past is None else past[0][0].shape[2]
        x = self.model.embed_tokens(input_ids)
        rotation = _rotation(self.config, length, input_ids.shape[1], x)
        kept: KeysValues = []
        for number, layer in enumerate(self.model.layers):
            before = None if past is None else past[number]
            attended, own = layer.self_attn(layer.input_layernorm(x), rotation, before)
            x = x + attended
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            kept.append(own)
        last = self.model.norm(x)[:, -1:]
        return F.linear(last, self.model.embed_tokens.weight)[:, -1].float(), kept

    def generate(
        self, *, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, pad_token_id: int
    ) -> Tensor:
        """Tokens and their continuation [1, L], drawn from torch's global generator.

        As transformers' method of this name takes its arguments; a row alone needs neither mask
        nor padding.
        """
        assert input_ids.shape[0] == 1, "one text at a time"
        ids, fresh, past = input_ids, input_ids, None
        for _ in range(max_new_tokens):
            scores, past = self(fresh, past)
            if self.config.temperature == 0:
                fresh = scores.argmax(-1, keepdim=True)
            else:
                chances = torch.softmax(scores / self.config.temperature, dim=-1)
                fresh = torch.multinomial(chances, num_samples=1)  # [1, 1]
            ids = torch.cat([ids, fresh], dim=1)
            if int(fresh) in self.config.end_ids:
                break
        return ids


def _rotation(config: DecoderConfig, start: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of the positions from `start` on, [L, K] in the dtype of `like`."""
    powers = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
    positions = torch.arange(start, start + count, dtype=torch.float)
    angles = positions[:, None] * (1.0 / config.rope_theta**powers)  # [L, K/2]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(like), angles.sin().to(like)


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs (i, i + K/2) of `x` [B, N, L, K]."""
    first, second = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat([-second, first], dim=-1) * rotation[1]


# ---------------------------------------------------------------------- its words


class PlainTokenizer:
    """A tokenizer.json and a template of one message, asked as transformers' tokenizers are."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, before: str, after: str, lower: bool,
        pad_token: str, eos_token: str,
    ) -> None:  # fmt: skip
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer, self._before, self._after, self._lower = tokenizer, before, after, lower
        self.added_tokens_decoder: dict[int, Any] = tokenizer.get_added_tokens_decoder()
        self.pad_token_id = tokenizer.token_to_id(pad_token)
        self.eos_token_id = tokenizer.token_to_id(eos_token)

    @classmethod
    def from_folder(cls, folder: Path) -> Self | None:
        """The tokenizer in a folder; None where its configuration says more than is known here."""
        said = _json(folder / "tokenizer_config.json")
        template = _TEMPLATE.fullmatch(str(said.get("chat_template")))
        separate = (folder / "chat_template.jinja").exists()
        plain = said.keys() <= _TOKENIZER_KEYS and not said.get("clean_up_tokenization_spaces")
        if template is None or separate or not plain:
            return None
        if said.get("tokenizer_class") != "PreTrainedTokenizerFast":
            return None
        file = folder / "tokenizer.json"
        tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        added = {str(token) for token in tokenizer.get_added_tokens_decoder().values()}
        marks = [said.get(name) for name in ("pad_token", "eos_token", "unk_token")]
        if not {*marks, *said.get("extra_special_tokens", ())} <= added:
            return None  # transformers would add to the vocabulary
        return cls(
            tokenizer, before=template["before"], after=template["after"],
            lower=template["lower"] is not None, pad_token=said["pad_token"],
            eos_token=said["eos_token"],
        )  # fmt: skip

    @property
    def all_special_tokens(self) -> list[str]:
        """Marks that no text may contain."""
        return [str(token) for token in self.added_tokens_decoder.values()]

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        """The ids of a text."""
        encoded = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoded.ids}

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], **_: object
    ) -> dict[str, Tensor]:
        """The ids of the last message in its template, and their mask, int64 [1, L]."""
        content = messages[-1]["content"]
        content = content.lower() if self._lower else content
        text = f"{self._before}{content}{self._after}"
        ids = torch.tensor([self(text, add_special_tokens=False)["input_ids"]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of some ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def read(
    folder: Path, device: torch.device | str, dtype: torch.dtype
) -> tuple[Decoder, PlainTokenizer] | None:
    """The model in a folder and its tokenizer; None where transformers is needed for it.

    Raises:
        Exception: whatever a damaged file makes its reader raise.
    """
    config, tokenizer = DecoderConfig.from_folder(folder), PlainTokenizer.from_folder(folder)
    if config is None or tokenizer is None or not (folder / "model.safetensors").is_file():
        return None
    with torch.device("meta"):
        network = Decoder(config)
    state = {
        name: tensor.to(device=device, dtype=dtype)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False), tokenizer
