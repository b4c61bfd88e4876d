"""The report card's rows on the world's laws: each says "right" of the truth and "wrong" of what is
not, before it is asked of a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sora_cli.eval import (
    camera,
    clips,
    failures,
    files,
    lasting,
    physics,
    plausibility,
    rows,
    sizes,
    track,
)
from sora_cli.eval.judge import Judge, Reading
from sora_cli.eval.report import BARS, NEW_SIZES, TWINS
from sora_cli.eval.truth import Prompt, prompts, render_all
from sora_cli.train.render import render
from sora_cli.train.world import GRAVITY, MOTIONS, Scene

WIDTH, HEIGHT, FRAMES = 96, 64, 25


def first(count: int, only: object, **changes: int) -> list[Prompt]:
    """The first prompts of the final split whose scenes are wanted."""
    size = {"width": WIDTH, "height": HEIGHT, "num_frames": FRAMES} | changes
    return prompts(count, split="final", level="dense", only=only, **size)  # type: ignore[arg-type]


def bounces(scene: Scene) -> bool:
    return physics.moves_alone(scene) and scene.things[0].motion == "bounces"


def rolls(scene: Scene) -> bool:
    return physics.moves_alone(scene) and scene.things[0].motion in ("left", "right")


@pytest.fixture(scope="module")
def bouncing() -> list[physics.Followed]:
    asked = first(2, bounces)
    return physics.followed(asked, *render_all([prompt.scene for prompt in asked]))


# ---------------------------------------------------------------------- which scenes


def test_chosen_prompts_are_the_splits_own_and_keep_their_numbers() -> None:
    chosen = first(5, rolls)
    every = first(chosen[-1].seed + 1, None)
    assert chosen == [prompt for prompt in every if rolls(prompt.scene)]
    assert all(prompt.seed == prompt.scene.index for prompt in chosen)
    assert set(physics.MOVING) <= set(MOTIONS)


# ---------------------------------------------------------------------- following a thing


def test_a_thing_is_followed_by_its_colours(bouncing: list[physics.Followed]) -> None:
    for one in bouncing:
        found = track.seen_in(one.look, one.frames)
        assert track.overlap(found, one.masks) > 0.8
        away = (track.middles(found) - track.middles(one.masks)).norm(dim=1)
        assert float(away[track.whole(one.masks)].mean()) < 1.5, "pixels"


def test_without_its_things_a_place_shows_nothing_of_them() -> None:
    scene = replace(first(1, rolls)[0].scene, num_frames=2)
    frames, masks = render([track.without_things(scene)])
    assert not masks.any()
    assert torch.equal(frames[0, 0], frames[0, 1])


def test_the_heaviest_piece_counts_alone() -> None:
    weights = torch.zeros(2, 6, 8)
    weights[0, 1:3, 1:3] = 5.0  # heavier
    weights[0, 4:6, 2:8] = 1.0  # larger
    weights[1, 0, 0] = 1.0
    found = track.heaviest(weights)
    assert torch.equal(found[0] > 0, weights[0] == 5)
    assert int((found[1] > 0).sum()) == 1
    assert not track.heaviest(torch.zeros(1, 4, 4)).any()


def test_what_is_not_seen_stays_where_it_was() -> None:
    masks = torch.zeros(4, 20, 20, dtype=torch.bool)
    masks[1, 2:8, 4:10] = True
    places = track.middles(masks)
    assert places[0].isnan().all()
    assert places[1:].tolist() == [[7.0, 5.0]] * 3
    assert track.whole(masks).tolist() == [False, True, False, False]


# ---------------------------------------------------------------------- physics


def test_true_motion_has_the_least_velocity_error(bouncing: list[physics.Followed]) -> None:
    for one in bouncing:
        true = one.places(one.frames)
        floor = physics.velocity_error(one, true)
        assert floor < 0.03, "widths a second"
        for baseline in (physics.held(true), physics.steady(true)):
            assert torch.equal(baseline[: physics.GIVEN], true[: physics.GIVEN])
            assert physics.velocity_error(one, baseline) > 3 * floor


def test_constant_velocity_is_right_of_what_rolls() -> None:
    asked = first(1, rolls)
    one = physics.followed(asked, *render_all([asked[0].scene]))[0]
    true = track.middles(one.masks)
    assert physics.velocity_error(one, true) == 0
    steady, held = (
        physics.velocity_error(one, way(true)) for way in (physics.steady, physics.held)
    )
    assert steady < 0.5 * held


def test_gravity_is_read_from_a_bounce(bouncing: list[physics.Followed]) -> None:
    for one in bouncing:
        found = physics.gravity_error(one, one.places(one.frames))
        assert found < 15, "%"
    times = np.arange(20) / 8
    slow = physics.bounced(1.5, 0.8, GRAVITY / 2, times)
    assert np.allclose(slow[:5], 1.5 - GRAVITY / 4 * times[:5] ** 2)


# ---------------------------------------------------------------------- plausibility


def test_staged_truth_is_the_render_itself() -> None:
    scene = replace(first(1, bounces)[0].scene, num_frames=9)
    assert torch.equal(
        plausibility.staged(scene, plausibility.moments(scene)), render([scene])[0][0]
    )


def test_every_twin_is_another_clip_and_possible_until_it_is_not() -> None:
    scene = first(1, bounces)[0].scene
    true, found = plausibility.moments(scene), plausibility.twins(scene)
    assert tuple(found) == TWINS and found == plausibility.twins(scene), "always the same"
    for kind, moments in found.items():
        assert len(moments) == len(true)
        if kind not in ("time reversed", "falls up"):
            middle = len(true) // 2
            assert moments[:middle] == true[:middle]
            assert all(a != b for a, b in zip(moments[middle:], true[middle:], strict=True))
    assert found["time reversed"] == true[::-1]
    heights = [moment[0].start[1] for moment in found["falls up"]]
    assert heights[0] == 0 and heights[3] > heights[1] > 0
    assert set(plausibility.twins(first(1, rolls)[0].scene)) == set(TWINS[2:])


# ---------------------------------------------------------------------- a moving camera


def test_the_truth_goes_where_the_camera_takes_it() -> None:
    asked = first(3, camera.stands_still, num_frames=17)
    frames, masks = render_all([prompt.scene for prompt in asked])
    for prompt, clip, mask in zip(asked, frames, masks, strict=True):
        copied = clip.clone()
        copied[physics.GIVEN :] = clip[physics.GIVEN - 1]
        floor = camera.residual(prompt.scene, clip, mask)
        assert floor < 3 and floor < 0.6 * camera.residual(prompt.scene, copied, mask)
        other = replace(prompt.scene, camera_rate=1.6 * prompt.scene.camera_rate)
        assert camera.residual(other, clip, mask) > floor, "another camera's path fits worse"


# ---------------------------------------------------------------------- permanence, files, sizes


def reading(*things: tuple[str, str]) -> Reading:
    """A reading of these kinds and colours, the first one's in both slots where it is alone."""
    pair = (things * 2)[:2]
    values = {"count": str(len(things))}
    for slot, (kind, color) in enumerate(pair):
        values |= {f"kind{slot}": kind, f"color{slot}": color}
    return Reading(values, torch.zeros(9, 2, 2))


def test_things_that_last_are_the_same_in_number_and_kind() -> None:
    ball, cube = ("ball", "red"), ("cube", "blue")
    same, counted = "the same things", "as many things"
    cases = [
        ((ball,), (ball,), 100, 100),
        ((ball,), (cube,), 100, 0),
        ((ball, cube), (ball,), 0, 0),
    ]
    for start, end, count, identity in cases:
        found = lasting.lasting([reading(*start)], [reading(*end)])
        values = {name.split(" at ")[0]: value for name, value in found.items()}
        assert values == {counted: count, same: identity}


def test_a_changed_frame_is_not_untouched() -> None:
    given = np.random.default_rng(0).integers(0, 255, (6, 4, 4, 3), np.uint8)
    around = np.zeros((2, 4, 4, 3), np.uint8)
    made = np.concatenate([around, given, around])
    assert files.given_are_inside(given, made) and not files.given_are_inside(given, given)
    made[4, 0, 0, 0] ^= 1
    assert not files.given_are_inside(given, made), "one bit"
    cut = given.copy()
    assert not files.rest_is_kept(given, cut, 2, 4), "nothing was made anew"
    cut[2:4] = 0
    assert files.rest_is_kept(given, cut, 2, 4)
    cut[5, 0, 0, 0] ^= 1
    assert not files.rest_is_kept(given, cut, 2, 4)


def test_new_sizes_are_new() -> None:
    from sora_cli.train.dataset import BUCKETS

    known = {(b.width, b.height, b.num_frames) for b in BUCKETS}
    assert not known & set(NEW_SIZES)
    assert {("sizes", f"{w}x{h}, {t} frames, % right") for w, h, t in NEW_SIZES} <= set(BARS)


def test_expanded_prompts_are_judged_by_what_was_typed(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts(1, split="final", level="short", width=WIDTH, height=HEIGHT, num_frames=9)
    found: list[list[str]] = []

    def made(
        studio: clips.Studio, wanted: list[Prompt], given: Tensor | None = None
    ) -> list[Tensor]:
        found.append([prompt.caption.text for prompt in wanted])
        return [torch.zeros(1)]

    longer = [replace(p, caption=replace(p.caption, text="In other words.")) for p in asked]
    true = render_all([p.scene for p in asked])[0]
    monkeypatch.setattr(sizes, "make", made)
    monkeypatch.setattr(sizes, "expanded", lambda exam, prompts: longer)

    class Sitting(rows.Exam):
        def prompts(self, *_: object, **__: object) -> list[Prompt]:
            return asked

        def decoded(self, latents: list[Tensor]) -> Tensor:
            return true

        def truth(self) -> tuple[Tensor, Tensor]:
            return true, true

        def show(self, *_: object) -> None:
            pass

    exam = Sitting(studio=None, judge=Judge().eval(), samples=1, split="final")  # type: ignore[arg-type]
    on, gain = sizes.terse(exam)
    assert found == [[asked[0].caption.text], ["In other words."]]
    assert on.value == on.floor == on.baselines["as typed"] and gain.value == 0


# ---------------------------------------------------------------------- failures


def test_what_comes_goes_or_turns_is_told_apart() -> None:
    ball, cube, cone = ("ball", "red"), ("cube", "blue"), ("cone", "red")
    cases = {
        ((ball,), (ball,), (ball,)): (False, False, False),
        ((ball,), (ball, cube), (ball, cube)): (True, False, False),
        ((ball, cube), (ball, cube), (cube,)): (False, True, False),
        ((ball,), (ball, cube), (ball,)): (True, True, False),
        ((ball, cube), (cube, ball), (ball, cube)): (False, False, False),  # they change sides
        ((ball,), (cone,), (ball,)): (False, False, True),
    }
    for seen, wrong in cases.items():
        assert tuple(fails(seen) for fails in failures.KINDS.values()) == wrong, seen


def test_failures_are_looked_for_at_both_ends_and_between(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = torch.arange(25, dtype=torch.uint8).view(1, 25, 1, 1, 1).expand(1, 25, 2, 2, 3)
    looked: list[list[int]] = []

    def fake(judge: object, frames: Tensor) -> list[Reading]:
        looked.append(frames[0, :, 0, 0, 0].tolist())
        return [reading(("ball", "red"))]

    monkeypatch.setattr(failures, "read", fake)
    assert failures.seconds(Judge(), clips) == [[(("ball", "red"),)] * 3]
    assert [(row[0], row[-1]) for row in looked] == [(0, 8), (8, 16), (16, 24)]
