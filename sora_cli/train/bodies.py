"""What the ray tracer sees of a scene at one moment: objects, made of moved unit shapes.

The things come first, then what an event adds: a wall, a trail, pieces. An object keeps its number
through a clip and may have no bodies in a frame (a thing that is broken, pieces before that).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from sora_cli.train.events import Bites, Breaking, Trail, Vec3, Wall, leg_at
from sora_cli.train.physics import stripe
from sora_cli.train.things import BUILDS, COLORS, ROLLING, WALLS, Part
from sora_cli.train.world import Scene, Thing, position, rolled, yaw

PAINT = 0.014  # m: half of a trail's thickness
PALE, DARK = (0.93, 0.79, 0.50), (0.30, 0.14, 0.06)  # flesh: unlike the skin
FLAME = (  # brighter than light falls on it: it glows
    Part(shape="cone", center=(0, -0.10, 0), half=(0.20, 0.34, 0.20), color=(1.7, 0.95, 0.25),
         roll=math.pi),
)  # fmt: skip
Rotation = list[list[float]]
Owner = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Body:
    """A unit shape, moved: its middle (m), half extents (m), axes as columns, and colour."""

    shape: str
    center: Vec3
    half: Vec3
    rotation: Rotation
    color: Vec3


@dataclass(frozen=True, slots=True)
class Scoop:
    """A ball (m) that is missing of the first thing."""

    center: Vec3
    radius: float


def rotation(turn: float, roll: float, tilt: float) -> Rotation:
    """Roll about z, then tilt about x, then turn about y (rad)."""
    cy, sy, cz, sz = math.cos(turn), math.sin(turn), math.cos(roll), math.sin(roll)
    cx, sx = math.cos(tilt), math.sin(tilt)
    return [
        [cy * cz + sy * sx * sz, -cy * sz + sy * sx * cz, sy * cx],
        [cx * sz, cx * cz, -sx],
        [-sy * cz + cy * sx * sz, sy * sz + cy * sx * cz, cy * cx],
    ]


def owners(scene: Scene) -> list[Owner]:
    """The objects of a scene: what each is (`thing`, `wall`, `trail`, `piece`), and which.

    `bite` is what bites lay bare of the first thing; the thing itself is its skin then.
    """
    found = [("thing", number) for number in range(len(scene.things))]
    if isinstance(scene.event, Wall):
        found.append(("wall", 0))
    elif isinstance(scene.event, Trail):
        found.append(("trail", 0))
    elif isinstance(scene.event, Bites):
        found.append(("bite", 0))
    elif isinstance(scene.event, Breaking):
        found += [("piece", number) for number in range(len(scene.event.pieces))]
    return found


def tints(scene: Scene) -> list[Vec3]:
    """By how much each thing's colour differs from its word's."""
    jitter = random.Random(f"colour/{scene.seed}/{scene.index}")
    return [
        (jitter.uniform(-0.03, 0.03), jitter.uniform(-0.03, 0.03), jitter.uniform(-0.03, 0.03))
        for _ in scene.things
    ]


def objects(scene: Scene, time: float) -> dict[Owner, list[Body]]:
    """The bodies of every object (see `owners`) at `time` (s)."""
    event = scene.event
    own = [
        _tinted(COLORS[thing.color], tint)
        for thing, tint in zip(scene.things, tints(scene), strict=True)
    ]
    found = [_thing(t, time, color) for t, color in zip(scene.things, own, strict=True)]
    if isinstance(event, Wall):
        found.append([Body("box", event.center, event.half, rotation(0, 0, 0), WALLS[event.color])])
    elif isinstance(event, Trail):
        found.append(_trail(scene, event, time))
    elif isinstance(event, Bites):
        found.append([])  # scoops, not bodies
    elif isinstance(event, Breaking):
        broken = time >= event.time
        found[0] = [] if broken else found[0]
        found += [
            [Body("box", leg_at(piece.legs, time).at(time), (piece.half,) * 3,
                  rotation(piece.yaw, 0, 0), own[0])] if broken else []
            for piece in event.pieces
        ]  # fmt: skip
    return dict(zip(owners(scene), found, strict=True))


def _tinted(color: Vec3, tint: Vec3) -> Vec3:
    return color[0] + tint[0], color[1] + tint[1], color[2] + tint[2]


def _thing(thing: Thing, time: float, own: Vec3) -> list[Body]:
    foot, turn = position(thing, time), yaw(thing, time)
    away = thing.motion == "takes off" and foot[1] > thing.start[1] + 0.02
    back = rolled(thing, time) if thing.kind in ROLLING else 0.0
    cos, sin = math.cos(turn), math.sin(turn)
    found = []
    for part in (*BUILDS[thing.kind], *(FLAME if away else ())):
        x, y, z = (c * thing.scale for c in part.center)
        center = (foot[0] + cos * x + sin * z, foot[1] + y, foot[2] - sin * x + cos * z)
        a, b, c = (h * thing.scale for h in part.half)
        turned = rotation(turn, part.roll - back, part.tilt)
        found.append(Body(part.shape, center, (a, b, c), turned, part.color or own))
    return found


def _trail(scene: Scene, event: Trail, time: float) -> list[Body]:
    color = COLORS[event.color]
    return [
        Body("box", (x, PAINT, z), (half, PAINT, event.half_width), rotation(turn, 0, 0), color)
        for (x, _, z), half, turn in stripe(scene, time)
    ]  # fmt: skip


def flesh(scene: Scene) -> Vec3:
    """What bites lay bare: pale, or dark in what is pale itself."""
    pale = scene.things and scene.things[0].color in ("yellow", "orange", "white")
    return DARK if pale else PALE


def scoops(scene: Scene, time: float) -> list[Scoop]:
    """What is bitten off the first thing by `time`, in the world."""
    event = scene.event
    if not isinstance(event, Bites):
        return []
    thing = scene.things[0]
    foot = position(thing, time)
    return [
        Scoop((foot[0] + x * thing.scale, foot[1] + y * thing.scale, foot[2] + z * thing.scale),
              event.radius * thing.scale)
        for x, y, z in event.places[: event.taken(time)]
    ]  # fmt: skip
