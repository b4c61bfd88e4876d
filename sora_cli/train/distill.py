"""Few steps without guidance that go where many steps with it go: a LoRA for a trained model.

`python -m sora_cli.train.distill LATENTS MODEL OUT --minutes 25` writes OUT/quick.safetensors, and
resumes from OUT/distill-run/. The teacher is the model itself: from a noised clip it goes one
stretch of the few steps' grid in INNER of its own guided Euler steps; the student, the same weights
with low-rank changes, learns the straight line to where that ends (progressive distillation in one
go, arXiv 2202.00512, of guided steps, arXiv 2210.03142). B clips of a step; T latent frames.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sora_cli.models.dit import DiT
from sora_cli.models.text_encoder import TextEncoder, Tokenizer
from sora_cli.pipeline.sampler import sigma_grid
from sora_cli.train.dit import TEXT_LEN, TOKENS_A_STEP, Batches
from sora_cli.train.loop import (
    Ema,
    Run,
    learning_rate,
    load_checkpoint,
    run_recipe,
    save_checkpoint,
)
from sora_cli.weights import load, store

INNER = 4  # the teacher's steps in one of the student's
RANK = 32
PREFIX = "diffusion_model."  # of keys, as Comfy and LightX2V write them


class LowRank(nn.Module):
    """A weight plus up @ down; the weight alone while `on` is False."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.on = True
        rows, columns = weight.shape
        rank = min(rank, rows, columns)
        self.down = nn.Parameter(torch.randn(rank, columns, device=weight.device) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight."""
        return weight + self.up @ self.down if self.on else weight


class Changes(nn.Module):
    """The low-rank changes of every matrix in a transformer's blocks, by name; they alone train."""

    def __init__(self, dit: DiT, rank: int = RANK) -> None:
        super().__init__()
        dit.requires_grad_(False)
        linears = {
            name: module for name, module in dit.named_modules()
            if "blocks." in name and isinstance(module, nn.Linear)
        }  # fmt: skip
        self.names = list(linears)
        self.rows = nn.ModuleList(LowRank(m.weight, rank) for m in linears.values())
        for module, row in zip(linears.values(), self.rows, strict=True):
            parametrize.register_parametrization(module, "weight", row, unsafe=True)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The transformer as it was."""
        rows = [row for row in self.rows if isinstance(row, LowRank)]
        for row in rows:
            row.on = False
        try:
            yield
        finally:
            for row in rows:
                row.on = True

    def saved(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A LoRA file's tensors, of a state dict of this module."""
        return {
            f"{PREFIX}{name}.lora_{part}.weight": state[f"rows.{n}.{part}"].half().contiguous()
            for n, name in enumerate(self.names)
            for part in ("up", "down")
        }


def stretches(steps: int, shift: float, inner: int = INNER) -> Tensor:
    """The noise levels of each of the few steps and of the teacher's within it, [steps, inner + 1].

    The few steps' own grid is every `inner`-th level of the many steps', so that a LoRA needs no
    levels of its own.
    """
    grid = torch.tensor(sigma_grid(steps * inner, shift))
    return torch.stack([grid[k * inner : (k + 1) * inner + 1] for k in range(steps)])


@torch.no_grad()
def walked(
    dit: DiT, noisy: Tensor, mask: Tensor, contexts: Tensor, levels: Tensor, scale: float
) -> Tensor:
    """Where guided Euler steps lead from `noisy` [B, C, T, H, W] over `levels` [B, steps + 1].

    Args:
        mask: [B, T], 1 = to be made; what is given stays.
        contexts: [2·B, text_len, D], without words and then with them.
    """
    cache, made = dit.prepare_context(contexts), mask[:, None, :, None, None]
    for level, following in zip(levels.T[:-1], levels.T[1:], strict=True):
        times = (1000 * level[:, None] * mask).repeat(2, 1)
        plain, told = dit(noisy.repeat(2, 1, 1, 1, 1), times, cache).float().chunk(2)
        step = (following - level).view(-1, 1, 1, 1, 1)
        noisy = noisy + made * step * torch.lerp(plain, told, scale)
    return noisy


def loss_of(
    dit: DiT, changes: Changes, noisy: Tensor, mask: Tensor, contexts: Tensor, levels: Tensor,
    scale: float,
) -> Tensor:  # fmt: skip
    """Mean squared error of the student's velocity against the straight line to the teacher's end.

    Shapes as of `walked`.
    """
    device, made = noisy.device.type, mask[:, None, :, None, None]
    with torch.autocast(device, torch.bfloat16):
        with changes.off():
            end = walked(dit, noisy, mask, contexts, levels, scale)
        times = 1000 * levels[:, :1] * mask
        velocity = dit(noisy, times, contexts[len(noisy) :])
    whole = (levels[:, -1] - levels[:, 0]).view(-1, 1, 1, 1, 1)
    error = (velocity.float() - (end - noisy) / whole).square() * made
    return error.sum() / made.expand_as(error).sum()


def contexts_of(
    encoder: TextEncoder, tokenizer: Tokenizer, prompts: list[str], device: torch.device
) -> Tensor:
    """Embedded texts [2·B, text_len, D]: nothing, then the prompts."""
    ids, mask = (t.to(device) for t in tokenizer.encode([""] * len(prompts) + prompts, TEXT_LEN))
    with torch.no_grad():
        context = encoder(ids, mask) * mask[..., None]
    return F.pad(context, (0, 0, 0, TEXT_LEN - context.shape[1]))


def train(arguments: argparse.Namespace) -> None:
    """The recipe, top to bottom."""
    torch.manual_seed(arguments.seed)
    device, model = torch.device(arguments.device), store.locate(str(arguments.model))
    run = Run(folder=arguments.out / "distill-run", minutes=arguments.minutes)
    rng = random.Random(f"distill/{arguments.seed}")
    tokenizer = Tokenizer.from_folder(model.parts["tokenizer"])
    levels = stretches(arguments.few, model.spec.shift).to(device, torch.float32)
    batches = Batches(arguments.latents, rng, arguments.tokens, drop=0.0)
    with (
        load.dit(model.parts["transformer"], device=device, dtype=torch.float32) as dit,
        load.text_encoder(model.parts["text_encoder"], device=device, dtype=torch.float32) as text,
    ):
        changes = Changes(dit)
        ema = Ema(changes)
        optimizer = torch.optim.AdamW(changes.parameters(), lr=0.0, weight_decay=0.0)
        if state := load_checkpoint(run.folder / "checkpoint.pt"):
            changes.load_state_dict(state["model"])
            ema.shadow = {k: v.to(device) for k, v in state["ema"].items()}
            optimizer.load_state_dict(state["optimizer"])
            run.restore(state["run"])
            torch.manual_seed(arguments.seed + run.steps)
        saved = run.elapsed
        while run.progress < 1 and run.steps < arguments.steps:
            batch = batches.draw(1.0)
            latents, mask = batch.latents.to(device), batch.mask.to(device)
            chosen = levels[torch.randint(len(levels), (len(latents),)).to(device)]
            noisy = torch.lerp(latents, torch.randn_like(latents), chosen[:, :1, None, None, None])
            noisy = torch.where(mask[:, None, :, None, None] > 0, noisy, batch.given.to(device))
            contexts = contexts_of(text, tokenizer, batch.prompts, device)
            loss = loss_of(dit, changes, noisy, mask, contexts, chosen, model.spec.guidance_scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(changes.parameters(), 1.0)
            rate = learning_rate(run.progress, arguments.rate, run.steps, warmup=50)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            ema.update(run.steps)
            run.count(len(latents), loss=float(loss.detach()), rate=rate)
            if run.elapsed - saved > 180:
                saved = run.elapsed
                _save(run, changes, ema, optimizer)
        _save(run, changes, ema, optimizer)
        save_file(changes.saved(ema.state()), arguments.out / "quick.safetensors")


def _save(run: Run, changes: Changes, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
    state = {
        "model": changes.state_dict(), "ema": ema.state(), "run": run.state(),
        "optimizer": optimizer.state_dict(),
    }  # fmt: skip
    save_checkpoint(run.folder / "checkpoint.pt", state)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("latents", type=Path, nargs="+", help="one or several folders of clips")
    parser.add_argument("model", type=Path, help="a model's name or folder: teacher and beginning")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--few", type=int, default=4, help="steps that the student takes")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after this many batches")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--tokens", type=int, default=TOKENS_A_STEP, help="of a batch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    run_recipe(parser, train)


if __name__ == "__main__":
    main()
