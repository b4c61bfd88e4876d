"""Golden latents of the embedded model: the same numbers as when they were written.

CPU, fp32, one thread, fixed seed. `make golden` writes them anew, on purpose, when the weights or
the mathematics change; nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sora_cli.pipeline.canvas import Conditioning
from sora_cli.pipeline.generate import (
    decode_frames,
    lay_canvas,
    make_video_latents,
    read_texts,
)
from sora_cli.pipeline.networks import Model, Networks
from sora_cli.pipeline.request import Request, Settings, resolve
from sora_cli.runtime.plan import MemoryPlan
from sora_cli.weights import store

FILE = Path(__file__).parent / "goldens" / "tiny.safetensors"
PROMPT = "a red ball bounces on the snow at sunset"
# Processors round sums differently: about 1e-6 a step at latents of size 1, grown by guidance.
ATOL = 1e-4
CASES = {
    "generate": {},
    "unipc": {"sampler": "unipc"},
    "original_grid": {"sampler": "unipc", "sigma_grid": "original", "guidance_scale": 1.0},
    "animate": {},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings_of(**choices: object) -> Settings:
    request = Request(
        prompt=PROMPT, width=96, height=64, num_frames=9, num_inference_steps=4, seed=11,
        guidance_scale=3.0, shift=3.0, sampler="euler", expand=False,
    )  # fmt: skip
    installed = store.locate("tiny")
    settings, _ = resolve(replace(request, **choices), installed.spec)
    return settings


def picture() -> np.ndarray:
    y, x = np.mgrid[:64, :96]
    return np.stack([140 + x, 90 + y, 200 - x], -1).clip(0, 255).astype(np.uint8)  # [H, W, 3]


def make(name: str) -> dict[str, Tensor]:
    """The latents of one case, and the last frame that they become."""
    installed = store.locate("tiny")
    settings = settings_of(**CASES[name])
    model = Model(
        spec=installed.spec, parts=installed.parts, device=torch.device("cpu"),
        dtype=torch.float32, plan=MemoryPlan(),
    )  # fmt: skip
    video = torch.from_numpy(picture()).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    rows = [Conditioning(frames=video, index=0)] if name == "animate" else []
    with Networks(model) as networks:
        texts = read_texts(networks, PROMPT, settings)
        canvas = lay_canvas(networks, settings, rows)
        latents = make_video_latents(networks, texts, canvas, settings, settings.seed)
        chunks = list(decode_frames(networks, latents))
    last = torch.from_numpy(np.concatenate(chunks)[-1].copy())  # [H, W, 3]
    return {f"{name}.latents": latents.contiguous(), f"{name}.last_frame": last}


def test_goldens_are_written_or_belong_to_these_weights(write_golden: bool) -> None:
    weights = store.identity(store.locate("tiny"))
    if write_golden:
        tensors = {key: value for name in CASES for key, value in make(name).items()}
        FILE.parent.mkdir(exist_ok=True)
        save_file(tensors, FILE, metadata={"weights": weights})
        FILE.chmod(0o644)
    with safe_open(FILE, framework="pt") as file:
        assert file.metadata()["weights"] == weights, "the embedded weights changed: make golden"


@pytest.mark.parametrize("name", CASES)
def test_latents_are_the_golden_ones(name: str) -> None:
    made = make(name)
    with safe_open(FILE, framework="pt") as file:
        latents = file.get_tensor(f"{name}.latents")
        last = file.get_tensor(f"{name}.last_frame")
    assert latents.shape == (1, 48, 3, 4, 6)
    torch.testing.assert_close(made[f"{name}.latents"], latents, rtol=0, atol=ATOL)
    steps = (made[f"{name}.last_frame"].int() - last.int()).abs().max().item()
    assert steps <= 1, f"a colour is {steps} of 255 away"
