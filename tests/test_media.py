"""Videos and pictures: right colours and sizes, whole or not there, clear errors."""

from __future__ import annotations

import io
import os
import re
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sora_cli.errors import OutputError, UsageError
from sora_cli.media import ffmpeg, image, output, video
from sora_cli.media import recipe as recipes

VIDEOS = [".mp4", ".webm", ".gif", ".webp", ".mkv"]


def noise(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def smooth(count: int, height: int, width: int) -> np.ndarray:
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    colours = (128 + 100 * np.sin(x / 9 + t / 5), 128 + 90 * np.cos(y / 7), 60 + x + y)
    return np.stack(colours, -1).clip(0, 255).astype(np.uint8)  # [T, H, W, 3]


def save(path: str | Path, frames: np.ndarray, size: int = 3, **options: object) -> None:
    chunks = (frames[i : i + size] for i in range(0, len(frames), size))
    height, width = frames.shape[1:3]
    video.write(path, chunks, width=width, height=height, **({"fps": 16} | options))


def decode(path: Path | bytes, height: int, width: int, pixels: str = "rgb24") -> np.ndarray:
    source = "pipe:0" if isinstance(path, bytes) else f"file:{path}"
    command = [ffmpeg.executable(), "-v", "error", "-i", source, "-fps_mode", "passthrough"]
    command += ["-vf", "scale=in_color_matrix=bt709"] if pixels == "rgb24" else []
    command += ["-f", "rawvideo", "-pix_fmt", pixels, "pipe:1"]
    given = path if isinstance(path, bytes) else None
    raw = subprocess.run(command, input=given, capture_output=True, check=True).stdout
    planes = np.frombuffer(raw, np.uint8)
    return planes.reshape(-1, height, width, 3) if pixels == "rgb24" else planes


def describe(path: Path) -> str:
    command = [ffmpeg.executable(), "-hide_banner", "-i", f"file:{path}"]
    return subprocess.run(command, capture_output=True, text=True).stderr


def left_over(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# ---------------------------------------------------------------- videos


@pytest.mark.parametrize("size", [(16, 32), (15, 33), (2, 2)])
@pytest.mark.parametrize("suffix", VIDEOS)
def test_every_format_has_all_frames(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    path = tmp_path / f"a{suffix}"
    save(path, smooth(7, *size))
    even = suffix in (".mp4", ".webm")
    height, width = (side + side % 2 if even else side for side in size)
    if suffix == ".webp":  # this ffmpeg writes moving WebP but does not read it
        with Image.open(path) as picture:
            assert (picture.n_frames, picture.size) == (7, (width, height))
    else:
        assert len(decode(path, height, width)) == 7
    assert left_over(tmp_path) == [path.name]


@pytest.mark.parametrize("size", [(16, 32), (33, 35)])
def test_mkv_is_lossless(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = noise(6, *size)
    save(tmp_path / "a.mkv", frames, size=1)
    assert np.array_equal(decode(tmp_path / "a.mkv", *size), frames)


def test_folder_is_lossless_and_numbered(tmp_path: Path) -> None:
    frames = noise(5, 9, 7)
    save(f"{tmp_path}/frames.v1/", frames, recipe={"schema": 1, "prompt": "é"})
    names = [f"{i:06d}.png" for i in range(1, 6)]
    assert left_over(tmp_path / "frames.v1") == [*names, "recipe.json"]
    read = [image.read(tmp_path / "frames.v1" / name) for name in names]
    assert np.array_equal(np.stack(read), frames)
    assert left_over(tmp_path) == ["frames.v1"]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colours_are_bt709_and_tagged_so(tmp_path: Path, suffix: str) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]
    frames = np.stack([np.broadcast_to(np.uint8(c), (32, 32, 3)) for c in colours])
    save(tmp_path / f"a{suffix}", frames, crf=4)
    planes = decode(tmp_path / f"a{suffix}", 32, 32, "yuv420p").reshape(5, -1)
    luma = planes[:, : 32 * 32].mean(1)
    # Rec. ITU-R BT.709-6, 3.2–3.5: Y = 16 + 219 (0.2126 R + 0.7152 G + 0.0722 B)
    expected = [16 + 219 * y for y in (0.2126, 0.7152, 0.0722, 1, 0)]
    assert np.abs(luma - expected).max() < 1.5
    seen = re.search(r"Video: .*", describe(tmp_path / f"a{suffix}"))
    assert seen and "yuv420p(tv, bt709" in seen.group()


def test_mp4_plays_everywhere(tmp_path: Path) -> None:
    frames = smooth(17, 48, 64)
    for crf in (0, 18):
        save(tmp_path / "a.mp4", frames, crf=crf, force=True)
        assert "h264 (High)" in describe(tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    error = (decode(tmp_path / "a.mp4", 48, 64).astype(float) - frames) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > 35


def test_gif_keeps_its_colours(tmp_path: Path) -> None:
    flat = np.stack([np.full((16, 16, 3), c, np.uint8) for c in (0, 255, [200, 30, 90])])
    save(tmp_path / "a.gif", flat)
    assert np.abs(decode(tmp_path / "a.gif", 16, 16).astype(int) - flat).max() <= 4
    frames = smooth(9, 48, 64)
    save(tmp_path / "b.gif", frames)
    error = (decode(tmp_path / "b.gif", 48, 64).astype(float) - frames) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > 26


def test_odd_sides_repeat_their_edge(tmp_path: Path) -> None:
    frames = np.full((3, 31, 33, 3), 200, np.uint8)
    save(tmp_path / "a.mp4", frames, crf=4)
    assert np.abs(decode(tmp_path / "a.mp4", 32, 34).astype(int) - 200).max() <= 3


@pytest.mark.parametrize(
    ("fps", "shown"), [(16, "16 fps"), (24000 / 1001, "23.98 fps"), (7.5, "7.5")]
)
def test_frame_rates(tmp_path: Path, fps: float, shown: str) -> None:
    save(tmp_path / "a.mp4", smooth(8, 16, 16), fps=fps)
    assert shown in describe(tmp_path / "a.mp4")


def test_memory_is_bounded_by_the_chunk(tmp_path: Path) -> None:
    """A chunk is asked for only when those before it are gone (the writer holds the last one)."""
    made: list[weakref.ref[np.ndarray]] = []
    alive = []

    def chunks() -> Iterator[np.ndarray]:
        for _ in range(10):
            chunk = noise(4, 64, 64)
            made.append(weakref.ref(chunk))
            yield chunk
            del chunk
            alive.append(sum(ref() is not None for ref in made))

    video.write(tmp_path / "a.mkv", chunks(), width=64, height=64, fps=16)
    assert max(alive) <= 2, alive


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("format", ["mp4", ".webm", "gif", "webp", "mkv"])
def test_streams(format: str, tmp_path: Path) -> None:
    sink = io.BytesIO()
    recipe = {"schema": 1, "prompt": "to stdout"}
    save(sink, smooth(5, 16, 32), format=format, recipe=recipe)  # type: ignore[arg-type]
    path = tmp_path / "got"
    path.write_bytes(sink.getvalue())
    assert recipes.read(path) == recipe
    if format != "webp":
        assert len(decode(sink.getvalue(), 16, 32)) == 5


def test_mp4_starts_before_the_end() -> None:
    sink, seen = io.BytesIO(), []

    def chunks() -> Iterator[np.ndarray]:
        frames = noise(200, 48, 48)
        for i in range(0, 200, 20):
            yield frames[i : i + 20]
            seen.append(len(sink.getvalue()))

    video.write(sink, chunks(), width=48, height=48, fps=16)  # type: ignore[arg-type]
    assert seen[-1] > 10_000


def test_reader_that_goes_away() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as sink, pytest.raises(BrokenPipeError):
        save(sink, noise(200, 64, 64))  # type: ignore[arg-type]


def test_full_stream(tmp_path: Path) -> None:
    class Full(io.RawIOBase):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device"):
        save(Full(), noise(200, 64, 64))  # type: ignore[arg-type]


def test_unknown_stream() -> None:
    with pytest.raises(UsageError, match="known are mp4, webm"):
        save(io.BytesIO(), noise(1, 16, 16), format="avi")  # type: ignore[arg-type]


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("suffix", output.IMAGE_SUFFIXES)
def test_pictures_come_back(tmp_path: Path, suffix: str) -> None:
    frame = smooth(1, 40, 30)[0]
    image.write(tmp_path / f"a{suffix}", frame, recipe={"schema": 1})
    error = np.abs(image.read(tmp_path / f"a{suffix}").astype(int) - frame)
    assert error.max() == 0 if suffix == ".png" else error.mean() < 3
    sink = io.BytesIO()
    image.write(sink, frame, format=suffix)
    assert image.read(sink).shape == (40, 30, 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="already exists"):
        image.write(tmp_path / f"a{suffix}", frame)
    assert left_over(tmp_path) == [f"a{suffix}"]


def saved(path: Path, picture: Image.Image, **options: object) -> np.ndarray:
    picture.save(path, **options)
    return image.read(path)


def test_modes_become_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 4), (250, 10, 20))
    assert np.abs(saved(tmp_path / "p.png", red.quantize(4)) - [250, 10, 20]).max() <= 4
    assert (saved(tmp_path / "l.png", Image.new("L", (8, 4), 77)) == 77).all()
    assert (saved(tmp_path / "1.png", Image.new("1", (8, 4), 1)) == 255).all()
    cmyk = saved(tmp_path / "c.jpg", Image.new("CMYK", (8, 4), (0, 255, 255, 0)), quality=95)
    assert np.abs(cmyk.astype(int) - [255, 0, 0]).max() <= 6
    deep = Image.fromarray(np.full((4, 8), 40_000, np.uint16))
    assert (saved(tmp_path / "16.png", deep) == round(40_000 / 257)).all()
    assert (saved(tmp_path / "16.tiff", deep) == round(40_000 / 257)).all()


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    assert (saved(tmp_path / "a.png", clear) == 255).all()
    assert (saved(tmp_path / "a.webp", clear, lossless=True) == 255).all()
    half = saved(tmp_path / "la.png", Image.new("LA", (8, 4), (0, 128)))
    assert np.abs(half.astype(int) - 127).max() <= 1
    palette = Image.new("P", (8, 4), 0)
    palette.putpalette([9, 9, 9, 1, 1, 1])
    assert (saved(tmp_path / "p.png", palette, transparency=0) == 255).all()


def test_rotation_profile_and_first_frame(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    upright = saved(tmp_path / "a.jpg", Image.new("RGB", (8, 4)), exif=exif)
    assert upright.shape == (8, 4, 3)
    frames = [Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 255, 0))]
    first = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (first == [255, 0, 0]).all()
    rubbish = saved(tmp_path / "b.png", Image.new("RGB", (4, 4), (1, 2, 3)), icc_profile=b"rubbish")
    assert (rubbish == [1, 2, 3]).all()


def test_colour_profiles_are_applied(tmp_path: Path) -> None:
    from PIL import ImageCms

    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = saved(tmp_path / "a.png", Image.new("RGB", (4, 4), (200, 100, 50)), icc_profile=lab)
    assert np.abs(same.astype(int) - [200, 100, 50]).max() <= 1


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a picture of a known kind"),
        (b"<svg/>", "not a picture of a known kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture of a known kind"),
        (b"\x89PNG\r\n\x1a\nrubbish", "cannot read the picture"),
        (b"P6 40000 40000 255\n", "more than 120 megapixels"),
        (b"P6 12000 12000 255\n", "more than 120 megapixels"),
    ],
)
def test_bad_pictures(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        image.read(tmp_path / "a.png")
    assert caught.value.hint


def test_damaged_and_missing_pictures(tmp_path: Path) -> None:
    for suffix in output.IMAGE_SUFFIXES:
        data = image.encode(noise(1, 64, 64)[0], suffix)
        (tmp_path / "a").write_bytes(data[: len(data) // 2])
        with pytest.raises(UsageError, match="cannot read the picture"):
            image.read(tmp_path / "a")
    with pytest.raises(UsageError, match="there is no picture"):
        image.read(tmp_path / "none.png")
    with pytest.raises(UsageError, match="cannot read the picture"):
        image.read(tmp_path)
    with pytest.raises(UsageError, match="floating-point"):
        saved(tmp_path / "f.tiff", Image.new("F", (4, 4), 0.5))


def test_fit() -> None:
    left_red = np.zeros((10, 40, 3), np.uint8)
    left_red[:, :10], left_red[:, 30:] = [255, 0, 0], [0, 0, 255]
    crop = image.fit(left_red, 20, 20)
    assert crop.shape == (20, 20, 3) and not crop[:, 3:-3].any()
    pad = image.fit(left_red, 20, 20, "pad")
    assert not pad[:7].any() and not pad[13:].any() and pad[10, 2, 0] > 200
    stretch = image.fit(left_red, 20, 20, "stretch")
    assert stretch[:, 1, 0].min() > 200 and stretch[:, -2, 2].min() > 200
    assert image.fit(left_red, 40, 10) is left_red
    assert image.fit(left_red, 1, 1, "pad").shape == (1, 1, 3)
