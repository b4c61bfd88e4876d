"""The procedural 3D world: what is in a scene, and where everything is at each moment.

A `Scene` is a small frozen record (things, place, camera, size), drawn deterministically from
`(seed, index)`. Captions, renders and the report card's ground truth all come from it.
Axes: x right, y up, z away from the viewer; units are metres of a toy world, seconds, radians.
A new thing, motion, floor, sky or camera is a row in a table here (and its words in words.py).

`draw_scene` draws from a mixture of families. `PLAIN`, the default, is one family: what the shipped
weights know, and the same scenes for ever. families.py has the wide world, whose rows never change
the tables `THINGS`, `MOTIONS` and `CAMERAS` here: those are the plain world's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from sora_cli.train.events import GRAVITY, Event, Leg, Vec3, leg_at
from sora_cli.train.things import (
    COLORS,
    HEADED,
    HELD_OUT,
    HELD_OUT_TOO,
    QUARTER,
    ROLLING,
    SIZES,
    THINGS,
    TURNABLE,
    is_held_out,
)

CAMERA_HEIGHT, CAMERA_DISTANCE, LOOK_AT_HEIGHT = 1.5, 6.0, 1.2
TAN_HALF_FOV = 0.33  # of the frame's shorter side

FLOORS = ("grass", "sand", "snow", "tiles", "wood", "water")
SKIES = ("day", "sunset", "night", "overcast")


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One thing and its motion's numbers: where it starts (m), its velocity (m/s), spin (rad/s).

    Where there are `legs` they alone say where it is. `stretch` multiplies its size: 1 in range.
    """

    kind: str
    color: str
    size: str
    motion: str
    start: Vec3
    velocity: Vec3 = (0.0, 0.0, 0.0)
    yaw: float = 0.0
    spin: float = 0.0
    restitution: float = 0.0
    stretch: float = 1.0
    legs: tuple[Leg, ...] = ()

    @property
    def scale(self) -> float:
        """World metres per unit of the thing's parts."""
        return SIZES[self.size] * self.stretch


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Everything that a render, a caption and a judge need to know."""

    things: tuple[Thing, ...]
    floor: str
    sky: str
    camera: str
    camera_rate: float  # rad/s for pans, m/s for push and pull
    width: int
    height: int
    num_frames: int
    fps: float
    seed: int
    index: int
    family: str = "plain"
    event: Event | None = None

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the last."""
        return (self.num_frames - 1) / self.fps

    @property
    def half_width(self) -> float:
        """Half of the visible width (m) at the distance where things usually are."""
        return CAMERA_DISTANCE * TAN_HALF_FOV * max(1.0, self.width / self.height)


# ---------------------------------------------------------------------- motions


def bounce_height(start: float, restitution: float, time: float) -> float:
    """Height (m) of something dropped at rest from `start`, after `time` seconds.

    Each impact keeps `restitution` of the speed; flights are exact parabolas.
    """
    fall = math.sqrt(2 * start / GRAVITY)
    if time <= fall:
        return start - 0.5 * GRAVITY * time * time
    time, speed = time - fall, GRAVITY * fall * restitution
    while speed > 0.12:
        flight = 2 * speed / GRAVITY
        if time <= flight:
            return speed * time - 0.5 * GRAVITY * time * time
        time, speed = time - flight, speed * restitution
    return 0.0


def position(thing: Thing, time: float) -> Vec3:
    """Where the thing's foot is (m) at `time` (s)."""
    if thing.legs:
        return leg_at(thing.legs, time).at(time)
    x, y, z = (s + v * time for s, v in zip(thing.start, thing.velocity, strict=True))
    if thing.motion in ("bounces", "falls"):
        y = bounce_height(thing.start[1], thing.restitution, time)
    return x, y, z


def yaw(thing: Thing, time: float) -> float:
    """Turn about the vertical axis (rad) at `time` (s)."""
    if thing.kind in HEADED:
        for leg in reversed(thing.legs):
            if leg.speed and leg.time <= time:  # at rest it looks where it went last
                end = next((other.time for other in thing.legs if other.time > leg.time), time)
                vx, _, vz = leg.velocity_at(min(time, end))
                return heading(vx, vz)
    return thing.yaw + thing.spin * time


def heading(vx: float, vz: float) -> float:
    """The yaw (rad) that looks along a velocity (m/s)."""
    return math.atan2(-vz, vx)


def rolled(thing: Thing, time: float) -> float:
    """How far (rad) a thing whose rolling is seen has rolled, along where it looks; else 0."""
    if thing.kind not in ROLLING:
        return 0.0
    legs = thing.legs or (Leg(time=0.0, start=thing.start, velocity=thing.velocity),)
    ends = [leg.time for leg in legs[1:]] + [math.inf]
    way = sum(
        leg.speed * max(0.0, min(time, end) - leg.time) for leg, end in zip(legs, ends, strict=True)
    )
    return way / (ROLLING[thing.kind] * thing.scale)


def _still(thing: Thing, scene: Scene, rng: random.Random) -> Thing:
    return thing


def _sideways(sign: float) -> Callable[[Thing, Scene, random.Random], Thing]:
    def draw(thing: Thing, scene: Scene, rng: random.Random) -> Thing:
        reach = scene.half_width * rng.uniform(0.9, 1.5)
        speed = min(max(reach / max(scene.duration, 0.5), 0.55), 2.2)
        middle = rng.uniform(-0.15, 0.15) * scene.half_width
        x = middle - sign * speed * scene.duration / 2
        return replace(thing, start=(x, 0.0, thing.start[2]), velocity=(sign * speed, 0, 0))

    return draw


def _in_depth(sign: float) -> Callable[[Thing, Scene, random.Random], Thing]:
    def draw(thing: Thing, scene: Scene, rng: random.Random) -> Thing:
        near, far = -2.0, rng.uniform(2.5, 4.5)
        speed = min((far - near) / max(scene.duration, 0.5), 2.4) * rng.uniform(0.85, 1.0)
        z = near if sign > 0 else min(far, near + speed * scene.duration)
        return replace(thing, start=(thing.start[0] * 0.6, 0.0, z), velocity=(0, 0, sign * speed))

    return draw


def _bounces(thing: Thing, scene: Scene, rng: random.Random) -> Thing:
    x, _, z = thing.start
    return replace(thing, start=(x, rng.uniform(1.0, 1.7), z), restitution=rng.uniform(0.72, 0.92))


def _falls(thing: Thing, scene: Scene, rng: random.Random) -> Thing:
    x, _, z = thing.start
    return replace(thing, start=(x, rng.uniform(1.5, 2.2), z), restitution=0.0)


def _spins(thing: Thing, scene: Scene, rng: random.Random) -> Thing:
    return replace(thing, spin=rng.choice((-1, 1)) * rng.uniform(1.3, 2.4))


MOTIONS: dict[str, Callable[[Thing, Scene, random.Random], Thing]] = {
    "still": _still,
    "left": _sideways(-1.0),
    "right": _sideways(1.0),
    "toward": _in_depth(-1.0),
    "away": _in_depth(1.0),
    "bounces": _bounces,
    "falls": _falls,
    "spins": _spins,
}
IN_PLACE = ("still", "bounces", "spins")  # motions that stay readable while the camera moves

# ---------------------------------------------------------------------- cameras

CAMERAS: dict[str, tuple[float, float]] = {  # the range of |rate|: rad/s or m/s
    "static": (0.0, 0.0),
    "pan left": (0.09, 0.14),
    "pan right": (0.09, 0.14),
    "push in": (0.45, 0.75),
    "pull back": (0.45, 0.75),
}
ORBITS: dict[str, tuple[float, float]] = {  # the wide world's: around the middle of the place
    "orbit left": (0.30, 0.55),
    "orbit right": (0.30, 0.55),
}


def camera_pose(scene: Scene, time: float) -> tuple[Vec3, float, float]:
    """The camera's eye (m), yaw and pitch (rad; yaw > 0 looks right, pitch > 0 up) at `time`."""
    middle = time - scene.duration / 2
    angle, forward = 0.0, 0.0
    if scene.camera.startswith("pan"):
        angle = scene.camera_rate * middle * (1 if scene.camera == "pan right" else -1)
    elif scene.camera == "push in":
        forward = scene.camera_rate * time
    elif scene.camera == "pull back":
        forward = scene.camera_rate * (scene.duration - time)
    pitch = math.atan2(LOOK_AT_HEIGHT - CAMERA_HEIGHT, CAMERA_DISTANCE)
    if scene.camera in ORBITS:
        turn = scene.camera_rate * middle * (1 if scene.camera == "orbit right" else -1)
        x, z = CAMERA_DISTANCE * math.sin(turn), -CAMERA_DISTANCE * math.cos(turn)
        return (x, CAMERA_HEIGHT, z), -turn, pitch
    return (0.0, CAMERA_HEIGHT, -CAMERA_DISTANCE + forward), angle, pitch


# ---------------------------------------------------------------------- drawing scenes

OUTSIDE = "out-of-distribution"
SPLITS: dict[str, int] = {
    "training": 0, "development": 1, "final": 2, "held-out": 3, OUTSIDE: 4,
}  # fmt: skip


def draw_pairing(
    rng: random.Random, split: str, kinds: tuple[str, ...] = tuple(THINGS)
) -> tuple[str, str]:
    """Kind and colour: one of the held-out pairings in their split, any other elsewhere."""
    if split == "held-out":
        return rng.choice([row for row in (*HELD_OUT, *HELD_OUT_TOO) if row[0] in kinds])
    while True:
        pairing = rng.choice(kinds), rng.choice(tuple(COLORS))
        if not is_held_out(*pairing):
            return pairing


def draw_size(rng: random.Random, split: str, sizes: tuple[str, ...] = tuple(SIZES)) -> dict:
    """`size` and `stretch` of a thing; smaller and larger than any size out of distribution."""
    if split != OUTSIDE:
        return {"size": rng.choice(sizes)}
    if rng.random() < 0.5:
        return {"size": "small", "stretch": rng.uniform(0.6, 0.8)}
    return {"size": sizes[-1], "stretch": rng.uniform(1.15, 1.35)}


def spread(rng: random.Random, low: float, high: float, split: str) -> float:
    """A number of this range; out of distribution one well below or above it."""
    if split != OUTSIDE:
        return rng.uniform(low, high)
    if rng.random() < 0.5:
        return rng.uniform(0.45 * low, 0.75 * low)
    return rng.uniform(1.25 * high, 1.6 * high)


def _draw_motion(rng: random.Random, kind: str, scene: Scene, alone: bool) -> str:
    if scene.num_frames == 1:
        return "still"
    names = IN_PLACE if scene.camera != "static" else tuple(MOTIONS)
    allowed = [m for m in names if m != "spins" or kind in TURNABLE]
    if not alone:  # beside another thing: what keeps its lane
        allowed = [m for m in allowed if m in ("still", "bounces", "toward", "away", "falls")]
    return rng.choice(allowed)


def draw_thing(
    rng: random.Random, scene: Scene, split: str, x: float, alone: bool,
    kinds: tuple[str, ...] = tuple(THINGS),
) -> Thing:  # fmt: skip
    """One thing about `x` (m) with one of the plain motions; `alone`: no lane to keep."""
    kind, color = draw_pairing(rng, split, kinds)
    yaw0 = rng.uniform(-0.45, 0.45) if kind in TURNABLE else 0.0
    motion = _draw_motion(rng, kind, scene, alone)
    if motion in ("left", "right") and kind == "car":
        yaw0 = 0.0
    elif motion in ("toward", "away") and kind == "car":
        yaw0 = QUARTER
    elif motion == "still" and kind == "car":
        yaw0 = rng.uniform(-0.7, 0.7)
    size = draw_size(rng, split)
    start = (x, 0.0, rng.uniform(-0.6, 0.8))
    thing = Thing(kind=kind, color=color, motion=motion, start=start, yaw=yaw0, **size)
    thing = MOTIONS[motion](thing, scene, rng)
    return thing if split != OUTSIDE else _outside(thing, scene, rng)


def _outside(thing: Thing, scene: Scene, rng: random.Random) -> Thing:
    """The same motion at a pace or from a height that is never trained; half-way it is where
    it would have been.
    """
    if thing.motion in ("bounces", "falls"):
        x, y, z = thing.start
        return replace(thing, start=(x, y * rng.choice((0.5, 1.5)), z))
    slow = thing.motion in ("toward", "away") or rng.random() < 0.5  # in depth it hits the camera
    pace = rng.uniform(0.3, 0.5) if slow else rng.uniform(1.5, 2.0)
    start, velocity = thing.start, thing.velocity
    x, y, z = (s + v * (1 - pace) * scene.duration / 2
               for s, v in zip(start, velocity, strict=True))  # fmt: skip
    vx, vy, vz = (v * pace for v in velocity)
    return replace(thing, start=(x, y, z), velocity=(vx, vy, vz), spin=thing.spin * pace)


def draw_place(rng: random.Random, scene: Scene) -> Scene:
    """The scene's camera (one of the plain ones), floor and sky."""
    camera = "static"
    if scene.num_frames > 1 and rng.random() < 0.3:
        camera = rng.choice([name for name in CAMERAS if name != "static"])
    low, high = CAMERAS[camera]
    return replace(
        scene, floor=rng.choice(FLOORS), sky=rng.choice(SKIES), camera=camera,
        camera_rate=rng.uniform(low, high),
    )  # fmt: skip


def draw_plain(
    rng: random.Random, scene: Scene, split: str, num_things: int | None = None,
    kinds: tuple[str, ...] = tuple(THINGS),
) -> Scene:  # fmt: skip
    """The plain family: one or two things, each with a motion of its own."""
    scene = draw_place(rng, scene)
    count = num_things or (2 if rng.random() < 0.25 else 1)
    if count == 1:
        x = rng.uniform(-0.3, 0.3) * scene.half_width
        return replace(scene, things=(draw_thing(rng, scene, split, x, True, kinds),))
    gap = min(0.5 * scene.half_width, 1.7)
    left = draw_thing(rng, scene, split, -gap, False, kinds)
    right = draw_thing(rng, scene, split, gap, False, kinds)
    while right.kind == left.kind or right.color == left.color:  # tell them apart by either word
        right = draw_thing(rng, scene, split, gap, False, kinds)
    return replace(scene, things=(left, right))


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Scenes of one sort: how they are drawn into an empty scene, and their share of a mixture."""

    name: str
    share: float
    draw: Callable[[random.Random, Scene, str], Scene]
    least_frames: int = 1  # what happens takes that long


Mixture = tuple[Family, ...]
PLAIN: Mixture = (Family(name="plain", share=1.0, draw=draw_plain),)


def draw_scene(
    seed: int, index: int, *, width: int, height: int, num_frames: int, fps: float = 8.0,
    split: str = "training", num_things: int | None = None, mixture: Mixture = PLAIN,
) -> Scene:  # fmt: skip
    """Draw one scene, always the same for the same arguments.

    Splits never share a random stream; `held-out` draws only pairings that training never sees,
    `out-of-distribution` only speeds and sizes outside the trained range.

    Args:
        num_things: of a plain scene; None: drawn too.
        mixture: the families and their shares; `families.WIDE` is the whole world.
    """
    key = f"{SPLITS[split]}/{seed}/{index}"
    empty = Scene(
        things=(), floor="", sky="", camera="static", camera_rate=0.0, width=width, height=height,
        num_frames=num_frames, fps=fps, seed=seed, index=index,
    )  # fmt: skip
    if num_things is not None:
        return draw_plain(random.Random(key), empty, split, num_things)
    able = [family for family in mixture if family.least_frames <= num_frames]
    chooser = random.Random(f"family/{key}")  # a stream of its own: plain scenes stay as they are
    family = chooser.choices(able, [family.share for family in able])[0]
    return replace(family.draw(random.Random(key), empty, split), family=family.name)
