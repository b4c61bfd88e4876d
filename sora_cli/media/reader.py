"""Clips in: anything ffmpeg reads, moving pictures, folders of frames, one still picture.

`open_clip` looks and keeps no frame; frames are decoded when they are asked for, from where they
are asked for, in chunks of bounded size. All come as 8-bit sRGB, upright, with square pixels, at
one constant rate; `Clip.notes` says what was changed for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from sora_cli.media import colour, decode, image, packets, stills, timing
from sora_cli.media.packets import Audio
from sora_cli.media.probe import Facts, probe
from sora_cli.media.timing import Timing

Stored = Callable[[int, int], Iterator[np.ndarray]]  # (first, count) → chunks of stored frames


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clip:
    """A clip that can be read; of its frames nothing is in memory.

    Sizes are what `frames` gives: upright, with square pixels. `fps` is the constant rate they come
    at; a clip with `variable_rate` has `average_fps` stored frames a second. `notes` are sentences
    for the user about what reading changes.
    """

    path: Path
    width: int
    height: int
    timing: Timing
    bit_depth: int
    is_hdr: bool
    audio: Audio | None  # times in seconds from the first frame
    notes: tuple[str, ...]
    stored: Stored

    @property
    def fps(self) -> Fraction:
        """Frames a second."""
        return self.timing.fps

    @property
    def average_fps(self) -> Fraction:
        """Stored frames a second; `fps`, unless the rate varies."""
        return self.timing.average_fps

    @property
    def variable_rate(self) -> bool:
        """Whether frames are repeated or left out to come at a constant rate."""
        return self.timing.shown is not None

    @property
    def num_frames(self) -> int:
        """How many frames `frames` gives, exactly."""
        return self.timing.num_frames

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.num_frames / self.fps)

    @property
    def has_audio(self) -> bool:
        """Whether there is sound."""
        return self.audio is not None

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Frames start … stop − 1 as chunks uint8 RGB [t, H, W, 3] of bounded size.

        Raises UsageError when the file is damaged where it is read.
        """
        stop = self.num_frames if stop is None else stop
        assert 0 <= start <= stop <= self.num_frames, (start, stop, self.num_frames)
        if start == stop:
            return iter(())
        if self.timing.shown is None:
            return self.stored(start, stop - start)
        return self._repeated(self.timing.shown[start:stop])

    def head(self, count: int) -> np.ndarray:
        """The first frames, all of them when there are fewer: uint8 [t, H, W, 3]."""
        return np.concatenate(list(self.frames(0, min(count, self.num_frames))))

    def tail(self, count: int) -> np.ndarray:
        """The last frames, all of them when there are fewer: uint8 [t, H, W, 3]."""
        return np.concatenate(list(self.frames(max(0, self.num_frames - count))))

    def _repeated(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        base = int(wanted[0])
        at_once = decode.chunk_frames(self.width, self.height)
        for chunk in self.stored(base, int(wanted[-1]) - base + 1):
            low, high = np.searchsorted(wanted, [base, base + len(chunk)])
            picks = wanted[low:high] - base
            for at in range(0, len(picks), at_once):
                yield chunk[picks[at : at + at_once]]
            base += len(chunk)


def open_clip(path: str | Path) -> Clip:
    """Look at a clip: a video, an animated picture, a folder of PNGs, a still picture.

    Raises UsageError: missing, empty, damaged, cut off, not a video, a list of other files, too
    large, without a rate. What only decoding finds out is raised by `Clip.frames`.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    packets.check_file(path)
    with path.open("rb") as file:
        head = file.read(1 << 16)
    kind = stills.kind(head)
    if kind == "still":
        return _still(path)
    if kind == "webp":
        return _webp(path)
    return _video(path)


def _video(path: Path) -> Clip:
    facts = probe(path)
    notes = _notes(facts)
    if facts.ticks is None:
        assert facts.told_fps is not None  # else `probe` raised
        rate = timing.constant(facts.num_stored, facts.told_fps)
        notes.append(f"no timestamps: read as {_number(rate.fps)} fps")
    else:
        rate = _timing(path, facts.ticks, facts.tick, facts.last_ticks, facts.told_fps)
        notes += _rate_notes(rate)
    audio = facts.audio.since(facts.start) if facts.audio else None

    def stored(start: int, count: int) -> Iterator[np.ndarray]:
        return decode.stored(facts, start, count)

    return Clip(
        path=path, width=facts.width, height=facts.height, timing=rate,
        bit_depth=facts.bit_depth, is_hdr=colour.is_hdr(facts), audio=audio, notes=tuple(notes),
        stored=stored,
    )  # fmt: skip


def _timing(
    path: Path, ticks: np.ndarray, tick: Fraction, last: int, told: Fraction | None
) -> Timing:
    rate = timing.timing(ticks, tick, last, told, packets.MAX_FRAMES)
    if rate is None:
        raise packets.unreadable(
            path, f"its times run over more than {packets.MAX_FRAMES:,} frames"
        )
    return rate


def _rate_notes(rate: Timing) -> list[str]:
    if rate.shown is None:
        return []
    average = _number(rate.average_fps)
    return [f"variable frame rate ({average} on average) read as {_number(rate.fps)} fps"]


def _notes(facts: Facts) -> list[str]:
    notes = []
    if facts.rotation:
        notes.append(f"rotated by {abs(facts.rotation):g}°, as its rotation flag says")
    if not facts.square:
        notes.append(f"its pixels are not square: read as {facts.width}×{facts.height}")
    if colour.is_hdr(facts):
        name = "PQ" if facts.color_trc == "smpte2084" else "HLG"
        notes.append(f"HDR ({name}) tone-mapped to SDR")
    elif colour.is_wide(facts):
        notes.append("its wide colours (BT.2020 or P3) are brought into sRGB")
    if facts.bit_depth > 8 and not colour.is_hdr(facts):
        notes.append(f"{facts.bit_depth} bits a sample read as 8")
    if facts.has_alpha and facts.codec != "gif":  # most are opaque, and none says so
        notes.append("transparent parts lie over white")
    if facts.interlaced:
        notes.append("interlaced: both fields are read as one picture")
    return notes


def _number(fps: Fraction) -> str:
    return f"{float(fps):.5g}"


# ---------------------------------------------------------------- pictures


def _still(path: Path) -> Clip:
    frame = image.read(path)[None]  # [1, H, W, 3]

    def stored(start: int, count: int) -> Iterator[np.ndarray]:
        yield frame

    return _of_pictures(
        path, frame.shape[2], frame.shape[1], timing.constant(1, timing.SINGLE), stored
    )


def _webp(path: Path) -> Clip:
    width, height, durations = stills.webp_durations(path)
    packets.check_size(path, width, height)
    ends = np.cumsum(np.array(durations, np.int64))  # ms
    rate = _timing(path, np.concatenate([[0], ends[:-1]]), Fraction(1, 1000), durations[-1], None)

    def stored(start: int, count: int) -> Iterator[np.ndarray]:
        return stills.webp_frames(path, start, count, decode.chunk_frames(width, height))

    return _of_pictures(path, width, height, rate, stored, tuple(_rate_notes(rate)))


def _folder(path: Path) -> Clip:
    files = stills.frame_files(path)
    fps, notes = stills.folder_rate(path)
    height, width = image.read(files[0]).shape[:2]

    def stored(start: int, count: int) -> Iterator[np.ndarray]:
        some = files[start : start + count]
        return stills.folder_frames(some, (width, height), decode.chunk_frames(width, height))

    return _of_pictures(path, width, height, timing.constant(len(files), fps), stored, notes)


def _of_pictures(
    path: Path, width: int, height: int, rate: Timing, stored: Stored, notes: tuple[str, ...] = ()
) -> Clip:
    return Clip(
        path=path, width=width, height=height, timing=rate, bit_depth=8, is_hdr=False, audio=None,
        notes=notes, stored=stored,
    )  # fmt: skip
