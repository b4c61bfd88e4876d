"""The recipe: one JSON object that every output carries, so that it can be made again.

`schema: 1`, sizes `[width, height]`, memory in bytes, times in seconds; the fields are in
docs/reference/recipe.schema.json. Where it lives: the tag `sora_recipe` (mp4, mkv, webm), an
iTXt chunk of that keyword (PNG), the EXIF UserComment (JPEG, WebP), a comment (GIF), the file
`recipe.json` (folder of PNGs). Places without a keyword hold `{"sora_recipe": {…}}`.
What is read back is data from a stranger: bounded in size, parsed, never evaluated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sora_cli.errors import SoraError, UsageError

KEY = "sora_recipe"
SCHEMA = 1
FILE_NAME = "recipe.json"
MAX_BYTES = 4 << 20  # far above a 10,000-word prompt; a stranger cannot make us read more
MAX_ANCESTRY = 256 << 10  # bytes of all recipes that a recipe's `parents` bring along
MAX_GENERATIONS = 16
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286  # Exif 2.32, table 4
JPEG_SEGMENT = 65_000  # a JPEG segment holds 65,533 bytes; longer recipes go into several comments

Recipe = dict[str, Any]


def now(recipe: Recipe | Callable[[], Recipe] | None) -> Recipe | None:
    """A recipe that is known, or one that is asked for when it is written."""
    return recipe() if callable(recipe) else recipe


def to_text(recipe: Recipe, *, indent: int | None = None) -> str:
    """JSON on one line (unless `indent`), always encodable as UTF-8.

    A prompt from the shell may hold lone surrogates; they become JSON's own \\udcXX escapes.
    """
    text = json.dumps(recipe, ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def parse(text: str | bytes) -> Recipe | None:
    """The recipe in a text, plain or under its key; None when there is none."""
    if len(text) > MAX_BYTES:
        return None
    try:
        value = json.loads(text, parse_constant=refuse, parse_int=whole)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(value.get(KEY), dict):
        value = value[KEY]
    known = isinstance(value, dict) and type(value.get("schema")) is int and value["schema"] >= 1
    return value if known else None


def refuse(constant: str) -> None:
    """NaN and Infinity, which Python's reader would take, are not JSON. For `parse_constant`."""
    raise ValueError(f"{constant} is not JSON")


def whole(digits: str) -> int | float:
    """A whole number; of more than 19 digits, as which nothing is meant, a float. For `parse_int`.

    Python's own are without end, and no arithmetic with floats is ready for them.
    """
    return int(digits) if len(digits) < 21 else float(digits)


# ---------------------------------------------------------------- writing


def ffmetadata(recipe: Recipe) -> str:
    """An ffmetadata file with the recipe as a tag (ffmpeg-formats, "Metadata").

    A file and not `-metadata key=value`: one argument holds 128 KiB on Linux, 32 KiB on Windows.
    """
    escaped = re.sub(r"([=;#\\\n])", r"\\\1", to_text(recipe))
    return f";FFMETADATA1\n{KEY}={escaped}\n"


def exif(recipe: Recipe) -> bytes:
    """A little-endian TIFF block with the UserComment alone; ASCII, so that any reader shows it."""
    comment = b"ASCII\0\0\0" + json.dumps({KEY: recipe}, allow_nan=False).encode("ascii")
    header = b"II*\0" + struct.pack("<I", 8)
    main = struct.pack("<HHHIII", 1, EXIF_IFD, 4, 1, 26, 0)  # one LONG: where the Exif IFD is
    detail = struct.pack("<HHHIII", 1, USER_COMMENT, 7, len(comment), 44, 0)  # UNDEFINED bytes
    return header + main + detail + comment


def jpeg_comments(recipe: Recipe) -> bytes:
    """COM segments for a recipe that does not fit the one EXIF segment of a JPEG."""
    data = to_text({KEY: recipe}).encode()
    parts = [data[i : i + JPEG_SEGMENT] for i in range(0, len(data), JPEG_SEGMENT)]
    return b"".join(b"\xff\xfe" + struct.pack(">H", len(part) + 2) + part for part in parts)


def embed_gif(path: Path, recipe: Recipe) -> None:
    """Put the recipe as a comment before a GIF's first frame (GIF89a, section 24)."""
    text = to_text({KEY: recipe}).encode()
    blocks = (text[i : i + 255] for i in range(0, len(text), 255))
    comment = b"".join(bytes([len(block)]) + block for block in blocks)
    with path.open("r+b") as file:
        head = file.read(13)
        assert head[:4] == b"GIF8", "not a GIF"
        _insert(file, _gif_blocks_start(head), b"\x21\xfe" + comment + b"\0")


def _insert(file: BinaryIO, at: int, data: bytes) -> None:
    """Make room in a file from its end on, a block at a time, and put `data` there."""
    end = file.seek(0, os.SEEK_END)
    while end > at:
        begin = max(at, end - (1 << 20))
        file.seek(begin)
        block = file.read(end - begin)
        file.seek(begin + len(data))
        file.write(block)
        end = begin
    file.seek(at)
    file.write(data)


def embed_webp(path: Path, recipe: Recipe, *, size: tuple[int, int]) -> None:
    """Append an EXIF chunk to a WebP file and say so in its VP8X header (RFC 9649, section 2.7)."""
    block = exif(recipe)
    with path.open("r+b") as file:
        head = file.read(30)
        assert head[:4] == b"RIFF" and head[8:12] == b"WEBP", "not a WebP"
        if head[12:16] != b"VP8X":  # one plain frame: give it the extended header first
            alpha = 0x10 if head[12:16] == b"VP8L" and head[24] & 0x10 else 0
            file.seek(12)
            frames = file.read()
            sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
            head = head[:12] + b"VP8X" + struct.pack("<IBxxx", 10, alpha) + sides
            file.seek(0)
            file.write(head + frames)
        file.seek(20)
        file.write(bytes([head[20] | 0x08]))
        file.seek(0, os.SEEK_END)
        file.write(b"EXIF" + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2))
        length = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", length))


# ---------------------------------------------------------------- what it was made from


def parents(*paths: str | Path) -> list[Recipe]:
    """For a recipe's `parents`: each input's name, SHA-256 and own recipe (null without one).

    A recipe inside brings its own parents. Together they stay under MAX_ANCESTRY: the oldest
    generations lose their recipes first, and keep names and hashes.
    """
    generations = MAX_GENERATIONS
    found = [_forget(_parent(Path(path)), generations) for path in paths]
    while len(to_text({"parents": found}).encode()) > MAX_ANCESTRY and generations:
        generations -= 1
        found = [_forget(parent, generations) for parent in found]
    return found


def parents_of(recipe: Recipe) -> list[Recipe]:
    """The `parents` of a stranger's recipe; what is not one is left out."""
    value = recipe.get("parents")
    known = value if isinstance(value, list) else []
    return [parent for parent in known if isinstance(parent, dict) and "sha256" in parent]


def _parent(path: Path) -> Recipe:
    try:
        recipe = read(path)
        to_text(recipe)
    # None, or what cannot be written again: nested too deep, a number beyond JSON's.
    except (UsageError, RecursionError, ValueError):
        return {"path": path.name, "sha256": _hash(path), "recipe": None}
    return {"path": path.name, "sha256": _hash(path), "recipe": recipe}


def _hash(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the sorted names and hashes of its files."""
    try:
        if path.is_dir():
            files = sorted(entry for entry in path.iterdir() if entry.is_file())
            text = "".join(f"{file.name}\0{_hash(file)}\n" for file in files)
            return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _forget(parent: Recipe, generations: int) -> Recipe:
    """The same, with the recipes of so many generations and no older ones."""
    recipe = parent.get("recipe")
    if not isinstance(recipe, dict) or generations == 0:
        return {**parent, "recipe": None}
    older = [_forget(parent, generations - 1) for parent in parents_of(recipe)]
    return {**parent, "recipe": {**recipe, "parents": older} if older else recipe}


# ---------------------------------------------------------------- reading


def read(path: str | Path) -> Recipe:
    """The recipe that an output of sora carries: a video, a picture, a folder, a recipe.json.

    The kind is told by the first bytes, not by the name. Raises UsageError when the file is
    missing, cannot be read or carries no recipe.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            found = _find(file, stream)
    except FileNotFoundError:
        if path.is_dir():
            raise _none(path) from None
        raise UsageError(f"there is no file {path}", hint=f"ls {path.parent}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    recipe = parse(found) if found else None
    if recipe is None:
        raise _none(path)
    return recipe


def _none(path: Path) -> SoraError:
    return UsageError(
        f"{path} carries no recipe",
        hint="only what sora made, unchanged by other programs, carries one: sora generate PROMPT",
    )


def _find(path: Path, stream: BinaryIO) -> str | bytes | None:
    head = stream.read(64)
    stream.seek(0)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _from_gif(stream.read(MAX_BYTES))
    if head.startswith((b"\x89PNG", b"\xff\xd8")) or head[8:12] == b"WEBP":
        return _from_picture(stream)
    if head[4:8] == b"ftyp":
        return _from_video(path, "mov")
    if head.startswith(b"\x1aE\xdf\xa3"):  # EBML: mkv and webm
        return _from_video(path, "matroska")
    return stream.read(MAX_BYTES + 1) if head.lstrip()[:1] == b"{" else None


def _gif_blocks_start(data: bytes) -> int:
    """Where the blocks start: after the 13-byte screen descriptor and the global palette."""
    flags = data[10] if len(data) > 10 else 0
    return 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)


def _from_gif(data: bytes) -> bytes | None:
    at = _gif_blocks_start(data)
    while data[at : at + 1] == b"\x21":  # the extensions before the first frame
        label, at = data[at + 1 : at + 2], at + 2
        parts = []
        while at < len(data) and data[at]:
            parts.append(data[at + 1 : at + 1 + data[at]])
            at += 1 + data[at]
        at += 1
        comment = b"".join(parts)
        if label == b"\xfe" and comment.startswith(b'{"' + KEY.encode()):
            return comment
    return None


def _from_picture(stream: BinaryIO) -> str | bytes | None:
    import warnings

    from PIL import Image

    Image.init()  # else `formats` knows only the kinds that were used before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=("PNG", "JPEG", "WEBP")) as picture:
                if isinstance(text := picture.info.get(KEY), str):
                    return text
                comment = picture.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
                segments = getattr(picture, "applist", [])
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error):
        return None  # Pillow raises all of these on damaged files
    except Image.DecompressionBombError:
        return None
    if isinstance(comment, bytes):
        # some editors rewrite the comment as UTF-16
        utf16 = comment.startswith(b"UNICODE\0")
        return comment[8:].decode("utf-16", "replace") if utf16 else comment[8:]
    return b"".join(data for marker, data in segments if marker == "COM")


def _from_video(path: Path, demuxer: str) -> str | None:
    from sora_cli.media.ffmpeg import metadata

    tags = parse_ffmetadata(metadata(path, demuxer, MAX_BYTES))
    return tags.get(KEY)


def _ffmetadata_lines(text: str) -> Iterator[str]:
    """The lines of an ffmetadata text, each with its escaped line ends in it.

    Possessive, so that a text that is cut off after a backslash takes no longer than another.
    """
    line = re.compile(r"(?:\\.|[^\\\n])*+", re.DOTALL)
    at = 0
    while at < len(text):
        found = line.match(text, at)
        assert found is not None, "it matches nothing at least"
        yield found[0]
        at = found.end() + 1  # a line's end, or the backslash at which the text is cut off


def parse_ffmetadata(text: str) -> dict[str, str]:
    """The global tags of an ffmetadata text, keys in lower case (Matroska stores them in upper).

    A backslash takes the next character as it is, newline included; sections ([STREAM], …) end
    the global part; lines that start with ; or # are comments.
    """
    tags = {}
    for line in _ffmetadata_lines(text):
        if line.startswith("["):
            break
        pair = re.fullmatch(r"((?:\\.|[^\\=])*+)=(.*)", line, re.DOTALL)
        if pair and not line.startswith((";", "#")):
            key, value = (re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL) for part in pair.groups())
            tags[key.lower()] = value
    return tags
