"""Windows of a longer time: what a video in many pieces is trained to go on with."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from sora_cli.train.dataset import Bucket, LatentClips
from sora_cli.train.dit import Batches
from sora_cli.train.families import MIXTURES
from sora_cli.train.lasting import LASTING, draw_lasting
from sora_cli.train.mirror import mirror
from sora_cli.train.world import Scene, draw_scene, position

SECOND = 8  # frames


def drawn(count: int, **size: int) -> list[Scene]:
    """Scenes of the family."""
    size = {"width": 160, "height": 96, "num_frames": 25} | size
    return [draw_scene(3, i, mixture=MIXTURES[LASTING], **size) for i in range(count)]


def path(scene: Scene, number: int) -> list[tuple[float, float, float]]:
    """Where a thing is in each frame, m."""
    return [position(scene.things[number], f / scene.fps) for f in range(scene.num_frames)]


def test_what_went_somewhere_rests_and_what_bounces_never_stops() -> None:
    seen = set()
    for scene in drawn(300):
        assert scene.camera == "static" and scene.family == LASTING
        for number, thing in enumerate(scene.things):
            way, motion = path(scene, number), thing.motion
            heights = [y for _, y, _ in way]
            assert min(heights) > -1e-9
            if motion == "bounces":
                second = [max(heights[i : i + 2 * SECOND]) for i in range(0, 9, 4)]
                assert min(second) > 0.3, "as high in the end as in the beginning"
            elif motion != "spins":
                assert way[-1] == way[-2], f"a thing that {motion} is at rest in the end"
            seen.add((motion, way[0] == way[-1]))
    for motion in ("left", "right", "toward", "away"):
        assert {(motion, True), (motion, False)} <= seen, "some still move when the window begins"


@pytest.mark.parametrize("num_frames", [17, 25])
def test_a_window_goes_on_where_its_clip_is(num_frames: int) -> None:
    """A thing that still moves goes as fast as in its clip, or brakes already; it only slows."""
    checked, as_fast = 0, 0
    for index in range(200):
        rng = random.Random(index)
        empty = draw_scene(0, index, width=160, height=96, num_frames=num_frames)
        scene = draw_lasting(rng, empty, "training")
        for number, thing in enumerate(scene.things):
            if not any(thing.velocity) or not any(thing.legs[0].velocity):
                continue
            way = path(scene, number)
            steps = [math.dist(a, b) for a, b in zip(way, way[1:], strict=False)]
            speed = math.hypot(*thing.velocity) / scene.fps
            assert steps[0] < speed + 1e-9
            as_fast += steps[0] == pytest.approx(speed)
            falling = sorted(steps, reverse=True)
            assert [round(s, 9) for s in steps] == [round(s, 9) for s in falling], "it only slows"
            checked += 1
    assert checked > 20 and as_fast > 0.6 * checked


def test_a_mirror_image_goes_on_the_other_way() -> None:
    for scene in drawn(40):
        ways = sorted((-x, y, z) for x, y, z in (position(t, 1.0) for t in scene.things))
        mirrored = sorted(position(t, 1.0) for t in mirror(scene).things)
        assert mirrored == [pytest.approx(way) for way in ways]


def test_such_clips_always_follow_given_frames() -> None:
    """Their captions tell of a motion that is over: alone they would teach that cars stand."""
    batches = Batches([], random.Random(0))
    for num_frames, given in ((25, True), (1, False)):
        scenes = drawn(6, num_frames=num_frames)
        latent_frames = (num_frames - 1) // 4 + 1
        clips = LatentClips(
            bucket=Bucket(width=160, height=96, num_frames=num_frames, share=1.0), scenes=scenes,
            latents=torch.zeros(6, 4, latent_frames, 2, 2), block=torch.ones(6, 4, 3, 2, 2),
            block_start=torch.full((6,), 5), block_length=torch.ones(6, dtype=torch.int64),
        )  # fmt: skip
        for _ in range(20):
            mask = batches._batch([(clips, i) for i in range(6)]).mask
            assert bool((mask[:, 0] == 0).all()) is given
            assert mask.sum(1).min() >= 1, "something is left to be made"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_clips_with_given_latents_is_what_is_asked(share: float) -> None:
    """A run that goes on may ask for more of them than one from nothing (`--give`)."""
    scene = draw_scene(0, 0, width=160, height=96, num_frames=25)
    clips = LatentClips(
        bucket=Bucket(width=160, height=96, num_frames=25, share=1.0), scenes=[scene] * 6,
        latents=torch.zeros(6, 4, 7, 2, 2), block=torch.ones(6, 4, 3, 2, 2),
        block_start=torch.full((6,), 5), block_length=torch.ones(6, dtype=torch.int64),
    )  # fmt: skip
    batches = Batches([], random.Random(0), give=share)
    for _ in range(20):
        mask = batches._batch([(clips, i) for i in range(6)]).mask
        assert ((mask == 0).any(1) == bool(share)).all()
        assert bool(mask.any(1).all()), "something is left to be made"


def test_pictures_stay_pictures() -> None:
    for scene in drawn(10, num_frames=1):
        assert all(thing.motion == "still" for thing in scene.things)


def test_the_worlds_names_are_known_to_the_recipe(tmp_path: Path) -> None:
    """A folder of such clips says so, and draws the same scenes again."""
    from sora_cli.train import dataset

    dataset.claim(tmp_path, LASTING)
    assert dataset.world_of(tmp_path) == LASTING
    assert dataset.shard_scenes(0, world=LASTING) == dataset.shard_scenes(0, world=LASTING)
    assert {s.family for s in dataset.shard_scenes(0, world=LASTING)} == {LASTING}
