"""What can happen in a scene, as small records: pieces of motion, interactions, flat worlds.

Pure numbers and closed forms; no pictures, no words. Axes and units as in world.py (x right, y up,
z away; metres, seconds, radians). `Leg` is the one way in which new things move: rest, rolling,
parabolas, turns and flights after a blow are all legs, one after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

Vec3 = tuple[float, float, float]

GRAVITY = 5.0  # m/s²: a toy's gravity, so that a bounce spans several frames at 8 fps


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """Motion from `time` (s) on: uniform, plus an upward acceleration (m/s²) or a turn (rad/s).

    `turn` > 0 bends the path to the left of where it goes, seen from above (toward +z when going
    right); the speed over the floor stays.
    """

    time: float
    start: Vec3
    velocity: Vec3 = (0.0, 0.0, 0.0)
    acceleration: float = 0.0
    turn: float = 0.0

    @property
    def speed(self) -> float:
        """Metres a second over the floor."""
        return math.hypot(self.velocity[0], self.velocity[2])

    def at(self, time: float) -> Vec3:
        """Where it is (m) at `time`."""
        since = time - self.time
        (x, y, z), (vx, vy, vz) = self.start, self.velocity
        y += vy * since + 0.5 * self.acceleration * since * since
        if self.turn:
            angle = self.turn * since
            along, aside = math.sin(angle) / self.turn, (1 - math.cos(angle)) / self.turn
            return x + vx * along - vz * aside, y, z + vz * along + vx * aside
        return x + vx * since, y, z + vz * since

    def velocity_at(self, time: float) -> Vec3:
        """Metres a second at `time`."""
        since, (vx, vy, vz) = time - self.time, self.velocity
        cos, sin = math.cos(self.turn * since), math.sin(self.turn * since)
        return vx * cos - vz * sin, vy + self.acceleration * since, vz * cos + vx * sin

    def mirrored(self) -> Leg:
        """With left and right exchanged."""
        return replace(
            self, start=turned(self.start), velocity=turned(self.velocity), turn=-self.turn
        )


def turned(point: Vec3) -> Vec3:
    """A point or velocity as a mirror shows it."""
    return (-point[0], point[1], point[2])


def leg_at(legs: tuple[Leg, ...], time: float) -> Leg:
    """The last leg that has begun (the first one, before that)."""
    begun = [leg for leg in legs if leg.time <= time]
    return begun[-1] if begun else legs[0]


def flight(start: Vec3, velocity: Vec3, time: float, floor: float = 0.0) -> tuple[Leg, Leg]:
    """A throw under gravity, and lying still where it lands (at height `floor`)."""
    up, height = velocity[1], start[1] - floor
    lasts = (up + math.sqrt(up * up + 2 * GRAVITY * height)) / GRAVITY
    air = Leg(time=time, start=start, velocity=velocity, acceleration=-GRAVITY)
    x, _, z = air.at(time + lasts)
    return air, Leg(time=time + lasts, start=(x, floor, z))


# ---------------------------------------------------------------------- interactions


@dataclass(frozen=True, kw_only=True, slots=True)
class Collision:
    """The first two things hit each other along x: speeds (m/s) before and after, masses (kg)."""

    time: float
    masses: tuple[float, float]
    before: tuple[float, float]
    restitution: float

    @property
    def after(self) -> tuple[float, float]:
        """Momentum is kept; the speed at which they part is `restitution` of the approach."""
        (m, n), (v, w) = self.masses, self.before
        common = (m * v + n * w) / (m + n)
        away = self.restitution * (v - w) / (m + n)
        return common - n * away, common + m * away

    @property
    def momentum(self) -> float:
        """kg·m/s along x, before and after."""
        return sum(m * v for m, v in zip(self.masses, self.before, strict=True))

    @property
    def outcome(self) -> str:
        """What becomes of the first: it `bounces back`, `stops` or `goes on`."""
        speed = self.after[0] * math.copysign(1.0, self.before[0])
        if abs(speed) < 0.12:
            return "stops"
        return "goes on" if speed > 0 else "bounces back"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wall:
    """The first thing passes behind a wall: an upright box, in front of its path."""

    center: Vec3
    half: Vec3
    color: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Trail:
    """The first thing paints a stripe of this colour and half width (m) where it has been."""

    color: str
    half_width: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Bites:
    """The first thing loses balls of this radius at these places (both in the thing's units)."""

    times: tuple[float, ...]
    places: tuple[Vec3, ...]
    radius: float

    def taken(self, time: float) -> int:
        """How many bites are gone at `time` (s)."""
        return sum(t <= time for t in self.times)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A small cube that flies and then lies: its middle's legs, half side (m) and yaw."""

    legs: tuple[Leg, ...]
    half: float
    yaw: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Breaking:
    """From `time` (s) on the first thing is its pieces, which stay."""

    time: float
    pieces: tuple[Piece, ...]

    @property
    def settled(self) -> float:
        """When the last piece lies still (s)."""
        return max(piece.legs[-1].time for piece in self.pieces)


@dataclass(frozen=True, kw_only=True, slots=True)
class Orbit:
    """The first thing goes around the second, at this distance (m)."""

    radius: float


# ---------------------------------------------------------------------- flat worlds


@dataclass(frozen=True, kw_only=True, slots=True)
class Game:
    """A board of cells seen from above, column and row from the upper left; one action each
    `period` frames. Which cells the player passes follows from `grid_game.states`.
    """

    columns: int
    rows: int
    walls: frozenset[tuple[int, int]]
    coins: frozenset[tuple[int, int]]
    player: tuple[int, int]
    color: str
    board: str
    actions: tuple[str, ...]
    period: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Disc:
    """A flat ball in a square world: radius (m), colour, the legs of its middle (z unused)."""

    radius: float
    color: str
    legs: tuple[Leg, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Discs:
    """A world of `side` metres seen from the side, without perspective, shade or floor.

    `kind`: uniform | parabola | collision; `time` of the collision (s), None where there is none.
    """

    kind: str
    side: float
    discs: tuple[Disc, ...]
    time: float | None = None


Event = Collision | Wall | Trail | Bites | Breaking | Orbit | Game | Discs
FLAT = (Game, Discs)  # drawn by flat.py, not by the ray tracer
