"""Canvases that go on from what a video made: longer than the first, and guided less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from short_canvases import clip, short_networks, short_settings

from sora_cli.models.specs import TINY
from sora_cli.pipeline.networks import Networks
from sora_cli.pipeline.pieces import Reach, plan, reach_of
from sora_cli.pipeline.request import Settings
from sora_cli.pipeline.seams import Journal
from sora_cli.pipeline.timeline import Span, play


@pytest.fixture(scope="module")
def networks() -> Iterator[Networks]:
    with short_networks() as networks:
        yield networks


@pytest.fixture
def settings(networks: Networks) -> Settings:
    return short_settings(networks)


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
def test_only_what_the_video_made_itself_is_seen_under_noise(
    networks: Networks, settings: Settings, direction: str
) -> None:
    """What the user gave is the truth; it enters clean."""
    end = {"head": clip(9)} if direction == "forward" else {"tail": clip(11)}
    span = Span(num_frames=24, prompt=settings.prompt, **end)  # type: ignore[arg-type]
    clean, noised = (
        played(networks, replace(settings, given_sigma_onward=sigma), span) for sigma in (0.0, 0.2)
    )
    known = 4 if direction == "forward" else -4
    near, far = (slice(None, known), slice(known, None))
    near, far = (near, far) if direction == "forward" else (far, near)
    assert np.array_equal(clean[near], noised[near])
    assert not np.array_equal(clean[far], noised[far])


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
