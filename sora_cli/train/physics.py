"""What is true of an interaction: when things touch, what a wall hides, what is eaten or broken.

Closed forms over the records of events.py; families.py draws with them and the report card
measures against them. Metres, seconds, radians.
"""

from __future__ import annotations

import math
import random

from sora_cli.train.events import (
    GRAVITY,
    Bites,
    Breaking,
    Collision,
    Leg,
    Piece,
    Trail,
    Vec3,
    Wall,
    flight,
)
from sora_cli.train.things import ROLLING, extent, volume
from sora_cli.train.world import (
    CAMERA_DISTANCE,
    CAMERA_HEIGHT,
    Scene,
    Thing,
    position,
    yaw,
)

ROUND = {"ball": 0.55, **ROLLING}  # balls: they touch above and below their middles
LATTICE = 24  # points along each side of the grid on which bitten volume is counted


def mass(thing: Thing) -> float:
    """Of a thing of 1 kg/m³."""
    return volume(thing.kind) * thing.scale**3


def contact_distance(left: Thing, right: Thing) -> float:
    """How far apart (m, along x) the middles of two things on one lane are when they touch."""
    reach = [extent(t.kind)[0] * t.scale for t in (left, right)]
    if left.kind in ROUND and right.kind in ROUND:  # their middles are not at one height
        return 2 * math.sqrt(reach[0] * reach[1])
    return sum(reach)


def collided(
    things: tuple[Thing, Thing], event: Collision, where: float, lane: float
) -> tuple[tuple[Leg, ...], tuple[Leg, ...]]:
    """The legs of two things that meet at x = `where` on the lane z, the first from its side."""
    side = math.copysign(1.0, event.before[0] - event.before[1])  # +1: the first comes from left
    gap = contact_distance(*things)
    rows = []
    for number, (before, after) in enumerate(zip(event.before, event.after, strict=True)):
        x = where + side * gap * (-0.5 if number == 0 else 0.5)
        first = Leg(time=0.0, start=(x - before * event.time, 0.0, lane), velocity=(before, 0, 0))
        rows.append((first, Leg(time=event.time, start=(x, 0.0, lane), velocity=(after, 0, 0))))
    return rows[0], rows[1]


def corners(thing: Thing, time: float) -> list[Vec3]:
    """The eight corners (m) of the box around a thing."""
    x, y, z = position(thing, time)
    half, height, deep = (part * thing.scale for part in extent(thing.kind))
    cos, sin = math.cos(yaw(thing, time)), math.sin(yaw(thing, time))
    return [
        (x + cos * a + sin * b, y + up, z - sin * a + cos * b)
        for a in (-half, half) for b in (-deep, deep) for up in (0.0, height)
    ]  # fmt: skip


def behind(wall: Wall, point: Vec3) -> bool:
    """Whether the wall stands between the unmoved camera and a point."""
    front = wall.center[2] - wall.half[2]
    share = (CAMERA_DISTANCE + front) / (CAMERA_DISTANCE + point[2])
    x, y = share * point[0], CAMERA_HEIGHT + share * (point[1] - CAMERA_HEIGHT)
    aside, above = abs(x - wall.center[0]), y - wall.center[1]
    return point[2] > front and aside < wall.half[0] and above < wall.half[1]


def hidden_share(scene: Scene, frame: int) -> float:
    """How many of the first thing's corners its wall hides, 0 to 1: 1 means all of the thing."""
    assert isinstance(scene.event, Wall)
    points = corners(scene.things[0], frame / scene.fps)
    return sum(behind(scene.event, point) for point in points) / len(points)


def hidden_frames(scene: Scene) -> list[int]:
    """The frames in which nothing is seen of what passes behind the wall."""
    return [f for f in range(scene.num_frames) if hidden_share(scene, f) == 1.0]


def stripe(scene: Scene, time: float) -> list[tuple[Vec3, float, float]]:
    """What is painted by `time`: straight pieces as (middle (m), half length (m), heading).

    A turning leg is painted in chords of half a metre, each so long that their outer corners meet.
    """
    assert isinstance(scene.event, Trail)
    wide = scene.event.half_width
    legs, found = scene.things[0].legs, []
    ends = [leg.time for leg in legs[1:]] + [math.inf]
    for leg, end in zip(legs, ends, strict=True):
        lasts = min(time, end) - leg.time
        if lasts <= 0 or not leg.speed:
            continue
        step = 0.5 / leg.speed if leg.turn else lasts
        beyond = wide * math.tan(abs(leg.turn) * step / 2) if leg.turn else 0.0
        for number in range(math.ceil(lasts / step - 1e-9)):
            begins = leg.time + number * step
            a, b = leg.at(begins), leg.at(min(begins + step, leg.time + lasts))
            middle = ((a[0] + b[0]) / 2, 0.0, (a[2] + b[2]) / 2)
            length = math.hypot(b[0] - a[0], b[2] - a[2])
            found.append((middle, length / 2 + beyond, math.atan2(a[2] - b[2], b[0] - a[0])))
    return found


def bites_around(rng: random.Random, times: tuple[float, ...], half: Vec3, shape: str) -> Bites:
    """Bites from the outline inwards, one beside the other, of a body with these half extents.

    They are nearer to the viewer than its middle, so that each is seen to be a hollow.
    """
    radius = 0.60 * half[0] if shape == "ball" else 0.45 * (half[0] + half[1]) / 2 + 0.12
    angle, way = math.radians(rng.uniform(20, 160)), rng.choice((-1, 1))
    places = []
    for _ in times:
        x, y = math.cos(angle), math.sin(angle)
        out = 0.92 if shape == "ball" else 0.92 / max(abs(x), abs(y))  # onto the outline
        places.append((out * half[0] * x, half[1] * (1 + out * y), -0.5 * half[2]))
        angle += way * math.radians(rng.uniform(55, 72))
    return Bites(times=times, places=tuple(places), radius=radius)


def share_left(event: Bites, half: Vec3, time: float, shape: str) -> float:
    """How much of a ball, box or cylinder of these half extents the bites have left, 0 to 1."""
    steps = [(2 * i + 1) / LATTICE - 1 for i in range(LATTICE)]
    inside = left = 0
    for x in steps:
        for y in steps:
            for z in steps:
                radii = {"ball": x * x + y * y + z * z, "cylinder": x * x + z * z}
                if radii.get(shape, 0.0) > 1:
                    continue
                inside += 1
                point = (x * half[0], (y + 1) * half[1], z * half[2])
                left += not any(
                    math.dist(point, place) < event.radius
                    for place in event.places[: event.taken(time)]
                )
    return left / inside


def shattered(rng: random.Random, thing: Thing, time: float, count: int, reach: float) -> Breaking:
    """A thing that bursts where it stands into `count` cubes of as much matter.

    They fly for one and the same time and land in a row within `reach` (m) to either side; their
    momenta cancel.
    """
    x, foot, z = position(thing, time)
    half = (mass(thing) / count) ** (1 / 3) / 2
    up, start = rng.uniform(1.5, 2.1), foot + max(extent(thing.kind)[1] * thing.scale / 2, half)
    lasts = (up + math.sqrt(up * up + 2 * GRAVITY * (start - half))) / GRAVITY
    apart = min(2 * reach / (count - 1), 4.4 * half)  # so that they lie side by side as seen
    away = [(-1) ** k * rng.uniform(0.2, 0.5) for k in range(count)]
    mean = sum(away) / count
    pieces = []
    for k in range(count):
        side = (k - (count - 1) / 2) * apart
        velocity = (0.9 * side / lasts, up, (away[k] - mean) / lasts)
        legs = flight((x + 0.1 * side, start, z), velocity, time, half)
        pieces.append(Piece(legs=legs, half=half, yaw=rng.uniform(-0.7, 0.7)))
    return Breaking(time=time, pieces=tuple(pieces))
