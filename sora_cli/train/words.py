"""The words of captions: what each value is called, in several ways.

A new thing, motion, floor, sky or camera has its row here. The plain tables are those that the
shipped weights know, and that lexicon.py tells the prompt's reader; the wider ones stand apart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sora_cli.train.world import Thing

Words = dict[str, tuple[str, ...]]

KIND_WORDS: Words = {
    "ball": ("ball", "ball", "sphere"),
    "cube": ("cube", "cube", "block", "box"),
    "cylinder": ("cylinder",),
    "cone": ("cone",),
    "car": ("car",),
    "tree": ("tree",),
    "house": ("house",),
    "snowman": ("snowman",),
}
SIZE_WORDS: Words = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized", "medium"),
    "large": ("large", "big", "huge"),
}
MOVES: dict[str, str] = {"ball": "rolls", "cylinder": "rolls", "car": "drives"}  # else "slides"
MOTION_PHRASES: Words = {  # {go}: rolls, drives or slides
    "still": ("stands still", "does not move", "rests", "stands there", "stays in place"),
    "left": ("{go} to the left", "{go} left", "moves to the left", "{go} from right to left"),
    "right": ("{go} to the right", "{go} right", "moves to the right", "{go} from left to right"),
    "toward": ("{go} toward the camera", "comes closer", "{go} toward the viewer",
               "approaches the camera"),
    "away": ("{go} away from the camera", "{go} away", "moves away into the distance",
             "{go} into the distance"),
    "bounces": ("bounces", "bounces up and down", "jumps up and down", "keeps bouncing"),
    "falls": ("falls", "falls to the ground", "drops from above", "falls from the sky"),
    "spins": ("spins", "spins on the spot", "turns around", "rotates"),
}  # fmt: skip
FLOOR_PHRASES: Words = {
    "grass": ("on the grass", "on green grass", "on a meadow"),
    "sand": ("on the sand", "on yellow sand", "on a sandy beach"),
    "snow": ("on the snow", "in the snow", "on white snow"),
    "tiles": ("on the tiles", "on a tiled floor", "on grey tiles"),
    "wood": ("on wood", "on a wooden floor", "on brown planks"),
    "water": ("on the water", "on blue water", "on the sea"),
}
SKY_PHRASES: Words = {
    "day": ("by day", "on a sunny day", "under a blue sky", "in the daytime"),
    "sunset": ("at sunset", "in the evening", "under an orange sunset sky"),
    "night": ("at night", "under a dark night sky", "in the moonlight"),
    "overcast": ("on a cloudy day", "under an overcast sky", "under grey clouds"),
}
CAMERA_PHRASES: Words = {
    "static": ("the camera stays still", "the camera does not move", "static camera"),
    "pan left": ("the camera pans left", "the camera turns to the left"),
    "pan right": ("the camera pans right", "the camera turns to the right"),
    "push in": ("the camera moves closer", "the camera pushes in", "zoom in"),
    "pull back": ("the camera pulls back", "the camera moves back", "zoom out"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A text and the attributes it names: `color0`, `kind0`, `motion1`, `floor`, `camera`…"""

    text: str
    named: frozenset[str]


WIDER_KINDS: Words = {
    "rocket": ("rocket", "rocket", "space rocket", "spaceship"),
    "boat": ("boat", "boat", "sailing boat", "ship"),
    "striped ball": ("striped ball", "striped ball", "ball with a black stripe"),
}
WIDER_MOVES = {"boat": "sails", "striped ball": "rolls"}
_THROWN: Words = {
    f"thrown {way}": (
        f"is thrown to the {way}",
        f"flies to the {way} in an arc",
        f"is tossed to the {way}",
        f"flies through the air to the {way} and lands",
        f"is thrown {way} in a high arc",
    )
    for way in ("left", "right")
}
WIDER_MOTIONS: Words = _THROWN | {
    "takes off": ("takes off", "lifts off", "takes off into the sky", "flies up into the sky",
                  "launches"),
}  # fmt: skip
ORBIT_PHRASES: Words = {
    "orbit left": ("the camera circles to the left", "the camera orbits to the left",
                   "the camera moves around to the left"),
    "orbit right": ("the camera circles to the right", "the camera orbits to the right",
                    "the camera moves around to the right"),
}  # fmt: skip
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
          "eleven", "twelve")  # fmt: skip
ALL_KINDS: Words = KIND_WORDS | WIDER_KINDS
ALL_MOTIONS: Words = MOTION_PHRASES | WIDER_MOTIONS
ALL_CAMERAS: Words = CAMERA_PHRASES | ORBIT_PHRASES


def going(thing: Thing) -> str:
    """How a thing goes: it rolls, drives, sails or slides."""
    return (MOVES | WIDER_MOVES).get(thing.kind, "slides")


def motion(thing: Thing, rng: random.Random) -> str:
    """What a thing does, in one of the ways to say it."""
    return rng.choice(ALL_MOTIONS[thing.motion]).format(go=going(thing))


def noun(thing: Thing, rng: random.Random, *, color: bool = True, size: bool = False) -> str:
    """A thing with its article, and its colour and size where they are said."""
    words = [rng.choice(ALL_KINDS[thing.kind])]
    if color:
        words.insert(0, thing.color)
    if size:
        words.insert(0, rng.choice(SIZE_WORDS[thing.size]))
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def sentence(text: str) -> str:
    """A clause as a sentence."""
    return text[0].upper() + text[1:] + "."
