"""Prompts of the wide world: what happens, where to, how often; and captions held against them."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_cli.pipeline.checking import MALFORMED, faults, told, with_steps
from sora_cli.pipeline.lexicon import Lexicon, parse_lexicon
from sora_cli.pipeline.reading import Reading, read_prompt
from sora_cli.pipeline.steps import WAYS, spelt, steps_of
from sora_cli.train.lexicon import lexicon as own_lexicon
from sora_cli.train.plainest import EVENTS
from sora_cli.train.prompts import draw_pair, kept, known_words

PLACE = "on the snow by day"
STILL = "The camera stays still."
LAUNCH = f"A small red rocket takes off {PLACE}. {STILL}"
HIT = (
    f"A small red ball rolls to the left into a large blue cube {PLACE}. "
    f"The ball bounces back and the cube is pushed to the left. {STILL}"
)
BEHIND = (
    f"A small red car drives to the right behind a grey wall and comes out again {PLACE}. {STILL}"
)
TRAIL = (
    f"A small red car drives left and then away and paints a blue trail {PLACE}. "
    f"The blue trail stays on the ground. {STILL}"
)
BITES = (
    f"Three bites are taken out of a large red cube {PLACE}. Three bites are gone in the end. "
    f"{STILL}"
)
BREAKS = (
    f"A small red cone falls and breaks into four pieces {PLACE}. "
    f"The pieces stay on the ground. {STILL}"
)
ORBIT = f"A small red ball rolls around a large blue house {PLACE}. {STILL}"
THREE = (
    "A small red ball bounces on the left and a small blue cube stands still in the middle and "
    f"a large green cone falls on the right. It is on the snow, by day. {STILL}"
)
GAME = (
    "A grid game seen from above: a red player on a dark board with walls and three coins. "
    "The player goes left twice, then up. It takes a coin."
)


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    return parse_lexicon(own_lexicon())


def read(prompt: str) -> Reading:
    return read_prompt(prompt, lexicon(), known_words())


@pytest.mark.parametrize(
    ("prompt", "event"),
    [
        ("a red ball hits a blue cube", "collision"),
        ("two cars crash into each other", "collision"),
        ("a car drives right into one house", "collision"),
        ("a boat behind a brown wall", "behind"),
        ("a car leaving a green trail", "trail"),
        ("someone eats a cube bite by bite", "eaten"),
        ("a cone shatters", "broken"),
        ("a house explodes into five pieces", "broken"),
        ("a ball flies around a snowman", "orbit"),
        ("the player goes left", "game"),
        ("a maze with three coins", "game"),
        # Words of the plain world that only sound like it.
        ("a house leaves", None),
        ("a car goes on a tiled floor", None),
        ("a ball rolls into the distance", None),
        ("a round red ball turns around", None),
        ("the camera orbits to the left, a red cone", None),
        ("a ball with a black stripe", None),
        ("a ball that does not break", None),
    ],
)
def test_what_happens_is_recognised(prompt: str, event: str | None) -> None:
    assert read(prompt).events == ((event,) if event else ())


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("the player goes left twice, then up", (("left", 2), ("up", 1))),
        ("two steps left and 3 cells up", (("left", 2), ("up", 3))),
        ("left left, left then down", (("left", 3), ("down", 1))),
        ("goes right 4 times; down once", (("right", 4), ("down", 1))),
        ("one step right, twice up", (("right", 1), ("up", 2))),
        ("a close-up of the player who goes up", (("up", 1),)),
        ("on a board with three coins", ()),
        ("left 0 times", ()),
    ],
)
def test_steps(text: str, steps: tuple[tuple[str, int], ...]) -> None:
    assert steps_of(text) == steps


def test_steps_survive_the_reading() -> None:
    """Elsewhere what is said twice is said once; here it is another step."""
    reading = read("teh player goes left left up up, then left, then up")
    assert reading.steps == (("left", 2), ("up", 2), ("left", 1), ("up", 1))
    assert "left left up up" in reading.text


@pytest.mark.parametrize(
    ("prompt", "caption", "lost"),
    [
        ("a red rocket takes off", LAUNCH, []),
        ("a spaceship launches", LAUNCH, []),
        ("a red boat takes off", LAUNCH, ["boat"]),
        ("a red rocket stands still", LAUNCH, ["stands still"]),
        ("a red ball hits a blue cube", HIT, []),
        ("a blue cube is hit by a red ball", HIT, []),
        ("a red ball hits a cube and stops", HIT, ["and stops"]),
        ("a blue ball hits a red cube", HIT, ["blue ball", "red cube"]),
        ("a cube hits a ball", HIT, ["left and right"]),
        ("a ball rolls right and hits a cube", HIT, ["rolls right"]),
        ("a red ball", HIT, ["no collision", "one"]),
        ("a red car behind a grey wall", BEHIND, []),
        ("a red car behind a black wall", BEHIND, ["black wall"]),
        ("a red car leaves a blue trail", TRAIL, []),
        ("a red car drives left and leaves a trail", TRAIL, []),
        ("a red car leaves a green trail", TRAIL, ["leaves a green trail"]),
        ("a cube, three bites are taken", BITES, []),
        ("a cube is eaten in two bites", BITES, ["two bites"]),
        ("a cube is eaten", BREAKS, ["eaten", "cube"]),
        ("a cone breaks into 4 pieces", BREAKS, []),
        ("a cone breaks into five pieces", BREAKS, ["five pieces"]),
        ("a red ball orbits a blue house", ORBIT, []),
        ("a red ball circles a blue car", ORBIT, ["car"]),
        ("a ball, a cube and a cone", THREE, []),
        ("a cube, a ball and a cone", THREE, ["left and right"]),
        ("a ball and a cube", THREE, ["two"]),
        ("the red player goes left, left, up", GAME, []),
        ("the player goes down", GAME.split(" The player")[0], ["down"]),
        ("the blue player in a game with 2 coins", GAME, ["blue player", "2 coins"]),
        ("a red ball orbits a cube", HIT.replace("into", "onto"), [MALFORMED]),
    ],
)
def test_faults_of_stories(prompt: str, caption: str, lost: list[str]) -> None:
    assert faults(caption, read(prompt), lexicon()) == lost


def test_a_games_steps_are_the_prompts_own() -> None:
    """However the language model counted; the rest of the caption is its own."""
    reading = read("the player goes down 3 times, then left, then up twice")
    made = with_steps(GAME, reading, lexicon())
    steps = "The player goes down three times, then left, then up twice."
    assert made == GAME.replace("The player goes left twice, then up.", steps)
    assert faults(made, reading, lexicon()) == faults(GAME, reading, lexicon()) == []
    assert with_steps(HIT, read("a ball"), lexicon()) == HIT
    assert with_steps("No game.", reading, lexicon()) == "No game."


@given(st.lists(st.tuples(st.sampled_from(WAYS), st.integers(1, 30)), max_size=8))
@settings(deadline=None, max_examples=60)
def test_spelt_steps_are_read_back(steps: list[tuple[str, int]]) -> None:
    apart = [row for row, before in zip(steps, [None, *steps], strict=False)
             if before is None or row[0] != before[0]]  # fmt: skip
    assert steps_of(spelt(apart)) == tuple(apart)


def test_what_a_story_tells_is_read_back() -> None:
    found = told(TRAIL, lexicon())
    assert found is not None
    assert (found["event"], found["paint"], found["motion0"]) == ("trail", "blue", "left then away")
    assert (told(GAME, lexicon()) or {})["actions"] == "left left up"
    assert told("A ball is in the room.", lexicon()) is None


def test_wide_pairs_are_drawn_and_keep_what_they_name() -> None:
    """Also after reading: what the language model is given still asks for the caption's things."""
    pairs = [draw_pair(11, index) for index in range(500)]
    wide = [pair for pair in pairs if pair.wide]
    assert 0.35 < len(wide) / len(pairs) < 0.5
    told_events = {pair.named.get("event") for pair in wide}
    assert told_events >= {*EVENTS, "game", None}
    assert all(all(kept(pair, pair.caption).values()) for pair in pairs)
    for pair in wide:
        assert not all(kept(pair, "A ball.").values())
