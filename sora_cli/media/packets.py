"""The packets of a stranger's video file: timestamps, streams, and what is wrong with it.

ffmpeg copies the packets (nothing is decoded) into its own test format, framecrc, whose lines are
exact timestamps. Only this one file is opened, and nothing of it is executed.
"""

from __future__ import annotations

import os
import re
import stat
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from sora_cli.errors import SoraError, UsageError
from sora_cli.media import ffmpeg
from sora_cli.media.image import MIN_SIDE

MAX_PIXELS = 1 << 26  # of one frame: 8192×8192, twice 8K; three bytes each when read
MAX_FRAMES = 5_000_000  # 23 hours at 60 a second

# Containers of video. Not among them: lists of other files (hls, dash, concat, sdp, imf, image2),
# scripts (avisynth, vapoursynth, lavfi), devices. A clip must not make us open anything else.
DEMUXERS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "flv", "live_flv"),
    *("asf", "mpegts", "mpeg", "mpegvideo", "m4v", "gif", "apng", "ogg", "nut", "ivf", "obu"),
    *("av1", "h261", "h263", "h264", "hevc", "vvc", "vc1", "cavsvideo", "dirac", "evc", "avs2"),
    *("avs3", "yuv4mpegpipe", "dv", "mxf", "gxf", "lxf", "rm", "swf", "wtv", "mjpeg", "dnxhd"),
    *("nuv", "roq", "smk", "bink", "film_cpk", "nsv", "mtv", "vivo", "dhav", "cine", "r3d", "amv"),
)
# Codecs of which one packet is one frame, so that counting packets counts frames.
WHOLE = frozenset(
    {"h264", "hevc", "vvc", "av1", "vp9", "mpeg1video", "mpeg2video", "mjpeg", "jpeg2000", "png"}
    | {"prores", "dnxhd", "cfhd", "ffv1", "ffvhuff", "huffyuv", "utvideo", "magicyuv", "qtrle"}
    | {"rawvideo", "v210", "gif", "apng", "dvvideo"}
)
# Codecs that draw on the frame before, also where a packet says that one can start there.
FROM_THE_START = frozenset(("gif", "apng"))

NO_TIME = -(1 << 63)
KEY, DISCARD = 1, 4  # AV_PKT_FLAG_KEY, AV_PKT_FLAG_DISCARD


def limits() -> list[str]:
    """The input options for a stranger's file: only this file, frames and threads bounded."""
    threads = str(min(8, os.cpu_count() or 1))  # each holds frames
    allowed = ["-protocol_whitelist", "file,pipe", "-format_whitelist", ",".join(DEMUXERS)]
    return [*allowed, "-threads", threads, "-max_pixels", str(MAX_PIXELS)]


def reading(path: Path) -> list[str]:
    """The arguments before and with `-i`, timestamps as they are in the file."""
    return [*limits(), "-copyts", "-i", ffmpeg.url(path)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Audio:
    """The first audio stream; it begins and ends at `start` and `end` seconds.

    They are in the file's own clock until `since` counts them from `zero`.
    """

    codec: str
    start: float
    end: float
    zero: float = 0.0  # the file's clock at the first picture

    def since(self, zero: float) -> Audio:
        """The same, with times counted from the first picture, which is at `zero`."""
        return Audio(codec=self.codec, start=self.start - zero, end=self.end - zero, zero=zero)


def unreadable(path: object, reason: str, hint: str | None = None) -> SoraError:
    """The one message for a clip that cannot be read."""
    return UsageError(
        f"cannot read the clip {path}: {reason}",
        hint=hint or f"if another program reads it, convert it first: ffmpeg -i {path} clip.mp4",
    )


def check_size(path: object, width: int, height: int) -> None:
    """Raise UsageError, before anything is decoded, for frames that are too large or too small."""
    if 0 < min(width, height) < MIN_SIDE:
        least = f"{MIN_SIDE}×{MIN_SIDE} is the least"
        raise unreadable(
            path, f"its frames have {width}×{height} pixels; {least}", "give a larger one"
        )
    if width * height > MAX_PIXELS:
        raise unreadable(
            path,
            f"its frames of {width}×{height} have more than {MAX_PIXELS // 1_000_000} megapixels",
            f"ffmpeg -i {path} -vf scale=1920:-2 smaller.mp4",
        )


def check_file(path: Path) -> None:
    """Raise UsageError for what can be told without ffmpeg."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # before opening it: a pipe would wait for its writer
            raise unreadable(path, "it is not a regular file")
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}", hint=f"ls {path.parent}") from None
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error
    if status.st_size == 0:
        raise unreadable(path, "it is empty", "make or copy it again")
    if head.startswith(b"YUV4MPEG2") and re.search(rb" F0+:", head.split(b"\n")[0]):
        raise no_rate(path)


def no_rate(path: object) -> SoraError:
    """The message for a clip that says 0 frames a second."""
    return unreadable(
        path, "it says 0 frames a second", f"ffmpeg -r 25 -i {path} timed.mp4 gives it a rate"
    )


def time_base(text: str) -> Fraction:
    """Seconds of a tick: "1/10240". Raises ValueError or ArithmeticError for what is none."""
    tick = Fraction(text)
    if not (0 < tick.numerator < 1 << 31 and tick.denominator < 1 << 31):  # an AVRational's
        raise ValueError(f"no time base: {text:.40}")
    return tick


@dataclass
class Packets:
    """The lines of framecrc: stream, dts, pts, duration, size, checksum, flags unless key."""

    codec: str = ""
    tick: Fraction = Fraction(1)
    pts: array[int] = field(default_factory=lambda: array("q"))
    durations: array[int] = field(default_factory=lambda: array("q"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    starts_with_key: bool | None = None
    audio_codec: str | None = None
    audio_tick: Fraction = Fraction(1)
    audio_span: tuple[int, int] | None = None

    def take(self, line: str) -> tuple[int, int] | None:
        """Take any line; returns the frame size when it is that.

        One that an ffmpeg that crashed left half-written counts as none.
        """
        with suppress(ValueError, IndexError, ArithmeticError):
            if line.startswith("#"):
                return self.header(line)
            if line[:1].isdecimal():
                self.packet(line)
        return None

    def header(self, line: str) -> tuple[int, int] | None:
        """Take a `#name stream: value` line; returns the frame size when it is that."""
        match = re.fullmatch(r"#(\w+) ([01]): (\S+)", line)
        if not match:
            return None
        name, stream, value = match.groups()
        if name == "tb":
            if stream == "0":
                self.tick = time_base(value)
            else:
                self.audio_tick = time_base(value)
        elif name == "codec_id" and stream == "0":
            self.codec = value
        elif name == "codec_id":
            self.audio_codec = value
        elif name == "dimensions" and stream == "0":
            width, height = value.split("x")
            return int(width), int(height)
        return None

    def packet(self, line: str) -> None:
        """Take a packet's line."""
        fields = line.split(",")
        pts, duration = array("q", (int(fields[2]), int(fields[3])))  # both fit, or neither counts
        flags = int(fields[6].split("=")[1], 16) if len(fields) > 6 and "F=" in fields[6] else KEY
        if fields[0] == "1":
            if pts != NO_TIME and not flags & DISCARD:
                begin = pts if self.audio_span is None else min(pts, self.audio_span[0])
                self.audio_span = (begin, pts + duration)
            return
        if self.starts_with_key is None:
            self.starts_with_key = bool(flags & KEY)
        if flags & KEY and pts != NO_TIME:
            self.keys.append(pts)
        if not flags & DISCARD:
            self.pts.append(pts)
            self.durations.append(duration)

    def shown(self) -> np.ndarray | None:
        """Timestamps in the order of showing; None when packets cannot be trusted to be frames."""
        ticks = np.sort(np.array(self.pts, np.int64))
        irregular = (
            not len(ticks)
            or ticks[0] == NO_TIME
            or bool((np.diff(ticks) <= 0).any())
            or not self.starts_with_key
            or self.codec not in WHOLE
        )
        return None if irregular else ticks

    def last_duration(self, tick: Fraction) -> int:
        """How long the frame that is shown last stays, in units of `tick`; 0 when unknown."""
        last = max(zip(self.pts, self.durations, strict=True))[1]
        return max(0, round(last * self.tick / tick))

    def audio(self) -> Audio | None:
        """The first audio stream, when it has packets."""
        if self.audio_codec is None or self.audio_span is None:
            return None
        start, end = (float(ticks * self.audio_tick) for ticks in self.audio_span)
        return Audio(codec=self.audio_codec, start=start, end=end)


def scan(path: Path) -> Packets:
    """Read all packets of the first video and audio stream. Raises UsageError."""
    packets = Packets()
    streams = ["-map", "0:V:0", "-map", "0:a:0?", "-c", "copy", "-copyinkf"]
    arguments = ["-v", "warning", *reading(path), *streams, "-f", "framecrc"]
    with ffmpeg.source([*arguments, "-flush_packets", "1", "pipe:1"]) as process:
        for line in process.text():
            if size := packets.take(line):
                check_size(path, *size)
            if len(packets.pts) > MAX_FRAMES:
                raise unreadable(path, f"it has more than {MAX_FRAMES:,} frames")
        code = process.finish()
        if process.silent:
            raise too_slow(path)
        check_log(path, list(process.lines), code)
    return packets


def too_slow(path: object) -> SoraError:
    """The message for a file at which ffmpeg hangs."""
    return unreadable(path, f"nothing of it came within {ffmpeg.SILENCE:.0f} seconds")


def check_log(path: Path, lines: list[str], code: int) -> None:
    """Raise UsageError for what made ffmpeg stop, and for a file that ends too early."""
    log = "\n".join(lines)
    whole = f"copy it again, or keep what is there: ffmpeg -i {path} -c copy whole.mkv"
    if re.search(r"scale/rate is \d+/0\b", log):
        raise no_rate(path)
    if re.search(r"partial file|File ended prematurely", log):
        raise unreadable(path, "it is cut off", whole)
    if code == 0:
        return
    if "moov atom not found" in log:
        raise unreadable(path, "it is cut off, damaged or no video: it has no index", whole)
    if "matches no streams" in log:
        raise unreadable(path, "it has no video stream")
    if size := re.search(r"Picture size (\d+)x(\d+) is invalid", log):
        check_size(path, *map(int, size.groups()))
    if "not on whitelist" in log:
        raise unreadable(path, "it is no video; sound and lists of other files are not read")
    if "Invalid data found" in log or "Invalid argument" in log:
        raise unreadable(path, "it is not a video, or damaged")
    newer = "`sora doctor` names the ffmpeg in use; a newer one: pip install -U imageio-ffmpeg"
    raise unreadable(path, _reason(lines, code), newer if code < 0 else None)


def _reason(lines: list[str], code: int) -> str:
    if code < 0:
        return f"ffmpeg crashed on it (signal {-code})"
    told = (re.sub(r"^(\[[^]]*\] ?)+", "", line) for line in lines)
    reason = next((line for line in told if line), f"ffmpeg ended with code {code}")
    # it may quote bytes of the file, and those could steer a terminal
    return "".join(c if c.isprintable() else "?" for c in reason[:120])
