"""States of the sampler on disk: whole or not there, and known to be sound when they are read.

A state is one safetensors file. Its header holds the SHA-256 of the file (with zeros in the place
of that hash), so that a file cut short or with one bit changed counts as none.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.runtime.disk import write_whole

if TYPE_CHECKING:
    from sora_cli.pipeline.sampler import SamplerState

SUFFIX = ".safetensors"
_BLANK = b"0" * 64
_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_MAX_HEADER = 1 << 20  # a state has five tensors; a header of megabytes is damage


def save(path: Path, state: SamplerState) -> None:
    """Write a state.

    Raises:
        OSError: it could not be written.
    """
    from safetensors.torch import save as to_bytes

    named = {"latents": state.latents, "corrected": state.corrected}
    named |= {f"denoised.{i}": tensor for i, tensor in enumerate(state.denoised)}
    tensors = {
        # A copy, because the format wants no two names for one piece of memory.
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in named.items()
        if tensor is not None
    }
    facts = {"step": str(state.step), "seed": str(state.seed), "sha256": _BLANK.decode()}
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
            )
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


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
