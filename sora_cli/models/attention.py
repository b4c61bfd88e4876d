"""Which of a GPU's attention kernels computes a shape: the fastest in a small trial on the card.

torch has up to three that are exact (cuDNN's, FlashAttention, the memory-efficient one), and which
of them is fastest differs by card, shape and version. For each class of shapes the first call tries
them on its own tensors, cut to `TRIAL` tokens; the fastest is remembered for the process. torch's
own choice stays unless another beats it by `MARGIN`, so that noise decides nothing: the kernels
differ in their last bits. `SORA_ATTENTION`, one of `default`, `cudnn`, `flash`, `efficient` and
`math`, decides without a trial. Shapes: B batch, N heads, L tokens, K head dim.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sora_cli.errors import UsageError
from sora_cli.models import fused

Timer = Callable[[Callable[[], object]], float]

VARIABLE = "SORA_ATTENTION"
DEFAULT = "default"  # torch's own choice
BACKENDS: Mapping[str, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH,
}  # fmt: skip
TRIED = ("cudnn", "flash", "efficient")
TRIAL = 16_384  # tokens: 2 to 10 ms a call on a card for which this matters
MARGIN = 0.03
# Relative RMS by which a backend may differ from torch's own choice, a few roundings of bfloat16;
# versions of torch there have been whose kernels gave something else for some shapes.
AGREEMENT = 2e-2
# Where torch (from 2.12 on) can have FlashAttention 3, and the package that brings it.
FLASH_3 = ("FA3", "flash_attn_interface")

_chosen: dict[tuple[Any, ...], str] = {}


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Unmasked attention of `[B, N, L, K]` on a GPU in inference, by the fastest backend.

    Raises:
        UsageError: `SORA_ATTENTION` is no backend.
    """
    if torch.compiler.is_compiling():  # one opaque call, so that the choice is made at run time
        return torch.ops.sora.attention(query, key, value).transpose(1, 2)
    return run(choice(query, key, value), query, key, value)


@cache
def register() -> torch.library.Library:
    """Make attention one call for `torch.compile`; before anything that attends is compiled."""
    library = torch.library.Library("sora", "DEF")
    library.define("attention(Tensor query, Tensor key, Tensor value) -> Tensor")

    def chosen_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Backends leave their results in different orders; this is FlashAttention's.
        out = run(choice(query, key, value), query, key, value)
        return out.transpose(1, 2).contiguous()  # [B, L, N, K]

    def shape_only(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, tokens, width = query.shape
        return query.new_empty(batch, tokens, heads, width)

    library.impl("attention", chosen_attention, "CompositeExplicitAutograd")
    torch.library.register_fake("sora::attention", shape_only, lib=library)
    return library


def run(name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention by the backend of this name. Raises RuntimeError where it cannot."""
    if name == DEFAULT:
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel([BACKENDS[name]]):
        return F.scaled_dot_product_attention(query, key, value)


def choice(query: Tensor, key: Tensor, value: Tensor) -> str:
    """The backend for tensors like these: what was asked for, else what a trial found."""
    known = (query.device, query.dtype, *query.shape[1::2], *map(_class, (query, key)))
    if known not in _chosen:
        asked = os.environ.get(VARIABLE, "")
        _prepare(query.device)
        _chosen[known] = (
            _asked(asked, query, key, value) if asked else fastest(query, key, value, seconds)
        )
    return _chosen[known]


def chosen() -> dict[str, str]:
    """What was chosen so far, by a shape in words, for reports."""
    return {
        f"{heads} heads of {width}, {rows} to {columns} bits of tokens, {dtype}": name
        for (_, dtype, heads, width, rows, columns), name in _chosen.items()
    }


def forget() -> None:
    """Let every shape be tried again."""
    _chosen.clear()


def fastest(
    query: Tensor, key: Tensor, value: Tensor, timer: Timer, names: tuple[str, ...] = TRIED
) -> str:
    """The name of the fastest backend that can and that agrees; `DEFAULT` where none is better.

    timer: seconds of a call, warmed.
    """
    query, key, value = (x[:, :, :TRIAL] for x in (query, key, value))
    wanted = run(DEFAULT, query, key, value)
    best, least = DEFAULT, timer(lambda: run(DEFAULT, query, key, value)) * (1 - MARGIN)
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # every reason that a backend has, line by line
                if not _agree(run(name, query, key, value), wanted):
                    continue
                taken = timer(lambda name=name: run(name, query, key, value))  # type: ignore[misc]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # torch's, of a backend that lacks this dtype, width or device
            continue
        if taken < least:
            best, least = name, taken
    return best


def seconds(call: Callable[[], object]) -> float:
    """The better of two calls on the current GPU, after one that warms up."""
    call()
    found = []
    for _ in range(2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1000)
    return min(found)


def _agree(found: Tensor, wanted: Tensor) -> bool:
    gap = (found.float() - wanted.float()).square().mean()
    return bool(gap <= AGREEMENT**2 * wanted.float().square().mean())


def _asked(name: str, query: Tensor, key: Tensor, value: Tensor) -> str:
    """The backend that the user wants, or torch's choice for a shape that it cannot do."""
    if name != DEFAULT and name not in BACKENDS:
        names = ", ".join((DEFAULT, *BACKENDS))
        raise UsageError(f"{VARIABLE}={name[:40]} is no attention backend", hint=f"one of {names}")
    try:
        run(name, *(x[:, :, :1] for x in (query, key, value)))
    except RuntimeError:
        fused.note(f"{VARIABLE}={name} cannot compute {query.dtype} here; torch chooses")
        return DEFAULT
    return name


@cache
def _prepare(device: torch.device) -> None:
    """Let FlashAttention be its version 3, where this card, torch and a package have it."""
    from torch.nn import attention

    name, package = FLASH_3
    list_impls: Callable[[], list[str]] = getattr(attention, "list_flash_attention_impls", list)
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
    if hopper and name in list_impls() and importlib.util.find_spec(package) is not None:
        attention.activate_flash_attention_impl(name)


def _class(x: Tensor) -> int:
    """Lengths within a factor of two are alike; all beyond what is tried are."""
    return min(x.shape[2], TRIAL).bit_length()
