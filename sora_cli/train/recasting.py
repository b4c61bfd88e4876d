"""Scenes that the world, or its training split, never draws, for prompts that ask for them."""

from __future__ import annotations

import random
from dataclasses import replace

from sora_cli.train.events import Game
from sora_cli.train.things import COLORS, HELD_OUT, HELD_OUT_TOO
from sora_cli.train.words import ALL_CAMERAS, ALL_KINDS, ALL_MOTIONS
from sora_cli.train.world import CAMERAS, MOTIONS, Scene


def recombine(scene: Scene, named: set[str], rng: random.Random) -> Scene:
    """Now and then let the prompt name what the world, or its training split, never draws together.

    A language model that never read "cyan ball" learns that there is none, and would write another
    thing. Only what is named is changed: nobody is given such a pairing unasked.
    """
    things = tuple(
        replace(thing, color=dict((*HELD_OUT, *HELD_OUT_TOO))[thing.kind])
        if {f"kind{number}", f"color{number}"} <= named and rng.random() < 0.15
        else thing
        for number, thing in enumerate(scene.things)
    )
    scene = replace(scene, things=things)
    if scene.event is not None:
        return _recast(scene, rng)
    if scene.num_frames == 1 or rng.random() > 0.35:
        return scene
    wide = scene.family != "plain"
    motions, cameras = (tuple(ALL_MOTIONS), tuple(ALL_CAMERAS)) if wide else (
        tuple(MOTIONS), tuple(CAMERAS))  # fmt: skip
    alike = rng.choice(motions) if rng.random() < 0.25 else None  # for all of them
    things = tuple(
        replace(thing, motion=alike or rng.choice(motions)) if f"motion{number}" in named else thing
        for number, thing in enumerate(things)
    )
    camera = rng.choice(cameras) if "camera" in named else "static"
    return replace(scene, things=things, camera=camera)


def _recast(scene: Scene, rng: random.Random) -> Scene:
    """Now and then let anything happen to anything: a house is hit, a yellow player plays."""
    if rng.random() > 0.3:
        return scene
    if isinstance(scene.event, Game):
        return replace(scene, event=replace(scene.event, color=rng.choice(tuple(COLORS))))
    kinds = rng.sample(tuple(ALL_KINDS), len(scene.things))
    colors = rng.sample(tuple(COLORS), len(scene.things))
    things = zip(scene.things, kinds, colors, strict=True)
    return replace(
        scene, things=tuple(replace(thing, kind=k, color=c) for thing, k, c in things)
    )  # fmt: skip
