"""Describing pictures and clips: what is looked at, what is remembered, and how it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sora_cli.errors import DeviceError, SoraError, UsageError, WeightsError
from sora_cli.pipeline.caption import MAX_FRAMES, Caption, caption, spread
from sora_cli.pipeline.instructions import I2V_EMPTY
from tests.language_folders import reciter

TEXT = "A red ball rolls over the grass to the left. The camera stays still."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reciter(tmp_path_factory.mktemp("sees"), TEXT, sees=True)


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture
def look(folder: Path, tmp_path: Path) -> Callable[..., Caption]:
    def looked(frames: object = None, **settings: object) -> Caption:
        given = _clip(1) if frames is None else frames
        options = {"folder": folder, "cache_dir": tmp_path / "cache"} | settings
        return caption(given, **options)  # type: ignore[arg-type]

    return looked


def _clip(length: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (length, 32, 48, 3), dtype=np.uint8)


def test_looks_once_then_remembers(look: Callable[..., Caption], tmp_path: Path) -> None:
    assert look() == Caption(text=TEXT, frames=1, source="model")
    assert look() == Caption(text=TEXT, frames=1, source="remembered")
    assert look(list(_clip(1))).source == "remembered"  # the same pixels, in a list
    (entry,) = (tmp_path / "cache" / "captions").iterdir()
    entry.write_bytes(b"{}")
    assert look().source == "model"


def test_frames_seed_instructions_and_weights_are_told_apart(
    look: Callable[..., Caption], folder: Path
) -> None:
    assert look().source == "model"
    assert look(_clip(1, seed=1)).source == "model"
    assert look(_clip(1).reshape(1, 48, 32, 3)).source == "model"
    assert look(_clip(2)).source == "model"
    assert look(seed=1).source == "model"
    assert look(instructions=I2V_EMPTY).source == "model"
    other = reciter(folder.with_name("other"), "A house stands still.", sees=True)
    assert look(folder=other).text == "A house stands still."


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 81, 1001])
def test_a_clip_is_looked_at_from_end_to_end(length: int) -> None:
    frames = [np.full((1, 1, 3), i % 256, np.uint8) + 0 * i for i in range(length)]
    seen = spread(frames)
    numbers = [next(i for i, frame in enumerate(frames) if frame is one) for one in seen]
    assert len(seen) == min(length, MAX_FRAMES)
    assert numbers[0] == 0 and numbers[-1] == length - 1
    steps = np.diff(numbers)
    assert len(steps) == 0 or (steps.min() > 0 and steps.max() - steps.min() <= 1)


def test_a_taught_captioner_is_told_nothing(
    look: Callable[..., Caption], folder: Path, tmp_path: Path
) -> None:
    """As the embedded model's may be: its few positions would not hold the instructions."""
    (folder / "known_words.txt").write_text("a red ball")
    table = json.loads((folder / "config.json").read_text())
    table["text_config"]["max_position_embeddings"] = 192
    (folder / "config.json").write_text(json.dumps(table))
    assert look().text == TEXT


def test_what_cannot_be_described_is_an_error_with_a_way_out(
    look: Callable[..., Caption], folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError):
        look([])
    with pytest.raises(WeightsError) as missing:
        look(folder=None)
    assert missing.value.hint == "sora weights pull qwen3-vl-4b-instruct"
    with pytest.raises(WeightsError, match="cannot see") as blind:
        look(folder=reciter(tmp_path / "blind", TEXT))
    assert blind.value.hint == missing.value.hint
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        look()


@pytest.mark.parametrize("answer", ["", "...", "I'm sorry, I can't help with that.", "Ball."])
def test_no_answer_is_an_error_and_not_remembered(
    look: Callable[..., Caption], tmp_path: Path, answer: str
) -> None:
    mute = reciter(tmp_path / "mute", answer, sees=True)
    with pytest.raises(SoraError, match="no caption could be written") as failure:
        look(folder=mute)
    assert failure.value.hint
    assert not list((tmp_path / "cache").glob("captions/*"))


def test_a_strange_picture_is_an_error_in_our_words(look: Callable[..., Caption]) -> None:
    with pytest.raises(SoraError, match="no caption could be written: .*aspect ratio"):
        look([np.zeros((1, 400, 3), np.uint8)])


def test_too_little_memory_is_a_device_error(look: Callable[..., Caption], folder: Path) -> None:
    with (folder / "more.safetensors").open("wb") as file:
        file.truncate(2**43)  # of holes: it takes no room on the disk
    with pytest.raises(DeviceError, match="GB"):
        look()
