"""How the judge is trained: on renders of the training split, softened as generated clips are, and
on some of the held-out pairings: it is to read what a generator that never saw them has made.

The judge is never a loss for the generator and never chooses a checkpoint. It is trained by
whoever runs the report card, kept in the user's cache, and trained anew when the world changes.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sora_cli.errors import WeightsError
from sora_cli.eval import judge as judge_module
from sora_cli.eval.judge import CELL, Judge, Opinion, cell_centres, looked_at, prepare
from sora_cli.eval.sources import fingerprint
from sora_cli.eval.truth import UNKNOWN, labels, paths
from sora_cli.runtime.paths import cache_dir
from sora_cli.train.dataset import (
    BUCKETS,
    SHARD,
    Bucket,
    claim,
    clip_path,
    clip_shards,
    shard_bucket,
    shard_scenes,
)
from sora_cli.train.loop import Ema, Run, learning_rate, load_checkpoint, save_checkpoint
from sora_cli.train.mirror import mirror
from sora_cli.train.render import render
from sora_cli.train.world import Scene, draw_scene

DEFAULT_SHARE = 0.6  # of the batches: the default size and length; the rest as in training
BATCH, PEAK_RATE, PLACES_WEIGHT = 24, 2.5e-3, 0.5
JUDGE_MINUTES = 30.0  # of one core, with a pool of clips; without one it renders most of them
LESSON_SEED = 7_000_000  # of scenes rendered here: other numbers than any that is judged
HELD_OUT_SHARE, HELD_OUT_KEPT = 0.15, 32  # of what is shown; renders of each bucket, in sixes


def _specimens() -> list[Scene]:
    """Some of the scenes that the judge learns from, small: one for each floor and then some."""
    return [
        draw_scene(LESSON_SEED, i, split=split, width=96, height=64, num_frames=5)
        for split, number in (("training", 12), ("held-out", 4))
        for i in range(number)
    ]


def source_key() -> str:
    """A hash of the judge's code and of what is true of the scenes that it learns from.

    How the scenes look is compared apart (`look`): a renderer that draws the same pictures in
    another way leaves a judge as good as it was.
    """
    frames = looked_at(5)
    truths = [(labels(s), paths(s, frames).mul(1000).nan_to_num(-1).int().tolist())
              for s in _specimens()]  # fmt: skip
    code = fingerprint([Path(inspect.getfile(judge_module))])
    return hashlib.sha256(f"{code} {truths}".encode()).hexdigest()[:16]


def look() -> Tensor:
    """What the judge's world looks like: uint8 [16, 5, 64, 96, 3]."""
    return torch.cat([render([scene])[0] for scene in _specimens()])


def _same_look(kept: Tensor | None) -> bool:
    """Whether the world looks as it did, but for the last digit and a few pixels of edges."""
    if kept is None:
        return False
    difference = (look().int() - kept.int()).abs()
    return float((difference > 1).float().mean()) < 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """A batch: prepared clips and what is true of them."""

    video: Tensor  # [B, FRAMES, 3, H, W] in ±1
    answers: dict[str, Tensor]  # [B, SLOTS] or [B, 1] class numbers
    places: Tensor  # [B, FRAMES, SLOTS, 2], NaN where nothing is seen


def lesson(frames: Tensor, scenes: list[Scene]) -> Lesson:
    """uint8 [B, T, H, W, 3] and their scenes → Lesson"""
    rows = [labels(scene) for scene in scenes]
    chosen = looked_at(frames.shape[1])
    return Lesson(
        video=prepare(frames),
        answers={name: torch.tensor([row[name] for row in rows]) for name in rows[0]},
        places=torch.stack([paths(scene, chosen) for scene in scenes]),
    )


class Lessons:
    """Batches without end: from a pool of rendered clips, or rendered as they are needed."""

    def __init__(self, pool: Path | None, seed: int, device: str = "cpu") -> None:
        self.pool, self.rng, self.device = pool, random.Random(f"lessons/{seed}"), device
        self.scenes: dict[int, list[Scene]] = {}
        self.shards: dict[str, list[int]] = {}
        self.held_out: dict[str, list[tuple[Tensor, list[Scene]]]] = {}
        self.drawn, self.number = 0, 0
        if pool is not None:
            claim(pool, "plain")  # the only one that it has answers for

    def draw(self) -> Lesson:
        """The next batch."""
        if self.pool is not None and self.drawn % 100 == 0:
            self.shards = {}
            for shard in clip_shards(self.pool):
                self.shards.setdefault(shard_bucket(shard).name, []).append(shard)
        self.drawn += 1
        buckets = [b for b in BUCKETS if self.pool is None or b.name in self.shards]
        default = [b for b in buckets if b.name == "160x96x25"]
        if default and self.rng.random() < DEFAULT_SHARE:
            bucket = default[0]
        else:
            bucket = self.rng.choices(buckets, [b.share for b in buckets])[0]
        clips = [self._some(bucket) for _ in range(4)]
        frames = torch.cat([clip[0] for clip in clips])
        return lesson(frames, [scene for clip in clips for scene in clip[1]])

    def _some(self, bucket: Bucket) -> tuple[Tensor, list[Scene]]:
        """A quarter of a batch."""
        if self.rng.random() < HELD_OUT_SHARE:
            kept = self.held_out.setdefault(bucket.name, [])
            if len(kept) < HELD_OUT_KEPT:
                kept.append(self._rendered(bucket, "held-out"))
            return self._maybe_mirrored(*self.rng.choice(kept))
        if self.pool is not None:
            return self._from_pool(bucket)
        return self._maybe_mirrored(*self._rendered(bucket, "training"))

    def _from_pool(self, bucket: Bucket) -> tuple[Tensor, list[Scene]]:
        assert self.pool is not None
        shard = self.rng.choice(self.shards[bucket.name])
        if shard not in self.scenes:
            self.scenes[shard] = shard_scenes(shard)
        stored = np.load(clip_path(self.pool, shard), mmap_mode="r")
        chosen = self.rng.sample(range(SHARD), BATCH // 4)
        frames = torch.from_numpy(np.stack([stored[i] for i in chosen]))
        return self._maybe_mirrored(frames, [self.scenes[shard][i] for i in chosen])

    def _rendered(self, bucket: Bucket, split: str) -> tuple[Tensor, list[Scene]]:
        first, self.number = self.number, self.number + BATCH // 4
        scenes = [
            draw_scene(
                LESSON_SEED, index, split=split, width=bucket.width, height=bucket.height,
                num_frames=bucket.num_frames,
            )
            for index in range(first, self.number)
        ]  # fmt: skip
        return render(scenes, device=self.device)[0], scenes

    def _maybe_mirrored(self, frames: Tensor, scenes: list[Scene]) -> tuple[Tensor, list[Scene]]:
        if self.rng.random() < 0.5:
            return frames, scenes
        return frames.flip(3), [mirror(scene) for scene in scenes]


def soften(video: Tensor) -> Tensor:
    """Make clips look generated: [B, T, 3, H, W] less sharp, blocky, smeared in time, tinted.

    Each clip gets its own strengths; a third of them stay sharp.
    """
    batch, _, _, height, width = video.shape
    strength = (torch.rand(4, batch, 1, 1, 1, 1, device=video.device) - 0.35).clamp_min(0) / 0.65
    factor = int(torch.randint(2, 5, ()))
    small = functional.avg_pool2d(video.flatten(0, 1), factor)
    mode = "nearest" if factor == 4 else "bilinear"  # blocks as of a coarse latent, or a blur
    soft = functional.interpolate(small, size=(height, width), mode=mode).view_as(video)
    video = torch.lerp(video, soft, strength[0] * (0.5 if factor == 4 else 0.95))
    video[:, 1:].lerp_(video[:, :-1].clone(), 0.2 * strength[1])
    gain = 1 + 0.05 * torch.randn(batch, 1, 1, 1, 1, device=video.device)
    tint = 0.03 * strength[2] * torch.randn(batch, 1, 3, 1, 1, device=video.device)
    grain = torch.randn(video.shape[1:], device=video.device)[None]  # one for the batch: quick
    return video.mul_(gain).add_(tint).addcmul_(grain, 0.06 * strength[3]).clamp_(-1.1, 1.1)


def judge_loss(opinion: Opinion, batch: Lesson, shape: tuple[int, int]) -> tuple[Tensor, float]:
    """Cross-entropy of all answers and of the attention maps; and the share of right answers."""
    loss, right, total = torch.zeros(()), 0.0, 0
    for name, logits in opinion.logits.items():
        answers = batch.answers[name].to(logits.device)
        known = answers != UNKNOWN
        if not known.any():
            continue
        loss = loss + functional.cross_entropy(logits[known], answers[known], label_smoothing=0.02)
        right += float((logits[known].argmax(1) == answers[known]).sum())
        total += int(known.sum())
    height, width = shape
    centres = cell_centres(height, width, opinion.attention.device).flatten(1).T  # [h·w, 2]
    cells = torch.tensor((width, height), device=centres.device)
    seen = ~batch.places[..., 0].isnan()
    offset = (centres - batch.places.to(centres.device)[seen][:, None]) * cells  # [n, h·w, 2]
    target = torch.softmax(-offset.square().sum(2) / 1.3, 1)  # a blob of about a cell
    places = -(target * opinion.attention[seen]).sum(1).mean()
    return loss + PLACES_WEIGHT * places, right / max(total, 1)


def train_judge(
    path: Path, *, minutes: float, pool: Path | None, device: str = "cpu", seed: int = 0
) -> Judge:
    """Train for a time box, going on from `path` where it holds an unfinished judge."""
    torch.manual_seed(seed)
    judge = Judge().to(device)
    run, ema = Run(folder=path.parent, minutes=minutes), Ema(judge)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.02)
    state = load_checkpoint(path)
    if state is not None:
        judge.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.shadow = state["ema"]
        run.restore(state["run"])
    lessons = Lessons(pool, seed + run.steps, device)

    def save(finished: bool) -> None:
        save_checkpoint(path, {
            "model": judge.state_dict(), "ema": ema.state(), "optimizer": optimizer.state_dict(),
            "run": run.state(), "source": source_key(), "look": look(), "finished": finished,
        })  # fmt: skip

    saved = run.elapsed
    while run.progress < 1:
        batch = lessons.draw()
        video = soften(batch.video.to(device))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.progress, PEAK_RATE, run.steps, warmup=60)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            opinion = judge(video)
        shape = (video.shape[3] // CELL, video.shape[4] // CELL)
        loss, right = judge_loss(opinion, batch, shape)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 2.0)
        optimizer.step()
        ema.update(run.steps)
        run.count(len(video), judge_loss=float(loss.detach()), right=right)
        if run.elapsed - saved > 60:
            saved = run.elapsed
            save(finished=False)
    save(finished=True)
    return judge


def judge_options(parser: argparse.ArgumentParser) -> None:
    """What every program that asks the judge lets its user say of it."""
    parser.add_argument("--judge", type=Path, default=None, help="its file; trained where missing")
    parser.add_argument(
        "--judge-minutes", type=float, default=JUDGE_MINUTES, help="to train the judge"
    )


def obtain_judge(
    path: Path | None, *, minutes: float, pool: Path | None, device: str = "cpu",
    say: Callable[[str], object] = sys.stderr.write,
) -> Judge:  # fmt: skip
    """The judge kept at `path` (default: the user's cache), trained first where there is none.

    Raises:
        WeightsError: `path` holds a judge of another world or another network.
    """
    key = source_key()
    where = path or cache_dir() / "eval" / f"judge-{key}.pt"
    state = load_checkpoint(where)
    if state is not None and (state["source"] != key or not _same_look(state.get("look"))):
        raise WeightsError(
            f"{where} was trained on another version of the world or the judge",
            hint=f"delete it, or train another one: --judge {where.with_stem(where.stem + '-new')}",
        )
    if state is None or not state["finished"]:
        say(f"training the judge: {minutes:g} minutes, kept at {where}\n")
        where.parent.mkdir(parents=True, exist_ok=True)
        train_judge(where, minutes=minutes, pool=pool, device=device)
        state = load_checkpoint(where)
    assert state is not None
    judge = Judge()
    judge.load_state_dict(state["ema"])
    return judge.to(device).eval()
