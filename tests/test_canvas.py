"""The canvas: noise, the one encoding of given frames, and given latents that stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sora_cli.pipeline.canvas import (
    Canvas,
    Conditioning,
    encode_given,
    latent_frames,
    latents_shape,
    lay_out,
    noise,
)
from sora_cli.pipeline.sampler import Guidance, make_schedule, sample

SHAPE = (3, 7, 2, 3)  # C, T, H, W: 25 frames of 32x48 at stride 4x16x16


def toy_encode(video: Tensor) -> Tensor:
    """A causal stand-in for the VAE: each latent is a running mean of its past, stride 4x16x16."""
    assert (video.shape[2] - 1) % 4 == 0
    pooled = functional.avg_pool3d(video, (1, 16, 16))
    past = pooled.cumsum(2) / torch.arange(1, video.shape[2] + 1).view(1, 1, -1, 1, 1)
    return past[:, :, ::4]


def clip(num_frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, num_frames, 32, 48, generator=generator) * 2 - 1


def test_noise_is_diffusers_own() -> None:
    theirs = randn_tensor(
        (1, *SHAPE), generator=torch.Generator("cpu").manual_seed(7), dtype=torch.float32
    )
    assert torch.equal(noise(SHAPE, seed=7), theirs)
    assert not torch.equal(noise(SHAPE, seed=8), theirs)
    assert noise(SHAPE, seed=2**63 - 1).shape == (1, *SHAPE)


@pytest.mark.parametrize(("num_frames", "frames"), [(1, 1), (5, 2), (25, 7), (121, 31)])
def test_latent_frames(num_frames: int, frames: int) -> None:
    assert latent_frames(num_frames) == frames


def test_latents_shape_of_the_published_default() -> None:
    shape = latents_shape(
        channels=48, num_frames=121, height=704, width=1280, scale_factors=(4, 16, 16)
    )
    assert shape == (48, 31, 44, 80)


def test_a_head_is_a_fresh_clip() -> None:
    frames = clip(9)
    latents = encode_given(toy_encode, frames, "head")
    assert latents.shape == (1, 3, 3, 2, 3)
    assert torch.equal(latents, toy_encode(frames))


def test_a_tail_has_a_still_past() -> None:
    frames = clip(8)
    latents = encode_given(toy_encode, frames, "tail")
    assert latents.shape == (1, 3, 2, 2, 3)
    still = torch.cat([frames[:, :, :1]] * 9 + [frames], dim=2)  # 17 frames, 5 latents
    assert torch.equal(latents, toy_encode(still)[:, :, 3:])


def test_one_frame_is_a_head() -> None:
    assert encode_given(toy_encode, clip(1), "head").shape == (1, 3, 1, 2, 3)


@pytest.mark.parametrize(("num_frames", "side"), [(4, "head"), (5, "tail"), (1, "tail")])
def test_wrong_numbers_of_given_frames_are_refused(num_frames: int, side: Any) -> None:
    with pytest.raises(AssertionError):
        encode_given(toy_encode, clip(num_frames), side)


def test_both_ends_are_laid_out() -> None:
    head, tail = clip(5, seed=1), clip(8, seed=2)
    rows = [Conditioning(frames=head, index=0), Conditioning(frames=tail, index=-8)]
    canvas = lay_out(toy_encode, SHAPE, rows)
    assert canvas.denoise_mask.tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert torch.equal(canvas.clean_latents[:, :2], encode_given(toy_encode, head, "head")[0])
    assert torch.equal(canvas.clean_latents[:, 5:], encode_given(toy_encode, tail, "tail")[0])
    assert not canvas.clean_latents[:, 2:5].any()


def test_a_tail_may_be_named_by_its_frame() -> None:
    frames = clip(8)
    by_frame = lay_out(toy_encode, SHAPE, [Conditioning(frames=frames, index=17)])
    from_the_end = lay_out(toy_encode, SHAPE, [Conditioning(frames=frames, index=-8)])
    assert torch.equal(by_frame.clean_latents, from_the_end.clean_latents)
    assert torch.equal(by_frame.denoise_mask, from_the_end.denoise_mask)


def test_frames_in_the_middle_are_a_block_of_their_own() -> None:
    frames = clip(8)
    canvas = lay_out(toy_encode, SHAPE, [Conditioning(frames=frames, index=9)])
    assert canvas.denoise_mask.tolist() == [1, 1, 1, 0, 0, 1, 1]
    assert torch.equal(canvas.clean_latents[:, 3:5], encode_given(toy_encode, frames, "tail")[0])


@pytest.mark.parametrize("index", [4, -11, 18, 2])
def test_frames_that_start_no_latent_frame_are_refused(index: int) -> None:
    with pytest.raises(AssertionError):
        lay_out(toy_encode, SHAPE, [Conditioning(frames=clip(8), index=index)])


def test_a_region_is_given_where_all_its_pixels_are() -> None:
    mask = torch.ones(1, 1, 5, 32, 48)
    mask[..., 2, 5, 20] = 0  # one pixel of the second latent frame, in its second column
    rows = [Conditioning(frames=clip(5), index=0, mask=mask)]
    canvas = lay_out(toy_encode, SHAPE, rows)
    made = torch.zeros(7, 2, 3)
    made[1, 0, 1] = 1
    made[2:] = 1
    assert torch.equal(canvas.denoise_mask, made)
    tokens = canvas.timesteps(875.0, batch=1)
    assert torch.equal(tokens, 875 * made.flatten()[None])


def test_noised_latents_are_put_back_at_each_level() -> None:
    """RePaint: the model knows nothing, so what is known is as noisy as all the rest."""
    known, start = torch.ones(3, 1, 2, 3), noise(SHAPE, 0)
    canvas = replace(Canvas.blank(SHAPE).give(known, 0), holds="noised")
    held = canvas.hold(torch.zeros(1, *SHAPE), 0.25, start)
    assert torch.equal(held[0, :, 0], 0.75 * known[:, 0] + 0.25 * start[0, :, 0])
    assert not held[:, :, 1:].any()
    assert canvas.timesteps(250.0, batch=2).tolist() == [250.0, 250.0]


def test_two_conditionings_on_one_latent_frame_are_refused() -> None:
    rows = [Conditioning(frames=clip(21), index=0), Conditioning(frames=clip(8), index=-8)]
    with pytest.raises(AssertionError):
        lay_out(toy_encode, SHAPE, rows)


def test_a_blank_canvas_has_one_timestep_for_all() -> None:
    canvas = Canvas.blank(SHAPE)
    assert not canvas.has_given
    assert canvas.timesteps(875.0, batch=2).tolist() == [875.0, 875.0]
    latents = noise(SHAPE, seed=0)
    assert torch.equal(canvas.hold(latents), latents)


def test_a_given_frame_has_timestep_zero() -> None:
    canvas = Canvas.blank(SHAPE).give(torch.ones(3, 1, 2, 3), 6)
    assert canvas.has_given
    assert canvas.timesteps(875.0, batch=2).tolist() == [[875.0] * 6 + [0.0]] * 2


def test_given_latents_may_be_seen_under_noise_and_are_clean_in_the_end() -> None:
    """At a level of their own, never more than what is made has; the model is told which."""
    known, start = torch.ones(3, 1, 2, 3), noise(SHAPE, 0)
    canvas = replace(Canvas.blank(SHAPE).give(known, 0), given_sigma=0.25)
    empty = torch.zeros(1, *SHAPE)
    for sigma, seen in ((0.75, 0.25), (0.125, 0.125), (0.0, 0.0)):
        held = canvas.hold(empty, sigma, start)
        assert torch.equal(held[0, :, 0], (1 - seen) * known[:, 0] + seen * start[0, :, 0])
        assert not held[:, :, 1:].any()
        times = canvas.timesteps(1000 * sigma, batch=1)
        assert times.tolist() == [[1000 * seen] + [1000 * sigma] * 6]


def drift(latents: Tensor, timesteps: Tensor, context: Any) -> Tensor:
    """A model that mixes every token with every other."""
    return torch.tanh(latents + latents.mean(dim=(2, 3, 4), keepdim=True))


@settings(deadline=None, max_examples=40)
@given(
    frames=st.integers(1, 6),
    head=st.integers(0, 6),
    tail=st.integers(0, 6),
    steps=st.integers(1, 6),
    sampler=st.sampled_from(["euler", "unipc"]),
    seed=st.integers(0, 2**63 - 1),
    scale=st.sampled_from([1.0, 3.0]),
    noised=st.sampled_from([0.0, 0.3]),
)
def test_given_latents_come_back_unchanged(
    frames: int, head: int, tail: int, steps: int, sampler: Any, seed: int, scale: float,
    noised: float,
) -> None:  # fmt: skip
    head = min(head, frames)
    tail = min(tail, frames - head)
    shape = (3, frames, 2, 3)
    known = noise(shape, seed=1)[0]
    canvas = replace(Canvas.blank(shape), given_sigma=noised)
    if head:
        canvas = canvas.give(known[:, :head], 0)
    if tail:
        canvas = canvas.give(known[:, frames - tail :], frames - tail)
    made = sample(
        drift,
        noise(shape, seed),
        canvas,
        make_schedule(steps, 3.0, sampler=sampler),
        sampler=sampler,
        guidance=Guidance(context=None, scale=scale),
    )
    assert made.shape == (1, *shape) and bool(made.isfinite().all())
    assert torch.equal(made[0, :, :head], known[:, :head])
    assert torch.equal(made[0, :, frames - tail :], known[:, frames - tail :])
    if head + tail < frames:
        assert not torch.equal(made[0, :, head], known[:, head])


def test_an_image_is_a_canvas_of_one_frame() -> None:
    shape = latents_shape(channels=3, num_frames=1, height=32, width=48, scale_factors=(4, 16, 16))
    canvas = Canvas.blank(shape)
    schedule = make_schedule(3, 3.0, sampler="euler")
    guidance = Guidance(context=None)
    made = sample(drift, noise(shape, 0), canvas, schedule, sampler="euler", guidance=guidance)
    assert made.shape == (1, 3, 1, 2, 3)
    whole = lay_out(toy_encode, shape, [Conditioning(frames=clip(1), index=0)])
    made = sample(drift, noise(shape, 0), whole, schedule, sampler="euler", guidance=guidance)
    assert torch.equal(made, toy_encode(clip(1)))
