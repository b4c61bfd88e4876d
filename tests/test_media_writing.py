"""What is written after the last frame, long GIFs, and clips at other rates."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import moving, run
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_cli.media import reader, resample, video
from sora_cli.media import recipe as recipes
from sora_cli.media.timing import exact

ROOT = Path(__file__).parents[1]
NAMES = ["a.mp4", "a.webm", "a.gif", "a.webp", "a.mkv", "frames"]


def counted(count: int) -> tuple[Iterator[np.ndarray], dict]:
    """Frames one by one, and a recipe that knows how many were taken."""
    measured: dict = {"schema": 1, "prompt": "a; b=c\n", "taken": 0}

    def chunks() -> Iterator[np.ndarray]:
        for frame in moving(count):
            measured["taken"] += 1
            yield frame[None]

    return chunks(), measured


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_asked_for_at_the_end_knows_what_was_measured(tmp_path: Path, name: str) -> None:
    chunks, measured = counted(7)
    video.write(tmp_path / name, chunks, width=48, height=32, fps=16, recipe=lambda: dict(measured))
    assert recipes.read(tmp_path / name) == measured and measured["taken"] == 7
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "xdg"] == [name]
    assert reader.open_clip(tmp_path / name).num_frames == 7


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv"])
def test_the_second_pass_changes_no_frame_and_no_time(tmp_path: Path, name: str) -> None:
    def packets(path: Path) -> list[str]:
        shown = run("-i", str(path), "-c", "copy", "-f", "framemd5", "-").decode()
        return [line for line in shown.splitlines() if line[:1] == "0"]

    options = {"width": 48, "height": 32, "fps": 24000 / 1001}
    recipe = {"schema": 1}
    video.write(tmp_path / name, iter([moving(20)]), recipe=recipe, **options)
    video.write(tmp_path / f"late-{name}", iter([moving(20)]), recipe=lambda: recipe, **options)
    assert packets(tmp_path / name) == packets(tmp_path / f"late-{name}")
    data = (tmp_path / f"late-{name}").read_bytes()
    if name == "a.mp4":
        assert data.index(b"moov") < data.index(b"mdat")
    clip = reader.open_clip(tmp_path / f"late-{name}")
    assert (clip.fps, clip.num_frames) == (Fraction(24000, 1001), 20)


def test_a_live_stream_has_its_recipe_before_its_frames(tmp_path: Path) -> None:
    for kind, taken in (("mp4", 1), ("mkv", 1), ("gif", 7), ("webp", 7)):
        chunks, measured = counted(7)
        sink = io.BytesIO()
        video.write(
            sink,
            chunks,
            width=48,
            height=32,
            fps=16,
            recipe=lambda m=measured: dict(m),
            format=kind,
        )
        (tmp_path / "a").write_bytes(sink.getvalue())
        assert recipes.read(tmp_path / "a")["taken"] == taken, kind


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_that_fails_leaves_nothing(tmp_path: Path, name: str) -> None:
    def fails() -> dict:
        raise ValueError("stop")

    (folder := tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="stop"):
        video.write(folder / name, iter([moving(3)]), width=48, height=32, fps=16, recipe=fails)
    assert list(folder.iterdir()) == []


# ---------------------------------------------------------------- long GIFs


def test_long_gifs_are_not_kept_in_memory(tmp_path: Path) -> None:
    """Four times the frames, the same memory: ffmpeg in one pass holds 4 bytes a pixel of each."""
    code = """
        import sys, threading, time, numpy as np
        from pathlib import Path
        from sora_cli.media import ffmpeg, video
        peaks = []
        kill = ffmpeg.Encoder.finish
        def measured(self):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            peaks.append(int(status.split("VmHWM:")[1].split()[0]) / 1024)
            kill(self)
        ffmpeg.Encoder.finish = measured
        count = int(sys.argv[1])
        frame = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2).repeat(256, 1)
        chunks = (np.roll(frame, i, 0)[None] for i in range(count))
        video.write(f"{count}.gif", chunks, width=256, height=256, fps=16)
        print(max(peaks))
    """
    peaks = []
    for count in (100, 400):
        command = [sys.executable, "-c", textwrap.dedent(code), str(count)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        shown = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        peaks.append(float(shown.stdout))
    assert peaks[1] - peaks[0] < 20, peaks  # MiB; 300 frames are 79 MiB
    assert reader.open_clip(tmp_path / "400.gif").num_frames == 400


# ---------------------------------------------------------------- other rates

rates = st.sampled_from([1, 7.5, 10, 12, 15, 16, 23.976, 24, 25, 29.97, 30, 50, 59.94, 60, 120])


def numbered(count: int, size: int) -> Iterator[np.ndarray]:
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    return (frames[i : i + size] for i in range(0, count, size))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), rates, rates, st.integers(1, 40))
def test_rates_count_exactly(count: int, before: float, after: float, size: int) -> None:
    """As many frames as promised, each the one on display at its middle, in any chunks."""
    made = np.concatenate(list(resample.to_rate(numbered(count, size), before, after)))
    shown = made[:, 0, 0, 0].tolist()
    assert len(shown) == resample.count(count, before, after)
    if exact(before) == exact(after):
        assert shown == list(range(count))
    duration = len(shown) / exact(after) - count / exact(before)
    assert abs(duration) <= Fraction(1, 2) / exact(after) or len(shown) == 1
    for index, source in enumerate(shown):
        middle = (index + Fraction(1, 2)) / exact(after) * exact(before)
        assert source <= middle <= source + 1 or len(shown) == 1
    blended = resample.to_rate(numbered(count, size), before, after, "blended")
    soft = np.concatenate(list(blended))[:, 0, 0, 0]
    assert len(soft) == len(shown) and np.abs(soft.astype(int) - shown).max() <= 1


def test_doubling_and_halving() -> None:
    doubled = np.concatenate(list(resample.to_rate(numbered(3, 2), 12, 24)))[:, 0, 0, 0]
    assert doubled.tolist() == [0, 0, 1, 1, 2, 2]
    halved = np.concatenate(
        list(resample.to_rate(iter([doubled[:, None, None, None].repeat(3, 3)]), 24, 12))
    )
    assert halved[:, 0, 0, 0].tolist() == [0, 1, 2]
    apart = np.stack([np.full((1, 1, 3), value, np.uint8) for value in (0, 100, 200)])
    soft = np.concatenate(list(resample.to_rate(iter([apart]), 10, 20, "blended")))
    assert soft[:, 0, 0, 0].tolist() == [0, 25, 75, 125, 175, 200]
    assert list(resample.to_rate(iter(()), 10, 20)) == [] and resample.count(0, 10, 20) == 0


def test_rates_mean_what_people_write() -> None:
    assert exact(23.976) == exact(24000 / 1001) == Fraction(24000, 1001)
    assert exact(29.97) == Fraction(30000, 1001) and exact(59.94) == Fraction(60000, 1001)
    assert (
        exact(16) == 16
        and exact(7.5) == Fraction(15, 2)
        and exact(Fraction(1, 3)) == Fraction(1, 3)
    )
