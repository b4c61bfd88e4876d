"""Videos out: frames come as an iterator of chunks and stream into the encoder.

A long video never sits in memory whole (except in GIF, whose palette needs every frame: ffmpeg
holds them, 4 bytes a pixel).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sora_cli.errors import UsageError
from sora_cli.media import ffmpeg, output
from sora_cli.media import recipe as recipes

if TYPE_CHECKING:
    import numpy as np

# RGB → limited-range BT.709, converted and tagged: a file that is only tagged shows shifted
# colours, and one that is only converted is guessed as BT.601 by some players when it is small.
_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,"
    "format=yuv420p,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)

# The palette is chosen from colours rounded to steps of 8, 4 and 8: a fifth of the time of all
# colours for 0.1 dB of PSNR. An ordered pattern, because diffused errors crawl in motion.
_PALETTE = (
    "split[a][b];[a]lutrgb=r=round(val/8)*8:g=round(val/4)*4:b=round(val/8)*8,palettegen[p];"
    "[b][p]paletteuse=diff_mode=rectangle:dither=bayer:bayer_scale=4"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How ffmpeg writes one kind of file; `{crf}` and `{quality}` (= 100 − crf) are filled in."""

    muxer: str
    encoder: str
    options: tuple[str, ...]
    filters: str = "null"
    to_file: tuple[str, ...] = ()
    to_stream: tuple[str, ...] = ()
    even: bool = False  # 4:2:0 chroma: odd sides get one more row or column
    live: bool = True  # can be written to a pipe as it is made; else a finished file is copied
    lowest_crf: int = 0


FORMATS = {
    ".mp4": Format(
        muxer="mp4",
        encoder="libx264",
        options=("-preset", "medium", "-crf", "{crf}"),
        filters=_BT709,
        to_file=("-movflags", "+faststart+use_metadata_tags"),
        to_stream=(
            *("-movflags", "+empty_moov+default_base_moof+use_metadata_tags"),
            *("-frag_duration", "1000000"),  # μs: a player starts after a second of video
        ),
        even=True,
        lowest_crf=1,  # 0 is lossless, in a profile that browsers and phones do not play
    ),
    ".webm": Format(
        muxer="webm",
        encoder="libvpx-vp9",
        options=("-b:v", "0", "-crf", "{crf}", "-deadline", "good", "-cpu-used", "4")
        + ("-row-mt", "1"),
        filters=_BT709,
        even=True,
    ),
    ".gif": Format(
        muxer="gif",
        encoder="gif",
        options=("-loop", "0"),
        filters=_PALETTE,
        live=False,
    ),
    ".webp": Format(
        muxer="webp",
        encoder="libwebp_anim",
        options=("-quality", "{quality}", "-loop", "0"),
        live=False,
    ),
    # bgr0: FFV1's 8-bit RGB, a reordering of the bytes, so the frames come back bit for bit
    ".mkv": Format(
        muxer="matroska",
        encoder="ffv1",
        options=("-level", "3", "-g", "1", "-slicecrc", "1", "-pix_fmt", "bgr0"),
    ),
}


def check_output(path: str | Path, *, force: bool = False) -> str:
    """Call before any work: raises what would stop `write` (see output.check_output)."""
    suffix = output.check_output(path, suffixes=output.VIDEO_SUFFIXES, force=force)
    if suffix != output.FOLDER:
        ffmpeg.check_encoder(FORMATS[suffix].encoder)
    return suffix


def check_stream(format: str = ".mp4") -> str:
    """Call before any work that streams: a known format with its encoder; returns its suffix."""
    suffix = format.lower() if format.startswith(".") else f".{format.lower()}"
    if suffix not in FORMATS:
        known = ", ".join(name[1:] for name in FORMATS)
        raise UsageError(f"cannot stream {format}; known are {known}", hint="try --format mp4")
    ffmpeg.check_encoder(FORMATS[suffix].encoder)
    return suffix


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    path: object  # as the user knows it, for messages
    kind: Format
    size: tuple[int, int]  # (width, height) of what is encoded, after padding
    fps: float
    crf: int
    recipe: dict[str, Any] | None


def write(
    path: str | Path | BinaryIO,
    chunks: Iterable[np.ndarray],
    *,
    width: int,
    height: int,
    fps: float,
    recipe: dict[str, Any] | None = None,
    crf: int = 18,
    force: bool = False,
    format: str = ".mp4",
) -> None:
    """Write frames as a video, whole or not at all; nothing is created before the first chunk.

    Args:
        path: its suffix chooses the format; a binary stream gets `format`.
        chunks: uint8 RGB [t, height, width, 3], t ≥ 1.
        crf: quality of H.264 and VP9, lower is better; WebP's quality is 100 − crf.

    Raises:
        UsageError: unknown suffix, existing output without `force`.
        OutputError: the disk is full, the folder not writable, ffmpeg died.
        BrokenPipeError: the stream's reader went away.
    """
    size = (width, height)
    if isinstance(path, (str, Path)):
        suffix = check_output(path, force=force)
        if suffix == output.FOLDER:
            _write_folder(path, _started(chunks, size, padded=size), recipe, force)
            return
        job = _job(path, suffix, size, fps, crf, recipe)
        frames = _started(chunks, size, padded=job.size)
        with output.new_file(path, force=force) as temporary:
            _write_file(temporary, frames, job)
    else:
        job = _job("the stream", check_stream(format), size, fps, crf, recipe)
        _write_stream(path, _started(chunks, size, padded=job.size), job)


def _job(
    path: object,
    suffix: str,
    size: tuple[int, int],
    fps: float,
    crf: int,
    recipe: dict[str, Any] | None,
) -> _Job:
    kind = FORMATS[suffix]
    width, height = (side + side % 2 if kind.even else side for side in size)
    crf = max(crf, kind.lowest_crf)
    return _Job(path=path, kind=kind, size=(width, height), fps=fps, crf=crf, recipe=recipe)


def _started(
    chunks: Iterable[np.ndarray], size: tuple[int, int], *, padded: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The same chunks, contiguous, their right and bottom edges repeated up to `padded`.

    The first one is made here, so that whatever is slow before it comes before any file.
    """
    import numpy as np

    right, bottom = padded[0] - size[0], padded[1] - size[1]

    def checked() -> Iterator[np.ndarray]:
        for chunk in chunks:
            assert chunk.dtype == np.uint8 and chunk.shape[1:] == (*size[::-1], 3), chunk.shape
            if right or bottom:
                chunk = np.pad(chunk, [(0, 0), (0, bottom), (0, right), (0, 0)], "edge")
            yield np.ascontiguousarray(chunk)  # [t, H, W, 3]

    frames = checked()
    first = next(frames, None)
    assert first is not None, "no frames"
    return chain([first], frames)


def _write_file(file: Path, frames: Iterator[np.ndarray], job: _Job) -> None:
    _encode(frames, ffmpeg.url(file), job)
    if job.recipe is None:
        return
    with output.writing(job.path):
        if job.kind.muxer == "gif":
            recipes.embed_gif(file, job.recipe)
        if job.kind.muxer == "webp":
            recipes.embed_webp(file, job.recipe, size=job.size)


def _write_stream(sink: BinaryIO, frames: Iterator[np.ndarray], job: _Job) -> None:
    if job.kind.live:
        _encode(frames, "pipe:1", job, sink)
        return
    with output.scratch(job.path) as folder:
        file = folder / "video"
        _write_file(file, frames, job)
        with output.writing(job.path), file.open("rb") as made:
            shutil.copyfileobj(made, sink)
            sink.flush()


def _write_folder(
    path: str | Path, frames: Iterator[np.ndarray], recipe: dict[str, Any] | None, force: bool
) -> None:
    from PIL import Image

    with output.new_folder(path, force=force) as folder:
        for number, frame in enumerate(chain.from_iterable(frames), 1):
            with output.writing(path):
                Image.fromarray(frame).save(folder / f"{number:06d}.png")
        if recipe is not None:
            text = recipes.to_text(recipe, indent=2) + "\n"
            with output.writing(path):
                (folder / recipes.FILE_NAME).write_text(text, encoding="utf-8")


def _encode(
    frames: Iterator[np.ndarray], target: str, job: _Job, sink: BinaryIO | None = None
) -> None:
    kind = job.kind
    width, height = job.size
    rate = Fraction(job.fps).limit_denominator(1001)  # 23.976 → 24000/1001
    raw = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}"]
    raw += ["-framerate", f"{rate.numerator}/{rate.denominator}", "-i", "pipe:0"]
    options = [o.format(crf=job.crf, quality=max(0, 100 - job.crf)) for o in kind.options]
    options += kind.to_stream if sink else kind.to_file
    with output.scratch(job.path) as folder:
        tags = folder / "tags.txt"
        with output.writing(job.path):
            text = recipes.ffmetadata(job.recipe) if job.recipe is not None else ";FFMETADATA1\n"
            tags.write_text(text, encoding="utf-8", newline="\n")
        tagged = ["-f", "ffmetadata", "-i", ffmpeg.url(tags), "-map", "0:v", "-map_metadata", "1"]
        coded = ["-vf", kind.filters, "-c:v", kind.encoder, *options, "-f", kind.muxer, target]
        with ffmpeg.encoder([*raw, *tagged, *coded], job.path, sink) as process:
            for chunk in frames:
                process.send(chunk)
