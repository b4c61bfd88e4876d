"""Contact sheets of a model for people to look at: `python -m sora_cli.eval.gallery FOLDER`.

The first prompts of a split, nothing chosen, at several aspect ratios; a PNG for each size. Needs
no judge and no ffmpeg, so that a training run's weights can be looked at where they are trained.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from sora_cli.errors import UsageError
from sora_cli.eval.clips import Studio, decode, make
from sora_cli.eval.program import ended, say
from sora_cli.eval.sheet import contact_sheet
from sora_cli.eval.truth import prompts
from sora_cli.runtime.device import choose_device
from sora_cli.train.world import SPLITS
from sora_cli.weights import load, store

SIZES = "160x96,96x160,128x128"
COLUMNS, INKS = 5, 256  # frames of a clip, colours of a sheet: small files


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.eval.gallery", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the sheets go: gallery-WIDTHxHEIGHT.png")
    parser.add_argument("--model", default="tiny", help="a name or a diffusers folder")
    parser.add_argument("--samples", type=int, default=24, help="prompts, shared by the sizes")
    parser.add_argument("--sizes", default=SIZES, help="WIDTHxHEIGHT, with commas between")
    parser.add_argument("--split", choices=list(SPLITS)[1:], default="final")
    parser.add_argument("--level", choices=("dense", "short"), default="dense")
    parser.add_argument("--device", default=None, help="cpu, cuda; the fastest there is")
    return parser.parse_args(argv)


def sizes_of(text: str) -> list[tuple[int, int]]:
    """[(width, height), …] of "160x96,96x160".

    Raises:
        UsageError: a part is no size in steps of 16.
    """
    found = [re.fullmatch(r"(\d+)x(\d+)", part.strip()) for part in text.split(",")]
    sizes = [(int(m[1]), int(m[2])) for m in found if m]
    if len(sizes) < len(found) or any(side % 16 or not side for size in sizes for side in size):
        raise UsageError(f"{text!r} is no list of sizes in steps of 16", hint=f"--sizes {SIZES}")
    return sizes


@torch.no_grad()
def show(studio: Studio, sizes: list[tuple[int, int]], arguments: argparse.Namespace) -> None:
    """Make the clips of each size and write its sheet."""
    spec = studio.model.spec
    for number, (width, height) in enumerate(sizes):
        share = range(arguments.samples)[number :: len(sizes)]
        asked = [
            p for p in prompts(
                arguments.samples, split=arguments.split, level=arguments.level,
                num_frames=spec.num_frames, width=width, height=height,
            ) if p.seed in share
        ]  # fmt: skip
        if not asked:
            continue
        latents = make(studio, asked)
        with load.vae(studio.model.parts["vae"], device=studio.device, dtype=torch.float32) as vae:
            clips = decode(vae, latents).numpy()
        path = arguments.folder / f"gallery-{width}x{height}.png"
        contact_sheet(list(clips), [p.caption.text for p in asked], path, columns=COLUMNS)
        Image.open(path).quantize(INKS, kmeans=4).save(path, optimize=True)
        sys.stdout.write(f"{path}\n")


def run(arguments: argparse.Namespace) -> None:
    """Check the command line, find the model, make the sheets."""
    sizes = sizes_of(arguments.sizes)
    if arguments.samples < 1:
        raise UsageError("--samples must be at least 1", hint="--samples 24")
    plan, model = choose_device(arguments.device), store.locate(arguments.model)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sora-gallery-") as work:
        studio = Studio(
            model=model, device=plan.device, dtype=plan.dtype, work=Path(work),
            deadline=time.monotonic() + 3600, say=say,
        )  # fmt: skip
        show(studio, sizes, arguments)


def main(argv: list[str] | None = None) -> int:
    """The exit code of the program."""
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
