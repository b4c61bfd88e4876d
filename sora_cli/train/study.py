"""What captions are worth: the same small transformer trained on three kinds of captions.

`python -m sora_cli.train.study LATENTS TOKENIZER WORK` trains a narrow transformer with its text
encoder from nothing, once for each of ARMS, on the same clips in the same batches with the same
noises, so that the captions alone differ; each clip has one caption in each arm. What the arms then
make of prompts of the development split is read by the judge (eval/recaptioning.py), which writes
docs/reference/recaptioning.md. It resumes from WORK. N clips; B clips of a step.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sora_cli.errors import UsageError
from sora_cli.eval.clips import decode
from sora_cli.eval.program import ended
from sora_cli.eval.recaptioning import Development, floor, measured, publish, taught
from sora_cli.eval.sampling import last_lines, sitting
from sora_cli.models.captioner import Captioner
from sora_cli.models.text_encoder import Tokenizer
from sora_cli.pipeline.caption import spread
from sora_cli.train.captions import dense, short
from sora_cli.train.dataset import latent_shards, load_latents, shard_bucket
from sora_cli.train.dit import (
    DROP_PROMPT,
    TINY_DIT,
    Batch,
    Captioned,
    losses,
    make_optimizers,
)
from sora_cli.train.export import save_dit, save_text_encoder
from sora_cli.train.loop import Ema, Run, learning_rate, load_checkpoint, save_checkpoint
from sora_cli.train.world import Scene
from sora_cli.weights import load, store

SIZE = (64, 64, 17)  # width, height, frames: of every clip
BUCKET = "x".join(map(str, SIZE))
NARROW = replace(TINY_DIT, num_layers=4, hidden_size=192, num_heads=3, ffn_dim=768)
BATCH, PEAK_RATE = 32, 2e-3
POINTS = 10  # of the curve of development losses
LOSS_CLIPS = 64  # that these are taken on
ARMS = ("short", "dense", "captioner")


@dataclass(frozen=True, kw_only=True, slots=True)
class Clips:
    """Encoded clips [N, C, T, H, W], half precision, and the scenes that they show."""

    latents: Tensor
    scenes: list[Scene]

    @classmethod
    def of(cls, folder: Path) -> Clips:
        """All clips of BUCKET.

        Raises:
            UsageError: there are none.
        """
        shards = [n for n in latent_shards(folder) if shard_bucket(n).name == BUCKET]
        if not shards:
            raise UsageError(
                f"{folder} has no latents of {BUCKET}", hint="python -m sora_cli.train.dataset"
            )
        parts = [load_latents(folder, shard) for shard in shards]
        return cls(
            latents=torch.cat([part.latents for part in parts]),
            scenes=[scene for part in parts for scene in part.scenes],
        )


def written(clips: Clips, path: Path, model: store.Installed, group: int = 64) -> list[str]:
    """What the model's captioner says of the clips as the autoencoder shows them; kept at `path`.

    One JSON string a line, clip i with seed i; it goes on after the last line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    texts = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    part = model.parts["vae"]
    with (
        load.vae(part, device="cpu", dtype=torch.float32) as vae,
        Captioner(model.parts["captioner"]) as captioner,
        path.open("a", encoding="utf-8") as file,
    ):
        while len(texts) < len(clips.scenes):
            rows = clips.latents[len(texts) : len(texts) + group].float()
            for clip in decode(vae, list(rows)):
                texts.append(captioner.describe(spread(clip.numpy()), seed=len(texts)))
                file.write(json.dumps(texts[-1]) + "\n")
            file.flush()
            sys.stderr.write(f"captioned {len(texts)}/{len(clips.scenes)} clips\n")
    return texts


def captions_of(arm: str, clips: Clips, work: Path, model: store.Installed) -> list[str]:
    """One caption for each clip, the same in every run."""
    if arm == "captioner":
        return written(clips, work / "captions.jsonl", model)
    write = {"short": short, "dense": dense}[arm]
    return [
        write(scene, random.Random(f"study/{arm}/{number}")).text
        for number, scene in enumerate(clips.scenes)
    ]


def draw(clips: Clips, captions: Sequence[str], seed: int, step: int) -> Batch:
    """The batch of a step: its clips, and whose prompts are left out, are the same in every arm."""
    rng = random.Random(f"study/{seed}/{step}")
    chosen = [rng.randrange(len(captions)) for _ in range(BATCH)]
    dropped = [rng.random() < DROP_PROMPT for _ in chosen]
    latents = clips.latents[chosen].float()
    return Batch(
        latents=latents, given=latents, mask=torch.ones(BATCH, latents.shape[2]),
        prompts=["" if gone else captions[i] for i, gone in zip(chosen, dropped, strict=True)],
    )  # fmt: skip


def train_arm(
    arm: str, clips: Clips, captions: Sequence[str], tokenizer: Tokenizer, folder: Path, *,
    steps: int, seed: int, development: Development,
) -> list[dict[str, float]]:  # fmt: skip
    """Train one arm and write its transformer/ and text_encoder/.

    Returns:
        the curve: "samples" and development losses of the averaged weights, POINTS times.
    """
    run = Run(folder=folder / "run", minutes=math.inf)
    torch.manual_seed(seed)
    model = Captioned(NARROW)
    ema, optimizers = Ema(model), make_optimizers(model)
    curve: list[dict[str, float]] = []
    if state := load_checkpoint(run.folder / "checkpoint.pt"):
        model.load_state_dict(state["model"])
        ema.shadow, curve = state["ema"], state["curve"]
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        run.restore(state["run"])
    averaged = Captioned(NARROW)
    while run.steps < steps:
        torch.manual_seed(seed * 10**7 + run.steps)  # noises and their levels, the same in all arms
        rate = learning_rate(run.steps / steps, PEAK_RATE, run.steps)
        loss = losses(model, tokenizer, draw(clips, captions, seed, run.steps), torch.device("cpu"))
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        ema.update(run.steps)
        run.count(BATCH, loss=float(loss.detach()))
        if run.steps * POINTS // steps > len(curve):
            averaged.load_state_dict(ema.state())
            curve.append({"samples": run.samples, **development.losses(averaged.eval(), tokenizer)})
            run.log(arm=arm, **curve[-1])
            save_checkpoint(run.folder / "checkpoint.pt", {
                "model": model.state_dict(), "ema": ema.state(), "run": run.state(),
                "optimizers": [o.state_dict() for o in optimizers], "curve": curve,
            })  # fmt: skip
    averaged.load_state_dict(ema.state())
    save_dit(folder / "transformer", averaged.dit)
    save_text_encoder(folder / "text_encoder", averaged.text)
    return curve


# ---------------------------------------------------------------------- the program


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.train.study", description=__doc__)
    parser.add_argument("latents", type=Path, help="of train.dataset, with the embedded VAE")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("work", type=Path, help="of captions, checkpoints and clips")
    parser.add_argument("--steps", type=int, default=1000, help=f"of {BATCH} clips, for each arm")
    parser.add_argument("--arms", default=",".join(ARMS), help="which, with commas between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=128, help="prompts of each kind")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no clip after these")
    parser.add_argument("--device", default="cpu", help="where clips are made and read")
    parser.add_argument("--out", type=Path, default=Path("docs/reference"))
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/recaptioning.png"))
    parser.add_argument("--judge", type=Path, default=None, help="its file; trained where missing")
    parser.add_argument("--judge-minutes", type=float, default=15.0, help="to train the judge")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Train what is not trained yet, then let the judge read what comes of it.

    Raises:
        UsageError: an unknown arm, no latents, or a time box too short.
    """
    arms = arguments.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise UsageError(f"unknown arms: {', '.join(unknown)}", hint=f"--arms {','.join(ARMS)}")
    for name in ("steps", "samples"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name} must be at least 1", hint=f"--{name} 100")
    clips, model = Clips.of(arguments.latents), store.locate("tiny")
    tokenizer = Tokenizer.from_folder(arguments.tokenizer)
    development = Development(LOSS_CLIPS, SIZE, model)
    schools = []
    for arm in arms:
        texts, folder = captions_of(arm, clips, arguments.work, model), arguments.work / arm
        curve = train_arm(
            arm, clips, texts, tokenizer, folder, steps=arguments.steps, seed=arguments.seed,
            development=development,
        )  # fmt: skip
        schools.append(taught(arm, folder, curve, texts, clips.scenes))
    box = argparse.Namespace(**{**vars(arguments), "work": arguments.work / "clips"})
    exam = sitting(box, model)
    table = {school.arm: measured(exam, school, SIZE) for school in schools}
    typed = ["LATENTS", "TOKENIZER", "WORK", "--steps", str(arguments.steps)]
    typed += ["--samples", str(arguments.samples), "--arms", arguments.arms]
    end = last_lines(arguments, "sora_cli.train.study", typed, arguments.device, arguments.samples)
    end.insert(0, _about(len(clips.scenes), arguments))
    publish(
        schools, table, floor(exam, SIZE), out=arguments.out, picture=arguments.picture,
        last_lines=end,
    )  # fmt: skip
    sys.stdout.write(f"{arguments.out / 'recaptioning.md'}\n{arguments.picture}\n")


def _about(count: int, arguments: argparse.Namespace) -> str:
    return (
        f"- {count:,} clips of {BUCKET}; {arguments.steps:,} steps of {BATCH} clips; transformer "
        f"{NARROW.hidden_size} wide, {NARROW.num_layers} layers; first weights, batches and "
        f"noises of seed {arguments.seed}"
    )


def main(argv: list[str] | None = None) -> int:
    """The exit code of the program."""
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
