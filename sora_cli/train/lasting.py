"""What goes on when a clip's motion is over: windows of a longer time, for videos in many pieces.

A caption's motion takes one clip; a minute of video is fifteen, each given the end of the one
before. Trained on beginnings alone, a piece starts the motion anew or puts a second thing beside
the first (docs/log.md). Here a scene is seen again from some later moment on: what rolled, drove
or fell comes to rest where its way ends and stays there, what bounces goes on bouncing, what spins
goes on spinning. Such clips only ever follow given frames (dit.py).
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

from sora_cli.train.events import GRAVITY, Leg
from sora_cli.train.things import BUILDS, HEADED
from sora_cli.train.world import Family, Mixture, Scene, Thing, draw_plain, heading, position

LASTING = "lasting"  # the family's name
_BRAKES = ((0.25, 0.66), (0.25, 0.33))  # seconds at a share of the speed, before it rests


def draw_lasting(rng: random.Random, scene: Scene, split: str) -> Scene:
    """A plain scene under a camera that stands, from a later moment on; a picture stays plain."""
    kinds = tuple(BUILDS)
    if scene.num_frames == 1:
        return draw_plain(rng, scene, split, kinds=kinds)
    while (drawn := draw_plain(rng, scene, split, kinds=kinds)).camera != "static":
        pass
    if rng.random() >= 0.4:
        return long_after(rng, drawn)
    moment = rng.uniform(0.5, 1.0) * scene.duration
    return replace(drawn, things=tuple(_later(rng, t, drawn, moment) for t in drawn.things))


def long_after(rng: random.Random, scene: Scene) -> Scene:
    """A plain scene when every way has come to its end; what bounces or spins goes on."""
    moment = (1 + len(_BRAKES)) * scene.duration
    return replace(scene, things=tuple(_later(rng, t, scene, moment) for t in scene.things))


def _later(rng: random.Random, thing: Thing, scene: Scene, moment: float) -> Thing:
    """The thing as it goes on after `moment` (s) of its clip."""
    if thing.motion == "bounces":
        return _bouncing(rng, thing)
    if thing.motion == "falls":
        x, _, z = thing.start
        return replace(thing, start=(x, 0.0, z), legs=(Leg(time=0.0, start=(x, 0.0, z)),))
    if not any(thing.velocity):
        return thing
    legs, yaw = _braked(thing, scene.duration), thing.yaw
    if thing.kind in HEADED:
        yaw = heading(thing.velocity[0], thing.velocity[2])
    going = [replace(leg, time=leg.time - moment) for leg in legs]
    here = max(0, sum(leg.time <= 0 for leg in going) - 1)
    first = replace(going[here], time=0.0, start=going[here].at(0.0))
    return replace(thing, start=first.start, yaw=yaw, legs=(first, *going[here + 1 :]))


def _braked(thing: Thing, duration: float) -> list[Leg]:
    """The thing's way for the clip's time (s), a short braking, and rest."""
    legs, time, share = [Leg(time=0.0, start=thing.start, velocity=thing.velocity)], duration, 1.0
    for seconds, share in _BRAKES:
        vx, vy, vz = (share * v for v in thing.velocity)
        legs.append(Leg(time=time, start=legs[-1].at(time), velocity=(vx, vy, vz)))
        time += seconds
    return [*legs, Leg(time=time, start=legs[-1].at(time))]


def _bouncing(rng: random.Random, thing: Thing) -> Thing:
    """Flights of one height without end (for half a minute), from some moment of the first on."""
    x, _, z = position(thing, 0.0)
    up = math.sqrt(2 * GRAVITY * rng.uniform(0.4, 1.3))
    lasts = 2 * up / GRAVITY
    time, legs = -rng.uniform(0.0, lasts), []
    for _ in range(math.ceil(30 / lasts)):
        legs.append(
            Leg(time=time, start=(x, 0.0, z), velocity=(0.0, up, 0.0), acceleration=-GRAVITY)
        )
        time += lasts
    first = legs[0]
    velocity = (0.0, up + GRAVITY * first.time, 0.0)
    legs[0] = replace(first, time=0.0, start=first.at(0.0), velocity=velocity)
    return replace(thing, start=legs[0].start, legs=tuple(legs))


LATER: Mixture = (Family(name=LASTING, share=1.0, draw=draw_lasting),)
