"""Sound: what a clip's audio becomes in an output that is longer, or begins at another time.

Where it can, the audio stream is copied as it is. Where silence must come before or after it, or
the container does not take its codec, it is encoded again (FLAC in mkv, AAC in mp4, Opus in webm).
GIF, WebP and folders of pictures carry no sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from sora_cli.media import ffmpeg, packets

if TYPE_CHECKING:
    from sora_cli.media.reader import Clip

NEAR = 0.1  # s that a copied stream may end before the pictures do
AT_ONCE = 0.05  # s that it may begin after them (or before: an encoder's delay)
_LAYOUTS = "aformat=channel_layouts=mono|stereo|5.1|7.1"  # that all three encoders know


@dataclass(frozen=True, kw_only=True, slots=True)
class Carrier:
    """How one kind of file takes sound: codecs that it takes as they are, an encoder for others."""

    copies: frozenset[str]
    encoder: tuple[str, ...]
    name: str


CARRIERS: Mapping[str, Carrier] = MappingProxyType(
    {
        ".mp4": Carrier(
            copies=frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus"}),
            encoder=("-c:a", "aac", "-b:a", "192k"),
            name="AAC",
        ),
        ".webm": Carrier(
            copies=frozenset({"opus", "vorbis"}),
            encoder=("-c:a", "libopus", "-b:a", "160k"),
            name="Opus",
        ),
        ".mkv": Carrier(
            copies=frozenset({"aac", "mp2", "mp3", "ac3", "eac3", "dts", "alac", "opus", "vorbis"})
            | {"flac", "truehd", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le"},
            encoder=("-c:a", "flac"),
            name="FLAC",
        ),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioPiece:
    """Seconds `start` … `stop` of a clip, by its pictures' clock, heard from `at` in the output."""

    source: Path
    codec: str
    zero: float  # the file's clock at its first picture
    begin: float  # where the stream begins and ends, by the pictures' clock
    end: float
    at: float
    start: float
    stop: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioPlan:
    """All that is heard in an output; silence elsewhere, up to the output's length."""

    pieces: tuple[AudioPiece, ...]


def piece(
    clip: Clip, *, at: float = 0.0, start: float = 0.0, stop: float | None = None
) -> AudioPiece | None:
    """The sound of a clip, or of a part of it; None when it has none.

    Args:
        at: seconds into the output at which second `start` of the clip is shown.
        stop: by the clip's clock; None for its end.
    """
    if clip.audio is None:
        return None
    stop = clip.duration if stop is None else stop
    return AudioPiece(
        source=clip.path, codec=clip.audio.codec, zero=clip.audio.zero, begin=clip.audio.start,
        end=clip.audio.end, at=at, start=start, stop=stop,
    )  # fmt: skip


def plan(*pieces: AudioPiece | None) -> AudioPlan | None:
    """What is heard of these pieces together; None when none of them has sound."""
    heard = tuple(piece for piece in pieces if piece is not None and piece.stop > piece.start)
    return AudioPlan(pieces=heard) if heard else None


def can_copy(audio: AudioPlan, suffix: str, seconds: float) -> bool:
    """Whether the stream fits as it is: from the output's start to its end, of a codec it takes."""
    only = audio.pieces[0]
    spans = abs(only.begin) <= AT_ONCE and min(only.end, only.stop) >= seconds - NEAR
    from_start = only.at == 0 and only.start == 0 and only.stop >= min(only.end, seconds) - NEAR
    return len(audio.pieces) == 1 and spans and from_start and only.codec in CARRIERS[suffix].copies


def arguments(
    audio: AudioPlan, suffix: str, seconds: float, first_input: int
) -> tuple[list[str], list[str]]:
    """ffmpeg's inputs, and its filters and options, for an output of `seconds`.

    `first_input` is the number that the first of these inputs gets. Needs `-copyts`.
    """
    inputs, chains = [], []
    if can_copy(audio, suffix, seconds):
        only = audio.pieces[0]
        shifted = ["-itsoffset", f"{-only.zero:.6f}", *_input(only.source)]
        return shifted, ["-map", f"{first_input}:a:0", "-c:a", "copy", "-t", f"{seconds:.6f}"]
    for number, heard in enumerate(audio.pieces):
        inputs += _input(heard.source)
        low, high = heard.zero + heard.start, heard.zero + heard.stop
        chains.append(
            f"[{first_input + number}:a:0]atrim=start={low:.6f}:end={high:.6f},"
            f"asetpts=PTS+({heard.at - low:.6f})/TB,"
            f"aresample=48000:async=1:first_pts=0,{_LAYOUTS}[piece{number}]"
        )
    names = "".join(f"[piece{number}]" for number in range(len(chains)))
    mix = f"amix=inputs={len(chains)}:normalize=0," if len(chains) > 1 else ""
    chains.append(f"{names}{mix}apad=whole_dur={seconds:.6f},atrim=end={seconds:.6f}[sound]")
    graph = ["-filter_complex", ";".join(chains), "-map", "[sound]"]
    return inputs, [*graph, *CARRIERS[suffix].encoder]


def _input(path: Path) -> list[str]:
    return ["-vn", "-sn", *packets.limits(), "-i", ffmpeg.url(path)]


def names(audio: AudioPlan) -> str:
    """The files that are heard, for messages."""
    return ", ".join(dict.fromkeys(str(heard.source) for heard in audio.pieces))


def note(audio: AudioPlan, suffix: str, seconds: float) -> str:
    """A sentence for the user: what became of the sound. A folder's suffix is empty."""
    sources = names(audio)
    if suffix not in CARRIERS:
        kind = f"a {suffix[1:]}" if suffix else "a folder of pictures"
        return f"{kind} carries no sound: the audio of {sources} is dropped"
    if can_copy(audio, suffix, seconds):
        return f"the audio of {sources} is kept as it is"
    return f"the audio of {sources} is kept, as {CARRIERS[suffix].name}, with silence elsewhere"
