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
import random
import sys
from pathlib import Path

import torch

from sora_cli.eval.clips import decode
from sora_cli.eval.program import ended
from sora_cli.eval.recaptioning import Development, floor, measured, publish, taught
from sora_cli.eval.sampling import last_lines, sitting
from sora_cli.models.captioner import Captioner
from sora_cli.models.text_encoder import Tokenizer
from sora_cli.pipeline.caption import spread
from sora_cli.train.captions import dense, short
from sora_cli.train.trial import (
    BATCH,
    LOSS_CLIPS,
    NARROW,
    Clips,
    Recipe,
    comparison_parser,
    train_arm,
    wanted_arms,
)
from sora_cli.weights import load, store

SIZE = WIDTH, HEIGHT, FRAMES = 64, 64, 17  # of every clip
ARMS = ("short", "dense", "captioner")


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


# ---------------------------------------------------------------------- the program


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = comparison_parser("study", __doc__, "recaptioning", ARMS, steps=1000, samples=128)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Train what is not trained yet, then let the judge read what comes of it.

    Raises:
        UsageError: an unknown arm, no latents, or a time box too short.
    """
    arms = wanted_arms(arguments, ARMS)
    clips, model = Clips.of(arguments.latents, SIZE), store.locate("tiny")
    tokenizer = Tokenizer.from_folder(arguments.tokenizer)
    development = Development(LOSS_CLIPS, SIZE, model)
    schools = []
    for arm in arms:
        texts, folder = captions_of(arm, clips, arguments.work, model), arguments.work / arm
        curve = train_arm(
            arm, clips, texts, tokenizer, folder, steps=arguments.steps, seed=arguments.seed,
            development=development, recipe=Recipe(),
        )  # fmt: skip
        schools.append(taught(arm, folder, curve, texts, clips.scenes))
    box = argparse.Namespace(**{**vars(arguments), "work": arguments.work / "clips"})
    exam = sitting(box, model)
    table = {
        s.arm: {kind: a.figure for kind, a in measured(exam, s.arm, s.folder, SIZE).items()}
        for s in schools
    }
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
        f"- {count:,} clips of {WIDTH}x{HEIGHT}x{FRAMES}; {arguments.steps:,} steps of {BATCH} "
        f"clips; transformer {NARROW.hidden_size} wide, {NARROW.num_layers} layers; first weights, "
        f"batches and noises of seed {arguments.seed}"
    )


def main(argv: list[str] | None = None) -> int:
    """The exit code of the program."""
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
