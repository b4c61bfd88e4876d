"""The dialects of LoRA files, brought to the original names of the modules.

They differ in what they call a module: kohya and musubi
(`lora_unet_blocks_0_self_attn_q.lora_down.weight`), Comfy and LightX2V
(`diffusion_model.blocks.0.self_attn.q.lora_down.weight` or `.lora_A.weight`), diffusers and peft
(`transformer.blocks.0.attn1.to_q.lora_A.weight`). Source: the programs that write them.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sora_cli.errors import UsageError, WeightsError
from sora_cli.weights import keymaps
from sora_cli.weights.lora_arguments import Lora
from sora_cli.weights.tensors import TensorSource, open_tensors

SHOWN_KEYS = 4  # in a message

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.",
             "pipe.dit.", "lora_unet_")  # fmt: skip
# End of a key → what the tensor is; the longest that fits counts.
_ROLES: Mapping[str, str] = MappingProxyType(
    {
        ".lora_down.weight": "down", ".lora_A.weight": "down", ".lora.down.weight": "down",
        ".lora_up.weight": "up", ".lora_B.weight": "up", ".lora.up.weight": "up",
        ".lora_B.bias": "up_bias", ".alpha": "alpha",
        ".diff": "weight", ".diff_b": "bias", ".diff_m": "modulation",
    }
)  # fmt: skip
_OTHER_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_w1_a": "LoHa",
        "lokr_w1": "LoKr", "lokr_w1_a": "LoKr", "lora_mid": "LoCon with a middle matrix",
        "oft_blocks": "OFT", "oft_diag": "OFT", "boft_R": "BOFT", "glora_A": "GLoRA",
    }
)  # fmt: skip
# kohya writes every dot of a path as an underscore; these words had underscores of their own.
_WORDS = re.compile(
    "vace_patch_embedding|patch_embedding|text_embedding|time_embedding|time_projection|img_emb"
    "|vace_blocks|self_attn|cross_attn|norm_k_img|norm_added_k|norm_q|norm_k|k_img|v_img"
    "|before_proj|after_proj|condition_embedder|time_embedder|text_embedder|image_embedder"
    "|time_proj|linear_1|linear_2|to_q|to_k|to_v|to_out|add_k_proj|add_v_proj|proj_in|proj_out"
    "|norm[0-9]|attn[0-9]|[a-z]+|[0-9]+"
)
_DIFFUSERS = re.compile(r"(^|\.)(attn[12]|condition_embedder|ffn\.net|proj_out|proj_in)(\.|$)")
_ALONE = ("modulation", "emb_pos")  # parameters that are no module's `weight`


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """One change of one parameter, by the names of its tensors: (up, down), or (difference,)."""

    factor: float
    keys: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether this changes a parameter of `shape`; up and down may be a convolution's."""
        if len(self.keys) == 1:
            return self.shapes[0] == tuple(shape)
        (out, *up_rest), (rank, *down_rest) = self.shapes
        rows, columns = shape[0], math.prod(shape[1:])
        return (out, math.prod(up_rest), math.prod(down_rest)) == (rows, rank, columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraDeltas:
    """A LoRA file under the original names, its values unread.

    `deltas` are by the name of the parameter they change; `unknown` are the keys of no dialect.
    """

    lora: Lora
    source: TensorSource
    deltas: Mapping[str, tuple[Delta, ...]]
    unknown: tuple[str, ...]

    @property
    def hidden_size(self) -> int | None:
        """Width of the transformer it was made for, where its self-attention tells."""
        for name, deltas in self.deltas.items():
            if name.endswith(("self_attn.q.weight", "self_attn.k.weight", "self_attn.v.weight")):
                return next(iter(deltas[0].shapes[-1][-1:]), None)
        return None


def read_lora(lora: Lora) -> LoraDeltas:
    """Open a LoRA in any of the dialects: names and shapes, and the alphas.

    Raises:
        UsageError: no such file, a whole model, or a kind of adapter that is none of these.
        WeightsError: damaged, or a part of a pair is missing.
    """
    path = lora.path
    if not path.exists():
        raise UsageError(f"the LoRA {path} is not there", hint=f"ls {path.parent}")
    source = open_tensors(path)
    try:
        parts, unknown = _sorted_by_role(path, source)
        deltas = _paired(path, source, parts)
    except (UsageError, WeightsError):
        source.close()
        raise
    return LoraDeltas(lora=lora, source=source, deltas=deltas, unknown=unknown)


def _sorted_by_role(
    path: Path, source: TensorSource
) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Module, as the file calls it → role → key; and the keys that have no role."""
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    unknown = []
    for key in source.tensors:
        plain = key.replace(".default.", ".")  # the name of peft's only adapter
        kind = next((word for word in plain.split(".") if word in _OTHER_KINDS), None)
        if kind is not None:
            raise UsageError(
                f"{path.name} is a {_OTHER_KINDS[kind]} ({key}), which is not a plain LoRA",
                hint="ask its author for a LoRA, or one converted to LoRA",
            )
        ending = next((e for e in _ROLES if plain.endswith(e)), None)
        if ending is None:
            unknown.append(key)
            continue
        roles, role = parts[plain.removesuffix(ending)], _ROLES[ending]
        if role in roles:
            raise _damaged(path, f"{roles[role]} and {key} are the same")
        roles[role] = key
    if not parts:
        whole = any(key.endswith(("self_attn.q.weight", "attn1.to_q.weight")) for key in unknown)
        if whole:
            raise UsageError(
                f"{path.name} is a whole model, not a LoRA", hint=f"sora generate … -m {path}"
            )
        raise UsageError(
            f"{path.name} is no LoRA: it holds {some_of(unknown) or 'nothing'}",
            hint="sora generate … --lora FILE",
        )
    return parts, tuple(unknown)


def _paired(
    path: Path, source: TensorSource, parts: Mapping[str, Mapping[str, str]]
) -> dict[str, tuple[Delta, ...]]:
    """Changes by original parameter name."""
    factors = _Factors(path, source)
    translate = _Translation(parts)
    deltas: dict[str, tuple[Delta, ...]] = defaultdict(tuple)

    def add(parameter: str, factor: float, *keys: str) -> None:
        shapes = tuple(source.tensors[key].shape for key in keys)
        deltas[parameter] += (Delta(factor=factor, keys=keys, shapes=shapes),)

    seen: dict[str, str] = {}
    for module, roles in parts.items():
        name = translate(module)
        if name in seen:
            raise _damaged(path, f"{seen[name]} and {module} are the same")
        seen[name] = module
        _check_complete(path, source, roles)
        if "up" in roles:
            up, down = roles["up"], roles["down"]
            factor = factors.of(module, roles.get("alpha"), source.tensors[down].shape[0])
            add(f"{name}.weight", factor, up, down)
            if "up_bias" in roles:
                add(f"{name}.bias", factor, roles["up_bias"])
        if "weight" in roles:
            alone = name.rpartition(".")[2] in _ALONE
            add(name if alone else f"{name}.weight", 1.0, roles["weight"])
        for role in ("bias", "modulation"):
            if role in roles:
                add(f"{name}.{role}", 1.0, roles[role])
    return dict(deltas)


def _check_complete(path: Path, source: TensorSource, roles: Mapping[str, str]) -> None:
    """A module has both matrices of a pair or neither, and nothing that needs one without it."""
    for role, partner in (("up", "down"), ("down", "up"), ("up_bias", "up"), ("alpha", "up")):
        full = role == "alpha" and "weight" in roles  # of a full difference it says nothing
        if role in roles and partner not in roles and not full:
            raise _damaged(path, f"{roles[role]} is without its {partner} matrix")
    for role in ("up", "down"):
        shape = source.tensors[roles[role]].shape if role in roles else (1, 1)
        if len(shape) < 2 or 0 in shape:
            raise _damaged(path, f"{roles[role]} is no matrix")


def _damaged(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"the LoRA {path} is damaged: {reason}", hint="download the LoRA again")


class _Factors:
    """alpha / rank of each module: from its `.alpha`, or from the adapter's own configuration.

    diffusers keeps that in the file's header, peft in `adapter_config.json` beside it; most files
    have neither, and then the factor is 1.
    """

    def __init__(self, path: Path, source: TensorSource) -> None:
        self._path, self._source = path, source
        adapter: Mapping[str, Any] = {}
        folder = path if path.is_dir() else path.parent
        beside = path.is_dir() or path.name == "adapter_model.safetensors"
        try:
            if text := source.metadata.get("lora_adapter_metadata"):
                adapter = {k.removeprefix("transformer."): v for k, v in json.loads(text).items()}
            elif beside and (folder / "adapter_config.json").is_file():
                adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            self._alpha = adapter.get("lora_alpha")
            self._patterns = dict(adapter.get("alpha_pattern") or {})
            self._root = bool(adapter.get("use_rslora"))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(path, "its adapter configuration cannot be read") from error

    def of(self, module: str, alpha_key: str | None, rank: int) -> float:
        """The factor of a module, by its name in the file without the role."""
        root = False
        if alpha_key is not None:
            alpha: Any = math.nan
            if math.prod(self._source.tensors[alpha_key].shape) == 1:
                alpha = self._source.read(alpha_key, dtype=torch.float32).item()
        else:
            patterns = (v for k, v in self._patterns.items() if f".{module}".endswith(f".{k}"))
            alpha = next(patterns, self._alpha)
            if alpha is None:
                return 1.0
            root = self._root
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise _damaged(self._path, f"the alpha of {module} is no finite number")
        return float(alpha) / (math.sqrt(rank) if root else rank)


class _Translation:
    """Modules of one file to the original names, by what the file's names look like."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._stripped = {module: self._strip(module) for module in modules}
        # norm2 and norm3 mean different things in the two, so a file is read as one or the other.
        self._diffusers = any(_DIFFUSERS.search(name) for name in self._stripped.values())

    @staticmethod
    def _strip(module: str) -> str:
        for prefix in _PREFIXES:
            if module.startswith(prefix):
                module = module.removeprefix(prefix)
                if prefix == "lora_unet_":
                    return ".".join(_WORDS.findall(module))
        return module

    def __call__(self, module: str) -> str:
        name = self._stripped[module]
        if not self._diffusers:
            return name
        try:
            (renamed,) = keymaps.rename([f"{name}.weight"], keymaps.DIT_DIFFUSERS).values()
        except (KeyError, ValueError):
            return name  # matches no parameter, and the message will say so
        return renamed.removesuffix(".weight")


def some_of(keys: Sequence[str]) -> str:
    """The first few of `keys`, for a message."""
    shown = (key if key.isprintable() else repr(key) for key in keys[:SHOWN_KEYS])
    return ", ".join(shown) + ("…" if len(keys) > SHOWN_KEYS else "")
