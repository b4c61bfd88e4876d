"""Decoded frames on their way to host memory, while the device already decodes the next ones.

Shapes: t frames of a chunk, H, W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

C = TypeVar("C")
R = TypeVar("R")


def to_host(chunks: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Chunks uint8 `[t, H, W, 3]` of any device as arrays, in their order.

    From a GPU they come one chunk late: whoever writes a chunk to a file does so while the next is
    being decoded.
    """
    return one_behind(chunks, _begin)


def one_behind(
    chunks: Iterable[C], begin: Callable[[C], tuple[Callable[[], R], bool]]
) -> Iterator[R]:
    """Begin each, and finish it only when the next has begun, or there is none.

    begin: starts the work and says how to wait for its result, and whether waiting is of use.
    """
    finish: Callable[[], R] | None = None
    for chunk in chunks:
        following, runs_on = begin(chunk)
        if finish is not None:
            yield finish()
        finish = following
        if not runs_on:
            yield finish()
            finish = None
    if finish is not None:
        yield finish()


def _begin(chunk: Tensor) -> tuple[Callable[[], np.ndarray], bool]:
    if chunk.device.type != "cuda":
        return lambda: chunk.cpu().numpy(), False
    host = torch.empty(chunk.shape, dtype=chunk.dtype, pin_memory=True)
    host.copy_(chunk, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def finish() -> np.ndarray:
        done.synchronize()
        return host.numpy()

    return finish, True
