"""Train the embedded model's video autoencoder on the procedural world.

`python -m sora_cli.train.vae POOL OUT --minutes 40` trains on crops of the pool's clips, resumes
from OUT/vae-run/, and writes OUT/vae/ in the diffusers layout. `--start MODEL` goes on from a
model's weights. `--decoder-only` goes on with a frozen encoder, so that latents made with it stay
valid; what it decodes is encoded again and has to come out as what it was.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sora_cli.models.vae import VAE, VAEConfig
from sora_cli.train.dataset import Bucket, clip_path, clip_shards, shard_bucket, to_video
from sora_cli.train.export import remember_start, save_vae
from sora_cli.train.loop import (
    Ema,
    Muon,
    Run,
    learning_rate,
    load_checkpoint,
    run_recipe,
    save_checkpoint,
)
from sora_cli.weights import load
from sora_cli.weights.keymaps_vae import vae_config_from_diffusers
from sora_cli.weights.store import read_json

TINY_VAE = VAEConfig(
    z_dim=48, encoder_dim=32, decoder_dim=48, dim_mult=(1, 2, 2), temporal_downsample=(True, True),
    residual=True, patch_size=4, latents_mean=(0.0,) * 48, latents_std=(1.0,) * 48,
)  # fmt: skip
# (frames, side, clips in a batch, share of the steps): small crops for throughput, whole pictures
# so that attention and borders are seen at the sizes of inference, single frames for images.
CROPS = ((9, 64, 8, 0.60), (17, 32, 16, 0.12), (17, 96, 2, 0.14), (1, 96, 16, 0.14))
PEAK_RATE, KL_WEIGHT = 2e-3, 1e-4
ROUGH = 0.15  # of a latent's deviation: noise that a decoder alone learns to see through
AGAIN = 1.0  # weight of what is encoded again, in its own squared deviations
ONWARD = 0.6  # share of a decoder's steps that go on from the pictures of the step before


class Crops:
    """Random crops from the pool; looks for new shards as they are rendered."""

    def __init__(self, pool: Path, rng: random.Random) -> None:
        self.pool, self.rng, self.opened = pool, rng, 0
        self.shards: list[int] = []

    def draw(self, frames: int, side: int, count: int) -> Tensor:
        """[count, 3, frames, side, side] in [-1, 1], each from its own clip where possible."""
        if self.opened % 200 == 0:
            self.shards = clip_shards(self.pool)
        self.opened += 1
        large = [n for n in self.shards if fits(shard_bucket(n), frames, side)]
        assert large, f"no clip in {self.pool} holds {frames} frames of {side}×{side}"
        crops: list[Tensor] = []
        while len(crops) < count:
            clips = np.load(clip_path(self.pool, self.rng.choice(large)), mmap_mode="r")
            _, length, height, width, _ = clips.shape
            for _ in range(min(4, count - len(crops))):
                clip = clips[self.rng.randrange(len(clips))]
                t, y, x = (self.rng.randint(0, s - c) for s, c in
                           ((length, frames), (height, side), (width, side)))  # fmt: skip
                crop = torch.from_numpy(np.array(clip[t : t + frames, y : y + side, x : x + side]))
                crops.append(to_video(crop.flip(2) if self.rng.random() < 0.5 else crop))
        return torch.stack(crops)


def fits(bucket: Bucket, frames: int, side: int) -> bool:
    """Whether a crop of this length and side can be cut from the bucket's clips."""
    return bucket.num_frames >= frames and min(bucket.width, bucket.height) >= side


def pixel_weights(video: Tensor) -> Tensor:
    """Where pictures have edges or move, errors count up to five times: [B, 1, T, H, W], mean 1."""
    gray = video.mean(1, keepdim=True)
    moved = torch.zeros_like(gray)
    moved[:, :, 1:] = (gray[:, :, 1:] - gray[:, :, :-1]).abs()
    edge = torch.zeros_like(gray)
    edge[..., 1:, :] += (gray[..., 1:, :] - gray[..., :-1, :]).abs()
    edge[..., :, 1:] += (gray[..., :, 1:] - gray[..., :, :-1]).abs()
    weights = 1 + 2 * (8 * moved).clamp_max(1) + 2 * (4 * edge).clamp_max(1)
    return weights / weights.mean((2, 3, 4), keepdim=True)


def losses(
    vae: VAE, shown: Tensor, video: Tensor, decoder_only: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Training loss, plain mean squared error, and what was made.

    shown: what is encoded, [B, 3, T, H, W]; video: what is to come out.

    Weighted |error| + squared error, plus a small Kullback-Leibler term that keeps latents near
    a unit ball without blurring them; the decoder learns on samples of the posterior. A decoder
    alone also learns on latents that are a little off, as a transformer makes them, each clip by
    another share of ROUGH (as in arXiv 2510.11690), that its pictures are encoded as the true
    ones are (`again`), and, where `shown` is what it made before, to come back to what was true:
    a long video goes through it once for each canvas, and small errors would grow.
    """
    with torch.no_grad() if decoder_only else torch.enable_grad():
        mean, logvar = (p.float() for p in vae.posterior(shown))
        mean = mean.detach() if decoder_only else mean
    sample = mean + torch.exp(
        0.5 * logvar.detach() if decoder_only else 0.5 * logvar
    ) * torch.randn_like(mean)
    if decoder_only:
        off = ROUGH * torch.rand(len(mean), 1, 1, 1, 1, device=mean.device)
        sample = sample + off * mean.std((0, 2, 3, 4), keepdim=True) * torch.randn_like(mean)
    made = vae.decode_raw(sample).float()
    error = made - video
    weights = pixel_weights(video)
    squared = error.square()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = (weights * (error.abs() + 4 * squared)).mean() + KL_WEIGHT * kl
    if decoder_only:
        loss = loss + AGAIN * again(vae, made, video)
    return loss, squared.detach().mean(), made.detach()


def again(vae: VAE, made: Tensor, video: Tensor) -> Tensor:
    """How far the latents of what was made are from the true video's.

    Mean squared, of the latents' variance; the encoder is held.
    """
    made, video = from_a_frame(made, video)
    with torch.no_grad():
        true = vae.posterior(video)[0].float()
    latents = vae.posterior(made)[0].float()
    variance = true.var((0, 2, 3, 4), keepdim=True).clamp_min(1e-4)
    return ((latents - true).square() / variance).mean()


def from_a_frame(made: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    """Both from the first frame on, or, of three in ten, from a random one.

    The head of a clip that goes on is encoded on its own, so its first latent is of one frame.
    """
    length = video.shape[2]
    start = int(torch.randint(0, length, ())) if torch.rand(()) < 0.3 else 0
    kept = slice(start, start + (length - start - 1) // 4 * 4 + 1)
    return made[:, :, kept], video[:, :, kept]


def next_clips(
    crops: Crops, rng: random.Random, device: torch.device, last: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """What is encoded and what is to come out: fresh crops, or what was made in the last step."""
    if last is not None and rng.random() < ONWARD:
        return from_a_frame(*last)
    frames, side, count, _ = rng.choices(CROPS, [c[3] for c in CROPS])[0]
    video = crops.draw(frames, side, count).to(device, memory_format=torch.channels_last_3d)
    return video, video


def make_optimizers(
    vae: VAE, decoder_only: bool
) -> tuple[list[nn.Parameter], list[torch.optim.Optimizer]]:
    """What is trained, and by what: Muon for convolution kernels, AdamW for the rest."""
    trained = [
        parameter
        for name, parameter in vae.named_parameters()
        if not decoder_only or name.startswith(("decoder", "conv2"))
    ]
    kernels = [p for p in trained if p.ndim >= 4 and p[0].numel() > 1 and min(p.shape[:2]) > 8]
    chosen = {id(p) for p in kernels}
    others = [p for p in trained if id(p) not in chosen]
    return trained, [Muon(kernels), torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98))]


def train(arguments: argparse.Namespace) -> None:
    """The recipe, top to bottom."""
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    folder = arguments.out / ("vae_decoder-run" if arguments.decoder_only else "vae-run")
    run = Run(folder=folder, minutes=arguments.minutes)
    vae = VAE(TINY_VAE)
    with torch.no_grad():  # start with little posterior noise
        vae.conv1.bias[TINY_VAE.z_dim :] = -4.0  # type: ignore[index]
    vae = vae.to(device).to_channels_last()
    ema = Ema(vae)
    state = load_checkpoint(folder / "checkpoint.pt")
    if state is None and arguments.decoder_only and not arguments.start:
        whole = load_checkpoint(arguments.out / "vae-run" / "checkpoint.pt")
        assert whole is not None, "train the whole autoencoder first"
        vae.load_state_dict(whole["ema"])
        ema = Ema(vae)
    elif state is None and arguments.start:
        vae.load_state_dict(weights_of(arguments.start))
        ema = Ema(vae)
        remember_start(arguments.start, folder)
    trained, optimizers = make_optimizers(vae, arguments.decoder_only)
    if state is not None:
        vae.load_state_dict(state["model"])
        for optimizer, saved_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        ema.shadow = state["ema"]
        run.restore(state["run"])
    crops = Crops(arguments.pool, random.Random(f"vae/{arguments.seed}/{run.steps}"))
    rng, saved = random.Random(f"crop/{arguments.seed}/{run.steps}"), run.elapsed
    peak = PEAK_RATE * (0.6 if arguments.decoder_only else 1.0)
    last: tuple[Tensor, Tensor] | None = None  # what was made, and what should have been
    while run.progress < 1 and run.steps < arguments.steps:
        shown, video = next_clips(crops, rng, device, last if arguments.decoder_only else None)
        rate = learning_rate(run.progress, peak, run.steps)
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16):
            loss, squared, made = losses(vae, shown, video, arguments.decoder_only)
        last = made.clamp(-1, 1), video
        vae.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        ema.update(run.steps)
        psnr = -10 * float(torch.log10(squared / 4))
        run.count(len(video), loss=float(loss.detach()), psnr=psnr, norm=float(norm), rate=rate)
        if run.elapsed - saved > 120:
            saved = run.elapsed
            _save(run, vae, ema, optimizers)
    _save(run, vae, ema, optimizers)
    vae.load_state_dict(ema.state())
    _write(arguments, vae, crops)


def _write(arguments: argparse.Namespace, vae: VAE, crops: Crops) -> None:
    """The diffusers folder."""
    if arguments.halfway:  # what was known and what was learned (WiSE-FT, arXiv 2109.01903)
        weights = vae.state_dict()
        for name, known in weights_of(arguments.start).items():
            weights[name].lerp_(known.to(weights[name].device), 0.5)
    if arguments.decoder_only:  # the latents' statistics are the encoder's, and already in use
        config = read_json((arguments.start or arguments.out) / "vae" / "config.json")
        statistics = vae_config_from_diffusers(config)
    else:
        statistics = measure_statistics(vae, crops)
    save_vae(arguments.out / "vae", with_config(vae, statistics))


def weights_of(model: Path) -> dict[str, Tensor]:
    """The autoencoder of a model folder, fp32."""
    with load.vae(model / "vae", device="cpu", dtype=torch.float32) as known:
        return known.state_dict()


def _save(run: Run, vae: VAE, ema: Ema, optimizers: list[torch.optim.Optimizer]) -> None:
    state = {
        "model": vae.state_dict(),
        "ema": ema.state(),
        "run": run.state(),
        "optimizers": [o.state_dict() for o in optimizers],
    }
    save_checkpoint(run.folder / "checkpoint.pt", state)


@torch.no_grad()
def measure_statistics(vae: VAE, crops: Crops) -> VAEConfig:
    """The config with the latents' mean and deviation per channel, over 48 batches of crops."""
    device = next(vae.parameters()).device
    crops.rng = random.Random("statistics")
    frames, side, count, _ = CROPS[0]
    clips = (crops.draw(frames, side, count).to(device) for _ in range(48))
    rows = [vae.posterior(video)[0].float() for video in clips]
    latents = torch.cat(rows).transpose(0, 1).flatten(1)  # [C, samples]
    return replace(
        vae.config,
        latents_mean=tuple(latents.mean(1).tolist()),
        latents_std=tuple(latents.std(1).tolist()),
    )


def with_config(vae: VAE, config: VAEConfig) -> VAE:
    """The same weights under another config."""
    result = VAE(config)
    result.load_state_dict(vae.state_dict())
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--steps", type=int, default=10**9, help="stop after this many steps")
    parser.add_argument("--start", type=Path, help="a model folder to go on from, where OUT is new")
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument(
        "--halfway", action="store_true", help="write the mean of --start's weights and the last"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    run_recipe(parser, train)


if __name__ == "__main__":
    main()
