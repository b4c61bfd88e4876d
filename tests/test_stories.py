"""Captions of the wide world say what is in the scene, and fit the text encoder."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

import sora_cli
from sora_cli.eval.survey import of_family, training_scenes
from sora_cli.models.text_encoder import Tokenizer
from sora_cli.train import stories
from sora_cli.train.captions import attributes, dense, short
from sora_cli.train.dit import TEXT_LEN
from sora_cli.train.events import Game
from sora_cli.train.families import KANG, WIDE
from sora_cli.train.mirror import mirror
from sora_cli.train.words import ALL_KINDS, COUNTS
from sora_cli.train.world import Scene

CLIP = {"width": 160, "height": 96, "num_frames": 25}
LEVELS = (dense, short)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Scenes of the training buckets, and of Kang et al.'s preset."""
    kang = [s for f in KANG for s in of_family(f.name, 30, (f,), "training", **CLIP)]
    return training_scenes(1500, WIDE, "training") + kang


def test_what_a_caption_claims_to_name_is_in_it(scenes: list[Scene]) -> None:
    for scene in scenes:
        truth = attributes(scene)
        for write in LEVELS:
            caption = write(scene, random.Random(scene.index))
            text = caption.text.lower()
            assert caption.named <= set(truth), (caption.named - set(truth), text)
            for name in caption.named:
                value = truth[name]
                if name.startswith("color") or name in ("wall", "paint", "player"):
                    assert re.search(rf"\b{value}\b", text), (name, value, text)
                elif name.startswith("kind"):
                    assert any(word in text for word in ALL_KINDS[value]), (name, value, text)
                elif name in ("bites", "pieces"):
                    assert COUNTS[int(value)] in text, (name, value, text)


def test_dense_captions_name_everything(scenes: list[Scene]) -> None:
    for scene in scenes:
        caption = dense(scene, random.Random(scene.index))
        # How a thing in a story moves is told by the story; a picture has no time.
        left_out = {name for name in attributes(scene) if not name.startswith("motion")}
        left_out -= caption.named | ({"camera", "actions"} if scene.num_frames == 1 else set())
        assert not left_out, (left_out, caption.text)


def test_actions_are_told_in_their_order() -> None:
    ways = re.compile("left|right|up|down")
    for scene in of_family("game", 200, WIDE, "training", **CLIP):
        assert isinstance(scene.event, Game)
        text = short(scene, random.Random(scene.index)).text
        told: list[str] = []
        steps = text[text.index("player") :].replace("one step", "").strip(".")
        for part in re.split(r", then |, | and then ", steps):
            found = ways.search(part)
            assert found is not None, text
            numbers = [n for n, word in enumerate(COUNTS) if n and re.search(rf"\b{word}\b", part)]
            times = 2 if "twice" in part or "two" in part else (numbers or [1])[0]
            told += [found[0]] * times
        assert tuple(told) == scene.event.actions, text


def test_stories_are_many_and_english(scenes: list[Scene]) -> None:
    words = stories.vocabulary()
    for scene in scenes:
        for write in LEVELS:
            text = write(scene, random.Random(scene.index)).text
            assert not re.search(r"\b[Aa] [aeiou]", text), text
            assert not re.search(r"\b[Aa]n [^aeiou]", text), text
            assert "{" not in text and "  " not in text
            assert set(re.findall(r"[a-z]+", text.lower())) <= words, text
    for family in WIDE:
        scene = of_family(family.name, 1, WIDE, "training", **CLIP)[0]
        for write in LEVELS:
            told = {write(scene, random.Random(n)).text for n in range(80)}
            assert len(told) > 25, family.name


def test_captions_fit_the_text_encoder(scenes: list[Scene]) -> None:
    folder = Path(sora_cli.__file__).parent / "assets" / "tiny" / "tokenizer"
    tokenizer = Tokenizer.from_folder(folder)
    texts = [dense(scene, random.Random(scene.index)).text for scene in scenes]
    lengths = tokenizer.encode(texts, 4 * TEXT_LEN)[1].sum(1)
    # Long games of many turns alone are cut.
    assert float((lengths > TEXT_LEN).float().mean()) < 0.01


def test_mirrored_stories_go_the_other_way() -> None:
    for name in ("thrown", "behind", "game", "uniform"):
        mixture = KANG if name == "uniform" else WIDE
        for scene in of_family(name, 20, mixture, "training", **CLIP):
            straight = dense(scene, random.Random(1)).text
            turned = dense(mirror(scene), random.Random(1)).text
            swapped = re.sub("left|right", lambda m: {"left": "right"}.get(m[0], "left"), straight)
            assert turned == swapped
