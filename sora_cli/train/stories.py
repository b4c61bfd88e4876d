"""Captions of what happens between things, to one of them, and in flat worlds.

A story has rows of wordings with holes: {a} and {b} the things with their articles, {the_a} and
{the_b} the same again, {go} how the first goes, {way} where to, {n} a number. `short` takes one
wording and perhaps the place, `dense` says all: sizes, outcome, floor, sky, camera.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from sora_cli.train.events import (
    Bites,
    Breaking,
    Collision,
    Discs,
    Event,
    Game,
    Trail,
    Wall,
)
from sora_cli.train.grid_game import runs, states
from sora_cli.train.words import (
    ALL_CAMERAS,
    ALL_KINDS,
    ALL_MOTIONS,
    COUNTS,
    FLOOR_PHRASES,
    SIZE_WORDS,
    SKY_PHRASES,
    Caption,
    Words,
    going,
    noun,
    sentence,
)
from sora_cli.train.world import COLORS, Scene

TELLING: Words = {
    "runs into": ("{a} {go} {way} into {b}", "{a} {go} {way} and hits {b}", "{a} hits {b}",
                  "{a} bumps into {b}", "{a} crashes into {b}", "{a} {go} into {b}",
                  "{a} collides with {b}"),
    "meets": ("{a} and {b} collide", "{a} and {b} run into each other",
              "{a} and {b} hit each other", "{a} and {b} meet head-on and collide",
              "{a} {go} {way} into {b}, which comes toward it"),
    "behind": ("{a} {go} {way} behind a {wall} wall and comes out again",
               "{a} {go} behind a {wall} wall and comes back into view",
               "{a} disappears behind a {wall} wall and appears again on the other side",
               "{a} passes behind a {wall} wall", "{a} {go} {way} and passes behind a {wall} wall",
               "{a} is hidden by a {wall} wall for a moment"),
    "trail": ("{a} {go} {way} and paints {a_paint} trail",
              "{a} paints {a_paint} line on the ground",
              "{a} {go} {way} and leaves {a_paint} trail behind it",
              "{a} draws {a_paint} stripe as it {go} {way}",
              "{a} {go} {way}, painting the ground {paint}", "{a} leaves {a_paint} stripe"),
    "eaten": ("{a} is eaten bite by bite", "{n} bites are taken out of {a}", "{a} loses {n} bites",
              "someone takes {n} bites out of {a}", "{a} is eaten in {n} bites"),
    "bursts": ("{a} breaks into {n} pieces", "{a} bursts into {n} pieces", "{a} breaks apart",
               "{a} falls apart into {n} pieces", "{a} breaks into pieces"),
    "drops": ("{a} falls and breaks into {n} pieces", "{a} drops and shatters into {n} pieces",
              "{a} falls to the ground and breaks", "{a} falls down and breaks into pieces"),
    "orbit": ("{a} {go} around {b}", "{a} circles {b}", "{a} orbits {b}",
              "{a} goes around {b} in a circle", "{a} moves around {b}"),
}  # fmt: skip
AFTERWARDS: Words = {  # in dense captions
    "bounces back": ("{the_a} bounces back", "{the_a} goes back"),
    "stops": ("{the_a} stops", "{the_a} stays where it hit"),
    "goes on": ("{the_a} goes on", "{the_a} keeps going"),
    "pushed": ("{the_b} is pushed {off}", "{the_b} moves {off}"),
    "stay": ("the pieces stay on the ground", "the pieces lie there", "its pieces stay"),
    "left over": ("{n} bites are gone in the end", "{n} bites are missing at the end"),
    "remains": ("the trail stays", "the {paint} trail stays on the ground"),
}
WAYS: Words = {
    "left": ("to the left", "left"), "right": ("to the right", "right"),
    "left then away": ("left and then away", "to the left, then into the distance"),
    "right then away": ("right and then away", "to the right, then into the distance"),
    "circles": ("in a circle", "around in a circle"),
}  # fmt: skip
STEPS: Words = {  # {n}: of a run of like actions
    "once": ("{way}", "{way}", "one step {way}"),
    "often": ("{way} {n} times", "{n} steps {way}", "{way} {n} cells"),
}
BOARD_WORDS: Words = {
    "light": ("light", "pale", "white"), "dark": ("dark", "black"), "sandy": ("sandy", "brown"),
}  # fmt: skip
GAMES = ("a grid game seen from above", "a grid game from above", "a small grid game",
         "a maze game seen from above", "a video game seen from above")  # fmt: skip
BALLS: Words = {
    "uniform": ("{a} moves to the {way} at a steady speed", "{a} moves {way}",
                "{a} goes to the {way} in a straight line"),
    "parabola": ("{a} is thrown to the {way} and falls", "{a} flies to the {way} and falls",
                 "{a} falls in an arc to the {way}"),
    "collision": ("{a} and {b} collide", "{a} and {b} hit each other and move apart",
                  "{a} hits {b} head-on"),
}  # fmt: skip
PAPERS = (
    "flat balls on white paper",
    "a flat white world seen from the side",
    "flat discs on white",
)


@dataclass(slots=True)
class _Tale:
    """What fills the holes, and which attributes each hole names."""

    holes: dict[str, str]
    names: dict[str, set[str]] = field(default_factory=dict)

    def tell(self, wording: str) -> tuple[str, set[str]]:
        """The wording filled in, and what it names."""
        used = set(re.findall(r"{(\w+)}", wording))
        return wording.format(**self.holes), set().union(*(self.names.get(n, set()) for n in used))


def attributes(scene: Scene) -> dict[str, str]:
    """Every attribute of a scene with an event, by name."""
    event = scene.event
    if isinstance(event, Game):
        return {"event": "game", "player": event.color, "board": event.board,
                "coins": str(len(event.coins)), "actions": " ".join(event.actions)}  # fmt: skip
    if isinstance(event, Discs):
        colors = {f"color{n}": disc.color for n, disc in enumerate(event.discs)}
        return {"event": event.kind, "count": str(len(event.discs))} | colors
    table = {"floor": scene.floor, "sky": scene.sky, "camera": scene.camera,
             "count": str(len(scene.things)), "event": scene.family}  # fmt: skip
    for number, thing in enumerate(scene.things):
        for name in ("kind", "color", "size", "motion"):
            table[f"{name}{number}"] = getattr(thing, name)
    if isinstance(event, Collision):
        table["outcome"] = event.outcome
    elif isinstance(event, Wall):
        table["wall"] = event.color
    elif isinstance(event, Trail):
        table["paint"] = event.color
    elif isinstance(event, Bites):
        table["bites"] = str(len(event.times))
    elif isinstance(event, Breaking):
        table["pieces"] = str(len(event.pieces))
    return table


def row_of(scene: Scene) -> str:
    """The row of `TELLING` that the scene's event is told by."""
    event = scene.event
    if isinstance(event, Collision):
        return "meets" if event.before[1] else "runs into"
    if isinstance(event, Breaking):
        return "drops" if scene.things[0].motion == "falls" else "bursts"
    return scene.family


def _endings(scene: Scene) -> list[str]:
    """The rows of `AFTERWARDS` that a dense caption takes up."""
    event = scene.event
    if isinstance(event, Collision):
        return [event.outcome, "pushed"]
    ends = {Breaking: "stay", Bites: "left over", Trail: "remains"}
    return [row for kind, row in ends.items() if isinstance(event, kind)]


def colored(event: Event | None) -> dict[str, str]:
    """The holes for the colour of what an event adds to the place."""
    match event:
        case Wall(color=color):
            return {"wall": color}
        case Trail(color=color):
            return {"paint": color, "a_paint": f"a{'n' * (color[0] in 'aeiou')} {color}"}
    return {}


def _tale(scene: Scene, rng: random.Random, *, color: bool, size: bool) -> _Tale:
    """The holes of a scene's wordings; with the things' colours and sizes or without."""
    event, first = scene.event, scene.things[0]
    holes = {"go": going(first), "way": rng.choice(WAYS.get(first.motion, ("",)))}
    names: dict[str, set[str]] = {"way": {"motion0"}, "wall": {"wall"}, "paint": {"paint"},
                                  "a_paint": {"paint"}}  # fmt: skip
    said = ["kind"] + ["color"] * color + ["size"] * size
    for number, (hole, thing) in enumerate(zip("ab", scene.things, strict=False)):
        holes[hole] = noun(thing, rng, color=color, size=size)
        names[hole] = {f"{name}{number}" for name in said}
        holes[f"the_{hole}"] = f"the {rng.choice(ALL_KINDS[thing.kind])}"
    holes |= colored(event)
    if isinstance(event, Bites):
        holes["n"], names["n"] = COUNTS[len(event.times)], {"bites"}
    elif isinstance(event, Breaking):
        holes["n"], names["n"] = COUNTS[len(event.pieces)], {"pieces"}
    elif isinstance(event, Collision):
        off = "left" if event.after[1] < 0 else "right"
        holes["off"] = rng.choice((f"to the {off}", off))
    return _Tale(holes, names)


def dense(scene: Scene, rng: random.Random) -> Caption:
    """Say everything: who does what to whom, how it ends, and where."""
    if isinstance(scene.event, Game):
        return _dense_game(scene, scene.event, rng)
    if isinstance(scene.event, Discs):
        return _balls(scene.event, rng, whole=True)
    tale = _tale(scene, rng, color=True, size=True)
    rows = TELLING[row_of(scene)]
    full = [row for row in rows if all(hole in row for hole in _WANTED.get(row_of(scene), ()))]
    text, named = tale.tell(rng.choice(full))
    floor, sky = rng.choice(FLOOR_PHRASES[scene.floor]), rng.choice(SKY_PHRASES[scene.sky])
    ends = []
    for row in _endings(scene):
        said, also = tale.tell(rng.choice(AFTERWARDS[row]))
        ends.append(said)
        named |= also | ({"outcome"} if row in ("bounces back", "stops", "goes on") else set())
    place = rng.choice((
        [sentence(f"{text} {floor} {sky}")],
        [sentence(text), sentence(f"it is {floor}, {sky}")],
        [sentence(f"{sky}, {text} {floor}")],
    ))  # fmt: skip
    after = [sentence(rng.choice((" and ", ", ")).join(ends))] if ends else []
    text = " ".join([*place, *after, sentence(rng.choice(ALL_CAMERAS[scene.camera]))])
    return Caption(text=text, named=frozenset(named | {"floor", "sky", "camera", "count", "event"}))


_WANTED: Words = {  # holes that a dense caption's wording must have
    "runs into": ("{way}",), "behind": ("{wall}", "{way}"), "trail": ("{way}",),
    "bursts": ("{n}",), "drops": ("{n}",),
}  # fmt: skip


def short(scene: Scene, rng: random.Random) -> Caption:
    """What a person in a hurry would say: what happens, mostly with colours, perhaps where."""
    if isinstance(scene.event, Game):
        return _short_game(scene.event, rng)
    if isinstance(scene.event, Discs):
        return _balls(scene.event, rng, whole=False)
    tale = _tale(scene, rng, color=rng.random() < 0.85, size=rng.random() < 0.15)
    text, named = tale.tell(rng.choice(TELLING[row_of(scene)]))
    if rng.random() < 0.45:
        text += " " + rng.choice(FLOOR_PHRASES[scene.floor])
        named |= {"floor"}
    if rng.random() < 0.35:
        sky = rng.choice(SKY_PHRASES[scene.sky])
        text = f"{text} {sky}" if rng.random() < 0.7 else f"{sky}, {text}"
        named |= {"sky"}
    if rng.random() < 0.3:
        text = sentence(text)
    return Caption(text=text, named=frozenset(named | {"event", "count"}))


# ---------------------------------------------------------------------- flat worlds


def _steps(game: Game, rng: random.Random) -> str:
    """ "left, then up three times": the actions, runs of like ones counted."""
    parts = []
    for way, count in runs(game.actions):
        if count == 2:
            parts.append(rng.choice((f"{way} twice", f"two steps {way}", f"{way} two cells")))
        else:
            wording = rng.choice(STEPS["once" if count == 1 else "often"])
            parts.append(wording.format(way=way, n=COUNTS[min(count, len(COUNTS) - 1)]))
    return rng.choice((", then ", ", ", " and then ")).join(parts)


def _short_game(game: Game, rng: random.Random) -> Caption:
    color = rng.random() < 0.5
    player = f"the {game.color} player" if color else "the player"
    named = {"event"} | ({"player"} if color else set())
    if not game.actions:
        return Caption(text=rng.choice((f"{player} in a grid game", f"a grid game, {player}")),
                       named=frozenset(named))  # fmt: skip
    go = rng.choice(("goes", "goes", "moves", "walks"))
    text = f"{player} {go} {_steps(game, rng)}"
    if rng.random() < 0.25:
        text = f"{rng.choice(GAMES)}: {text}"
    if rng.random() < 0.3:
        text = sentence(text)
    return Caption(text=text, named=frozenset(named | {"actions"}))


def _dense_game(scene: Scene, game: Game, rng: random.Random) -> Caption:
    coins = len(game.coins)
    number = f"{COUNTS[coins]} coin{'s' if coins > 1 else ''}"
    place = rng.choice(("on a {board} board with walls and {coins}",
                        "between walls on a {board} board with {coins}"))  # fmt: skip
    board = place.format(board=rng.choice(BOARD_WORDS[game.board]), coins=number)
    game_words = rng.choice(GAMES)
    sentences = [sentence(f"{game_words}: a {game.color} player {board}")]
    named = {"event", "player", "board", "coins"}
    if game.actions:
        go = rng.choice(("goes", "moves"))
        sentences.append(sentence(f"the player {go} {_steps(game, rng)}"))
        named |= {"actions"}
        taken = coins - len(states(game)[-1].coins)
        if taken:
            coin = "a coin" if taken == 1 else f"{COUNTS[taken]} coins"
            sentences.append(sentence(rng.choice(("it takes {}", "it collects {}")).format(coin)))
    elif rng.random() < 0.5:
        sentences.insert(0, "A picture.")
    return Caption(text=" ".join(sentences), named=frozenset(named))


def _balls(event: Discs, rng: random.Random, *, whole: bool) -> Caption:
    color = whole or rng.random() < 0.8
    balls = [f"a{'n' * (d.color[0] in 'aeiou')} {d.color} ball" if color else "a ball"
             for d in event.discs]  # fmt: skip
    holes = dict(zip("ab", balls, strict=False))
    holes["way"] = "left" if event.discs[0].legs[0].velocity[0] < 0 else "right"
    text = rng.choice(BALLS[event.kind]).format(**holes)
    named = {"event", "count"} | {f"color{n}" for n in range(len(balls)) if color}
    if whole:
        text = sentence(text) + " " + sentence(rng.choice(PAPERS))
    return Caption(text=text, named=frozenset(named))


def vocabulary() -> frozenset[str]:
    """Every word of the wide world's captions, lower case, the plain ones' included."""
    tables = (TELLING, AFTERWARDS, WAYS, STEPS, BOARD_WORDS, BALLS, ALL_KINDS, ALL_MOTIONS,
              ALL_CAMERAS, FLOOR_PHRASES, SKY_PHRASES, SIZE_WORDS)  # fmt: skip
    texts = [re.sub(r"{\w+}", " ", p) for table in tables for ps in table.values() for p in ps]
    texts += [*GAMES, *PAPERS, *COLORS, *COUNTS, "grey brown black up down left right twice steps"]
    texts += ["a an and it is while on in at the player goes moves walks coin coins takes collects"]
    texts += ["board with walls between then middle picture to rolls drives slides sails cells"]
    return frozenset(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))
