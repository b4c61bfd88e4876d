"""How people ask for what happens between things, to one of them, or in the grid game.

Rows like those of stories.py, in the words of people in a hurry: `ask` fills one in and tells what
it names. The things' own words come from whoever asks (prompts.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from sora_cli.train.captions import attributes
from sora_cli.train.events import Bites, Breaking, Collision, Game
from sora_cli.train.grid_game import MOVES, runs, states
from sora_cli.train.stories import BOARD_WORDS, GAMES, TELLING, WAYS, colored, row_of
from sora_cli.train.wordings import GOES, GOING
from sora_cli.train.words import COUNTS, SIZE_WORDS, Words
from sora_cli.train.world import COLORS, Scene

ASKED: Words = {  # holes as in stories.TELLING; {going}: rolling, driving …
    "runs into": (
        "{a} hitting {b}", "{a} hits {b}", "{a} {going} into {b}", "{a} {going} {way} into {b}",
        "{a} crashing into {b}", "{a} smashes into {b}", "{a} slams into {b}", "{a} strikes {b}",
        "{a} bumping into {b}", "{a} colliding with {b}", "{a} runs into {b}",
        "{a} knocks into {b}", "{b} is hit by {a}", "{a} {going} {way} and hitting {b}",
        "{a} {going} {way}, it hits {b}", "{a} hits {b} and {outcome}",
        "{a} {go} {way} into {b} and {outcome}", "{a} collides with {b}, then {outcome}",
        "{a} crashes into {b} and {outcome}", "{a} {going} {way} into {b}, then {outcome}",
        "{a} {going} {way}, crashes into {b}, then {outcome}",
    ),
    "meets": (
        "{a} and {b} crash", "{a} and {b} crash into each other", "{a} and {b} colliding",
        "a collision of {a} and {b}", "a crash between {a} and {b}", "{a} and {b} bump together",
        "{a} and {b} hitting each other", "{a} and {b} collide head-on", "{a} colliding with {b}",
    ),
    "behind": (
        "{a} {going} behind a {wall} wall", "{a} {going} {way} behind a {wall} wall",
        "{a} hides behind a {wall} wall", "{a} vanishes behind a {wall} wall and reappears",
        "{a} goes behind a wall", "{a} {going} behind a wall", "{a} behind a {wall} wall",
        "{a} hidden behind a wall", "a {wall} wall hides {a}", "a {wall} wall, {a} {going} behind",
        "{a} passing behind a {wall} wall", "{a} disappears behind a wall", "a wall hides {a}",
        "{a} {going} {way}, behind a wall and out again", "{a} comes out from behind a wall",
    ),
    "trail": (
        "{a} leaving {a_paint} trail", "{a} painting {a_paint} stripe", "{a} paints a trail",
        "{a} with {a_paint} trail behind it", "{a} leaves a trail", "{a} draws a line",
        "{a} {going} {way} leaving {a_paint} trail", "{a} paints the ground {paint}",
        "{a} {going} {way} and painting {a_paint} line", "{a} draws {a_paint} line",
        "{a} {going} {way}, {a_paint} trail stays behind", "{a} leaving a trail of {paint} paint",
    ),
    "eaten": (
        "{a} being eaten", "{a} getting eaten", "someone eats {a}", "{a} is eaten",
        "{a} is bitten {n} times", "{a} with {n} bites taken out", "{a} eaten bite by bite",
        "{a} disappears bite by bite", "someone bites into {a}", "{n} bites of {a}",
        "{a} gets eaten in {n} bites", "somebody takes {n} bites of {a}", "{a} loses {n} bites",
    ),
    "bursts": (
        "{a} breaking", "{a} breaking into {n} pieces", "{a} explodes", "{a} exploding",
        "{a} shatters", "{a} shatters into {n} pieces", "{a} bursts", "{a} bursting apart",
        "{a} crumbles", "{a} breaks", "{a} explodes into {n} pieces", "{a} smashed to pieces",
        "{a} blows up", "{a} breaks in {n}", "{a} goes to pieces", "{a} shattering",
    ),
    "drops": (
        "{a} falling and breaking", "{a} falls and shatters", "{a} falls and breaks",
        "{a} falls and smashes into {n} pieces", "{a} falls down and explodes",
        "{a} drops and breaks into {n} pieces", "{a} dropped, it breaks into {n} pieces",
        "{a} falls and breaks in {n}", "{a} falling down and shattering",
    ),
    "orbit": (
        "{a} orbiting {b}", "{a} circling {b}", "{a} {going} around {b}", "{a} going around {b}",
        "{a} goes round {b}", "{a} in orbit around {b}", "{a} revolves around {b}",
        "{a} runs around {b} in circles", "{a} moving in a circle around {b}",
    ),
}  # fmt: skip
OUTCOMES: Words = {
    "bounces back": ("bounces back", "goes back", "is thrown back"),
    "stops": ("stops", "comes to a stop", "stays there"),
    "goes on": ("goes on", "keeps going", "goes further"),
}
_BEFORE_NOUN = ("a", "an", "the", "my", "one", "another", *COLORS,
                *(word for words in SIZE_WORDS.values() for word in words))  # fmt: skip
# By which an event is recognised in a prompt, whatever stands between.
EVENT_PHRASES: Words = {
    "collision": (
        "hit", "hits", "collide", "collides", "collision", "crash", "crashes", "slam",
        "smash into", "smashes into",
        "bump", "bumps", "strikes", "knocks into", "{go} into", "runs into",
        *(f"into {word}" for word in _BEFORE_NOUN),
        "run into", "running into", "meet head-on", "bump into", "smashing into", "crashing into",
    ),
    "behind": (
        *(f"{word} wall" for word in ("a", "the", "brick", "stone", "high", "tall", "wooden")),
        "behind wall", "hides behind", "hidden behind", "disappears behind", "vanishes behind",
        "behind a wall", "passes behind", "hidden by", "hidden for a moment",
    ),
    "trail": (
        "trail", "paints", "paints a", "painting the ground", "painting a", "painting an",
        "draws a", "draws an", "drawing a", "paints the ground",
        *(f"{verb} {line}" for verb in ("leaves", "leaving") for line in (
            "a trail", "trail", "a line", "a stripe")),
        *(f"{verb} {color}" for verb in ("draws", "painting", "drawing") for color in COLORS),
        "stripe as", "a stripe on", "stays behind", "trail stays",
    ),
    "eaten": (
        "eaten", "bites", "bite", "bitten", "bite by bite", "being eaten", "someone eats",
        "somebody eats", "nibbled", "devoured",
    ),
    "broken": (
        "break", "breaks", "breaking", "broken", "breaks apart", "burst", "bursts",
        "shatter", "explode",
        "shatters", "explodes", "crumbles", "exploding", "shattering",
        "explosion", "crumble", "falls apart", "falling apart", "comes apart", "into pieces",
        "to pieces", "in pieces", "blows up", "blow up", "blowing up", "smashed", "smashes",
        "smashing", "breaks into", "bursts into", "breaks in", "falls to pieces",
        "the pieces stay", "its pieces stay", "pieces stay", "the pieces lie there",
    ),
    "orbit": (
        "orbits", "orbit", "orbiting", "orbits a", "circling", "{go} around", "{go} round",
        *(f"{verb} {word}" for verb in ("circles", "around") for word in _BEFORE_NOUN),
        "revolves around", "revolving around", "in orbit", "runs around",
    ),
    "game": (
        *(f"{word} player" for word in ("the", "a", "my")), "grid game", "video game", "maze game",
        *(f"player {word}" for word in (
            "goes", "moves", "walks", "going", "in", "on", "and", "one", "two", "three", *MOVES)),
        "computer game", "arcade game", "game", "maze", "a game", "the game", "walls and coins",
        *(f"{cells} {way}" for cells in ("steps", "cells", "twice") for way in MOVES),
    ),
}  # fmt: skip
PLAYING: Words = {  # {player}, {steps}, {board}, {coins}, {game}, {taken}
    "played": (
        "{player} goes {steps}", "{player} moves {steps}", "{player} walks {steps}",
        "{player} going {steps}", "{game}: {player} goes {steps}", "{player}: {steps}",
        "{game} where {player} goes {steps}", "{player} goes {steps} on a {board} board",
        "{player} goes {steps}, {coins}", "{game}, {board} board, {coins}, {player} goes {steps}",
        "{player} on a {board} board with {coins} goes {steps}", "{game}, {player} moves {steps}",
        "{player} goes {steps} and takes {taken}", "{player} in a maze goes {steps}",
    ),
    "watched": (
        "{player} in {game}", "{game}, {player}", "{game}", "{game} with {coins}",
        "{player} on a {board} board with walls", "{player} and {coins}", "{game}, {board} board",
    ),
}  # fmt: skip
GAME_WORDS = (*GAMES, "a grid game", "a video game", "a game", "a maze", "a maze game",
              "a computer game", "an arcade game")  # fmt: skip
PLAYERS_SAID = ("the {}player", "the {}player", "a {}player", "{}player", "my {}player")
NUMBERS = tuple(map(str, range(len(COUNTS))))
JOINS = (", then ", ", then ", ", ", " then ", " and then ", " and ", "; ")
Noun = Callable[[int], str]  # the words for a thing by its number, with an article


def ask(scene: Scene, named: set[str], rng: random.Random, noun: Noun) -> tuple[str, set[str]]:
    """Words for what happens in a scene with an event, and the attributes that they name.

    named: of the things' own attributes, those that `noun` says.
    """
    if isinstance(scene.event, Game):
        return _ask_game(scene.event, rng)
    row = row_of(scene)
    wording = rng.choice((*ASKED[row], *TELLING[row]))
    holes = _holes(scene, rng)
    said = set(re.findall(r"{(\w+)}", wording))
    for number, hole in enumerate("ab"):
        holes |= {hole: noun(number)} if hole in said else {}
    text = wording.format(**holes)
    counted = "bites" if isinstance(scene.event, Bites) else "pieces"
    table = {"wall": "wall", "paint": "paint", "a_paint": "paint", "n": counted,
             "outcome": "outcome", "way": "motion0"}  # fmt: skip
    there = {str(n) for n, hole in enumerate("ab") if hole in said}
    things = {name for name in named if name[-1] in there and not name.startswith("motion")}
    falls = {"motion0"} if row == "drops" else set()
    return text, {"event"} | things | falls | {table[hole] for hole in said & set(table)}


def truth(scene: Scene) -> dict[str, str]:
    """Every attribute of a scene by name; of a game also how many coins are taken."""
    event = scene.event
    if not isinstance(event, Game):
        return attributes(scene)
    taken = len(event.coins) - len(states(event)[-1].coins)
    return attributes(scene) | {"taken": str(taken)}


def _holes(scene: Scene, rng: random.Random) -> dict[str, str]:
    event = scene.event
    numbers = NUMBERS if rng.random() < 0.3 else COUNTS
    holes = {"go": rng.choice(GOES), "going": rng.choice(GOING)}
    holes["way"] = rng.choice(WAYS.get(scene.things[0].motion, ("",)))
    holes |= colored(event)
    if isinstance(event, Bites):
        holes["n"] = numbers[len(event.times)]
    elif isinstance(event, Breaking):
        holes["n"] = numbers[len(event.pieces)]
    elif isinstance(event, Collision):
        holes["outcome"] = rng.choice(OUTCOMES[event.outcome])
    return holes


def _ask_game(game: Game, rng: random.Random) -> tuple[str, set[str]]:
    color = rng.random() < 0.6
    numbers = NUMBERS if rng.random() < 0.3 else COUNTS
    coins, taken = len(game.coins), len(game.coins) - len(states(game)[-1].coins)
    holes = {
        "player": rng.choice(PLAYERS_SAID).format(game.color + " " if color else ""),
        "steps": _steps(game, rng, numbers), "board": rng.choice(BOARD_WORDS[game.board]),
        "coins": f"{numbers[coins]} coin{'s' if coins > 1 else ''}",
        "game": rng.choice(GAME_WORDS),
        "taken": "a coin" if taken == 1 else f"{numbers[taken]} coins",
    }  # fmt: skip
    rows = PLAYING["played" if game.actions else "watched"]
    wording = rng.choice([row for row in rows if taken or "{taken}" not in row])
    said = set(re.findall(r"{(\w+)}", wording))
    table = {"steps": "actions", "board": "board", "coins": "coins", "taken": "taken"}
    player = {"player"} if color and "player" in said else set()
    return wording.format(**holes), {"event"} | player | {table[h] for h in said & set(table)}


def _steps(game: Game, rng: random.Random, numbers: tuple[str, ...]) -> str:
    """ "left, then two steps up": the actions as people count them."""
    parts = []
    for way, count in runs(game.actions):
        n = numbers[min(count, len(numbers) - 1)]
        once = (way, way, way, f"one step {way}", f"{way} once")
        often = (f"{way} {n} times", f"{n} steps {way}", f"{way} {n} cells", f"{n} times {way}",
                 f"{n} {way}", f"{way} {n} steps", ", ".join([way] * count))  # fmt: skip
        twice = (f"{way} twice", f"twice {way}")
        parts.append(rng.choice(once if count == 1 else often + twice * 2 * (count == 2)))
    return rng.choice(JOINS).join(parts)
