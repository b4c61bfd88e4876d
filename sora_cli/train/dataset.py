"""Clips for training: which sizes and lengths, rendered once into a pool, encoded once.

A pool is a folder of shards. A clip shard holds the frames of 32 scenes of one bucket; its scenes
are drawn again from its number, so no record is stored. A latent shard holds the same clips and
their mirror images through a frozen VAE, with a block of given latents encoded as at inference.
`python -m sora_cli.train.dataset POOL --minutes M` renders; it resumes where it stopped. With
`--encode MODEL --fresh` it renders and encodes in one and keeps no frames: run beside the
transformer's training, which takes up new shards as they come.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sora_cli.errors import UsageError
from sora_cli.models.vae import VAE
from sora_cli.pipeline.canvas import encode_given
from sora_cli.train.families import FRAME_RATES, MIXTURES
from sora_cli.train.mirror import mirror
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


def world_of(folder: Path) -> str:
    """The name in `families.MIXTURES` of the scenes in a pool or a folder of latents."""
    file = folder / "world"
    return file.read_text().strip() if file.is_file() else "plain"


def claim(folder: Path, world: str) -> None:
    """Say of what world a folder's clips are; one folder holds one world.

    Raises:
        UsageError: it holds another.
    """
    if any(folder.glob("*")) and world_of(folder) != world:
        raise UsageError(
            f"{folder} holds clips of the world {world_of(folder)!r}, not {world!r}",
            hint=f"take another folder, or --world {world_of(folder)}",
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "world").write_text(world + "\n")


def shard_scenes(shard: int, seed: int = 0, world: str = "plain") -> list[Scene]:
    """The scenes of a shard, drawn again."""
    bucket = shard_bucket(shard)
    return [
        draw_scene(
            seed,
            shard * SHARD + i,
            width=bucket.width,
            height=bucket.height,
            num_frames=bucket.num_frames,
            fps=FRAME_RATES.get(world, 8.0),
            mixture=MIXTURES[world],
        )
        for i in range(SHARD)
    ]


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
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.save(file, shard_frames(shard, seed, device, world_of(pool)).numpy())
    os.replace(temporary, path)


def shard_frames(shard: int, seed: int = 0, device: str = "cpu", world: str = "plain") -> Tensor:
    """The frames of a shard, uint8 [32, T, H, W, 3], rendered."""
    return render(shard_scenes(shard, seed, world), device=device)[0].cpu()


def to_video(frames: Tensor) -> Tensor:
    """uint8 [..., T, H, W, 3] → float [..., 3, T, H, W] in [-1, 1]."""
    return (frames.float() / 127.5 - 1).movedim(-1, -4)


def latent_path(folder: Path, shard: int) -> Path:
    """Where the latents of a shard lie."""
    return folder / f"{shard:06d}-{shard_bucket(shard).name}.safetensors"


@torch.no_grad()
def encode_shard(
    frames: Tensor, shard: int, vae: VAE, out: Path, device: torch.device, batch: int = 8
) -> None:
    """Encode a shard's clips [32, T, H, W, 3] and their mirror images, each with its own latents.

    Saves `latents` [64, C, T', H', W'] (the clips, then their mirror images), `block`
    [64, C, ≤3, H', W'] (given latents encoded on their own, as `encode_given` does for a tail),
    `block_start` and `block_length` [64], all in normalised latent units, half precision.
    """
    frames = torch.cat((frames, frames.flip(3)))
    rng = random.Random(f"encode/{shard}")
    rows: dict[str, list[Tensor]] = {"latents": [], "block": [], "start": [], "length": []}
    for first in range(0, len(frames), batch):
        video = to_video(frames[first : first + batch]).to(device)
        for name, value in zip(rows, _encode_with_block(vae, video, rng), strict=True):
            rows[name].append(value.cpu())
    out.mkdir(parents=True, exist_ok=True)
    path = latent_path(out, shard)
    tensors = {
        "latents": torch.cat(rows["latents"]).half().contiguous(),
        "block": torch.cat(rows["block"]).half().contiguous(),
        "block_start": torch.cat(rows["start"]), "block_length": torch.cat(rows["length"]),
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
    """One latent shard with its scenes: those drawn, then their mirror images."""
    scenes = shard_scenes(shard, world=world_of(folder))
    return LatentClips(
        bucket=shard_bucket(shard),
        scenes=scenes + [mirror(scene) for scene in scenes],
        **load_file(latent_path(folder, shard)),
    )


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
    """Render shards for a number of minutes, encode those that are rendered, or both at once."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--shards", type=int, default=10**6, help="stop at this many in all")
    parser.add_argument("--encode", type=Path, help="model folder with vae/: encode with it")
    parser.add_argument("--fresh", action="store_true", help="encode new clips; keep no frames")
    parser.add_argument("--world", choices=MIXTURES, default="plain", help="what is drawn")
    parser.add_argument("--latents", type=Path, help="where latents go; default POOL/latents")
    parser.add_argument("--every", default="0/1", help="k/n: only shards with number %% n == k")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.encode is None:
        _render(arguments)
    else:
        _encode(arguments)


def _wanted(arguments: argparse.Namespace, numbers: Iterable[int]) -> Iterator[int]:
    """Those of the shards that this process makes, until its time is over; says how fast."""
    part, parts = map(int, arguments.every.split("/"))
    began, made = time.monotonic(), 0
    for shard in numbers:
        if time.monotonic() - began > 60 * arguments.minutes or shard >= arguments.shards:
            return
        if shard % parts != part:
            continue
        yield shard
        made += SHARD
        rate = made / (time.monotonic() - began)
        sys.stderr.write(f"shard {shard} {shard_bucket(shard).name}: {rate:.2f} clips/s\n")


def _render(arguments: argparse.Namespace) -> None:
    claim(arguments.pool, arguments.world)
    for shard in _wanted(arguments, missing_shards(clip_shards(arguments.pool))):
        render_shard(arguments.pool, shard, device=arguments.device)


def _encode(arguments: argparse.Namespace) -> None:
    from sora_cli.weights import load

    out, device = arguments.latents or arguments.pool / "latents", torch.device(arguments.device)
    world = arguments.world if arguments.fresh else world_of(arguments.pool)
    claim(out, world)
    done = latent_shards(out)
    numbers: Iterable[int] = missing_shards(done)
    if not arguments.fresh:
        numbers = [n for n in clip_shards(arguments.pool) if n not in set(done)]
    with load.vae(arguments.encode, device=device, dtype=torch.float32) as vae:
        if device.type == "cpu":
            vae.to_channels_last()
        for shard in _wanted(arguments, numbers):
            if arguments.fresh:
                frames = shard_frames(shard, device=arguments.device, world=world)
            else:
                frames = torch.from_numpy(np.load(clip_path(arguments.pool, shard)))
            encode_shard(frames, shard, vae, out, device)


if __name__ == "__main__":
    main()
