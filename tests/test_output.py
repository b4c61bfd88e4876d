"""Outputs are whole or not there, whatever happens; what cannot work is said before any work."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sora_cli.errors import OutputError, Terminated, UsageError
from sora_cli.media import image, output, video
from sora_cli.media import recipe as recipes

ROOT = Path(__file__).parents[1]
VIDEOS = [".mp4", ".webm", ".gif", ".webp", ".mkv"]


def noise(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def save(path: str | Path, frames: np.ndarray, **options: bool | dict) -> None:
    height, width = frames.shape[1:3]
    video.write(path, iter([frames]), width=width, height=height, fps=16, **options)


def left_over(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# ---------------------------------------------------------------- whole or not there


@pytest.mark.parametrize("name", [*(f"a{s}" for s in VIDEOS), "frames"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated, ValueError, OSError])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    def chunks() -> Iterator[np.ndarray]:
        yield noise(3, 32, 32)
        assert any(entry.startswith(".sora-") for entry in left_over(tmp_path))
        raise error("stop")

    with pytest.raises(error, match="stop"):
        video.write(tmp_path / name, chunks(), width=32, height=32, fps=16)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_is_swept_away_before_it_is_marked_is_made_again(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """Another process may look between the making of a hidden file and its mark."""
    made = []

    def swept(path: Path) -> None:
        make(path)
        made.append(path)
        if len(made) < 3:
            output.sweep(tmp_path)

    place = tmp_path / ".sora-0123456789ab.part"
    with output._hidden("a.mp4", place, swept) as temporary:
        output.sweep(tmp_path)
        assert temporary.exists()
    assert len(made) == 3 and left_over(tmp_path) == []


def test_a_folder_that_is_killed_while_it_is_replaced_leaves_nothing_for_ever(
    tmp_path: Path,
) -> None:
    """Between the old folder's going and the new one's coming: the next command clears both."""
    code = """
        import os, numpy as np
        from sora_cli.media import video
        def write(**how):
            video.write("frames/", iter([np.zeros((2, 8, 8, 3), np.uint8)]), width=8, height=8,
                        fps=8, **how)
        write()
        replace, moved = os.replace, []
        def counted(*paths):
            replace(*paths)
            moved.append(paths)
            if len(moved) == 1:
                os._exit(9)
        os.replace = counted
        write(force=True)
    """
    assert python(code, tmp_path).returncode == 9
    assert len(left_over(tmp_path)) == 2
    output.sweep(tmp_path)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("name", [*(f"a{s}" for s in VIDEOS), "frames", "a.png"])
def test_full_disk(tmp_path: Path, name: str) -> None:
    """RLIMIT_FSIZE stands in for a disk that fills: a message and a hint, and nothing is left."""
    code = f"""
        import resource, numpy as np
        from sora_cli.errors import OutputError
        from sora_cli.media import image, video
        limit = 300 if {name!r} == "frames" else 3000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        frames = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
        try:
            if {name!r}.endswith("png"):
                image.write({name!r}, frames[0])
            else:
                video.write({name!r}, iter([frames] * 3), width=64, height=64, fps=16, crf=10)
        except OutputError as error:
            print(error, "|", error.hint)
    """
    shown = python(code, tmp_path)
    assert shown.stdout.startswith(f"could not write {name}: "), shown
    assert "File too large" in shown.stdout and "`sora doctor`" in shown.stdout
    assert left_over(tmp_path) == []


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


FAKE = """#!{python}
import os, sys, time
if "-h" in sys.argv:
    print("Encoder libx264"); sys.exit()
sys.stdin.buffer.read(1000)
{ending}
"""


@pytest.mark.parametrize(
    "ending, reason",
    [
        (
            "os.write(2, b'[out @ 0x1] [mp4 @ 0x2] Bad\\nConversion failed!\\n'); sys.exit(3)",
            "Bad$",
        ),
        ("sys.exit(9)", "ffmpeg stopped: exit code 9"),
        ("os.kill(os.getpid(), 9)", "ffmpeg stopped: killed by SIGKILL"),
        ("os.close(0); time.sleep(1); sys.exit(4)", "ffmpeg stopped: exit code 4"),
    ],
)
def test_ffmpeg_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, reason: str
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text(FAKE.format(python=sys.executable, ending=ending))
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    (folder := tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match=reason) as caught:
        save(folder / "a.mp4", noise(50, 64, 64))
    assert caught.value.hint and "sora doctor" in caught.value.hint
    assert left_over(folder) == []


def test_ffmpeg_without_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(OutputError, match="cannot run .*ffmpeg: "):
        video.check_output(tmp_path / "a.webm")
    program.write_text(FAKE.format(python=sys.executable, ending=""))
    program.chmod(0o755)
    with pytest.raises(OutputError, match="has no encoder libvpx-vp9"):
        video.check_output(tmp_path / "a.webm")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_ffmpeg_too(tmp_path: Path, number: int) -> None:
    code = """
        import os, signal, time, numpy as np
        from sora_cli.errors import Terminated
        from sora_cli.media import ffmpeg, video
        kill = ffmpeg.Encoder.kill
        def seen(self):
            kill(self)
            print("ffmpeg", self.process.returncode, flush=True)
        ffmpeg.Encoder.kill = seen
        def stop(*_): raise Terminated
        signal.signal(signal.SIGTERM, stop)
        def chunks():
            yield np.zeros((4, 64, 64, 3), np.uint8)
            print("started", flush=True)
            time.sleep(60)
        try:
            video.write("a.mp4", chunks(), width=64, height=64, fps=16)
        except (KeyboardInterrupt, Terminated) as error:
            print(type(error).__name__, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "started\n"
        begin = time.monotonic()
        process.send_signal(number)
        shown = process.communicate(timeout=20)[0]
    assert shown == "ffmpeg -9\n" + {2: "KeyboardInterrupt\n", 15: "Terminated\n"}[number]
    assert time.monotonic() - begin < 10
    assert left_over(tmp_path) == []


# ---------------------------------------------------------------- checks before any work


@pytest.mark.parametrize("name", ["a.avi", "a.png", "a.mp4.x"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.mp4, \.webm, \.gif, \.webp, \.mkv, or a folder") as e:
        video.check_output(tmp_path / name)
    assert e.value.hint and ".mp4" in e.value.hint


def test_unknown_picture_suffix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"known are \.png, \.jpg, \.jpeg, \.webp"):
        image.check_output(tmp_path / "a.tiff")
    with pytest.raises(UsageError, match="has no suffix"):
        image.check_output(tmp_path / "a")
    assert image.check_output(tmp_path / "A.PNG") == ".png"


def test_existing_output(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("precious")
    with pytest.raises(UsageError, match="already exists") as caught:
        save(path, noise(1, 16, 16))
    assert caught.value.hint and "--force" in caught.value.hint
    assert path.read_text() == "precious"
    save(path, noise(1, 16, 16), force=True)
    assert b"ftyp" in path.read_bytes()[:12]
    assert left_over(tmp_path) == ["a.mp4"]


def test_existing_folders(tmp_path: Path) -> None:
    (folder := tmp_path / "home").mkdir()
    save(f"{folder}/", noise(3, 8, 8))  # an empty one is as good as none
    with pytest.raises(UsageError, match="already exists"):
        save(folder, noise(1, 8, 8))
    save(folder, noise(1, 8, 8), force=True)
    assert left_over(folder) == ["000001.png"]
    (folder / "letter.txt").write_text("precious")
    with pytest.raises(UsageError, match="holds other files"):
        save(folder, noise(1, 8, 8), force=True)
    assert left_over(folder) == ["000001.png", "letter.txt"]
    assert left_over(tmp_path) == ["home"]


def test_odd_targets(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        video.check_output(f"{tmp_path}/file", force=True)
    with pytest.raises(UsageError, match="there is no folder") as caught:
        video.check_output(tmp_path / "none" / "a.mp4")
    assert caught.value.hint == f"mkdir -p {tmp_path / 'none'}"
    for inside in ("a.mp4", "deep/a.mp4"):
        with pytest.raises(UsageError, match="file is a file, not a folder") as caught:
            video.check_output(tmp_path / "file" / inside)
        assert caught.value.hint == f"try -o {tmp_path / 'a.mp4'}"
    with pytest.raises(OutputError, match="name too long"):
        video.check_output(tmp_path / f"{'x' * 300}.mp4")
    if os.path.exists("/dev/null"):
        with pytest.raises(UsageError, match="not a regular file"):
            video.check_output("/dev/null", force=True)


def test_unwritable_folder(tmp_path: Path) -> None:
    """Root may write anywhere, so a folder that takes no files stands in: /proc."""
    (folder := tmp_path / "locked").mkdir(mode=0o500)
    target = Path("/proc/a.mp4") if os.access(folder, os.W_OK) else folder / "a.mp4"
    with pytest.raises(OutputError, match=f"could not write {target}"):
        video.check_output(target)


def test_links_and_permissions(tmp_path: Path) -> None:
    (tmp_path / "link.mkv").symlink_to(tmp_path / "real.mkv")
    old = os.umask(0o022)
    try:
        save(tmp_path / "link.mkv", noise(1, 16, 16))
    finally:
        os.umask(old)
    assert (tmp_path / "link.mkv").is_symlink()
    assert stat.S_IMODE((tmp_path / "real.mkv").stat().st_mode) == 0o644


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("name", ["a.mkv", "frames"])
def test_output_that_appears_meanwhile(
    tmp_path: Path, name: str, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
        save(tmp_path / "plain.mkv", noise(1, 16, 16))
        (tmp_path / "plain.mkv").unlink()

    def chunks() -> Iterator[np.ndarray]:
        yield noise(1, 16, 16)
        if name == "frames":
            (tmp_path / name).mkdir()
            (tmp_path / name / "theirs").touch()
        else:
            (tmp_path / name).write_text("theirs")

    with pytest.raises(OutputError, match="the result is in .*-2") as caught:
        video.write(tmp_path / name, chunks(), width=16, height=16, fps=16)
    assert caught.value.hint and "mv" in caught.value.hint
    assert left_over(tmp_path) == sorted([name, name.replace("a.", "a-2.").replace("mes", "mes-2")])


@pytest.mark.parametrize(
    "name", ["odd:name.mkv", "-i.mkv", "100%d.mkv", "雪 🏀 'q\".mkv", "a\nb.mkv"]
)
def test_odd_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(name, noise(2, 16, 16), recipe={"schema": 1})
    assert left_over(tmp_path) == [name]
    assert recipes.read(name) == {"schema": 1}


@pytest.mark.parametrize(
    "prompt, name",
    [
        ("A red ball, bouncing!", "a-red-ball-bouncing-7.mp4"),
        ("../../etc/passwd", "etc-passwd-7.mp4"),
        ("🏀🏀", "sora-7.mp4"),
        ("", "sora-7.mp4"),
        ("雪の上の赤い玉", "雪の上の赤い玉-7.mp4"),
        ("बर्फ में लाल गेंद", "बर्फ-में-लाल-गेंद-7.mp4"),
        ("con\x00\n\udc80.", "con-7.mp4"),
    ],
)
def test_names_from_prompts(tmp_path: Path, prompt: str, name: str) -> None:
    first = output.default_path(prompt, 7, folder=tmp_path)
    assert first.name == name
    first.touch()
    assert output.default_path(prompt, 7, folder=tmp_path).name == name.replace("-7.", "-7-2.")


@pytest.mark.parametrize("prompt", ["word " * 10_000, "雪" * 10_000, "x" * 10_000])
def test_names_from_long_prompts(prompt: str) -> None:
    name = output.slug(prompt)
    assert 80 < len(name.encode()) <= output.MAX_NAME_BYTES
