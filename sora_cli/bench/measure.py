"""One workload measured: the two sides agree, then they are timed in turn."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sora_cli.bench.breakdown import RUNS, of_sides
from sora_cli.bench.cases import WHOLE, Case, DtypeName
from sora_cli.bench.ceilings import SIZES, matmul
from sora_cli.bench.pairs import Pair, Place, difference
from sora_cli.bench.timing import Lap, Spread, growth, interleave, spread
from sora_cli.bench.workloads import prepared
from sora_cli.errors import SoraError
from sora_cli.models import attention, fused
from sora_cli.runtime.memory import total_memory
from sora_cli.runtime.shapes import DeviceKind
from sora_cli.train.loop import commit
from sora_cli.weights.tensors import first_line

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "sora-cli")
DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ParityError(SoraError):
    """The two sides give different results, so that their times say nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """How everything is measured.

    table: "cpu" or "cuda", whose sizes the ceilings have. scale: of sizes, 1 for the table's own.
    rounds: of each workload; seconds: no round of it begins after these.
    compiled: theirs is timed with its blocks compiled, too.
    """

    table: str
    device: torch.device
    scale: float
    rounds: int
    seconds: float
    compiled: bool

    @property
    def kind(self) -> DeviceKind:
        """What sort of device, as the planner has it."""
        return "cuda" if self.device.type == "cuda" else "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A workload in the report, in seconds and bytes; ratio is theirs over ours."""

    name: str
    dtype: str
    ours_s: float
    theirs_s: float | None
    ratio: float | None
    flops: int | None
    share_of_matmul_rate: float | None
    peak_memory: int | None


@torch.no_grad()
def measure(case: Case, dtype: DtypeName, on: Conditions) -> tuple[Row, dict[str, Any]]:
    """Both sides of a workload; the row and what stands beside it.

    Raises:
        ParityError: they do not agree.
    """
    matrix = SIZES[on.table].scaled(on.scale).matrix
    product = matmul(matrix, on.device, DTYPES[dtype])
    with tempfile.TemporaryDirectory(prefix="sora-bench-") as folder:
        place = Place(device=on.device, dtype=DTYPES[dtype], folder=Path(folder))
        with prepared(case, place) as pair:
            error = _agree(case, dtype, pair)
            sides = {"ours": pair.ours, "product": product}
            if pair.theirs is not None:
                sides["theirs"] = pair.theirs
            laps = interleave(sides, rounds=on.rounds, seconds=on.seconds, device=on.device)
            peak, their_peak = _peaks(pair, on.device)
            shown = {"ours": pair.ours, "theirs": pair.theirs}
            runs = 1 if case.kind in WHOLE else min(RUNS, on.rounds)
            where = of_sides(shown, on.device, runs)
            planned = case.predicted_memory(dtype, on.kind, pair.batch)
            failed: list[str] = []
            variants = _variants(pair, on, failed)
            compiled = _tried("diffusers compiled", failed, lambda: _compiled(pair, on))
            variants |= _tried("ours compiled", failed, lambda: _ours_compiled(case, pair, on))
    walls = {name: spread([lap.wall for lap in some]) for name, some in laps.items()}
    ours, product_s = walls["ours"].median, walls["product"].median
    theirs_s = walls["theirs"].median if "theirs" in walls else None
    share = None
    if case.flops is not None:
        share = case.flops / ours / (2 * matrix**3 / product_s)
    row = Row(
        name=case.name, dtype=dtype, ours_s=ours, theirs_s=theirs_s,
        ratio=None if theirs_s is None else theirs_s / ours, flops=case.flops,
        share_of_matmul_rate=share, peak_memory=peak,
    )  # fmt: skip
    beside = {
        "name": case.name, "dtype": dtype, "what": case.what, "target": case.target,
        "rounds": len(laps["ours"]), "ours_quartiles_s": _quartiles(walls["ours"]),
        "theirs_quartiles_s": _quartiles(walls.get("theirs")),
        "cpu_ratio": _cpu_ratio(laps) if on.device.type == "cpu" else None,
        "theirs_peak_memory": their_peak, "matmul_gflops": 2 * matrix**3 / product_s / 1e9,
        "stretch": _stretch(laps["ours"]), "date": _now(), "commit": _commit(),
        "difference": error, "tolerance": case.tolerance(dtype), "missing": pair.missing,
        "attention_flops": case.attention_flops, "predicted_memory": planned, "size": pair.size,
        "breakdown": where, "variants": variants, "goals": [asdict(goal) for goal in case.goals],
        "notes": [*_notes(on), *pair.notes, *failed], **compiled,
    }  # fmt: skip
    return row, beside


def _agree(case: Case, dtype: DtypeName, pair: Pair) -> float | None:
    """The difference between the results, both sides warmed by it."""
    ours = pair.ours()
    if pair.theirs is None:
        return None
    error, allowed = difference(ours, pair.theirs()), case.tolerance(dtype)
    if not error <= allowed:  # not a number is no agreement either
        raise ParityError(
            f"{case.name} in {dtype}: ours differs from diffusers by {error:.1e} of its size, "
            f"{allowed:.0e} is allowed, so nothing was timed",
            hint="python -m pytest tests/test_dit.py tests/test_vae.py finds what differs",
        )
    return error


def _peaks(pair: Pair, device: torch.device) -> tuple[int | None, int | None]:
    """A side's weights and what grows beside them while it runs."""
    ours = growth(pair.ours, device)
    theirs = growth(pair.theirs, device) if pair.theirs is not None else None
    return (
        None if ours is None else ours + pair.ours_weights,
        None if theirs is None else theirs + pair.theirs_weights,
    )


def _compiled(pair: Pair, on: Conditions) -> dict[str, Any]:
    """Ours against theirs with its blocks compiled; the last thing, as it changes theirs."""
    if not on.compiled or pair.compiled is None or pair.theirs is None:
        return {}
    pair.compiled()
    pair.theirs()  # compiles
    sides = {"ours": pair.ours, "theirs": pair.theirs}
    laps = interleave(sides, rounds=on.rounds, seconds=on.seconds, device=on.device)
    ours, theirs = (spread([lap.wall for lap in laps[name]]).median for name in sides)
    return {"theirs_compiled_s": theirs, "compiled_ratio": theirs / ours}


def _ours_compiled(case: Case, pair: Pair, on: Conditions) -> dict[str, float]:
    """Ours with its blocks compiled; after all else, as it changes ours."""
    if not (on.compiled and case.compiles) or pair.ours_compiled is None:
        return {}
    pair.ours_compiled()
    began = time.perf_counter()
    pair.ours()  # compiles
    took = time.perf_counter() - began
    return {"ours compiled": _median(pair.ours, on), "its first call, which compiles": took}


def _variants(pair: Pair, on: Conditions, failed: list[str]) -> dict[str, float]:
    """Median seconds of each of the other ways, warmed by one call."""
    found: dict[str, float] = {}
    for name, call in pair.variants.items():
        found |= _tried(name, failed, lambda name=name, call=call: {name: _median(call, on)})  # type: ignore[misc]
    return found


def _median(call: Callable[[], object], on: Conditions) -> float:
    call()
    sides = {"it": call}
    rounds = min(3, on.rounds)
    laps = interleave(sides, rounds=rounds, seconds=on.seconds / 2, device=on.device)["it"]
    return spread([lap.wall for lap in laps]).median


def _tried(name: str, failed: list[str], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the work finds, or nothing and a note: it must not cost what was measured before it."""
    try:
        return work()
    except Exception as error:  # compilers, other libraries: of any kind
        failed.append(f"{name}: {type(error).__name__}: {first_line(error)}")
        return {}


def _notes(on: Conditions) -> list[str]:
    """What the networks chose for this device, and what of theirs was switched off."""
    if on.device.type != "cuda":
        return []
    chosen = [f"attention of {shape}: {name}" for shape, name in attention.chosen().items()]
    return [*fused.take_notes(), *chosen]


def _quartiles(found: Spread | None) -> list[float] | None:
    return None if found is None else [found.lower, found.upper]


def _cpu_ratio(laps: dict[str, list[Lap]]) -> float | None:
    """The ratio of the process's own seconds, which other work on the machine stretches less."""
    if "theirs" not in laps:
        return None
    ours, theirs = (spread([lap.cpu for lap in laps[name]]).median for name in ("ours", "theirs"))
    return theirs / ours if ours else None


def _stretch(laps: list[Lap]) -> float | None:
    """How many times longer a lap took than this process's threads worked: 1 on a quiet machine."""
    wall, cpu = (spread([getattr(lap, clock) for lap in laps]).median for clock in ("wall", "cpu"))
    return wall * torch.get_num_threads() / cpu if cpu else None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def circumstances(device: torch.device, command: str) -> dict[str, Any]:
    """What the figures depend on: machine, versions, date and command."""
    return {
        "machine": _machine(device), "versions": _versions(),
        "date": _now(), "command": command,
    }  # fmt: skip


def _machine(device: torch.device) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        name = next((s.partition(": ")[2] for s in lines if s.startswith("model name")), name)
    machine: dict[str, Any] = {
        "processor": name, "cores": cores, "threads": torch.get_num_threads(),
        "memory": total_memory(), "system": f"{platform.system()} {platform.machine()}",
        "device": str(device),
    }  # fmt: skip
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
        machine["gpu_memory"] = torch.cuda.get_device_properties(device).total_memory
    return machine


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    versions["torch"] = torch.__version__
    versions["cuda"] = torch.version.cuda
    return versions | {"commit": _commit()}


def _commit() -> str:
    """The commit that is measured; a machine with a GPU may have no git."""
    try:
        return commit()
    except OSError:
        return "unknown"


def as_json(row: Row) -> dict[str, Any]:
    """The row's fields in their order."""
    return asdict(row)
