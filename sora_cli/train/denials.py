"""What people say they do not want: "not a red ball but a blue one", "no clouds", "without snow".

`deny` gives words to put before and after a prompt, and what they rule out. A correction names the
wrong value of something that the prompt names rightly as well; an exclusion only rules one out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from sora_cli.train.captions import FLOOR_PHRASES, SKY_PHRASES
from sora_cli.train.wordings import DENIED, DOING, GOING
from sora_cli.train.words import ALL_KINDS
from sora_cli.train.world import COLORS, Scene


@dataclass(frozen=True, kw_only=True, slots=True)
class Denial:
    """Words around a prompt, and the (attribute, value) that they rule out."""

    before: str = ""
    after: str = ""
    excluded: tuple[tuple[str, str], ...] = ()

    def around(self, text: str) -> str:
        """The prompt with the denial."""
        return self.before + text + self.after


def article(word: str) -> str:
    """The word behind "a" or "an"."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def deny(scene: Scene, named: set[str], rng: random.Random) -> Denial:
    """Something that is not in the scene, denied; nothing where there is nothing to deny."""
    ways: list[Callable[[Scene, set[str], random.Random], Denial]] = [_no_place, _no_thing]
    if scene.num_frames > 1 and ("camera" in named and scene.camera == "static"):
        ways.append(_no_camera)
    if len(scene.things) == 1:
        if "kind0" in named and "color0" in named:
            ways += [_wrong_color] * 3 + [_wrong_thing] * 2
        elif "kind0" in named:
            ways += [_no_color] * 2 + [_wrong_thing]
        ways += [_no_motion] * (scene.num_frames > 1)
    ways += [_wrong_place] * (2 * bool({"floor", "sky"} & named))
    return rng.choice(ways)(scene, named, rng)


def _other(values: object, real: str, rng: random.Random) -> str:
    return rng.choice([value for value in values if value != real])  # type: ignore[attr-defined]


def _wrong_color(scene: Scene, named: set[str], rng: random.Random) -> Denial:
    thing = scene.things[0]
    wrong = _other(COLORS, thing.color, rng)
    noun = article(f"{wrong} {rng.choice(ALL_KINDS[thing.kind])}")
    one = article(f"{wrong} one")
    style = rng.random()
    before, after = "", ""
    if style < 0.45:
        before = rng.choice((f"not {noun} but ", f"not {noun}, but ", f"instead of {noun}, ",
                             f"no {noun.split(' ', 1)[1]}, ", f"not {wrong} but "))  # fmt: skip
    else:
        after = rng.choice((f", not {one}", f", not {wrong}", f" instead of {one}", f", not {noun}",
                            f", and not {one}", f" rather than {one}"))  # fmt: skip
    return Denial(before=before, after=after, excluded=(("color", wrong),))


def _wrong_thing(scene: Scene, named: set[str], rng: random.Random) -> Denial:
    wrong = _other(ALL_KINDS, scene.things[0].kind, rng)
    noun = article(rng.choice(ALL_KINDS[wrong]))
    before, after = "", ""
    if rng.random() < 0.4:
        before = rng.choice((f"not {noun} but ", f"instead of {noun}, ", f"not {noun}, "))
    else:
        after = rng.choice((f", not {noun}", f" instead of {noun}", f" rather than {noun}"))
    return Denial(before=before, after=after, excluded=(("kind", wrong),))


def _no_thing(scene: Scene, named: set[str], rng: random.Random) -> Denial:
    there = {thing.kind for thing in scene.things}
    wrong = rng.choice([kind for kind in ALL_KINDS if kind not in there])
    word = rng.choice(ALL_KINDS[wrong])
    many = "snowmen" if wrong == "snowman" else word + ("es" if word.endswith("x") else "s")
    after = rng.choice((f", no {many}", f" without {many}", f", without any {many}",
                        f" and no {word}", f" without {article(word)}"))  # fmt: skip
    return Denial(after=after, excluded=(("kind", wrong),))


def _no_color(scene: Scene, named: set[str], rng: random.Random) -> Denial:
    wrong = _other(COLORS, scene.things[0].color, rng)
    after = rng.choice((f", but not {wrong}", f", not {wrong}", f" that is not {wrong}",
                        f", any color but {wrong}"))  # fmt: skip
    return Denial(after=after, excluded=(("color", wrong),))


def _no_motion(scene: Scene, named: set[str], rng: random.Random) -> Denial:
    wrong = _other(DENIED["motion"], scene.things[0].motion, rng)
    words = rng.choice(DENIED["motion"][wrong]).format(go=rng.choice(GOING))
    before, after = "", rng.choice((", ", ", ", " ", ", and ")) + words
    if "motion0" in named and rng.random() < 0.4:
        right = rng.choice(DOING[scene.things[0].motion]).format(go=rng.choice(GOING))
        after = rng.choice((f", {words} but {right}", f", {right}, {words}"))
    return Denial(before=before, after=after, excluded=(("motion", wrong),))


def _no_place(scene: Scene, named: set[str], rng: random.Random) -> Denial:
    name = rng.choice(("floor", "sky", "sky"))
    wrong = _other(DENIED[name], getattr(scene, name), rng)
    if name == "sky" and scene.sky != "overcast" and rng.random() < 0.5:
        wrong = "overcast"  # the one that people ask for most
    words = rng.choice(DENIED[name][wrong])
    before = f"{words}, " if rng.random() < 0.2 else ""
    after = "" if before else rng.choice((", ", " ", ", but ", ", and ")) + words
    return Denial(before=before, after=after, excluded=((name, wrong),))


def _wrong_place(scene: Scene, named: set[str], rng: random.Random) -> Denial:
    name = rng.choice(sorted({"floor", "sky"} & named))
    table = FLOOR_PHRASES if name == "floor" else SKY_PHRASES
    real, wrong = getattr(scene, name), _other(table, getattr(scene, name), rng)
    bad, good = rng.choice(table[wrong]), rng.choice(table[real])
    after = rng.choice((f", not {bad} but {good}", f", not {bad}", f", {good}, not {bad}",
                        f", {good} instead of {bad}"))  # fmt: skip
    return Denial(after=after, excluded=((name, wrong),))


def _no_camera(scene: Scene, named: set[str], rng: random.Random) -> Denial:
    return Denial(after=rng.choice((", ", " ")) + rng.choice(DENIED["camera"]["static"]))
