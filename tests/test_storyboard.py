"""Storyboards: what a file may say, what it is taken to mean, and that errors name the place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sora_cli.errors import ExitCode, UsageError
from sora_cli.pipeline.spans import Span
from sora_cli.pipeline.storyboard import MAX_BYTES, Material, Shot, as_segments, parse, read
from sora_cli.pipeline.timeline import Kept

FOLDER = Path("/boards")
WHOLE = """
size = "160x96"
fps = 8
seed = 7
model = "tiny"
negative_prompt = "blur"
duration = "9s"

[[shot]]
at = "0s"
prompt = "a red ball rolls left"

[[shot]]
at = 3
prompt = "a red ball bounces"

[[shot]]
at = "5s"
image = "house.png"
prompt = "a house"

[[shot]]
at = "7s"
clip = "sub/car.mp4"
from = "1s"
to = "3s"
join = "continue"
"""


@dataclass(frozen=True)
class Opened:
    """A clip of black frames at 8 fps whose frames count up, as a caller opens one."""

    duration: float

    def kept(self) -> Kept:
        count = round(self.duration * 8)
        return Kept(num_frames=count, frames=lambda a, b: iter([self.head(count)[a:b]]))

    def head(self, count: int) -> np.ndarray:
        return np.arange(min(count, round(self.duration * 8)))[:, None, None, None] + np.zeros(
            (1, 4, 6, 3)
        )

    def tail(self, count: int) -> np.ndarray:
        return self.head(count) + 100


def material(clips: Callable[[Shot], Opened] | None = None) -> Material:
    return Material(
        prompt=lambda text: text + "!",
        picture=lambda path: np.full((1, 4, 6, 3), len(path.name)),
        clip=clips or (lambda shot: Opened(shot.length or 2.0)),
    )


def segments(text: str) -> list[Kept | Span]:
    return as_segments(parse(text, FOLDER), 8.0, material())


def test_every_key_is_read() -> None:
    board = parse(WHOLE, FOLDER)
    assert (board.size, board.fps, board.seed, board.model) == ((160, 96), 8.0, 7, "tiny")
    assert (board.negative_prompt, board.duration) == ("blur", 9.0)
    assert [shot.join for shot in board.shots] == ["cut", "continue", "cut", "continue"]
    assert [shot.start for shot in board.shots] == [0, 3, 5, 7]
    assert [shot.duration for shot in board.shots] == [3, 2, 2, 2]
    assert board.prompts == ["a red ball rolls left", "a red ball bounces", "a house"]
    files = [path for shot in board.shots for path in shot.files]
    assert files == [FOLDER / "house.png", FOLDER / "sub/car.mp4"]
    assert board.shots[2].where == "shot 3 (line 17)"


def test_shots_become_segments() -> None:
    ball, bounce, house, car = segments(WHOLE)
    assert isinstance(ball, Span) and isinstance(bounce, Span) and isinstance(house, Span)
    assert isinstance(car, Kept)
    assert [part.num_frames for part in (ball, bounce, house, car)] == [24, 16, 16, 16]
    assert ball.head is None and ball.prompt == "a red ball rolls left!"
    assert isinstance(bounce.head, str), "goes on from what the shot before made"
    assert isinstance(house.head, np.ndarray) and house.shows_head, "a picture is shown, decoded"
    assert house.tail is not None and len(house.tail) == 16, "and leads into the clip"
    assert not house.shows_tail


def test_durations_and_times_say_the_same() -> None:
    timed = parse(
        'duration = 5\n[[shot]]\nat = 0\nprompt = "a"\n[[shot]]\nat = 2\nprompt = "b"', FOLDER
    )
    lasting = parse(
        '[[shot]]\nduration = "2s"\nprompt = "a"\n[[shot]]\nduration = 3.0\nprompt = "b"', FOLDER
    )
    for one, two in zip(timed.shots, lasting.shots, strict=True):
        assert (one.start, one.duration, one.join) == (two.start, two.duration, two.join)


def test_rounding_to_frames_does_not_add_up() -> None:
    """Thirty shots of 0.3 s are 9 s at 8 fps, though 0.3 s is no whole number of frames."""
    text = "".join(f'[[shot]]\nprompt = "{n}"\nduration = 0.3\n' for n in range(30))
    assert sum(part.num_frames for part in segments(text)) == 72


def test_a_cross_fade_keeps_the_times() -> None:
    """Both shots grow by half of it, so that what is faded away is not missing."""
    text = (
        '[[shot]]\nprompt = "a"\nduration = 2\n'
        '[[shot]]\nprompt = "b"\nduration = 2\njoin = "blend"\nover = 0.5\n'
    )
    one, two = segments(text)
    assert isinstance(two, Span) and two.blend == 4 and two.head is None
    assert one.num_frames + two.num_frames - two.blend == 32


@pytest.mark.parametrize("given", ['clip = "b.mp4"', 'image = "b.png"\nduration = 1'])
def test_a_blend_from_a_clip_is_a_way(given: str) -> None:
    text = f'[[shot]]\nclip = "a.mp4"\n[[shot]]\n{given}\njoin = "blend"\nover = 2\nprompt = "p"'
    first, way, last = segments(text)
    assert isinstance(first, Kept) and isinstance(way, Span)
    assert way.num_frames == 16 and way.prompt == "p!"
    assert isinstance(way.head, np.ndarray) and way.head[-1, 0, 0, 0] >= 100, "the clip's end"
    assert way.tail is not None and not way.shows_tail
    assert isinstance(last, Span) == ("image" in given)


def test_a_prompt_goes_on_from_a_clip() -> None:
    clip, shot = segments('[[shot]]\nclip = "a.mp4"\n[[shot]]\nprompt = "p"\nduration = 1')
    assert isinstance(clip, Kept) and isinstance(shot, Span)
    assert isinstance(shot.head, np.ndarray) and not shot.shows_head


def test_a_shot_ends_with_its_own_picture() -> None:
    (shot,) = segments('[[shot]]\nimage = "a.png"\nlast_image = "bb.png"\nduration = 3')
    assert isinstance(shot, Span) and shot.shows_head and shot.shows_tail
    assert shot.tail is not None and shot.tail.shape == (1, 4, 6, 3) and shot.tail[0, 0, 0, 0] == 6


BAD = [
    ("a = ", "not TOML"),
    ("", "has no shots"),
    ("shot = 3", "has no shots"),
    ('[[shot]]\nprompt = "a"', "line 1, shot 1: nothing says how long it lasts"),
    ('titel = "x"\n[[shot]]\nprompt = "a"\nduration = 1', "board.toml, line 1: titel: no such key"),
    ('[[shot]]\nprompt = "a"\n\nlenght = 1', "line 4, shot 1: lenght: no such key"),
    ('[[shot]]\nprompt = "a"\nduration = "soon"', "line 3, shot 1: duration: cannot read"),
    ('[[shot]]\nprompt = "a"\nduration = 0', "line 3, shot 1: duration: 0s is not above 0"),
    ('[[shot]]\nprompt = "a"\nduration = -1', "duration: -1s is not above 0"),
    ('[[shot]]\nprompt = "a"\nduration = nan', "duration: nan is no number"),
    ('[[shot]]\nprompt = "a"\nduration = inf', "duration: inf is no number"),
    ('[[shot]]\nprompt = "a"\nduration = true', "duration: True is no number"),
    ('[[shot]]\nprompt = 3\nduration = 1', "line 2, shot 1: prompt: 3 is no text"),
    ('[[shot]]\nprompt = "  "\nduration = 1', "shot 1: it has no prompt, image or clip"),
    ('[[shot]]\nimage = ""\nduration = 1', "image: it names no file"),
    ('[[shot]]\nprompt = "a"\nduration = 1\njoin = "fade"', "join: 'fade' is unknown"),
    ('[[shot]]\nprompt = "a"\nduration = 1\njoin = "continue"', "nothing comes before"),
    ('[[shot]]\nprompt = "a"\nduration = 1\nfrom = 1', "from: only a clip has it"),
    ('[[shot]]\nprompt = "a"\nduration = 1\nover = 1', "over: only a blend has it"),
    ('[[shot]]\nclip = "a.mp4"\nduration = 1', "duration: a clip is shown as it is"),
    ('[[shot]]\nclip = "a.mp4"\nimage = "b.png"', "image: a clip is shown as it is"),
    ('[[shot]]\nclip = "a.mp4"\nprompt = "b"', "prompt: a clip is shown as it is"),
    ('[[shot]]\nclip = "a.mp4"\nfrom = 3\nto = 2', "line 4, shot 1: to: 2s is not after from"),
    (
        '[[shot]]\nat = 0\nprompt = "a"\n[[shot]]\nat = 3\nprompt = "b"\n[[shot]]\nat = 1\n'
        'prompt = "c"\nduration = 1',
        "line 8, shot 3: at: 1s is not after 3s",
    ),
    (
        '[[shot]]\nduration = 2\nprompt = "a"\n[[shot]]\nat = 1\nprompt = "b"\nduration = 1',
        "line 5, shot 2: at: 1s, but what comes before ends at 2s",
    ),
    ('[[shot]]\nat = 1\nprompt = "a"\nduration = 1', "at: 1s, but what comes before ends at 0s"),
    ('duration = 2\n[[shot]]\nprompt = "a"\nduration = 3', "line 1: duration: the last shot ends"),
    (
        'duration = 1\n[[shot]]\nprompt = "a"\nduration = 3\n[[shot]]\nprompt = "b"',
        "line 1: duration: 1s is not after 3s, where the last shot begins",
    ),
    ('[[shot]]\nclip = "a"\n[[shot]]\nclip = "b"\njoin = "continue"', "nothing is made"),
    (
        '[[shot]]\nclip = "a"\n[[shot]]\nprompt = "b"\nduration = 1\njoin = "blend"',
        "a blend is between two made shots",
    ),
    (
        '[[shot]]\nprompt = "a"\nduration = 1\n[[shot]]\nclip = "b"\njoin = "blend"',
        "a blend is between two made shots",
    ),
    ('size = "big"\n[[shot]]\nprompt = "a"\nduration = 1', "line 1: size: cannot read the size"),
    ('seed = 1.5\n[[shot]]\nprompt = "a"\nduration = 1', "seed: 1.5 is no whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BAD)
def test_bad_files_are_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, FOLDER, name="board.toml")
    assert said in caught.value.message
    assert caught.value.message.startswith("board.toml")
    assert caught.value.hint and caught.value.exit_code == ExitCode.USAGE


def test_bad_paths_are_usage_errors(tmp_path: Path) -> None:
    binary, large = tmp_path / "binary.toml", tmp_path / "large.toml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    for path in (tmp_path / "missing.toml", tmp_path, binary, large):
        with pytest.raises(UsageError, match=path.name):
            read(path)


def test_files_are_looked_for_beside_the_storyboard(tmp_path: Path) -> None:
    board = tmp_path / "board.toml"
    board.write_text('[[shot]]\nimage = "a.png"\nduration = 1\n', encoding="utf-8-sig")
    assert read(board).shots[0].image == tmp_path / "a.png"
