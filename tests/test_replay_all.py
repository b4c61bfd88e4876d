"""Twenty recorded outputs, of every verb and kind of file, made again from their recipes alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sora_cli.cli.main import main
from sora_cli.media import recipe as recipes
from tests.tiny_runs import PROMPT, generate, moving_folder

Capture = pytest.CaptureFixture[str]

SIZE = ("--size", "64x64")
SHORT = (*SIZE, "--num-frames", "5", "--steps", "2")
BOARD = """
size = "64x64"
fps = 8
negative_prompt = "grey"

[[shot]]
prompt = "a red ball on grass"
duration = "1s"

[[shot]]
image = "red.png"
prompt = "it moves"
duration = "1s"

[[shot]]
clip = "clip.mkv"
from = "0s"
to = "0.5s"
"""
# What is typed besides a seed and the output's name.
RECORDED: dict[str, tuple[str, ...]] = {
    "plain.mp4": ("generate", PROMPT, *SHORT, "--no-expand"),
    "guided.mkv": ("generate", PROMPT, *SHORT, "--no-expand", "--guidance-scale", "1"),
    "negative.webm": ("generate", PROMPT, *SHORT, "-n", "grey, dark", "--sampler", "unipc"),
    "sampler.gif": ("generate", PROMPT, *SHORT, "--no-expand", "--shift", "2", "--fps", "6"),
    "wide.webp": ("generate", PROMPT, "--size", "96x48", "--num-frames", "9", "--steps", "3"),
    "grid.mkv": ("generate", PROMPT, *SHORT, "--sigma-grid", "original", "--crf", "30"),
    "long.mkv": ("generate", PROMPT, *SIZE, "--num-frames", "41", "--steps", "1", "--no-expand"),
    "half.mkv": ("generate", PROMPT, *SHORT, "--no-expand", "--dtype", "bfloat16"),
    "eight.mkv": ("generate", PROMPT, *SHORT, "--no-expand", "--quantization", "fp8"),
    "frames/": ("generate", PROMPT, *SHORT, "--expand"),
    "picture.png": ("image", PROMPT, *SIZE, "--steps", "2", "--expand"),
    "picture.jpg": ("image", PROMPT, "--size", "48x80", "--steps", "2", "--no-expand"),
    "animated.mp4": ("animate", "red.png", "it moves", *SHORT, "--fit", "pad"),
    "extended.mkv": ("extend", "clip.mkv", "a ball", "--by", "1s", "--steps", "2"),
    "both.mkv": ("extend", "clip.mkv", "--by", "1s", "--direction", "both", "--steps", "1"),
    "ring.mkv": ("loop", "--prompt", PROMPT, *SIZE, "--over", "1s", "--steps", "2"),
    "looped.mkv": ("loop", "clip.mkv", "--over", "1s", "--steps", "2"),
    "connected.mkv": ("connect", "clip.mkv", "clip2.mkv", "--over", "1s", "--steps", "2"),
    "edited.mkv": ("edit", "clip.mkv", "a ball in the snow", "--strength", "0.7", "--steps", "3"),
    "larger.mkv": ("upscale", "clip.mkv", "--scale", "1.5", "--strength", "0.5", "--steps", "3"),
    "board.mkv": ("storyboard", "board.toml", "--steps", "2"),
}
SAMPLE = ("negative.webm", "animated.mp4", "ring.mkv", "connected.mkv")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, two clips of the embedded model, and a storyboard of them."""
    folder = tmp_path_factory.mktemp("material")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for variable in ("CONFIG", "CACHE", "STATE"):
            patch.setenv(f"XDG_{variable}_HOME", str(folder / "xdg"))
        Image.fromarray(moving_folder(folder / "frames")[0]).save("red.png")
        assert generate("-o", "clip.mkv", "--num-frames", "9", "--progress", "none") == 0
        words = ["generate", "a house", *SIZE, "--num-frames", "9", "--steps", "1", "--no-expand"]
        assert main([*words, "--seed", "2", "-o", "clip2.mkv", "--progress", "none"]) == 0
        (folder / "board.toml").write_text(BOARD)
    return folder


@pytest.mark.parametrize(
    "names", [SAMPLE, pytest.param(tuple(RECORDED), marks=pytest.mark.slow)], ids=["some", "all"]
)
@pytest.mark.timeout(1800)
def test_recorded_outputs_are_made_again_bit_for_bit(
    material: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, names: Sequence[str]
) -> None:
    """On the same machine nothing differs: no setting, no weight, no bit of any frame."""
    monkeypatch.chdir(material)
    differ = {}
    for name in names:
        verb, *words = RECORDED[name]
        made = name.replace("/", f"-{len(names)}/") if "/" in name else f"{len(names)}-{name}"
        code = main([verb, *words, "--seed", "5", "-o", made, "--progress", "none"])
        assert code == 0, (name, capsys.readouterr().err)
        capsys.readouterr()
        again = f"again-{made}"
        code = main(["replay", made.rstrip("/"), "-o", again, "--json", "--progress", "none"])
        captured = capsys.readouterr()
        assert code == 0, (name, captured.err)
        said = json.loads(captured.out)
        if said["differs"] or not said["frames"]["identical"]:
            differ[name] = (said["differs"], said["frames"])
        assert str(material) not in json.dumps(recipes.read(made)), "a recipe holds no path"
    assert differ == {}


def test_a_storyboards_changed_picture_is_said(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The storyboard is found by its hash; what it names may have changed since."""
    monkeypatch.chdir(tmp_path)
    board = '[[shot]]\nimage = "a.png"\nprompt = "it moves"\nduration = "0.5s"\n'
    (tmp_path / "board.toml").write_text(f'size = "64x64"\n{board}')
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save("a.png")
    words = ["storyboard", "board.toml", "--steps", "1", "--seed", "1", "--no-expand"]
    assert main([*words, "-o", "b.mkv", "--progress", "none"]) == 0
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save("a.png")
    capsys.readouterr()
    assert main(["replay", "b.mkv", "--json", "--progress", "none"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["differs"]) == ["parents"] and not said["frames"]["identical"]
