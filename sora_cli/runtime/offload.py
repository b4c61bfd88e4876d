"""Blocks that pass through the device: their weights stay in host memory and come when needed.

A transformer whose blocks do not all fit keeps the first ones on the device. The others lie in
pinned host memory, one flat buffer each, and are copied into one of two slots on the device: while
a block computes out of one slot, a side stream fills the other with the block that came after it
the last time. Nothing of the network is changed but where its tensors point to, so what it
computes is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

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
        if self.host.is_pinned():
            torch.cuda.cudart().cudaHostUnregister(self.host.data_ptr())


class BlockStream:
    """Two slots on the device that a list of blocks take turns in.

    `loads` counts the copies, `waits` those that the computation had to ask for itself.
    """

    @torch.inference_mode(False)
    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """Pack the blocks' tensors in host memory and watch for their use."""
        self.loads, self.waits = 0, 0
        self._device = device
        self._pinned = device.type == "cuda"
        self._layouts = [_pack(block, pin=self._pinned) for block in blocks]
        largest = max(len(layout.host) for layout in self._layouts)
        count = min(2, len(blocks))
        self._slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(count)]
        self._in_slot: list[int | None] = [None] * count
        self._current: int | None = None
        self._after = {i: (i + 1) % len(blocks) for i in range(len(blocks))}
        self._copies = torch.cuda.Stream(device) if self._pinned else None
        if self._copies is not None:
            # The slots may be memory that work asked for before still reads.
            self._copies.wait_stream(torch.cuda.current_stream(device))
        # When a slot was last read by the computation, and when its copy was finished.
        self._read: list[torch.cuda.Event | None] = [None] * count
        self._filled: list[torch.cuda.Event | None] = [None] * count
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
        if self._pinned:
            torch.cuda.synchronize(self._device)
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
            self._mark_read(self._in_slot.index(leaving))
        if index not in self._in_slot:
            self.waits += 1
            self._fetch(index, keep=None)
        slot = self._in_slot.index(index)
        filled = self._filled[slot]
        if filled is not None:
            torch.cuda.current_stream(self._device).wait_event(filled)
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
        if self._copies is None:
            target[: len(layout.host)].copy_(layout.host)
        else:
            read = self._read[slot]
            with torch.cuda.stream(self._copies):
                if read is not None:
                    self._copies.wait_event(read)
                target[: len(layout.host)].copy_(layout.host, non_blocking=True)
                self._filled[slot] = self._copies.record_event()
        self.loads += 1
        layout.point_into(target)
        self._in_slot[slot] = index

    def _mark_read(self, slot: int) -> None:
        """What has been asked of the slot so far is what must be over before it is filled anew."""
        if self._copies is not None:
            self._read[slot] = torch.cuda.current_stream(self._device).record_event()


def _pack(block: nn.Module, *, pin: bool) -> _Layout:
    """Move a block's parameters and buffers into one flat host buffer."""
    tensors = [*block.parameters(), *block.buffers()]
    offsets, size = [], 0
    for tensor in tensors:
        offsets.append(size)
        taken = tensor.numel() * tensor.element_size()
        size += -(-taken // _ALIGNMENT) * _ALIGNMENT
    host = torch.empty(size, dtype=torch.uint8)
    if pin:
        # Registered in place: `pin_memory` would round every buffer up to a power of two. Where
        # the system refuses, copies from plain memory are slower and right all the same.
        torch.cuda.cudart().cudaHostRegister(host.data_ptr(), size, 0)
    layout = _Layout(host=host, tensors=list(zip(tensors, offsets, strict=True)))
    for tensor, offset in layout.tensors:
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        host[offset : offset + len(flat)].copy_(flat)
    layout.point_into(host)
    return layout


def _own(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _is_on(block: nn.Module, device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    return all(tensor.device.type == device.type for tensor in block.parameters())
