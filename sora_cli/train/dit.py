"""Train the embedded model's diffusion transformer, together with its text encoder.

`python -m sora_cli.train.dit LATENTS TOKENIZER OUT --minutes 70` trains on encoded clips, resumes
from OUT/transformer-run/, and writes OUT/transformer/ and OUT/text_encoder/; `--sheets MODEL` shows
what it makes so far. Rectified flow: the network sees (1 - σ)·x0 + σ·noise and predicts noise - x0
(arXiv 2403.03206). The text encoder is first taught to read alone (binding.py), and goes on with
it. B clips of one bucket a step; T latent frames.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.text_encoder import TextEncoder, TextEncoderConfig, Tokenizer
from sora_cli.train.binding import Reader, lesson
from sora_cli.train.captions import dense, short
from sora_cli.train.dataset import (
    BUCKETS,
    Bucket,
    LatentClips,
    latent_shards,
    load_latents,
    shard_bucket,
)
from sora_cli.train.export import remember_start, save_dit, save_text_encoder
from sora_cli.train.lasting import LASTING
from sora_cli.train.loop import (
    Ema,
    Muon,
    Run,
    learning_rate,
    load_checkpoint,
    run_recipe,
    save_checkpoint,
)
from sora_cli.train.sheets import EVERY, sample_sheet

TEXT_LEN = 64
TINY_TEXT = TextEncoderConfig(
    vocab_size=1024, hidden_size=192, num_layers=3, num_heads=6, head_dim=32, ffn_dim=512
)
TINY_DIT = DiTConfig(
    num_layers=6, hidden_size=256, num_heads=4, ffn_dim=1024, in_channels=48, out_channels=48,
    text_dim=192, text_len=TEXT_LEN, patch_size=(1, 1, 1),
)  # fmt: skip
TOKENS_A_STEP = 4000
DROP_PROMPT, GIVE_LATENTS, DENSE = 0.10, 0.30, 0.6
EARLY = 0.5  # share of the samples near pure noise, where words decide
READ_EVERY, READ_CAPTIONS, READ_SHARE = 4, 64, 0.1  # steps; captions each; weight in the loss
READ_FIRST, READ_RATE, HOLD = 500, 4e-3, 0.3  # before the first step; see learn_to_read
GIVEN_KINDS = {"first": 0.25, "head": 0.4, "block": 0.15, "both": 0.2}  # see Batches._give
GIVEN_NOISED, GIVEN_SIGMA = 0.4, 0.4  # share of given latents under noise; its level at most
READ_BIASES = 30.0  # times the rate: a few numbers each, of size 1


class Captioned(nn.Module):
    """Both trained networks, so that one optimizer, EMA and checkpoint hold them."""

    def __init__(self, dit: DiTConfig = TINY_DIT) -> None:
        super().__init__()
        self.text = TextEncoder(TINY_TEXT)
        self.dit = DiT(dit)
        self.reader = Reader(TINY_TEXT.hidden_size)
        self.text.init_weights()
        self.dit.init_weights()

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Velocity [B, C, T, H, W] for latents, timesteps [B, T] and token ids [B, ≤64]."""
        context = self.text(ids, mask) * mask[..., None]
        context = F.pad(context, (0, 0, 0, TEXT_LEN - context.shape[1]))  # [B, 64, D]
        return self.dit(latents, timesteps, context)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Clips with what is given of them: mask [B, T] 1 = to be made; `given` holds clean latents.

    given_sigma: [B], the noise level at which given latents are shown; their clip's own at most.
    """

    latents: Tensor
    given: Tensor
    mask: Tensor
    given_sigma: Tensor
    prompts: list[str]


class Batches:
    """Draws batches of one bucket with about `tokens` tokens; re-reads new shards."""

    def __init__(
        self, folders: list[Path], rng: random.Random, tokens: int = TOKENS_A_STEP,
        drop: float = DROP_PROMPT, give: float = GIVE_LATENTS,
    ) -> None:  # fmt: skip
        self.folders, self.rng, self.tokens, self.drop, self.drawn = folders, rng, tokens, drop, 0
        self.give = give
        self.shards: dict[str, list[LatentClips]] = {}
        self.known: set[tuple[Path, int]] = set()

    def _refresh(self) -> None:
        for folder in self.folders:
            for shard in latent_shards(folder):
                if (folder, shard) not in self.known:
                    self.known.add((folder, shard))
                    clips = load_latents(folder, shard)
                    self.shards.setdefault(shard_bucket(shard).name, []).append(clips)

    def draw(self, progress: float) -> Batch:
        """Small clips first: a bucket's share of the steps grows with its tokens over the run."""
        if self.drawn % 100 == 0:
            self._refresh()
        self.drawn += 1
        buckets = {name: shards[0].bucket for name, shards in self.shards.items()}
        weights = [b.share * token_count(b) ** progress for b in buckets.values()]
        name = self.rng.choices(list(buckets), weights)[0]
        count = max(2, self.tokens // token_count(buckets[name]))
        picks = [(c := self.rng.choice(self.shards[name]), self.rng.randrange(len(c.scenes)))
                 for _ in range(count)]  # fmt: skip
        return self._batch(picks)

    def _batch(self, picks: list[tuple[LatentClips, int]]) -> Batch:
        latents = torch.stack([clips.latents[i] for clips, i in picks]).float()
        given, mask = latents.clone(), torch.ones(len(picks), latents.shape[2])
        prompts = []
        for row, (clips, i) in enumerate(picks):
            lasting = clips.scenes[i].family == LASTING  # means nothing without what was before
            if (lasting or self.rng.random() < self.give) and latents.shape[2] > 1:
                self._give(row, clips, i, given, mask)
            caption = (dense if self.rng.random() < DENSE else short)(clips.scenes[i], self.rng)
            prompts.append("" if self.rng.random() < self.drop else caption.text)
        sigma = GIVEN_SIGMA * torch.rand(len(picks)) * (torch.rand(len(picks)) < GIVEN_NOISED)
        return Batch(latents=latents, given=given, mask=mask, given_sigma=sigma, prompts=prompts)

    def _give(self, row: int, clips: LatentClips, i: int, given: Tensor, mask: Tensor) -> None:
        """Mark what is given: the first latent, the first k, a block at the end, or both ends.

        A head needs no encoding of its own: the autoencoder is causal, so the first k latents of
        the clip are those of its first frames. A block was encoded on its own (dataset.py).
        """
        kind = self.rng.choices(list(GIVEN_KINDS), list(GIVEN_KINDS.values()))[0]
        if clips.scenes[i].family == LASTING:
            kind = self.rng.choice(("head", "head", "both"))
        start, length = int(clips.block_start[i]), int(clips.block_length[i])
        head = 0 if kind == "block" else 1
        if kind != "first" and kind != "block":
            head = self.rng.randint(1, max(1, min(3, start - 1)))
        mask[row, :head] = 0
        if kind in ("block", "both"):
            given[row, :, start : start + length] = clips.block[i, :, :length]
            mask[row, start : start + length] = 0


def token_count(bucket: Bucket) -> int:
    """DiT tokens of a clip of the bucket, at patch (1, 1, 1) and strides 4×16×16."""
    return ((bucket.num_frames - 1) // 4 + 1) * (bucket.width // 16) * (bucket.height // 16)


def draw_sigmas(count: int, tokens: int) -> Tensor:
    """Noise levels [count]: logit-normal, shifted toward noise for larger canvases; half early.

    A clip says everything many times over (48 channels, frames alike), so its layout shows through
    the noise at 0.95 already: only above are words needed to know what goes left and what right,
    and the logit-normal alone is there once in a hundred samples. Without the early half 282,000
    samples did not teach left from right (docs/log.md).
    """
    shift = min(max((tokens / 60) ** 0.5, 1.0), 3.0)
    sigmas = torch.sigmoid(torch.randn(count))
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    early = 1 - 0.25 * torch.rand(count).square()
    return torch.where(torch.rand(count) < EARLY, early, sigmas)


def losses(
    model: nn.Module, tokenizer: Tokenizer, batch: Batch, device: torch.device,
    levels: Callable[[int, int], Tensor] = draw_sigmas,
) -> Tensor:  # fmt: skip
    """Mean squared velocity error over what is to be made, at noise levels from `levels`."""
    latents, mask = batch.latents.to(device), batch.mask.to(device)
    sigmas = levels(len(batch.prompts), latents[0, 0].numel()).to(device)
    noise = torch.randn_like(latents)
    made = mask[:, None, :, None, None]
    given_sigmas = torch.minimum(batch.given_sigma.to(device), sigmas)
    by_frame = torch.where(mask > 0, sigmas[:, None], given_sigmas[:, None])  # [B, T]
    level = by_frame[:, None, :, None, None]
    noisy = (1 - level) * torch.where(made > 0, latents, batch.given.to(device)) + level * noise
    ids, attention = tokenizer.encode(batch.prompts, TEXT_LEN)
    longest = int(attention.sum(1).max())
    ids, attention = ids[:, :longest].to(device), attention[:, :longest].to(device)
    with torch.autocast(device.type, torch.bfloat16):
        velocity = model(noisy, 1000 * by_frame, ids, attention)
    error = (velocity.float() - (noise - latents)).square() * made
    return error.sum() / (made.expand_as(error).sum())


def make_optimizers(model: Captioned) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for embeddings, norms, heads and modulation."""
    matrices: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []  # of the text encoder's attention, by distance
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = "blocks." in name and parameter.ndim == 2
        (biases if "pos_embedding" in name else matrices if hidden else others).append(parameter)
    groups: list[dict[str, Any]] = [{"params": others}, {"params": biases, "reading": READ_BIASES}]
    return [
        Muon(matrices),
        torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learn_to_read(model: Captioned, tokenizer: Tokenizer, rng: random.Random, steps: int) -> None:
    """Teach the text encoder alone which words belong together, before anything is denoised.

    Its tokens are held near what they were, in which a transformer that goes on may be at home:
    HOLD times the squared distance, of the tokens' own square.
    """
    device = model.text.token_embedding.weight.device
    before = copy.deepcopy(model.text).requires_grad_(False)
    optimizers = make_optimizers(model)
    for step in range(steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                rate = learning_rate(step / steps, READ_RATE, step, warmup=50)
                group["lr"] = rate * group.get("reading", 1.0)
        page = lesson(tokenizer, rng, READ_CAPTIONS, TEXT_LEN, device)
        real = page.mask[..., None]
        with torch.autocast(device.type, torch.bfloat16):
            was, now = before(page.ids, page.mask) * real, model.text(page.ids, page.mask) * real
            loss = model.reader(now, page.wanted)
        moved = (now - was).square().sum() / was.square().sum()
        model.zero_grad(set_to_none=True)
        (loss + HOLD * moved).backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % 50 == 49:
            sys.stderr.write(f"reading {step + 1}/{steps}: {float(loss.detach()):.3f}\n")


def read_beside(
    model: Captioned, tokenizer: Tokenizer, rng: random.Random, device: torch.device
) -> float:
    """Add a page's gradients, READ_SHARE of them, to those of the step; returns its loss."""
    page = lesson(tokenizer, rng, READ_CAPTIONS, TEXT_LEN, device)
    with torch.autocast(device.type, torch.bfloat16):
        loss = model.reader(model.text(page.ids, page.mask), page.wanted)
    (READ_SHARE * loss).backward()
    return float(loss.detach())


def train(arguments: argparse.Namespace) -> None:
    """The recipe, top to bottom."""
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    run = Run(folder=arguments.out / "transformer-run", minutes=arguments.minutes)
    model = Captioned().to(device)
    ema, optimizers = Ema(model), make_optimizers(model)
    state = load_checkpoint(run.folder / "checkpoint.pt")
    if state is not None:
        _take_up(state, model, ema, optimizers)
        run.restore(state["run"])
        torch.manual_seed(arguments.seed + run.steps)
    elif arguments.start:
        _start_from(arguments.start, model)
        remember_start(arguments.start, run.folder)
    rng = random.Random(f"dit/{arguments.seed}/{run.steps}")
    tokenizer = Tokenizer.from_folder(arguments.tokenizer)
    model.text.requires_grad_(not arguments.freeze_text)
    if state is None:
        if not arguments.freeze_text:
            learn_to_read(model, tokenizer, rng, min(arguments.read, arguments.steps))
        ema = Ema(model)
    if arguments.compile:
        _compile(model.dit, device)
    batches = Batches(arguments.latents, rng, arguments.tokens, give=arguments.give)
    saved = shown = run.elapsed
    while run.progress < 1 and run.steps < arguments.steps:
        batch = batches.draw(run.progress)
        rate = learning_rate(run.progress, arguments.rate, run.steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        measured: dict[str, float] = {}
        loss = losses(model, tokenizer, batch, device)
        model.zero_grad(set_to_none=True)
        loss.backward()
        if run.steps % READ_EVERY == 0 and not arguments.freeze_text:
            measured["reading"] = read_beside(model, tokenizer, rng, device)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        ema.update(run.steps)
        measured |= {"loss": float(loss.detach()), "norm": float(norm), "rate": rate}
        run.count(len(batch.prompts), ktokens=batch.latents[:, 0].numel() / 1000, **measured)
        if run.elapsed - saved > 180:
            saved = run.elapsed
            _save(run, model, ema, optimizers)
        if arguments.sheets and run.elapsed - shown > EVERY:
            shown = run.elapsed
            _show(run, ema, arguments)
    _save(run, model, ema, optimizers)
    if arguments.sheets:
        _show(run, ema, arguments)
    model.load_state_dict(ema.state())
    save_dit(arguments.out / "transformer", model.dit)
    save_text_encoder(arguments.out / "text_encoder", model.text)


def _compile(dit: DiT, device: torch.device) -> None:
    """A third faster on a CPU, once its buckets are compiled: ten times a quarter of a minute."""
    static = device.type == "cpu"  # a softmax over a length that is known takes half the time
    torch._dynamo.config.recompile_limit = 2 * len(BUCKETS)
    for block in dit.blocks:
        block.compile(dynamic=not static)


def _take_up(
    state: dict[str, Any], model: Captioned, ema: Ema, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Put back what `_save` kept."""
    device = model.text.token_embedding.weight.device
    model.load_state_dict(state["model"])
    ema.shadow = {k: v.to(device) for k, v in state["ema"].items()}
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)


def _start_from(folder: Path, model: Captioned) -> None:
    """Take the weights of a model folder; the optimizers begin anew, with a warm-up."""
    from sora_cli.weights import load

    with load.dit(folder / "transformer", device="cpu", dtype=torch.float32) as dit:
        model.dit.load_state_dict(dit.state_dict())
    with load.text_encoder(folder / "text_encoder", device="cpu", dtype=torch.float32) as text:
        model.text.load_state_dict(text.state_dict())


def _save(run: Run, model: nn.Module, ema: Ema, optimizers: list[torch.optim.Optimizer]) -> None:
    state = {
        "model": model.state_dict(),
        "ema": ema.state(),
        "run": run.state(),
        "optimizers": [o.state_dict() for o in optimizers],
    }
    save_checkpoint(run.folder / "checkpoint.pt", state)


def _show(run: Run, ema: Ema, arguments: argparse.Namespace) -> None:
    averaged = Captioned()
    averaged.load_state_dict(ema.state())
    path = run.folder / f"sheet-{run.samples:08d}.png"
    sample_sheet(
        arguments.sheets, averaged.dit, averaged.text, path, torch.device(arguments.device)
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("latents", type=Path, nargs="+", help="one or several folders of clips")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=70.0)
    parser.add_argument("--steps", type=int, default=10**9, help="stop after this many steps")
    parser.add_argument("--rate", type=float, default=1.2e-3, help="peak learning rate")
    parser.add_argument("--read", type=int, default=READ_FIRST, help="steps of reading alone")
    parser.add_argument(
        "--freeze-text", action="store_true",
        help="the text encoder stays as it is: a run that goes on may want more clips instead",
    )  # fmt: skip
    parser.add_argument("--tokens", type=int, default=TOKENS_A_STEP, help="of a step's batch")
    parser.add_argument("--give", type=float, default=GIVE_LATENTS, help="share with given latents")
    parser.add_argument("--start", type=Path, help="a model folder to go on from, where OUT is new")
    parser.add_argument(
        "--sheets",
        type=Path,
        help="a model folder: with its autoencoder samples "
        "are written beside the checkpoint, every ten minutes and in the end",
    )
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    run_recipe(parser, train)


if __name__ == "__main__":
    main()
