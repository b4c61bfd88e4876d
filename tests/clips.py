"""Small clips for tests, made with ffmpeg: every frame different, in any codec and container."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from sora_cli.media import ffmpeg


def run(*arguments: str, given: bytes | None = None) -> bytes:
    """ffmpeg's stdout; its errors fail the test."""
    command = [ffmpeg.executable(), "-hide_banner", "-v", "error", "-y", *arguments]
    ran = subprocess.run(command, input=given, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode("utf-8", "replace")
    return ran.stdout


def moving(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames of which no two are alike, nor any two after a lossy codec: uint8 [T, H, W, 3]."""
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    colours = (
        128 + 100 * np.sin(x / 9 + t / 2),
        128 + 90 * np.cos(y / 7 - t / 3),
        40 + 150 * (x > 8 + t % 30),
    )
    return np.stack(colours, -1).clip(0, 255).astype(np.uint8)


def made(path: Path, frames: np.ndarray, *options: str, fps: str = "10") -> Path:
    """Encode frames with ffmpeg's own options."""
    height, width = frames.shape[1:3]
    raw = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}"]
    run(*raw, "-framerate", fps, "-i", "pipe:0", *options, str(path), given=frames.tobytes())
    return path


def x264(group: int = 300, parameters: str = "") -> list[str]:
    """Options for H.264 with B-frames and this distance of key frames."""
    options = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", str(group), "-bf", "3"]
    return [*options, "-x264-params", f"scenecut=0:{parameters}"]
