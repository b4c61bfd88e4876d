"""A small transformer trained from nothing by some recipe: what studies and ablations compare.

Arms of one comparison see the same clips in the same batches with the same noises and first
weights; a `Recipe` or the captions are what differs. N clips; B clips of a step.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sora_cli.errors import UsageError
from sora_cli.eval.lessons import judge_options
from sora_cli.eval.recaptioning import Development
from sora_cli.models.text_encoder import Tokenizer
from sora_cli.train.dataset import latent_shards, load_latents, shard_bucket
from sora_cli.train.dit import (
    DROP_PROMPT,
    READ_EVERY,
    TINY_DIT,
    Batch,
    Captioned,
    draw_sigmas,
    learn_to_read,
    losses,
    make_optimizers,
    read_beside,
)
from sora_cli.train.export import save_dit, save_text_encoder
from sora_cli.train.loop import Ema, Run, learning_rate, load_checkpoint, save_checkpoint
from sora_cli.train.world import Scene

NARROW = replace(TINY_DIT, num_layers=4, hidden_size=192, num_heads=3, ffn_dim=768)
BATCH, PEAK_RATE = 32, 2e-3
POINTS = 10  # of the curve of development losses
LOSS_CLIPS = 64  # that these are taken on


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Choices of a training, each of which can be taken back alone.

    muon: for the matrices; else AdamW at a quarter of the rate for all. averaged: the weights at
    the end are the running average's. levels: noise levels [B] of B clips of so many tokens.
    drop: share of prompts left out. given: share of clips whose first latent is given. read: steps
    in which the text encoder learns to read alone, before; it goes on beside. square: of each clip
    a square crop is seen, somewhere along its longer side.
    """

    muon: bool = True
    averaged: bool = True
    levels: Callable[[int, int], Tensor] = draw_sigmas
    drop: float = DROP_PROMPT
    given: float = 0.0
    read: int = 0
    square: bool = False


def comparison_parser(
    program: str, says: str | None, page: str, arms: Sequence[str], *, steps: int, samples: int
) -> argparse.ArgumentParser:
    """The command line of a program that trains arms and writes docs/reference/`page`.md."""
    parser = argparse.ArgumentParser(prog=f"python -m sora_cli.train.{program}", description=says)
    parser.add_argument("latents", type=Path, help="of train.dataset, with the embedded VAE")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("work", type=Path, help="of what is written on the way")
    parser.add_argument("--steps", type=int, default=steps, help=f"of {BATCH} clips, for each arm")
    parser.add_argument("--arms", default=",".join(arms), help="which, with commas between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=samples, help="prompts of each kind")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no clip after these")
    parser.add_argument("--device", default="cpu", help="where clips are made and read")
    parser.add_argument("--out", type=Path, default=Path("docs/reference"))
    parser.add_argument("--picture", type=Path, default=Path(f"docs/pictures/{page}.png"))
    judge_options(parser)
    return parser


def wanted_arms(arguments: argparse.Namespace, known: Sequence[str]) -> list[str]:
    """The names of --arms, where it and the counts make sense.

    Raises:
        UsageError: an unknown arm, or no step or prompt.
    """
    wanted: list[str] = arguments.arms.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(f"unknown arms: {', '.join(unknown)}", hint=f"--arms {','.join(known)}")
    for name in ("steps", "samples"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name} must be at least 1", hint=f"--{name} 100")
    return wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class Clips:
    """Encoded clips [N, C, T, H, W], half precision, and the scenes that they show."""

    latents: Tensor
    scenes: list[Scene]

    @classmethod
    def of(cls, folder: Path, size: tuple[int, int, int]) -> Clips:
        """All clips of a size (width, height, frames).

        Raises:
            UsageError: there are none.
        """
        bucket = "x".join(map(str, size))
        shards = [n for n in latent_shards(folder) if shard_bucket(n).name == bucket]
        if not shards:
            raise UsageError(
                f"{folder} has no latents of {bucket}", hint="python -m sora_cli.train.dataset"
            )
        parts = [load_latents(folder, shard) for shard in shards]
        return cls(
            latents=torch.cat([part.latents for part in parts]),
            scenes=[scene for part in parts for scene in part.scenes],
        )


def draw(clips: Clips, captions: Sequence[str], seed: int, step: int, recipe: Recipe) -> Batch:
    """The batch of a step: its clips are the same in every arm, and so are the prompts left out
    and the first latents given, where recipes do that alike.
    """
    rng = random.Random(f"study/{seed}/{step}")
    chosen = [rng.randrange(len(captions)) for _ in range(BATCH)]
    dropped = [rng.random() < recipe.drop for _ in chosen]
    latents = clips.latents[chosen].float()
    if recipe.square:
        height, width = latents.shape[3:]
        latents = torch.stack(
            [_square(one, rng.randint(0, abs(width - height))) for one in latents]
        )
    mask = torch.ones(BATCH, latents.shape[2])
    mask[[rng.random() < recipe.given for _ in chosen], 0] = 0
    return Batch(
        latents=latents, given=latents, mask=mask, given_sigma=torch.zeros(BATCH),
        prompts=["" if gone else captions[i] for i, gone in zip(chosen, dropped, strict=True)],
    )  # fmt: skip


def _square(clip: Tensor, begin: int) -> Tensor:
    """A square of a clip [C, T, H, W] that begins so far along its longer side."""
    side = min(clip.shape[2:])
    along = 3 if clip.shape[3] > side else 2
    return clip.narrow(along, begin, side)


def optimizers_of(model: Captioned, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The recipe's, or AdamW for everything."""
    if recipe.muon:
        return make_optimizers(model)
    return [torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)]


def train_arm(
    arm: str, clips: Clips, captions: Sequence[str], tokenizer: Tokenizer, folder: Path, *,
    steps: int, seed: int, development: Development, recipe: Recipe,
) -> list[dict[str, float]]:  # fmt: skip
    """Train one arm and write its transformer/ and text_encoder/.

    Returns:
        the curve: "samples" and development losses of the averaged weights, POINTS times.
    """
    run = Run(folder=folder / "run", minutes=math.inf)
    torch.manual_seed(seed)
    model, device = Captioned(NARROW), torch.device("cpu")
    optimizers = optimizers_of(model, recipe)
    curve: list[dict[str, float]] = []
    if state := load_checkpoint(run.folder / "checkpoint.pt"):
        model.load_state_dict(state["model"])
        ema = Ema(model)
        ema.shadow, curve = state["ema"], state["curve"]
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        run.restore(state["run"])
    else:
        learn_to_read(model, tokenizer, random.Random(f"study/{seed}"), recipe.read)
        ema = Ema(model)
    while run.steps < steps:
        torch.manual_seed(seed * 10**7 + run.steps)  # noises and their levels, the same in all arms
        peak = PEAK_RATE if recipe.muon else PEAK_RATE / 4
        rate = learning_rate(run.steps / steps, peak, run.steps)
        batch = draw(clips, captions, seed, run.steps, recipe)
        loss = losses(model, tokenizer, batch, device, recipe.levels)
        model.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.read and run.steps % READ_EVERY == 0:
            read_beside(model, tokenizer, random.Random(f"page/{seed}/{run.steps}"), device)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        ema.update(run.steps)
        run.count(BATCH, loss=float(loss.detach()))
        if run.steps * POINTS // steps > len(curve):
            final = _final(model, ema, recipe)
            curve.append({"samples": run.samples, **development.losses(final, tokenizer)})
            run.log(arm=arm, **curve[-1])
            save_checkpoint(run.folder / "checkpoint.pt", {
                "model": model.state_dict(), "ema": ema.state(), "run": run.state(),
                "optimizers": [o.state_dict() for o in optimizers], "curve": curve,
            })  # fmt: skip
    final = _final(model, ema, recipe)
    save_dit(folder / "transformer", final.dit)
    save_text_encoder(folder / "text_encoder", final.text)
    return curve


def _final(model: Captioned, ema: Ema, recipe: Recipe) -> Captioned:
    """The weights that count, as they are now."""
    final = Captioned(NARROW)
    final.load_state_dict(ema.state() if recipe.averaged else model.state_dict())
    return final.eval()
