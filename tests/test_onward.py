"""Canvases that go on from what a video made: longer than the first, and guided less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from sora_cli.models.specs import TINY
from sora_cli.pipeline.networks import Model, Networks
from sora_cli.pipeline.pieces import Reach, plan, reach_of
from sora_cli.pipeline.request import Request, Settings, resolve
from sora_cli.pipeline.seams import Journal
from sora_cli.pipeline.timeline import Span, play
from sora_cli.runtime.plan import MemoryPlan
from sora_cli.weights import store

SIDE, CANVAS = 64, 13  # pixels; frames of a canvas, so that a chain of them is quick


@pytest.fixture(scope="module")
def networks() -> Iterator[Networks]:
    model = Model(
        spec=replace(TINY, num_frames=CANVAS, trained_frames=CANVAS, frames_onward=None),
        parts=store.locate("tiny").parts, device=torch.device("cpu"), dtype=torch.float32,
        plan=MemoryPlan(),
    )  # fmt: skip
    with Networks(model) as networks:
        yield networks


@pytest.fixture
def settings(networks: Networks) -> Settings:
    request = Request(
        prompt="a red ball rolls left", width=SIDE, height=SIDE, num_frames=CANVAS,
        num_inference_steps=2, seed=3, expand=False,
    )  # fmt: skip
    return resolve(request, networks.model.spec)[0]


def clip(num_frames: int) -> np.ndarray:
    """A bright square that goes right over a gradient, uint8 [T, h, w, 3]."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    balls = [120.0 * (abs(x - 8 - 2 * n) < 6) * (abs(y - 30) < 6) for n in range(num_frames)]
    frames = [np.stack([60 + x + b, 90 + y / 2, 120 - x / 2], axis=-1) for b in balls]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def played(networks: Networks, settings: Settings, span: Span) -> np.ndarray:
    return np.concatenate(list(play(networks, settings, [span], journal=Journal(window=4))))


def test_canvases_that_go_on_may_be_longer() -> None:
    """The one next to what is known is as long as the model's own, on either side."""
    longer = Reach(head=3, tail=3, canvas=25, onward=49)
    assert [p.num_frames for p in plan(25 + 80, 0, 0, longer)] == [25, 49, 49]
    assert [p.num_frames for p in plan(16 + 40, 9, 0, longer)] == [25, 49]
    assert [p.num_frames for p in plan(57, 0, 8, longer)] == [49, 25]
    assert reach_of(TINY, TINY.width, TINY.height, 25).onward == TINY.frames_onward
    tight = replace(TINY, max_tokens=TINY.tokens(160, 96, 33))
    assert reach_of(tight, 160, 96, 25).onward == 33


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_canvases_that_go_on_are_guided_less(
    networks: Networks, settings: Settings, direction: str
) -> None:
    """The canvas next to what is known has the scale that was asked for, all others the other."""
    end = {"head": clip(9)} if direction == "forward" else {"tail": clip(11)}
    span = Span(num_frames=24, prompt=settings.prompt, **end)  # type: ignore[arg-type]
    same, less, none = (
        played(networks, replace(settings, guidance_scale_onward=scale), span)
        for scale in (settings.guidance_scale, 1.0, None)
    )
    assert np.array_equal(same, none)
    known = 4 if direction == "forward" else -4
    near, far = (slice(None, known), slice(known, None))
    near, far = (near, far) if direction == "forward" else (far, near)
    assert np.array_equal(less[near], none[near]) and not np.array_equal(less[far], none[far])
