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
from functools import lru_cache

from sora_cli.pipeline.checking import told
from sora_cli.pipeline.lexicon import Lexicon, parse_lexicon
from sora_cli.train import stories
from sora_cli.train.asking import ASKED, GAME_WORDS, OUTCOMES, ask, truth
from sora_cli.train.captions import (
    FLOOR_PHRASES,
    SKY_PHRASES,
    dense,
    read,
    short,
    vocabulary,
)
from sora_cli.train.denials import Denial, article, deny
from sora_cli.train.events import Game
from sora_cli.train.families import WIDE
from sora_cli.train.lexicon import lexicon
from sora_cli.train.plainest import EVENTS, plain_caption
from sora_cli.train.recasting import recombine
from sora_cli.train.slips import misspell, roughen, slightly
from sora_cli.train.wordings import (
    ACTS,
    ADJECTIVES,
    DENIED,
    DOES,
    DOING,
    GOES,
    GOING,
    NEAREST,
    ORDINARY,
    PICTURE,
    ROUND,
    SIDEWAYS,
    STRANGERS,
    SYNONYMS,
    THROWN,
)
from sora_cli.train.words import ALL_CAMERAS, ALL_KINDS, ALL_MOTIONS, SIZE_WORDS
from sora_cli.train.world import ORBITS, PLAIN, Mixture, Scene, draw_scene

BEYOND: Mixture = tuple(family for family in WIDE if family.name != "plain")
STORIES: Mixture = tuple(f for f in BEYOND if f.name in (*EVENTS, "game"))
WIDE_SHARE = 0.42  # of the pairs, of scenes beyond the plain world
PLURALS = {"box": "boxes", "snowman": "snowmen"}
NUMBER_WORDS = ("", "one", "two", "three")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A prompt, the caption that it should become, what it names, and what it rules out."""

    prompt: str
    caption: str
    named: dict[str, str]
    excluded: tuple[tuple[str, str], ...] = ()
    wide: bool = False  # of a scene beyond the plain world


def known_words() -> frozenset[str]:
    """Every word the expander understands as it is meant: captions', synonyms, ordinary words."""
    tables = (*SYNONYMS.values(), *DENIED.values(), DOING, DOES, ASKED, OUTCOMES)
    texts = [phrase for table in tables for phrases in table.values() for phrase in phrases]
    texts += [*GAME_WORDS, *THROWN, *ROUND]
    words = {w for t in texts for w in re.findall(r"[a-z0-9]+", re.sub(r"{\w+}", "", t))}
    return vocabulary() | stories.vocabulary() | words | set(GOING) | set(GOES) | set(ORDINARY)


FORMS = ("plain", "typos", "order", "synonyms", "negation", "two things", "wide", "stories")


def draw_pair(seed: int, index: int, split: str = "training", form: str | None = None) -> Pair:
    """Draw one pair, always the same for the same arguments.

    form: one of FORMS, for a test of just that; of the last two, "wide" is of all scenes beyond
        the plain world, "stories" of those with an event. None draws from all, as in training.
    """
    key = f"{split}/{seed}/{index}"
    rng = random.Random(f"prompt/{key}" + (f"/{form}" if form else ""))
    wide = form in ("wide", "stories")
    if form is None:  # of a stream of its own: plain pairs stay as they are
        wide = random.Random(f"world/{key}").random() < WIDE_SHARE
    frames = 1 if form is None and rng.random() < 0.1 else 25
    two = form == "two things" or (form is None and rng.random() < 0.3)  # harder: more often
    scene = draw_scene(
        seed, index, width=160, height=96, num_frames=frames, split=split,
        num_things=None if wide else 2 if two else 1 if form == "negation" else None,
        mixture=STORIES if form == "stories" else BEYOND if wide else PLAIN,
    )  # fmt: skip
    style = rng.random()
    if style < 0.2 and form in (None, "typos", "wide"):  # the DiT's own captions, in any wording
        if style < 0.1:
            caption = short(scene, rng)
        else:
            scene = recombine(scene, set(truth(scene)), rng)
            caption = dense(scene, rng)
        prompt, named = caption.text.lower().removeprefix(PICTURE), set(caption.named)
        denial = Denial()
    else:
        if form is None and rng.random() < 0.03 and len(scene.things) > 1 and not scene.event:
            return _twins(scene, rng, wide)
        prompt, named, denial, scene = _asked(scene, rng, form)
    exact = isinstance(scene.event, Game)  # whose words must not be shuffled or dropped
    edges = slightly if exact else roughen
    prompt = edges(prompt, rng) if form is None else _formed(prompt, form, rng)
    return Pair(
        prompt=PICTURE * (frames == 1) + prompt, caption=plain_caption(scene), wide=wide,
        named={k: v for k, v in truth(scene).items() if k in named}, excluded=denial.excluded,
    )  # fmt: skip


def _asked(
    scene: Scene, rng: random.Random, form: str | None
) -> tuple[str, set[str], Denial, Scene]:
    """A prompt in people's words, what it names, what it denies, and the scene that it is of."""
    named = _draw_named(scene, rng)
    if form == "two things":
        named |= {"kind0", "kind1", "color0", "color1"}
    scene = recombine(scene, named, rng)
    if scene.event is not None:
        text, said = ask(scene, named, rng, lambda n: _noun(scene, n, named, rng, form))
        if isinstance(scene.event, Game):
            return text, said, Denial(), scene
        named = said | (named & {"floor", "sky"})
        places, _ = _places(scene, named, rng, form)
        return _sentence(text, places, "", rng.random() > 0.9, rng), named, Denial(), scene
    denies = form == "negation" or (form is None and rng.random() < 0.25)
    denial = deny(scene, named, rng) if denies else Denial()
    return denial.around(_compose(scene, named, rng, form)), named, denial, scene


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
    if scene.family == "thrown":  # nothing is thrown unasked
        named |= {"motion0"}
    return named - ({"motion0", "motion1", "motion2", "camera"} if scene.num_frames == 1 else set())


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
        words = [_pick("kind", thing.kind, ALL_KINDS[thing.kind], rng, form)]
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
    if motion.startswith("thrown") and rng.random() < 0.25:
        named.discard(f"motion{number}")
        return ("is " if verb == "s" else "") + rng.choice(THROWN)
    if verb == "ing":
        return rng.choice(DOING[motion]).format(go=rng.choice(GOING))
    if rng.random() < 0.2:
        return "is " + rng.choice(DOING[motion]).format(go=rng.choice(GOING))
    phrases = DOES if rng.random() < 0.3 else ALL_MOTIONS
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
    """Two or three things in one phrase; the first is the left one."""
    if len(clauses) == 1:
        return clauses[0]
    if len(clauses) == 3:
        left, middle, right = clauses
        if rng.random() < 0.3:
            return f"{left} on the left, {middle} in the middle and {right} on the right"
        return left + ", " + middle + rng.choice((" and ", ", ", ", and ")) + right
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
    nouns = [rng.choice(ALL_KINDS[thing.kind]) for thing in scene.things]
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
    places, camera = _places(scene, named, rng, form)
    style = {"plain": rng.uniform(0.35, 0.9), "order": rng.uniform(0, 0.35)}.get(
        form or "", rng.random()
    )
    verb = "ing" if style < 0.65 else "s"
    clauses = _clauses(scene, named, rng, verb, form)
    colored = len(scene.things) == 2 and named >= {"kind0", "kind1", "color0", "color1"}
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


def _places(
    scene: Scene, named: set[str], rng: random.Random, form: str | None
) -> tuple[list[str], str]:
    """Floor and sky, and the camera, as far as they are named."""
    places = []
    for name, table in (("floor", FLOOR_PHRASES), ("sky", SKY_PHRASES)):
        if name in named:
            value = getattr(scene, name)
            places.append(_pick(name, value, table[value], rng, form))
    if "camera" not in named:
        return places, ""
    if scene.camera in ORBITS and rng.random() < 0.3:
        named.discard("camera")
        return places, rng.choice(ROUND)
    return places, _pick("camera", scene.camera, ALL_CAMERAS[scene.camera], rng, form)


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


def _twins(scene: Scene, rng: random.Random, wide: bool) -> Pair:
    """Two or three of a kind ("two red balls bounce"), which the world itself never draws."""
    first, count = scene.things[0], len(scene.things)
    others = tuple(replace(first, size=thing.size) for thing in scene.things[1:])
    scene = replace(scene, things=(first, *others), camera="static")
    noun = ALL_KINDS[first.kind][0]
    words = [NUMBER_WORDS[count], PLURALS.get(noun, noun + "s")]
    named = {"count"} | {f"kind{n}" for n in range(count)}
    if rng.random() < 0.7:
        words.insert(1, first.color)
        named |= {f"color{n}" for n in range(count)}
    if scene.num_frames > 1 and rng.random() < 0.6:
        words.append(rng.choice(DOING[first.motion]).format(go=rng.choice(GOING)))
        named |= {f"motion{n}" for n in range(count)}
    prompt = PICTURE * (scene.num_frames == 1) + roughen(" ".join(words), rng)
    table = {k: v for k, v in truth(scene).items() if k in named}
    return Pair(prompt=prompt, caption=plain_caption(scene), named=table, wide=wide)


@lru_cache(maxsize=1)
def _own_lexicon() -> Lexicon:
    return parse_lexicon(lexicon())


def kept(pair: Pair, caption: str) -> dict[str, bool]:
    """For each attribute that the prompt names or rules out, whether a caption does as it says."""
    found = told(caption, _own_lexicon()) or read(caption)
    table = {name: found.get(name) == value for name, value in pair.named.items()}
    for name, value in pair.excluded:
        keys = [key for key in found if key.rstrip("012") == name]
        table[f"not {name}"] = bool(keys) and all(found[key] != value for key in keys)
    return table
