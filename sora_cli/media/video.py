"""Videos out: frames come as an iterator of chunks and stream into the encoder.

A long video never sits in memory whole, in any format.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sora_cli.errors import UsageError
from sora_cli.media import audio as sounds
from sora_cli.media import encode, ffmpeg, output
from sora_cli.media import recipe as recipes
from sora_cli.media.audio import AudioPlan
from sora_cli.media.encode import FORMATS, Job
from sora_cli.media.output import Seal
from sora_cli.media.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np


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


def write(
    path: str | Path | BinaryIO,
    chunks: Iterable[np.ndarray],
    *,
    width: int,
    height: int,
    fps: float,
    recipe: Recipe | Callable[[], Recipe] | None = None,
    audio: AudioPlan | None = None,
    crf: int = 18,
    force: bool = False,
    format: str = ".mp4",
    seal: Seal | None = None,
) -> tuple[str, ...]:
    """Write frames as a video, whole or not at all; nothing is created before the first chunk.

    Args:
        path: its suffix chooses the format; a binary stream gets `format`.
        chunks: uint8 RGB [t, height, width, 3], t ≥ 1.
        recipe: what the file carries. A callable is called after the last frame was taken, so
            that it can say what was measured on the way; the video is then copied once, without
            encoding it again. Only a live stream (mp4, mkv or webm, without audio) has its recipe
            before its frames: there it is called once the first chunk is made.
        audio: what is heard; silence elsewhere. A stream with audio is written when it is whole.
        crf: quality of H.264 and VP9, lower is better; WebP's quality is 100 − crf.
        seal: the last thing done to the file (not to a folder), before it takes its place.

    Returns:
        Notes for the user: what became of the audio.

    Raises:
        UsageError: unknown suffix, existing output without `force`.
        OutputError: the disk is full, the folder not writable, ffmpeg died.
        BrokenPipeError: the stream's reader went away.
    """
    size = (width, height)
    if isinstance(path, (str, Path)):
        suffix = check_output(path, force=force)
        if suffix == output.FOLDER:
            _write_folder(path, _Started(chunks, size, padded=size), recipe, force)
            return (sounds.note(audio, suffix, 0.0),) if audio else ()
        job = encode.job(path, suffix, size, fps, crf)
        frames = _Started(chunks, size, padded=job.size)
        with output.new_file(path, force=force) as temporary, output.beside(path) as workspace:
            return _write_file(temporary, frames, job, recipe, audio, workspace, seal)
    job = encode.job("the stream", check_stream(format), size, fps, crf)
    return _write_stream(path, _Started(chunks, size, padded=job.size), job, recipe, audio, seal)


class _Started:
    """The same chunks, contiguous, their right and bottom edges repeated up to `padded`; counted.

    The first one is made here, so that whatever is slow before it comes before any file.
    """

    def __init__(
        self, chunks: Iterable[np.ndarray], size: tuple[int, int], *, padded: tuple[int, int]
    ) -> None:
        self.count = 0
        self.frames = self._checked(chunks, size, padded)
        first = next(self.frames, None)
        assert first is not None, "no frames"
        self.frames = chain([first], self.frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.frames

    def _checked(
        self, chunks: Iterable[np.ndarray], size: tuple[int, int], padded: tuple[int, int]
    ) -> Iterator[np.ndarray]:
        import numpy as np

        right, bottom = padded[0] - size[0], padded[1] - size[1]
        for chunk in chunks:
            assert chunk.dtype == np.uint8 and chunk.shape[1:] == (*size[::-1], 3), chunk.shape
            self.count += len(chunk)
            if right or bottom:
                chunk = np.pad(chunk, [(0, 0), (0, bottom), (0, right), (0, 0)], "edge")
            yield np.ascontiguousarray(chunk)  # [t, H, W, 3]


def _write_file(
    file: Path,
    frames: _Started,
    job: Job,
    recipe: Recipe | Callable[[], Recipe] | None,
    audio: AudioPlan | None,
    workspace: Path,
    seal: Seal | None = None,
) -> tuple[str, ...]:
    """Write a whole file; `workspace` is an empty folder for what is only needed meanwhile."""
    if seal is not None:
        plain = workspace / "plain"
        notes = _write_file(plain, frames, job, recipe, audio, workspace)
        file.touch()
        seal(plain, file, job.suffix)
        return notes
    if job.kind.tagged and audio is None and not callable(recipe):
        encode.encode(iter(frames), ffmpeg.url(file), job, recipe)
        return ()
    if job.kind.tagged:
        made = workspace / "video"
        encode.encode(iter(frames), ffmpeg.url(made), job)
        seconds = float(frames.count / job.rate)
        return encode.finish(made, file, job, recipes.now(recipe), audio, seconds)
    if job.suffix == ".gif":
        encode.gif(iter(frames), file, job, workspace)
    else:
        encode.encode(iter(frames), ffmpeg.url(file), job)
    final = recipes.now(recipe)
    if final is not None:
        with output.writing(job.path):
            if job.suffix == ".gif":
                recipes.embed_gif(file, final)
            else:
                recipes.embed_webp(file, final, size=job.size)
    return (sounds.note(audio, job.suffix, 0.0),) if audio else ()


def _write_stream(
    sink: BinaryIO,
    frames: _Started,
    job: Job,
    recipe: Recipe | Callable[[], Recipe] | None,
    audio: AudioPlan | None,
    seal: Seal | None,
) -> tuple[str, ...]:
    if job.kind.live and audio is None and seal is None:
        encode.encode(iter(frames), "pipe:1", job, recipes.now(recipe), sink)
        return ()
    with output.scratch(job.path) as folder:
        file = folder / "video.whole"
        notes = _write_file(file, frames, job, recipe, audio, folder, seal)
        with output.writing(job.path), file.open("rb") as made:
            shutil.copyfileobj(made, sink)
            sink.flush()
    return notes


def _write_folder(
    path: str | Path,
    frames: _Started,
    recipe: Recipe | Callable[[], Recipe] | None,
    force: bool,
) -> None:
    from PIL import Image

    with output.new_folder(path, force=force) as folder:
        for number, frame in enumerate(chain.from_iterable(frames), 1):
            with output.writing(path):
                Image.fromarray(frame).save(folder / f"{number:06d}.png")
        final = recipes.now(recipe)
        if final is not None:
            text = recipes.to_text(final, indent=2) + "\n"
            with output.writing(path):
                (folder / recipes.FILE_NAME).write_text(text, encoding="utf-8")
