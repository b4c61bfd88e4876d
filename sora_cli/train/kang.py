"""A preset for comparison with Kang et al., "How far is video generation from world model"
(arXiv 2411.02385): balls in a 10×10 world from the side, without perspective, Δt 0.1, 128×128.

Uniform motion, a horizontal throw, two balls that meet head-on; radii and speeds in and out of
their ranges, masses as areas, blows without loss. They show 32 frames; ours are 4k + 1, so 33.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

from sora_cli.train.events import Collision, Disc, Discs, Leg
from sora_cli.train.things import COLORS
from sora_cli.train.world import OUTSIDE, Family, Mixture, Scene

SIDE = 10.0  # m
FPS, SIZE, FRAMES = 10.0, 128, 33
GIVEN = 3  # frames that their models are shown
GRAVITY = 2.5  # m/s², of the throw
RADII = {"uniform": (0.7, 1.4), "parabola": (0.7, 1.4), "collision": (0.5, 1.5)}
SPEEDS = (1.0, 4.0)
OUTSIDE_RADII = ((0.3, 0.6), (1.5, 2.0))
OUTSIDE_SPEEDS = ((0.1, 0.8), (4.5, 6.0))
BEFORE = 8  # frames in which the two balls come, at least
HELD_OUT_BALLS = (("uniform", "green"), ("parabola", "orange"), ("collision", "purple"))


def _numbers(rng: random.Random, kind: str, split: str) -> tuple[float, float]:
    """A radius (m) and a speed (m/s)."""
    if split != OUTSIDE:
        return rng.uniform(*RADII[kind]), rng.uniform(*SPEEDS)
    small = 0 if kind == "collision" else rng.choice((0, 1))  # two large ones leave no room
    return rng.uniform(*OUTSIDE_RADII[small]), rng.uniform(*rng.choice(OUTSIDE_SPEEDS))


def _color(rng: random.Random, kind: str, split: str) -> str:
    held = dict(HELD_OUT_BALLS)[kind]
    if split == "held-out":
        return held
    return rng.choice([color for color in COLORS if color not in (held, "white")])


def _one(rng: random.Random, scene: Scene, split: str, kind: str) -> Discs:
    radius, speed = _numbers(rng, kind, split)
    room = SIDE - radius - speed * 2.4  # 24 frames within the picture, where there is room
    x = rng.uniform(radius, room) if room > radius else radius + rng.uniform(0.0, 0.5)
    y, falls = rng.uniform(radius + 0.5, SIDE - radius - 0.5), 0.0
    if kind == "parabola":
        y, falls = SIDE - 0.5 - radius - rng.uniform(0.0, 1.0), -GRAVITY
    leg = Leg(time=0.0, start=(x, y, 0.0), velocity=(speed, 0.0, 0.0), acceleration=falls)
    disc = Disc(radius=radius, color=_color(rng, kind, split), legs=(leg,))
    return Discs(kind=kind, side=SIDE, discs=(disc,))


def _two(rng: random.Random, scene: Scene, split: str, kind: str) -> Discs:
    while True:
        (r, v), (s, w) = _numbers(rng, kind, split), _numbers(rng, kind, split)
        least = BEFORE / FPS
        most = min((SIDE - 2 * (r + s)) / (v + w), scene.duration - least)
        if most > least:
            break
    event = Collision(
        time=rng.uniform(least, most), masses=(r * r, s * s), before=(v, -w), restitution=1.0
    )
    left, right = 2 * r + v * event.time, SIDE - 2 * s - w * event.time
    x = rng.uniform(left, max(left, right)) if right > left else (left + right) / 2  # they touch
    height = rng.uniform(max(r, s) + 0.5, SIDE - max(r, s) - 0.5)
    colors = [_color(rng, kind, split)]
    colors.append(rng.choice([c for c in COLORS if c not in (colors[0], "white")]))
    discs = []
    rows = zip((x - r, x + s), (r, s), event.before, event.after, colors, strict=True)
    for middle, radius, before, then, color in rows:
        start = (middle - before * event.time, height, 0.0)
        first = Leg(time=0.0, start=start, velocity=(before, 0.0, 0.0))
        second = Leg(time=event.time, start=(middle, height, 0.0), velocity=(then, 0.0, 0.0))
        discs.append(Disc(radius=radius, color=color, legs=(first, second)))
    return Discs(kind=kind, side=SIDE, discs=tuple(discs), time=event.time)


def _draw(rng: random.Random, scene: Scene, split: str, kind: str) -> Scene:
    make = _two if kind == "collision" else _one
    return replace(scene, event=make(rng, scene, split, kind))


KANG: Mixture = tuple(
    Family(
        name=kind, share=1 / len(RADII), draw=partial(_draw, kind=kind),
        least_frames=25 if kind == "collision" else 1,  # they come for BEFORE, and part
    )
    for kind in RADII
)  # fmt: skip
