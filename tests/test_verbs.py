"""The verbs that work from clips, through the command line, with the embedded model.

What they promise: a clip's own frames come back bit for bit, at its own size and rate, on the side
where they belong; what is made stands between; bad input is one line.
"""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from sora_cli.cli.main import main
from sora_cli.media import recipe as recipes
from sora_cli.media.reader import open_clip
from tests.clips import made, moving, run
from tests.tiny_runs import names_in

Capture = pytest.CaptureFixture[str]
SCHEMA = json.loads(
    (Path(__file__).parents[1] / "docs/reference/recipe.schema.json").read_text(encoding="utf-8")
)
QUICK = ("--steps", "2", "--seed", "1", "--size", "64x64")
LOSSLESS = ("-c:v", "ffv1", "-pix_fmt", "bgr0")


def read(path: Path | str) -> np.ndarray:
    """Every frame of a clip, uint8 [T, H, W, 3]."""
    return np.concatenate(list(open_clip(path).frames()))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clip(here: Path) -> np.ndarray:
    """a.mkv: ten lossless frames of 80x48 at 16 fps, none of them the model's size or rate."""
    frames = moving(10, 48, 80)
    made(here / "a.mkv", frames, *LOSSLESS, fps="16")
    return frames


def sora(*words: str) -> int:
    return main([*words, *QUICK])


@pytest.mark.parametrize(
    ("direction", "place"), [("forward", slice(0, 10)), ("backward", slice(-10, None))]
)
def test_an_extended_clip_keeps_its_frames(
    clip: np.ndarray, capsys: Capture, direction: str, place: slice
) -> None:
    words = ["extend", "a.mkv", "it goes on", "--by", "1s", "--direction", direction]
    assert sora(*words, "-o", "b.mkv", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    frames = read("b.mkv")
    assert frames.shape == (26, 48, 80, 3)  # a second at 16 fps was added
    assert np.array_equal(frames[place], clip)
    jsonschema.validate(printed, SCHEMA)
    assert (printed["size"], printed["fps"], printed["num_frames"]) == ([80, 48], 16, 26)
    assert printed["parents"][0]["path"] == "a.mkv" and len(printed["seams"]) == 1
    assert recipes.read(Path("b.mkv"))["seams"] == printed["seams"]


def test_both_directions_leave_the_clip_in_the_middle(clip: np.ndarray) -> None:
    assert sora("extend", "a.mkv", "p", "--to", "2s", "--direction", "both", "-o", "b.mkv") == 0
    frames = read("b.mkv")
    found = [i for i in range(len(frames) - 9) if np.array_equal(frames[i : i + 10], clip)]
    assert len(found) == 1 and abs(len(frames) - 32) <= 2


def test_a_loop_has_no_doubled_end(clip: np.ndarray, capsys: Capture) -> None:
    assert sora("loop", "a.mkv", "p", "--over", "1s", "-o", "b.mkv") == 0
    frames = read("b.mkv")
    assert np.array_equal(frames[:10], clip) and len(frames) > 20
    assert not np.array_equal(frames[-1], frames[0])
    assert capsys.readouterr().err.count("note: seam") == 2


def test_a_loop_from_nothing_closes(here: Path) -> None:
    words = ["loop", "--prompt", "a red ball spins", "--over", "2s", "--no-expand"]
    assert sora(*words, "-o", "ring.webp") == 0
    frames = read("ring.webp").astype(float)
    assert len(frames) == 16
    assert np.abs(frames[0] - frames[-1]).mean() < 40  # of 255: one world, not two


def test_clips_of_other_sizes_and_rates_are_connected(clip: np.ndarray, capsys: Capture) -> None:
    other = made(Path("other.mkv"), moving(6, 32, 32)[::-1], *LOSSLESS, fps="8")
    assert sora("connect", "a.mkv", str(other), "p", "--over", "1s", "-o", "b.mkv") == 0
    told = capsys.readouterr().err
    assert "other.mkv: fitted from 32x32 into 80x48" in told
    assert "read at 16 fps, the first clip's, not 8" in told
    frames = read("b.mkv")
    assert np.array_equal(frames[:10], clip)
    assert frames.shape[1:] == (48, 80, 3) and len(frames) > 10 + 12 + 10
    assert np.array_equal(frames[-1], frames[-2])  # a frame at 8 fps stands for two at 16


def test_a_part_made_anew_leaves_the_rest(clip: np.ndarray) -> None:
    words = ["edit", "a.mkv", "p", "--from", "250ms", "--to", "500ms"]
    assert sora(*words, "-o", "b.mkv") == 0
    frames = read("b.mkv")
    assert np.array_equal(frames[:4], clip[:4])
    assert np.array_equal(frames[-2:], clip[-2:])
    assert not np.array_equal(frames[4:-2], clip[4:-2])


def test_more_strength_changes_more(clip: np.ndarray) -> None:
    changes = []
    for strength in ("0.3", "1"):
        words = ["edit", "a.mkv", "a blue cube", "--strength", strength, "--force"]
        assert main([*words, "--steps", "6", "--seed", "1", "--size", "64x64", "-o", "b.mkv"]) == 0
        changes.append(np.abs(read("b.mkv").astype(float) - clip).mean())
    assert changes[0] < changes[1]


def test_only_what_is_white_in_a_mask_changes(here: Path) -> None:
    """The autoencoder blurs everything a little, so what stays is compared with what changes."""
    frames = np.full((9, 64, 64, 3), (90, 160, 240), np.uint8)
    made(here / "sky.mkv", frames, *LOSSLESS, fps="8")
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    Image.fromarray(mask).save("mask.png")
    words = ["edit", "sky.mkv", "a red ball at night", "--strength", "1", "--mask", "mask.png"]
    assert sora(*words, "-o", "b.mkv") == 0
    change = np.abs(read("b.mkv").astype(float) - frames).mean(axis=(0, 2, 3))
    assert change[:16].mean() > 2 * change[48:].mean()


def test_a_picture_and_a_clip_become_larger(clip: np.ndarray, here: Path) -> None:
    assert main(["upscale", "a.mkv", "p", "--steps", "2", "--seed", "1", "-o", "b.mkv"]) == 0
    assert read("b.mkv").shape == (10, 96, 160, 3)
    Image.fromarray(clip[0]).save("a.png")
    words = ["upscale", "a.png", "p", "--size", "250x150", "--steps", "2", "--seed", "1"]
    assert main([*words, "-o", "b.png"]) == 0
    assert np.asarray(Image.open("b.png")).shape == (150, 250, 3)
    assert recipes.read(Path("b.png"))["num_frames"] == 1


def test_a_storyboard_shows_its_shots_in_order(clip: np.ndarray, here: Path) -> None:
    Image.fromarray(clip[3]).save("a.png")
    Path("board.toml").write_text(
        """
        [[shot]]
        prompt = "a red ball"
        duration = "1s"
        [[shot]]
        image = "a.png"
        duration = "1s"
        [[shot]]
        clip = "a.mkv"
        join = "continue"
        """
    )
    assert main(["storyboard", "board.toml", "--no-expand", *QUICK, "-o", "b.mkv"]) == 0
    frames = read("b.mkv")
    assert np.array_equal(frames[-10:], clip)
    kinds = [seam["kind"] for seam in recipes.read(Path("b.mkv"))["seams"]]
    assert kinds == ["cut", "made-kept"]


def test_a_long_video_is_made_in_pieces(here: Path, capsys: Capture) -> None:
    words = ["generate", "a red ball", "--num-frames", "97", "--no-expand", "-o", "b.mkv"]
    assert sora(*words) == 0
    assert len(read("b.mkv")) == 97
    assert "97 frames are made in pieces of 25, then 49" in capsys.readouterr().err
    seams = recipes.read(Path("b.mkv"))["seams"]
    assert [seam["kind"] for seam in seams] == ["made-made"] * len(seams) and len(seams) >= 2


def test_first_and_last_picture(here: Path) -> None:
    for name, colour in (("a.png", (200, 40, 40)), ("b.png", (40, 40, 200))):
        Image.new("RGB", (64, 64), colour).save(name)
    assert sora("animate", "a.png", "p", "--last", "b.png", "--num-frames", "9", "-o", "c.mkv") == 0
    frames = read("c.mkv").astype(float).mean(axis=(1, 2))
    assert len(frames) == 9
    assert frames[0, 0] > frames[0, 2] and frames[-1, 2] > frames[-1, 0]


def test_kept_latents_are_used_and_refused_where_they_do_not_fit(
    here: Path, capsys: Capture
) -> None:
    words = ["generate", "a red ball", "--num-frames", "9", "--no-expand", "--keep-latents"]
    assert sora(*words, "-o", "a.mkv") == 0
    assert {"a.mkv", "a.mkv.latents.safetensors"} <= set(names_in(here))
    assert sora("extend", "a.mkv", "--by", "1s", "-o", "b.mkv") == 0
    assert "note: starts from a.mkv.latents.safetensors" in capsys.readouterr().err
    Path("a.mkv.latents.safetensors").write_bytes(b"nothing")
    assert sora("extend", "a.mkv", "--by", "1s", "-o", "c.mkv") == 0
    assert "the clip's end is encoded again" in capsys.readouterr().err


def test_sound_goes_on_in_silence(here: Path) -> None:
    run(
        *("-f", "lavfi", "-i", "testsrc=size=64x64:rate=8:duration=1"),
        *("-f", "lavfi", "-i", "sine=duration=1", "-shortest", "a.mp4"),
    )
    assert sora("extend", "a.mp4", "p", "--by", "1s", "-o", "b.mp4") == 0
    longer = open_clip("b.mp4")
    assert longer.audio is not None and longer.audio.end == pytest.approx(longer.duration, abs=0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("extend none.mp4", "there is no file none.mp4"),
        ("extend empty.mp4", "empty.mp4"),
        ("extend text.mp4", "text.mp4"),
        ("extend a.mkv --by 0", "--by must be a time from 0.125s to 1h, not 0s"),
        ("extend a.mkv --by 1s --to 2s", "--by and --to cannot be used together"),
        ("extend a.mkv --to 100ms", "the clip lasts 0.625s already"),
        ("extend a.mkv -m wan2.1-t2v-1.3b", "the weights of wan2.1-t2v-1.3b are not"),
        ("loop", "loop needs a clip or --prompt"),
        ("loop a.mkv --over -1s", "--over must be a time"),
        ("connect a.mkv none.mp4", "there is no file none.mp4"),
        ("edit a.mkv p --strength 0", "--strength must be above 0 and at most 1, not 0"),
        ("edit a.mkv p --from 1s", "--from and --to go together"),
        ("edit a.mkv p --from 1s --to 200ms", "is no part of a clip of 0.625s"),
        ("edit a.mkv p --mask none.png", "there is no file none.png"),
        ("upscale a.mkv --scale 99", "--scale must be from 1 to 16, not 99"),
        ("upscale a.mkv --size 99999x99999", "99999x99999 is too large"),
        ("storyboard none.toml", "cannot read none.toml"),
        ("storyboard empty.toml", "empty.toml has no shots"),
        ("storyboard gone.toml", "there is no file"),
        ("animate text.mp4 p", "text.mp4"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    clip: np.ndarray, here: Path, capsys: Capture, words: str, message: str
) -> None:
    Path("empty.mp4").touch()
    Path("text.mp4").write_text("this is no video\n" * 50)
    Path("empty.toml").touch()
    Path("gone.toml").write_text('[[shot]]\nclip = "none.mp4"\n')
    before = names_in(here)
    code = main([*words.split(), "-o", "out.mkv"])
    captured = capsys.readouterr()
    assert code in (2, 3), captured.err
    assert captured.out == ""
    (error,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert message in error
    assert names_in(here) == before
