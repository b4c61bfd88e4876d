"""Every published family through the command line, against diffusers' own pipeline.

As tests/test_pipeline_parity.py, for two experts, image to video with and without CLIP, first and
last frame, and VACE. What the command line cannot say yet (VACE's references, regions and moving
starts) is made by `pipeline.generate` from the same folder.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v, pipeline_wan_vace
from PIL import Image

from sora_cli.cli.main import main
from sora_cli.media import ffmpeg
from sora_cli.pipeline.canvas import Conditioning
from sora_cli.pipeline.generate import decode_frames, lay_canvas, make_video_latents, read_texts
from sora_cli.pipeline.networks import Model, Networks
from sora_cli.pipeline.request import Request, Settings, resolve
from sora_cli.pipeline.spans import as_row
from sora_cli.runtime.plan import MemoryPlan
from sora_cli.weights import manifest, store
from sora_cli.weights.store import Installed
from tests import wan_folders
from tests.test_conditioning import as_fractions, as_tensor, clip
from tests.test_pipeline_parity import (
    FRAMES,
    NEGATIVE,
    PROMPT,
    SIZES,
    STEPS,
    compare,
    ours,
    psnr,
    theirs,
)

SIZE = SIZES["2.1"]
MAKERS: dict[str, Callable[[], Any]] = {
    "t2v": wan_folders.wan21,
    "i2v": wan_folders.i2v21,
    "flf2v": wan_folders.flf2v,
    "t2v-a14b": wan_folders.t2v_a14b,
    "i2v-a14b": wan_folders.i2v_a14b,
    "vace": wan_folders.vace,
}


@cache
def pipeline(family: str) -> Any:
    return MAKERS[family]()


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each pipeline as diffusers saves it, once."""

    @cache
    def of(family: str) -> Path:
        return wan_folders.save(pipeline(family), tmp_path_factory.mktemp("folder") / family)

    return of


@pytest.fixture(autouse=True)
def without_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    """These of diffusers' modules call ftfy without asking whether it is there."""
    for module in (pipeline_wan_i2v, pipeline_wan_vace):
        monkeypatch.setattr(module, "prompt_clean", pipeline_wan.prompt_clean)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two pictures of the video's size."""
    paths = [tmp_path / "first.png", tmp_path / "last.png"]
    for path, frame in zip(paths, clip(2, SIZE), strict=True):
        Image.fromarray(frame).save(path)
    return paths


@pytest.fixture
def moving(tmp_path: Path) -> Path:
    """A clip to work on."""
    path = tmp_path / "clip.mkv"
    command = [ffmpeg.executable(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{SIZE[0]}x{SIZE[1]}", "-r", "16", "-i", "-", str(path)]
    subprocess.run(command, input=clip(FRAMES, SIZE).tobytes(), check=True)
    return path


def expected_of(family: str, **options: Any) -> np.ndarray:
    return theirs("2.1", made_by=pipeline(family), **options)


@cache
def from_text() -> np.ndarray:
    """VACE's frames with nothing given."""
    return expected_of("vace")


# ---------------------------------------------------------------- two experts


@pytest.mark.parametrize("scales", [(5.0, 5.0), (4.0, 3.0)], ids=str)
def test_two_experts_share_the_steps(
    scales: tuple[float, float], folder_of: Callable[[str], Path]
) -> None:
    high, low = scales
    options = ["--guidance-scale", str(high)]
    if high != low:
        options += ["--guidance-scale-2", str(low)]
    frames = ours("generate", [PROMPT], folder_of("t2v-a14b"), "2.1", *options)
    expected = expected_of("t2v-a14b", guidance_scale=high, guidance_scale_2=low)
    compare(f"T2V-A14B, guidance {high:g} and {low:g}", frames, expected)


def test_another_boundary_would_be_seen(folder_of: Callable[[str], Path]) -> None:
    """One step more by the wrong expert is far outside the tolerance."""
    reference = wan_folders.t2v_a14b()
    reference.register_to_config(boundary_ratio=0.8)
    other = theirs("2.1", made_by=reference)
    assert psnr(expected_of("t2v-a14b") * 255, other) < 40


# ---------------------------------------------------------------- image to video


@pytest.mark.parametrize("family", ["i2v", "i2v-a14b"])
def test_animate_is_diffusers_image_to_video(
    family: str, folder_of: Callable[[str], Path], pictures: list[Path]
) -> None:
    options: list[str] = []
    scales: dict[str, float] = {}
    if family == "i2v-a14b":
        options, scales = ["--guidance-scale-2", "3"], {"guidance_scale_2": 3.0}
    words = [str(pictures[0]), PROMPT]
    frames = ours("animate", words, folder_of(family), "2.1", "--guidance-scale", "5", *options)
    expected = expected_of(family, image=Image.open(pictures[0]), **scales)
    compare(f"animate, {family}", frames, expected)


@pytest.mark.parametrize("family", ["flf2v", "i2v-a14b"])
def test_animate_with_a_last_picture_is_diffusers_own(
    family: str, folder_of: Callable[[str], Path], pictures: list[Path]
) -> None:
    words = [str(pictures[0]), PROMPT, "--last", str(pictures[1])]
    frames = ours("animate", words, folder_of(family), "2.1", "--guidance-scale", "5")
    first, last = (Image.open(path) for path in pictures)
    compare(f"animate --last, {family}", frames, expected_of(family, image=first, last_image=last))
    swapped = expected_of(family, image=last, last_image=first)
    assert psnr(frames, swapped) < 40


def test_a_clip_can_be_changed_without_a_picture(
    folder_of: Callable[[str], Path], moving: Path
) -> None:
    """Image to video by its channels also where none of a canvas is given."""
    frames = ours("edit", [str(moving), PROMPT, "--strength", "0.5"], folder_of("i2v-a14b"), "2.1")
    assert frames.shape == (FRAMES, *SIZE[::-1], 3)


# ---------------------------------------------------------------- VACE


def given_to_diffusers(
    frames: np.ndarray, given: np.ndarray, references: list[Image.Image] | None = None
) -> np.ndarray:
    """VACE's frames; `frames` uint8 [T, H, W, 3], `given` [T, H, W]: 1 where they are known."""
    known = given[..., None] > 0
    video = np.where(known, as_fractions(frames), np.float32(0.5))
    mask = np.repeat(1 - given[..., None].astype(np.float32), 3, axis=-1)
    return expected_of("vace", video=[video], mask=[mask], reference_images=references)


def test_vace_makes_video_from_text(folder_of: Callable[[str], Path]) -> None:
    frames = ours("generate", [PROMPT], folder_of("vace"), "2.1", "--guidance-scale", "5")
    compare("VACE, text", frames, from_text())


@pytest.mark.parametrize("last", [False, True], ids=["first", "first and last"])
def test_vace_animates_pictures(
    last: bool, folder_of: Callable[[str], Path], pictures: list[Path]
) -> None:
    words = [str(pictures[0]), PROMPT, *(["--last", str(pictures[1])] if last else [])]
    frames = ours("animate", words, folder_of("vace"), "2.1", "--guidance-scale", "5")
    known, given = np.zeros((FRAMES, *SIZE[::-1], 3), np.uint8), np.zeros((FRAMES, *SIZE[::-1]))
    known[0], given[0] = np.asarray(Image.open(pictures[0])), 1
    if last:
        known[-1], given[-1] = np.asarray(Image.open(pictures[1])), 1
    expected = given_to_diffusers(known, given)
    compare(f"VACE, {'first and last' if last else 'first'} picture", frames, expected)
    assert psnr(frames, from_text()) < 40


def opened(folder: Path, **options: Any) -> tuple[Installed, Settings]:
    """A folder, and settings as the tests' command lines have them."""
    installed = store.locate(str(folder))
    request = Request(
        prompt=PROMPT, negative_prompt=NEGATIVE, width=SIZE[0], height=SIZE[1], num_frames=FRAMES,
        seed=7, **{"num_inference_steps": STEPS, "guidance_scale": 5.0, **options},
    )  # fmt: skip
    return installed, resolve(request, installed.spec)[0]


def model_of(installed: Installed, plan: MemoryPlan | None = None) -> Model:
    return Model(
        spec=installed.spec, parts=installed.parts, device=torch.device("cpu"),
        dtype=torch.float32, plan=plan or MemoryPlan(),
    )  # fmt: skip


def made(
    folder: Path, rows: list[Conditioning], references: Sequence[np.ndarray] = (), **options: Any
) -> np.ndarray:
    """One canvas's frames as they are decoded, uint8 [T, H, W, 3]."""
    installed, settings = opened(folder, **options)
    with Networks(model_of(installed)) as networks:
        texts = read_texts(networks, PROMPT, settings)
        canvas = lay_canvas(
            networks, settings, rows, [as_tensor(look[None]) for look in references]
        )
        latents = make_video_latents(networks, texts, canvas, settings, settings.seed)
        return np.concatenate(list(decode_frames(networks, latents)))


@pytest.mark.parametrize("what", ["head", "region", "references"])
def test_vace_beyond_pictures(what: str, folder_of: Callable[[str], Path]) -> None:
    """A moving start, a region to be made anew, and pictures that say how things look."""
    frames, given = clip(FRAMES, SIZE), np.zeros((FRAMES, *SIZE[::-1]))
    looks = clip(2, SIZE, seed=3) if what == "references" else frames[:0]
    if what == "region":
        given[:] = 1
        given[:, 9:31, 20:51] = 0
        given[4:, 31:40, 20:30] = 0
        rows = [as_row(frames, 0, given)]
    else:
        known = 5 if what == "head" else 1
        given[:known] = 1
        rows = [as_row(frames[:known], 0)]
    references = [Image.fromarray(look) for look in looks] or None
    expected = given_to_diffusers(frames, given, references)
    compare(f"VACE, {what}", made(folder_of("vace"), rows, looks), expected)
    assert psnr(expected * 255, from_text()) < 40


def test_vace_is_shown_references(folder_of: Callable[[str], Path], pictures: list[Path]) -> None:
    looks = ["--reference", str(pictures[0]), "--reference", str(pictures[1])]
    words = [PROMPT, *looks, "--guidance-scale", "5"]
    frames = ours("generate", words, folder_of("vace"), "2.1")
    references = [Image.open(picture) for picture in pictures]
    expected = expected_of("vace", reference_images=references)
    compare("VACE, text and two references", frames, expected)
    assert psnr(frames, from_text()) < 40


# ---------------------------------------------------------------- known latents put back


@pytest.mark.parametrize("family", ["t2v", "t2v-a14b"])
def test_a_model_of_text_alone_keeps_what_is_given(
    family: str, folder_of: Callable[[str], Path]
) -> None:
    """diffusers has no such mode: frame 0 is what its autoencoder makes of the picture."""
    picture = clip(1, SIZE)
    frames = made(folder_of(family), [as_row(picture, 0)])
    vae = pipeline(family).vae
    with torch.no_grad():
        latents = vae.encode(as_tensor(picture)).latent_dist.mode()
        decoded = vae.decode(latents).sample[0, :, 0].permute(1, 2, 0) / 2 + 0.5
    compare(f"{family}, the given frame", frames[0], decoded.clamp(0, 1).numpy())
    assert psnr(frames[1:], made(folder_of(family), [])[1:] / 255) < 40


# ---------------------------------------------------------------- what a family cannot


REFUSED = {
    "text to video of i2v": ("i2v", "generate PROMPT", "t2v"),
    "text to video of flf2v": ("flf2v", "generate PROMPT", "t2v"),
    "text to video of i2v-a14b": ("i2v-a14b", "generate PROMPT", "t2v"),
    "a picture of i2v": ("i2v", "image PROMPT", "t2v"),
    "one picture of flf2v": ("flf2v", "animate FIRST PROMPT", "i2v"),
    "two pictures of i2v": ("i2v", "animate FIRST PROMPT --last LAST", "flf2v"),
    "a picture of t2v": ("t2v", "animate FIRST PROMPT", "i2v"),
    "two pictures of t2v-a14b": ("t2v-a14b", "animate FIRST PROMPT --last LAST", "flf2v"),
    "a clip of i2v": ("i2v", "extend CLIP PROMPT --by 1s", "given"),
    "a clip of flf2v": ("flf2v", "loop CLIP PROMPT", "given"),
    "a region of t2v": ("t2v", "edit CLIP PROMPT --mask FIRST", "mask"),
    "a region of i2v-a14b": ("i2v-a14b", "edit CLIP PROMPT --mask FIRST", "mask"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_family_that_cannot_names_models_that_can(
    case: str,
    folder_of: Callable[[str], Path],
    pictures: list[Path],
    moving: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line and a hint, before any weights are opened: here there are none."""
    family, words, ability = REFUSED[case]
    emptied = shutil.ignore_patterns("*.safetensors")
    folder = shutil.copytree(folder_of(family), tmp_path / "models" / family, ignore=emptied)
    first, last = map(str, pictures)
    typed = {"PROMPT": PROMPT, "FIRST": first, "LAST": last, "CLIP": str(moving)}
    output = tmp_path / ("out.png" if words.startswith("image") else "out.mkv")
    command = [typed.get(word, word) for word in words.split()]
    capsys.readouterr()
    assert main([*command, "-m", str(folder), "--quiet", "-o", str(output)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and not output.exists()
    error, hint = printed.err.strip().splitlines()
    assert error.startswith(f"error: {family} cannot ")
    able = re.findall(r"-m (\S+)", hint)
    assert hint.startswith("hint: ") and able
    assert all(ability in manifest.find(name).spec.abilities for name in able)
