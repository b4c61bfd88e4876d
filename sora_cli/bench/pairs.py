"""Two sides of a workload, ready to be called, and what each kind of workload is made of.

Ours are opened through `pipeline.networks`, so that whatever a job does to its networks is done
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sora_cli.bench.cases import Case
from sora_cli.models.specs import FAMILIES, ModelSpec
from sora_cli.pipeline.networks import Model, Networks
from sora_cli.runtime.plan import MemoryPlan
from sora_cli.weights import store

SEED = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Both sides of a workload, ready to be called; each call gives the same result.

    theirs: None without diffusers, and `missing` says why.
    ours_weights, theirs_weights: bytes that the networks hold.
    compiled: compiles theirs in place, where that can be; ours_compiled: ours.
    variants: other ways of doing the same, by name, for reports. size: bytes that a load moves.
    batch: rows of a step that go in one call. notes: what else a reader should know, when it was
        measured.
    """

    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor] | None
    missing: str | None = None
    ours_weights: int = 0
    theirs_weights: int = 0
    compiled: Callable[[], None] | None = None
    ours_compiled: Callable[[], None] | None = None
    variants: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    size: int | None = None
    batch: int = 1
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where and how precisely, and a folder for what is written."""

    device: torch.device
    dtype: torch.dtype
    folder: Path


def weight_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters."""
    return sum(p.numel() * p.element_size() for p in network.parameters())


def difference(ours: Tensor, other: Tensor) -> float:
    """RMS of the difference over the RMS of the other side's."""
    assert ours.shape == other.shape, (ours.shape, other.shape)
    # In double on the host's side of large results there would be no room.
    gap, size = (ours.float() - other.float()).square().mean(), other.float().square().mean()
    return math.sqrt(float(gap) / max(float(size), 1e-30))


def networks_of(
    case: Case, place: Place, parts: Mapping[str, Path], spec: ModelSpec | None = None
) -> Networks:
    """The networks as a job has them: all kept, no context remembered."""
    if spec is None:
        spec = store.locate("tiny").spec if case.embedded else FAMILIES["wan2.1-t2v"]
    model = Model(spec=spec, parts=parts, device=place.device, dtype=place.dtype, plan=MemoryPlan())
    return Networks(model)


def part_of(case: Case, place: Place, name: str, write: Callable[[Path], Path]) -> Path:
    """The embedded model's part, or one of random weights that is written now."""
    if case.embedded:
        return store.locate("tiny").parts[name]
    return write(place.folder / name)


def draw(place: Place, *shape: int) -> Tensor:
    """Normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(shape, generator=generator).to(place.device)
