"""Triton kernels of what lies between a block's matrix products: one pass over memory each.

Read only where `models/fused.py` asks for it: on CUDA with Triton installed, or in Triton's
interpreter. Nothing here decides anything. Shapes: B batch, L tokens, D width, N heads, K head dim,
G groups of tokens that share a modulation. A program handles one token, in fp32 whatever is read
or written; products and sums stand in the order of the plain code (`layers`, `residual`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sora_cli.models import fused


@triton.jit
def residual_norm_kernel(
    x, update, gate, shift, scale, out, normed, eps,
    tokens, group_tokens, gate_batch, gate_group, norm_batch, norm_group,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr, GATED: tl.constexpr,
    NORMS: tl.constexpr, AROUND_ONE: tl.constexpr,
):  # fmt: skip
    """out = x + update · gate; normed = layer_norm(out) · scale + shift, of one token.

    ADDS, GATED, NORMS leave a part out. AROUND_ONE: the factor is 1 + scale. gate_batch and
    norm_batch are strides of the modulation over B (0 where all share it), the others over G.
    """
    row = tl.program_id(0).to(tl.int64)
    batch, group = row // tokens, row % tokens // group_tokens
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    value = tl.load(x + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        added = tl.load(update + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            place = batch * gate_batch + group * gate_group + at
            added = added * tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
        value = value + added
        tl.store(out + row * WIDTH + at, value, mask=inside)
    if NORMS:
        centred = tl.where(inside, value - tl.sum(value, 0) / WIDTH, 0.0)
        power = tl.sum(centred * centred, 0) / WIDTH
        unit = centred * tl.rsqrt(power + eps)
        place = batch * norm_batch + group * norm_group + at
        factor = tl.load(scale + place, mask=inside, other=0.0).to(tl.float32)
        if AROUND_ONE:
            factor = 1.0 + factor
        unit = unit * factor + tl.load(shift + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(normed + row * WIDTH + at, unit.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _norm_rotate_row(
    x, weight, table, out, row, token, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """out = rotate(rms_norm(x) · weight), of one token; PAIRS of a head, 0: not rotated."""
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    value = tl.load(x + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
    power = tl.sum(value * value, 0) / WIDTH
    value = value * tl.rsqrt(power + eps)
    value = value * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if PAIRS > 0:
        even, odd = tl.split(tl.reshape(value, (BLOCK // 2, 2)))
        angle = table + (token * PAIRS + tl.arange(0, BLOCK // 2) % PAIRS) * 2
        cos, sin = tl.load(angle), tl.load(angle + 1)
        value = tl.interleave(even * cos - odd * sin, even * sin + odd * cos)
    tl.store(out + row * WIDTH + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_rotate_kernel(
    query, key, query_weight, key_weight, table, query_out, key_out, eps, tokens,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """The query's token in the first half of the grid's second axis, the key's in the other."""
    row = tl.program_id(0).to(tl.int64)
    token = row % tokens
    if tl.program_id(1) == 0:
        _norm_rotate_row(
            query, query_weight, table, query_out, row, token, eps, WIDTH, BLOCK, PAIRS
        )
    else:
        _norm_rotate_row(key, key_weight, table, key_out, row, token, eps, WIDTH, BLOCK, PAIRS)


@triton.jit
def _to_8_bits(value):
    """The nearest number of float8_e4m3fn, ties to even, as a float32.

    The conversion after it is then exact: the interpreter's own loses a carry into the exponent.
    """
    bits = value.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000  # 3 bits of the mantissa are left
    small = (value + 24576.0) - 24576.0  # at 1.5 * 2**14 floats are 2**-9 apart, as it is below
    return tl.where(tl.abs(value) < 0.015625, small, bits.to(tl.float32, bitcast=True))


@triton.jit
def quantise_kernel(
    x, values, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr
):  # fmt: skip
    """values · scale = x, of one token: its largest number becomes LARGEST."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    value = tl.load(x + row * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
    peak = tl.max(tl.abs(value), 0)
    # Rounded divisions: a quotient one rounding off would be another 8-bit number now and then.
    factor = tl.where(peak > 0, tl.div_rn(peak, LARGEST), 1.0)
    value = tl.clamp(tl.div_rn(value, factor), -LARGEST, LARGEST)
    tl.store(scale + row, factor)
    value = _to_8_bits(value).to(values.dtype.element_ty)
    tl.store(values + row * WIDTH + at, value, mask=inside)


def _shape(width: int) -> dict[str, int]:
    """A whole token in a program: about 8 to 16 numbers a thread."""
    block = triton.next_power_of_2(width)
    return {"WIDTH": width, "BLOCK": block, "num_warps": min(16, max(1, block // 256))}


def residual_norm(
    x: Tensor, update: Tensor | None, gate: Tensor | None, shift: Tensor | None,
    scale: Tensor | None, *, around_one: bool, eps: float, dtype: torch.dtype,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x + update · gate, its norm modulated, or both in one pass.

    Args:
        x: the residual stream `[B, L, D]`, float32; the sum is written over it where that may be.
        update: `[B, L, D]` to be added; None adds nothing. gate: `[B or 1, G, D]` it is times.
        shift, scale: `[B or 1, G, D]` of the norm; None norms nothing.
        around_one: the norm is times 1 + scale, else times scale.
        dtype: of what is normed.

    Returns:
        The new stream where an update was added, then the norm where there is one.
    """
    batch, tokens, width = x.shape
    x = x.contiguous()
    update = None if update is None else update.contiguous()
    out = None
    if update is not None:
        out = x if fused.overwrites() else torch.empty_like(x)
    normed = None if scale is None else torch.empty(x.shape, dtype=dtype, device=x.device)
    rows = gate if gate is not None else scale
    groups = 1 if rows is None else max(rows.shape[1], 1 if scale is None else scale.shape[1])
    with _on(x):
        residual_norm_kernel[(batch * tokens,)](
            x, update, gate, shift, scale, out, normed, eps, tokens, tokens // groups,
            *_strides(gate), *_strides(scale), ADDS=update is not None, GATED=gate is not None,
            NORMS=scale is not None, AROUND_ONE=around_one, **_shape(width),
        )  # fmt: skip
    return tuple(each for each in (out, normed) if each is not None)


def norm_rotate(
    tensors: tuple[Tensor, ...], weights: tuple[Tensor, ...], table: Tensor | None, *,
    heads: int, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """RMS norm over the whole width and, with a table, rotation, of one tensor or of two.

    Args:
        tensors: query, or query and key, `[B, L, D]` of one dtype; weights: `[D]` for each.
        table: `rope_table`, `[L, 1, K/2, 2]` float32; None rotates nothing.
        heads: D is heads · K.

    Returns:
        `[B, L, D]` of the same dtype for each.
    """
    batch, tokens, width = tensors[0].shape
    ins = tuple(tensor.contiguous() for tensor in tensors)
    outs = tuple(map(torch.empty_like, ins))
    with _on(ins[0]):
        norm_rotate_kernel[(batch * tokens, len(ins))](
            ins[0], ins[-1], weights[0], weights[-1], table, outs[0], outs[-1], eps, tokens,
            PAIRS=0 if table is None else width // heads // 2, **_shape(width),
        )  # fmt: skip
    return outs


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`[B, L, D]` in an 8-bit `dtype`, and the float32 scale `[B, L, 1]` of each token."""
    batch, tokens, width = x.shape
    x = x.contiguous()
    values = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(batch, tokens, 1, device=x.device)
    with _on(x):
        quantise_kernel[(batch * tokens,)](
            x, values, scale, LARGEST=torch.finfo(dtype).max, **_shape(width)
        )
    return values, scale


def _strides(rows: Tensor | None) -> tuple[int, int]:
    """Of a modulation `[B or 1, G, D]` over B and over G; 0 over what is shared by all."""
    if rows is None:
        return 0, 0
    batch, groups, _ = rows.shape
    return rows.stride(0) if batch > 1 else 0, rows.stride(1) if groups > 1 else 0


def _on(x: Tensor) -> torch.cuda.device:
    """Triton launches on the current device, whatever the tensors' own."""
    return torch.cuda.device(x.device if x.is_cuda else -1)
