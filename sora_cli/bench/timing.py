"""Laps of two sides in turn, their quartiles, and the most memory that a call takes."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sora_cli.errors import SoraError
from sora_cli.runtime.device import choose_device
from sora_cli.runtime.memory import current_memory, peak_memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Lap:
    """One call: seconds on the wall's clock, and of this process on all cores."""

    wall: float
    cpu: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Median and quartiles of some laps, in seconds."""

    median: float
    lower: float
    upper: float


def refusal(device: str) -> int:
    """0 where the device is there; else an exit code, and a line on stderr says why."""
    try:
        choose_device(device)
    except SoraError as error:
        sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
        return int(error.exit_code)
    return 0


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lap(call: Callable[[], object], device: torch.device) -> Lap:
    """Time one call, the device's work included."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronize(device)
    return Lap(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)


def interleave(
    sides: Mapping[str, Callable[[], object]], *, rounds: int, seconds: float, device: torch.device
) -> dict[str, list[Lap]]:
    """Call every side once a round, in turning order: what slows the machine down slows all.

    seconds: no round begins after these; one is always run.
    """
    laps: dict[str, list[Lap]] = {name: [] for name in sides}
    order, began = list(sides), time.monotonic()
    for _ in range(rounds):
        for name in order:
            laps[name].append(lap(sides[name], device))
        order = order[::-1]
        if time.monotonic() - began > seconds:
            break
    return laps


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of one value, itself three times."""
    if len(values) == 1:
        return Spread(median=values[0], lower=values[0], upper=values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, lower=lower, upper=upper)


def growth(call: Callable[[], object], device: torch.device) -> int | None:
    """By how many bytes memory grows at most during a call; None where nobody says.

    On CUDA what torch has allocated. On Linux the process's resident size, whose maximum is set
    back first, after everything that was freed has been given back to the system.
    """
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not (_give_back() and _forget_peak()):
        return None
    start = current_memory()
    call()
    peak = peak_memory()
    return None if start is None or peak is None else max(0, peak - start)


def _give_back() -> bool:
    """Give freed memory back (malloc_trim(3), of the GNU C library)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return False
    return True


def _forget_peak() -> bool:
    """Set the largest resident size back to the present one (proc_pid_clear_refs(5))."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
