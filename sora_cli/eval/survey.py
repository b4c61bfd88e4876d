"""What a mixture of the world holds, how fast it renders, and what it looks like.

`python -m sora_cli.eval.survey` draws 2,000 scenes of the training buckets and prints how often
each family, length and attribute occurs; `--speed 3` renders three clips of each family and prints
clips per second (of a CPU core, or of the GPU's clock); `--sheets FOLDER` writes contact sheets.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from sora_cli.eval.sheet import contact_sheet
from sora_cli.train.captions import attributes, dense
from sora_cli.train.dataset import shard_bucket
from sora_cli.train.families import MIXTURES
from sora_cli.train.render import render
from sora_cli.train.world import SPLITS, Mixture, Scene, draw_scene

SHOWN = ("kind", "color", "size", "motion", "floor", "sky", "camera", "count", "outcome", "wall",
         "paint", "bites", "pieces", "player", "board", "coins")  # fmt: skip
CLIP = {"width": 160, "height": 96, "num_frames": 25}


def training_scenes(count: int, mixture: Mixture, split: str, seed: int = 0) -> list[Scene]:
    """Scenes of the sizes and lengths that training sees."""
    found = []
    for index in range(count):
        bucket = shard_bucket(index)
        found.append(
            draw_scene(
                seed, index, width=bucket.width, height=bucket.height,
                num_frames=bucket.num_frames, split=split, mixture=mixture,
            )
        )  # fmt: skip
    return found


def of_family(
    name: str, count: int, mixture: Mixture, split: str, *, fps: float = 8.0, **size: int
) -> list[Scene]:
    """The first scenes of a family in a mixture."""
    alone = tuple(family for family in mixture if family.name == name)
    return [
        draw_scene(0, index, split=split, mixture=alone, fps=fps, **size) for index in range(count)
    ]


def balance(scenes: list[Scene]) -> dict[str, Counter[str]]:
    """How often each family, length and value of an attribute occurs."""
    table: dict[str, Counter[str]] = {name: Counter() for name in ("family", "frames", *SHOWN)}
    for scene in scenes:
        table["family"][scene.family] += 1
        table["frames"][str(scene.num_frames)] += 1
        for name, value in attributes(scene).items():
            if (name := name.rstrip("0123456789")) in table:
                table[name][value] += 1
    return table


def lengths(scenes: list[Scene]) -> dict[str, Counter[int]]:
    """How many clips of each length every family has."""
    table: dict[str, Counter[int]] = {}
    for scene in scenes:
        table.setdefault(scene.family, Counter())[scene.num_frames] += 1
    return table


def clips_per_second(scenes: list[Scene], device: str) -> float:
    """Of a core's own seconds on a CPU, of the clock's on a GPU; rendered in one batch there."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    render(scenes[:1], device=device)
    began = clock()
    render(scenes, device=device)
    if device != "cpu":
        torch.cuda.synchronize()
    return len(scenes) / (clock() - began)


def _print_balance(scenes: list[Scene]) -> None:
    for name, counts in balance(scenes).items():
        if counts:
            rows = ", ".join(f"{value} {number}" for value, number in counts.most_common())
            sys.stdout.write(f"{name}: {rows}\n")
    frames = sorted({scene.num_frames for scene in scenes})
    sys.stdout.write("\n| family | " + " | ".join(map(str, frames)) + " |\n")
    sys.stdout.write("|---|" + "---|" * len(frames) + "\n")
    for family, counted in sorted(lengths(scenes).items()):
        row = " | ".join(str(counted[n]) for n in frames)
        sys.stdout.write(f"| {family} | {row} |\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mixture", choices=MIXTURES, default="wide")
    parser.add_argument("--split", choices=SPLITS, default="training")
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--speed", type=int, default=0, help="clips of each family to render")
    parser.add_argument("--sheets", type=Path, help="write a contact sheet of each family here")
    parser.add_argument("--rows", type=int, default=6, help="clips on a sheet")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    mixture = MIXTURES[arguments.mixture]
    size = CLIP if arguments.mixture != "kang" else {"width": 128, "height": 128, "num_frames": 33}
    _print_balance(training_scenes(arguments.scenes, mixture, arguments.split))
    for family in mixture:
        if arguments.speed:
            scenes = of_family(family.name, arguments.speed, mixture, arguments.split, **size)
            rate = clips_per_second(scenes, arguments.device)
            sys.stdout.write(f"{family.name}: {rate:.2f} clips/s of {size}\n")
        if arguments.sheets:
            arguments.sheets.mkdir(parents=True, exist_ok=True)
            scenes = of_family(family.name, arguments.rows, mixture, arguments.split, **size)
            texts = [dense(s, random.Random(s.index)).text for s in scenes]
            videos = [render([s], device=arguments.device)[0][0].cpu().numpy() for s in scenes]
            contact_sheet(videos, texts, arguments.sheets / f"{family.name}.png")


if __name__ == "__main__":
    main()
