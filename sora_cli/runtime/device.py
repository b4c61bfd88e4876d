"""The one decision about device and dtype, with its reason.

Networks take their dtype from the plan and nowhere else; there is no autocast in inference. The
fp32 islands inside the networks (time embedding, modulation, norms) are theirs, beside the
operation that needs them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sora_cli.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import torch

_DTYPE_NAMES = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DevicePlan:
    """Where a network runs, in which dtype, and why.

    Attributes:
        device: one device, with its index for CUDA.
        dtype: of the weights and activations outside the fp32 islands.
        reason: one sentence for `sora doctor` and the recipe.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def device_name(self) -> str:
        """`cpu`, `cuda:0`, `mps`: as `--device` takes it."""
        return str(self.device)

    @property
    def dtype_name(self) -> str:
        """`float32`, `bfloat16`, `float16`: as `--dtype` takes it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def kind(self) -> Literal["cpu", "cuda", "mps"]:
        """What sort of device it is, as the memory planner has it."""
        kinds: dict[str, Literal["cpu", "cuda", "mps"]] = {"cuda": "cuda", "mps": "mps"}
        return kinds.get(self.device.type, "cpu")

    @property
    def chip(self) -> str:
        """The device's name as its driver says it, empty for a CPU."""
        import torch

        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""

    @property
    def cores(self) -> int:
        """CPU cores that this process may use."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def free_memory(device: torch.device) -> int | None:
    """Bytes free on a device, None where nobody says."""
    if device.type != "cuda":
        from sora_cli.runtime.memory import available_memory

        return available_memory()
    import torch

    return torch.cuda.mem_get_info(device)[0]


def choose_device(device: str | None = None, dtype: str | None = None) -> DevicePlan:
    """Decide where and how precisely to compute.

    Args:
        device: `cpu`, `cuda`, `cuda:N` or `mps`; None or `auto` takes the fastest there is.
        dtype: a name of `float32`, `bfloat16` or `float16`; None or `auto` takes the device's own.

    Raises:
        UsageError: a name that means nothing.
        DeviceError: a device that this machine does not have.
    """
    import torch

    chosen, where = _choose_place(device)
    default, why = _default_dtype(chosen)
    name = _dtype_name(dtype)
    if name is None:
        return DevicePlan(device=chosen, dtype=default, reason=f"{where}; {why}")
    asked = getattr(torch, name)
    return DevicePlan(device=chosen, dtype=asked, reason=f"{where}; {name} was asked for")


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total memory of a CUDA device in bytes, None for a device that shares the host's."""
    import torch

    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return int(free), int(total)


def _choose_place(device: str | None) -> tuple[torch.device, str]:
    import torch

    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0), "a CUDA device is there"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "Apple's Metal device is there"
        return torch.device("cpu"), "no CUDA or Metal device is there"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise UsageError(f"unknown device {device!r}", hint="use cpu, cuda, cuda:0 or mps")
    if kind == "cuda":
        return _cuda(int(index or 0)), f"{device} was asked for"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no Metal device (mps) here", hint="sora doctor")
    return torch.device(kind), f"{device} was asked for"


def _cuda(index: int) -> torch.device:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        why = "the driver shows none" if built else "this torch is a build without CUDA"
        raise DeviceError(f"no CUDA device here: {why}", hint="sora doctor, or --device cpu")
    if index >= torch.cuda.device_count():
        raise DeviceError(
            f"cuda:{index} is not here: the machine has {torch.cuda.device_count()}",
            hint=f"--device cuda:{torch.cuda.device_count() - 1}",
        )
    return torch.device("cuda", index)


def _default_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    import torch

    if device.type == "cpu":
        return _cpu_dtype()
    if device.type == "mps":
        # Metal has bfloat16 since macOS 14; the weights' range is bfloat16's, so it comes first.
        if torch.backends.mps.is_macos_or_newer(14, 0):
            return torch.bfloat16, "bfloat16, which Metal has since macOS 14"
        return torch.float16, "float16, because Metal has no bfloat16 before macOS 14"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "bfloat16, the dtype the published weights were trained in"
    return torch.float16, "float16, because this GPU has no bfloat16"


def _cpu_dtype() -> tuple[torch.dtype, str]:
    """bfloat16 where the processor multiplies it: 2 to 8 times as many numbers in a second."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return torch.float32, "float32, because this torch has no oneDNN for bfloat16"
    # The only places where torch says it; a build for another processor says no, or lacks them.
    for name, what in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512")):
        asked = getattr(torch.cpu, name, None)
        if asked is not None and asked():
            return torch.bfloat16, f"bfloat16, which this CPU multiplies in hardware ({what})"
    return torch.float32, "float32, because this CPU has no bfloat16 matmuls"


def _dtype_name(dtype: str | None) -> str | None:
    if dtype is None or dtype == "auto":
        return None
    if dtype not in _DTYPE_NAMES:
        raise UsageError(
            f"unknown dtype {dtype!r}", hint="use float32, bfloat16, float16 or leave it out"
        )
    return _DTYPE_NAMES[dtype]
