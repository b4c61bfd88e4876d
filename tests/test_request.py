"""Requests: reading what people write, rounding to what models make, refusing the rest."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_cli.errors import ExitCode, UsageError
from sora_cli.models.specs import (
    FAMILIES,
    TINY,
    WAN21_T2V,
    WAN22_T2V_A14B,
    WAN22_TI2V,
    ModelSpec,
)
from sora_cli.pipeline.request import MAX_SEED, Request, Settings, resolve
from sora_cli.pipeline.units import (
    parse_aspect,
    parse_duration,
    parse_resolution,
    parse_size,
    say_duration,
)


def made(spec: ModelSpec = TINY, **asked: Any) -> tuple[Settings, list[str]]:
    return resolve(Request(**{"prompt": "a red ball", "seed": 1} | asked), spec)


def refused(spec: ModelSpec = TINY, **asked: Any) -> str:
    """The whole message of the refusal."""
    with pytest.raises(UsageError) as caught:
        made(spec, **asked)
    assert caught.value.hint and caught.value.exit_code == ExitCode.USAGE
    return f"{caught.value} / {caught.value.hint}"


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_defaults_are_the_models_own_and_need_no_note(spec: ModelSpec) -> None:
    settings, notes = made(spec)
    assert notes == []
    assert (settings.width, settings.height) == (spec.width, spec.height)
    assert (settings.num_frames, settings.fps) == (spec.num_frames, spec.fps)
    assert settings.num_inference_steps == spec.num_inference_steps
    assert settings.guidance_scale == spec.guidance_scale and settings.shift == spec.shift
    assert settings.sampler == spec.sampler and settings.sigma_grid == "diffusers"
    assert settings.negative_prompt == spec.negative_prompt
    assert settings.model == spec.name and settings.expand == spec.expand
    assert settings.duration == pytest.approx(spec.num_frames / spec.fps)


def test_tiny_is_as_documented() -> None:
    settings, _ = made()
    assert (settings.width, settings.height, settings.num_frames) == (160, 96, 25)
    assert (settings.fps, settings.num_inference_steps, settings.sampler) == (8, 8, "euler")


@pytest.mark.parametrize(
    ("text", "size"), [("832x480", (832, 480)), ("832X480", (832, 480)), (" 64×96 ", (64, 96))]
)
def test_parse_size(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "832", "832x", "x480", "8.5x4", "-8x4", "8x4x2", "axb"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5),
        ("2.5", 2.5),
        ("500ms", 0.5),
        ("1m", 60),
        ("1m30s", 90),
        ("1000h", 3.6e6),
        ("1 min", 60),
        (".5s", 0.5),
        ("3 sec", 3),
        ("0", 0),
        ("-5s", -5),
    ],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5x", "five", "nan", "inf", "1e3", "5s!", "5:00"])
def test_parse_duration_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "ratio"), [("16:9", 16 / 9), ("2.39:1", 2.39), ("9/16", 9 / 16)])
def test_parse_aspect(text: str, ratio: float) -> None:
    assert parse_aspect(text) == pytest.approx(ratio)


@pytest.mark.parametrize("text", ["", "16", "16:0", "0:9", "0:0", "-1:1", "wide", "1000:1"])
def test_parse_aspect_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="aspect"):
        parse_aspect(text)


def test_parse_resolution() -> None:
    assert parse_resolution("480p") == 480 and parse_resolution("96P") == 96
    for text in ("", "480", "p", "0p", "-480p", "hd"):
        with pytest.raises(UsageError, match="resolution"):
            parse_resolution(text)


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", "\u3000", "&nbsp;", "\x00"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    assert "the prompt is empty" in refused(prompt=prompt)


def test_what_is_given_may_stand_without_a_prompt() -> None:
    settings, _ = made(prompt="", needs_prompt=False)
    assert settings.prompt == ""


@pytest.mark.parametrize("prompt", ["word " * 10_000, "🏀 on 🏔️", "一个红球", "\udcff"])
def test_odd_prompts_are_accepted_as_they_are(prompt: str) -> None:
    assert made(prompt=prompt)[0].prompt == prompt


def test_a_size_is_rounded_and_both_are_named() -> None:
    settings, notes = made(width=130, height=75)
    assert (settings.width, settings.height) == (128, 80)
    assert notes == ["size 130x75 becomes 128x80: tiny's sides are multiples of 16"]


@pytest.mark.parametrize("size", [(0, 0), (0, 96), (160, 0), (-160, 96), (10**400, 96)])
def test_sizes_without_meaning_are_refused(size: tuple[int, int]) -> None:
    message = refused(width=size[0], height=size[1])
    assert f"{size[0]}x{size[1]} cannot be made" in message and "--size 160x96" in message


def test_a_size_too_large_is_refused() -> None:
    assert "100000x100000 is too large: tiny makes at most 4,194,304 pixels" in refused(
        width=100_000, height=100_000
    )
    assert "too large" in refused(resolution="99999999p")


def test_a_size_beyond_training_is_noted() -> None:
    settings, notes = made(width=320, height=192)
    assert (settings.width, settings.height) == (320, 192)
    assert len(notes) == 1 and "beyond the sizes tiny was trained on (sides 64 to 160)" in notes[0]


@pytest.mark.parametrize(
    ("spec", "asked", "size"),
    [
        (TINY, {"aspect": "16:9"}, (160, 96)),
        (TINY, {"aspect": "9:16"}, (96, 160)),
        (TINY, {"aspect": "1:1"}, (128, 128)),
        (TINY, {"resolution": "96p"}, (160, 96)),
        (TINY, {"resolution": "96p", "aspect": "1:1"}, (96, 96)),
        (TINY, {"width": 128}, (128, 80)),
        (TINY, {"height": 96, "aspect": "1:1"}, (96, 96)),
        (WAN21_T2V, {"aspect": "16:9", "resolution": "480p"}, (848, 480)),
        (WAN21_T2V, {"aspect": "9:16", "resolution": "480p"}, (480, 848)),
        (WAN22_TI2V, {"aspect": "16:9", "resolution": "720p"}, (1280, 704)),
        (WAN22_TI2V, {"width": 1280, "height": 720}, (1280, 704)),
    ],
)
def test_sizes_by_aspect_and_resolution(
    spec: ModelSpec, asked: dict[str, Any], size: tuple[int, int]
) -> None:
    settings, _ = made(spec, **asked)
    assert (settings.width, settings.height) == size


def test_a_rounded_aspect_is_noted() -> None:
    _, notes = made(aspect="16:9")
    assert notes == ["size 16:9 (165x93) becomes 160x96: tiny's sides are multiples of 16"]


@pytest.mark.parametrize(
    ("asked", "flags"),
    [
        ({"width": 160, "height": 96, "aspect": "16:9"}, ("--size", "--aspect")),
        ({"width": 160, "height": 96, "resolution": "96p"}, ("--size", "--resolution")),
        ({"width": 160, "resolution": "96p"}, ("--size", "--resolution")),
        ({"duration": 2.0, "num_frames": 17}, ("--duration", "--num-frames")),
    ],
)
def test_flags_that_say_the_same_thing_twice_are_refused(
    asked: dict[str, Any], flags: tuple[str, str]
) -> None:
    assert f"{flags[0]} and {flags[1]} cannot be used together" in refused(**asked)


@pytest.mark.parametrize(
    ("spec", "duration", "num_frames"),
    [(TINY, 3, 25), (TINY, 2, 17), (TINY, 1 / 8, 1), (WAN21_T2V, 5, 81), (WAN22_TI2V, 5, 121)],
)
def test_durations_without_a_note(spec: ModelSpec, duration: float, num_frames: int) -> None:
    settings, notes = made(spec, duration=duration)
    assert settings.num_frames == num_frames and notes == []


def test_a_rounded_length_is_noted() -> None:
    assert made(duration=2.4)[1] == [
        "--duration 2.4s becomes 21 frames, 2.62s: tiny's lengths are 4k+1 frames"
    ]
    settings, notes = made(num_frames=24)
    assert settings.num_frames == 25
    assert notes == ["--num-frames 24 becomes 25 frames, 3.12s: tiny's lengths are 4k+1 frames"]


def test_the_frame_rate_changes_the_number_of_frames() -> None:
    assert made(duration=2, fps=12)[0].num_frames == 25
    assert made(fps=12)[0].num_frames == 25  # same frames, played faster


def test_a_longer_video_is_made_in_pieces_and_that_is_noted() -> None:
    settings, notes = made(num_frames=97)
    assert (settings.num_frames, settings.chunk_frames) == (97, 25)
    assert notes == ["97 frames are made in pieces of 25, then 49, each continuing the one before"]
    settings, notes = made(num_frames=33)
    assert (settings.num_frames, settings.chunk_frames) == (33, 33) and notes == []


ONE_PIECE = replace(TINY, abilities=("t2v",))


def test_a_model_that_cannot_continue_makes_one_piece_and_says_what_it_learned() -> None:
    settings, notes = made(ONE_PIECE, num_frames=97)
    assert (settings.num_frames, settings.chunk_frames) == (97, 97)
    assert len(notes) == 1 and "97 frames are beyond the 33 that tiny was trained on" in notes[0]


def test_a_length_beyond_the_model_is_refused() -> None:
    message = refused(duration=parse_duration("1000h"))
    assert "--duration 1000h is too long" in message
    assert "at most 28801 frames, 1h at 8 fps" in message
    assert "--num-frames 28801" in message
    assert "too long" in refused(num_frames=10**30)
    assert "too long" in refused(duration=1e308, fps=1000)
    assert made(num_frames=28_801)[0].num_frames == 28_801


def test_the_longest_canvas_depends_on_the_size() -> None:
    assert TINY.longest(1024, 1024) == 61
    message = refused(ONE_PIECE, width=1024, height=1024, num_frames=977)
    assert "at most 61 frames, 7.62s at 8 fps at 1024x1024, and cannot continue" in message
    tight = replace(TINY, max_tokens=TINY.tokens(160, 96, 9))
    assert made(tight)[0].num_frames == 9  # the default gives way to the limit
    assert made(tight, num_frames=97)[0].chunk_frames == 9


def test_two_experts_have_two_guidance_scales() -> None:
    settings, _ = made(WAN22_T2V_A14B)
    assert (settings.guidance_scale, settings.guidance_scale_2) == (4, 3)
    settings, _ = made(WAN22_T2V_A14B, guidance_scale=6)
    assert (settings.guidance_scale, settings.guidance_scale_2) == (6, 6)
    settings, _ = made(WAN22_T2V_A14B, guidance_scale=6, guidance_scale_2=2)
    assert (settings.guidance_scale, settings.guidance_scale_2) == (6, 2)
    assert "tiny has one" in refused(guidance_scale_2=2)


def test_what_goes_on_is_guided_less_unless_another_scale_is_asked_for() -> None:
    assert made(TINY)[0].guidance_scale_onward == TINY.guidance_scale_onward is not None
    assert made(TINY, guidance_scale=TINY.guidance_scale)[0].guidance_scale_onward is not None
    assert made(TINY, guidance_scale=3)[0].guidance_scale_onward is None
    assert made(WAN22_T2V_A14B)[0].guidance_scale_onward is None
    assert made(TINY)[0].given_sigma_onward == TINY.given_sigma_onward > 0
    assert made(WAN22_T2V_A14B)[0].given_sigma_onward == 0  # was not trained for it


def test_a_few_step_model_brings_its_noise_levels_unless_others_are_asked_for() -> None:
    quick = replace(TINY, fixed_sigmas=(1.0, 0.757, 0.522), num_inference_steps=3)
    assert made(quick)[0].fixed_sigmas == (1.0, 0.757, 0.522)
    assert made(quick, shift=5)[0].fixed_sigmas is None


@pytest.mark.parametrize("duration", [0, -1, -0.0, math.nan, math.inf])
def test_durations_without_meaning_are_refused(duration: float) -> None:
    message = refused(duration=duration)
    assert "--duration must be a number above 0" in message


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_frames": 0}, "--num-frames must be a whole number of at least 1, not 0"),
        ({"num_inference_steps": 0}, "--steps must be a whole number from 1 to 1000, not 0"),
        ({"num_inference_steps": 1001}, "--steps must be a whole number from 1 to 1000, not 1001"),
        ({"guidance_scale": -1}, "--guidance-scale must be a number of at least 0, not -1"),
        ({"guidance_scale": math.nan}, "--guidance-scale must be a number of at least 0, not nan"),
        ({"fps": 0}, "--fps must be a number above 0 and at most 1000, not 0"),
        ({"fps": -8}, "--fps must be a number above 0 and at most 1000, not -8"),
        ({"fps": math.inf}, "--fps must be a number above 0 and at most 1000, not inf"),
        ({"shift": 0}, "--shift must be a number above 0, not 0"),
        ({"seed": -1}, f"--seed must be a whole number from 0 to {MAX_SEED}, not -1"),
        ({"seed": 2**63}, f"--seed must be a whole number from 0 to {MAX_SEED}, not {2**63}"),
        (
            {"sampler": "ddim"},
            "--sampler 'ddim' is unknown / choose one: --sampler euler or unipc or renoise",
        ),
        ({"sigma_grid": "karras"}, "--sigma-grid 'karras' is unknown"),
    ],
)
def test_numbers_out_of_range_are_refused(asked: dict[str, Any], message: str) -> None:
    assert message in refused(**asked)


def test_edges_are_accepted() -> None:
    settings, _ = made(guidance_scale=0, num_inference_steps=1, num_frames=1, seed=MAX_SEED)
    assert (settings.guidance_scale, settings.num_frames, settings.seed) == (0, 1, MAX_SEED)
    assert made(num_inference_steps=1000, fps=0.5)[0].fps == 0.5


def test_an_explicit_choice_wins_over_the_model() -> None:
    settings, _ = made(
        WAN21_T2V, negative_prompt="", expand=True, sampler="euler", sigma_grid="original"
    )
    assert settings.negative_prompt == "" and settings.expand is True
    assert settings.sampler == "euler" and settings.sigma_grid == "original"


def test_without_a_seed_each_request_gets_its_own() -> None:
    seeds = {made(seed=None)[0].seed for _ in range(8)}
    assert len(seeds) > 1 and all(0 <= seed < 2**32 for seed in seeds)


@given(
    spec=st.sampled_from(list(FAMILIES.values())),
    width=st.integers(1, 2000),
    height=st.integers(1, 2000),
    num_frames=st.integers(1, 3000),
)
def test_what_is_made_is_legal_and_near(
    spec: ModelSpec, width: int, height: int, num_frames: int
) -> None:
    try:
        settings, _ = made(spec, width=width, height=height, num_frames=num_frames)
    except UsageError as error:
        assert "too l" in error.message  # too large, too long
        return
    multiple, scale_t = spec.size_multiple, spec.vae_scale_factors[0]
    assert settings.width % multiple == settings.height % multiple == 0
    assert (settings.num_frames - 1) % scale_t == 0
    assert abs(settings.num_frames - num_frames) <= scale_t / 2
    for side, asked in ((settings.width, width), (settings.height, height)):
        assert side >= multiple and abs(side - asked) <= max(multiple / 2, multiple - asked)
    assert settings.width * settings.height <= spec.max_pixels
    assert spec.tokens(settings.width, settings.height, settings.chunk_frames) <= spec.max_tokens
    assert (settings.chunk_frames - 1) % scale_t == 0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(5.04, "5.04s"), (0.125, "0.125s"), (122.1, "2m2s"), (60, "1m"), (3.6e6, "1000h")],
)
def test_say_duration(seconds: float, said: str) -> None:
    assert say_duration(seconds) == said


def test_requests_need_no_torch() -> None:
    code = "import sys, sora_cli.pipeline.request; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
