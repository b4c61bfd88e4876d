"""LoRAs merged into a transformer's weights.

    W += scale · factor · up @ down,    factor = alpha / rank, or 1 without an alpha

and full differences (`.diff`, `.diff_b`, `.diff_m`) added as they are. Source: Hu et al. 2021.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from sora_cli.errors import UsageError, WeightsError
from sora_cli.weights.lora_arguments import Lora
from sora_cli.weights.lora_dialects import Delta, LoraDeltas, read_lora, some_of

# Width of the transformer → the published models that have it.
MODELS_BY_WIDTH: Mapping[int, str] = MappingProxyType(
    {1536: "the 1.3B models of Wan 2.1", 3072: "wan2.2-ti2v-5b", 5120: "the 14B models of Wan"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraReport:
    """What merging did: parameters changed, how many there are, and what the user should know."""

    matched: int
    parameters: int
    notes: tuple[str, ...]


def merge(state: dict[str, Tensor], loras: Sequence[Lora]) -> LoraReport:
    """Merge LoRAs into a state dict with original names, in place.

    Args:
        state: floating tensors of any dtype but 8 bits, on any device; arithmetic is in float32.
        loras: in the order given; their differences add up.

    Raises:
        UsageError, WeightsError: as `Merger`; then `state` may be partly merged.
    """
    with Merger({name: tuple(tensor.shape) for name, tensor in state.items()}, loras) as merger:
        for name in merger.names:
            state[name] = merger.apply(name, state[name])
        return merger.report()


class Merger:
    """LoRAs on one transformer, merged parameter by parameter, as they are read.

    Everything is checked against the transformer's shapes before anything is merged. Used in a
    `with`, which holds the files open.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], loras: Sequence[Lora]) -> None:
        """Open `loras` for a transformer of `shapes`, by original name.

        Raises:
            UsageError: a file that is not there or no LoRA.
            WeightsError: a damaged file, or keys that match no parameter or do not fit theirs.
        """
        self._shapes = shapes
        self._files: list[LoraDeltas] = []
        self._effective: set[int] = set()  # the files of which something was not zero
        try:
            for lora in loras:
                self._files.append(read_lora(lora))
                _check_fit(self._files[-1], shapes)
        except (UsageError, WeightsError):
            self.close()
            raise
        self.names: tuple[str, ...] = tuple(
            name for name in shapes if any(name in file.deltas for file in self._files)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            file.source.close()

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """`weight` with its changes, computed in float32, in its own dtype, on its device.

        Raises:
            WeightsError: a LoRA holds numbers that are not finite.
        """
        assert weight.dtype.itemsize > 1, f"{name} is in 8 bits: dequantise first"
        changed = None
        for number, file in enumerate(self._files):
            for delta in file.deltas.get(name, ()):
                if changed is None:
                    changed = weight.to(
                        torch.float32, copy=True, memory_format=torch.contiguous_format
                    )
                self._effective |= {number} if _add(changed, file, delta) else set()
        return weight if changed is None else changed.to(weight.dtype)

    def report(self) -> LoraReport:
        """What was merged so far; meant for after the last `apply`."""
        notes = tuple(
            f"{file.lora.path.name} changes nothing: "
            + ("its scale is 0" if file.lora.scale == 0 else "its matrices are all zero")
            for number, file in enumerate(self._files)
            if number not in self._effective or file.lora.scale == 0
        )
        return LoraReport(matched=len(self.names), parameters=len(self._shapes), notes=notes)


def _add(changed: Tensor, file: LoraDeltas, delta: Delta) -> bool:
    """Add one change to a contiguous float32 tensor, and say whether it was not zero."""
    matrices = [
        file.source.read(key, device=changed.device, dtype=torch.float32) for key in delta.keys
    ]
    for key, matrix in zip(delta.keys, matrices, strict=True):
        if not torch.isfinite(matrix).all():
            raise WeightsError(
                f"{file.lora.path} is damaged: {key} holds numbers that are not finite",
                hint="download the LoRA again",
            )
    factor = file.lora.scale * delta.factor
    if len(matrices) == 1:
        changed.add_(matrices[0], alpha=factor)
    else:
        up, down = (matrix.flatten(1) for matrix in matrices)
        changed.flatten(1).addmm_(up, down, alpha=factor)
    return all(bool(matrix.any()) for matrix in matrices)


def _check_fit(file: LoraDeltas, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise WeightsError with some of the keys that match nothing or do not fit."""
    strays = list(file.unknown)
    unfit = []
    for name, deltas in file.deltas.items():
        for delta in deltas:
            if name not in shapes:
                strays.append(delta.keys[0])
            elif not delta.fits(shapes[name]):
                found = " and ".join("×".join(map(str, shape)) for shape in delta.shapes)
                unfit.append(f"{delta.keys[0]} ({found} for {'×'.join(map(str, shapes[name]))})")
    if not strays and not unfit:
        return
    total = len(file.source.tensors)
    said = [f"{len(strays)} of its {total} keys match nothing: {some_of(strays)}"] if strays else []
    said += [f"{len(unfit)} do not fit: {some_of(unfit)}"] if unfit else []
    raise WeightsError(
        f"the LoRA {file.lora.path.name} is not for this model; " + "; ".join(said),
        hint=_for_which(file, strays, shapes),
    )


def _for_which(file: LoraDeltas, strays: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> str:
    """What model the LoRA seems to be for."""
    wanted = next((s[0] for n, s in shapes.items() if n.endswith("self_attn.q.weight")), None)
    found = file.hidden_size
    if found is not None and wanted is not None and found != wanted:
        sizes = [
            f"{size} ({MODELS_BY_WIDTH[size]})" if size in MODELS_BY_WIDTH else str(size)
            for size in (found, wanted)
        ]
        return f"it was made for width {sizes[0]} and this model has {sizes[1]}; choose with -m"
    if any("vace" in key for key in strays):
        return "it was made for a VACE model; choose one with -m"
    if any(re.search(r"k_img|v_img|img_emb|add_k_proj|image_embedder", key) for key in strays):
        return "it was made for a model that sees images (wan2.1-i2v-14b-480p); choose with -m"
    return "choose the model it was made for with -m, or another LoRA"
