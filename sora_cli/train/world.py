"""The procedural 3D world: what is in a scene, and where everything is at each moment.

A `Scene` is a small frozen record (things, place, camera, size), drawn deterministically from
`(seed, index)`. Captions, renders and the report card's ground truth all come from it.
Axes: x right, y up, z away from the viewer; units are metres of a toy world, seconds, radians.
A new thing, motion, floor, sky or camera is a row in a table here (and its words in captions.py).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

Vec3 = tuple[float, float, float]

GRAVITY = 5.0  # m/s²: a toy's gravity, so that a bounce spans several frames at 8 fps
CAMERA_HEIGHT, CAMERA_DISTANCE, LOOK_AT_HEIGHT = 1.5, 6.0, 1.2
TAN_HALF_FOV = 0.33  # of the frame's shorter side

COLORS: dict[str, Vec3] = {
    "red": (0.86, 0.07, 0.07),
    "orange": (1.00, 0.45, 0.03),
    "yellow": (0.97, 0.86, 0.08),
    "green": (0.08, 0.58, 0.14),
    "cyan": (0.08, 0.80, 0.86),
    "blue": (0.08, 0.17, 0.86),
    "purple": (0.54, 0.13, 0.76),
    "white": (0.95, 0.95, 0.95),
}
SIZES: dict[str, float] = {"small": 0.85, "medium": 1.12, "large": 1.45}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One primitive of a thing, in the thing's own frame (origin on the floor below its middle)."""

    shape: str  # ball | box | cylinder | cone
    center: Vec3
    half: Vec3
    color: Vec3 | None = None  # None: the thing's own colour
    roll: float = 0.0  # about z, radians
    tilt: float = 0.0  # about x, radians


_DARK, _GLASS, _BARK, _SLATE = (
    (0.10, 0.10, 0.11),
    (0.55, 0.72, 0.80),
    (0.36, 0.22, 0.11),
    (0.33, 0.20, 0.17),
)


def _parts(*rows: tuple) -> tuple[Part, ...]:
    return tuple(
        Part(shape=r[0], center=r[1], half=r[2], **(r[3] if len(r) > 3 else {})) for r in rows
    )


QUARTER = math.pi / 2
THINGS: dict[str, tuple[Part, ...]] = {
    "ball": _parts(("ball", (0, 0.55, 0), (0.55, 0.55, 0.55))),
    "cube": _parts(("box", (0, 0.48, 0), (0.48, 0.48, 0.48))),
    "cylinder": _parts(("cylinder", (0, 0.62, 0), (0.38, 0.62, 0.38))),
    "cone": _parts(("cone", (0, 0.62, 0), (0.60, 0.62, 0.60))),
    "car": _parts(
        ("box", (0, 0.42, 0), (0.92, 0.22, 0.44)),
        ("box", (-0.06, 0.80, 0), (0.50, 0.20, 0.38), {"color": _GLASS}),
        ("cylinder", (0.54, 0.22, 0), (0.22, 0.47, 0.22), {"color": _DARK, "tilt": QUARTER}),
        ("cylinder", (-0.54, 0.22, 0), (0.22, 0.47, 0.22), {"color": _DARK, "tilt": QUARTER}),
    ),
    "tree": _parts(
        ("cylinder", (0, 0.35, 0), (0.13, 0.35, 0.13), {"color": _BARK}),
        ("ball", (0, 1.05, 0), (0.56, 0.52, 0.56)),
    ),
    "house": _parts(
        ("box", (0, 0.45, 0), (0.62, 0.45, 0.52)),
        ("box", (0, 0.72, 0), (0.46, 0.46, 0.50), {"color": _SLATE, "roll": math.pi / 4}),
        ("box", (0, 0.24, -0.53), (0.13, 0.24, 0.02), {"color": _DARK}),
    ),
    "snowman": _parts(
        ("ball", (0, 0.40, 0), (0.44, 0.42, 0.44)),
        ("ball", (0, 0.98, 0), (0.31, 0.30, 0.31)),
        ("ball", (0, 1.40, 0), (0.21, 0.20, 0.21)),
        ("cylinder", (0, 1.66, 0), (0.18, 0.12, 0.18), {"color": _DARK}),
    ),
}
TURNABLE = ("cube", "car", "house")  # things whose turning can be seen

FLOORS = ("grass", "sand", "snow", "tiles", "wood", "water")
SKIES = ("day", "sunset", "night", "overcast")


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One thing and its motion's numbers: where it starts (m), its velocity (m/s), spin (rad/s)."""

    kind: str
    color: str
    size: str
    motion: str
    start: Vec3
    velocity: Vec3 = (0.0, 0.0, 0.0)
    yaw: float = 0.0
    spin: float = 0.0
    restitution: float = 0.0

    @property
    def scale(self) -> float:
        """World metres per unit of the thing's parts."""
        return SIZES[self.size]


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
    x, y, z = (s + v * time for s, v in zip(thing.start, thing.velocity, strict=True))
    if thing.motion in ("bounces", "falls"):
        y = bounce_height(thing.start[1], thing.restitution, time)
    return x, y, z


def yaw(thing: Thing, time: float) -> float:
    """Turn about the vertical axis (rad) at `time` (s)."""
    return thing.yaw + thing.spin * time


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
    return (0.0, CAMERA_HEIGHT, -CAMERA_DISTANCE + forward), angle, pitch


# ---------------------------------------------------------------------- drawing scenes

HELD_OUT = (
    ("ball", "cyan"),
    ("cube", "orange"),
    ("car", "purple"),
    ("tree", "blue"),
    ("cone", "green"),
    ("house", "yellow"),
    ("snowman", "red"),
    ("cylinder", "white"),
)
SPLITS: dict[str, int] = {"training": 0, "development": 1, "final": 2, "held-out": 3}


def is_held_out(kind: str, color: str) -> bool:
    """Pairings that training never sees, though it sees each word elsewhere."""
    return (kind, color) in HELD_OUT


def _draw_pairing(rng: random.Random, split: str) -> tuple[str, str]:
    if split == "held-out":
        return rng.choice(HELD_OUT)
    while True:
        pairing = rng.choice(tuple(THINGS)), rng.choice(tuple(COLORS))
        if not is_held_out(*pairing):
            return pairing


def _draw_motion(rng: random.Random, kind: str, scene: Scene, alone: bool) -> str:
    if scene.num_frames == 1:
        return "still"
    names = IN_PLACE if scene.camera != "static" else tuple(MOTIONS)
    allowed = [m for m in names if m != "spins" or kind in TURNABLE]
    if not alone:  # beside another thing: what keeps its lane
        allowed = [m for m in allowed if m in ("still", "bounces", "toward", "away", "falls")]
    return rng.choice(allowed)


def _draw_thing(rng: random.Random, scene: Scene, split: str, x: float, alone: bool) -> Thing:
    kind, color = _draw_pairing(rng, split)
    yaw0 = rng.uniform(-0.45, 0.45) if kind in TURNABLE else 0.0
    motion = _draw_motion(rng, kind, scene, alone)
    if motion in ("left", "right") and kind == "car":
        yaw0 = 0.0
    elif motion in ("toward", "away") and kind == "car":
        yaw0 = QUARTER
    elif motion == "still" and kind == "car":
        yaw0 = rng.uniform(-0.7, 0.7)
    size = rng.choice(tuple(SIZES))
    start = (x, 0.0, rng.uniform(-0.6, 0.8))
    thing = Thing(kind=kind, color=color, size=size, motion=motion, start=start, yaw=yaw0)
    return MOTIONS[motion](thing, scene, rng)


def draw_scene(
    seed: int, index: int, *, width: int, height: int, num_frames: int, fps: float = 8.0,
    split: str = "training", num_things: int | None = None,
) -> Scene:  # fmt: skip
    """Draw one scene, always the same for the same arguments.

    Splits never share a random stream; `held-out` draws only pairings that training never sees.
    """
    rng = random.Random(f"{SPLITS[split]}/{seed}/{index}")
    camera = "static"
    if num_frames > 1 and rng.random() < 0.3:
        camera = rng.choice([name for name in CAMERAS if name != "static"])
    low, high = CAMERAS[camera]
    scene = Scene(
        things=(), floor=rng.choice(FLOORS), sky=rng.choice(SKIES), camera=camera,
        camera_rate=rng.uniform(low, high), width=width, height=height, num_frames=num_frames,
        fps=fps, seed=seed, index=index,
    )  # fmt: skip
    count = num_things or (2 if rng.random() < 0.25 else 1)
    if count == 1:
        x = rng.uniform(-0.3, 0.3) * scene.half_width
        return replace(scene, things=(_draw_thing(rng, scene, split, x, True),))
    gap = min(0.5 * scene.half_width, 1.7)
    left = _draw_thing(rng, scene, split, -gap, False)
    right = _draw_thing(rng, scene, split, gap, False)
    while right.kind == left.kind or right.color == left.color:  # tell them apart by either word
        right = _draw_thing(rng, scene, split, gap, False)
    return replace(scene, things=(left, right))
