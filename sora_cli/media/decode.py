"""The stored frames of a video file, decoded from where one wants them, exact to the frame.

A read in the middle seeks to the key frame before it, decodes from there, and drops what comes
before the frame's exact timestamp. The filter `showinfo` then says which timestamp each frame
really has. Where an index lies, or a decoder leaves out a frame after a seek (some do in open
groups), the rest is read again from further back, in the end from the start of the file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from sora_cli.media import colour, ffmpeg, packets
from sora_cli.media.probe import Facts, Look

CHUNK_BYTES = 32 << 20  # of frames that are read at once, at least one frame
GROUPS = (1, 4, None)  # from how many key frames back a read is tried; None: from the start


def chunk_frames(width: int, height: int) -> int:
    """How many RGB frames of this size make a chunk of at most CHUNK_BYTES (at least one)."""
    return max(1, CHUNK_BYTES // (3 * width * height))


class _Times:
    """The timestamps of the frames that passed the filter, as the log tells them."""

    def __init__(self) -> None:
        self.look = Look()
        self.told = threading.Condition()

    def __call__(self, line: str) -> None:
        with self.told:
            self.look(line)
            self.told.notify()

    def right(self, facts: Facts, start: int, first: int, count: int) -> int:
        """How many of frames first … first + count − 1 of a read are those of the file."""
        if facts.ticks is None or not facts.regular:
            return count
        pts = self.look.pts
        with self.told:  # each is logged before its frame comes, but in another pipe
            self.told.wait_for(lambda: len(pts) >= first + count, timeout=5.0)
            told = np.array(pts[first : first + count], np.int64)
        wanted = facts.ticks[start + first :][: len(told)]
        apart = np.abs(told * float(self.look.tick) - wanted * float(facts.tick))  # s
        wrong = np.flatnonzero(apart >= float(facts.tick))
        return int(wrong[0]) if len(wrong) else len(told)


def stored(facts: Facts, start: int, count: int) -> Iterator[np.ndarray]:
    """Stored frames start … start + count − 1 as chunks uint8 RGB [t, H, W, 3].

    Raises UsageError when fewer can be decoded.
    """
    done = 0
    for groups in GROUPS:
        at = seek_to(facts, start + done, groups)
        for chunk in _decoded(facts, start + done, count - done, at):
            done += len(chunk)
            yield chunk
        if done == count:
            return
    raise packets.unreadable(
        facts.path,
        f"it is damaged: {done} of the {count} frames from frame {start} can be decoded",
        f"ffmpeg -i {facts.path} -c:v ffv1 whole.mkv keeps what is there",
    )


def seek_to(facts: Facts, start: int, groups: int | None) -> float | None:
    """Where decoding begins for frame `start`: the key frame so many groups before; None: at 0."""
    if groups is None or not facts.regular or facts.codec in packets.FROM_THE_START:
        return None
    assert facts.ticks is not None
    before = facts.keys[facts.keys <= facts.ticks[start]]
    if len(before) <= groups:
        return None
    return float(before[-groups] * facts.tick) + 1e-6  # ffmpeg counts in microseconds


def _decoded(facts: Facts, start: int, count: int, at: float | None) -> Iterator[np.ndarray]:
    """Chunks of frames, up to the first that is not the file's next one."""
    channels = 4 if facts.has_alpha else 3
    size = (facts.height, facts.width, channels)
    at_once = chunk_frames(facts.width, facts.height)
    times = _Times()
    with ExitStack() as stack:
        folder = None
        if colour.is_hdr(facts) or colour.is_wide(facts):
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="sora-")))
            colour.write_lut(folder, facts)
        arguments = _arguments(facts, start, count, at)
        process = stack.enter_context(ffmpeg.source(arguments, listen=times, folder=folder))
        done = 0
        while done < count:
            chunk = np.empty((min(count - done, at_once), *size), np.uint8)
            got = process.fill(chunk.data.cast("B")) // (chunk.nbytes // len(chunk))
            if process.silent:
                raise packets.too_slow(facts.path)
            right = times.right(facts, start, done, got) if got else 0
            if right:
                yield _over_white(chunk[:right]) if facts.has_alpha else chunk[:right]
            if right < len(chunk):
                return
            done += right


def _arguments(facts: Facts, start: int, count: int, at: float | None) -> list[str]:
    seek = (
        ["-seek_timestamp", "1", "-noaccurate_seek", "-ss", f"{at:.6f}"] if at is not None else []
    )
    if facts.ticks is None or not facts.regular:
        drop = [f"select=gte(n\\,{start})"] if start else []
    else:
        drop = [f"trim=start_pts={facts.ticks[start]}"] if start else []
    chain = ",".join([*drop, "showinfo=checksum=0", *colour.filters(facts)])
    output = ["-vf", chain, "-fps_mode", "passthrough", "-frames:v", str(count)]
    return [
        *("-v", "info", *seek, *packets.reading(facts.path), "-map", "0:V:0", *output),
        *("-f", "rawvideo", "pipe:1"),
    ]


def _over_white(frames: np.ndarray) -> np.ndarray:
    """RGBA uint8 [..., 4] over white, as pictures are read: uint8 [..., 3]."""
    alpha = frames[..., 3:].astype(np.uint16)
    mixed = frames[..., :3] * alpha + 255 * (255 - alpha) + 127
    return (mixed // 255).astype(np.uint8)
