"""Captions of scenes, from the same record that is rendered.

Two levels: `short` names a few attributes as a person would ("a red ball bounces"), `dense` names
every one in two or three sentences. words.py holds the wordings, stories.py what happens between
things and in flat worlds. `named` tells which attributes a text mentions. `read` and `vocabulary`
are of the plain world.
"""

from __future__ import annotations

import random
import re

from sora_cli.train import stories
from sora_cli.train.words import (
    ALL_CAMERAS,
    CAMERA_PHRASES,
    FLOOR_PHRASES,
    KIND_WORDS,
    MOTION_PHRASES,
    MOVES,
    SIZE_WORDS,
    SKY_PHRASES,
    Caption,
    motion,
    noun,
    sentence,
)
from sora_cli.train.world import COLORS, SIZES, THINGS, Scene

__all__ = (
    "CAMERA_PHRASES", "FLOOR_PHRASES", "KIND_WORDS", "MOTION_PHRASES", "MOVES", "SIZE_WORDS",
    "SKY_PHRASES", "Caption", "attributes", "dense", "read", "short", "vocabulary",
)  # fmt: skip
SIDES = {
    2: (("on the left", "on the right"), ("at the left", "at the right")),
    3: (("on the left", "in the middle", "on the right"),),
}


def attributes(scene: Scene) -> dict[str, str]:
    """Every attribute of a scene by name, as a judge reports them."""
    if scene.event is not None:
        return stories.attributes(scene)
    table = {"floor": scene.floor, "sky": scene.sky, "camera": scene.camera}
    table["count"] = str(len(scene.things))
    for number, thing in enumerate(scene.things):
        for name in ("kind", "color", "size", "motion"):
            table[f"{name}{number}"] = getattr(thing, name)
    return table


def dense(scene: Scene, rng: random.Random) -> Caption:
    """Name every attribute: things with size, colour and motion, floor, sky, camera."""
    if scene.event is not None:
        return stories.dense(scene, rng)
    clauses = [
        f"{noun(t, rng, size=True)} {motion(t, rng) if scene.num_frames > 1 else 'stands'}"
        for t in scene.things
    ]
    floor, sky = rng.choice(FLOOR_PHRASES[scene.floor]), rng.choice(SKY_PHRASES[scene.sky])
    if len(clauses) > 1:
        sides = rng.choice(SIDES[len(clauses)])
        clauses = [f"{c} {side}" for c, side in zip(clauses, sides, strict=True)]
        joined = rng.choice((" and ", ", while ", ", and ")).join(clauses)
        sentences = [sentence(joined), sentence(f"it is {floor}, {sky}")]
    else:
        sentences = rng.choice(
            (
                [sentence(f"{clauses[0]} {floor} {sky}")],
                [sentence(f"{clauses[0]} {floor}"), sentence(f"it is {sky}")],
                [sentence(f"{sky}, {clauses[0]} {floor}")],
            )
        )
    named = set(attributes(scene))
    if scene.num_frames > 1:
        sentences.append(sentence(rng.choice(ALL_CAMERAS[scene.camera])))
    else:
        named -= {"camera", "motion0", "motion1", "motion2"}
        if rng.random() < 0.5:
            sentences.insert(0, "A picture.")
    return Caption(text=" ".join(sentences), named=frozenset(named))


def short(scene: Scene, rng: random.Random) -> Caption:
    """Name what a person in a hurry would: the thing, mostly its colour, some of the rest."""
    if scene.event is not None:
        return stories.short(scene, rng)
    named: set[str] = {"count"}
    clauses = []
    for number, thing in enumerate(scene.things):
        color, size = rng.random() < 0.85, rng.random() < 0.15
        clause = noun(thing, rng, color=color, size=size)
        named |= {f"kind{number}"}
        named |= {f"color{number}"} if color else set()
        named |= {f"size{number}"} if size else set()
        if scene.num_frames > 1 and rng.random() < (0.85 if len(scene.things) == 1 else 0.5):
            clause += " " + motion(thing, rng)
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
        text += ", " + rng.choice(ALL_CAMERAS[scene.camera])
        named.add("camera")
    if rng.random() < 0.3:
        text = sentence(text)
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
    for value, phrases in MOTION_PHRASES.items():
        for phrase in phrases:
            forms = [phrase.format(go=g) for g in _GO] if "{go}" in phrase else [phrase]
            rows += [(form, value) for form in forms]
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
    for number, match in enumerate(nouns):
        end = nouns[number + 1].start() if number + 1 < len(nouns) else len(text)
        found |= _read_thing(number, match, text[match.end() : end].split(".")[0])
    return found


def _read_thing(number: int, match: re.Match[str], rest: str) -> dict[str, str]:
    found = {f"kind{number}": _value(KIND_WORDS, match["kind"])}
    if match["color"]:
        found[f"color{number}"] = match["color"]
    if match["size"]:
        found[f"size{number}"] = _value(SIZE_WORDS, match["size"])
    rest = re.split(r", (?:the camera|static camera|zoom)", rest)[0]
    for phrase, value in _MOTIONS:
        if phrase in rest:
            found[f"motion{number}"] = value
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
