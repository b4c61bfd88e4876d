"""Scenes seen in a mirror: left and right exchanged in the record, as in the picture."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from sora_cli.train.events import (
    Bites,
    Breaking,
    Collision,
    Discs,
    Event,
    Game,
    Leg,
    Wall,
    turned,
)
from sora_cli.train.things import HEADED
from sora_cli.train.world import Scene, Thing

OTHER = {"left": "right", "right": "left"}


def mirror(scene: Scene) -> Scene:
    """The scene's record as seen in a mirror; mirrored twice it is itself.

    Things without an event stand from left to right and change places; with one they keep their
    parts in it.
    """
    things = tuple(_thing(t) for t in scene.things)
    if scene.event is None:
        things = things[::-1]
    return replace(
        scene, things=things, camera=_swapped(scene.camera), event=_event(scene.event)
    )  # fmt: skip


def _swapped(words: str) -> str:
    return re.sub("left|right", lambda match: OTHER[match[0]], words)


def _legs(legs: tuple[Leg, ...]) -> tuple[Leg, ...]:
    return tuple(leg.mirrored() for leg in legs)


def _thing(thing: Thing) -> Thing:
    looks = thing.kind in HEADED and bool(thing.legs)  # then its front counts
    return replace(
        thing, motion=_swapped(thing.motion), start=turned(thing.start),
        velocity=turned(thing.velocity), yaw=math.pi - thing.yaw if looks else -thing.yaw,
        spin=-thing.spin, legs=_legs(thing.legs),
    )  # fmt: skip


def _event(event: Event | None) -> Event | None:
    if isinstance(event, Collision):
        return replace(event, before=(-event.before[0], -event.before[1]))
    if isinstance(event, Wall):
        return replace(event, center=turned(event.center))
    if isinstance(event, Bites):
        return replace(event, places=tuple(turned(place) for place in event.places))
    if isinstance(event, Breaking):
        pieces = (replace(p, legs=_legs(p.legs), yaw=-p.yaw) for p in event.pieces)
        return replace(event, pieces=tuple(pieces))
    if isinstance(event, Game):
        return _game(event)
    if isinstance(event, Discs):
        return replace(event, discs=tuple(replace(d, legs=_across(d.legs, event.side))
                                          for d in event.discs))  # fmt: skip
    return event


def _across(legs: tuple[Leg, ...], side: float) -> tuple[Leg, ...]:
    """Mirrored about the middle of a world that begins at x = 0."""
    return tuple(
        replace(leg, start=(side - leg.start[0], leg.start[1], leg.start[2]),
                velocity=turned(leg.velocity))
        for leg in legs
    )  # fmt: skip


def _game(game: Game) -> Game:
    def across(cell: tuple[int, int]) -> tuple[int, int]:
        return game.columns - 1 - cell[0], cell[1]

    return replace(
        game, walls=frozenset(map(across, game.walls)), coins=frozenset(map(across, game.coins)),
        player=across(game.player), actions=tuple(_swapped(action) for action in game.actions),
    )  # fmt: skip
