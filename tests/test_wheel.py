"""A built wheel, installed in another environment and run from another directory."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_wheel_works_away_from_the_checkout(tmp_path: Path) -> None:
    def call(*command: str | Path) -> str:
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environ,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("sora_cli-*.whl")

    other = tmp_path / "other"
    venv.create(other, with_pip=False)
    binaries = other / ("Scripts" if os.name == "nt" else "bin")
    call(*pip, "--python", binaries / "python", "install", "--no-deps", wheel)
    # The dependencies are borrowed from this environment; its own .pth files, and so the
    # editable install of the checkout, are not followed.
    (libraries,) = other.rglob("site-packages")
    (libraries / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")

    folder = Path(call(binaries / "sora", "weights", "path", "tiny").strip())
    assert folder.is_relative_to(other)
    assert (folder / "model_index.json").is_file()
    assert "wan2.2-ti2v-5b" in call(binaries / "sora", "weights", "list")
    made = call(
        *(binaries / "sora", "generate", "a red ball", "-o", "clip.mp4", "-q"),
        *("--num-frames", "5", "--steps", "2", "--size", "64x64", "--seed", "1"),
    )
    assert made == "clip.mp4\n"
    assert (tmp_path / "clip.mp4").stat().st_size > 1000
