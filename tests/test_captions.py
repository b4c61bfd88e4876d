"""Captions say what is in the scene, and nothing else."""

from __future__ import annotations

import random
import re

import pytest

from sora_cli.train.captions import (
    CAMERA_PHRASES,
    FLOOR_PHRASES,
    KIND_WORDS,
    MOTION_PHRASES,
    SIZE_WORDS,
    SKY_PHRASES,
    attributes,
    dense,
    read,
    short,
    vocabulary,
)
from sora_cli.train.mirror import mirror
from sora_cli.train.world import CAMERAS, FLOORS, MOTIONS, SIZES, SKIES, THINGS, Scene, draw_scene

CLIP = {"width": 160, "height": 96, "num_frames": 25}
PICTURE = {"width": 160, "height": 96, "num_frames": 1}


def scenes(count: int, **size: int) -> list[Scene]:
    """Scenes of the training split."""
    return [draw_scene(5, index, **size) for index in range(count)]


def test_every_value_of_the_world_has_words() -> None:
    assert set(KIND_WORDS) == set(THINGS)
    assert set(MOTION_PHRASES) == set(MOTIONS)
    assert set(FLOOR_PHRASES) == set(FLOORS)
    assert set(SKY_PHRASES) == set(SKIES)
    assert set(CAMERA_PHRASES) == set(CAMERAS)
    assert set(SIZE_WORDS) == set(SIZES)


@pytest.mark.parametrize("size", [CLIP, PICTURE], ids=["clip", "picture"])
def test_dense_captions_can_be_read_back(size: dict[str, int]) -> None:
    for scene in scenes(600, **size):
        caption = dense(scene, random.Random(scene.index))
        truth, found = attributes(scene), read(caption.text)
        assert caption.named <= set(truth)
        for name in caption.named:
            assert found[name] == truth[name], (caption.text, name)
        left_out = set(truth) - caption.named
        assert left_out <= {"camera", "motion0", "motion1"}
        assert not left_out or size == PICTURE


def test_short_captions_name_what_they_claim_and_nothing_wrong() -> None:
    lengths = []
    for scene in scenes(600, **CLIP):
        caption = short(scene, random.Random(scene.index))
        truth, found = attributes(scene), read(caption.text)
        assert set(found) - {"count"} == caption.named - {"count"}, caption.text
        for name, value in found.items():
            assert value == truth[name], (caption.text, name)
        lengths.append(len(caption.text.split()))
    assert sum(lengths) / len(lengths) < 14


def test_mirrored_scenes_get_mirrored_words() -> None:
    other = {"left": "right", "right": "left", "pan left": "pan right", "pan right": "pan left"}
    for scene in scenes(200, **CLIP):
        turned, straight = attributes(mirror(scene)), attributes(scene)
        assert turned["camera"] == other.get(straight["camera"], straight["camera"])
        last = len(scene.things) - 1
        for slot in range(last + 1):
            motion = straight[f"motion{last - slot}"]
            assert turned[f"motion{slot}"] == other.get(motion, motion)


def test_captions_are_deterministic_and_varied() -> None:
    scene = draw_scene(5, 1, **CLIP)
    assert dense(scene, random.Random(1)) == dense(scene, random.Random(1))
    assert len({dense(scene, random.Random(i)).text for i in range(60)}) > 30


def test_the_vocabulary_holds_every_word_used() -> None:
    words = vocabulary()
    for scene in scenes(300, **CLIP) + scenes(100, **PICTURE):
        for write in (dense, short):
            text = write(scene, random.Random(scene.index)).text.lower()
            assert set(re.findall(r"[a-z]+", text)) <= words, text
    assert "elephant" not in words


def test_articles_and_sentences_are_english() -> None:
    for scene in scenes(200, **CLIP):
        text = dense(scene, random.Random(scene.index)).text
        assert text[0].isupper() and text.endswith(".")
        assert not re.search(r"\ba [aeiou]", text) and not re.search(r"\ban [^aeiou]", text)
        assert "  " not in text and "{" not in text
