"""Pictures in and out: any common file to 8-bit sRGB and back, with the recipe inside."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from sora_cli.errors import SoraError, UsageError
from sora_cli.media import output
from sora_cli.media import recipe as recipes

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from sora_cli.media.output import Seal

MAX_PIXELS = 120_000_000  # above the largest phone pictures; below what a bomb would unpack to
MIN_SIDE = 4  # pixels; of less no picture and no clip can be made
# No EPS (it runs Ghostscript) and nothing rare: fewer decoders that a stranger's file can reach.
READABLE = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
QUALITY = 95  # JPEG and WebP
Fit = Literal["crop", "pad", "stretch"]
# Pillow's decoders raise all of these on damaged files.
_DAMAGE = (
    ValueError, SyntaxError, TypeError, KeyError, IndexError, EOFError, struct.error,
    RuntimeError,  # of the AVIF reader
)  # fmt: skip


def check_output(path: str | Path, *, force: bool = False) -> str:
    """Call before any work: raises what would stop `write` (see output.check_output)."""
    return output.check_output(path, suffixes=output.IMAGE_SUFFIXES, force=force)


def write(
    path: str | Path | BinaryIO,
    image: np.ndarray,
    *,
    recipe: dict[str, Any] | None = None,
    force: bool = False,
    format: str = ".png",
    seal: Seal | None = None,
) -> None:
    """Write one picture [H, W, 3] uint8; the suffix (or `format`, for a stream) chooses the kind.

    `seal` gets the finished file, the file that it is to write, and the suffix.

    Raises UsageError (unknown suffix, existing output without `force`), OutputError (disk full,
    folder not writable), BrokenPipeError (the stream's reader went away).
    """
    if isinstance(path, (str, Path)):
        suffix = check_output(path, force=force)
        data = encode(image, suffix, recipe)
        if seal is not None:
            data = _sealed(path, data, suffix, seal)
        output.write_bytes(path, data, force=force)
        return
    suffix = output.suffix_of(f"picture.{format.lower().lstrip('.')}", output.IMAGE_SUFFIXES)
    data = encode(image, suffix, recipe)
    if seal is not None:
        data = _sealed("the stream", data, suffix, seal)
    with output.writing("the stream"):
        path.write(data)
        path.flush()


def _sealed(path: object, data: bytes, suffix: str, seal: Seal) -> bytes:
    with output.scratch(path) as folder:
        plain, sealed = folder / "plain", folder / "sealed"
        with output.writing(path):
            plain.write_bytes(data)
            sealed.touch()
        seal(plain, sealed, suffix)
        return sealed.read_bytes()


def encode(image: np.ndarray, suffix: str, recipe: dict[str, Any] | None = None) -> bytes:
    """A picture [H, W, 3] uint8 as the bytes of a .png, .jpg, .jpeg or .webp file."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype.name == "uint8", image.shape
    options: dict[str, Any] = {}
    if suffix == ".png":
        kind = "PNG"
        if recipe is not None:
            options["pnginfo"] = PngInfo()
            options["pnginfo"].add_itxt(recipes.KEY, recipes.to_text(recipe))
    elif suffix == ".webp":
        kind, options = "WEBP", {"quality": QUALITY, "method": 4}
        if recipe is not None:
            options["exif"] = recipes.exif(recipe)
    else:
        kind, options = "JPEG", {"quality": QUALITY, "subsampling": 0}
        if recipe is not None:
            block = b"Exif\0\0" + recipes.exif(recipe)
            if len(block) <= recipes.JPEG_SEGMENT:
                options["exif"] = block
            else:
                options["extra"] = recipes.jpeg_comments(recipe)
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def read(path: str | Path) -> np.ndarray:
    """A picture file as uint8 sRGB [H, W, 3], upright, its first frame if it moves.

    Rotation from EXIF and colour profiles are applied, transparency lies over white, 16 bits
    become 8. Raises UsageError for a missing, damaged, oversized or unknown file.
    """
    from PIL import Image

    Image.init()
    formats = tuple(name for name in READABLE if name in Image.OPEN)
    with reading(path), Image.open(path, formats=formats) as picture:
        return to_srgb(picture, path)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn all that Pillow raises for a stranger's file into UsageErrors that name it."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides
        try:
            yield
        except FileNotFoundError:
            raise UsageError(f"there is no picture {path}", hint="check -i") from None
        except Image.DecompressionBombError:
            raise _too_large(path) from None
        except Image.UnidentifiedImageError:
            raise _unreadable(path, "it is not a picture of a known kind") from None
        except OSError as error:
            raise _unreadable(path, error.strerror or str(error)) from error
        except _DAMAGE as error:
            raise _unreadable(path, f"it is damaged ({error})") from error


def to_srgb(picture: Image.Image, path: str | Path) -> np.ndarray:
    """The frame at which an opened picture is, as `read` gives it: uint8 [H, W, 3]."""
    import numpy as np
    from PIL import ImageOps

    check_size(picture.width, picture.height, path)
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    return np.ascontiguousarray(np.asarray(_to_rgb(upright, path)))


def check_size(width: int, height: int, path: str | Path) -> None:
    """Raise UsageError for a picture that is too large to unpack or too small to show anything."""
    if width * height > MAX_PIXELS:
        raise _too_large(path)
    if min(width, height) < MIN_SIDE:
        raise UsageError(
            f"the picture {path} has {width}×{height} pixels; {MIN_SIDE}×{MIN_SIDE} is the least",
            hint="give a larger one",
        )


def _too_large(path: str | Path) -> SoraError:
    return UsageError(
        f"the picture {path} has more than {MAX_PIXELS // 1_000_000} megapixels",
        hint="make it smaller first, then give that with -i",
    )


def _unreadable(path: str | Path, reason: str) -> SoraError:
    return UsageError(
        f"cannot read the picture {path}: {reason}",
        hint="save it as PNG or JPEG, then give that with -i",
    )


def _to_rgb(picture: Image.Image, path: str | Path) -> Image.Image:
    from PIL import Image

    if picture.mode == "F":
        raise _unreadable(path, "its pixels are floating-point numbers of unknown range")
    profile = picture.info.get("icc_profile")  # the steps below do not all keep it
    if picture.mode.startswith("I"):
        picture = _from_16_bits(picture)
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        opaque = picture.convert("L" if picture.mode == "LA" else "RGB")
        seen = _apply_profile(opaque, profile).convert("RGBA")
        seen.putalpha(colours.getchannel("A"))
        white = Image.new("RGBA", seen.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, seen).convert("RGB")
    if picture.mode == "P":
        picture = picture.convert("RGB")
    return _apply_profile(picture, profile).convert("RGB")


def _from_16_bits(picture: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.int64).clip(0, 65535)  # [H, W]
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _apply_profile(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours of an embedded profile (Display P3 of phones, CMYK of print) to sRGB."""
    from PIL import ImageCms

    if not profile or picture.mode not in ("RGB", "CMYK", "L"):
        return picture
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture  # a broken or foreign profile: the numbers as they are
    return converted if converted is not None else picture


def fit(image: np.ndarray, width: int, height: int, how: Fit = "crop") -> np.ndarray:
    """Resample [H, W, 3] uint8 with Lanczos to [height, width, 3].

    `crop` fills the size and cuts what stands over, both sides alike; `pad` shows all of it on
    black; `stretch` changes the proportions.
    """
    import numpy as np
    from PIL import Image

    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image
    picture = Image.fromarray(image)
    if how == "pad":
        left, top, inner_w, inner_h = _inner((w, h), (width, height))
        padded = np.zeros((height, width, 3), np.uint8)
        inner = picture.resize((inner_w, inner_h), Image.Resampling.LANCZOS)
        padded[top : top + inner_h, left : left + inner_w] = np.asarray(inner)
        return padded
    box = (0.0, 0.0, float(w), float(h))
    if how == "crop":
        scale = max(width / w, height / h)
        cut_w, cut_h = min(w, width / scale), min(h, height / scale)
        box = ((w - cut_w) / 2, (h - cut_h) / 2, (w + cut_w) / 2, (h + cut_h) / 2)
    return np.array(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))


def fit_frames(
    chunks: Iterable[np.ndarray], width: int, height: int, how: Fit = "crop"
) -> Iterator[np.ndarray]:
    """`fit` for a clip: chunks uint8 [t, H, W, 3], each frame by itself."""
    import numpy as np

    for chunk in chunks:
        if chunk.shape[1:3] == (height, width):
            yield chunk
        else:
            yield np.stack([fit(frame, width, height, how) for frame in chunk])


def _inner(size: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where `pad` puts a picture of `size` in `outer`, both (width, height): corner and size."""
    scale = min(outer[0] / size[0], outer[1] / size[1])
    w, h = (max(1, round(side * scale)) for side in size)
    return (outer[0] - w) // 2, (outer[1] - h) // 2, w, h
