"""What a video file holds, found without keeping a frame.

The ffmpeg that imageio-ffmpeg brings comes without ffprobe, and what `ffmpeg -i` prints is for
people: rates rounded to "23.98", no count of frames, a stranger's tags between the lines. So two
short runs are read instead. One copies the packets (nothing is decoded) into ffmpeg's own test
format, framecrc, whose lines are exact timestamps; the other decodes the first frame and lets the
filter `showinfo` say what frames the decoder really gives. Where packets are not frames (hidden
frames, no timestamps, a start in the middle of a group), the frames are counted by decoding.
"""

from __future__ import annotations

import re
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from sora_cli.media import ffmpeg, packets
from sora_cli.media.packets import NO_TIME, Audio, check_size, reading, too_slow, unreadable


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a video file says of itself and its first frame shows.

    `ticks` are the timestamps of its frames in the order they are shown, in units of `tick`
    seconds; None when the file has none. Those of a `regular` file are its packets' own, so a frame
    is found by its timestamp; `keys` are those at which decoding can start.
    """

    path: Path
    codec: str
    num_stored: int
    ticks: np.ndarray | None  # int64 [num_stored], increasing
    tick: Fraction
    regular: bool
    last_ticks: int  # how long the last frame is shown
    keys: np.ndarray  # int64, increasing
    told_fps: Fraction | None
    width: int  # upright, with square pixels
    height: int
    square: bool  # False: stored with other pixels than square ones
    pixel_format: str
    bit_depth: int
    has_alpha: bool
    interlaced: bool
    rotation: float  # degrees that a player turns the picture
    color_range: str
    color_space: str
    color_primaries: str
    color_trc: str
    audio: Audio | None

    @property
    def start(self) -> float:
        """When the first frame is shown, s in the file's clock."""
        return 0.0 if self.ticks is None else float(self.ticks[0] * self.tick)


def probe(path: Path) -> Facts:
    """Read what is needed to know of a video file. Raises UsageError, one clear line."""
    packets.check_file(path)
    found = packets.scan(path)
    first = _look(path, found)
    regular = (ticks := found.shown()) is not None
    if ticks is not None:
        count, tick, keys = len(ticks), found.tick, np.unique(np.array(found.keys, np.int64))
    else:
        counted = Look()
        _show(path, counted, ())
        ticks, count, tick = counted.ticks(), len(counted.pts), counted.tick
        keys = np.array([], np.int64)
    if ticks is None and first.fps is None:
        raise packets.no_rate(path)
    width, height = first.size
    return Facts(
        path=path, codec=found.codec, num_stored=count, ticks=ticks, tick=tick,
        regular=regular, keys=keys, last_ticks=found.last_duration(tick), told_fps=first.fps,
        width=max(1, round(width * first.sar)), height=height, square=first.sar == 1,
        pixel_format=first.pixel_format, bit_depth=_depth(first.pixel_format),
        has_alpha=bool(_ALPHA.match(first.pixel_format)), interlaced=first.interlaced,
        rotation=first.rotation, audio=found.audio(), **first.colours,
    )  # fmt: skip


# ---------------------------------------------------------------- the first frame

_ALPHA = re.compile(r"rgba|bgra|argb|abgr|yuva|ya\d|gbrap|pal8|ayuv|vuya")
_LOG = re.compile(r"\[Parsed_showinfo_\d+ @ \w+\] *(.*)")


@dataclass
class Look:
    """Takes ffmpeg's log: what showinfo says of the link, then of each frame and its colours."""

    tick: Fraction = Fraction(1)
    fps: Fraction | None = None
    size: tuple[int, int] = (0, 0)
    sar: Fraction = Fraction(1)
    pixel_format: str = ""
    interlaced: bool = False
    rotation: float = 0.0
    colours: dict[str, str] = field(default_factory=dict)
    pts: array[int] = field(default_factory=lambda: array("q"))
    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        # A stranger's tags are in this log too, and an ffmpeg that crashes ends within a line.
        with suppress(ValueError, KeyError, ArithmeticError):
            self._take(line)

    def _take(self, line: str) -> None:
        match = _LOG.match(line)
        if match is None:
            self._other(line)
        elif link := re.match(r"config in time_base: (\S+), frame_rate: (\d+)/(\d+)", match[1]):
            self.tick = packets.time_base(link[1])
            numerator, denominator = int(link[2]), int(link[3])
            known = numerator > 0 and denominator > 0
            self.fps = Fraction(numerator, denominator) if known else None
        elif shown := re.match(r"n: *\d+ pts: *(-?\d+|NOPTS)", match[1]):
            self.pts.append(NO_TIME if shown[1] == "NOPTS" else int(shown[1]))
            if len(self.pts) == 1:
                self._first(match[1])
        elif "color_range:" in match[1] and not self.colours:
            names = ("color_range", "color_space", "color_primaries", "color_trc")
            found = dict(re.findall(r"(color_\w+):(\S+)", match[1]))
            self.colours = {name: found.get(name, "unknown") for name in names}

    def _first(self, line: str) -> None:
        values = dict(re.findall(r"\b(fmt|sar|s|i):(\S+)", line))
        width, height = values["s"].split("x")
        self.size = (int(width), int(height))
        across, down = (int(side) for side in values["sar"].split("/"))
        ratio = Fraction(across, down) if across and down else Fraction(1)
        self.sar = ratio if Fraction(1, 4) <= ratio <= 4 else Fraction(1)  # else a lie
        self.pixel_format, self.interlaced = values["fmt"], values["i"] in "TB"

    def _other(self, line: str) -> None:
        # only for a note, since a stranger's tags could say this too
        if turned := re.search(r"isplay ?[Mm]atrix: rotation of (-?[\d.]+)", line):
            self.rotation = self.rotation or float(turned[1])  # the output has one too, of 0
        elif re.match(r"\[", line):
            self.lines = [*self.lines[-20:], line]

    def ticks(self) -> np.ndarray | None:
        """The timestamps, equal ones moved apart; None when some are missing or go back."""
        ticks = np.array(self.pts, np.int64)
        if not len(ticks) or (ticks == NO_TIME).any() or (np.diff(ticks) < 0).any():
            return None
        numbers = np.arange(len(ticks))
        return np.maximum.accumulate(ticks - numbers) + numbers


def _look(path: Path, found: packets.Packets) -> Look:
    if not found.pts:
        raise unreadable(path, "it is cut off or damaged: no frame is in it")
    look = Look()
    code, silent = _show(path, look, ("-frames:v", "1"))
    if silent:
        raise too_slow(path)
    if not look.pts:
        packets.check_log(path, look.lines, code)
        raise unreadable(path, "no frame of it can be decoded")
    if not look.colours:
        look.colours = dict.fromkeys(
            ("color_range", "color_space", "color_primaries", "color_trc"), "unknown"
        )
    check_size(path, *look.size)
    return look


def _show(path: Path, look: Look, limit: tuple[str, ...]) -> tuple[int, bool]:
    filters = ["-vf", "showinfo=checksum=0", "-fps_mode", "passthrough"]
    arguments = ["-v", "info", *reading(path), "-map", "0:V:0", *limit, *filters]
    with ffmpeg.source([*arguments, "-f", "null", "-"], listen=look) as process:
        return process.finish(), process.silent


def _depth(pixel_format: str) -> int:
    """Bits of a sample, as the name of a pixel format says: yuv420p10le, p010le, rgb48, x2rgb10."""
    if match := re.search(
        r"(?:p[024]?|gray|f|rgb|bgr|y2)(9|10|12|14|16|32)(?:le|be)?$", pixel_format
    ):
        return int(match[1])
    if re.match(r"(rgb|bgr)48|(rgba|bgra)64|ya16|ayuv64", pixel_format):
        return 16
    return 8
