"""Other ways of making the same step, timed beside the one that a job takes."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch import Tensor, nn

from sora_cli.models import fp8, fused
from sora_cli.models.dit import DiT


def without_kernels(call: Callable[[], Tensor]) -> Tensor:
    """A call with plain torch between the matrix products."""
    before = os.environ.get(fused.VARIABLE)
    os.environ[fused.VARIABLE] = "0"
    try:
        return call()
    finally:
        del os.environ[fused.VARIABLE]
        if before is not None:
            os.environ[fused.VARIABLE] = before


def in_fp8(dit: DiT, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A call with feed-forward layers that multiply in 8 bits, beside the others in memory."""
    rounded: dict[str, nn.Module] = {}

    def layers() -> dict[str, nn.Module]:
        return {name: module for name, module in dit.named_modules() if name.endswith(".ffn")}

    def called() -> Tensor:
        plain = layers()
        if rounded:
            for name, module in rounded.items():
                dit.set_submodule(name, module)
        else:
            fp8.multiply_in_fp8(dit)
            rounded.update(layers())
        try:
            return call()
        finally:
            for name, module in plain.items():
                dit.set_submodule(name, module)

    return called
