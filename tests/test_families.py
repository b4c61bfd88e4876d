"""The wide world: today's scenes stay as they are; every family has its share and its splits."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sora_cli.eval.survey import balance, of_family, training_scenes
from sora_cli.eval.truth import CLASSES
from sora_cli.train import dataset
from sora_cli.train.bodies import owners
from sora_cli.train.events import Discs, Game
from sora_cli.train.families import KANG, WIDE
from sora_cli.train.grid_game import HELD_OUT_GAMES
from sora_cli.train.kang import HELD_OUT_BALLS
from sora_cli.train.lexicon import lexicon
from sora_cli.train.mirror import mirror
from sora_cli.train.render import MOVING, _Shot, render, render_objects
from sora_cli.train.things import THINGS, WIDER_THINGS, is_held_out
from sora_cli.train.world import (
    CAMERAS,
    MOTIONS,
    OUTSIDE,
    SPLITS,
    Family,
    Scene,
    draw_scene,
    position,
    rolled,
    yaw,
)

GOLDEN = Path(__file__).parent / "goldens" / "plain_frames.npz"
SIZES = ((64, 48, 5), (160, 96, 25), (96, 96, 1), (96, 160, 17))
OF_THING = ("kind", "color", "size", "motion", "start", "velocity", "yaw", "spin", "restitution")
OF_SCENE = ("floor", "sky", "camera", "camera_rate", "width", "height", "num_frames", "fps",
            "seed", "index")  # fmt: skip
SMALL = {"width": 96, "height": 64, "num_frames": 17}


def rounded(value: object) -> object:
    """Numbers to nine places, so that a processor's last bit does not count."""
    if isinstance(value, tuple):
        return [rounded(v) for v in value]
    return round(value, 9) if isinstance(value, float) else value


def record(scene: Scene) -> list[object]:
    """What a plain scene was before there was a wide world."""
    things = [[rounded(getattr(t, name)) for name in OF_THING] for t in scene.things]
    return [things, [rounded(getattr(scene, name)) for name in OF_SCENE]]


def plain(index: int, split: str) -> Scene:
    """A plain scene of one of four sizes."""
    width, height, frames = SIZES[index % 4]
    return draw_scene(7, index, width=width, height=height, num_frames=frames, split=split)


# ---------------------------------------------------------------------- what must not change


def test_plain_scenes_are_those_that_the_shipped_weights_saw() -> None:
    # Latents and cached clips are kept under their numbers: another scene would have other words.
    splits = ("training", "development", "final", "held-out")
    rows = [record(plain(index, split)) for split in splits for index in range(50)]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest == "869a876c9847bcf9630847f125e85334a02873da7b88e1288aa11936cb2da467"


def test_plain_scenes_look_as_they_did() -> None:
    scenes = [draw_scene(7, index, width=64, height=48, num_frames=5) for index in range(8)]
    frames = torch.cat([render([scene])[0][:, ::4] for scene in scenes]).numpy()
    before = np.load(GOLDEN)["frames"]
    apart = np.abs(frames.astype(int) - before.astype(int))
    # A ray on an outline may fall on its other side: a sample of four, of a few pixels.
    assert (apart > 1).mean() < 1e-4 and apart.mean() < 0.01


def test_the_wide_mixture_holds_the_plain_scenes_of_the_same_numbers() -> None:
    size = {"width": 64, "height": 48, "num_frames": 17}
    drawn = [draw_scene(0, index, mixture=WIDE, **size) for index in range(200)]
    same = [scene for scene in drawn if scene.family == "plain"]
    assert 30 < len(same) < 80
    assert all(scene == draw_scene(0, scene.index, **size) for scene in same)


def test_the_plain_judge_knows_nothing_of_the_new_words_and_the_lexicon_does() -> None:
    table = lexicon()
    assert set(THINGS) == set(CLASSES["kind"]) and set(CAMERAS) == set(CLASSES["camera"])
    assert set(MOTIONS) == set(CLASSES["motion"])
    assert set(table["phrases"]["kind"]) == set(THINGS) | set(WIDER_THINGS)
    assert {"rocket", "boat", "striped", "coin", "trail"} <= set(table["caption"]["words"])
    assert not set(WIDER_THINGS) & set(THINGS)


# ---------------------------------------------------------------------- shares and splits


def test_families_lengths_and_values_are_balanced() -> None:
    scenes = training_scenes(2000, WIDE, "training")
    table = balance(scenes)
    assert sum(family.share for family in WIDE) == pytest.approx(1)
    long = [scene for scene in scenes if scene.num_frames >= 17]
    for family in WIDE:
        share = sum(scene.family == family.name for scene in long) / len(long)
        assert share == pytest.approx(family.share, abs=0.025), family.name
        least = min(s.num_frames for s in scenes if s.family == family.name)
        assert least >= family.least_frames
    for name in ("floor", "sky", "color", "board", "wall", "pieces"):
        counts = table[name].values()
        assert max(counts) < 1.7 * min(counts), name
    assert set(table["kind"]) == set(THINGS) | set(WIDER_THINGS)
    assert {"orbit left", "orbit right"} <= set(table["camera"])
    assert {"thrown left", "thrown right", "takes off", "orbits"} <= set(table["motion"])
    assert set(table["outcome"]) == {"bounces back", "stops", "goes on"}


@pytest.mark.parametrize("family", WIDE[1:] + KANG, ids=lambda family: family.name)
def test_splits_mean_the_same_in_every_family(family: Family) -> None:
    size = SMALL | {"num_frames": max(17, family.least_frames)}
    drawn = {split: of_family(family.name, 40, (family,), split, **size) for split in SPLITS}
    for split, scenes in drawn.items():
        others = [s for name, rows in drawn.items() if name != split for s in rows]
        assert not set(scenes) & set(others)
        for scene in scenes:
            assert _is_held_out(scene) == (split == "held-out")
            assert not scene.things or (scene.things[0].stretch != 1) == (split == OUTSIDE)


def _is_held_out(scene: Scene) -> bool:
    """Whether a pairing is shown that training never sees."""
    if isinstance(scene.event, Game):
        return (scene.event.color, scene.event.board) in HELD_OUT_GAMES
    if isinstance(scene.event, Discs):
        return (scene.event.kind, scene.event.discs[0].color) in HELD_OUT_BALLS
    return is_held_out(scene.things[0].kind, scene.things[0].color)


def test_things_out_of_distribution_are_slower_or_faster_than_any_trained() -> None:
    family = next(f for f in WIDE if f.name == "launch")

    def climbs(split: str) -> list[float]:
        scenes = of_family("launch", 60, (family,), split, **SMALL)
        return [scene.things[0].legs[-1].acceleration for scene in scenes]

    low, high = min(climbs("training")), max(climbs("training"))
    assert not [a for a in climbs(OUTSIDE) if low <= a <= high]
    size = {"width": 64, "height": 48, "num_frames": 17}
    rolls = {
        split: [
            abs(s.things[0].velocity[0])
            for s in (draw_scene(0, i, split=split, **size) for i in range(400))
            if s.things[0].motion in ("left", "right")
        ]
        for split in ("training", OUTSIDE)
    }
    low, high = min(rolls["training"]), max(rolls["training"])
    outside = [speed < low or speed > high for speed in rolls[OUTSIDE]]
    assert sum(outside) / len(outside) > 0.6  # the rest are fast ones among the slow


# ---------------------------------------------------------------------- seeing them


@pytest.mark.parametrize("family", WIDE[1:] + KANG, ids=lambda family: family.name)
def test_mirrored_records_are_mirrored_pictures(family: Family) -> None:
    size = {"width": 48, "height": 48, "num_frames": max(17, family.least_frames)}
    scene = of_family(family.name, 1, (family,), "training", **size)[0]
    back = mirror(mirror(scene))
    assert record(back) == record(scene) and back.camera == scene.camera
    # Outlines only: floors, boards and the sun stay as they are.
    straight, turned = render([scene])[1].flip(3), render([mirror(scene)])[1]
    assert straight.any() and float((straight != turned).float().mean()) < 0.015


def test_the_dataset_mirrors_plain_scenes_in_the_same_way() -> None:
    for index in range(100):
        scene = plain(index, "training")
        assert dataset.mirror(scene) == mirror(scene)


def test_scenes_of_a_family_drawn_together_look_as_drawn_alone() -> None:
    # On a GPU scenes are drawn together: their slots must not mix up things, paint and pieces.
    for name in ("trail", "broken", "eaten", "behind"):
        scenes = of_family(name, 2, WIDE, "training", width=32, height=32, num_frames=17)
        alone, masks = render(scenes)
        moving = frozenset(o for s in scenes for o in owners(s) if o[0] in MOVING)
        together, covered = _Shot(scenes, 2, torch.device("cpu")).draw([moving])
        assert int((alone.view_as(together).int() - together.int()).abs().max()) <= 2
        assert torch.equal(masks.view_as(covered[:, 0]), covered[:, 0])


def test_families_of_all_sorts_can_be_rendered_in_one_batch() -> None:
    names = ("plain", "game", "trail")
    scenes = [of_family(n, 1, WIDE, "training", width=48, height=48, num_frames=17)[0]
              for n in names]  # fmt: skip
    frames, masks = render(scenes)
    for number, scene in enumerate(scenes):
        assert torch.equal(frames[number], render([scene])[0][0])
        assert masks[number].any()


def test_walls_and_paint_are_no_things() -> None:
    for name, added in (("behind", "wall"), ("trail", "trail")):
        scene = of_family(name, 1, WIDE, "training", width=48, height=48, num_frames=17)[0]
        objects, masks = render_objects(scene), render([scene])[1][0]
        assert objects[added, 0][-1].any()
        assert not (objects[added, 0] & masks).any()
        assert torch.equal(objects["thing", 0] & masks, objects["thing", 0])


def test_what_rolls_rolls_as_far_as_it_goes_and_looks_ahead() -> None:
    family = next(f for f in WIDE if f.name == "fleet")
    scenes = of_family("fleet", 300, (family,), "training", **SMALL)
    balls = [t for s in scenes for t in s.things if t.kind == "striped ball" and t.legs]
    assert len(balls) > 10
    for ball in balls:
        way = np.hypot(*(np.array(position(ball, 1.0)) - np.array(position(ball, 0.0)))[[0, 2]])
        assert rolled(ball, 1.0) * 0.55 * ball.scale == pytest.approx(way)
        ahead = (np.cos(yaw(ball, 0.5)), -np.sin(yaw(ball, 0.5)))
        speed = np.array(ball.legs[0].velocity)[[0, 2]]
        assert ahead == pytest.approx(speed / np.hypot(*speed))


def test_a_camera_that_circles_keeps_the_middle_in_the_middle() -> None:
    family = next(f for f in WIDE if f.name == "circled")
    scene = of_family("circled", 1, (family,), "training", **SMALL)[0]
    thing = replace(scene.things[0], start=(0.0, 0.0, 0.0), motion="still", kind="ball")
    masks = render([replace(scene, things=(thing,))])[1][0]
    columns = [float(mask.nonzero()[:, 1].float().mean()) + 0.5 for mask in masks[::8]]
    assert columns == pytest.approx([scene.width / 2] * 3, abs=0.6)
