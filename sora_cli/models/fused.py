"""When a Triton kernel stands in for plain torch code, and the proof that it may.

A kernel is never needed: it is tried on CUDA in inference, where Triton is installed. Each is held
against the plain code, its twin, at its first use for a class of shapes, dtype and device: on the
real input, over `SAMPLED` tokens from the first to the last. One that differs by more than
`within` allows, or does not compile, is switched off for the process; `take_notes` says so once.
Once proved, a kernel may write its result over its first argument (`overwrites`): a block's
residual stream, of which nobody needs the old state, then lies in memory once.

`SORA_KERNELS=0` switches all off. With `TRITON_INTERPRET=1` they run on a CPU, slowly: that is how
they are tested. Under `torch.compile` they give way, as it fuses the plain code itself.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

VARIABLE = "SORA_KERNELS"
SAMPLED = 256  # tokens
FP32 = 2.0**-20  # of the largest number: sums of a few thousand products, added in another order

Tensors = tuple[Tensor, ...]
_verdicts: set[tuple[Any, ...]] = set()  # what was held against its twin and agreed
_off: dict[str, str] = {}  # what was switched off, and why
_notes: list[str] = []
_proved: ContextVar[bool] = ContextVar("proved", default=False)  # of the kernel that is launched


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and its twin, which take the same arguments and return the same tensors.

    launch: the kernel. plain: the twin. sample: the arguments for some tokens `[n]` alone.
    All tensors that are returned have their tokens in dimension 1.
    """

    name: str
    launch: Callable[..., Tensors]
    plain: Callable[..., Tensors]
    sample: Callable[[Tensor, tuple[Any, ...]], tuple[Any, ...]]

    def __call__(self, *args: Any) -> Tensors:
        """The kernel's result, or the twin's where there is any doubt.

        Raises what the twin raises, and OutOfMemoryError.
        """
        if self.name in _off:
            return self.plain(*args)
        seen = (self.name, *map(_shape_class, args))
        if seen not in _verdicts:
            why = self._fault(args)
            if why is not None:
                _switch_off(self.name, why)
                return self.plain(*args)
            _verdicts.add(seen)
        before = _proved.set(True)
        try:
            return self.launch(*args)
        finally:
            _proved.reset(before)

    def _fault(self, args: tuple[Any, ...]) -> str | None:
        """Why the kernel is not to be used for these, None where it may be."""
        try:
            return self._difference(self.launch(*args), args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler's: of any kind
            return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.200}"

    def _difference(self, found: Tensors, args: tuple[Any, ...]) -> str | None:
        """How the result differs from the twin's, None within the bound."""
        tokens = found[0].shape[1]
        some = torch.linspace(0, tokens - 1, min(tokens, SAMPLED), device=found[0].device).long()
        wanted = self.plain(*self.sample(some, args))
        for mine, right in zip(found, wanted, strict=True):
            mine = mine[:, some].reshape(right.shape)
            if mine.dtype != right.dtype or not within(mine, right):
                gap = (mine.float() - right.float()).abs().max()
                return f"it differs from plain torch by up to {float(gap):.1e}"
        return None


def within(found: Tensor, right: Tensor) -> bool:
    """Whether results differ by one rounding of their dtype at most, or by fp32's own.

    |found − right| ≤ eps · |right| + 2⁻²⁰ · max |right|; not a number where there was one is not.
    """
    exact = right.float()
    finite = torch.nan_to_num(exact, posinf=0.0, neginf=0.0).abs()
    allowed = torch.finfo(right.dtype).eps * finite + FP32 * finite.max()
    gap = (found.float() - exact).abs()
    return bool(((gap <= allowed) | (found == right) | (found.isnan() & right.isnan())).all())


def usable(x: Tensor) -> bool:
    """Whether kernels are tried on tensors like this one."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if x.device.type != "cuda":
        return x.device.type == "cpu" and interpreted() and installed()
    return wanted()


def overwrites() -> bool:
    """Whether the kernel that is being launched may write over its first argument.

    Not while it is held against its twin, which reads that too, and may have to stand in for it.
    """
    return _proved.get()


def interpreted() -> bool:
    """Whether Triton's interpreter was asked for."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def wanted() -> bool:
    """Whether kernels are tried on this machine's GPU, for whoever plans its memory."""
    return os.environ.get(VARIABLE) != "0" and installed()


@cache
def installed() -> bool:
    """Whether Triton is there, without importing it."""
    return importlib.util.find_spec("triton") is not None


def take_notes() -> tuple[str, ...]:
    """What was switched off since this was last asked, a sentence each."""
    taken = tuple(_notes)
    _notes.clear()
    return taken


def note(sentence: str) -> None:
    """Something that the user of this process should hear once."""
    _notes.append(sentence)


def reset() -> None:
    """Forget every verdict: kernels are checked, and tried, again."""
    _verdicts.clear()
    _off.clear()
    _notes.clear()


def _switch_off(name: str, why: str) -> None:
    _off[name] = why
    note(f"plain torch from here on instead of the kernel {name}: {why}")


def _shape_class(value: Any) -> Any:
    """What a kernel is compiled for and may go wrong by; lengths only by their size in bits."""
    if isinstance(value, tuple):
        return tuple(map(_shape_class, value))
    if isinstance(value, nn.Module):
        return (type(value), *map(_shape_class, value.parameters()))
    if not isinstance(value, Tensor):
        return value
    middle = tuple(length.bit_length() for length in value.shape[:-1])
    return (value.dtype, value.device, middle, value.shape[-1])


def rows_of(some: Tensor, rows: Tensor | None, tokens: int) -> Tensor | None:
    """Of a modulation `[B or 1, G, D]` what belongs to some of L tokens, one row for each."""
    if rows is None or rows.shape[1] == 1:
        return rows
    return rows[:, some // (tokens // rows.shape[1])]
