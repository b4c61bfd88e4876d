"""Joins: what is added to made frames beside known ones, cross-fades, rates, and their measure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from sora_cli.pipeline.pieces import Piece
from sora_cli.pipeline.seams import Journal
from sora_cli.pipeline.stitch import (
    FADE,
    Boundary,
    Neighbour,
    Output,
    Tint,
    blurred,
    composited,
    dissolved,
    fade,
    frame_times,
    mend,
    resized,
    retimed,
)

SIZE = (24, 32)
HEAD, TAIL = Piece(head=9, new=16), Piece(lead=1, new=16, tail=8)


def scene(num_frames: int, speed: float = 0.0, start: int = 0) -> np.ndarray:
    """uint8 [T, H, W, 3]: a textured floor, and a bright column that moves."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]].astype(np.float32)
    texture = 100 + 30 * np.sin(x) * np.cos(y / 2)
    frames = []
    for number in range(start, start + num_frames):
        column = 120 * (abs(x - 8 - speed * number) < 3)
        frames.append(np.stack([texture + column, texture, texture - 40], axis=-1))
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def through_autoencoder(frames: np.ndarray, tint: float = 0.0) -> np.ndarray:
    """What a VAE does: softer, in other colours, and a little restless."""
    noise = np.random.default_rng(0).normal(0, 2, frames.shape)
    soft = np.stack([blurred(frame.astype(np.float32), 1) for frame in frames])
    return np.clip(soft + tint + noise, 0, 255).astype(np.uint8)


def change(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - two).mean())


def mended(decoded: np.ndarray, piece: Piece, **known: np.ndarray) -> np.ndarray:
    return np.stack(list(mend(iter(decoded), piece, **known)))


@pytest.mark.parametrize("tint", [0.0, 6.0, -6.0])
@pytest.mark.parametrize("side", ["head", "tail"])
def test_a_still_scene_shows_no_seam(tint: float, side: str) -> None:
    """Whatever the autoencoder does to sharpness and colour, a join does not show it."""
    truth = scene(25)
    decoded = through_autoencoder(truth, tint)
    if side == "head":
        made = mended(decoded, HEAD, before=truth[:9])
        jump, plain = change(truth[8], made[0]), change(truth[8], decoded[9])
    else:
        made = mended(decoded, TAIL, after=truth[17:])
        jump, plain = change(truth[17], made[-1]), change(truth[17], decoded[16])
    assert made.shape == (16, *SIZE, 3) and made.dtype == np.uint8
    assert plain > 4 and jump < 1, f"{plain} without, {jump} with"
    steps = [change(one, two) for one, two in zip(made, made[1:], strict=False)]
    own = [change(one, two) for one, two in zip(decoded[9:], decoded[10:], strict=False)]
    assert max(steps) < max(own) + 1.5, "it fades out, and is not dropped at once"


def test_true_motion_is_left_alone() -> None:
    """A thing that moves on does so beside a boundary too, and leaves no ghost where it was."""
    truth = scene(25, speed=1.0)
    decoded = truth.copy()
    made = mended(decoded, HEAD, before=truth[:9])
    assert change(made, truth[9:]) < 1.5
    ghost = made[-1, :, 12:17, 0].astype(float) - truth[-1, :, 12:17, 0]
    assert np.abs(ghost).mean() < 3


def test_nothing_known_changes_nothing() -> None:
    decoded = scene(25, speed=1.0)
    assert np.array_equal(mended(decoded, Piece(new=25)), decoded)
    shown = np.stack(list(mend(iter(decoded), HEAD, shown=9)))
    assert np.array_equal(shown, decoded), "a shown head comes as decoded"
    held = np.stack(list(mend(iter(decoded), Piece(new=21, tail=4), held=2)))
    assert np.array_equal(held, decoded[:23])


def test_both_ends_meet_at_once() -> None:
    truth = scene(25)
    piece = Piece(head=5, new=16, tail=4)
    made = mended(through_autoencoder(truth, 5.0), piece, before=truth[:5], after=truth[21:])
    assert change(truth[4], made[0]) < 1.5 and change(made[-1], truth[21]) < 1.5


def test_one_known_frame_corrects_only_what_is_coarse() -> None:
    """Of a single picture nobody knows how it moves, so no step of it is taken for an error."""
    truth = scene(25)
    boundary = Boundary(truth[:1], truth[0], scene(1, start=3, speed=2.0)[0])
    frame = scene(1, start=3, speed=2.0)[0]
    assert np.array_equal(boundary.correct(frame), frame)


def test_a_correction_ends() -> None:
    assert fade(0) == 1 and fade(FADE + 1) == 0
    assert all(fade(step) > fade(step + 1) for step in range(FADE + 1))


def test_colours_do_not_add_up_over_canvases() -> None:
    """Each canvas darkens by 4 steps; after ten of them the picture is as bright as the first."""
    known = scene(9)
    for _ in range(10):
        decoded = np.clip(np.concatenate([known, scene(16)]).astype(int) - 4, 0, 255)
        known = mended(decoded.astype(np.uint8), HEAD, before=known)[-9:]
    assert change(known, scene(9)) < 1


def test_colour_match_is_bounded_and_sees_no_content() -> None:
    known = scene(5)
    same = Tint.between(known, list(known))
    assert np.allclose(same.gain, 1) and np.allclose(same.offset, 0, atol=1e-3)
    black = np.zeros_like(known)
    assert np.abs(Tint.between(known, list(black)).undo(black[0])).max() <= 10


@given(reach=st.integers(1, 9))
def test_blur_is_a_mean(reach: int) -> None:
    image = np.zeros((30, 40), np.float32)
    image[15, 20] = (2 * reach + 1) ** 2
    soft = blurred(image, reach)
    assert soft.shape == image.shape and np.isclose(soft[15, 20], 1, atol=1e-3)
    assert np.allclose(blurred(np.full((5, 7, 3), 3.0), reach), 3, atol=1e-4)


def test_a_cross_fade_begins_and_ends_gently() -> None:
    black, white = np.zeros((8, 2, 2, 3), np.uint8), np.full((10, 2, 2, 3), 200, np.uint8)
    levels = np.stack(list(dissolved(list(black), iter(white))))[:, 0, 0, 0].astype(int)
    steps = np.diff([0, *levels])
    assert len(levels) == 10 and levels[-1] == 200 and (steps >= 0).all()
    assert steps[0] < steps[4] and steps[8] < steps[4]


def test_a_mask_keeps_the_original_outside() -> None:
    original, made = scene(2), np.full((2, *SIZE, 3), 255, np.uint8)
    mask = np.zeros((2, *SIZE), np.uint8)
    mask[:, 6:20, 6:26] = 255
    result = np.stack(list(composited(iter(made), iter(original), iter(mask))))
    assert np.array_equal(result[mask == 0], original[mask == 0])
    assert (result[:, 12:14, 14:18] == 255).all(), "and the made frames well inside"


# ---------------------------------------------------------------------- sizes and rates


@example_settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 60), rate=st.floats(0.2, 8), head=st.booleans(), tail=st.booleans())
def test_times_are_even_and_between_the_ends(
    count: int, rate: float, head: bool, tail: bool
) -> None:
    times = frame_times(count, rate, head=head, tail=tail)
    assert times == sorted(times) and len(times) >= 1
    low, high = (-1 if head else 0), (count if tail else count - 1)
    assert low - 1e-9 <= times[0] and times[-1] <= high + 1e-9
    if head:
        assert times[0] > -1, "the known frame is not repeated"
    if tail:
        assert times[-1] < count
    # Between two ends the gaps are whole, one more than the frames.
    assert abs(len(times) - count * rate) <= max(1, 0.5 + abs(rate - 1))


def test_the_same_rate_changes_nothing() -> None:
    frames = scene(7, speed=1.0)
    for head, tail in ((True, True), (True, False), (False, True), (False, False)):
        times = frame_times(7, 1.0, head=head, tail=tail)
        assert times == list(range(7))
        known = frames[0], frames[-1]
        played = retimed(iter(frames), times, 7, known[0] if head else None, known[1])
        assert np.array_equal(np.stack(list(played)), frames)


def test_frames_in_between_are_blended_and_all_are_read() -> None:
    frames = np.stack([np.full((2, 2, 3), 40 * n, np.uint8) for n in range(1, 5)])
    source: Iterator[np.ndarray] = iter(frames)
    times = frame_times(4, 2.0, head=True, tail=False)
    levels = [int(f[0, 0, 0]) for f in retimed(source, times, 4, frames[0] * 0, None)]
    assert levels == [20, 40, 60, 80, 100, 120, 140, 160]
    half = frame_times(4, 0.5, head=True, tail=False)
    source = iter(frames)
    assert [int(f[0, 0, 0]) for f in retimed(source, half, 4, frames[0] * 0, None)] == [80, 160]
    assert next(source, None) is None


@pytest.mark.parametrize("end", [False, True])
def test_detail_does_not_end_at_the_seam(end: bool) -> None:
    """A clip of twice the model's size keeps its fine texture where the made frames begin."""
    small = scene(8)
    output = Output(
        width=64, height=48, fps=8.0, resize=lambda f: f.repeat(2, axis=1).repeat(2, axis=2)
    )
    fine = output.resize(small).astype(int) + 6 * np.indices((48, 64)).sum(0)[..., None] % 12
    kept = fine.clip(0, 255).astype(np.uint8)
    beside = Neighbour(known=kept, seen=small[0])
    before, after = (None, beside) if end else (beside, None)
    made = np.stack(list(resized(iter(small), output, before, after)))
    nearest = made[-1] if end else made[0]
    assert made.shape == (8, 48, 64, 3)
    assert change(nearest, kept[0]) < 0.5 * change(output.resize(small)[0], kept[0])


# ---------------------------------------------------------------------- measuring


def watch(
    frames: np.ndarray, seams: dict[int, str], closing: str | None = None, window: int = 4
) -> Journal:
    journal = Journal(window=window)
    marked = ((frame, seams.get(number)) for number, frame in enumerate(frames))
    assert np.array_equal(np.stack(list(journal.watch(marked, closing=closing))), frames)
    return journal


def grey(*levels: float) -> np.ndarray:
    return np.stack([np.full((2, 2, 3), level, np.uint8) for level in levels])


def test_a_seam_is_measured_against_the_given_side() -> None:
    frames = grey(10, 12, 14, 16, 26, 29, 32, 35)
    (after_kept,) = watch(frames, {4: "kept-made"}).seams
    assert (after_kept.frame, after_kept.jump, after_kept.own) == (4, 10, 2)
    assert after_kept.ratio == 5 and after_kept.colour == (10, 10, 10)
    (before_kept,) = watch(frames, {4: "made-kept"}).seams
    assert before_kept.own == 3, "of a join before kept frames, what follows"
    assert before_kept.to_json()["ratio"] == pytest.approx(3.333)
    assert "3.33x" in before_kept.say()


def test_a_still_clip_counts_as_one_step() -> None:
    (seam,) = watch(grey(50, 50, 50, 51, 51), {3: "kept-made"}).seams
    assert seam.own == 0 and seam.ratio == 1


def test_a_loop_has_its_seam_at_the_end() -> None:
    journal = watch(grey(10, 12, 14, 13, 12), {3: "kept-made"}, closing="made-kept")
    assert [(seam.frame, seam.kind) for seam in journal.seams] == [
        (3, "kept-made"),
        (5, "made-kept"),
    ]
    assert journal.seams[1].jump == 2 and journal.seams[1].colour == (-2, -2, -2)


def test_drift_is_from_the_first_frames_to_the_last() -> None:
    frames = np.concatenate([grey(10, 10, 10, 10), grey(*range(11, 41)), grey(40, 40, 40, 40)])
    frames[-4:, ..., 2] = 50
    assert watch(frames, {}).drift == (30, 30, 40)
    assert watch(frames[:7], {}).drift is None, "too short to say"


def test_neighbouring_seams_do_not_measure_each_other() -> None:
    journal = watch(grey(0, 0, 30, 32, 90, 90), {2: "kept-made", 4: "made-made"})
    assert [seam.jump for seam in journal.seams] == [30, 58]
    assert journal.seams[1].own == 2
