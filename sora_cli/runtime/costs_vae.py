"""What the video autoencoder costs: a walk through its layers that counts instead of computing.

The walk follows `sora_cli/models/vae.py` layer by layer for one call of a stream, and keeps the
numbers (elements, not bytes) that are alive at each operation: the operation's own input and
output, what the functions around it still hold, the two frames that every causal convolution
remembers, and the convolution's workspace. It adds up the parameters and the FLOPs on the way.

Workspace of a convolution: one copy of its input. CPU: oneDNN reorders a plain input into its
blocked layout (measured: 1.5 outputs for a 3×3×3 of 4 frames, whose input is 6 frames, at 32 to 512
channels; none where everything is channels-last). Small ones torch computes itself, by unfolding
the input: 27 copies of it (measured too; the rule is `use_mkldnn` in ATen's Convolution.cpp). CUDA:
cuDNN's transform to its own layout, which is taken to be one copy and is not measured.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from sora_cli.runtime.shapes import AutoencoderShape, DeviceKind

# Above so many channels · frames · rows of input torch gives a convolution to oneDNN; on x86 we do.
_ONEDNN_FROM = 0 if platform.machine().lower() in ("x86_64", "amd64") else 20_480


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What an encoder or a decoder costs at one size.

    parameters: numbers in it. flops: of the whole clip. peak: numbers alive at most, weights not
    among them. remembered: those of them that the stream keeps between its chunks.
    """

    parameters: int
    flops: int
    peak: int
    remembered: int


@dataclass(slots=True)
class _Walk:
    """One chunk on its way: its shape now, what is alive, and the sums so far.

    started: whether a chunk came before, so that every convolution remembers frames.
    remembered: of the convolutions passed (all of them, where `started`).
    held: alive in the frames of the callers, the walk's own tensor not among them.
    counted: of `remembered`, once every chunk after the first has passed.
    """

    channels: int
    frames: int
    height: int
    width: int
    started: bool
    remembered: int = 0
    held: int = 0
    parameters: int = 0
    flops: int = 0
    peak: int = 0
    workspace: DeviceKind | None = "cpu"
    counted: int = 0

    @property
    def size(self) -> int:
        """Numbers in the tensor at hand."""
        return self.channels * self.frames * self.height * self.width

    @property
    def frame(self) -> int:
        """Numbers in one of its frames."""
        return self.channels * self.height * self.width

    def alive(self, numbers: int) -> None:
        """So many numbers live beside what is held and remembered."""
        self.peak = max(self.peak, self.held + self.remembered + numbers)

    def remember(self, numbers: int) -> None:
        """The stream keeps these from the first chunk on."""
        self.counted += numbers
        if not self.started:
            self.remembered += numbers

    def convolve(self, out: int, kernel: tuple[int, int, int], *, past: int = 0) -> None:
        """A convolution that keeps the size, with `past` frames before the chunk."""
        given, before = self.size, past * self.frame
        padded = given + before if past else 0
        self.remember(before)
        forgotten = before if self.started else 0  # replaced, but still in use
        copied = (padded or given) if self.workspace else 0
        unfolded = self.channels * (self.frames + past) * self.height <= _ONEDNN_FROM
        if self.workspace == "cpu" and unfolded:
            copied = math.prod(kernel) * given
        fan_in, self.channels = self.channels, out
        self.alive(given + padded + forgotten + copied + self.size)
        self.parameters += fan_in * out * math.prod(kernel) + out
        self.flops += 2 * fan_in * math.prod(kernel) * self.size

    def norm(self) -> None:
        """A norm over the channels, and its activation."""
        self.alive(2 * self.size)  # input, scaled; the rest is in place
        self.parameters += self.channels

    def residual_block(self, out: int) -> None:
        """norm, convolution, norm, convolution, and the shortcut; the input is held throughout."""
        fan_in, given = self.channels, self.size
        self.norm()
        self.held += given
        self.convolve(out, (3, 3, 3), past=2)
        self.norm()
        self.held += self.size  # the input of the second norm, until the convolution has ended
        self.convolve(out, (3, 3, 3), past=2)
        if fan_in != out:
            self.parameters += fan_in * out + out
            self.flops += 2 * fan_in * self.size
            self.alive((given if self.workspace else 0) + self.size)  # the shortcut
        self.alive(self.size)
        self.held -= self.size + given

    def attention(self) -> None:
        """Among the positions of each frame: query, key, value, the mix, its projection."""
        width, given = self.channels, self.size
        positions = self.height * self.width
        self.parameters += width + 4 * width * width + 4 * width
        self.flops += 8 * width * given + 4 * positions * given
        self.alive(8 * given)

    def middle(self) -> None:
        """Two residual blocks with attention between them."""
        self.residual_block(self.channels)
        self.attention()
        self.residual_block(self.channels)

    def downsample(self, *, temporal: bool) -> None:
        """Half the height and width by a strided convolution, then half the frames."""
        width, given = self.channels, self.size
        self.height, self.width = self.height // 2, self.width // 2
        copied = given if self.workspace else 0
        self.alive(3 * given + copied + self.size)  # input, padded, frames first
        self.parameters += 9 * width * width + width
        self.flops += 18 * width * self.size
        if not temporal:
            return
        self.parameters += 3 * width * width + width
        self.remember(self.frame)
        if self.started:
            self.alive(3 * self.size + self.size // 2 + self.frame)
            self.frames //= 2
            self.flops += 6 * width * self.size

    def upsample(self, out: int, *, temporal: bool) -> None:
        """Twice the frames by a convolution over time, then twice the height and width."""
        width = self.channels
        if temporal:
            self.parameters += 6 * width * width + 2 * width
            self._double_time()
        frames = self.size
        self.height, self.width = 2 * self.height, 2 * self.width
        enlarged, self.channels = self.size, out
        copied = enlarged if self.workspace else 0
        # The tensor, its frames as a batch, those enlarged, the result.
        self.alive(2 * frames + enlarged + copied + self.size)
        self.parameters += 9 * width * out + out
        self.flops += 18 * width * self.size

    def _double_time(self) -> None:
        """Two frames of each, save for the clip's first."""
        lone, before = int(not self.started), 2 * self.frame
        whole, given = self.size, (self.frames - lone) * self.frame
        if not given:
            self.counted += before  # remembered from the second call on
            return
        self.remember(before)
        copied = given + before if self.workspace else 0
        # Input, its past, what it forgets; then the two halves, woven, and put after the first.
        forgotten = 0 if lone else before
        self.alive(whole + given + before + copied + forgotten + 2 * given)
        self.alive(whole + 4 * given + lone * self.frame)
        self.flops += 12 * self.channels * given
        self.frames += self.frames - lone

    def up_stage(self, out: int, blocks: int, *, up: bool, temporal: bool) -> None:
        """A level of the 2.2 decoder, whose input waits for the repeating shortcut."""
        given = self._stage_blocks(out, blocks)
        if up:
            self.upsample(out, temporal=temporal)
            self.alive(3 * self.size)  # the result, repeated channels, those in their places
        self.held -= given

    def _stage_blocks(self, out: int, blocks: int) -> int:
        given = self.size
        self.residual_block(out)
        # From the second block on, the level's input is alive beside the block's own.
        self.held += given
        for _ in range(blocks - 1):
            self.residual_block(out)
        return given

    def down_stage(self, out: int, blocks: int, *, down: bool, temporal: bool) -> None:
        """A level of the 2.2 encoder, whose input waits for the averaging shortcut."""
        given = self._stage_blocks(out, blocks)
        if down:
            self.downsample(temporal=temporal)
        self.alive(given + 2 * self.size)
        self.held -= given


def _encode(shape: AutoencoderShape, walk: _Walk) -> None:
    widths = [shape.encoder_dim * m for m in (1, *shape.dim_mult)]
    chunk = walk.size
    walk.convolve(widths[0], (3, 3, 3), past=2)
    walk.held += chunk  # an argument until the end
    first = walk.size  # held as an argument while the levels run
    for level, (fan_in, fan_out) in enumerate(pairwise(widths)):
        last = level == len(shape.dim_mult) - 1
        temporal = not last and shape.temporal_downsample[level]
        if level == 1:
            walk.held += first
        if shape.residual:
            walk.down_stage(fan_out, shape.num_res_blocks, down=not last, temporal=temporal)
            continue
        for block in range(shape.num_res_blocks):
            assert walk.channels == (fan_out if block else fan_in)
            if level == 0 and block:
                walk.held += first
            walk.residual_block(fan_out)
            if level == 0 and block:
                walk.held -= first
        if not last:
            walk.downsample(temporal=temporal)
    walk.middle()
    walk.norm()
    walk.convolve(2 * shape.z_dim, (3, 3, 3), past=2)
    walk.convolve(2 * shape.z_dim, (1, 1, 1))


def _decode(shape: AutoencoderShape, walk: _Walk) -> None:
    mults = shape.dim_mult[::-1]
    widths = [shape.decoder_dim * m for m in (mults[0], *mults)]
    time, *scales = shape.scale_factors
    if walk.started:  # the pixels of the call before, still with the stream and with its reader
        walk.held += 2 * 3 * time * walk.frames * walk.height * walk.width * math.prod(scales)
    walk.convolve(shape.z_dim, (1, 1, 1))
    walk.convolve(widths[0], (3, 3, 3), past=2)
    walk.middle()
    walk.held += walk.size  # an argument while the levels run
    doublings = shape.temporal_downsample[::-1]
    for level, fan_out in enumerate(widths[1:]):
        last = level == len(mults) - 1
        temporal, blocks = not last and doublings[level], shape.num_res_blocks + 1
        if shape.residual:
            walk.up_stage(fan_out, blocks, up=not last, temporal=temporal)
            continue
        for _ in range(blocks):
            walk.residual_block(fan_out)
        if not last:
            walk.upsample(fan_out // 2, temporal=temporal)
    walk.norm()
    walk.convolve(3 * shape.patch_size**2, (3, 3, 3), past=2)
    # Patches, pixels in their places, clamped; and a latent frame's of them as 8-bit numbers.
    walk.alive(3 * walk.size + walk.size // walk.frames * min(time, walk.frames))


@lru_cache(maxsize=256)
def encoding(
    shape: AutoencoderShape,
    num_frames: int,
    height: int,
    width: int,
    *,
    workspace: DeviceKind | None = "cpu",
) -> Part:
    """The cost of encoding a clip of so many frames and pixels; `workspace`: with a device's."""
    time, patch = shape.scale_factors[0], shape.patch_size
    first = _Walk(
        channels=3 * patch**2, frames=1, height=height // patch, width=width // patch,
        started=False, workspace=workspace,
    )  # fmt: skip
    return _stream(shape, _encode, first, time, num_frames - 1)


@lru_cache(maxsize=256)
def decoding(
    shape: AutoencoderShape,
    latent_frames: int,
    height: int,
    width: int,
    *,
    workspace: DeviceKind | None = "cpu",
) -> Part:
    """The cost of decoding to so many latent frames and pixels."""
    _, tall, wide = shape.scale_factors
    size = height // tall, width // wide
    at_once = min(shape.decoded_at_once(*size), latent_frames)
    first = _Walk(
        channels=shape.z_dim, frames=at_once, height=size[0], width=size[1], started=False,
        workspace=workspace,
    )  # fmt: skip
    return _stream(shape, _decode, first, at_once, latent_frames - at_once)


def _stream(
    shape: AutoencoderShape,
    walk_through: Callable[[AutoencoderShape, _Walk], None],
    first: _Walk,
    frames: int,
    left: int,
) -> Part:
    """The first call, and later ones of so many frames where any are left."""
    frames = max(1, min(frames, left))
    later = replace(first, frames=frames, started=True)
    walk_through(shape, first)
    if left:
        later.remembered = first.counted
        walk_through(shape, later)
    return Part(
        parameters=first.parameters,
        flops=first.flops + later.flops * left // frames,
        peak=max(first.peak, later.peak),
        remembered=first.counted if left else first.remembered,
    )
