"""`torch.compile` of a transformer's blocks, one by one, its artefacts kept on disk.

All blocks run the same code, so that one of them is compiled and the others find it done; the whole
network at once would take many times as long and be no faster. Kernels of ours give way inside
(`fused`), attention stays one opaque call. Off unless it is asked for: it takes about a minute for
each new shape before the first step, and other last digits than without.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from sora_cli.errors import DeviceError
from sora_cli.models import attention

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own variable; where it is set, it stays


def compile_blocks(network: nn.Module, cache: Path | None = None) -> None:
    """Compile the blocks of a network in place, at their first call.

    Args:
        network: with a list `blocks`, and perhaps `vace_blocks`.
        cache: folder in which compiled code is kept for other processes.

    Raises:
        DeviceError: torch cannot compile on this platform.
    """
    if cache is not None:
        os.environ.setdefault(CACHE, str(cache))
    if not compiles():
        raise DeviceError("torch cannot compile here", hint="leave --compile out")
    attention.register()
    for name in ("blocks", "vace_blocks"):
        for block in getattr(network, name, ()):
            # Of the method and not of the module, whose hooks bring weights from host memory.
            block.forward = torch.compile(block.forward)


def compiles() -> bool:
    """Whether torch says that it can compile in this Python on this system."""
    try:
        torch._dynamo.eval_frame.check_if_dynamo_supported()
    except RuntimeError:
        return False
    return True
