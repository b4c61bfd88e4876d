"""What is true of a scene: its attributes as class numbers, and where its things are seen.

The same geometry as render.py's, for single points: the report card compares what a judge reads
in a clip with what these functions know of the scene that the clip should show.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sora_cli.train.captions import Caption, attributes, dense, short
from sora_cli.train.render import render
from sora_cli.train.world import (
    CAMERAS,
    COLORS,
    FLOORS,
    MOTIONS,
    PLAIN,
    SKIES,
    TAN_HALF_FOV,
    THINGS,
    Mixture,
    Scene,
    Thing,
    Vec3,
    camera_pose,
    draw_scene,
    position,
)

SLOTS = 2  # things that a judge looks for: the left one (or the only one), the right one
CLASSES: dict[str, tuple[str, ...]] = {
    "kind": tuple(THINGS),
    "color": tuple(COLORS),
    "motion": tuple(MOTIONS),
    "floor": FLOORS,
    "sky": SKIES,
    "camera": tuple(CAMERAS),
    "count": ("1", "2"),
}
OF_THINGS = ("kind", "color", "motion")  # one answer for each thing; the rest: one for the clip
IN_TIME = ("motion", "camera")  # what one picture cannot show
UNKNOWN = -100  # the class number that no loss and no score counts


def labels(scene: Scene) -> dict[str, list[int]]:
    """Class numbers by attribute: `SLOTS` of them for a thing's, one for the clip's."""
    table = attributes(scene)
    found: dict[str, list[int]] = {}
    for name, values in CLASSES.items():
        keys = [f"{name}{slot}" for slot in range(SLOTS)] if name in OF_THINGS else [name]
        hidden = name in IN_TIME and scene.num_frames == 1
        found[name] = [
            UNKNOWN if hidden or key not in table else values.index(table[key]) for key in keys
        ]
    return found


def project(scene: Scene, point: Vec3, time: float) -> tuple[float, float, float]:
    """Where a world point (m) is seen at `time` (s): x right and y down (pixels), depth (m)."""
    eye, turn, pitch = camera_pose(scene, time)
    x, y, z = (p - e for p, e in zip(point, eye, strict=True))
    x, z = x * math.cos(turn) - z * math.sin(turn), x * math.sin(turn) + z * math.cos(turn)
    y, z = y * math.cos(pitch) - z * math.sin(pitch), y * math.sin(pitch) + z * math.cos(pitch)
    focal = min(scene.width, scene.height) / 2 / TAN_HALF_FOV  # pixels
    depth = max(z, 0.05)
    return scene.width / 2 + focal * x / depth, scene.height / 2 - focal * y / depth, z


def middle(thing: Thing, time: float) -> Vec3:
    """The thing's middle (m) at `time` (s): half of its height above its foot."""
    x, y, z = position(thing, time)
    top = max(part.center[1] + part.half[1] for part in THINGS[thing.kind])
    return x, y + thing.scale * top / 2, z


def paths(scene: Scene, frames: list[int]) -> Tensor:
    """Where each thing's middle is seen: [len(frames), SLOTS, 2] as fractions of width and height.

    Not a number where a thing is out of the picture, or where there is none.
    """
    rows = torch.full((len(frames), SLOTS, 2), math.nan)
    for row, frame in enumerate(frames):
        for slot, thing in enumerate(scene.things[:SLOTS]):
            time = frame / scene.fps
            x, y, depth = project(scene, middle(thing, time), time)
            if depth > 0.3 and 0 < x < scene.width and 0 < y < scene.height:
                rows[row, slot] = torch.tensor((x / scene.width, y / scene.height))
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One question of the report card: a scene of a split, and the words that ask for it."""

    scene: Scene
    caption: Caption
    seed: int  # of the generated clip's noise


def prompts(
    count: int, *, split: str, level: str, width: int, height: int, num_frames: int, seed: int = 0,
    fps: float = 8.0, only: Callable[[Scene], bool] | None = None, mixture: Mixture = PLAIN,
) -> list[Prompt]:  # fmt: skip
    """The first `count` prompts of a split, the same for ever; `level` is dense or short.

    only: of which scenes of the mixture; None: all.
    """
    write = {"dense": dense, "short": short}[level]
    rows: list[Prompt] = []
    for index in itertools.count():
        if len(rows) == count:
            break
        scene = draw_scene(
            seed, index, width=width, height=height, num_frames=num_frames, fps=fps,
            split=split, mixture=mixture,
        )  # fmt: skip
        if only is not None and not only(scene):
            continue
        caption = write(scene, random.Random(f"prompt/{level}/{split}/{seed}/{index}"))
        rows.append(Prompt(scene=scene, caption=caption, seed=index))
    return rows


def render_all(scenes: list[Scene], device: str = "cpu", batch: int = 4) -> tuple[Tensor, Tensor]:
    """Ground truth of scenes of one size: uint8 [B, T, H, W, 3] and the things' masks."""
    parts = [
        render(scenes[first : first + batch], device=device)
        for first in range(0, len(scenes), batch)
    ]
    return torch.cat([p[0].cpu() for p in parts]), torch.cat([p[1].cpu() for p in parts])
