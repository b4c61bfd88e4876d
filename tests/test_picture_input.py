"""Pictures to animate: whatever people have, as upright 8-bit sRGB, or refused in one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from clips import moving, run
from PIL import Image, ImageCms

from sora_cli.errors import UsageError
from sora_cli.media import image


def picture(height: int = 24, width: int = 32) -> np.ndarray:
    return moving(1, height, width)[0]


def saved(path: Path, given: Image.Image, **options: object) -> np.ndarray:
    given.save(path, **options)
    return image.read(path)


def profile(gamma: float, red: tuple[float, float] = (0.64, 0.33)) -> bytes:
    """An ICC profile of an RGB display with this gamma and this red (ICC.1:2022, matrix/TRC)."""

    def fixed(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    def xyz(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(fixed(float(value)) for value in values)

    primaries = [red, (0.30, 0.60), (0.15, 0.06)]
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    white = np.array([0.9642, 1.0, 0.8249])  # D50, the connection space
    columns = columns * np.linalg.solve(columns, white)
    curve = b"curv\0\0\0\0\0\0\0\1" + round(gamma * 256).to_bytes(2, "big") + b"\0\0"
    text = b"desc\0\0\0\0\0\0\0\2x\0" + bytes(80)
    tags = [
        (b"rXYZ", xyz(columns[:, 0])),
        (b"gXYZ", xyz(columns[:, 1])),
        (b"bXYZ", xyz(columns[:, 2])),
    ]
    tags += [(b"wtpt", xyz(white)), (b"rTRC", curve), (b"gTRC", curve), (b"bTRC", curve)]
    tags += [(b"desc", text), (b"cprt", b"text\0\0\0\0x\0\0\0")]
    at, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags:
        value += bytes(-len(value) % 4)
        table += name + (at + len(data)).to_bytes(4, "big") + len(value).to_bytes(4, "big")
        data += value
    head = (at + len(data)).to_bytes(4, "big") + bytes(4) + b"\x02\x40\0\0mntrRGB XYZ "
    head = head.ljust(36, b"\0") + b"acsp" + bytes(28) + b"".join(map(fixed, white))
    return head.ljust(128, b"\0") + len(tags).to_bytes(4, "big") + table + data


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_exif(tmp_path: Path, orientation: int, suffix: str) -> None:
    """EXIF 2.32, tag 0x0112: what a camera stored, and the turn that makes it upright."""
    upright = picture()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {".webp": {"lossless": True}, ".jpg": {"quality": 98, "subsampling": 0}}
    shown = saved(
        tmp_path / f"a{suffix}",
        Image.fromarray(np.ascontiguousarray(stored)),
        exif=exif,
        **lossless.get(suffix, {}),
    )
    assert np.abs(shown.astype(int) - upright).max() <= (0 if suffix != ".jpg" else 12)


# ---------------------------------------------------------------- kinds of pixels


@pytest.mark.parametrize(
    "pixels", ["rgb48be", "rgba64be", "gray16be", "ya16be", "rgb24", "gray", "ya8", "monob"]
)
def test_every_kind_of_png(tmp_path: Path, pixels: str) -> None:
    """16 bits become 8, grey becomes RGB, opaque transparency changes nothing."""
    given = picture()
    grey = pixels.startswith(("gray", "ya", "mono"))
    if grey:
        given = np.repeat(given[..., :1], 3, 2)
    if pixels == "monob":
        given = np.where(given > 128, 255, 0).astype(np.uint8)
    raw = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", "32x24", "-i", "pipe:0"]
    path = str(tmp_path / "a.png")
    run(*raw, "-frames:v", "1", "-pix_fmt", pixels, path, given=given.tobytes())
    shown = image.read(path)
    assert shown.dtype == np.uint8 and shown.shape == given.shape
    assert np.abs(shown.astype(int) - given).max() <= (2 if grey else 1)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_deep_grey_spans_black_to_white(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 257, 32768, 65534, 65535]] * 4, np.uint16)
    shown = saved(tmp_path / f"a{suffix}", Image.fromarray(values))
    assert shown[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]


def test_deep_colours_of_tiff(tmp_path: Path) -> None:
    raw = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", "32x24", "-i", "pipe:0"]
    path = str(tmp_path / "a.tiff")
    run(*raw, "-frames:v", "1", "-pix_fmt", "rgb48le", path, given=picture().tobytes())
    assert np.abs(image.read(path).astype(int) - picture()).max() <= 1


def test_cmyk(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for name, options in (("a.jpg", {"quality": 98}), ("a.tiff", {})):
        shown = saved(tmp_path / name, ink, **options).astype(int)
        assert np.abs(shown - [255, 0, 0]).max() <= 6, name


def test_palettes_and_transparency(tmp_path: Path) -> None:
    """Transparent parts lie over white, in each way that files say it."""
    half = np.zeros((16, 16, 4), np.uint8)
    half[:, 8:] = [10, 20, 30, 255]
    expected = np.full((16, 16, 3), 255)
    expected[:, 8:] = [10, 20, 30]
    clear = Image.fromarray(half)
    palette = clear.quantize(4)
    assert palette.mode == "P"
    assert np.array_equal(saved(tmp_path / "rgba.png", clear), expected)
    assert np.array_equal(saved(tmp_path / "palette.png", palette), expected)
    assert np.array_equal(saved(tmp_path / "a.webp", clear, lossless=True), expected)
    assert np.array_equal(saved(tmp_path / "a.gif", clear), expected)
    assert np.array_equal(saved(tmp_path / "a.tiff", clear), expected)
    keyed = Image.fromarray(half[..., :3])
    assert np.array_equal(saved(tmp_path / "keyed.png", keyed, transparency=(0, 0, 0)), expected)
    grey = Image.fromarray(half[..., 0])
    shown = saved(tmp_path / "grey.png", grey, transparency=0)
    assert (shown[:, :8] == 255).all() and (shown[:, 8:] == 10).all()


def test_the_first_frame_of_what_moves(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in moving(3, 16, 16)]
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True}), ("a.tiff", {})):
        first = saved(tmp_path / name, pictures[0], save_all=True, append_images=pictures[1:],
                      **options)  # fmt: skip
        assert np.array_equal(first, moving(3, 16, 16)[0]), name
    colours = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    first = saved(tmp_path / "a.gif", colours[0], save_all=True, append_images=colours[1:])
    assert (first == [255, 0, 0]).all()


# ---------------------------------------------------------------- colour profiles


def test_profiles_become_srgb(tmp_path: Path) -> None:
    """Gamma 1.0: half the light is 188 of 255 in sRGB (IEC 61966-2-1)."""
    linear = profile(1.0)
    for mode, colour in (("RGB", (128,) * 3), ("RGBA", (128, 128, 128, 255)), ("P", 0)):
        given = Image.new(mode, (8, 8), colour)
        if mode == "P":
            given.putpalette([128] * 3)
        shown = saved(tmp_path / f"{mode}.png", given, icc_profile=linear).astype(int)
        assert np.abs(shown - 188).max() <= 1, mode
    half = Image.new("RGBA", (8, 8), (128, 128, 128, 0))
    assert (saved(tmp_path / "clear.png", half, icc_profile=linear) == 255).all()
    shown = saved(tmp_path / "a.jpg", Image.new("RGB", (8, 8), (128,) * 3), icc_profile=linear)
    assert np.abs(shown.astype(int) - 188).max() <= 2


def test_wide_colours_of_a_phone(tmp_path: Path) -> None:
    """The same red is a smaller number in a profile with a redder red, and grey stays grey."""
    wide = profile(2.2, red=(0.68, 0.32))
    shown = saved(tmp_path / "a.png", Image.new("RGB", (8, 8), (200, 60, 60)), icc_profile=wide)
    assert shown[0, 0, 0] > 204 and shown[0, 0, 1] < 60
    grey = saved(tmp_path / "b.png", Image.new("RGB", (8, 8), (128,) * 3), icc_profile=wide)
    assert np.ptp(grey[0, 0]) <= 1 and abs(int(grey[0, 0, 0]) - 128) <= 3


def test_profiles_of_other_kinds_do_no_harm(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for given in (lab, b"rubbish", profile(2.2)[:200]):
        shown = saved(tmp_path / "a.png", Image.new("RGB", (8, 8), (1, 2, 3)), icc_profile=given)
        assert shown.shape == (8, 8, 3)
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    shown = saved(tmp_path / "a.jpg", cmyk, icc_profile=profile(1.0), quality=98)
    assert np.abs(shown.astype(int) - [255, 0, 0]).max() <= 6


# ---------------------------------------------------------------- refused


def test_too_small_and_too_large(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1×1 pixels; 4×4 is the least"):
        saved(tmp_path / "a.png", Image.new("RGB", (1, 1)))
    with pytest.raises(UsageError, match="3×500"):
        saved(tmp_path / "a.png", Image.new("RGB", (3, 500)))
    for header in (b"P6 20000 20000 255\n", b"P6 12000 12000 255\n"):
        (tmp_path / "a.ppm").write_bytes(header)
        with pytest.raises(UsageError, match="more than 120 megapixels") as caught:
            image.read(tmp_path / "a.ppm")
        assert caught.value.hint


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_files(tmp_path: Path, kind: str) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind)
    for share in (0.02, 0.5, 0.9):
        (tmp_path / "a").write_bytes(file.getvalue()[: int(share * len(file.getvalue()))])
        with pytest.raises(UsageError, match="cannot read the picture") as caught:
            image.read(tmp_path / "a")
        assert caught.value.hint and "\n" not in caught.value.message


def test_damaged_files_never_crash(tmp_path: Path) -> None:
    """Bytes changed at random in each kind: a picture or a UsageError, nothing else."""
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        file = io.BytesIO()
        Image.fromarray(picture()).save(file, kind)
        for _ in range(40):
            data = np.frombuffer(file.getvalue(), np.uint8).copy()
            places = rng.integers(0, min(len(data), 400), 4)
            data[places] = rng.integers(0, 256, 4)
            (tmp_path / "a").write_bytes(data.tobytes())
            try:
                assert image.read(tmp_path / "a").ndim == 3
            except UsageError as error:
                assert error.hint


# ---------------------------------------------------------------- fitting


def test_reducing_does_not_alias() -> None:
    """Stripes finer than the new pixels become their mean, not a pattern."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = image.fit(stripes, 16, 16, "stretch").astype(int)
    assert np.abs(small[2:-2, 2:-2] - 127).max() <= 12
