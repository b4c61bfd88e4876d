"""The same weights in other layouts, with LoRAs, in 8 bits and in few steps, through `sora -m`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from sora_cli.models.specs import FAMILIES
from sora_cli.pipeline.generate import schedule_of
from sora_cli.pipeline.request import Request, resolve
from sora_cli.weights import manifest, records
from tests import original_layout, wan_folders
from tests.test_conditioning import clip
from tests.test_pipeline_parity import PROMPT, SIZES, compare, ours, psnr, theirs

PUBLISHED = (2, 128)  # heads as in every published transformer, so that none needs a config
# What single files do not say, and the folder's scheduler does.
ALIKE = ("--shift", "3", "--sampler", "unipc", "--guidance-scale", "5", "--steps", "3")
ALIKE_TWO = (*ALIKE, "--guidance-scale-2", "4")
RANK = 3

MAKERS: dict[str, Callable[[], Any]] = {
    "t2v": lambda: original_layout.published(wan_folders.wan21()),
    "ti2v": lambda: original_layout.published(wan_folders.wan22()),
    "t2v-a14b": lambda: wan_folders.t2v_a14b(PUBLISHED),
    "i2v-a14b": lambda: wan_folders.i2v_a14b(PUBLISHED),
    "vace": lambda: wan_folders.vace(PUBLISHED),
    "flf2v": lambda: wan_folders.flf2v(PUBLISHED),
}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a family's weights in `diffusers/`, `original/` and `files/`."""

    @cache
    def of(family: str) -> Path:
        root = tmp_path_factory.mktemp("layouts") / family
        folder = wan_folders.save(MAKERS[family](), root / "diffusers")
        original_layout.write_original(folder, root / "original")
        parts = original_layout.write_single_files(folder, root / "files")
        shutil.copytree(folder / "tokenizer", root / "files" / "tokenizer")
        if "transformer_2" in parts:  # told apart by their names, as they are published
            for part, name in (("transformer", "high_noise"), ("transformer_2", "low_noise")):
                parts[part].rename(root / "files" / f"wan_{name}.safetensors")
        return root

    return of


def pictures(folder: Path, size: tuple[int, int]) -> list[str]:
    """Two pictures, written to a folder."""
    paths = [folder / "first.png", folder / "last.png"]
    for path, frame in zip(paths, clip(2, size), strict=True):
        Image.fromarray(frame).save(path)
    return [str(path) for path in paths]


def as_files(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """`-m` and the options that name the other files."""
    vae, text_encoder = (str(folder / f"{part}.safetensors") for part in ("vae", "text_encoder"))
    return folder / "transformer.safetensors", ("--vae", vae, "--text-encoder", text_encoder)


@pytest.mark.parametrize("family", ["t2v", "ti2v", "vace"])
def test_every_layout_makes_the_same_video(family: str, layouts: Callable[[str], Path]) -> None:
    root, layout = layouts(family), "2.2" if family == "ti2v" else "2.1"
    frames = ours("generate", [PROMPT], root / "diffusers", layout, *ALIKE)
    assert frames.std() > 25
    original = ours("generate", [PROMPT], root / "original", layout, *ALIKE)
    assert np.array_equal(original, frames)
    transformer, others = as_files(root / "files")
    single = ours("generate", [PROMPT], transformer, layout, *ALIKE, *others)
    assert np.array_equal(single, frames)
    folder = ours("generate", [PROMPT], root / "files", layout, *ALIKE)
    assert np.array_equal(folder, frames)


@pytest.mark.parametrize("layout", ["original", "files"])
def test_two_experts_in_every_layout(layout: str, layouts: Callable[[str], Path]) -> None:
    root = layouts("t2v-a14b")
    frames = ours("generate", [PROMPT], root / "diffusers", "2.1", *ALIKE_TWO)
    assert np.array_equal(ours("generate", [PROMPT], root / layout, "2.1", *ALIKE_TWO), frames)


@pytest.mark.parametrize("layout", ["original", "files"])
def test_animate_in_every_layout(
    layout: str, layouts: Callable[[str], Path], tmp_path: Path
) -> None:
    root, words = layouts("i2v-a14b"), [pictures(tmp_path, SIZES["2.1"])[0], PROMPT]
    frames = ours("animate", words, root / "diffusers", "2.1", *ALIKE_TWO)
    assert np.array_equal(ours("animate", words, root / layout, "2.1", *ALIKE_TWO), frames)


def test_clip_in_a_file_of_either_layout(layouts: Callable[[str], Path], tmp_path: Path) -> None:
    """Files alone are shown pictures as Wan's own code shows them, folders as diffusers does."""
    first, last = pictures(tmp_path, SIZES["2.1"])
    words, root = [first, PROMPT, "--last", last], layouts("flf2v")
    original, files, folder = (
        ours("animate", words, root / layout, "2.1", *ALIKE)
        for layout in ("original", "files", "diffusers")
    )
    assert np.array_equal(original, files)
    assert psnr(original, folder / 255) > 20


# ---------------------------------------------------------------- LoRAs


def lora_of(folder: Path, part: str, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """A random (up, down) for some linear layers, by their names in diffusers."""
    generator = torch.Generator().manual_seed(seed)
    state = original_layout.read_state(folder / part)
    names = [name for name in sorted(state) if name.startswith("blocks.") and state[name].ndim == 2]
    return {
        name.removesuffix(".weight"): (
            torch.randn(state[name].shape[0], RANK, generator=generator) / 8,
            torch.randn(RANK, state[name].shape[1], generator=generator) / 8,
        )
        for name in names[::3]
        if name.endswith(".weight")
    }


def write_lora(path: Path, lora: Mapping[str, tuple[Tensor, Tensor]], *, kohya: bool) -> Path:
    """As musubi-tuner writes them, with an alpha, or as diffusers does."""
    state: dict[str, Tensor] = {}
    for name, (up, down) in lora.items():
        if kohya:
            original = original_layout.transformer_name(f"{name}.weight").removesuffix(".weight")
            stem = f"lora_unet_{original.replace('.', '_')}"
            state[f"{stem}.lora_down.weight"], state[f"{stem}.lora_up.weight"] = down, up
            state[f"{stem}.alpha"] = torch.tensor(float(RANK))
        else:
            state[f"transformer.{name}.lora_A.weight"] = down
            state[f"transformer.{name}.lora_B.weight"] = up
    save_file(state, path)
    return path


def merged(
    folder: Path, target: Path, loras: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]],
    scale: float,
) -> Path:  # fmt: skip
    """A copy of a folder with W + scale·up·down for each part."""
    shutil.copytree(folder, target)
    for part, lora in loras.items():
        state = original_layout.read_state(folder / part)
        for name, (up, down) in lora.items():
            change = (up.double() @ down.double()) * scale
            state[f"{name}.weight"] = (state[f"{name}.weight"].double() + change).float()
        (path,) = (target / part).glob("*.safetensors")
        save_file(state, path)
    return target


def pair_of(folder: Path) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """A LoRA for each of two experts."""
    seeds = {"transformer": 1, "transformer_2": 2}
    return {part: lora_of(folder, part, seed) for part, seed in seeds.items()}


def nearly_equal(what: str, frames: np.ndarray, expected: np.ndarray) -> None:
    """The same 8-bit values, but for the few that round the other way."""
    error = np.mean((frames.astype(float) - expected) ** 2) / 255**2
    figure = -10 * np.log10(max(error, 1e-12))
    differing = np.mean(frames != expected)
    print(  # noqa: T201
        f"parity: pipeline, {what}: {figure:.1f} dB, at least 80; "
        f"{differing:.3%} of the 8-bit values differ"
    )
    assert figure >= 80


@pytest.mark.parametrize("kohya", [True, False], ids=["kohya", "diffusers"])
def test_a_lora_is_its_merged_weights(
    kohya: bool, layouts: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = layouts("t2v") / "diffusers"
    lora = lora_of(folder, "transformer", seed=21)
    path = write_lora(tmp_path / "style.safetensors", lora, kohya=kohya)
    by_hand = merged(folder, tmp_path / "merged", {"transformer": lora}, scale=0.7)
    frames = ours("generate", [PROMPT], folder, "2.1", *ALIKE, "--lora", f"{path}=0.7")
    expected = ours("generate", [PROMPT], by_hand, "2.1", *ALIKE)
    nearly_equal("a LoRA against merged weights", frames, expected)
    without = ours("generate", [PROMPT], folder, "2.1", *ALIKE)
    assert psnr(without, expected / 255) < 40


@pytest.mark.parametrize("named", [True, False], ids=["high: and low:", "by their names"])
def test_a_pair_of_loras_goes_to_its_experts(
    named: bool, layouts: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = layouts("t2v-a14b") / "diffusers"
    loras = pair_of(folder)
    paths = [
        write_lora(tmp_path / f"style_{name}.safetensors", loras[part], kohya=True)
        for name, part in (("high", "transformer"), ("low", "transformer_2"))
    ]
    starts = ("high:", "low:") if named else ("", "")

    def with_loras(*starts: str) -> np.ndarray:
        words = [f"--lora={start}{path}" for start, path in zip(starts, paths, strict=True)]
        return ours("generate", [PROMPT], folder, "2.1", *ALIKE_TWO, *words)

    by_hand = merged(folder, tmp_path / "merged", loras, scale=1.0)
    expected = ours("generate", [PROMPT], by_hand, "2.1", *ALIKE_TWO)
    nearly_equal("a high and low pair against merged weights", with_loras(*starts), expected)
    if named:
        assert psnr(with_loras("low:", "high:"), expected / 255) < 40


# ---------------------------------------------------------------- 8 bits


@pytest.mark.parametrize("family", ["t2v", "t2v-a14b", "vace"])
def test_weights_in_8_bits_make_nearly_the_same(
    family: str, layouts: Callable[[str], Path]
) -> None:
    folder, alike = layouts(family) / "diffusers", ALIKE_TWO if family == "t2v-a14b" else ALIKE
    exact = ours("generate", [PROMPT], folder, "2.1", *alike)
    rough = ours("generate", [PROMPT], folder, "2.1", *alike, "--quantization", "fp8")
    figure = psnr(rough, exact / 255)
    print(f"parity: {family}, weights in 8 bits against fp32: {figure:.1f} dB")  # noqa: T201
    assert 15 < figure < 60


# ---------------------------------------------------------------- few steps


def test_lightx2v_changes_experts_after_two_steps() -> None:
    row = manifest.find("wan2.2-lightx2v-t2v")
    settings, _ = resolve(Request(prompt="x"), row.put_on(FAMILIES["wan2.2-t2v-a14b"]))
    schedule = schedule_of(settings)
    assert (settings.sampler, settings.guidance_scale, settings.guidance_scale_2) == ("euler", 1, 1)
    assert schedule.sigmas == pytest.approx((1, 0.9375, 5 / 6, 0.625, 0), abs=1e-7)
    assert schedule.timesteps == pytest.approx((1000, 937.5, 5000 / 6, 625), abs=1e-4)
    for family in ("wan2.2-t2v-a14b", "wan2.2-i2v-a14b"):
        boundary = FAMILIES[family].boundary
        assert boundary is not None
        assert [t >= 1000 * boundary for t in schedule.timesteps] == [True, True, False, False]


def test_fastwan_is_told_its_three_steps() -> None:
    settings, _ = resolve(Request(prompt="x"), manifest.find("fastwan2.2-ti2v-5b").spec)
    assert (settings.sampler, settings.guidance_scale) == ("renoise", 1)
    schedule = schedule_of(settings)
    assert schedule.sigmas == pytest.approx((1, 0.757, 0.522, 0), abs=1e-7)
    assert schedule.timesteps == pytest.approx((1000, 757, 522), abs=1e-4)


def pull(name: str, kind: str, parts: Mapping[str, Path]) -> None:
    """As if these parts had been pulled under a name of the manifest."""
    records.write(records.Record(name=name, kind=kind, parts=parts, files=()))


def few_steps(pipeline: WanPipeline, scheduler: Any, layout: str, steps: int) -> np.ndarray:
    own, pipeline.scheduler = pipeline.scheduler, scheduler
    try:
        return theirs(layout, made_by=pipeline, guidance_scale=1.0, num_inference_steps=steps)
    finally:
        pipeline.scheduler = own


def test_lightx2v_is_four_steps_of_euler(layouts: Callable[[str], Path], tmp_path: Path) -> None:
    """The LoRA's row of the manifest brings steps, noise levels, sampler and guidance."""
    folder = layouts("t2v-a14b") / "diffusers"
    loras = pair_of(folder)
    pull(
        "wan2.2-lightx2v-t2v", "lora",
        {
            "high": write_lora(tmp_path / "a.safetensors", loras["transformer"], kohya=True),
            "low": write_lora(tmp_path / "b.safetensors", loras["transformer_2"], kohya=True),
        },
    )  # fmt: skip
    by_hand, reference = merged(folder, tmp_path / "merged", loras, scale=1.0), MAKERS["t2v-a14b"]()
    for part in loras:
        getattr(reference, part).load_state_dict(original_layout.read_state(by_hand / part))
    scheduler = wan_folders.euler(1.0)
    own = scheduler.set_timesteps
    scheduler.set_timesteps = lambda steps, device=None: own(
        sigmas=[1, 0.9375, 5 / 6, 0.625], device=device
    )
    expected = few_steps(reference, scheduler, "2.1", 4)
    options = ("--lora", "wan2.2-lightx2v-t2v", "--steps", "4")
    frames = ours("generate", [PROMPT], folder, "2.1", *options)
    compare("T2V-A14B, LightX2V's 4 steps", frames, expected)


class Renoising:
    """FastWan's sampling as a scheduler of diffusers': predict x0, then noise it anew."""

    order = 1
    config = SimpleNamespace(num_train_timesteps=1000)
    timesteps = torch.tensor([1000.0, 757.0, 522.0])
    sigmas = timesteps / 1000

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        assert num_inference_steps == 3
        self.count = 0

    def set_begin_index(self, index: int) -> None:
        assert index == 0

    def step(self, velocity: Tensor, t: Tensor, sample: Tensor, **_: Any) -> tuple[Tensor]:
        clean = sample - t / 1000 * velocity
        self.count += 1
        if self.count == 3:
            return (clean,)
        # The program's own noise: of a step, from the video's seed.
        generator = torch.Generator().manual_seed((7 << 10) + self.count - 1)
        noise = torch.randn(clean.shape, generator=generator)
        sigma = self.sigmas[self.count]
        return ((1 - sigma) * clean + sigma * noise,)


def test_fastwan_is_three_steps_of_renoising(
    layouts: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = layouts("ti2v") / "diffusers"
    parts = ("transformer", "vae", "text_encoder", "tokenizer")
    pull("fastwan2.2-ti2v-5b", "model", {part: folder / part for part in parts})
    reference = MAKERS["ti2v"]()
    expected = few_steps(reference, Renoising(), "2.2", 3)
    model, target = "fastwan2.2-ti2v-5b", tmp_path / "out.mkv"
    frames = ours("generate", [PROMPT], model, "2.2", "--steps", "3", target=target)
    compare("TI2V, FastWan's 3 steps", frames, expected)
