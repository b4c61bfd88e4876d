"""Where a call's time goes: torch's profiler, its operations put into a few kinds.

It says why a ratio is what it is: what both sides must multiply can only be multiplied, so that
their ratio is bounded by theirs over our matrix products, attention and convolutions alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from sora_cli.bench.timing import lap

# A kind takes every operation of which a word is a part, the first kind that does; the last one
# takes what is left.
KINDS: Mapping[str, tuple[str, ...]] = {
    "convolutions": ("convolution", "slow_conv", "thnn_conv"),
    "attention": ("scaled_dot_product", "_softmax"),
    "matrix products": ("addmm", "::mm", "bmm", "_linear_pointwise"),
    "norms": ("layer_norm", "vector_norm", "rms_norm", "rsqrt"),
    "copies and conversions": ("copy_", "::cat", "clone", "constant_pad", "upsample"),
    "sums, products, activations": (
        "::add", "::mul", "::sub", "::div", "addcmul", "silu", "gelu", "clamp", "round", "pow",
    ),
    "all else": ("",),
}  # fmt: skip
# The same kinds in the names of a GPU's kernels, theirs, ours and the compiler's.
KERNELS: Mapping[str, tuple[str, ...]] = {
    "attention": ("sdpa", "fmha", "flash", "attention", "softmax"),
    "convolutions": ("conv", "fprop", "implicit"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas"),
    "norms": ("norm",),
    "copies and conversions": ("memcpy", "memset", "copy", "catarray", "upsample"),
    "sums, products, activations": ("elementwise", "triton", "quantise"),
    "all else": ("",),
}  # fmt: skip
PYTHON = "between operations"
MULTIPLIED = tuple(KINDS)[:3]  # what neither side can leave out
RUNS = 3
CPU = torch.device("cpu")


def kind_of(operation: str, kinds: Mapping[str, tuple[str, ...]] = KINDS) -> str:
    """The kind of an operation in the profiler's words, `aten::addmm` for one."""
    return next(kind for kind, words in kinds.items() if any(word in operation for word in words))


def breakdown(
    call: Callable[[], object], runs: int = RUNS, device: torch.device = CPU
) -> dict[str, float]:
    """The share of each kind, and of what is between operations, in a call.

    Of several calls each kind's least is taken. Shares, because a busy machine stretches all alike.
    Of a GPU its kernels are counted, and what is between them is its idling.
    """
    card = device.type == "cuda"
    watched = [ProfilerActivity.CUDA if card else ProfilerActivity.CPU]
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells of its own beginning and end
    least: dict[str, float] = {}
    for _ in range(runs):
        with profile(activities=watched) as found:
            whole = lap(call, device).wall
        seconds = dict.fromkeys(KINDS, 0.0)
        for event in found.key_averages():
            if not card:
                seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
            elif event.device_type == DeviceType.CUDA:
                kind = kind_of(event.key.lower(), KERNELS)
                seconds[kind] += event.self_device_time_total / 1e6
        seconds[PYTHON] = max(0.0, whole - sum(seconds.values()))
        least = {kind: min(took, least.get(kind, took)) for kind, took in seconds.items()}
    return {kind: took / sum(least.values()) for kind, took in least.items()}


def of_sides(
    sides: Mapping[str, Callable[[], object] | None], device: torch.device, runs: int = RUNS
) -> dict[str, dict[str, float]]:
    """The breakdown of each side that is there."""
    return {name: breakdown(call, runs, device) for name, call in sides.items() if call is not None}


HEADS = ("workload", "dtype", "whose", *KINDS, PYTHON, "at most")
INTRO = """Shares of a call by torch's profiler; a GELU that is computed with its matrix product
counts there. *At most*: the ratio if of ours only the first three columns, which neither side can
leave out, took any time.
"""


def rows(workloads: Sequence[Mapping[str, Any]], details: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The table's rows, one for each side of a workload."""
    table = []
    for row, beside in zip(workloads, details, strict=True):
        for side, shares in beside.get("breakdown", {}).items():
            bound, multiplied = "", sum(shares[kind] for kind in MULTIPLIED)
            if side == "ours" and row["ratio"] is not None and multiplied > 0:
                bound = f"{row['ratio'] / multiplied:.2f}×"
            cells = (f"{shares[kind]:.0%}" for kind in (*KINDS, PYTHON))
            table.append([beside["what"], row["dtype"], side, *cells, bound])
    return table
