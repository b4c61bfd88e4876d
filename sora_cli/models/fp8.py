"""Linear layers in 8-bit floats: stored so and dequantised at use, or multiplied so as well.

A weight is q · scale, with q in float8_e4m3fn (or e5m2) and a float32 scale for the whole matrix,
for each output channel, or for each block of inputs of an output channel. In `Fp8Linear`
activations and sums keep the compute dtype: what is saved is memory, and the result is bit for bit
that of the dequantised weight. In `Fp8Matmul` activations are rounded too, a scale for each row:
what is saved is time. Shapes: O outputs, I inputs, G blocks of inputs, M rows of activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sora_cli.models import fused

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
# Rows that a feed-forward layer takes at once: its hidden layer, in two formats, is then small, and
# a GPU's matmul is no slower.
ROWS = 16_384
# Where nearly all the weights lie; those outside (embeddings, head) are few and sensitive.
BLOCKS = ("blocks.", "vace_blocks.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Weight:
    """A matrix in 8 bits: `values` `[O, I]` and `scale` float32 `[1 or O, G]`, G dividing I."""

    values: Tensor
    scale: Tensor

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """values · scale, multiplied in float32 and rounded once to `dtype`; `[O, I]`."""
        return dequantise(self.values, self.scale, dtype)


def dequantise(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` `[O, I]` times `scale` float32 `[1 or O, G]`, in float32, rounded once to `dtype`.

    Every 8-bit float is a float16 and a bfloat16 too, so widening first loses nothing, and the
    product may be written over it: no float32 copy of the matrix is held.
    """
    weight = values.to(dtype)
    weight.unflatten(1, (scale.shape[1], -1)).mul_(scale[..., None])  # [O, G, I/G]
    return weight


def quantise(weight: Tensor) -> Fp8Weight:
    """`[O, I]` in float8_e4m3fn with a scale per output channel: its largest weight becomes 448."""
    weight = weight.float()
    largest = torch.finfo(torch.float8_e4m3fn).max
    peak = weight.abs().amax(dim=1, keepdim=True)
    scale = torch.where(peak > 0, peak / largest, 1.0)
    # Clamped: a quotient that rounds to above the largest value would become NaN.
    values = (weight / scale).clamp_(-largest, largest).to(torch.float8_e4m3fn)
    return Fp8Weight(values=values, scale=scale)


class Fp8Linear(nn.Module):
    """`nn.Linear` with its weight in 8 bits.

    `weight` is the plain one, made anew at every reading: its dtype is the compute dtype, as
    everywhere. What is stored, moved and saved are the parameters `weight_fp8` and `weight_scale`.
    """

    def __init__(self, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Take `weight` and `bias` `[O]` as they are; `dtype` is the one computed in."""
        super().__init__()
        self.out_features, self.in_features = weight.values.shape
        self.compute_dtype = dtype
        self.weight_fp8 = nn.Parameter(weight.values, requires_grad=False)
        self.weight_scale = nn.Parameter(weight.scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The dequantised weight, `[O, I]` in the compute dtype."""
        return dequantise(self.weight_fp8, self.weight_scale, self.compute_dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., I]` in the compute dtype to `[..., O]`."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes and dtypes, for `print(network)`."""
        stored = self.weight_fp8.dtype
        return f"{self.in_features}, {self.out_features}, {stored} → {self.compute_dtype}"


def fp8_weights(network: nn.Module) -> tuple[str, ...]:
    """Names of the weights that may be stored in 8 bits: those of the blocks' linear layers."""
    return tuple(
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(BLOCKS)
    )


def hold_fp8(
    network: nn.Module, weights: Mapping[str, Fp8Weight], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Put an `Fp8Linear` in the place of each linear layer whose weight is in 8 bits.

    Args:
        network: built, on the meta device or not, in the chosen dtype or not.
        weights: by the name of the linear's weight, some or all of `fp8_weights`.
        dtype: the compute dtype.

    Returns:
        What the state dict now needs instead of those weights, for a strict assigning load.
    """
    state: dict[str, Tensor] = {}
    for name, weight in weights.items():
        path = name.removesuffix(".weight")
        linear = network.get_submodule(path)
        assert isinstance(linear, nn.Linear) and linear.weight.shape == weight.values.shape, name
        network.set_submodule(path, Fp8Linear(weight, linear.bias, dtype))
        state[f"{path}.weight_fp8"] = weight.values
        state[f"{path}.weight_scale"] = weight.scale
    return state


def multiplies_fp8(device: torch.device) -> bool:
    """Whether a device has 8-bit matmuls with a scale for each row (Ada, Hopper and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def quantise_rows(x: Tensor) -> Fp8Weight:
    """Activations `[M, I]` in float8_e4m3fn with a scale per row, as `quantise` has weights."""
    rows = x[None]  # what is held to a twin has its tokens in the second dimension
    values, scale = _ROUND(rows) if fused.usable(x) else _plain_round(rows)
    return Fp8Weight(values=values[0], scale=scale[0])


def _plain_round(x: Tensor) -> fused.Tensors:
    found = quantise(x[0])
    return found.values[None], found.scale[None]


def _fused_round(x: Tensor) -> fused.Tensors:
    from sora_cli.models import kernels

    return kernels.quantise(x, torch.float8_e4m3fn)


def _sample_round(some: Tensor, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0][:, some],)


_ROUND = fused.Kernel("rounding to 8 bits", _fused_round, _plain_round, _sample_round)


def matmul(x: Fp8Weight, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`[M, I]` by `[O, I]`, both in 8 bits with a scale per row, to `[M, O]`; sums in float32."""
    return torch._scaled_mm(
        x.values, weight.values.t(), scale_a=x.scale, scale_b=weight.scale.t(), bias=bias,
        out_dtype=dtype,
    )  # fmt: skip


def matmul_plain(
    x: Fp8Weight, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The same in float32 of the same 8-bit numbers, on any device: what `matmul` is held to."""
    sums = F.linear(x.values.float(), weight.values.float()) * x.scale * weight.scale.t()
    return (sums if bias is None else sums + bias.float()).to(dtype)


class Fp8Matmul(nn.Module):
    """A linear layer that multiplies 8-bit activations with 8-bit weights.

    Where the device has no such matmuls the rounding is the same and the product plain: so its
    error can be measured anywhere, and nothing is gained.
    """

    def __init__(self, weight: Fp8Weight, bias: Tensor | None) -> None:
        """Take `weight`, float8_e4m3fn with a scale per output channel, and `bias` `[O]`."""
        super().__init__()
        self.weight_fp8 = nn.Parameter(weight.values, requires_grad=False)
        self.weight_scale = nn.Parameter(weight.scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., I]` to `[..., O]`, in the dtype of `x`."""
        weight = Fp8Weight(values=self.weight_fp8, scale=self.weight_scale)
        multiply = matmul if x.is_cuda else matmul_plain
        out = multiply(quantise_rows(x.flatten(0, -2)), weight, self.bias, x.dtype)
        return out.unflatten(0, x.shape[:-1])


class Fp8FeedForward(nn.Sequential):
    """A `FeedForward` whose two matmuls are in 8 bits."""

    def __init__(self, widen: nn.Module, narrow: nn.Module) -> None:
        """From its linear layers, stored in 8 bits or not; their biases are taken as they are."""
        super().__init__(_in_fp8(widen), nn.GELU(approximate="tanh"), _in_fp8(narrow))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` in and out, `ROWS` rows at a time: each is by itself."""
        widen, _, narrow = self
        rows, out = x.flatten(0, -2), x.new_empty(x.shape)
        for some, made in zip(rows.split(ROWS), out.flatten(0, -2).split(ROWS), strict=True):
            made.copy_(narrow(torch.ops.aten.gelu_(widen(some), approximate="tanh")))
        return out


def multiply_in_fp8(network: nn.Module) -> None:
    """Let the feed-forward layers of a transformer's blocks multiply in 8 bits, one by one.

    Attention stays as it is: in 8 bits too it has turned Wan 2.2 into noise (vllm-omni's issue
    2920).
    """
    for name, module in list(network.named_modules()):
        if name.startswith(BLOCKS) and name.endswith(".ffn"):
            widen, _, narrow = cast("nn.Sequential", module)
            network.set_submodule(name, Fp8FeedForward(widen, narrow))


def _in_fp8(linear: nn.Module) -> Fp8Matmul:
    """A linear layer, stored in 8 bits or not, as one that multiplies in 8 bits."""
    if isinstance(linear, Fp8Linear):
        values, scale = linear.weight_fp8, linear.weight_scale
        if values.dtype == torch.float8_e4m3fn and scale.shape == (len(values), 1):
            return Fp8Matmul(Fp8Weight(values=values, scale=scale), linear.bias)
    assert isinstance(linear, nn.Linear | Fp8Linear)
    return Fp8Matmul(quantise(linear.weight), linear.bias)
