"""`sora generate -m FOLDER … -o out.mkv` against diffusers' whole pipeline on the same folder.

The folders hold small random models that diffusers saved; the frames are compared after the
command line has written them and ffmpeg has read them back. diffusers gives frames as fractions:
rounding them to 8 bits, the right thing to do, costs all but 58.9 dB.
"""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v
from diffusers.utils import is_ftfy_available
from PIL import Image

from sora_cli.cli.main import main
from sora_cli.media import ffmpeg
from sora_cli.pipeline import generate
from tests import wan_folders

TOLERANCE = 50  # dB
STEPS = 8
FRAMES = 9
SIZES = {"2.1": (64, 48), "2.2": (96, 64)}  # (width, height)
LAYOUTS = pytest.mark.parametrize("layout", ["2.1", "2.2"])
PROMPT, NEGATIVE = "a red ball bounces on the snow", "static, (blurred)"

# What is typed, and what ftfy 6.3 makes of it. diffusers cleans with ftfy where that is installed
# and silently does not where it is absent; then it is handed what ftfy would have made.
TEXTS = {
    "quotes": ("a “red” ball, it’s ‘on’ the snow", "a \"red\" ball, it's 'on' the snow"),
    "fullwidth": ("色调艳丽，过曝，静态。（a！）", "色调艳丽,过曝,静态。(a!)"),
    "entities": ("a red &amp;amp; ball &lt;on&gt; the snow", None),
    "spaces": ("  a red\n\n ball\t bounces \u3000", None),
    "unknown words": ("zebra ☃ 🦓 9", None),
    "more than 512 tokens": ("a red ball bounces on the snow, " * 100, None),
}


@cache
def pipeline(layout: str) -> WanPipeline:
    return wan_folders.wan21() if layout == "2.1" else wan_folders.wan22()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both pipelines as diffusers saves them, the second one in shards."""
    return {
        layout: wan_folders.save(
            pipeline(layout), tmp_path_factory.mktemp("folder") / layout, shards=layout == "2.2"
        )
        for layout in SIZES
    }


def theirs(layout: str, prompt: str = PROMPT, *, made_by: Any = None, **options: Any) -> np.ndarray:
    """diffusers' frames, [T, H, W, 3] from 0 to 1."""
    width, height = SIZES[layout]
    options = {"guidance_scale": 5.0, "negative_prompt": NEGATIVE, "num_frames": FRAMES} | options
    options = {"num_inference_steps": STEPS} | options
    made = (made_by or pipeline(layout))(
        prompt=prompt,
        width=width,
        height=height,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="np",
        **options,
    )
    return made.frames[0]


def ours(
    verb: str,
    words: list[str],
    model: Path | str,
    layout: str,
    *options: str,
    target: Path | None = None,
) -> np.ndarray:
    """The frames that the command line writes, uint8 [T, H, W, 3]."""
    width, height = SIZES[layout]
    target = target or Path(model).parent / ("out.png" if verb == "image" else "out.mkv")
    length = ("--num-frames", str(FRAMES)) if verb in ("generate", "animate") else ()
    if "-n" not in options:
        options = ("-n", NEGATIVE, *options)
    command = [
        *(verb, *words, "-m", str(model), "--seed", "7", "--steps", str(STEPS), "--no-expand"),
        *("--dtype", "float32", "--size", f"{width}x{height}", *length, *options),
        *("--device", "cpu", "--quiet", "--force", "-o", str(target)),
    ]
    assert main(command) == 0
    if verb == "image":
        return np.asarray(Image.open(target))[None]
    decode = ["-v", "error", "-i", str(target), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    raw = subprocess.run([ffmpeg.executable(), *decode], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def psnr(frames: np.ndarray, expected: np.ndarray) -> float:
    assert frames.shape == expected.shape
    return float(-10 * np.log10(np.mean((frames / 255.0 - expected) ** 2)))


def compare(what: str, frames: np.ndarray, expected: np.ndarray) -> None:
    """Print the figures, then hold them to the tolerance."""
    assert expected.std() > 0.1 and ((expected > 0) & (expected < 1)).mean() > 0.7
    figure = psnr(frames, expected)
    differing = np.mean(frames != np.round(expected * 255))
    print(  # noqa: T201
        f"parity: pipeline, {what}: {figure:.1f} dB, at least {TOLERANCE}; "
        f"{differing:.3%} of the 8-bit values differ"
    )
    assert figure >= TOLERANCE
    assert np.abs(frames - np.round(expected * 255)).max() <= 1  # a rounding apart, nowhere more


def as_diffusers_needs(name: str) -> str:
    typed, fixed = TEXTS[name]
    return typed if fixed is None or is_ftfy_available() else fixed


@LAYOUTS
@pytest.mark.parametrize("guidance", ["1", "5"])
def test_video_is_diffusers_own(layout: str, guidance: str, folders: dict[str, Path]) -> None:
    frames = ours("generate", [PROMPT], folders[layout], layout, "--guidance-scale", guidance)
    expected = theirs(layout, guidance_scale=float(guidance))
    compare(f"Wan {layout}, UniPC, guidance {guidance}", frames, expected)


@pytest.mark.parametrize("name", TEXTS)
def test_prompts_are_cleaned_and_cut_alike(name: str, folders: dict[str, Path]) -> None:
    frames = ours("generate", [TEXTS[name][0]], folders["2.1"], "2.1")
    compare(f"prompt with {name}", frames, theirs("2.1", as_diffusers_needs(name)))


def test_negative_prompts_are_cleaned_alike(folders: dict[str, Path]) -> None:
    frames = ours("generate", [PROMPT], folders["2.2"], "2.2", "-n", TEXTS["fullwidth"][0])
    expected = theirs("2.2", negative_prompt=as_diffusers_needs("fullwidth"))
    compare("negative prompt with fullwidth", frames, expected)


@LAYOUTS
def test_an_empty_negative_prompt_is_a_text_too(layout: str, folders: dict[str, Path]) -> None:
    frames = ours("generate", [PROMPT], folders[layout], layout, "-n", "")
    compare(f"Wan {layout}, empty negative", frames, theirs(layout, negative_prompt=""))


def test_another_text_would_be_seen() -> None:
    """A quote that was not straightened is already far outside the tolerance."""
    one, other = theirs("2.1", 'a "red" ball'), theirs("2.1", "a 'red' ball")
    assert psnr(one * 255, other) < 25


def test_guidance_in_turn_is_the_same(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "BATCHED_GUIDANCE_TOKENS", 0)
    frames = ours("generate", [PROMPT], folders["2.2"], "2.2")
    compare("Wan 2.2, guidance in two calls", frames, theirs("2.2"))


def with_scheduler(layout: str, scheduler: Any) -> WanPipeline:
    original = pipeline(layout)
    parts = {**original.components, "scheduler": scheduler}
    made = WanPipeline(**parts, expand_timesteps=original.config.expand_timesteps)
    made.set_progress_bar_config(disable=True)
    return made


def hand_sigmas(scheduler: Any, first: float, last: float) -> None:
    """Make the scheduler take the evenly spaced sigmas that a pipeline offers no option for."""
    own = scheduler.set_timesteps

    def set_timesteps(num_inference_steps: int, device: Any = None) -> None:
        own(sigmas=np.linspace(first, last, num_inference_steps + 1)[:-1], device=device)

    scheduler.set_timesteps = set_timesteps


@LAYOUTS
def test_an_euler_folder_is_sampled_with_euler(layout: str, tmp_path: Path) -> None:
    """Left alone, diffusers' Euler scheduler shifts its smallest sigma twice."""
    scheduler = wan_folders.euler()
    reference = with_scheduler(layout, scheduler)
    folder = wan_folders.save(reference, tmp_path / "folder")
    hand_sigmas(scheduler, 1, 0.001)
    frames = ours("generate", [PROMPT], folder, layout)
    compare(f"Wan {layout}, Euler", frames, theirs(layout, made_by=reference))


def test_the_original_grid(folders: dict[str, Path]) -> None:
    scheduler = wan_folders.unipc()
    hand_sigmas(scheduler, 0.999, 0)
    expected = theirs("2.1", made_by=with_scheduler("2.1", scheduler))
    frames = ours("generate", [PROMPT], folders["2.1"], "2.1", "--sigma-grid", "original")
    compare("Wan 2.1, UniPC, original grid", frames, expected)


def test_shift_can_be_chosen(folders: dict[str, Path]) -> None:
    expected = theirs("2.1", made_by=with_scheduler("2.1", wan_folders.unipc(5.0)))
    frames = ours("generate", [PROMPT], folders["2.1"], "2.1", "--shift", "5")
    compare("Wan 2.1, shift 5", frames, expected)


@LAYOUTS
def test_a_picture_is_a_video_of_one_frame(layout: str, folders: dict[str, Path]) -> None:
    frames = ours("image", [PROMPT], folders[layout], layout)
    compare(f"Wan {layout}, image", frames, theirs(layout, num_frames=1))


@pytest.mark.parametrize("guidance", ["1", "5"])
def test_animate_is_diffusers_image_to_video(
    guidance: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This one of diffusers' modules calls ftfy without asking whether it is there.
    monkeypatch.setattr(pipeline_wan_i2v, "prompt_clean", pipeline_wan.prompt_clean)
    width, height = SIZES["2.2"]
    pixels = np.random.default_rng(1).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "first.png")
    reference = WanImageToVideoPipeline(**pipeline("2.2").components, expand_timesteps=True)
    reference.set_progress_bar_config(disable=True)
    scale = float(guidance)
    expected = theirs("2.2", made_by=reference, image=picture, guidance_scale=scale)
    words = [str(tmp_path / "first.png"), PROMPT]
    frames = ours("animate", words, folders["2.2"], "2.2", "--guidance-scale", guidance)
    compare(f"Wan 2.2, animate, guidance {guidance}", frames, expected)
    assert psnr(frames, theirs("2.2", guidance_scale=scale)) < 30
