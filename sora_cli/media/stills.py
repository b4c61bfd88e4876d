"""Clips that are pictures: animated WebP, folders of PNGs as we write them."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from sora_cli.errors import UsageError
from sora_cli.media import image, packets
from sora_cli.media import recipe as recipes
from sora_cli.media.timing import SINGLE, exact

Kind = Literal["still", "webp", "video"]
SHORTEST = 20  # ms; browsers show frames that say less for 100
_STILL = (b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6", b"P4")


def kind(head: bytes) -> Kind:
    """What Pillow reads by its first bytes; "video" is for ffmpeg, animated GIF and PNG included.

    Not every ffmpeg reads animated WebP, and its still pictures know nothing of colour profiles.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        moves = head[12:16] == b"VP8X" and len(head) > 20 and head[20] & 2
        return "webp" if moves else "still"
    if head.startswith(b"\x89PNG"):
        return "video" if b"acTL" in head.partition(b"IDAT")[0] else "still"
    if head[4:12] in (b"ftypavif", b"ftypmif1", b"ftypheic"):
        return "still"
    return "still" if head.startswith(_STILL) else "video"


# ---------------------------------------------------------------- animated WebP


def webp_durations(path: Path) -> tuple[int, int, list[int]]:
    """Width, height and each frame's time in ms of an animated WebP (RFC 9649, section 2.7)."""
    with path.open("rb") as file:
        head = file.read(30)
        width, height = (int.from_bytes(head[i : i + 3], "little") + 1 for i in (24, 27))
        file.seek(12)
        durations = list(_frame_times(file))
    if not durations:
        raise packets.unreadable(path, "it is damaged: it has no frames")
    if len(durations) > packets.MAX_FRAMES:
        raise packets.unreadable(path, f"it has more than {packets.MAX_FRAMES:,} frames")
    return width, height, durations


def _frame_times(file: BinaryIO) -> Iterator[int]:
    while len(header := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", header)
        at = file.tell()
        if name == b"ANMF":
            said = int.from_bytes(file.read(15)[12:15], "little")
            yield said if said >= SHORTEST else 100
        file.seek(at + length + length % 2)


def webp_frames(path: Path, start: int, count: int, at_once: int) -> Iterator[np.ndarray]:
    """Frames of an animated WebP over white, in chunks of `at_once`: uint8 [t, H, W, 3]."""
    from PIL import Image

    with image.reading(path), Image.open(path, formats=("WEBP",)) as picture:
        for first in range(start, start + count, at_once):
            chunk = []
            for number in range(first, min(first + at_once, start + count)):
                picture.seek(number)
                chunk.append(image.to_srgb(picture, path))
            yield np.stack(chunk)


# ---------------------------------------------------------------- folders of PNGs


def frame_files(folder: Path) -> list[Path]:
    """The numbered PNGs of a folder in order; raises UsageError when there are none."""
    files = [entry for entry in folder.iterdir() if re.fullmatch(r"\d+\.png", entry.name)]
    if not files:
        raise packets.unreadable(
            folder, "the folder holds no frames named 000001.png and so on", f"ls {folder}"
        )
    return sorted(files, key=lambda file: (int(file.stem), file.name))


def folder_rate(folder: Path) -> tuple[Fraction, tuple[str, ...]]:
    """The rate that the folder's recipe says, and a note where it says none."""
    try:
        fps = recipes.read(folder).get("fps")
    except UsageError:
        fps = None
    if fps is None:
        return SINGLE, (f"the folder does not say its rate: read as {SINGLE} fps",)
    number = isinstance(fps, int | float) and not isinstance(fps, bool)
    if not number or not fps > 0 or not (rate := exact(min(fps, 1000))):
        raise packets.no_rate(folder)
    return rate, ()


def folder_frames(files: list[Path], size: tuple[int, int], at_once: int) -> Iterator[np.ndarray]:
    """The pictures of a folder, all of one (width, height), in chunks: uint8 [t, H, W, 3]."""
    for first in range(0, len(files), at_once):
        chunk = []
        for file in files[first : first + at_once]:
            frame = image.read(file)
            if frame.shape[:2] != size[::-1]:
                height, width = frame.shape[:2]
                raise packets.unreadable(
                    file.parent, f"{file.name} is {width}×{height}, the first {size[0]}×{size[1]}"
                )
            chunk.append(frame)
        yield np.stack(chunk)
