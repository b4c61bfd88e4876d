"""Train the captioner: a picture or a clip in, the dense caption of what it shows out.

`python -m sora_cli.train.captioner POOL OUT --minutes 35` trains convolutional eyes and a small
causal LM together from nothing, by the next token of captions worded anew each time (captions.py),
on the clips of POOL (dataset.py) and their mirror images, softened as generated clips are. It
resumes from OUT/captioner-run/checkpoint.pt and writes OUT/captioner/. `--check N` measures it.
B clips, T frames, L tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from torch.nn import functional

from sora_cli.models.captioner import (
    CLIP,
    PICTURE,
    WEIGHTS,
    Captioner,
    EyesConfig,
    looked_at,
    prepare,
)
from sora_cli.train import stories
from sora_cli.train.captions import attributes, dense, read, vocabulary
from sora_cli.train.dataset import (
    BUCKETS,
    SHARD,
    Bucket,
    clip_path,
    clip_shards,
    shard_bucket,
    shard_scenes,
    world_of,
)
from sora_cli.train.families import MIXTURES
from sora_cli.train.loop import (
    Ema,
    Muon,
    Run,
    learning_rate,
    load_checkpoint,
    run_recipe,
    save_checkpoint,
)
from sora_cli.train.mirror import mirror
from sora_cli.train.render import render
from sora_cli.train.student import ANSWERS, END, MAX_TOKENS, SPECIALS, VOCAB_SIZE, Student
from sora_cli.train.tokenizer import PAD, UNKNOWN, build, save
from sora_cli.train.world import Scene, draw_scene

CAPTIONS_FOR_WORDS = 6000
BATCH, GROUPS = 8, 4  # clips in a step, from so many shards of one bucket
DEFAULT_SHARE = 0.4  # of the batches: the default size and length; the rest as they are rendered
PEAK_RATE, LABELS_WEIGHT = 2e-3, 1.0
FIRST_SHARE = 0.1  # of the batches: the first frames of clips, as pictures to animate are seen
WIDE_SHARE = 0.5  # of a batch's groups: of the wide world, a quarter of which is plain
LESSON_SEED = 8_000_000  # of scenes rendered here: the training split, other numbers
# A low temperature leaves open how a thing is said, which is near uniform, but not what is.
GENERATION = {"do_sample": True, "temperature": 0.3, "top_k": 0, "top_p": 1.0}


def caption_tokenizer() -> Tokenizer:
    """A byte-fallback BPE over the captions, cased; about one token for each word."""

    def texts() -> Iterator[str]:
        rng = random.Random("captioner")
        for index in range(CAPTIONS_FOR_WORDS):
            frames = 1 if index % 10 == 0 else 25
            scene = draw_scene(1, index, width=160, height=96, num_frames=frames)
            yield dense(scene, rng).text
        for _ in range(60):
            yield from sorted(vocabulary())

    tokenizer = build(texts(), SPECIALS, VOCAB_SIZE, lowercase=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    return tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """A batch: prepared clips, their captions, and what is true of them."""

    video: Tensor  # [B, T, 3, H, W] in ±1, prepared and some softened
    input_ids: Tensor  # [B, L] <clip> or <picture>, then the caption
    targets: Tensor  # [B, L] the caption, then <end>; -100 is not learned
    answers: dict[str, Tensor]  # [B] by attribute, -100 where there is none


class Lessons:
    """Batches without end: from pools of rendered clips, or rendered as they are needed.

    pools: of the plain world and of the wide one, as far as there are any.
    """

    def __init__(
        self, pools: tuple[Path, ...], tokenizer: Tokenizer, seed: int, batch: int
    ) -> None:
        self.tokenizer, self.batch = tokenizer, batch
        self.rng = random.Random(f"captioner/{seed}")
        self.scenes: dict[tuple[Path, int], list[Scene]] = {}
        self.shards: dict[str, dict[str, list[tuple[Path, int]]]] = {}  # by world and bucket
        for pool in pools:
            rows = self.shards.setdefault(world_of(pool), {})
            for shard in clip_shards(pool):
                rows.setdefault(shard_bucket(shard).name, []).append((pool, shard))

    def draw(self) -> Lesson:
        """The next batch."""
        known = {name for rows in self.shards.values() for name in rows}
        buckets = [b for b in BUCKETS if not self.shards or b.name in known]
        default = [b for b in buckets if b.name == "160x96x25"]
        bucket = self.rng.choices(buckets, [b.share for b in buckets])[0]
        if default and self.rng.random() < DEFAULT_SHARE:
            bucket = default[0]
        first = self.rng.random() < FIRST_SHARE
        groups = min(GROUPS, self.batch)
        clips = [self._clips(bucket, self.batch // groups, first) for _ in range(groups)]
        scenes = [scene for _, rows in clips for scene in rows]
        order = self.rng.sample(range(len(scenes)), len(scenes))
        frames = torch.cat([frames for frames, _ in clips])[order]
        return self._lesson(frames, [scenes[i] for i in order])

    def _clips(self, bucket: Bucket, count: int, first: bool) -> tuple[Tensor, list[Scene]]:
        """Looked-at frames uint8 [count, T, H, W, 3] and their scenes; `first`: as pictures."""
        rows = {w: found[bucket.name] for w, found in self.shards.items() if bucket.name in found}
        # What happens in a story cannot be told from its beginning.
        first = first and (not rows or "plain" in rows)
        world = "wide" if not first and self.rng.random() < WIDE_SHARE else "plain"
        chosen = looked_at(1 if first else bucket.num_frames, EyesConfig().frames)
        if rows:
            pool, shard = self.rng.choice(rows.get(world) or next(iter(rows.values())))
            world = world_of(pool)
            if (pool, shard) not in self.scenes:
                self.scenes[pool, shard] = shard_scenes(shard, world=world)
            stored = np.load(clip_path(pool, shard), mmap_mode="r")
            numbers = self.rng.sample(range(SHARD), count)
            scenes = [self.scenes[pool, shard][i] for i in numbers]
            frames = torch.from_numpy(np.stack([stored[i][chosen] for i in numbers]))
        else:
            scenes = [
                draw_scene(
                    LESSON_SEED, self.rng.randrange(10**9), width=bucket.width,
                    height=bucket.height, num_frames=bucket.num_frames, mixture=MIXTURES[world],
                )
                for _ in range(count)
            ]  # fmt: skip
            frames = render(scenes)[0][:, chosen]
        if first:
            scenes = [replace(scene, num_frames=1) for scene in scenes]
        if self.rng.random() < 0.5:
            return frames.flip(3), [mirror(scene) for scene in scenes]
        return frames, scenes

    def _lesson(self, frames: Tensor, scenes: list[Scene]) -> Lesson:
        rows = [self.tokenizer.encode(dense(scene, self.rng).text).ids for scene in scenes]
        longest = max(map(len, rows)) + 1
        input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        targets = torch.full_like(input_ids, -100)
        for number, (row, scene) in enumerate(zip(rows, scenes, strict=True)):
            mark = PICTURE if scene.num_frames == 1 else CLIP
            input_ids[number, : len(row) + 1] = torch.tensor([SPECIALS.index(mark), *row])
            targets[number, : len(row) + 1] = torch.tensor([*row, SPECIALS.index(END)])
        return Lesson(
            video=soften(prepare(frames, EyesConfig())), input_ids=input_ids, targets=targets,
            answers=_answers(scenes),
        )  # fmt: skip


def _answers(scenes: list[Scene]) -> dict[str, Tensor]:
    tables = [attributes(scene) for scene in scenes]
    for table, scene in zip(tables, scenes, strict=True):
        if scene.num_frames == 1:  # what one picture cannot show
            for name in ("camera", "motion0", "motion1"):
                table.pop(name, None)
    return {
        name: torch.tensor(
            [values.index(t[name]) if t.get(name) in values else -100 for t in tables]
        )
        for name, values in ANSWERS.items()
    }


def soften(video: Tensor) -> Tensor:
    """Make clips look decoded: [B, T, 3, H, W] less sharp, smeared in time, tinted, grainy.

    Each clip gets its own strengths; the first half (batches are in no order) stay sharp.
    """
    sharp, video = video.split((len(video) // 2, len(video) - len(video) // 2))
    batch, _, _, height, width = video.shape
    strength = torch.rand(4, batch, 1, 1, 1, 1)
    small = functional.avg_pool2d(video.flatten(0, 1), int(torch.randint(2, 4, ())))
    soft = functional.interpolate(small, size=(height, width), mode="bilinear").view_as(video)
    video = torch.lerp(video, soft, 0.9 * strength[0])
    video[:, 1:].lerp_(video[:, :-1].clone(), 0.2 * strength[1])
    gain = 1 + 0.05 * torch.randn(batch, 1, 1, 1, 1)
    tint = 0.03 * strength[2] * torch.randn(batch, 1, 3, 1, 1)
    grain = torch.randn(video.shape[1:])[None]  # one for the batch: quick
    return torch.cat((sharp, video.mul_(gain).add_(tint).addcmul_(grain, 0.05 * strength[3])))


def losses(student: Student, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the captions' tokens; and of the attributes, for the eyes."""
    hidden, logits = student(lesson.video, lesson.input_ids)
    learned = lesson.targets != -100
    words = student.language_model.lm_head(hidden[learned]).float()  # [tokens, vocabulary]
    told = functional.cross_entropy(words, lesson.targets[learned])
    seen = torch.zeros(())
    for name, answers in lesson.answers.items():
        known = answers != -100
        if known.any():
            seen = seen + functional.cross_entropy(logits[name][known].float(), answers[known])
    return told, seen


def train(arguments: argparse.Namespace) -> None:
    """The recipe, top to bottom."""
    run = Run(folder=arguments.out / "captioner-run", minutes=arguments.minutes)
    path = run.folder / "checkpoint.pt"
    tokenizer = _tokenizer(run.folder / "tokenizer.json")
    student = Student(arguments.seed).train()
    ema = Ema(student)
    optimizers = _optimizers(student)
    if state := load_checkpoint(path):
        student.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        ema.shadow = state["ema"]
        run.restore(state["run"])

    def checkpoint() -> None:
        state = {"model": student.state_dict(), "ema": ema.state(), "run": run.state()}
        kept = [optimizer.state_dict() for optimizer in optimizers]
        save_checkpoint(path, state | {"optimizers": kept})

    pools = tuple(pool for pool in (arguments.pool, arguments.wide_pool) if pool)
    lessons = Lessons(pools, tokenizer, arguments.seed + run.steps, arguments.batch)
    saved = run.elapsed
    while (progress := max(run.progress, run.steps / arguments.steps)) < 1:
        lesson = lessons.draw()
        rate = learning_rate(progress, PEAK_RATE, run.steps, warmup=60)
        with torch.autocast("cpu", torch.bfloat16):
            told, seen = losses(student, lesson)
        student.zero_grad(set_to_none=True)
        (told + LABELS_WEIGHT * seen / len(ANSWERS)).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        ema.update(run.steps)
        run.count(len(lesson.video), told=float(told.detach()), seen=float(seen.detach()))
        if run.elapsed - saved > 60:
            saved = run.elapsed
            checkpoint()
    checkpoint()
    student.load_state_dict(ema.state())
    folder = arguments.out / "captioner"
    write(folder, student, tokenizer)
    if arguments.check:
        run.log(**check(folder, arguments.check))


def _optimizers(student: Student) -> list[torch.optim.Optimizer]:
    """Muon for matrices and convolution kernels, AdamW for embeddings, norms and heads."""
    inside = ("eyes.", "language_model.model.layers.")
    matrices = [p for n, p in student.named_parameters() if n.startswith(inside) and p.ndim > 1]
    chosen = {id(p) for p in matrices}
    others = [p for p in student.parameters() if id(p) not in chosen]
    return [
        Muon(matrices),
        torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that this run began with: an embedding means nothing without it."""
    if not path.exists():
        caption_tokenizer().save(str(path))
    return Tokenizer.from_file(str(path))


def write(folder: Path, student: Student, tokenizer: Tokenizer) -> None:
    """The folder that models/captioner.py reads, in half precision."""
    from safetensors.torch import save_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, eyes = student.language_model, student.eyes
    model.generation_config.update(**GENERATION)
    model.half().save_pretrained(folder)
    table = json.loads((folder / "config.json").read_text())
    table["vision_config"] = eyes.config.to_json()
    (folder / "config.json").write_text(json.dumps(table, indent=2) + "\n")
    state = {k: v.half() if v.is_floating_point() else v for k, v in eyes.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes them for the owner alone
    save(tokenizer, folder, pad_token=PAD, eos_token=END, unk_token=UNKNOWN,
         model_max_length=MAX_TOKENS, extra_special_tokens=[PICTURE, CLIP])  # fmt: skip
    words = sorted(vocabulary() | stories.vocabulary())
    (folder / "known_words.txt").write_text("\n".join(words) + "\n")


def check(folder: Path, count: int, split: str = "development") -> dict[str, Any]:
    """Share of attributes that captions of scenes never trained name rightly, by attribute."""
    tallies: dict[str, list[bool]] = {}
    began = time.monotonic()
    with Captioner(folder) as captioner:
        for index in range(count):
            bucket = BUCKETS[index % len(BUCKETS)]
            scene = draw_scene(
                0, index, width=bucket.width, height=bucket.height, num_frames=bucket.num_frames,
                split=split,
            )  # fmt: skip
            frames = render([scene])[0][0].numpy()
            chosen = sorted(set(looked_at(len(frames), EyesConfig().frames)))
            said = read(captioner.describe(list(frames[chosen]), seed=index))
            for name in dense(scene, random.Random(0)).named:
                right = said.get(name) == attributes(scene)[name]
                tallies.setdefault(name.rstrip("01"), []).append(right)
                tallies.setdefault("all", []).append(right)
    table = {f"right_{name}": sum(rows) / len(rows) for name, rows in tallies.items()}
    return table | {"seconds_each": (time.monotonic() - began) / max(count, 1), "clips": count}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pool", type=Path, nargs="?", help="rendered clips; else they are rendered")
    parser.add_argument("out", type=Path)
    parser.add_argument("--wide-pool", type=Path, default=None, help="clips of the wide world")
    parser.add_argument("--minutes", type=float, default=35.0)
    parser.add_argument("--steps", type=int, default=10**9, help="end after this many steps")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--check", type=int, default=200, help="development scenes to measure")
    parser.add_argument("--seed", type=int, default=0)
    run_recipe(parser, train)


if __name__ == "__main__":
    main()
