"""Blocks that pass through the device: their weights stay in host memory and come when needed.

A transformer whose blocks do not all fit keeps the first ones on the device. The others lie in
pinned host memory, one flat buffer each, and are copied into one of two slots on the device: while
a block computes out of one slot, a side stream fills the other with the block that came after it
the last time. Nothing of the network is changed but where its tensors point to, so what it
computes is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_ALIGNMENT = 256  # bytes; what CUDA's own allocator gives, and more than any kernel asks for


@contextmanager
def streamed(network: nn.Module, device: torch.device | str) -> Iterator[BlockStream | None]:
    """Compute on `device` with a network some of whose blocks are in host memory.

    Streams every block of `network.blocks` and `network.vace_blocks` that has a tensor elsewhere
    than on the device. None, and nothing done, where there is none: on a CPU always. At the end
    the blocks' tensors are in host memory again.
    """
    target = torch.device(device)
    lists = (getattr(network, name, ()) for name in ("vace_blocks", "blocks"))
    blocks = [block for each in lists for block in each if not _is_on(block, target)]
    if not blocks:
        yield None
        return
    stream = BlockStream(blocks, target)
    try:
        yield stream
    finally:
        stream.close()


@dataclass(slots=True)
class _Layout:
    """A block's flat buffer in host memory, and each of its tensors with its offset in it."""

    host: Tensor
    pinned: bool = False
    tensors: list[tuple[Tensor, int]] = field(default_factory=list)

    @torch.inference_mode(False)  # a view made in inference mode could not stand for a parameter
    def point_into(self, buffer: Tensor) -> None:
        """Let the block's tensors be views of a buffer that has its bytes."""
        for tensor, offset in self.tensors:
            size = tensor.numel() * tensor.element_size()
            flat = buffer[offset : offset + size].view(tensor.dtype)
            tensor.data = flat.view(tensor.shape)

    def release(self) -> None:
        """Point the tensors back, and let the system page the buffer again."""
        self.point_into(self.host)
        if self.pinned:
            torch.cuda.cudart().cudaHostUnregister(self.host.data_ptr())
            self.pinned = False


class Lane(Protocol):
    """How copies run beside the computation. Marks are moments of one or the other."""

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Any:
        """Ask for a copy, once the mark `after` (of the computation, or None) is passed; its end.

        Copies end in the order in which they were asked for.
        """

    def wait(self, copied: Any) -> None:
        """What is computed from here on comes after the end of a copy."""

    def mark(self) -> Any:
        """What has been asked of the computation so far."""

    def finish(self) -> None:
        """Return when all is done."""


class _Here:
    """Copies that are done when they are asked for: where the computation is, too."""

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Any:
        target.copy_(source)

    def wait(self, copied: Any) -> None:
        """Nothing is ever under way."""

    def mark(self) -> Any:
        """Nothing is ever under way."""

    def finish(self) -> None:
        """Nothing is ever under way."""


class _SideStream:
    """Copies on a CUDA stream of their own, from pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        # The slots may be memory that work asked for before still reads.
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Any:
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            # No `record_stream`: the slots live until `finish` has returned.
            target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def wait(self, copied: Any) -> None:
        torch.cuda.current_stream(self._device).wait_event(copied)

    def mark(self) -> Any:
        return torch.cuda.current_stream(self._device).record_event()

    def finish(self) -> None:
        torch.cuda.synchronize(self._device)


class BlockStream:
    """Two slots on the device that a list of blocks take turns in.

    `loads` counts the copies, of `block_bytes` at most, `waits` those that the computation had to
    ask for itself.
    """

    @torch.inference_mode(False)
    def __init__(
        self, blocks: Sequence[nn.Module], device: torch.device, lane: Lane | None = None
    ) -> None:
        """Pack the blocks' tensors in host memory and watch for their use.

        lane: how copies run; None: as the device can.
        """
        self.loads, self.waits = 0, 0
        self._layouts = [_pack(block, device) for block in blocks]
        largest = max(len(layout.host) for layout in self._layouts)
        count = min(2, len(blocks))
        self.block_bytes = largest
        self._slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(count)]
        self._in_slot: list[int | None] = [None] * count
        self._current: int | None = None
        self._after = {i: (i + 1) % len(blocks) for i in range(len(blocks))}
        self._lane = lane or (_SideStream(device) if device.type == "cuda" else _Here())
        # When a slot was last read by the computation, and when its copy was finished.
        self._read: list[Any] = [None] * count
        self._filled: list[Any] = [None] * count
        self._hooks = [
            module.register_forward_pre_hook(self._hook(i))
            for i, block in enumerate(blocks)
            # The parts too: a context's keys and values are computed without their block.
            for module in block.modules()
            if module is block or any(True for _ in _own(module))
        ]

    def close(self) -> None:
        """Put every block back into host memory and stop watching."""
        for hook in self._hooks:
            hook.remove()
        self._lane.finish()
        for layout in self._layouts:
            layout.release()
        self._slots.clear()

    def _hook(self, index: int) -> Callable[[nn.Module, object], None]:
        def bring(module: nn.Module, inputs: object) -> None:
            if self._current != index:
                self._bring(index)

        return bring

    def _bring(self, index: int) -> None:
        """Make a block ready for the computation, and fetch the one that follows it."""
        leaving = self._current
        if leaving is not None:
            self._after[leaving] = index
            # What has been asked of its slot so far must be over before that is filled anew.
            self._read[self._in_slot.index(leaving)] = self._lane.mark()
        if index not in self._in_slot:
            self.waits += 1
            self._fetch(index, keep=None)
        slot = self._in_slot.index(index)
        self._lane.wait(self._filled[slot])
        self._current = index
        following = self._after[index]
        if following not in self._in_slot:
            self._fetch(following, keep=slot)

    def _fetch(self, index: int, *, keep: int | None) -> None:
        """Copy a block into a slot that is not `keep`, and point its tensors there."""
        free = [slot for slot in range(len(self._slots)) if slot != keep]
        if not free:
            return
        # The block that was computed last is likelier to be needed again than the one before.
        slot = next((s for s in free if self._in_slot[s] != self._current), free[0])
        leaving = self._in_slot[slot]
        if leaving is not None:
            self._layouts[leaving].point_into(self._layouts[leaving].host)
        layout, target = self._layouts[index], self._slots[slot]
        source = layout.host
        self._filled[slot] = self._lane.copy(target[: len(source)], source, self._read[slot])
        self.loads += 1
        layout.point_into(target)
        self._in_slot[slot] = index


def _pack(block: nn.Module, device: torch.device) -> _Layout:
    """Move a block's parameters and buffers into one flat host buffer, pinned for a CUDA device."""
    tensors = [*block.parameters(), *block.buffers()]
    offsets, size = [], 0
    for tensor in tensors:
        offsets.append(size)
        taken = tensor.numel() * tensor.element_size()
        size += -(-taken // _ALIGNMENT) * _ALIGNMENT
    host = torch.empty(size, dtype=torch.uint8)
    pinned = device.type == "cuda" and _pin(host, device)
    layout = _Layout(host=host, pinned=pinned, tensors=list(zip(tensors, offsets, strict=True)))
    for tensor, offset in layout.tensors:
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        host[offset : offset + len(flat)].copy_(flat)
    layout.point_into(host)
    return layout


def _pin(host: Tensor, device: torch.device) -> bool:
    """Keep a buffer's pages where the device can read them; False where the system refuses.

    Registered in place: `pin_memory` would round every buffer up to a power of two. Copies from
    plain memory are slower, and right all the same.
    """
    with torch.cuda.device(device):  # else a context, and its memory, on the first device as well
        refused = int(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), len(host), 0))
        if refused:
            # The refusal stays CUDA's "last error", for which the next kernel would be blamed.
            with suppress(RuntimeError):
                torch.ones(1, device=device)
    return not refused


def _own(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _is_on(block: nn.Module, device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    return all(tensor.device.type == device.type for tensor in block.parameters())
