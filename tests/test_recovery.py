"""Disks that fill, encoders that die, memory that runs out: what is left, and how it goes on."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sora_cli.cli.main import main
from sora_cli.cli.output import Output
from sora_cli.media import recipe as recipes
from sora_cli.models.dit import DiT
from sora_cli.models.text_encoder import TextEncoder
from sora_cli.models.vae import Decoder
from sora_cli.pipeline.events import Event
from sora_cli.runs import folders
from sora_cli.runtime import plan
from sora_cli.runtime.paths import cache_dir
from tests.tiny_runs import EAGER, PROMPT, SMALL, SORA, frames_of, generate, names_in

Capture = pytest.CaptureFixture[str]


# ---------------------------------------------------------------- disks


def limited(name: str, size: int, *words: str) -> subprocess.CompletedProcess[bytes]:
    """A process that cannot write files of more than `size` bytes, as on a disk that fills."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    command = [sys.executable, "-c", EAGER + SORA, "generate", PROMPT, *words, "-o", name]
    return subprocess.run([*command, "--progress", "none"], preexec_fn=limit, capture_output=True)


def test_a_full_state_folder_is_no_reason_to_fail(here: Path) -> None:
    """States do not fit, the output does."""
    words = ["--size", "128x128", "--num-frames", "9", "--steps", "1", "--no-expand"]
    done = limited("a.mp4", 20_000, *words, "--sampler", "unipc", "--crf", "51", "--seed", "1")
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 0, lines
    assert [line.split(" in ")[0] for line in lines] == ["note: unfinished work cannot be kept"]
    assert lines[0].endswith("File too large; the work goes on without")
    assert names_in(here) == ["a.mp4"]


@pytest.mark.slow
def test_no_space_for_the_output_loses_nothing(here: Path) -> None:
    """The states are there: with space for the output nothing is made twice."""
    words = ["--size", "128x128", "--num-frames", "9", "--steps", "2", "--no-expand", "--seed", "1"]
    done = limited("a.mkv", 60_000, *words)
    assert done.returncode == 1
    assert b"could not write a.mkv" in done.stderr
    (found,) = folders.stored()
    assert (found.state, found.status["step"]) == ("failed", 2)
    events: list[Event] = []
    out = Output()
    out.observe = events.append  # type: ignore[method-assign]
    assert main(["resume"], output=out) == 0
    assert not [event for event in events if event.phase == "denoise" and event.step]
    assert names_in(here) == ["a.mkv"]


def test_a_state_folder_that_is_read_only(here: Path, own_folders: Path, capsys: Capture) -> None:
    """Root may write anywhere, so a file where the folder should be stands in."""
    own_folders.mkdir(parents=True, exist_ok=True)
    (own_folders / "state").write_text("")
    assert generate("-o", "a.mp4", "--progress", "none") == 0
    assert "note: unfinished work cannot be kept in " in capsys.readouterr().err


def test_a_full_cache_is_no_reason_to_fail(here: Path, own_folders: Path) -> None:
    """What would be remembered does not fit, nor stays a part of it; the video is made."""
    words = ["--size", "64x64", "--num-frames", "5", "--steps", "1", "--expand", "--seed", "1"]
    assert main(["generate", PROMPT, *words, "-o", "a.mp4", "--progress", "none"]) == 0
    sizes = [path.stat().st_size for path in cache_dir().rglob("*") if path.is_file()]
    abandoned = next(path.parent for path in cache_dir().rglob("*") if path.is_file()) / "x.7.tmp"
    shutil.rmtree(cache_dir())
    abandoned.parent.mkdir(parents=True)
    abandoned.touch()  # of a process that was killed, a day ago
    os.utime(abandoned, (time.time() - 86400,) * 2)
    large = max(sizes)
    assert large > (here / "a.mp4").stat().st_size, "else the output would not fit either"
    done = limited("b.mp4", large - 1, *words)
    assert done.returncode == 0, done.stderr
    left = [path for path in cache_dir().rglob("*") if path.is_file()]
    assert len(left) < len(sizes) and not [path for path in left if path.suffix == ".tmp"]


@pytest.mark.slow
def test_ffmpeg_that_dies_is_resumed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is killed when half of the frames have been sent."""
    from sora_cli.media import ffmpeg

    send = ffmpeg.Encoder.send

    def dies(self: Any, frames: np.ndarray) -> None:
        self.kill()
        send(self, frames)

    assert main(["generate", PROMPT, *SMALL, "--seed", "1", "-o", "whole.mkv"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(ffmpeg.Encoder, "send", dies)
        assert generate("-o", "a.mkv") == 1
    assert names_in(here) == ["whole.mkv"]
    assert main(["resume"]) == 0
    assert np.array_equal(frames_of(here / "a.mkv"), frames_of(here / "whole.mkv"))


# ---------------------------------------------------------------- memory


def failing(
    monkeypatch: pytest.MonkeyPatch, calls: set[int], part: type[torch.nn.Module] = DiT
) -> list[int]:
    """A network whose allocations fail at these calls; returns the count of calls."""
    forward, count = part.forward, [0]

    def fails(self: torch.nn.Module, *arguments: Any, **named: Any) -> torch.Tensor:
        count[0] += 1
        if count[0] in calls:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, *arguments, **named)

    monkeypatch.setattr(part, "forward", fails)
    return count


def test_out_of_memory_goes_on_with_less(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Twice in one video; the states stay, so no step is made twice."""
    words = ["generate", PROMPT, "--size", "64x64", "--num-frames", "5", "--steps", "6"]
    words += ["--no-expand", "--seed", "1", "--progress", "none"]
    assert main([*words, "-o", "whole.mkv"]) == 0
    with monkeypatch.context() as patch:
        count = failing(patch, {3, 6})
        assert main([*words, "-o", "a.mkv"]) == 0
    assert count == [6 + 2]
    notes = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert len(notes) == 2 and notes[0] != notes[1]
    assert np.array_equal(frames_of(here / "a.mkv"), frames_of(here / "whole.mkv"))
    assert (
        recipes.read(here / "a.mkv")["memory_plan"]
        != recipes.read(here / "whole.mkv")["memory_plan"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", [TextEncoder, Decoder], ids=["encode", "decode"])
def test_out_of_memory_in_another_phase(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, part: type[torch.nn.Module]
) -> None:
    """Before there is a state, and when all of them are done: the same frames."""
    assert generate("-o", "whole.mkv") == 0
    shutil.rmtree(cache_dir(), ignore_errors=True)  # it remembers how the prompt is encoded
    with monkeypatch.context() as patch:
        count = failing(patch, {1}, part)
        assert generate("-o", "a.mkv") == 0
    assert count[0] > 1 and "out of memory: going on with less" in capsys.readouterr().err
    assert np.array_equal(frames_of(here / "a.mkv"), frames_of(here / "whole.mkv"))


@pytest.mark.slow
def test_no_memory_at_all_is_an_error_that_can_be_resumed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, set(range(2, 100)))
        assert generate("-o", "a.mkv") == 4
    assert "error: out of memory" in capsys.readouterr().err
    assert names_in(here) == []
    assert folders.find(None).state == "failed"
    assert main(["resume"]) == 0
    assert generate("-o", "whole.mkv") == 0
    # The smallest plan, with which it goes on, has 8-bit weights: nearly the same picture.
    difference = frames_of(here / "a.mkv").astype(int) - frames_of(here / "whole.mkv")
    assert abs(difference).mean() < 2


def test_the_ladder_of_plans_ends() -> None:
    """However often memory runs out, going on ends: each plan needs less than the one before."""
    plans = tuple(plan.MemoryPlan(name=str(n), peak_bytes=n) for n in (3, 2, 1))
    chosen: list[str] = []
    current: plan.MemoryPlan | None = plans[0]
    while current is not None:
        chosen.append(current.name)
        current = plan.next_plan(plans, current)
    assert chosen == ["3", "2", "1"]
