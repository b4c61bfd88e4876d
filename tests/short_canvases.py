"""The embedded model with canvases of 13 frames, so that videos of many of them are quick."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from sora_cli.models.specs import TINY
from sora_cli.pipeline.networks import Model, Networks
from sora_cli.pipeline.request import Request, Settings, resolve
from sora_cli.runtime.plan import MemoryPlan
from sora_cli.weights import store

SIDE, CANVAS = 64, 13  # pixels; frames of a canvas


def short_networks() -> Networks:
    """To be closed; later canvases are as long as the first."""
    spec = replace(TINY, num_frames=CANVAS, trained_frames=CANVAS, frames_onward=None)
    return Networks(
        Model(
            spec=spec, parts=store.locate("tiny").parts, device=torch.device("cpu"),
            dtype=torch.float32, plan=MemoryPlan(),
        )
    )  # fmt: skip


def short_settings(networks: Networks) -> Settings:
    """Of one canvas in two steps."""
    request = Request(
        prompt="a red ball rolls left", width=SIDE, height=SIDE, num_frames=CANVAS,
        num_inference_steps=2, seed=3, expand=False,
    )  # fmt: skip
    return resolve(request, networks.model.spec)[0]


def clip(num_frames: int, seed: int = 0) -> np.ndarray:
    """A bright square that goes right over a gradient, uint8 [T, h, w, 3]."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    frames = []
    for number in range(num_frames):
        ball = 120.0 * (abs(x - 8 - 2 * number) < 6) * (abs(y - 30 - seed) < 6)
        frames.append(np.stack([60 + x + ball, 90 + y / 2, 120 - x / 2 + 10 * seed], axis=-1))
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)
