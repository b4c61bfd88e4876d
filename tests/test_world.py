"""The procedural world: the same for ever, physically right, and seen where it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sora_cli.eval.truth import middle, paths, project
from sora_cli.train.mirror import mirror
from sora_cli.train.render import render
from sora_cli.train.world import (
    CAMERAS,
    GRAVITY,
    HELD_OUT,
    MOTIONS,
    SPLITS,
    TURNABLE,
    Scene,
    Thing,
    bounce_height,
    camera_pose,
    draw_scene,
    is_held_out,
    position,
    yaw,
)

SMALL = {"width": 64, "height": 48, "num_frames": 5}


def scene_with(**changes: object) -> Scene:
    """A red ball that stands on the grass by day, changed as asked."""
    ball = Thing(kind="ball", color="red", size="large", motion="still", start=(0.0, 0.0, 0.0))
    scene = Scene(
        things=(ball,), floor="grass", sky="day", camera="static", camera_rate=0.0, width=96,
        height=64, num_frames=3, fps=8.0, seed=0, index=0,
    )  # fmt: skip
    return replace(scene, **changes)  # type: ignore[arg-type]


def first_with(accept: Callable[[Scene], bool], **size: int) -> Scene:
    """The first scene of the training split that one wants."""
    return next(s for i in range(10_000) if accept(s := draw_scene(0, i, **(SMALL | size))))


# ---------------------------------------------------------------------- drawing


def test_a_scene_is_its_seed_and_index() -> None:
    for index in range(50):
        assert draw_scene(3, index, **SMALL) == draw_scene(3, index, **SMALL)
    assert draw_scene(3, 1, **SMALL) != draw_scene(3, 2, **SMALL)
    assert draw_scene(3, 1, **SMALL) != draw_scene(4, 1, **SMALL)


def test_splits_are_disjoint() -> None:
    def record(split: str, index: int) -> Scene:
        return replace(draw_scene(0, index, split=split, **SMALL), index=0)

    drawn = {split: {record(split, i) for i in range(300)} for split in SPLITS}
    for split, scenes in drawn.items():
        for other, others in drawn.items():
            assert split == other or not scenes & others
        assert len(scenes) == 300
        pairings = {(t.kind, t.color) for s in scenes for t in s.things}
        if split == "held-out":
            assert pairings <= set(HELD_OUT)
        else:
            assert not any(is_held_out(*pairing) for pairing in pairings)


def test_each_word_of_a_held_out_pairing_is_trained_elsewhere() -> None:
    things = [t for i in range(1500) for t in draw_scene(0, i, **SMALL).things]
    for kind, color in HELD_OUT:
        assert any(t.kind == kind for t in things)
        assert any(t.color == color for t in things)


def test_every_value_occurs_about_as_often_as_its_siblings() -> None:
    scenes = [draw_scene(0, i, **SMALL) for i in range(2000)]
    for values in ([s.floor for s in scenes], [s.sky for s in scenes]):
        counts = [values.count(v) for v in set(values)]
        assert max(counts) < 1.35 * min(counts)
    assert {s.camera for s in scenes} == set(CAMERAS)
    assert {t.motion for s in scenes for t in s.things} == set(MOTIONS)
    assert 0.15 < sum(len(s.things) == 2 for s in scenes) / len(scenes) < 0.35


def test_two_things_differ_in_both_words_and_stand_left_and_right() -> None:
    for index in range(200):
        left, right = draw_scene(0, index, num_things=2, **SMALL).things
        assert left.kind != right.kind and left.color != right.color
        assert all(position(left, t)[0] < position(right, t)[0] for t in (0.0, 0.5))


def test_pictures_stand_still_and_only_turnable_things_spin() -> None:
    for index in range(300):
        picture = draw_scene(0, index, width=64, height=48, num_frames=1)
        assert picture.camera == "static" and all(t.motion == "still" for t in picture.things)
        for thing in draw_scene(0, index, **SMALL).things:
            assert thing.motion != "spins" or (thing.kind in TURNABLE and thing.spin != 0)


# ---------------------------------------------------------------------- physics


@pytest.mark.parametrize("start, restitution", [(1.0, 0.72), (1.7, 0.92), (1.3, 0.5)])
def test_bounces_keep_gravity_energy_and_restitution(start: float, restitution: float) -> None:
    step, fall = 1e-3, math.sqrt(2 * start / GRAVITY)
    heights = [bounce_height(start, restitution, i * step) for i in range(4000)]
    assert min(heights) >= -1e-9
    # Impacts come where the formulas for free flight put them, one flight after the other.
    flight = 2 * fall * restitution
    for impact in (fall, fall + flight, fall + flight + flight * restitution):
        assert bounce_height(start, restitution, impact) == pytest.approx(0, abs=1e-6)
    # Each top is restitution² of the one before.
    assert bounce_height(start, restitution, fall + flight / 2) == pytest.approx(
        start * restitution**2
    )
    # Between impacts, height and speed trade energy without loss.
    for middle_of_flight in (fall / 2, fall + flight / 4, fall + flight / 2):
        i = round(middle_of_flight / step)
        acceleration = (heights[i + 1] - 2 * heights[i] + heights[i - 1]) / step**2
        assert acceleration == pytest.approx(-GRAVITY, rel=1e-3)
        speed = (heights[i + 1] - heights[i - 1]) / (2 * step)
        top = start if middle_of_flight < fall else start * restitution**2
        assert GRAVITY * heights[i] + speed**2 / 2 == pytest.approx(GRAVITY * top, rel=1e-3)


def test_a_fall_ends_on_the_floor() -> None:
    assert bounce_height(2.0, 0.0, 0.5) == pytest.approx(2.0 - 0.5 * GRAVITY * 0.25)
    assert bounce_height(2.0, 0.0, 3.0) == 0.0


@pytest.mark.parametrize(
    "motion, axis, sign", [("left", 0, -1), ("right", 0, 1), ("toward", 2, -1), ("away", 2, 1)]
)
def test_motions_go_where_their_names_say(motion: str, axis: int, sign: int) -> None:
    scene = first_with(lambda s: s.things[0].motion == motion, num_frames=17)
    thing = scene.things[0]
    before, after = position(thing, 0.0), position(thing, 1.0)
    assert sign * (after[axis] - before[axis]) > 0.3
    assert all(before[i] == after[i] for i in range(3) if i != axis)


def test_what_stands_still_does() -> None:
    thing = scene_with().things[0]
    assert position(thing, 0.0) == position(thing, 2.0) and yaw(thing, 2.0) == thing.yaw


# ---------------------------------------------------------------------- seeing


def test_cameras_move_as_their_names_say() -> None:
    rates = {"pan left": -1, "pan right": 1}
    for camera, sign in rates.items():
        turns = [camera_pose(scene_with(camera=camera, camera_rate=0.1), t)[1] for t in (0, 0.2)]
        assert sign * (turns[1] - turns[0]) > 0
    for camera, sign in {"push in": 1, "pull back": -1}.items():
        eyes = [camera_pose(scene_with(camera=camera, camera_rate=0.5), t)[0] for t in (0, 0.2)]
        assert sign * (eyes[1][2] - eyes[0][2]) > 0


def centroid(mask: torch.Tensor) -> tuple[float, float]:
    """x and y (pixels) of a mask's middle."""
    y, x = mask.nonzero().float().add(0.5).mean(0).tolist()
    return x, y


@pytest.mark.parametrize("camera, rate", [("static", 0.0), ("pan left", 0.3), ("push in", 1.5)])
def test_a_ball_is_seen_where_projection_puts_it(camera: str, rate: float) -> None:
    ball = Thing(
        kind="ball", color="red", size="small", motion="right", start=(-0.8, 0.0, 0.5),
        velocity=(4.0, 0.0, 0.0),
    )  # fmt: skip
    scene = scene_with(things=(ball,), camera=camera, camera_rate=rate)
    frames, masks = render([scene])
    for frame in range(scene.num_frames):
        x, y, _ = project(scene, middle(ball, frame / scene.fps), frame / scene.fps)
        seen = centroid(masks[0, frame])
        assert seen[0] == pytest.approx(x, abs=0.5) and seen[1] == pytest.approx(y, abs=0.5)
    # Where the mask is, the picture is red.
    color = frames[0][masks[0]].float().mean(0)
    assert color[0] > 2 * color[1] and color[0] > 2 * color[2]


def test_paths_know_what_is_out_of_the_picture() -> None:
    ball = replace(scene_with().things[0], motion="right", velocity=(40.0, 0.0, 0.0))
    seen = paths(scene_with(things=(ball,)), [0, 2])  # [2, SLOTS, 2]
    assert 0.4 < float(seen[0, 0, 0]) < 0.6
    assert seen[1, 0].isnan().all() and seen[:, 1].isnan().all()


def test_rendering_is_deterministic_and_independent_of_the_batch() -> None:
    scenes = [draw_scene(0, i, **SMALL) for i in range(3)]
    together, masks = render(scenes)
    assert torch.equal(together, render(scenes)[0])
    assert together.dtype == torch.uint8 and together.shape == (3, 5, 48, 64, 3)
    assert masks.shape == (3, 5, 48, 64) and masks.flatten(1).any(1).all()
    for number, scene in enumerate(scenes):
        alone = render([scene])[0][0]
        difference = (alone.int() - together[number].int()).abs()
        assert int((difference > 2).sum()) == 0


def test_mirrored_records_are_mirrored_pictures() -> None:
    for index in range(6):
        scene = draw_scene(1, index, **SMALL)
        assert mirror(mirror(scene)) == scene
        straight, turned = render([scene])[1], render([mirror(scene)])[1]
        # Outlines only: textures and sun are drawn from the index and stay. A car's cabin sits a
        # little behind its middle, so its outline is not quite its own mirror image.
        differing = (straight.flip(3) != turned).float().mean()
        assert float(differing) < 0.01


def test_a_moving_camera_moves_the_picture_and_a_static_one_does_not() -> None:
    still = render([scene_with()])[0][0].int()
    assert torch.equal(still[0], still[2])
    panned = render([scene_with(camera="pan right", camera_rate=0.4)])[0][0].int()
    assert (panned[0] - panned[2]).abs().max() > 40
