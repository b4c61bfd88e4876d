"""What this machine can do at most: matrix products, attention by backend, copies.

The floor of every comparison: no network is faster than its matrix products.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sora_cli.bench.timing import interleave, spread
from sora_cli.models import attention, fp8
from sora_cli.models.attention import DEFAULT, TRIED
from sora_cli.runtime.memory import is_out_of_memory

HEADS, HEAD_DIM = 12, 128  # of Wan's 1.3B
WIDTH = HEADS * HEAD_DIM


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What is multiplied, attended to and copied on a kind of device.

    matrix: side of the matrices. tokens: lengths of the sequences. copied: bytes. backends: of
    attention, by name.
    """

    matrix: int
    tokens: tuple[int, ...]
    copied: int
    backends: tuple[str, ...]

    def scaled(self, scale: float) -> Sizes:
        """Smaller, in multiples that kernels take."""
        if scale >= 1:
            return self

        def part(number: int, unit: int) -> int:
            return max(unit, round(number * scale / unit) * unit)

        return Sizes(
            matrix=part(self.matrix, 64), tokens=tuple(part(n, 64) for n in self.tokens),
            copied=part(self.copied, 1 << 16), backends=self.backends,
        )  # fmt: skip


SIZES = {
    # torch's plain form would want 50 GB of scores for the longer sequence.
    "cuda": Sizes(matrix=8192, tokens=(16_384, 32_768), copied=1 << 30, backends=(DEFAULT, *TRIED)),
    "cpu": Sizes(matrix=2048, tokens=(2048,), copied=1 << 28, backends=("flash", "math")),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling:
    """One measured rate; None where the device cannot do it, and why."""

    name: str
    dtype: str
    rate: float | None
    unit: str
    why: str | None = None


def matmul(side: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A product of two square matrices; 2·side³ FLOPs."""
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def measure(
    table: str, device: torch.device, dtypes: tuple[torch.dtype, ...], scale: float
) -> Iterator[Ceiling]:
    """Every rate of a device, as they come: GFLOP/s and GB/s."""
    sizes = SIZES[table].scaled(scale)
    for dtype in dtypes:
        work = matmul(sizes.matrix, device, dtype)
        yield _rate(f"matmul {sizes.matrix}³", dtype, device, work, 2 * sizes.matrix**3 / 1e9)
    if table == "cuda" and torch.bfloat16 in dtypes:
        yield from _in_8_bits(sizes.matrix, device)
    for dtype in dtypes:
        for tokens in sizes.tokens:
            yield from _attention(tokens, device, dtype, sizes.backends)
        yield from _projections(sizes.tokens[-1], device, dtype)
    yield from _copies(sizes.copied, device)


def _in_8_bits(side: int, device: torch.device) -> Iterator[Ceiling]:
    """The matrix product of `--fp8-matmul`, and the rounding of activations before it."""
    dtype = torch.float8_e4m3fn
    x = torch.randn(side, side).to(device, torch.bfloat16)
    rows, weight = fp8.quantise_rows(x), fp8.quantise(x)
    product = partial(fp8.matmul, rows, weight, None, torch.bfloat16)
    yield _rate(f"matmul {side}³ in 8 bits", dtype, device, product, 2 * side**3 / 1e9)
    rounding = partial(fp8.quantise_rows, x)
    yield _rate("rounding to 8 bits", dtype, device, rounding, 3 * x.numel() / 1e9, "GB/s")


def _attention(
    tokens: int, device: torch.device, dtype: torch.dtype, backends: tuple[str, ...]
) -> Iterator[Ceiling]:
    shape = (1, HEADS, tokens, HEAD_DIM)
    query, key, value = (torch.randn(shape).to(device, dtype) for _ in range(3))
    flops = 4 * WIDTH * tokens**2
    for name in backends:

        def attend(name: str = name) -> Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # every reason that a backend has, line by line
                return attention.run(name, query, key, value)

        yield _rate(f"attention, {tokens:,} tokens, {name}", dtype, device, attend, flops / 1e9)


def _projections(tokens: int, device: torch.device, dtype: torch.dtype) -> Iterator[Ceiling]:
    """Query, key and value of a block: three matrix products, or one of three times the width."""
    x = torch.randn(tokens, WIDTH).to(device, dtype)
    weight = torch.randn(3 * WIDTH, WIDTH).to(device, dtype)
    parts = weight.split(WIDTH)
    ways: dict[str, Callable[[], object]] = {
        "apart": lambda: [F.linear(x, part) for part in parts],
        "at once": lambda: F.linear(x, weight),
    }
    for name, work in ways.items():
        label = f"query, key and value of {tokens:,} tokens, {name}"
        yield _rate(label, dtype, device, work, 6 * tokens * WIDTH**2 / 1e9)


def _copies(size: int, device: torch.device) -> Iterator[Ceiling]:
    """Within the device (read and written: twice the bytes) and, to a GPU, from pinned memory."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    yield _rate(
        "copy within the device", torch.uint8, device, lambda: target.copy_(source),
        2 * size / 1e9, "GB/s",
    )  # fmt: skip
    if device.type != "cuda":
        return
    host = torch.zeros(size, dtype=torch.uint8).pin_memory()
    for name, to, where in (("host to device", target, host), ("device to host", host, source)):
        copy = partial(to.copy_, where, non_blocking=True)
        yield _rate(f"copy {name}, pinned", torch.uint8, device, copy, size / 1e9, "GB/s")


def _rate(
    name: str, dtype: torch.dtype, device: torch.device, work: Callable[[], object],
    amount: float, unit: str = "GFLOP/s",
) -> Ceiling:  # fmt: skip
    """Median of five calls after two that warm up."""
    label = str(dtype).removeprefix("torch.")
    try:
        for _ in range(2):
            work()
        laps = interleave({"it": work}, rounds=5, seconds=20, device=device)["it"]
    except RuntimeError as error:
        # Torch says "No available kernel" of a backend that this device lacks.
        why = "out of memory" if is_out_of_memory(error) else str(error).splitlines()[0]
        return Ceiling(name=name, dtype=label, rate=None, unit=unit, why=why.rstrip("."))
    seconds = spread([lap.wall for lap in laps]).median
    return Ceiling(name=name, dtype=label, rate=amount / seconds, unit=unit)
