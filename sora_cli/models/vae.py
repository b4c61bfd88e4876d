"""The Wan video autoencoder: 2.1 (plain), 2.2 (residual stages, patches) and the embedded one.

Source: the published Wan2.1/Wan2.2 checkpoints, whose parameter names are kept
(arXiv 2503.20314). Shapes: B batch, C channels, T frames, H height, W width.

Two forms of the same function: one pass over the clip, for training, and chunks of one latent
frame with a two-frame memory in every causal convolution, for clips of any length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from sora_cli.models.vae_layers import (
    AttentionBlock,
    Downsample,
    DownStage,
    NormSiLU,
    ResidualBlock,
    Stack,
    Stream,
    Upsample,
    UpStage,
    conv1x1x1,
    conv3x3x3,
    patchify,
    unpatchify,
)

# Latent positions times the decoder's width that are decoded in one call: what a call needs of
# memory beside what it always needs (`costs_vae.decoding` counts it).
DECODED_AT_ONCE = 12_288


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig:
    """Numbers of an autoencoder.

    `dim_mult[i]` times `encoder_dim` (`decoder_dim`) is the width of level i. Every level but
    the last halves height and width, and time too where `temporal_downsample[i]`. `residual`
    chooses the 2.2 layout. Pixels enter as `patch_size` × `patch_size` patches.
    `latents_mean` and `latents_std`, one per latent channel, bring latents to unit scale.
    """

    z_dim: int
    encoder_dim: int
    decoder_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...]
    residual: bool
    patch_size: int = 1
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]

    @property
    def pixel_channels(self) -> int:
        """Channels of a patch of RGB pixels."""
        return 3 * self.patch_size**2

    @property
    def scale_factors(self) -> tuple[int, int, int]:
        """(time, height, width) of the video per latent: (4, 8, 8) or (4, 16, 16)."""
        space = self.patch_size * 2 ** (len(self.dim_mult) - 1)
        return 2 ** sum(self.temporal_downsample), space, space

    def decoded_at_once(self, height: int, width: int) -> int:
        """How many latent frames of so many positions the decoder takes in one call.

        Of small frames a call costs more than what it computes; of large ones the memory counts.
        """
        return max(1, DECODED_AT_ONCE // (height * width * self.decoder_dim))


def _middle(channels: int) -> Stack:
    return Stack(
        ResidualBlock(channels, channels),
        AttentionBlock(channels),
        ResidualBlock(channels, channels),
    )


def _head(in_channels: int, out_channels: int) -> nn.ModuleDict:
    return nn.ModuleDict({"0": NormSiLU(in_channels), "2": conv3x3x3(in_channels, out_channels)})


def _run_head(head: nn.ModuleDict, x: Tensor, stream: Stream | None) -> Tensor:
    return head["2"](head["0"](x), stream)


class Encoder(nn.Module):
    """Patches [B, 3p², T, H, W] → posterior parameters [B, 2·z_dim, T', H', W']."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.encoder_dim * m for m in (1, *config.dim_mult)]
        self.conv1 = conv3x3x3(config.pixel_channels, widths[0])
        self.downsamples = Stack(*self._levels(config, widths))
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], 2 * config.z_dim)

    @staticmethod
    def _levels(config: VAEConfig, widths: list[int]) -> Iterator[nn.Module]:
        time_halvings = (*config.temporal_downsample, False)
        for level, (fan_in, fan_out) in enumerate(pairwise(widths)):
            down, temporal = level < len(config.dim_mult) - 1, time_halvings[level]
            if config.residual:
                yield DownStage(
                    fan_in, fan_out, config.num_res_blocks, down=down, temporal=temporal
                )
                continue
            for block in range(config.num_res_blocks):
                yield ResidualBlock(fan_out if block else fan_in, fan_out)
            if down:
                yield Downsample(fan_out, temporal=temporal)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        x = self.middle(self.downsamples(self.conv1(x, stream), stream), stream)
        x = _run_head(self.head, x, stream)
        if stream is not None:
            stream.started = True
        return x


class Decoder(nn.Module):
    """Latents [B, z_dim, T, H, W] → patches [B, 3p², T', H', W']."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        mults = config.dim_mult[::-1]
        widths = [config.decoder_dim * m for m in (mults[0], *mults)]
        self.conv1 = conv3x3x3(config.z_dim, widths[0])
        self.middle = _middle(widths[0])
        self.upsamples = Stack(*self._levels(config, widths))
        self.head = _head(widths[-1], config.pixel_channels)

    @staticmethod
    def _levels(config: VAEConfig, widths: list[int]) -> Iterator[nn.Module]:
        time_doublings = (*config.temporal_downsample[::-1], False)
        blocks = config.num_res_blocks + 1
        for level, (fan_in, fan_out) in enumerate(pairwise(widths)):
            up, temporal = level < len(config.dim_mult) - 1, time_doublings[level]
            if config.residual:
                yield UpStage(fan_in, fan_out, blocks, up=up, temporal=temporal)
                continue
            if level > 0:
                fan_in //= 2  # 2.1 halves the width where it upsamples
            for block in range(blocks):
                yield ResidualBlock(fan_out if block else fan_in, fan_out)
            if up:
                yield Upsample(fan_out, fan_out // 2, temporal=temporal)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        x = self.upsamples(self.middle(self.conv1(x, stream), stream), stream)
        x = _run_head(self.head, x, stream)
        if stream is not None:
            stream.started = True
        return x


class VAE(nn.Module):
    """Video ↔ latents. A clip has 1 + (time scale)·k frames and gives 1 + k latent frames.

    The raw, one-pass methods are differentiable and may run under autocast. The others take
    and give latents at unit scale, without gradients.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = conv1x1x1(2 * config.z_dim, 2 * config.z_dim)
        self.conv2 = conv1x1x1(config.z_dim, config.z_dim)
        self.decoder = Decoder(config)

    def to_channels_last(self) -> VAE:
        """Lay out the convolutions' weights with channels last, the fast layout of CPU kernels.

        `Module.to(memory_format=...)` cannot: it wants every 4- or 5-dimensional parameter alike.
        """
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                weight = module.weight
                weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])
        return self

    def posterior(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the raw latents, in one pass.

        video in [-1, 1]: [B, 3, 1 + 4k, H, W] → two of [B, z_dim, 1 + k, H/8, W/8] (or H/16).
        """
        self._check_video(video)
        hidden = self.encoder(patchify(video, self.config.patch_size))
        mean, logvar = self.conv1(hidden).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Raw latents [B, z_dim, 1 + k, H, W] → unclamped video [B, 3, 1 + 4k, 8H, 8W] (or 16)."""
        return unpatchify(self.decoder(self.conv2(latents)), self.config.patch_size)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video in [-1, 1] → latents at unit scale: the posterior's mode, (mode − mean) / std.

        Works through the clip one latent frame at a time, so memory beyond the input does not
        grow with its length. [B, 3, 1 + 4k, H, W] → [B, z_dim, 1 + k, H/8, W/8] (or H/16).
        """
        self._check_video(video)
        step = self.config.scale_factors[0]
        lengths = [1] + [step] * ((video.shape[2] - 1) // step)
        stream = Stream()
        modes = []
        for chunk in video.split(lengths, dim=2):
            hidden = self.encoder(patchify(chunk, self.config.patch_size), stream)
            modes.append(self.conv1(hidden).chunk(2, dim=1)[0])
        return self.normalize(torch.cat(modes, dim=2))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents at unit scale → video clamped to [-1, 1], in one pass.

        [B, z_dim, 1 + k, H, W] → [B, 3, 1 + 4k, 8H, 8W] (or 16).
        """
        return self.decode_raw(self.denormalize(latents)).clamp(-1.0, 1.0)

    @torch.no_grad()
    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        """The frames of `decode` in chunks, one for each latent frame: 1 frame, then 4, 4, ...

        Memory does not grow with the length: two frames are kept for each convolution.
        """
        stream, time = Stream(), self.config.scale_factors[0]
        at_once = self.config.decoded_at_once(*latents.shape[3:])
        for some in self.denormalize(latents).split(at_once, dim=2):
            lengths = [time if stream.started else 1] + [time] * (some.shape[2] - 1)
            patches = self.decoder(self.conv2(some), stream)
            video = unpatchify(patches, self.config.patch_size).clamp(-1.0, 1.0)
            yield from video.split(lengths, dim=2)

    def normalize(self, latents: Tensor) -> Tensor:
        """Raw latents → unit scale, (latents − mean) / std for each channel."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """Unit scale → raw latents, latents · std + mean for each channel."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # Not buffers: a strict load onto the meta device would leave them there.
        mean, std = (
            torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1, 1)
            for values in (self.config.latents_mean, self.config.latents_std)
        )
        return mean, std  # [1, z_dim, 1, 1, 1]

    def _check_video(self, video: Tensor) -> None:
        frames, height, width = video.shape[2:]
        time, tall, wide = self.config.scale_factors
        assert (frames - 1) % time == 0 and height % tall == 0 and width % wide == 0, (
            f"{frames} frames of {width}×{height} do not fit the scale {time}×{tall}×{wide}"
        )
