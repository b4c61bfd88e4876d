"""Linear layers whose weights are stored as 8-bit floats and dequantised at use.

A weight is q · scale, with q in float8_e4m3fn (or e5m2) and a float32 scale for the whole matrix,
for each output channel, or for each block of inputs of an output channel. Activations and sums keep
the compute dtype: what is saved is memory, and the result is bit for bit that of the dequantised
weight. Shapes: O outputs, I inputs, G blocks of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
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
