"""What stands between the layers of a block, in few passes: gated sums, norms, modulation.

Each is written out in plain torch, which trains, and which is what the kernels that stand in for it
on a GPU are held against (`fused`). Shapes: B batch, L tokens, D width, G groups of tokens that
share a timestep. A group's modulation is never expanded to its tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sora_cli.models import fused
from sora_cli.models.layers import LayerNorm


def add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update · gate, of `[B, L, D]` by `[B or 1, G, D]`: the fp32 residual stream."""
    if fused.usable(x):
        return _ADD(x, update, gate)[0]
    return _plain_add(x, update, gate)[0]


def normed(
    norm: nn.Module, x: Tensor, dtype: torch.dtype, shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The norm of `x` `[B, L, D]` in `dtype`, modulated by `[B or 1, G, D]` where that is given."""
    if fused.usable(x) and isinstance(norm, LayerNorm):
        return _NORM(norm, x, dtype, shift, scale)[0]
    return _plain_norm(norm, x, dtype, shift, scale)[0]


def added_normed(
    norm: nn.Module, x: Tensor, update: Tensor, gate: Tensor | None, dtype: torch.dtype,
    shift: Tensor | None = None, scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x + update · gate (without one: x + update), and the norm of that as `normed` has it."""
    if fused.usable(x) and isinstance(norm, LayerNorm):
        stream, after = _ADD_NORM(norm, x, update, gate, dtype, shift, scale)
    else:
        stream, after = _plain_add_norm(norm, x, update, gate, dtype, shift, scale)
    return stream, after


def _plain_add(x: Tensor, update: Tensor, gate: Tensor | None) -> tuple[Tensor]:
    update = update.float()  # by themselves, sum and addcmul widen element by element
    if gate is None:
        return (x + update,)
    if gate.shape[1] == 1:
        return (torch.addcmul(x, update, gate),)
    groups = (gate.shape[1], -1)
    out = torch.addcmul(x.unflatten(1, groups), update.unflatten(1, groups), gate[:, :, None])
    return (out.flatten(1, 2),)


def _plain_norm(
    norm: nn.Module, x: Tensor, dtype: torch.dtype, shift: Tensor | None, scale: Tensor | None
) -> tuple[Tensor]:
    return ((norm(x) if shift is None else norm(x, shift, scale)).to(dtype),)


def _plain_add_norm(
    norm: nn.Module, x: Tensor, update: Tensor, gate: Tensor | None, dtype: torch.dtype,
    shift: Tensor | None, scale: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (x,) = _plain_add(x, update, gate)
    return x, *_plain_norm(norm, x, dtype, shift, scale)


def _fused_add(x: Tensor, update: Tensor, gate: Tensor | None) -> fused.Tensors:
    from sora_cli.models import kernels

    return kernels.residual_norm(
        x, update, gate, None, None, around_one=False, eps=0.0, dtype=x.dtype
    )


def _fused_add_norm(
    norm: LayerNorm, x: Tensor, update: Tensor | None, gate: Tensor | None, dtype: torch.dtype,
    shift: Tensor | None, scale: Tensor | None,
) -> fused.Tensors:  # fmt: skip
    from sora_cli.models import kernels

    modulated = scale is not None
    if not modulated:  # the norm's own factors are a modulation of one row
        assert norm.weight is not None and norm.bias is not None, "a norm that does not scale"
        scale, shift = norm.weight[None, None], norm.bias[None, None]  # [1, 1, D]
    return kernels.residual_norm(
        x, update, gate, shift, scale, around_one=modulated, eps=norm.eps, dtype=dtype
    )


def _fused_norm(
    norm: LayerNorm, x: Tensor, dtype: torch.dtype, shift: Tensor | None, scale: Tensor | None
) -> fused.Tensors:
    return _fused_add_norm(norm, x, None, None, dtype, shift, scale)


def _sample_add(some: Tensor, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, update, gate = args
    return x[:, some], update[:, some], fused.rows_of(some, gate, x.shape[1])


def _sample_norm(some: Tensor, args: tuple[Any, ...]) -> tuple[Any, ...]:
    norm, x, dtype, shift, scale = args
    rows = (fused.rows_of(some, rows, x.shape[1]) for rows in (shift, scale))
    return norm, x[:, some], dtype, *rows


def _sample_add_norm(some: Tensor, args: tuple[Any, ...]) -> tuple[Any, ...]:
    norm, x, update, gate, dtype, shift, scale = args
    x, update, gate = _sample_add(some, (x, update, gate))
    tokens = args[1].shape[1]
    rows = (fused.rows_of(some, rows, tokens) for rows in (shift, scale))
    return norm, x, update, gate, dtype, *rows


_ADD = fused.Kernel("gated sum", _fused_add, _plain_add, _sample_add)
_NORM = fused.Kernel("norm", _fused_norm, _plain_norm, _sample_norm)
_ADD_NORM = fused.Kernel("sum and norm", _fused_add_norm, _plain_add_norm, _sample_add_norm)
