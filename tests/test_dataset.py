"""The pool: rendered once, drawn again from its numbers, encoded as inference encodes."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from sora_cli.errors import UsageError
from sora_cli.models.vae import VAE, VAEConfig
from sora_cli.pipeline.canvas import encode_given
from sora_cli.train import dataset
from sora_cli.train.dataset import Bucket
from sora_cli.train.export import save_vae
from sora_cli.train.mirror import mirror
from sora_cli.train.render import render

SMALL_VAE = VAEConfig(
    z_dim=4, encoder_dim=8, decoder_dim=8, dim_mult=(1, 1, 1), temporal_downsample=(True, True),
    residual=True, patch_size=2, num_res_blocks=1, latents_mean=(0.1,) * 4, latents_std=(0.5,) * 4,
)  # fmt: skip


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four clips a shard, in two buckets of little pictures."""
    monkeypatch.setattr(dataset, "SHARD", 4)
    buckets = (
        Bucket(width=48, height=32, num_frames=9, share=0.5),
        Bucket(width=32, height=32, num_frames=1, share=0.5),
    )
    monkeypatch.setattr(dataset, "BUCKETS", buckets)


def shard_of(num_frames: int) -> int:
    """The first shard of the bucket with clips of this length."""
    return next(n for n in range(50) if dataset.shard_bucket(n).num_frames == num_frames)


def test_buckets_are_sizes_that_the_model_knows() -> None:
    assert sum(b.share for b in dataset.BUCKETS) == pytest.approx(1)
    for bucket in dataset.BUCKETS:
        assert bucket.width % 16 == bucket.height % 16 == 0 and bucket.num_frames % 4 == 1
        assert min(bucket.width, bucket.height) >= 64 and max(bucket.width, bucket.height) <= 192
    names = [dataset.shard_bucket(n).name for n in range(2000)]
    for bucket in dataset.BUCKETS:
        assert names.count(bucket.name) / 2000 == pytest.approx(bucket.share, abs=0.03)


def test_a_shard_is_the_clips_of_its_scenes(small_shards: None, tmp_path: Path) -> None:
    shard = shard_of(9)
    dataset.render_shard(tmp_path, shard)
    frames = np.load(dataset.clip_path(tmp_path, shard))
    assert frames.shape == (4, 9, 32, 48, 3) and frames.dtype == np.uint8
    scenes = dataset.shard_scenes(shard)
    assert scenes == dataset.shard_scenes(shard) and len(scenes) == 4
    assert np.array_equal(frames[2], render([scenes[2]])[0][0].numpy())
    assert dataset.clip_shards(tmp_path) == [shard]
    assert not list(tmp_path.rglob("*.tmp"))


def test_missing_shards_skip_what_is_there() -> None:
    assert list(islice(dataset.missing_shards([0, 2, 3]), 3)) == [1, 4, 5]


def test_the_program_renders_and_goes_on(
    small_shards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = str(torch.get_num_threads())
    for shards, expected in (("1", [0]), ("2", [0, 1])):
        arguments = ["dataset", str(tmp_path), "--shards", shards, "--threads", threads]
        monkeypatch.setattr(sys, "argv", arguments)
        dataset.main()
        assert dataset.clip_shards(tmp_path) == expected


def test_latents_are_those_of_the_clips(small_shards: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = VAE(SMALL_VAE).eval()
    shard = shard_of(9)
    dataset.render_shard(tmp_path, shard)
    frames = torch.from_numpy(np.load(dataset.clip_path(tmp_path, shard)))
    dataset.encode_shard(frames, shard, vae, tmp_path / "latents", torch.device("cpu"), batch=2)
    clips = dataset.load_latents(tmp_path / "latents", shard)
    assert dataset.latent_shards(tmp_path / "latents") == [shard]
    straight = dataset.shard_scenes(shard)
    assert clips.scenes == straight + [mirror(scene) for scene in straight]
    assert clips.latents.shape[:2] == (8, 4) and clips.latents.dtype == torch.float16
    for number, clip in enumerate(torch.cat((frames, frames.flip(3)))):
        latents = vae.encode(dataset.to_video(clip)[None])[0]
        # Encoded in bfloat16, kept in half precision.
        assert (clips.latents[number].float() - latents).abs().mean() < 0.03
        assert clips.latents.shape[2] == (9 - 1) // 4 + 1


def test_given_blocks_are_encoded_as_a_tail(small_shards: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae, shard = VAE(SMALL_VAE).eval(), shard_of(9)
    frames = dataset.shard_frames(shard)
    dataset.encode_shard(frames, shard, vae, tmp_path / "latents", torch.device("cpu"))
    clips = dataset.load_latents(tmp_path / "latents", shard)
    for number, clip in enumerate(torch.cat((frames, frames.flip(3)))):
        start, length = int(clips.block_start[number]), int(clips.block_length[number])
        assert 1 <= length <= dataset.MAX_GIVEN and start + length <= clips.latents.shape[2]
        first = 4 * (start - 1) + 1
        given = dataset.to_video(clip[first : first + 4 * length])[None]
        with torch.no_grad():
            expected = encode_given(vae.encode, given, "tail")[0]  # [C, length, H, W]
        assert (clips.block[number, :, :length].float() - expected).abs().mean() < 0.03
        assert not clips.block[number, :, length:].any()


def test_pictures_have_no_block(small_shards: None, tmp_path: Path) -> None:
    vae, shard = VAE(SMALL_VAE).eval(), shard_of(1)
    frames = dataset.shard_frames(shard)
    dataset.encode_shard(frames, shard, vae, tmp_path / "latents", torch.device("cpu"))
    clips = dataset.load_latents(tmp_path / "latents", shard)
    assert clips.latents.shape[2] == 1 and not clips.block_length.any()


def test_latents_of_the_wide_world_know_their_scenes(
    small_shards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--fresh` renders and encodes in one; what was drawn is written beside, never mixed."""
    save_vae(tmp_path / "model" / "vae", VAE(SMALL_VAE).eval())
    words = f"--fresh --world wide --shards 3 --every 1/2 --threads {torch.get_num_threads()}"
    folders = [str(tmp_path / "pool"), "--encode", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", ["dataset", *folders, *words.split()])
    dataset.main()
    latents = tmp_path / "pool" / "latents"
    assert dataset.latent_shards(latents) == [1] and not dataset.clip_shards(tmp_path / "pool")
    assert dataset.load_latents(latents, 1).scenes[:4] == dataset.shard_scenes(1, world="wide")
    assert dataset.shard_scenes(1, world="wide") != dataset.shard_scenes(1)
    with pytest.raises(UsageError, match="wide"):
        dataset.claim(latents, "plain")
