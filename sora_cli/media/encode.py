"""Frames through ffmpeg into a file: the formats, and the passes that each of them needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sora_cli.errors import OutputError
from sora_cli.media import ffmpeg, output
from sora_cli.media import recipe as recipes

if TYPE_CHECKING:
    import numpy as np

    from sora_cli.media.audio import AudioPlan

# RGB → limited-range BT.709, converted and tagged: a file that is only tagged shows shifted
# colours, and one that is only converted is guessed as BT.601 by some players when it is small.
_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,"
    "format=yuv420p,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)

# The palette is chosen from colours rounded to steps of 8, 4 and 8: a fifth of the time of all
# colours for 0.1 dB of PSNR. An ordered pattern, because diffused errors crawl in motion.
_PALETTE = "lutrgb=r=round(val/8)*8:g=round(val/4)*4:b=round(val/8)*8,palettegen"
_USE_PALETTE = "paletteuse=diff_mode=rectangle:dither=bayer:bayer_scale=4"

# FFV1 in 8-bit RGB: bgr0 is a reordering of the bytes, so the frames come back bit for bit.
_LOSSLESS = ("-c:v", "ffv1", "-level", "3", "-g", "1", "-slicecrc", "1", "-pix_fmt", "bgr0")


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
    tagged: bool = True  # the recipe is a tag that ffmpeg writes; else it is put in afterwards
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
            # Who reads a pipe watches what is made as it is made: pieces of a quarter of a second,
            # and an encoder that looks 8 frames ahead instead of 40 (a sixth more bytes).
            *("-frag_duration", "250000", "-threads", "4"),
            *("-x264-params", "rc-lookahead=8:sync-lookahead=0:bframes=2"),
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
        live=False,
        tagged=False,
    ),
    ".webp": Format(
        muxer="webp",
        encoder="libwebp_anim",
        options=("-quality", "{quality}", "-loop", "0"),
        live=False,
        tagged=False,
    ),
    ".mkv": Format(
        muxer="matroska",
        encoder="ffv1",
        options=_LOSSLESS[2:],
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One output: where it goes (as the user knows it, for messages), its kind and its numbers."""

    path: object
    suffix: str
    size: tuple[int, int]  # (width, height) of what is encoded, after padding
    fps: float
    crf: int

    @property
    def kind(self) -> Format:
        """The row of FORMATS."""
        return FORMATS[self.suffix]

    @property
    def rate(self) -> Fraction:
        """The exact rate: 23.976 → 24000/1001."""
        from sora_cli.media.timing import exact

        return exact(self.fps)


def job(path: object, suffix: str, size: tuple[int, int], fps: float, crf: int) -> Job:
    """A job whose size is what the format can hold and whose quality is what it can play."""
    kind = FORMATS[suffix]
    width, height = (side + side % 2 if kind.even else side for side in size)
    return Job(
        path=path, suffix=suffix, size=(width, height), fps=fps, crf=max(crf, kind.lowest_crf)
    )


def encode(
    frames: Iterator[np.ndarray],
    target: str,
    job: Job,
    recipe: recipes.Recipe | None = None,
    sink: BinaryIO | None = None,
) -> None:
    """Frames [t, H, W, 3] into `target`, in one pass; the recipe goes in where it is a tag."""
    kind = job.kind
    options = [o.format(crf=job.crf, quality=max(0, 100 - job.crf)) for o in kind.options]
    options += kind.to_stream if sink else kind.to_file
    coded = ["-vf", kind.filters, "-c:v", kind.encoder, *options, "-f", kind.muxer, target]
    with output.scratch(job.path) as folder:
        tags = _tags(folder, job, recipe if kind.tagged else None)
        mapped = [*tags, "-map", "0:v", "-map_metadata", "1"]
        _send(frames, [*_raw(job), *mapped, *coded], job, sink)


def gif(frames: Iterator[np.ndarray], file: Path, job: Job, workspace: Path) -> None:
    """Frames into a GIF, in three passes: one palette for all of them, none of them kept in memory.

    ffmpeg's way in one pass holds every frame, 4 bytes a pixel, until the palette is known. Here
    the frames lie in a lossless file; their colours are counted (of 16 bits, so at most 65,536),
    then replaced by those of the palette.
    """
    kept, palette = workspace / "frames.nut", workspace / "palette.png"
    _send(frames, [*_raw(job), *_LOSSLESS, "-f", "nut", ffmpeg.url(kept)], job, None)
    source = ["-i", ffmpeg.url(kept)]
    counted = ["-vf", _PALETTE, "-frames:v", "1", "-f", "image2", "-update", "1"]
    _send(None, [*source, *counted, ffmpeg.url(palette)], job, None)
    source += ["-i", ffmpeg.url(palette)]
    coded = ["-filter_complex", f"[0:v][1:v]{_USE_PALETTE}", "-c:v", "gif", *job.kind.options]
    _send(None, [*source, *coded, "-f", "gif", ffmpeg.url(file)], job, None)


def finish(
    made: Path,
    file: Path,
    job: Job,
    recipe: recipes.Recipe | None,
    sound: AudioPlan | None,
    seconds: float,
) -> tuple[str, ...]:
    """The second pass: an encoded video copied, with the recipe and the sound; returns notes.

    A sound that cannot be read is left out, not the video: by now it has cost hours.
    """
    from sora_cli.media import audio

    if sound is None:
        _copy(made, file, job, recipe, [], [])
        return ()
    try:
        inputs, options = audio.arguments(sound, job.suffix, seconds, first_input=2)
        _copy(made, file, job, recipe, inputs, options)
    except OutputError:
        _copy(made, file, job, recipe, [], [])
        return (f"the audio of {audio.names(sound)} cannot be read and is dropped",)
    return (audio.note(sound, job.suffix, seconds),)


def _copy(
    made: Path,
    file: Path,
    job: Job,
    recipe: recipes.Recipe | None,
    inputs: list[str],
    options: list[str],
) -> None:
    with output.scratch(job.path) as folder:
        tags = _tags(folder, job, recipe)
        source = ["-copyts", "-i", ffmpeg.url(made), *tags, *inputs]
        copied = ["-map", "0:v", "-c:v", "copy", *options, "-map_metadata", "1"]
        target = [*job.kind.to_file, "-f", job.kind.muxer, ffmpeg.url(file)]
        _send(None, [*source, *copied, *target], job, None)


def _raw(job: Job) -> list[str]:
    rate = f"{job.rate.numerator}/{job.rate.denominator}"
    raw = [
        "-f",
        "rawvideo",
        "-pixel_format",
        "rgb24",
        "-video_size",
        f"{job.size[0]}x{job.size[1]}",
    ]
    return [*raw, "-framerate", rate, "-i", "pipe:0"]


def _tags(folder: Path, job: Job, recipe: recipes.Recipe | None) -> list[str]:
    tags = folder / "tags.txt"
    with output.writing(job.path):
        text = recipes.ffmetadata(recipe) if recipe is not None else ";FFMETADATA1\n"
        tags.write_text(text, encoding="utf-8", newline="\n")
    return ["-f", "ffmetadata", "-i", ffmpeg.url(tags)]


def _send(
    frames: Iterator[np.ndarray] | None, arguments: list[str], job: Job, sink: BinaryIO | None
) -> None:
    with ffmpeg.encoder(arguments, job.path, sink) as process:
        for chunk in frames or ():
            process.send(chunk)
