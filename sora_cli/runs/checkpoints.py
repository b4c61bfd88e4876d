"""States of the sampler on disk: whole or not there, and known to be sound when they are read.

A state is one safetensors file. Its header holds the SHA-256 of the file (with zeros in the place
of that hash), so that a file cut short or with one bit changed counts as none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.runtime.disk import write_whole

if TYPE_CHECKING:
    from sora_cli.pipeline.sampler import SamplerState
    from sora_cli.pipeline.shortcuts import Computed

SUFFIX = ".safetensors"
CHUNKS = "chunks"  # the folder of finished canvases
NEWEST = 2  # states of the canvas in work
_BLANK = b"0" * 64
_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_CANVAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STATE = re.compile(r"latents-(.+)-(\d+)\.safetensors")
_MAX_HEADER = 1 << 20  # a state has seven tensors; a header of megabytes is damage


def save(path: Path, state: SamplerState) -> None:
    """Write a state.

    Raises:
        OSError: it could not be written.
    """
    from safetensors.torch import save as to_bytes

    named = {"latents": state.latents, "corrected": state.corrected}
    named |= {f"denoised.{i}": tensor for i, tensor in enumerate(state.denoised)}
    computed = state.computed
    if computed is not None:
        named |= {"velocity": computed.velocity, "slope": computed.slope}
    tensors = {
        # A copy, because the format wants no two names for one piece of memory.
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in named.items()
        if tensor is not None
    }
    facts = {"step": str(state.step), "seed": str(state.seed), "sha256": _BLANK.decode()}
    if computed is not None:
        facts |= {"sigma": repr(computed.sigma), "skipped": str(computed.skipped)}
    content = to_bytes(tensors, metadata=facts)
    sealed = content.replace(_BLANK, hashlib.sha256(content).hexdigest().encode(), 1)
    write_whole(path, sealed)


def load(path: Path) -> SamplerState | None:
    """A state on the CPU; None where there is none, or none that is sound."""
    from safetensors import SafetensorError, safe_open

    from sora_cli.pipeline.sampler import SamplerState

    try:
        if not is_sound(path.read_bytes()):
            return None
        with safe_open(path, framework="pt") as file:
            names, facts = sorted(file.keys()), file.metadata()
            denoised = [name for name in names if name.startswith("denoised.")]
            return SamplerState(
                latents=file.get_tensor("latents"),
                step=int(facts["step"]),
                corrected=file.get_tensor("corrected") if "corrected" in names else None,
                denoised=tuple(file.get_tensor(name) for name in denoised),
                seed=int(facts["seed"]),
                computed=_computed(file, names, facts) if "velocity" in names else None,
            )
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _computed(file: Any, names: list[str], facts: Mapping[str, str]) -> Computed:
    """The last computed step of a state that caches steps."""
    from sora_cli.pipeline.shortcuts import Computed

    return Computed(
        velocity=file.get_tensor("velocity"),
        slope=file.get_tensor("slope") if "slope" in names else None,
        sigma=float(facts["sigma"]),
        skipped=int(facts["skipped"]),
    )


def is_sound(content: bytes) -> bool:
    """Whether a state's bytes are those that were written."""
    length = int.from_bytes(content[:8], "little")
    found = _SEAL.search(content, 8, 8 + min(length, _MAX_HEADER))
    if found is None:
        return False
    start, stop = found.span(1)
    digest = hashlib.sha256(content[:start])
    digest.update(_BLANK)
    digest.update(memoryview(content)[stop:])
    return digest.hexdigest().encode() == found[1]


@dataclass(frozen=True, slots=True)
class States:
    """The states in one folder.

    Of the canvas in work the newest ones, `latents-<canvas>-<step>.safetensors`; of finished
    canvases the last one, `chunks/<canvas>.safetensors`.
    """

    folder: Path

    def keep(self, name: str, state: SamplerState, *, final: bool) -> None:
        """Write a state of a canvas; what is older goes when it is on the disk for good.

        One state before it stays, for the case of damage; those of other canvases are done with.

        Raises:
            OSError: it could not be written.
        """
        assert _CANVAS.fullmatch(name), name
        if final:
            chunks = self.folder / CHUNKS
            chunks.mkdir(mode=0o700, exist_ok=True)
            save(chunks / f"{name}{SUFFIX}", state)
        else:
            save(self.folder / f"latents-{name}-{state.step:04d}{SUFFIX}", state)
        stay = set(self._unfinished(name)[: 1 if final else NEWEST])
        for path in self.folder.glob(f"latents-*{SUFFIX}"):
            if path not in stay:
                path.unlink(missing_ok=True)

    def files(self, name: str) -> list[Path]:
        """Files with states of a canvas, the newest first."""
        if not _CANVAS.fullmatch(name):
            return []
        final = self.folder / CHUNKS / f"{name}{SUFFIX}"
        return [path for path in (final, *self._unfinished(name)) if path.exists()]

    def _unfinished(self, name: str) -> list[Path]:
        found = []
        for path in self.folder.glob(f"latents-*{SUFFIX}"):
            match = _STATE.fullmatch(path.name)
            if match and match[1] == name:
                found.append((int(match[2]), path))
        return [path for _, path in sorted(found, reverse=True)]
