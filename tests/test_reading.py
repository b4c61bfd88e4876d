"""Reading prompts by the world's lexicon, and holding captions against what was read."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_cli.pipeline.checking import MALFORMED, faults, told
from sora_cli.pipeline.expand import known_words
from sora_cli.pipeline.lexicon import Lexicon, one_slip, read_lexicon
from sora_cli.pipeline.reading import MANY_WORDS, Reading, read_prompt
from sora_cli.train.asking import truth
from sora_cli.train.families import WIDE
from sora_cli.train.language_model import write_words
from sora_cli.train.prompts import FORMS, PICTURE, draw_pair, kept, plain_caption
from sora_cli.train.world import PLAIN, Mixture, draw_scene

RED_BALL = "A small red ball bounces on the snow by day. The camera stays still."
BLUE_BALL = RED_BALL.replace("red", "blue")
TWO = (
    "A small {} {} bounces on the left and a large {} {} stands still on the right. "
    "It is on the snow, by day. The camera stays still."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's words as the recipe writes them; no model is needed to read."""
    path = tmp_path_factory.mktemp("words")
    write_words(path)
    return path


@pytest.fixture(scope="module")
def lexicon(folder: Path) -> Lexicon:
    found = read_lexicon(folder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def known(folder: Path) -> frozenset[str]:
    return known_words(folder)


@pytest.fixture
def read(lexicon: Lexicon, known: frozenset[str]):  # type: ignore[no-untyped-def]
    return lambda prompt: read_prompt(prompt, lexicon, known)


def _named(reading: Reading) -> set[tuple[str, str]]:
    return {(m.name, m.value) for m in reading.mentions if not m.denied}


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("mixture", [PLAIN, WIDE], ids=["plain", "wide"])
def test_every_plain_caption_is_read_back(mixture: Mixture, lexicon: Lexicon) -> None:
    """The patterns and the captions come from the same tables and must not drift apart."""
    for index in range(300):
        frames = 1 if index % 5 == 0 else 25
        scene = draw_scene(0, index, width=160, height=96, num_frames=frames, mixture=mixture)
        caption, facts = plain_caption(scene), truth(scene)
        found = told(caption, lexicon)
        assert found is not None, caption
        assert (found.pop("picture", None) is not None) == (frames == 1)
        taken = found.pop("taken", "0")  # of which a caption says nothing where it is none
        assert taken == facts.pop("taken", taken), caption
        if frames == 1:
            found = {name: value for name, value in found.items() if not name.startswith("motion")}
        assert found.items() <= facts.items(), caption
        unsaid = {name for name in facts.keys() - found.keys() if not name.startswith("motion")}
        assert unsaid <= ({"camera", "actions"} if frames == 1 else set()), caption


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"schema": 1}', '{"schema": 9}', "\x00", '{"schema": 1, "sides": 3}'],
)  # fmt: skip
def test_a_damaged_table_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "lexicon.json").write_text(content)
    assert read_lexicon(tmp_path) is None
    assert read_lexicon(tmp_path / "nowhere") is None
    assert read_lexicon(None) is None


def test_the_table_is_small(folder: Path) -> None:
    assert (folder / "lexicon.json").stat().st_size < 100_000
    assert json.loads((folder / "lexicon.json").read_text())["schema"] == 1


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("form", FORMS)
def test_the_true_caption_has_no_fault(form: str, lexicon: Lexicon, known: frozenset[str]) -> None:
    """A reader that objects to what is right would throw good answers away."""
    wrong = 0
    for index in range(150):
        pair = draw_pair(7, index, "development", form)
        wrong += bool(faults(pair.caption, read_prompt(pair.prompt, lexicon, known), lexicon))
    assert wrong <= 3, f"{wrong} of 150"


@pytest.mark.parametrize("form", FORMS)
def test_captions_of_other_prompts_have_faults(
    form: str, lexicon: Lexicon, known: frozenset[str]
) -> None:
    """What loses an attribute is seen: else there would be nothing to try again for."""
    lost = seen = 0
    for index in range(150):
        pair = draw_pair(8, index, "development", form)
        other = draw_pair(9, index, "development", form).caption
        if not all(kept(pair, other).values()):
            lost += 1
            seen += bool(faults(other, read_prompt(pair.prompt, lexicon, known), lexicon))
    assert seen >= 0.95 * lost, f"{seen} of {lost}"


def test_misspelt_words_are_mended_and_real_ones_are_not(read) -> None:  # type: ignore[no-untyped-def]
    reading = read("Rde blal bounicng on teh sonw")
    assert reading.text == "red ball bouncing on the snow"
    assert reading.mended[0] == ("rde", "red")
    assert read("A RED ball").mended == ()
    for word in ("horse", "size", "band", "glass", "know", "slow", "don't", "Gary", "gay", "日本"):
        assert read(f"a {word}").mended == (), word


@pytest.mark.parametrize(
    ("wrong", "right", "slip"),
    [("blal", "ball", True), ("bal", "ball", True), ("balll", "ball", True),
     ("bell", "ball", False),
     ("sphore", "sphere", True), ("rde", "red", True), ("rad", "red", False),
     ("ball", "ball", False),
     ("call", "ball", False), ("", "ball", False), ("llab", "ball", False)],
)  # fmt: skip
def test_one_slip(wrong: str, right: str, slip: bool) -> None:
    assert one_slip(wrong, right) is slip


@pytest.mark.parametrize(
    ("prompt", "text", "stand_ins"),
    [
        ("a pink corgi", "a red snowman", {"pink": "red", "corgi": "snowman"}),
        (
            "a truck in the city",
            "a car in the tiled floor",
            {"truck": "car", "city": "tiled floor"},
        ),
        ("a ball at the golden hour", "a ball at the sunset", {"golden hour": "sunset"}),
        ("my kid wants a red ball", "my kid wants a red ball", {}),
        ("a ball reading a book", "a ball reading a book", {}),
        ("can you show a ball", "can you show a ball", {}),
        ("red ball under grey clouds", "red ball under grey clouds", {}),
    ],
)
def test_what_the_world_lacks_becomes_the_nearest(
    read, prompt: str, text: str, stand_ins: dict[str, str]  # type: ignore[no-untyped-def]
) -> None:  # fmt: skip
    reading = read(prompt)
    assert (reading.text, dict(reading.stand_ins)) == (text, stand_ins)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a red ball a red ball a red ball", "a red ball"),
        ("a red ball, a red ball, a red ball", "a red ball"),
        ("very very very big cone", "very big cone"),
        ("moving toward the camera, the camera pans left",
         "moving toward the camera, the camera pans left"),
        ("a ball and a ball", "a ball and a ball"),
    ],
)  # fmt: skip
def test_what_is_said_again_is_said_once(read, prompt: str, text: str) -> None:  # type: ignore[no-untyped-def]
    assert read(prompt).text == text


def test_colours_belong_to_their_things(read) -> None:  # type: ignore[no-untyped-def]
    wanted = {("ball", ("color", "red")), ("cube", ("color", "blue"))}
    for prompt in (
        "a red ball and a blue cube", "a ball that is red next to a blue box",
        "red sphere, blue cube",
        "a ball and a cube, the ball is red and the cube is blue",
        "a ball and a cube, red and blue",
    ):  # fmt: skip
        reading = read(prompt)
        assert (set(reading.bound), reading.kinds, reading.things) == (wanted, ("ball", "cube"), 2)


@pytest.mark.parametrize(
    ("prompt", "things", "alike", "too_many"),
    [
        ("a ball", 1, False, False),
        ("two red balls", 2, True, False),
        ("three red balls", 3, True, False),
        ("five red balls", 3, True, True),
        ("a ball and a cube", 2, False, False),
        ("a ball, a cube and a cone", 3, False, False),
        ("a ball, a cube, a cone and a car", 3, False, True),
        ("a ball, a cube and a flurble", None, False, False),
        ("a ball for 3 seconds", 1, False, False),
        ("a ball and something", None, False, False),
        ("balls", None, False, False),
    ],
)
def test_counts(  # type: ignore[no-untyped-def]
    read, prompt: str, things: int | None, alike: bool, too_many: bool
) -> None:
    reading = read(prompt)
    assert (reading.things, reading.alike, reading.too_many) == (things, alike, too_many)


@pytest.mark.parametrize(
    ("prompt", "kinds"),
    [
        ("a ball and a cube", ("ball", "cube")),
        ("a ball to the right of a cube", ("cube", "ball")),
        ("a ball to the left of a cube", ("ball", "cube")),
        ("a ball on the right and a cube on the left", ("cube", "ball")),
        ("on the right a ball, on the left a cube", ("cube", "ball")),
        ("a ball, a ball", ("ball",)),
        ("blue cube right, red ball left", ("ball", "cube")),
    ],
)
def test_left_and_right(read, prompt: str, kinds: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    assert read(prompt).kinds == kinds


@pytest.mark.parametrize(
    ("prompt", "named", "denied"),
    [
        ("not a red ball but a blue one", {("color", "blue")},
         {("color", "red"), ("kind", "ball")}),
        ("a car, no clouds", {("kind", "car")}, {("sky", "overcast")}),
        ("a cone without snow and clouds", {("kind", "cone")},
         {("floor", "snow"), ("sky", "overcast")}),
        ("a tree, any color but green", {("kind", "tree")}, {("color", "green")}),
        ("it doesn't bounce, a cube", {("kind", "cube")}, {("motion", "bounces")}),
        ("a cube that does not move", {("kind", "cube"), ("motion", "still")}, set()),
        ("a ball, not moving left", {("kind", "ball")}, {("motion", "left")}),
        ("the camera does not move", {("camera", "static")}, set()),
        ("instead of a cone, a ball", {("kind", "ball")}, {("kind", "cone")}),
    ],
)  # fmt: skip
def test_denials(read, prompt: str, named: set, denied: set) -> None:  # type: ignore[no-untyped-def,type-arg]
    reading = read(prompt)
    assert _named(reading) == named
    assert {(m.name, m.value) for m in reading.mentions if m.denied} == denied
    assert (
        not any(word in reading.retold.split() for word in ("not", "no", "without")) or not denied
    )


@pytest.mark.parametrize(
    ("prompt", "motions"),
    [
        ("a car rolling away to the right", {"right"}),
        ("a ball goes away left, at night", {"left"}),
        ("a ball goes away to the left of a cube", {"away"}),
        ("a ball drives off", {"away"}),
        ("a cone moving straight toward the camera", {"toward"}),
        ("a tree moving from right to left", {"left"}),
        ("as dusk falls a cube spins", {"spins"}),
        ("a cube falls at dusk", {"falls"}),
    ],
)
def test_where_things_go(read, prompt: str, motions: set[str]) -> None:  # type: ignore[no-untyped-def]
    """The last word on where something goes counts, and dusk does not fall as a cube does."""
    assert {m.value for m in read(prompt).mentions if m.name == "motion"} == motions


@pytest.mark.parametrize(
    ("prompt", "things"),
    [
        ("something big and red: a car", 1),
        ("there is a thing - green and small - a cone", 1),
        ("something next to a car", None),
        ("something big, a car", None),
    ],
)
def test_what_is_announced_is_no_second_thing(read, prompt: str, things: int | None) -> None:  # type: ignore[no-untyped-def]
    assert read(prompt).things == things


def test_a_side_between_two_things_takes_no_colour_away(read) -> None:  # type: ignore[no-untyped-def]
    bound = read("green cone right, white car left").bound
    assert set(bound) == {("cone", ("color", "green")), ("car", ("color", "white"))}


def test_of_a_long_prompt_what_means_something_is_left(read) -> None:  # type: ignore[no-untyped-def]
    filler = " ".join(f"lorem{chr(97 + i % 26)} ipsum" for i in range(150))
    reading = read(f"{filler} a green car {filler} drives left on the sand. {filler}")
    assert {("kind", "car"), ("color", "green"), ("motion", "left"), ("floor", "sand")} <= _named(
        reading
    )
    assert len(reading.text.split()) <= MANY_WORDS


@given(st.text(max_size=300))
@settings(deadline=None, max_examples=150)
def test_any_text_can_be_read(text: str) -> None:
    lexicon, known = _tables()
    reading = read_prompt(text, lexicon, known)
    again = read_prompt(reading.text, lexicon, known)
    assert _named(again) >= _named(reading) or reading.mended or reading.stand_ins
    assert isinstance(faults(RED_BALL, reading, lexicon), list)


def _tables() -> tuple[Lexicon, frozenset[str]]:
    from sora_cli.pipeline.lexicon import parse_lexicon
    from sora_cli.train.lexicon import lexicon
    from sora_cli.train.prompts import known_words as words

    if not _CACHE:
        _CACHE.append((parse_lexicon(lexicon()), words()))
    return _CACHE[0]


_CACHE: list[tuple[Lexicon, frozenset[str]]] = []


@pytest.mark.parametrize(
    "prompt", ["not " * 50_000, "a red ball " * 30_000, "x" * 200_000, "é" * 9000]
)
def test_hostile_lengths_are_read_quickly(read, prompt: str) -> None:  # type: ignore[no-untyped-def]
    began = time.process_time()
    read(prompt)
    assert time.process_time() - began < 2


# ---------------------------------------------------------------- checking


@pytest.mark.parametrize(
    ("prompt", "caption", "lost"),
    [
        ("a red ball", RED_BALL, []),
        ("a red ball", BLUE_BALL, ["red ball"]),
        ("a red cube", RED_BALL, ["cube"]),
        ("not a red ball but a blue one", BLUE_BALL, []),
        ("not a red ball but a blue one", RED_BALL, ["blue", "not red"]),
        ("a ball, no snow", RED_BALL, ["no snow"]),
        ("a ball at night", RED_BALL, ["at night"]),
        ("a red ball and a blue cube", TWO.format("red", "ball", "blue", "cube"), []),
        ("a red ball and a blue cube", TWO.format("blue", "ball", "red", "cube"),
         ["red ball", "blue cube"]),
        ("a red ball and a blue cube", TWO.format("blue", "cube", "red", "ball"),
         ["left and right"]),
        ("two red balls", TWO.format("red", "ball", "red", "ball"), []),
        ("two red balls", RED_BALL, ["two"]),
        ("a ball", "A ball ball bounces.", [MALFORMED]),
        ("a ball", "A picture. " + RED_BALL, [MALFORMED]),
    ],
)  # fmt: skip
def test_faults(read, lexicon: Lexicon, prompt: str, caption: str, lost: list[str]) -> None:  # type: ignore[no-untyped-def]
    assert faults(caption, read(prompt), lexicon) == lost


def test_of_a_picture_motion_is_not_asked(read, lexicon: Lexicon) -> None:  # type: ignore[no-untyped-def]
    caption = "A picture. A small red ball stands on the snow by day."
    assert faults(caption, read("a red ball bounces, zoom in"), lexicon, still=True) == []
    assert faults(RED_BALL, read("a red ball"), lexicon, still=True) == [MALFORMED]
    assert PICTURE.strip() in caption.lower()
