"""Clips for training: which sizes and lengths, rendered once into a pool, encoded once.

A pool is a folder of shards. A clip shard holds the frames of 32 scenes of one bucket; its scenes
are drawn again from its number, so no record is stored. A latent shard holds the same clips (and
their mirror images) through a frozen VAE, with a block of given latents encoded as at inference.
`python -m sora_cli.train.dataset POOL --minutes M` renders; it resumes where it stopped.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sora_cli.models.vae import VAE
from sora_cli.pipeline.canvas import encode_given
from sora_cli.train.render import render
from sora_cli.train.world import Scene, draw_scene

SHARD = 32  # clips
MAX_GIVEN = 3  # latent frames in a given block


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """One size and length of clip, and its share of the pool's clips."""

    width: int
    height: int
    num_frames: int
    share: float

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}x{self.num_frames}"

    @property
    def pixels(self) -> int:
        """Pixels of the whole clip."""
        return self.width * self.height * self.num_frames


BUCKETS = tuple(
    Bucket(width=w, height=h, num_frames=t, share=s)
    for w, h, t, s in (
        (64, 64, 17, 0.20),
        (96, 64, 17, 0.14),
        (64, 96, 17, 0.08),
        (96, 96, 9, 0.06),
        (128, 80, 25, 0.10),
        (160, 96, 25, 0.24),
        (96, 160, 17, 0.06),
        (112, 64, 33, 0.04),
        (160, 96, 1, 0.05),
        (96, 96, 1, 0.03),
    )
)


def shard_bucket(shard: int) -> Bucket:
    """The bucket of shard number `shard`; any run of numbers has about the shares above."""
    rng = random.Random(f"bucket/{shard}")
    return rng.choices(BUCKETS, [b.share for b in BUCKETS])[0]


def shard_scenes(shard: int, seed: int = 0) -> list[Scene]:
    """The scenes of a shard, drawn again."""
    bucket = shard_bucket(shard)
    return [
        draw_scene(
            seed,
            shard * SHARD + i,
            width=bucket.width,
            height=bucket.height,
            num_frames=bucket.num_frames,
        )
        for i in range(SHARD)
    ]


def mirror(scene: Scene) -> Scene:
    """The scene's record as seen in a mirror (left and right exchanged)."""
    swap = {"left": "right", "right": "left", "pan left": "pan right", "pan right": "pan left"}

    def turn(point: tuple[float, float, float]) -> tuple[float, float, float]:
        return (-point[0], point[1], point[2])

    things = tuple(
        replace(
            t, motion=swap.get(t.motion, t.motion), start=turn(t.start),
            velocity=turn(t.velocity), yaw=-t.yaw, spin=-t.spin,
        )
        for t in reversed(scene.things)
    )  # fmt: skip
    return replace(scene, things=things, camera=swap.get(scene.camera, scene.camera))


def clip_path(pool: Path, shard: int) -> Path:
    """Where the frames of a shard lie (uint8 [32, T, H, W, 3])."""
    return pool / "clips" / f"{shard:06d}-{shard_bucket(shard).name}.npy"


def clip_shards(pool: Path) -> list[int]:
    """Numbers of the shards rendered so far."""
    return sorted(int(p.name[:6]) for p in (pool / "clips").glob("*.npy"))


def render_shard(pool: Path, shard: int, seed: int = 0, device: str = "cpu") -> None:
    """Render one shard into the pool, atomically."""
    path = clip_path(pool, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [render([scene], device=device)[0][0].cpu() for scene in shard_scenes(shard, seed)]
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.save(file, torch.stack(frames).numpy())
    os.replace(temporary, path)


def to_video(frames: Tensor) -> Tensor:
    """uint8 [..., T, H, W, 3] → float [..., 3, T, H, W] in [-1, 1]."""
    return (frames.float() / 127.5 - 1).movedim(-1, -4)


def latent_path(folder: Path, shard: int) -> Path:
    """Where the latents of a shard lie."""
    return folder / f"{shard:06d}-{shard_bucket(shard).name}.safetensors"


@torch.no_grad()
def encode_shard(
    pool: Path, shard: int, vae: VAE, out: Path, device: torch.device, batch: int = 8
) -> None:
    """Encode a shard's clips and their mirror images; half of the clips are mirrored.

    Saves `latents` [32, C, T', H', W'] (clip i mirrored where `mirrored[i]`), `block`
    [32, C, ≤3, H', W'] (given latents encoded on their own, as `encode_given` does for a tail),
    `block_start` and `block_length` [32], all in normalised latent units, half precision.
    """
    frames = torch.from_numpy(np.load(clip_path(pool, shard)))
    rng = random.Random(f"encode/{shard}")
    mirrored = torch.tensor([rng.random() < 0.5 for _ in range(SHARD)])
    frames[mirrored] = frames[mirrored].flip(3)
    rows: dict[str, list[Tensor]] = {"latents": [], "block": [], "start": [], "length": []}
    for first in range(0, SHARD, batch):
        video = to_video(frames[first : first + batch]).to(device)
        latents, block, start, length = _encode_with_block(vae, video, rng)
        for name, value in zip(rows, (latents, block, start, length), strict=True):
            rows[name].append(value.cpu())
    out.mkdir(parents=True, exist_ok=True)
    path = latent_path(out, shard)
    tensors = {
        "latents": torch.cat(rows["latents"]).half().contiguous(),
        "block": torch.cat(rows["block"]).half().contiguous(),
        "block_start": torch.cat(rows["start"]), "block_length": torch.cat(rows["length"]),
        "mirrored": mirrored,
    }  # fmt: skip
    save_file(tensors, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def _encode_with_block(
    vae: VAE, video: Tensor, rng: random.Random
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, and one block given on its own: mostly the clip's end, sometimes its middle."""
    mean, std = (
        torch.tensor(row, device=video.device).view(1, -1, 1, 1, 1)
        for row in (vae.config.latents_mean, vae.config.latents_std)
    )

    def encode(clip: Tensor) -> Tensor:
        with torch.autocast(video.device.type, torch.bfloat16):
            raw = vae.posterior(clip)[0]
        return (raw.float() - mean) / std

    latents = encode(video)
    count, total = video.shape[0], latents.shape[2]
    block = latents.new_zeros(*latents.shape[:2], MAX_GIVEN, *latents.shape[3:])
    length = rng.randint(1, min(MAX_GIVEN, total - 1)) if total > 1 else 0
    start = total - length
    if length and total - length > 1 and rng.random() < 0.25:
        start = rng.randint(1, total - length)
    if length:
        first = 4 * (start - 1) + 1  # the block's first pixel frame
        block[:, :, :length] = encode_given(
            encode, video[:, :, first : first + 4 * length], side="tail"
        )
    ones = torch.ones(count, dtype=torch.int64)
    return latents, block, ones * start, ones * length


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentClips:
    """The encoded clips of one shard, with the scenes that describe them."""

    bucket: Bucket
    scenes: list[Scene]
    latents: Tensor
    block: Tensor
    block_start: Tensor
    block_length: Tensor


def load_latents(folder: Path, shard: int) -> LatentClips:
    """One latent shard, scenes included (mirrored where the clip was)."""
    tensors = load_file(latent_path(folder, shard))
    scenes = [
        mirror(s) if m else s
        for s, m in zip(shard_scenes(shard), tensors.pop("mirrored").tolist(), strict=True)
    ]
    return LatentClips(bucket=shard_bucket(shard), scenes=scenes, **tensors)


def latent_shards(folder: Path) -> list[int]:
    """Numbers of the shards encoded so far."""
    return sorted(int(p.name[:6]) for p in folder.glob("*.safetensors"))


def missing_shards(done: list[int]) -> Iterator[int]:
    """Shard numbers still to make, without end."""
    have, number = set(done), 0
    while True:
        if number not in have:
            yield number
        number += 1


def main() -> None:
    """Render shards for a number of minutes, or encode those that are rendered."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--shards", type=int, default=10**6, help="stop at this many in all")
    parser.add_argument("--encode", type=Path, help="model folder with vae/: encode with it")
    parser.add_argument("--latents", type=Path, help="where latents go; default POOL/latents")
    parser.add_argument("--every", default="0/1", help="k/n: only shards with number % n == k")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.encode is None:
        _render(arguments)
    else:
        _encode(arguments)


def _render(arguments: argparse.Namespace) -> None:
    began, made = time.monotonic(), 0
    for shard in missing_shards(clip_shards(arguments.pool)):
        minutes = (time.monotonic() - began) / 60
        if minutes > arguments.minutes or shard >= arguments.shards:
            break
        render_shard(arguments.pool, shard, device=arguments.device)
        made += SHARD
        rate = made / (time.monotonic() - began)
        sys.stderr.write(f"shard {shard} {shard_bucket(shard).name}: {rate:.2f} clips/s\n")


def _encode(arguments: argparse.Namespace) -> None:
    from sora_cli.weights import load

    out = arguments.latents or arguments.pool / "latents"
    part, parts = map(int, arguments.every.split("/"))
    began, made, device = time.monotonic(), 0, torch.device(arguments.device)
    with load.vae(arguments.encode, device=device, dtype=torch.float32) as vae:
        if device.type == "cpu":
            vae.to_channels_last()
        done = set(latent_shards(out))
        for shard in clip_shards(arguments.pool):
            if shard in done or shard % parts != part:
                continue
            encode_shard(arguments.pool, shard, vae, out, device)
            made += SHARD
            rate = made / (time.monotonic() - began)
            sys.stderr.write(f"shard {shard} {shard_bucket(shard).name}: {rate:.2f} clips/s\n")


if __name__ == "__main__":
    main()
