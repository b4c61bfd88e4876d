"""The captioner that the package carries: small enough, and right about what is rendered."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sora_cli.cli.main import main
from sora_cli.eval.captioner import compared, in_language
from sora_cli.models.captioner import Captioner, load_eyes
from sora_cli.pipeline.caption import spread
from sora_cli.pipeline.expand import known_words, unknown_words
from sora_cli.train.captions import attributes, dense
from sora_cli.train.dataset import BUCKETS
from sora_cli.train.render import render
from sora_cli.train.world import Scene, draw_scene
from sora_cli.weights.store import locate

CLIPS = 20


@pytest.fixture(scope="module")
def folder() -> Path:
    return locate("tiny").parts["captioner"]


def scene(index: int) -> Scene:
    """Scenes of the development split, in every size and length that training has."""
    bucket = BUCKETS[index % len(BUCKETS)]
    return draw_scene(
        0, index, width=bucket.width, height=bucket.height, num_frames=bucket.num_frames,
        split="development",
    )  # fmt: skip


def test_it_is_small(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6
    assert sum(p.numel() for p in load_eyes(folder).parameters()) < 1e6


def test_it_names_what_is_rendered(folder: Path) -> None:
    """Nine of ten attributes of scenes that it never saw; fewer would mean another network, other
    weights or another preparation of the frames."""
    tally: dict[str, list[bool]] = {}
    with Captioner(folder) as captioner:
        for index in range(CLIPS):
            drawn = scene(index)
            text = captioner.describe(spread(render([drawn])[0][0].numpy()), seed=index)
            named = dense(drawn, random.Random(0)).named
            wanted = {k: v for k, v in attributes(drawn).items() if k in named}
            compared(wanted, text, tally)
            assert in_language(text), text
    rights = [right for row in tally.values() for right in row]
    assert sum(rights) / len(rights) >= 0.85, tally


def test_of_anything_else_it_speaks_in_its_own_words_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert main(["caption", str(tmp_path / "noise.png")]) == 0
    said = capsys.readouterr()
    assert not unknown_words(said.out, known_words(locate("tiny").parts["captioner"]))
    assert "note: this captioner has seen one small world" in said.err
