"""The measure of joins: what it says of perfect, of copied and of wrong continuations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from sora_cli.eval import joins, report
from sora_cli.eval.truth import Prompt, prompts, render_all
from sora_cli.models.specs import TINY
from sora_cli.pipeline.networks import Model, Networks
from sora_cli.pipeline.request import Request, resolve
from sora_cli.runtime.plan import MemoryPlan
from sora_cli.weights import store

SIDE = 64


@pytest.fixture(scope="module")
def bench() -> Iterator[joins.Bench]:
    request = Request(
        prompt="-", width=SIDE, height=SIDE, num_inference_steps=2, seed=0, expand=False
    )
    model = Model(
        spec=TINY, parts=store.locate("tiny").parts, device=torch.device("cpu"),
        dtype=torch.float32, plan=MemoryPlan(),
    )  # fmt: skip
    with Networks(model) as networks:
        yield joins.Bench(networks=networks, settings=resolve(request, TINY)[0])


@pytest.fixture(scope="module")
def scenes() -> tuple[list[Prompt], list[np.ndarray]]:
    asked = prompts(
        1, split="development", level="dense", width=SIDE, height=SIDE, num_frames=joins.TRUTH
    )
    return asked, list(render_all([prompt.scene for prompt in asked])[0].numpy())


def ramp(*levels: float) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])


def test_a_steady_change_is_no_jump() -> None:
    given = ramp(*range(0, 40, 2))
    assert joins.of_seam(given, ramp(40)) == (1.0, 2.0)
    assert joins.of_seam(given, ramp(38)) == (0.0, 0.0)
    assert joins.of_seam(given, ramp(58))[0] == 10.0
    still = ramp(*[7] * 12)
    assert joins.of_seam(still, ramp(9))[0] == 2.0, "a still clip's own change counts as one step"


def test_likeness_is_psnr() -> None:
    assert joins.likeness(ramp(10), ramp(10)) == pytest.approx(48.13, abs=0.01)
    assert joins.likeness(ramp(0), ramp(255)) == 0


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_true_latents_join_better_than_unfinished_ones(
    bench: joins.Bench, scenes: tuple[list[Prompt], list[np.ndarray]], way: str
) -> None:
    """The floor is a join of the same frames by the same code, so a made one cannot do better
    in likeness; and two steps of sampling make little that is like the truth."""
    rows = {row.measure: row for row in joins.extend(bench, *scenes, way)}
    assert {(row.ability, row.measure) for row in rows.values()} <= set(report.BARS)
    like = rows["likeness of the next second, dB"]
    assert like.floor is not None and like.floor > 25 and like.floor > like.value
    jump = rows["jump at the seam, times the clip's own change"]
    assert jump.floor is not None and jump.floor < 1.5


def test_the_way_within_a_true_clip_is_smooth_and_untouched_at_its_ends(
    bench: joins.Bench, scenes: tuple[list[Prompt], list[np.ndarray]]
) -> None:
    truth = scenes[1][0]
    video = joins.truly_between(bench, truth)["video"]
    first = (joins.TRUTH - joins.MADE) // 2
    assert len(video) == joins.TRUTH
    assert np.array_equal(video[:first], truth[:first])
    assert np.array_equal(video[first + joins.MADE :], truth[first + joins.MADE :])
    steps = joins.floor_steps(bench, scenes[0][0], truth)
    assert steps is not None and len(steps) == joins.MADE + 1
    assert steps.max() < 3 * max(float(np.median(joins.change(truth))), 1.0)


def test_what_was_not_made_in_time_is_not_counted(
    bench: joins.Bench, scenes: tuple[list[Prompt], list[np.ndarray]]
) -> None:
    late = replace(bench, keep=lambda what, build: None)
    for measure in (partial(joins.extend, way="forward"), joins.loop, joins.connect):
        assert measure(late, *scenes) == []
