"""How people ask for a video: terse, in lists, in any order, misspelt, with words of their own.

`draw_pair` gives a prompt and the dense caption that a person would have meant by it: the caption
keeps every attribute that the prompt names and fills the rest from the world's own draw. The
wordings are in captions.py and wordings.py; the caption LLM learns from nothing else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sora_cli.train.captions import (
    CAMERA_PHRASES,
    FLOOR_PHRASES,
    KIND_WORDS,
    MOTION_PHRASES,
    SIZE_WORDS,
    SKY_PHRASES,
    attributes,
    dense,
    read,
    short,
    vocabulary,
)
from sora_cli.train.denials import Denial, article, deny
from sora_cli.train.wordings import (
    ACTS,
    ADJECTIVES,
    AFTER,
    ASIDES,
    BEFORE,
    DENIED,
    DOES,
    DOING,
    GOES,
    GOING,
    NEAREST,
    ORDINARY,
    PICTURE,
    SIDEWAYS,
    STRANGERS,
    SYNONYMS,
)
from sora_cli.train.world import CAMERAS, HELD_OUT, MOTIONS, Scene, draw_scene


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A prompt, the caption that it should become, what it names, and what it rules out."""

    prompt: str
    caption: str
    named: dict[str, str]
    excluded: tuple[tuple[str, str], ...] = ()


class _Plain(random.Random):
    """Chooses the first wording of every table: one way to say each thing, easiest to learn."""

    def choice(self, seq: Any) -> Any:
        """The first."""
        return seq[0]

    def random(self) -> float:
        """Never leaves anything out."""
        return 0.0


def plain_caption(scene: Scene) -> str:
    """The dense caption in the plainest words, the form in which the caption LLM answers."""
    return dense(scene, _Plain()).text


def known_words() -> frozenset[str]:
    """Every word the expander understands as it is meant: captions', synonyms, ordinary words."""
    tables = (*SYNONYMS.values(), *DENIED.values(), DOING, DOES)
    texts = [phrase for table in tables for phrases in table.values() for phrase in phrases]
    words = {w for t in texts for w in re.findall(r"[a-z0-9]+", t.replace("{go}", ""))}
    return vocabulary() | words | set(GOING) | set(GOES) | set(ORDINARY)


FORMS = ("plain", "typos", "order", "synonyms", "negation", "two things")


def draw_pair(seed: int, index: int, split: str = "training", form: str | None = None) -> Pair:
    """Draw one pair, always the same for the same arguments.

    form: one of FORMS, for a test of just that; None draws from all, as in training.
    """
    rng = random.Random(f"prompt/{split}/{seed}/{index}" + (f"/{form}" if form else ""))
    frames = 1 if form is None and rng.random() < 0.1 else 25
    two = form == "two things" or (form is None and rng.random() < 0.3)  # harder: more often
    scene = draw_scene(
        seed, index, width=160, height=96, num_frames=frames, split=split,
        num_things=2 if two else 1 if form == "negation" else None,
    )  # fmt: skip
    style = rng.random()
    if style < 0.2 and form in (None, "typos"):  # the DiT's own captions, in any wording
        if style < 0.1:
            caption = short(scene, rng)
        else:
            scene = _recombine(scene, set(attributes(scene)), rng)
            caption = dense(scene, rng)
        prompt, named = caption.text.lower().removeprefix(PICTURE), set(caption.named)
        denial = Denial()
    else:
        if form is None and rng.random() < 0.03 and len(scene.things) == 2:
            return _twins(scene, rng)
        named = _draw_named(scene, rng)
        if form == "two things":
            named |= {"kind0", "kind1", "color0", "color1"}
        scene = _recombine(scene, named, rng)
        denies = form == "negation" or (form is None and rng.random() < 0.25)
        denial = deny(scene, named, rng) if denies else Denial()
        prompt = denial.around(_compose(scene, named, rng, form))
    prompt = _roughen(prompt, rng) if form is None else _formed(prompt, form, rng)
    table = {k: v for k, v in attributes(scene).items() if k in named}
    return Pair(
        prompt=PICTURE * (frames == 1) + prompt, caption=plain_caption(scene), named=table,
        excluded=denial.excluded,
    )  # fmt: skip


def _formed(prompt: str, form: str, rng: random.Random) -> str:
    """A prompt of one form, without the other rough edges; typos in one word or two."""
    words = prompt.lower().split()
    if form == "typos":
        long = [number for number, word in enumerate(words) if len(word) > 3 and word.isalpha()]
        for number in rng.sample(long, min(len(long), rng.choice((1, 1, 2)))):
            words[number] = misspell(words[number], rng)
    return " ".join(words)


def _draw_named(scene: Scene, rng: random.Random) -> set[str]:
    named = {"count"}
    chances = {"kind": 0.97, "color": 0.8, "size": 0.35, "motion": 0.7}
    for number in range(len(scene.things)):
        named |= {f"{name}{number}" for name, p in chances.items() if rng.random() < p}
    named |= {n for n, p in (("floor", 0.5), ("sky", 0.5), ("camera", 0.3)) if rng.random() < p}
    return named - ({"motion0", "motion1", "camera"} if scene.num_frames == 1 else set())


def _recombine(scene: Scene, named: set[str], rng: random.Random) -> Scene:
    """Now and then let the prompt name what the world, or its training split, never draws together.

    A language model that never read "cyan ball" learns that there is none, and would write another
    thing. Only what is named is changed: nobody is given such a pairing unasked.
    """
    things = tuple(
        replace(thing, color=dict(HELD_OUT)[thing.kind])
        if {f"kind{number}", f"color{number}"} <= named and rng.random() < 0.15
        else thing
        for number, thing in enumerate(scene.things)
    )
    scene = replace(scene, things=things)
    if scene.num_frames == 1 or rng.random() > 0.35:
        return scene
    alike = rng.choice(tuple(MOTIONS)) if rng.random() < 0.25 else None  # for both of them
    things = tuple(
        replace(thing, motion=alike or rng.choice(tuple(MOTIONS)))
        if f"motion{number}" in named
        else thing
        for number, thing in enumerate(things)
    )
    camera = rng.choice(tuple(CAMERAS)) if "camera" in named else "static"
    return replace(scene, things=things, camera=camera)


# ---------------------------------------------------------------------- wording


def _pick(
    name: str, value: str, phrases: Sequence[str], rng: random.Random, form: str | None = None
) -> str:
    """A wording: mostly the world's own, sometimes a synonym, seldom the nearest thing's."""
    chance = {None: rng.random(), "synonyms": 0.4}.get(form, 1.0)
    near, same = NEAREST.get(name, {}).get(value, ()), SYNONYMS[name].get(value, ())
    if chance < 0.06 and near:
        return rng.choice(near)
    return rng.choice(same) if chance < 0.45 and same else rng.choice(phrases)


def _noun(
    scene: Scene, number: int, named: set[str], rng: random.Random, form: str | None = None
) -> str:
    thing = scene.things[number]
    words = [rng.choice(STRANGERS) if rng.random() < 0.7 else "something"]
    if f"kind{number}" in named:
        words = [_pick("kind", thing.kind, KIND_WORDS[thing.kind], rng, form)]
    color = _pick("color", thing.color, (thing.color,) * 9, rng, form)
    if f"color{number}" in named and rng.random() < 0.93:
        words.insert(0, color)
        color = ""
    if f"size{number}" in named:
        words.insert(0, _pick("size", thing.size, SIZE_WORDS[thing.size], rng, form))
    if rng.random() < 0.08 and form != "plain":
        words.insert(rng.randrange(len(words)), rng.choice(ADJECTIVES))
    if rng.random() < 0.75:
        chosen = rng.choice(("a", "a", "a", "the", "one", "my"))
        words = [article(words[0]) if chosen == "a" else f"{chosen} {words[0]}", *words[1:]]
    if f"color{number}" in named and color:
        words.append(rng.choice(("that is", "which is", "in", "colored")) + " " + color)
    return " ".join(words)


def _motion(scene: Scene, number: int, named: set[str], rng: random.Random, verb: str) -> str:
    motion = scene.things[number].motion
    if f"motion{number}" not in named:
        if motion in SIDEWAYS and rng.random() < 0.3:  # going, it isn't said where
            return rng.choice(GOING if verb == "ing" else GOES)
        return rng.choice(ACTS) if rng.random() < 0.1 else ""
    if verb == "ing":
        return rng.choice(DOING[motion]).format(go=rng.choice(GOING))
    if rng.random() < 0.2:
        return "is " + rng.choice(DOING[motion]).format(go=rng.choice(GOING))
    phrases = DOES if rng.random() < 0.3 else MOTION_PHRASES
    return rng.choice(phrases[motion]).format(go=rng.choice(GOES))


def _clauses(
    scene: Scene, named: set[str], rng: random.Random, verb: str, form: str | None
) -> list[str]:
    motions = {thing.motion for thing in scene.things}
    alike = len(scene.things) == 2 and len(motions) == 1 and {"motion0", "motion1"} <= named
    if alike and rng.random() < 0.6:  # "a ball and a cube both bouncing"
        left, right = (_noun(scene, number, named, rng, form) for number in (0, 1))
        doing = rng.choice(DOING[motions.pop()]).format(go=rng.choice(GOING))
        return [f"{left} and {right} {rng.choice(('both', 'both are', 'are both'))} {doing}"]
    clauses = []
    for number in range(len(scene.things)):
        noun = _noun(scene, number, named, rng, form)
        motion = _motion(scene, number, named, rng, verb)
        first = verb == "ing" and motion and len(motion.split()) == 1 and rng.random() < 0.4
        clauses.append(f"{motion} {noun}" if first else f"{noun} {motion}".strip())
    return clauses


def _join(clauses: list[str], rng: random.Random) -> str:
    """Two things in one phrase; the first is the left one."""
    if len(clauses) == 1:
        return clauses[0]
    left, right = clauses
    style = rng.random()
    if style < 0.55:
        return left + rng.choice((" and ", " and ", ", ", " with ", " next to ", " beside ",
                                  ", while ", " plus ", ". next to it ")) + right  # fmt: skip
    if style < 0.7:
        return f"{left} on the left and {right} on the right"
    if style < 0.8:
        return f"{right} on the right, {left} on the left"
    if style < 0.85:
        return f"on the left {left}, on the right {right}"
    return f"{left} to the left of {right}" if style < 0.92 else f"{right} to the right of {left}"


def _told_apart(scene: Scene, named: set[str], rng: random.Random) -> str:
    """Two things first, then what colours they have: "a ball and a cube, the ball is red …"."""
    nouns = [rng.choice(KIND_WORDS[thing.kind]) for thing in scene.things]
    colors = [thing.color for thing in scene.things]
    both = " and ".join(article(noun) for noun in nouns)
    told = [f"the {noun} is {color}" for noun, color in zip(nouns, colors, strict=True)]
    if rng.random() < 0.3:
        told.reverse()
    return rng.choice((
        f"{both}, {' and '.join(told)}", f"{both}. {', '.join(told)}",
        f"{both}, the first {colors[0]}, the second {colors[1]}",
        f"{both}, {colors[0]} and {colors[1]}",
        f"{both}, one {colors[0]}, the other {colors[1]}",
    ))  # fmt: skip


def _compose(scene: Scene, named: set[str], rng: random.Random, form: str | None = None) -> str:
    places = []
    for name, table in (("floor", FLOOR_PHRASES), ("sky", SKY_PHRASES)):
        if name in named:
            value = getattr(scene, name)
            places.append(_pick(name, value, table[value], rng, form))
    camera = ""
    if "camera" in named:
        camera = _pick("camera", scene.camera, CAMERA_PHRASES[scene.camera], rng, form)
    style = {"plain": rng.uniform(0.35, 0.9), "order": rng.uniform(0, 0.35)}.get(
        form or "", rng.random()
    )
    verb = "ing" if style < 0.65 else "s"
    clauses = _clauses(scene, named, rng, verb, form)
    colored = named >= {"kind0", "kind1", "color0", "color1"}
    if style < 0.35:  # a list, in any order
        things = [_join(clauses, rng)]
        if len(scene.things) == 1 and rng.random() < 0.6:
            things = [_noun(scene, 0, named, rng, form), _motion(scene, 0, named, rng, verb)]
        items = [item for item in (*things, *places, camera) if item]
        rng.shuffle(items)
        return rng.choice((", ", ", ", ",", " ", "; ", " / ", ". ")).join(items)
    text = _join(clauses, rng)
    if colored and not named & {"size0", "size1", "motion0", "motion1"} and rng.random() < 0.4:
        text = _told_apart(scene, named, rng)
    return _sentence(text, places, camera, style > 0.9, rng)


def _sentence(
    text: str, places: list[str], camera: str, separate: bool, rng: random.Random
) -> str:  # fmt: skip
    """Things, places and camera as people order them in sentences."""
    if rng.random() < 0.3:
        places.reverse()
    if separate:  # one sentence for each fact
        facts = [text, *(f"it is {place}" for place in places), camera]
        return ". ".join(fact for fact in facts if fact)
    lead = (
        places.pop() + rng.choice((", ", ", ", " ", ": ")) if places and rng.random() < 0.25 else ""
    )
    text = " ".join([lead + text, *places])
    if camera:
        text = f"{camera}, {text}" if rng.random() < 0.2 else f"{text}, {camera}"
    return text


def _twins(scene: Scene, rng: random.Random) -> Pair:
    """Two of a kind ("two red balls bounce"), which the world itself never draws."""
    first = scene.things[0]
    second = replace(first, size=scene.things[1].size)
    scene = replace(scene, things=(first, second), camera="static")
    noun = rng.choice(KIND_WORDS[first.kind])
    noun = {"box": "boxe", "snowman": "snowmen"}.get(noun, noun)
    plural = noun if noun.endswith("men") else noun + "s"
    named = {"count", "kind0", "kind1"}
    words = ["two", plural]
    if rng.random() < 0.7:
        words.insert(1, first.color)
        named |= {"color0", "color1"}
    if scene.num_frames > 1 and rng.random() < 0.6:
        words.append(rng.choice(DOING[first.motion]).format(go=rng.choice(GOING)))
        named |= {"motion0", "motion1"}
    prompt = _roughen(" ".join(words), rng)
    table = {k: v for k, v in attributes(scene).items() if k in named}
    prompt = PICTURE * (scene.num_frames == 1) + prompt
    return Pair(prompt=prompt, caption=plain_caption(scene), named=table)


# ---------------------------------------------------------------------- rough edges


def _roughen(text: str, rng: random.Random) -> str:
    """Drop articles, add filler, asides, rambling, misspell; each now and then. Lower case."""
    if rng.random() < 0.15:
        text = " ".join(w for w in text.split() if w not in ("a", "an", "the", "is", "it"))
    if rng.random() < 0.06:
        text = f"{text} {rng.choice(ASIDES)}"
    if rng.random() < 0.01 and text:
        text = " ".join([text] * rng.randint(2, 2 + 240 // len(text)))
    if rng.random() < 0.03:
        words = rng.choices(ORDINARY + STRANGERS, k=rng.randint(4, 50))
        at = rng.randint(0, len(words))
        text = " ".join([*words[:at], text, *words[at:]])
    if rng.random() < 0.25:
        text = f"{rng.choice(BEFORE)} {text}"
    if rng.random() < 0.2:
        text = (text + rng.choice(AFTER)).strip()
    if rng.random() < 0.1:
        text = " ".join(misspell(w, rng) if rng.random() < 0.25 else w for w in text.split())
    return text.lower().rstrip(".") if rng.random() < 0.5 else text.lower()


def misspell(word: str, rng: random.Random) -> str:
    """One slip of the finger in a word of four letters or more."""
    if len(word) < 4 or not word.isalpha():
        return word
    at = rng.randrange(1, len(word) - 1)
    slip = rng.random()
    if slip < 0.35:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if slip < 0.65:
        return word[:at] + word[at + 1 :]
    if slip < 0.85:
        return word[:at] + word[at] + word[at:]
    return word[:at] + rng.choice("aeiourstnl") + word[at + 1 :]


def kept(pair: Pair, caption: str) -> dict[str, bool]:
    """For each attribute that the prompt names or rules out, whether a caption does as it says."""
    found = read(caption)
    table = {name: found.get(name) == value for name, value in pair.named.items()}
    for name, value in pair.excluded:
        keys = [key for key in found if key.rstrip("01") == name]
        table[f"not {name}"] = bool(keys) and all(found[key] != value for key in keys)
    return table
