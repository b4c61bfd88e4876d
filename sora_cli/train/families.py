"""The wide world: families of scenes beyond the plain one, and their shares.

A family is a row of `WIDE` and a function that draws it into an empty scene; its words are rows in
stories.py. What a split means for each: `held-out` pairs kind and colour (of the first thing; in
the game player and board) as training never does; `out-of-distribution` takes speeds, sizes and
heights outside of the ranges below.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

from sora_cli.train.events import (
    GRAVITY,
    Collision,
    Leg,
    Orbit,
    Trail,
    Wall,
    flight,
)
from sora_cli.train.grid_game import draw_game
from sora_cli.train.kang import FPS, KANG
from sora_cli.train.lasting import LATER
from sora_cli.train.physics import bites_around, collided, mass, shattered
from sora_cli.train.things import (
    BUILDS,
    COLORS,
    HEADED,
    THINGS,
    TURNABLE,
    WALLS,
    WIDER_THINGS,
    extent,
)
from sora_cli.train.world import (
    CAMERA_DISTANCE,
    CAMERA_HEIGHT,
    FLOORS,
    ORBITS,
    PLAIN,
    SKIES,
    Family,
    Mixture,
    Scene,
    Thing,
    draw_pairing,
    draw_plain,
    draw_size,
    draw_thing,
    heading,
    spread,
)

ALL = tuple(BUILDS)
SOLID = ("ball", "striped ball", "cube", "cylinder", "car")  # what knocks others about
EATEN = ("ball", "cube", "cylinder")
BRITTLE = ("ball", "cube", "cylinder", "cone", "snowman", "house")
NOT_LARGE = ("small", "medium")
LIKE_FLOOR: dict[str, tuple[str, ...]] = {  # colours of paint that is hardly seen there
    "grass": ("green",), "sand": ("yellow", "orange"), "snow": ("white",), "tiles": ("white",),
    "wood": ("orange", "red"), "water": ("blue", "cyan"),
}  # fmt: skip


def _stage(rng: random.Random, scene: Scene) -> Scene:
    """A place before a camera that stands still."""
    return replace(scene, floor=rng.choice(FLOORS), sky=rng.choice(SKIES))


def _cast(
    rng: random.Random, split: str, *, kinds: tuple[str, ...] = ALL,
    sizes: tuple[str, ...] = NOT_LARGE, unlike: tuple[Thing, ...] = (),
) -> Thing:  # fmt: skip
    """A thing at rest in the middle, of another kind and colour than those before it."""
    while True:
        kind, color = draw_pairing(rng, split, kinds)
        if all(kind != other.kind and color != other.color for other in unlike):
            break
    turned = rng.uniform(-0.45, 0.45) if kind in TURNABLE else 0.0
    return Thing(
        kind=kind, color=color, motion="still", start=(0.0, 0.0, 0.0), yaw=turned,
        **draw_size(rng, split, sizes),
    )  # fmt: skip


def _on_legs(thing: Thing, *legs: Leg, motion: str) -> Thing:
    """The thing on this way; what does not look where it goes keeps straight."""
    moving = next((leg for leg in legs if leg.speed), None)
    ahead = heading(moving.velocity[0], moving.velocity[2]) if moving else thing.yaw
    yaw = ahead if thing.kind in HEADED else 0.0
    return replace(thing, legs=legs, start=legs[0].start, motion=motion, yaw=yaw)


def _sign(rng: random.Random) -> tuple[float, str]:
    return rng.choice(((-1.0, "left"), (1.0, "right")))


# ---------------------------------------------------------------------- one thing


def draw_fleet(rng: random.Random, scene: Scene, split: str) -> Scene:
    """The plain motions with the new things; what rolls and steers does so."""
    scene = draw_plain(rng, scene, split, kinds=tuple(WIDER_THINGS))
    things = tuple(
        _on_legs(
            t, Leg(time=0.0, start=t.start, velocity=t.velocity), motion=t.motion
        ) if any(t.velocity) else t
        for t in scene.things
    )  # fmt: skip
    return replace(scene, things=things)


def draw_thrown(rng: random.Random, scene: Scene, split: str) -> Scene:
    """A thing flies in a parabola from one side to the other and lies where it lands."""
    scene, (sign, way) = _stage(rng, scene), _sign(rng)
    thing = _cast(rng, split)
    up = min(spread(rng, 2.2, 3.6, split), 0.42 * GRAVITY * scene.duration)
    lasts = 2 * up / GRAVITY
    reach = 0.72 * scene.half_width
    speed = min(2 * reach / lasts, spread(rng, 1.2, 2.6, split))
    waits = rng.uniform(0.1, 0.6) * (scene.duration - lasts)
    start = (-sign * speed * lasts / 2, 0.0, rng.uniform(-0.4, 0.6))
    legs = flight(start, (sign * speed, up, 0.0), waits)
    thing = _on_legs(thing, Leg(time=0.0, start=start), *legs, motion=f"thrown {way}")
    return replace(scene, things=(thing,))


def draw_launch(rng: random.Random, scene: Scene, split: str) -> Scene:
    """A rocket stands for a moment and takes off, faster and faster."""
    scene = _stage(rng, scene)
    thing = _cast(rng, split, kinds=("rocket",), sizes=("small", "medium", "large"))
    start = (rng.uniform(-0.5, 0.5) * scene.half_width, 0.0, rng.uniform(-0.4, 0.8))
    waits = rng.uniform(0.12, 0.4) * scene.duration
    rises = Leg(time=waits, start=start, acceleration=spread(rng, 1.0, 2.4, split))
    thing = _on_legs(thing, Leg(time=0.0, start=start), rises, motion="takes off")
    return replace(scene, things=(thing,))


def draw_circled(rng: random.Random, scene: Scene, split: str) -> Scene:
    """One or two things in place, and the camera goes around them."""
    camera = rng.choice(tuple(ORBITS))
    rate = spread(rng, *ORBITS[camera], split)
    scene = replace(_stage(rng, scene), camera=camera, camera_rate=rate)
    if rng.random() < 0.5:
        return replace(scene, things=(draw_thing(rng, scene, split, 0.0, True, ALL),))
    left = draw_thing(rng, scene, split, -0.42 * scene.half_width, False, ALL)
    while True:
        right = draw_thing(rng, scene, split, 0.42 * scene.half_width, False, ALL)
        if right.kind != left.kind and right.color != left.color:
            return replace(scene, things=(left, right))


# ---------------------------------------------------------------------- several things


def draw_three(rng: random.Random, scene: Scene, split: str) -> Scene:
    """Three things from left to right, each in its place."""
    scene = _stage(rng, scene)
    gap = min(0.68 * scene.half_width, 2.2)
    things: tuple[Thing, ...] = ()
    while len(things) < 3:
        thing = draw_thing(rng, scene, split, (len(things) - 1) * gap, False, ALL)
        if thing.motion in ("toward", "away"):
            continue
        x, y, _ = thing.start
        place = (x, y, 0.9 if len(things) == 1 else 0.1)
        thing = replace(thing, start=place, size="small")
        if all(thing.kind != t.kind and thing.color != t.color for t in things):
            things += (thing,)
    return replace(scene, things=things)


def draw_orbit(rng: random.Random, scene: Scene, split: str) -> Scene:
    """A thing goes around another one, behind it and before it."""
    scene = _stage(rng, scene)
    mover = _cast(rng, split, kinds=tuple(k for k in ALL if k not in ("tree", "house")),
                  sizes=("small",))  # fmt: skip
    middle = _cast(rng, split, unlike=(mover,))
    middle = replace(middle, start=(0.0, 0.0, 0.5))
    need = sum(max(extent(t.kind)[0], extent(t.kind)[2]) * t.scale for t in (mover, middle))
    radius = max(need + 0.1, min(1.5, 0.6 * scene.half_width))
    turn, angle = rng.choice((-1, 1)) * spread(rng, 1.1, 2.0, split), rng.uniform(0, math.tau)
    start = (radius * math.cos(angle), 0.0, 0.5 + radius * math.sin(angle))
    speed = (-turn * radius * math.sin(angle), 0.0, turn * radius * math.cos(angle))
    leg = Leg(time=0.0, start=start, velocity=speed, turn=turn)
    mover = _on_legs(mover, leg, motion="orbits")
    return replace(scene, things=(mover, middle), event=Orbit(radius=radius))


def draw_collision(rng: random.Random, scene: Scene, split: str) -> Scene:
    """A thing runs into another, which stands or comes toward it; momentum is kept."""
    scene, (sign, _) = _stage(rng, scene), _sign(rng)
    sizes = NOT_LARGE if scene.half_width > 2.4 else ("small",)
    first = _cast(rng, split, kinds=SOLID, sizes=sizes)
    second = _cast(rng, split, kinds=SOLID, sizes=sizes, unlike=(first,))
    first, second = (replace(t, yaw=0.0) for t in (first, second))
    time = rng.uniform(0.3, 0.5) * scene.duration
    room = (0.8 * scene.half_width) / time
    speed = sign * min(room, spread(rng, 0.9, 2.2, split))
    other = -sign * min(room, rng.uniform(0.4, 1.2)) if rng.random() < 0.4 else 0.0
    event = Collision(
        time=time, masses=(mass(first), mass(second)), before=(speed, other),
        restitution=rng.uniform(0.35, 1.0),
    )  # fmt: skip
    where, lane = rng.uniform(-0.12, 0.12) * scene.half_width, rng.uniform(-0.3, 0.5)
    ways = collided((first, second), event, where, lane)
    words = [_way(legs[0].velocity[0]) for legs in ways]
    first = _on_legs(first, *ways[0], motion=words[0])
    second = _on_legs(second, *ways[1], motion=words[1])
    return replace(scene, things=(first, second), event=event)


def _way(speed: float) -> str:
    return "still" if not speed else "right" if speed > 0 else "left"


# ---------------------------------------------------------------------- what happens to one


def draw_behind(rng: random.Random, scene: Scene, split: str) -> Scene:
    """A thing goes behind a wall, is hidden for a while, and comes out again."""
    scene, (sign, way) = _stage(rng, scene), _sign(rng)
    thing = _cast(rng, split)
    lane, near = rng.uniform(0.7, 1.2), rng.uniform(-1.2, -0.8)
    share = (CAMERA_DISTANCE + near) / (CAMERA_DISTANCE + lane)
    wide, high, deep = (part * thing.scale for part in extent(thing.kind))
    reach = 0.82 * scene.half_width / CAMERA_DISTANCE * (CAMERA_DISTANCE + lane)
    speed = min(2 * reach / scene.duration, 2.2)
    hides = speed * min(spread(rng, 0.18, 0.3, split), 0.34) * scene.duration
    half = (share * (wide + hides / 2) + 0.04, 0.0, 0.1)
    back = (CAMERA_DISTANCE + near) / (CAMERA_DISTANCE + lane + deep)
    top = CAMERA_HEIGHT + max(share, back) * max(high - CAMERA_HEIGHT, 0.0)
    top = max(top, CAMERA_HEIGHT - back * (CAMERA_HEIGHT - high)) + 0.12
    middle = rng.uniform(-0.12, 0.12) * scene.half_width
    wall = Wall(
        center=(middle, top / 2, near), half=(half[0], top / 2, half[2]),
        color=rng.choice(tuple(WALLS)),
    )  # fmt: skip
    start = (middle / share - sign * speed * scene.duration / 2, 0.0, lane)
    leg = Leg(time=0.0, start=start, velocity=(sign * speed, 0.0, 0.0))
    return replace(scene, things=(_on_legs(thing, leg, motion=way),), event=wall)


def draw_trail(rng: random.Random, scene: Scene, split: str) -> Scene:
    """A thing paints a stripe where it goes: straight, round a corner, or in a circle."""
    scene, (sign, way) = _stage(rng, scene), _sign(rng)
    thing = _cast(rng, split, kinds=tuple(k for k in ALL if k != "tree"))
    seen = [c for c in COLORS if c not in LIKE_FLOOR[scene.floor]]
    color = thing.color if thing.color in seen and rng.random() < 0.6 else rng.choice(seen)
    reach, lane = 0.72 * scene.half_width, rng.uniform(-1.0, 0.2)
    speed = min(spread(rng, 0.7, 2.0, split), 2 * reach / scene.duration)
    path = rng.choice(("line", "line", "corner", "circle"))
    begin = (-sign * speed * scene.duration / 2, 0.0, lane)
    leg = Leg(time=0.0, start=begin, velocity=(sign * speed, 0.0, 0.0))
    legs: tuple[Leg, ...] = (leg,)
    motion = way
    if path == "corner":
        time = 0.5 * scene.duration
        off = Leg(time=time, start=leg.at(time), velocity=(0.0, 0.0, min(speed, 3 / time)))
        legs, motion = (leg, off), f"{way} then away"
    elif path == "circle":
        radius = min(0.5 * scene.half_width, 1.3)
        turn = sign * min(speed / radius, 1.9 * math.pi / scene.duration)
        leg = Leg(time=0.0, start=(0.0, 0.0, -0.9), turn=turn,
                  velocity=(turn * radius, 0.0, 0.0))  # fmt: skip
        legs, motion = (leg,), "circles"
    trail = Trail(color=color, half_width=0.40 * thing.scale)
    return replace(scene, things=(_on_legs(thing, *legs, motion=motion),), event=trail)


def draw_eaten(rng: random.Random, scene: Scene, split: str) -> Scene:
    """A thing loses one bite after the other."""
    scene = _stage(rng, scene)
    thing = _cast(rng, split, kinds=EATEN, sizes=("medium", "large"))
    place = (rng.uniform(-0.4, 0.4) * scene.half_width, 0.0, rng.uniform(-0.8, 0.4))
    thing = replace(thing, start=place, yaw=0.0)
    most = 4 if split == "out-of-distribution" else 3
    count = min(rng.randint(2, most), (scene.num_frames - 1) // 4)
    first, last = 0.18 * scene.duration, 0.84 * scene.duration
    times = tuple(
        first + (last - first) * (n + rng.uniform(0.0, 0.5)) / count for n in range(count)
    )
    body = BUILDS[thing.kind][0]
    event = bites_around(rng, times, body.half, body.shape)
    return replace(scene, things=(thing,), event=event)


def draw_broken(rng: random.Random, scene: Scene, split: str) -> Scene:
    """A thing bursts where it stands, or falls and breaks; its pieces stay."""
    scene = _stage(rng, scene)
    thing = _cast(rng, split, kinds=BRITTLE)
    place = (rng.uniform(-0.15, 0.15) * scene.half_width, 0.0, rng.uniform(-0.3, 0.4))
    time = rng.uniform(0.15, 0.35) * scene.duration
    rest = Leg(time=0.0, start=place)
    thing = _on_legs(thing, rest, motion="still")
    if rng.random() < 0.5:  # let go so that it hits the floor then
        height = min(spread(rng, 1.0, 1.8, split), 0.5 * GRAVITY * (0.4 * scene.duration) ** 2)
        start = (place[0], height, place[2])
        thing = _on_legs(thing, *flight(start, (0.0, 0.0, 0.0), 0.0), motion="falls")
        time = math.sqrt(2 * height / GRAVITY)
    count = rng.choice((3, 4, 5) if split != "out-of-distribution" else (2, 6))
    event = shattered(rng, thing, time, count, 0.8 * scene.half_width)
    return replace(scene, things=(thing,), event=event)


WIDE: Mixture = (
    replace(PLAIN[0], share=0.26),
    Family(name="fleet", share=0.09, draw=draw_fleet),
    Family(name="thrown", share=0.06, draw=draw_thrown, least_frames=9),
    Family(name="launch", share=0.04, draw=draw_launch, least_frames=9),
    Family(name="circled", share=0.05, draw=draw_circled, least_frames=9),
    Family(name="three", share=0.07, draw=draw_three),
    Family(name="orbit", share=0.05, draw=draw_orbit, least_frames=9),
    Family(name="collision", share=0.07, draw=draw_collision, least_frames=9),
    Family(name="behind", share=0.07, draw=draw_behind, least_frames=17),
    Family(name="trail", share=0.06, draw=draw_trail, least_frames=9),
    Family(name="eaten", share=0.06, draw=draw_eaten, least_frames=9),
    Family(name="broken", share=0.06, draw=draw_broken, least_frames=17),
    Family(name="game", share=0.06, draw=draw_game),
)
# What happens, and least often comes right after a training on WIDE: more of it, to go on with.
EVENTFUL: Mixture = tuple(
    replace(next(family for family in WIDE if family.name == name), share=share)
    for name, share in (
        ("game", 0.26), ("behind", 0.22), ("broken", 0.16), ("trail", 0.14), ("eaten", 0.11),
        ("collision", 0.11),
    )
)  # fmt: skip
MIXTURES: dict[str, Mixture] = {
    "plain": PLAIN, "wide": WIDE, "eventful": EVENTFUL, "lasting": LATER, "kang": KANG,
}  # fmt: skip
FRAME_RATES = {"kang": FPS}  # frames a second of clips for training; else 8
assert set(THINGS) < set(ALL)
