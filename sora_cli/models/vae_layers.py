"""Layers of the Wan video autoencoder, causal in time (arXiv 2503.20314, section 4.1).

Every layer takes a whole clip, or a clip in chunks with a `Stream` that remembers the frames
each layer still has to look back at. Both give the same numbers. A clip starts with one lone
frame: it fills a latent of its own, and the later ones each cover `2 ** temporal levels` frames.

Modules carry the names of the original checkpoints. Containers keyed "0", "2", "3", "6" keep
the positions the parameters have in those checkpoints' `nn.Sequential`s.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sora_cli.models.layers import has_onednn


@dataclass(slots=True)
class Stream:
    """What is remembered between the chunks of one clip: at most two frames a layer."""

    frames: dict[nn.Module, Tensor] = field(default_factory=dict)
    started: bool = False


def is_first(stream: Stream | None) -> bool:
    """Whether this chunk holds the clip's first frame (always so without a stream)."""
    return stream is None or not stream.started


class Stack(nn.Sequential):
    """A sequence of layers that all take `(x, stream)`."""

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        for layer in self:
            x = layer(x, stream)
        return x


class CausalConv3d(nn.Conv3d):
    """3D convolution that sees the present and the past, never the future.

    `pad` is the symmetric padding a plain convolution would have: in time all of it is moved
    to the left, as zeros at the start of a clip and as remembered frames within it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int],
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        pad: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        padding = (0, pad[1], pad[2])
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=padding)
        self.past_frames = 2 * pad[0]

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        if self.past_frames:
            past = None if stream is None else stream.frames.get(self)
            if past is None:
                x = F.pad(x, (0, 0, 0, 0, self.past_frames, 0))
            else:
                x = torch.cat([past, x], dim=2)
            if stream is not None:
                # Cloned, because a view would keep the whole chunk alive.
                stream.frames[self] = x[:, :, -self.past_frames :].clone()
        if _asks_onednn(x, self.weight):
            # What torch does by itself for large inputs alone: of a chunk it would first write
            # every patch into a matrix, and take three times as long.
            return torch.mkldnn_convolution(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
            )
        return super().forward(x)  # [B, C', T', H', W']


def _asks_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is asked directly: in inference in fp32 on an x86 CPU."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and has_onednn()
    )


def conv3x3x3(in_channels: int, out_channels: int) -> CausalConv3d:
    """A causal convolution that keeps the size."""
    return CausalConv3d(in_channels, out_channels, (3, 3, 3), pad=(1, 1, 1))


def conv1x1x1(in_channels: int, out_channels: int) -> CausalConv3d:
    """A mixing of channels."""
    return CausalConv3d(in_channels, out_channels, (1, 1, 1))


class RMSNorm(nn.Module):
    """x / ‖x‖₂ · √C · γ over the channels; γ has as many trailing axes as x has after C."""

    def __init__(self, channels: int, *, trailing_axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * trailing_axes))

    def forward(self, x: Tensor) -> Tensor:
        # One reduction and two products: the division happens on the small [B, 1, ...] tensor.
        # Casts keep bf16 activations in bf16 under autocast, where γ is fp32.
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        scale = math.sqrt(x.shape[1]) / length.clamp_min(1e-12)  # [B, 1, T, H, W]
        normed = x * scale.to(x.dtype)
        if torch.is_grad_enabled():
            return normed * self.gamma.to(x.dtype)
        return normed.mul_(self.gamma.to(x.dtype))


class NormSiLU(RMSNorm):
    """silu(norm(x)). One module, so that a training run may compile it to a single kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x), inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1×1×1 shortcut where widths differ."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": NormSiLU(in_channels),
                "2": conv3x3x3(in_channels, out_channels),
                "3": NormSiLU(out_channels),
                "6": conv3x3x3(out_channels, out_channels),
            }
        )
        widens = in_channels != out_channels
        self.shortcut = conv1x1x1(in_channels, out_channels) if widens else None

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        layers = self.residual
        hidden = layers["2"](layers["0"](x), stream)
        hidden = layers["6"](layers["3"](hidden), stream)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return hidden + shortcut if torch.is_grad_enabled() else hidden.add_(shortcut)


class AttentionBlock(nn.Module):
    """Single-head self-attention among the positions of each frame; frames do not mix."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, trailing_axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj.weight)  # the block starts as the identity

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        batch, _, _, height, _ = x.shape
        frames = x.transpose(1, 2).flatten(0, 1)  # [B·T, C, H, W]
        tokens = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2)  # [B·T, H·W, 3C]
        query, key, value = tokens.unsqueeze(1).chunk(3, dim=-1)  # [B·T, 1, H·W, C]
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = mixed.squeeze(1).transpose(1, 2).unflatten(2, (height, -1))  # [B·T, C, H, W]
        return x + self.proj(mixed).unflatten(0, (batch, -1)).transpose(1, 2)


def _each_frame(layer: nn.Module, x: Tensor) -> Tensor:
    frames = layer(x.transpose(1, 2).flatten(0, 1))  # [B·T, C', H', W']
    return frames.unflatten(0, (x.shape[0], -1)).transpose(1, 2)  # [B, C', T, H', W']


class Downsample(nn.Module):
    """Halve height and width, and with `temporal` the frame rate, keeping the first frame."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = (
            CausalConv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None
        )

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        x = _each_frame(self.resample["1"], F.pad(x, (0, 1, 0, 1)))  # [B, C, T, H/2, W/2]
        return x if self.time_conv is None else self._halve_time(self.time_conv, x, stream)

    def _halve_time(self, time_conv: CausalConv3d, x: Tensor, stream: Stream | None) -> Tensor:
        past = None if is_first(stream) or stream is None else stream.frames[self]
        if stream is not None:
            stream.frames[self] = x[:, :, -1:].clone()
        if past is not None:
            return time_conv(torch.cat([past, x], dim=2))  # [B, C, T/2, H, W]
        first = x[:, :, :1]
        if x.shape[2] == 1:
            return first
        return torch.cat([first, time_conv(x)], dim=2)  # [B, C, 1 + (T-1)/2, H, W]


class Upsample(nn.Module):
    """Double height and width, and with `temporal` the frame rate, save for the first frame."""

    def __init__(self, in_channels: int, out_channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(in_channels, out_channels, 3, padding=1)})
        self.time_conv = (
            CausalConv3d(in_channels, 2 * in_channels, (3, 1, 1), pad=(1, 0, 0))
            if temporal
            else None
        )

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        if self.time_conv is not None:
            x = self._double_time(self.time_conv, x, stream)
        return _each_frame(self._double_space, x)  # [B, C', T', 2H, 2W]

    def _double_space(self, frames: Tensor) -> Tensor:
        return self.resample["1"](F.interpolate(frames, scale_factor=2.0, mode="nearest-exact"))

    def _double_time(self, time_conv: CausalConv3d, x: Tensor, stream: Stream | None) -> Tensor:
        first = is_first(stream)
        # The first frame passes as it is and is not in the convolution's history either.
        rest = x[:, :, 1:] if first else x
        if rest.shape[2] == 0:
            return x
        rest = _interleave(time_conv(rest, stream))  # [B, C, 2T, H, W]
        return torch.cat([x[:, :, :1], rest], dim=2) if first else rest


def _interleave(pairs: Tensor) -> Tensor:
    """[B, 2C, T, H, W] → [B, C, 2T, H, W]: both halves of the channels by turns in time."""
    if pairs.is_contiguous(memory_format=torch.channels_last_3d):
        # One copy that keeps the layout, in which a later layer would want it back.
        x = pairs.permute(0, 2, 3, 4, 1).unflatten(4, (2, -1))  # [B, T, H, W, 2, C]
        return x.permute(0, 1, 4, 2, 3, 5).flatten(1, 2).permute(0, 4, 1, 2, 3)
    return pairs.unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


def average_down(x: Tensor, out_channels: int, factors: tuple[int, int]) -> Tensor:
    """Shortcut around a downsampling stage: space (and time) to channels, then group means.

    `factors` is (time, space). A time remainder is filled with zeros in front, so the lone
    first frame comes out halved: the published weights are trained with that.

    [B, C, T, H, W] → [B, out_channels, ⌈T/time⌉, H/space, W/space]
    """
    time, space = factors
    if x.shape[2] % time:
        x = F.pad(x, (0, 0, 0, 0, time - x.shape[2] % time, 0))
    x = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)  # [B, T', H', W', C·time·space²]
    assert x.shape[-1] % out_channels == 0, "a stage's input must fill its output's channels"
    return x.unflatten(4, (out_channels, -1)).mean(-1).permute(0, 4, 1, 2, 3)


def duplicate_up(x: Tensor, out_channels: int, factors: tuple[int, int], *, first: bool) -> Tensor:
    """Shortcut around an upsampling stage: repeat channels, then channels to space (and time).

    `factors` is (time, space). With `first`, the clip's first frame gives one frame only.

    [B, C, T, H, W] → [B, out_channels, T·time − (time − 1 if first), H·space, W·space]
    """
    time, space = factors
    x = x.repeat_interleave(out_channels * time * space * space // x.shape[1], dim=1)
    x = x.unflatten(1, (out_channels, time, space, space))
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return x[:, :, time - 1 :] if first else x


class DownStage(nn.Module):
    """A level of the 2.2 encoder: residual blocks and a downsampling, with an average shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, *, down: bool, temporal: bool
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        layers: list[nn.Module] = [ResidualBlock(*pair) for pair in pairwise(widths)]
        if down:
            layers.append(Downsample(out_channels, temporal=temporal))
        self.downsamples = Stack(*layers)
        self.out_channels = out_channels
        self.factors = (2 if temporal else 1, 2 if down else 1)
        volume = self.factors[0] * self.factors[1] ** 2
        assert in_channels * volume % out_channels == 0, (
            f"a residual stage cannot widen {in_channels} to {out_channels} channels "
            f"while it shrinks the clip by only {volume}"
        )

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        return self.downsamples(x, stream) + average_down(x, self.out_channels, self.factors)


class UpStage(nn.Module):
    """A level of the 2.2 decoder: residual blocks and an upsampling, with a repeating shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, *, up: bool, temporal: bool
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        layers: list[nn.Module] = [ResidualBlock(*pair) for pair in pairwise(widths)]
        if up:
            layers.append(Upsample(out_channels, out_channels, temporal=temporal))
        self.upsamples = Stack(*layers)
        self.out_channels = out_channels
        self.factors = (2 if temporal else 1, 2) if up else None

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        hidden = self.upsamples(x, stream)
        if self.factors is None:
            return hidden
        return hidden + duplicate_up(x, self.out_channels, self.factors, first=is_first(stream))


def patchify(video: Tensor, patch_size: int) -> Tensor:
    """[B, C, T, H, W] → [B, C·p², T, H/p, W/p]; the column within a patch varies slower."""
    if patch_size == 1:
        return video
    x = video.unflatten(4, (-1, patch_size)).unflatten(3, (-1, patch_size))
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """[B, C·p², T, H, W] → [B, C, T, H·p, W·p], the inverse of `patchify`."""
    if patch_size == 1:
        return patches
    x = patches.unflatten(1, (-1, patch_size, patch_size))  # [B, C, pw, ph, T, H, W]
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
