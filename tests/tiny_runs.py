"""Runs of the embedded model at sizes that take half a second, for tests of the whole path."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from sora_cli.cli.main import main
from sora_cli.media import ffmpeg
from sora_cli.weights import store

SCRIPT = Path(sys.executable).with_name("sora.exe" if os.name == "nt" else "sora")
PROMPT = "a red ball bounces on the snow at sunset"
# For `python -c`: a process that keeps every state, as a slow model's does.
EAGER = "from sora_cli.runs import run; run.KEEP_SECONDS = 0; run.KEEP_SHARE = 1e9; "
SORA = "from sora_cli.cli.main import run; run()"
SMALL = ("--size", "64x64", "--num-frames", "5", "--steps", "2", "--no-expand")


def generate(*words: str | Path, prompt: str = PROMPT, seed: int | None = 1) -> int:
    """`sora generate` in this process; returns the exit code."""
    seeds = () if seed is None else ("--seed", str(seed))
    return main(["generate", prompt, *SMALL, *seeds, *map(str, words)])


def script(*words: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """The installed `sora` as a process of its own, in a folder of its own (`cwd`)."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([str(SCRIPT), *map(str, words)], **streams)


def frames_of(video: Path | bytes, width: int = 64, height: int = 64) -> np.ndarray:
    """The frames [T, H, W, 3] of a video file, or of one that came through a pipe."""
    source = "pipe:0" if isinstance(video, bytes) else f"file:{video}"
    command = [ffmpeg.executable(), "-v", "error", "-i", source, "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    given = video if isinstance(video, bytes) else None
    made = subprocess.run(command, input=given, capture_output=True, check=True)
    assert made.stderr == b""
    return np.frombuffer(made.stdout, np.uint8).reshape(-1, height, width, 3)


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def moving_folder(folder: Path, count: int = 9) -> np.ndarray:
    """A folder of PNGs that `sora` reads as a clip; returns its frames [T, 64, 64, 3]."""
    frames = (np.arange(count * 64 * 64 * 3) % 251).astype(np.uint8).reshape(count, 64, 64, 3)
    folder.mkdir()
    for number, frame in enumerate(frames, 1):
        Image.fromarray(frame).save(folder / f"{number:06d}.png")
    return frames


def style(path: Path, *, seed: int = 1) -> Path:
    """A LoRA of the embedded model that changes one matrix."""
    folder = store.locate("tiny").folder
    assert folder is not None
    config = json.loads((folder / "transformer" / "config.json").read_text())
    width = config["num_attention_heads"] * config["attention_head_dim"]
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(s, generator=generator) / 4 for s in ((2, width), (width, 2)))
    module = "diffusion_model.blocks.0.self_attn.q"
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, path)
    return path


def copy_of_tiny(target: Path) -> Path:
    """The embedded model in a folder that a test may damage."""
    shutil.copytree(store.locate("tiny").folder, target)
    return target
