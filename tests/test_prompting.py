"""Prompts for a published model, through the command line: an LLM writes them, one that sees looks.

The LLMs recite, so what arrives in the recipe shows which of them was asked; records say that they
were pulled.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sora_cli.cli.main import main
from sora_cli.media import recipe as recipes
from sora_cli.pipeline.instructions import TEXT_MODEL, VISION_MODEL
from sora_cli.weights import records
from sora_cli.weights.records import Record
from tests import language_folders, wan_folders
from tests.clips import made, moving

Capture = pytest.CaptureFixture[str]
READ = "A red ball bounces over the snow again and again while the low sun colours the sky. " * 5
SEEN = "A small house of wood turns slowly on the grass while soft clouds pass behind it. " * 3
QUICK = ("--steps", "1", "--size", "64x64", "--num-frames", "5", "--seed", "1")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small Wan 2.2 folder, and both LLMs."""
    root = tmp_path_factory.mktemp("models")
    return {
        "wan": wan_folders.save(wan_folders.wan22(), root / "wan"),
        TEXT_MODEL: language_folders.reciter(root / "text", READ.strip()),
        VISION_MODEL: language_folders.reciter(root / "vision", SEEN.strip(), sees=True),
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pulled(models: dict[str, Path], *names: str) -> None:
    for name in names:
        parts = {"language_model": models[name]}
        records.write(Record(name=name, kind="language model", parts=parts, files=()))


def expanded(path: str) -> str | None:
    return recipes.read(Path(path))["expanded_prompt"]


def test_a_prompt_is_written_by_the_llm_and_both_are_in_the_recipe(
    here: Path, models: dict[str, Path]
) -> None:
    pulled(models, TEXT_MODEL)
    words = ["generate", "a red ball bounces on the snow", "-m", str(models["wan"]), *QUICK]
    assert main([*words, "-o", "a.mkv"]) == 0
    assert recipes.read(Path("a.mkv"))["prompt"] == "a red ball bounces on the snow"
    assert expanded("a.mkv") == READ.strip()
    assert main([*words, "--no-expand", "-o", "b.mkv"]) == 0
    assert expanded("b.mkv") is None


def test_without_an_llm_the_users_own_text_is_used_and_a_note_says_so(
    here: Path, models: dict[str, Path], capsys: Capture
) -> None:
    words = ["generate", "a red ball", "-m", str(models["wan"]), *QUICK, "-o", "a.mkv"]
    assert main(words) == 0
    assert f"sora weights pull {TEXT_MODEL}" in capsys.readouterr().err
    assert expanded("a.mkv") is None


def test_only_an_llm_that_sees_writes_about_a_picture(here: Path, models: dict[str, Path]) -> None:
    Image.new("RGB", (64, 64), (90, 160, 60)).save("house.png")
    words = ["animate", "house.png", "it turns", "-m", str(models["wan"]), *QUICK]
    pulled(models, TEXT_MODEL)
    assert main([*words, "-o", "a.mkv"]) == 0
    assert expanded("a.mkv") is None
    pulled(models, VISION_MODEL)
    assert main([*words, "-o", "b.mkv"]) == 0
    assert expanded("b.mkv") == SEEN.strip()


def test_a_clip_without_a_prompt_is_described(
    here: Path, models: dict[str, Path], capsys: Capture
) -> None:
    made(here / "a.mkv", moving(8, 64, 64), "-c:v", "ffv1", "-pix_fmt", "bgr0", fps="24")
    assert main(["caption", "a.mkv", "-m", str(models["wan"])]) == 3
    assert f"hint: sora weights pull {VISION_MODEL}" in capsys.readouterr().err
    pulled(models, VISION_MODEL)
    assert main(["caption", "a.mkv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["caption"] == SEEN.strip()
    words = ["extend", "a.mkv", "--by", "200ms", "-m", str(models["wan"]), "--steps", "1"]
    assert main([*words, "--size", "64x64", "--seed", "1", "-o", "b.mkv"]) == 0
    assert "note: no prompt: what is seen in a.mkv: A small house" in capsys.readouterr().err
    assert recipes.read(Path("b.mkv"))["prompt"] == SEEN.strip()


def test_a_picture_of_tinys_is_animated_by_the_words_that_asked_for_it(
    here: Path, capsys: Capture
) -> None:
    """What the text encoder got for a picture says that nothing moves."""
    recipe = {"schema": 1, "num_frames": 1, "prompt": "a house", "expanded_prompt": "A picture."}
    from sora_cli.media import image

    image.write("house.png", np.zeros((64, 64, 3), np.uint8), recipe=recipe)
    assert main(["animate", "house.png", *QUICK, "-o", "a.mkv"]) == 0
    assert "taken from the recipe in house.png: a house\n" in capsys.readouterr().err
