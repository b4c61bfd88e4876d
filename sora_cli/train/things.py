"""The things of the world, made of primitives, and what is true of them at rest.

`THINGS` are the plain world's, which the shipped weights know; `WIDER_THINGS` come with the wide
one. A new thing is a row here and its words in words.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sora_cli.train.events import Vec3

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

WALLS: dict[str, Vec3] = {
    "grey": (0.46, 0.47, 0.50),
    "brown": (0.42, 0.26, 0.14),
    "black": (0.11, 0.11, 0.13),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One primitive of a thing, in the thing's own frame (origin on the floor below its middle)."""

    shape: str  # ball | box | cylinder | cone
    center: Vec3
    half: Vec3
    color: Vec3 | None = None  # None: the thing's own colour
    roll: float = 0.0  # about z, radians
    tilt: float = 0.0  # about x, radians


_DARK, _GLASS, _BARK, _SLATE, _SAIL = (
    (0.10, 0.10, 0.11),
    (0.55, 0.72, 0.80),
    (0.36, 0.22, 0.11),
    (0.33, 0.20, 0.17),
    (0.93, 0.91, 0.86),
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
WIDER_THINGS: dict[str, tuple[Part, ...]] = {  # the wide world's, beyond the plain ones
    "rocket": _parts(
        ("cylinder", (0, 0.78, 0), (0.27, 0.54, 0.27)),
        ("cone", (0, 1.60, 0), (0.27, 0.28, 0.27), {"color": _DARK}),
        ("box", (0, 0.27, 0), (0.56, 0.20, 0.05), {"color": _SLATE}),
        ("ball", (0, 0.98, -0.22), (0.13, 0.13, 0.09), {"color": _GLASS}),
    ),
    "boat": _parts(
        ("box", (0, 0.22, 0), (0.66, 0.20, 0.34)),
        ("cone", (0.86, 0.22, 0), (0.20, 0.20, 0.34), {"roll": -QUARTER}),
        ("cylinder", (0, 0.86, 0), (0.05, 0.48, 0.05), {"color": _BARK}),
        ("cone", (-0.02, 0.98, -0.08), (0.46, 0.42, 0.04), {"color": _SAIL}),
    ),
    "striped ball": _parts(
        ("ball", (0, 0.55, 0), (0.55, 0.55, 0.55)),
        ("cylinder", (0, 0.55, 0), (0.545, 0.15, 0.545), {"color": _DARK, "roll": QUARTER}),
    ),
}
BUILDS = THINGS | WIDER_THINGS  # of everything that can be rendered
TURNABLE = ("cube", "car", "house", "boat")  # things whose turning can be seen
HEADED = ("car", "boat", "striped ball")  # things that look where they go, on legs
ROLLING = {"striped ball": 0.55}  # things whose rolling is seen: their radius, in their own units


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
HELD_OUT_TOO = (("rocket", "orange"), ("boat", "green"), ("striped ball", "purple"))


def is_held_out(kind: str, color: str) -> bool:
    """Pairings that training never sees, though it sees each word elsewhere."""
    return (kind, color) in HELD_OUT or (kind, color) in HELD_OUT_TOO


def volume(kind: str) -> float:
    """What a thing of scale 1 fills (m³), its parts taken one by one: its mass at 1 kg/m³."""
    shares = {"ball": 4 * math.pi / 3, "box": 8.0, "cylinder": 2 * math.pi, "cone": 2 * math.pi / 3}
    return sum(shares[part.shape] * math.prod(part.half) for part in BUILDS[kind])


def extent(kind: str) -> Vec3:
    """Half of a thing's width and depth and its whole height (m), at scale 1 and yaw 0."""
    corners = [(part.center, _reach(part)) for part in BUILDS[kind]]
    x, z = (max(abs(center[axis]) + reach[axis] for center, reach in corners) for axis in (0, 2))
    return x, max(center[1] + reach[1] for center, reach in corners), z


def _reach(part: Part) -> Vec3:
    """Half extents along the thing's own axes, of a part that lies as it is rolled and tilted."""
    (x, y, z), roll, tilt = part.half, part.roll, part.tilt
    cos, sin = abs(math.cos(roll)), abs(math.sin(roll))
    if part.shape == "ball":
        return x, y, z
    x, y = cos * x + sin * y, sin * x + cos * y
    cos, sin = abs(math.cos(tilt)), abs(math.sin(tilt))
    return x, cos * y + sin * z, sin * y + cos * z
