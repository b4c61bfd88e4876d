"""Captions of scenes, from the same record that is rendered.

Two levels: `short` names a few attributes as a person would ("a red ball bounces"), `dense` names
every one in two or three sentences. Tables hold the wordings; a new thing or motion in world.py
needs its row here and nothing else. `named` tells which attributes a text mentions.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from sora_cli.train.world import COLORS, SIZES, THINGS, Scene, Thing

KIND_WORDS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "ball", "sphere"),
    "cube": ("cube", "cube", "block", "box"),
    "cylinder": ("cylinder",),
    "cone": ("cone",),
    "car": ("car",),
    "tree": ("tree",),
    "house": ("house",),
    "snowman": ("snowman",),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized", "medium"),
    "large": ("large", "big", "huge"),
}
MOVES: dict[str, str] = {"ball": "rolls", "cylinder": "rolls", "car": "drives"}  # else "slides"
MOTION_PHRASES: dict[str, tuple[str, ...]] = {  # {go}: rolls, drives or slides
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
FLOOR_PHRASES: dict[str, tuple[str, ...]] = {
    "grass": ("on the grass", "on green grass", "on a meadow"),
    "sand": ("on the sand", "on yellow sand", "on a sandy beach"),
    "snow": ("on the snow", "in the snow", "on white snow"),
    "tiles": ("on the tiles", "on a tiled floor", "on grey tiles"),
    "wood": ("on wood", "on a wooden floor", "on brown planks"),
    "water": ("on the water", "on blue water", "on the sea"),
}
SKY_PHRASES: dict[str, tuple[str, ...]] = {
    "day": ("by day", "on a sunny day", "under a blue sky", "in the daytime"),
    "sunset": ("at sunset", "in the evening", "under an orange sunset sky"),
    "night": ("at night", "under a dark night sky", "in the moonlight"),
    "overcast": ("on a cloudy day", "under an overcast sky", "under grey clouds"),
}
CAMERA_PHRASES: dict[str, tuple[str, ...]] = {
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


def attributes(scene: Scene) -> dict[str, str]:
    """Every attribute of a scene by name, as a judge reports them."""
    table = {"floor": scene.floor, "sky": scene.sky, "camera": scene.camera}
    table["count"] = str(len(scene.things))
    for number, thing in enumerate(scene.things):
        for name in ("kind", "color", "size", "motion"):
            table[f"{name}{number}"] = getattr(thing, name)
    return table


def _motion(thing: Thing, rng: random.Random) -> str:
    go = MOVES.get(thing.kind, "slides")
    return rng.choice(MOTION_PHRASES[thing.motion]).format(go=go)


def _noun(thing: Thing, rng: random.Random, *, color: bool = True, size: bool = False) -> str:
    words = [rng.choice(KIND_WORDS[thing.kind])]
    if color:
        words.insert(0, thing.color)
    if size:
        words.insert(0, rng.choice(SIZE_WORDS[thing.size]))
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def dense(scene: Scene, rng: random.Random) -> Caption:
    """Name every attribute: things with size, colour and motion, floor, sky, camera."""
    clauses = [
        f"{_noun(t, rng, size=True)} {_motion(t, rng) if scene.num_frames > 1 else 'stands'}"
        for t in scene.things
    ]
    floor, sky = rng.choice(FLOOR_PHRASES[scene.floor]), rng.choice(SKY_PHRASES[scene.sky])
    if len(clauses) == 2:
        sides = rng.choice((("on the left", "on the right"), ("at the left", "at the right")))
        clauses = [f"{c} {side}" for c, side in zip(clauses, sides, strict=True)]
        joined = rng.choice((" and ", ", while ", ", and ")).join(clauses)
        sentences = [_sentence(joined), _sentence(f"it is {floor}, {sky}")]
    else:
        sentences = rng.choice(
            (
                [_sentence(f"{clauses[0]} {floor} {sky}")],
                [_sentence(f"{clauses[0]} {floor}"), _sentence(f"it is {sky}")],
                [_sentence(f"{sky}, {clauses[0]} {floor}")],
            )
        )
    named = set(attributes(scene))
    if scene.num_frames > 1:
        sentences.append(_sentence(rng.choice(CAMERA_PHRASES[scene.camera])))
    else:
        named -= {"camera", "motion0", "motion1"}
        if rng.random() < 0.5:
            sentences.insert(0, "A picture.")
    return Caption(text=" ".join(sentences), named=frozenset(named))


def short(scene: Scene, rng: random.Random) -> Caption:
    """Name what a person in a hurry would: the thing, mostly its colour, some of the rest."""
    named: set[str] = {"count"}
    clauses = []
    for number, thing in enumerate(scene.things):
        color, size = rng.random() < 0.85, rng.random() < 0.15
        clause = _noun(thing, rng, color=color, size=size)
        named |= {f"kind{number}"}
        named |= {f"color{number}"} if color else set()
        named |= {f"size{number}"} if size else set()
        if scene.num_frames > 1 and rng.random() < (0.85 if len(scene.things) == 1 else 0.5):
            clause += " " + _motion(thing, rng)
            named.add(f"motion{number}")
        clauses.append(clause)
    text = " and ".join(clauses)
    if rng.random() < 0.6:
        text += " " + rng.choice(FLOOR_PHRASES[scene.floor])
        named.add("floor")
    if rng.random() < 0.5:
        sky = rng.choice(SKY_PHRASES[scene.sky])
        text = f"{text} {sky}" if rng.random() < 0.7 else f"{sky}, {text}"
        named.add("sky")
    if scene.num_frames > 1 and rng.random() < (0.15 if scene.camera == "static" else 0.6):
        text += ", " + rng.choice(CAMERA_PHRASES[scene.camera])
        named.add("camera")
    if rng.random() < 0.3:
        text = _sentence(text)
    return Caption(text=text, named=frozenset(named))


# ---------------------------------------------------------------------- reading captions back

_TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "floor": FLOOR_PHRASES,
    "sky": SKY_PHRASES,
    "camera": CAMERA_PHRASES,
}
_GO = ("rolls", "drives", "slides", "moves", "goes")


def _motion_patterns() -> list[tuple[str, str]]:
    rows = []
    for motion, phrases in MOTION_PHRASES.items():
        for phrase in phrases:
            forms = [phrase.format(go=g) for g in _GO] if "{go}" in phrase else [phrase]
            rows += [(form, motion) for form in forms]
    return sorted(rows, key=lambda row: -len(row[0]))


_MOTIONS = _motion_patterns()
_NOUN = re.compile(
    r"\b(?:(?P<size>" + "|".join(w for ws in SIZE_WORDS.values() for w in ws) + r") )?"
    r"(?:(?P<color>" + "|".join(COLORS) + r") )?"
    r"(?P<kind>" + "|".join({w for ws in KIND_WORDS.values() for w in ws}) + r")\b"
)  # fmt: skip


def _value(table: dict[str, tuple[str, ...]], word: str) -> str:
    return next(value for value, words in table.items() if word in words)


def read(text: str) -> dict[str, str]:
    """The attributes that a caption in these wordings names; nothing for what it does not say."""
    text = " ".join(text.lower().split())
    found: dict[str, str] = {}
    for name, table in _TABLES.items():
        rows = [(p, value) for value, phrases in table.items() for p in phrases]
        for phrase, value in sorted(rows, key=lambda row: -len(row[0])):
            if phrase in text:
                found[name] = value
                break
    nouns = list(_NOUN.finditer(text))
    found["count"] = str(len(nouns))
    for number, noun in enumerate(nouns):
        end = nouns[number + 1].start() if number + 1 < len(nouns) else len(text)
        found |= _read_thing(number, noun, text[noun.end() : end].split(".")[0])
    return found


def _read_thing(number: int, noun: re.Match[str], rest: str) -> dict[str, str]:
    found = {f"kind{number}": _value(KIND_WORDS, noun["kind"])}
    if noun["color"]:
        found[f"color{number}"] = noun["color"]
    if noun["size"]:
        found[f"size{number}"] = _value(SIZE_WORDS, noun["size"])
    rest = re.split(r", (?:the camera|static camera|zoom)", rest)[0]
    for phrase, motion in _MOTIONS:
        if phrase in rest:
            found[f"motion{number}"] = motion
            break
    return found


def vocabulary() -> frozenset[str]:
    """Every word that a caption can contain, lower case."""
    texts = [
        p
        for table in (*_TABLES.values(), KIND_WORDS, SIZE_WORDS)
        for ps in table.values()
        for p in ps
    ]
    texts += [form for form, _ in _MOTIONS] + list(COLORS) + list(SIZES) + list(THINGS)
    texts += ["a an and it is while on at the left right picture of"]
    return frozenset(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))
