"""Storyboards: a video written down as a TOML file of timed prompts, pictures and clips.

    size = "160x96"            # these five are optional, and the command line wins over them
    fps = 8
    seed = 7
    model = "tiny"
    negative_prompt = ""
    duration = "9s"            # where the last shot ends, if it says nothing itself

    [[shot]]
    at = "0s"                  # or `duration = "3s"`; a shot lasts until the next one begins
    prompt = "a red ball rolls left on grass"

    [[shot]]
    at = "3s"
    prompt = "a red ball bounces on grass"   # join = "continue": goes on from the frames before

    [[shot]]
    at = "5s"
    image = "house.png"        # begins with the picture; join = "cut" unless said otherwise
    prompt = "a house in the snow"

    [[shot]]
    at = "7s"
    clip = "car.mp4"           # shown as it is, from `from` to `to`
    from = "1s"
    to = "3s"
    join = "continue"          # what comes before leads into it

`join` is "cut", "continue" or "blend". A blend of two made shots is a cross-fade over the time
`over` (1s); from a clip to a clip or a picture it is a way of that length, made between the two,
for which `prompt` says what is to be seen. No torch here: a bad file is refused at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from sora_cli.errors import UsageError
from sora_cli.pipeline.prompt import clean_text
from sora_cli.pipeline.shots import JOINS, OVER, Shot, Storyboard
from sora_cli.pipeline.toml_table import Table, first_line
from sora_cli.pipeline.units import parse_size

if TYPE_CHECKING:
    import numpy as np

    from sora_cli.pipeline.timeline import Kept, Segment, Span

MAX_SHOTS = 1000
MAX_BYTES = 1_000_000
TOLERANCE = 1e-3  # seconds: where times in a file count as the same
HEAD_KEYS = ("size", "fps", "seed", "model", "negative_prompt", "duration", "shot")
CONTEXT = 16  # frames asked of a clip's end, at the model's rate; more than a canvas is given
SHOT_KEYS = ("at", "duration", "prompt", "image", "last_image", "clip", "from", "to", "join",
              "over")  # fmt: skip


class Part(Protocol):
    """A clip, or a part of one, as the caller opened it."""

    @property
    def duration(self) -> float:
        """Seconds."""

    def kept(self) -> Kept:
        """Its frames as they go into the video."""

    def head(self, count: int) -> np.ndarray:
        """Its first frames as the model sees them, uint8 [t, h, w, 3]."""

    def tail(self, count: int) -> np.ndarray:
        """Its last frames as the model sees them; the last one is the clip's last."""


def read(path: Path) -> Storyboard:
    """The storyboard in a file; file names in it are relative to its folder, and not opened.

    Raises:
        UsageError: no such file, not TOML, or a key or a time that makes no sense, with its line.
    """
    try:
        content = path.read_bytes()
        if len(content) > MAX_BYTES:
            raise UsageError(
                f"{path} is too large for a storyboard ({len(content):,} bytes)",
                hint="sora storyboard board.toml",
            )
        text = content.decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"cannot read {path}: {reason}", hint="sora storyboard board.toml"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not a text file in UTF-8", hint="sora storyboard board.toml"
        ) from error
    return parse(text, path.parent, name=path.name)


def parse(text: str, folder: Path, name: str = "the storyboard") -> Storyboard:
    """The storyboard in a text; errors as `read`."""
    try:
        content = tomllib.loads(text)
    # Besides its own errors: numbers of too many digits, arrays within arrays without end.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not TOML: {first_line(error)}", hint=_EXAMPLE) from error
    table = Table(content=content, file=name, text=text, array="shot")
    table.only(HEAD_KEYS)
    tables = table.entries()
    if not 0 < len(tables) <= MAX_SHOTS:
        many = f"{len(tables):,} shots, more than {MAX_SHOTS:,}" if tables else "no shots"
        raise UsageError(f"{name} has {many}", hint=_EXAMPLE)
    shots = [_shot(entry, folder) for entry in tables]
    for number in range(1, len(shots)):
        _check_join(tables[number], shots[number - 1], shots[number])
    duration = table.seconds("duration", above=True)
    return Storyboard(
        shots=_timed(table, tables, shots, duration),
        size=table.parsed("size", parse_size),
        fps=table.number_of("fps"),
        seed=table.whole("seed"),
        model=table.string("model"),
        negative_prompt=table.string("negative_prompt"),
        duration=duration,
    )


_EXAMPLE = 'a storyboard has [[shot]] tables with prompt = "…" and duration = "3s"'


def _shot(table: Table, folder: Path) -> Shot:
    """One entry, its values checked."""
    table.only(SHOT_KEYS)
    image, clip = table.path("image", folder), table.path("clip", folder)
    given = image is not None or clip is not None
    default = "cut" if table.number == 0 or given else "continue"
    named = table.string("join") or default
    join = next((join for join in JOINS if join == named), None)
    if join is None:
        table.refuse("join", f"{named!r} is unknown", f"choose one: {', '.join(JOINS)}")
    shot = Shot(
        where=table.where, prompt=clean_text(table.string("prompt") or ""),
        start=table.seconds("at"), duration=table.seconds("duration", above=True), image=image,
        last_image=table.path("last_image", folder), clip=clip,
        clip_from=table.seconds("from") or 0.0, clip_to=table.seconds("to", above=True), join=join,
        over=table.seconds("over", above=True) or OVER,
    )  # fmt: skip
    _check_clip(table, shot)
    if shot.clip is None and not shot.prompt and image is None:
        table.refuse(None, "it has no prompt, image or clip", 'prompt = "…"')
    if "over" in table and join != "blend":
        table.refuse("over", "only a blend has it", 'join = "blend"')
    if table.number == 0 and join != "cut":
        table.refuse("join", "nothing comes before the first shot", 'join = "cut"')
    return shot


def _check_clip(table: Table, shot: Shot) -> None:
    """What only a clip has, and what a clip has not."""
    if shot.clip is None:
        for key in ("from", "to"):
            if key in table:
                table.refuse(key, "only a clip has it", 'clip = "clip.mp4"')
        return
    for key in ("image", "last_image", "duration"):
        if key in table:
            table.refuse(key, "a clip is shown as it is", 'from = "1s" and to = "3s"')
    if shot.prompt and shot.join != "blend":
        table.refuse("prompt", "a clip is shown as it is", 'join = "blend"')
    if shot.clip_to is not None and shot.clip_to <= shot.clip_from:
        said = f"{shot.clip_to:g}s is not after from = {shot.clip_from:g}s"
        table.refuse("to", said, f'to = "{shot.clip_from + 1:g}s"')


def _check_join(table: Table, before: Shot, shot: Shot) -> None:
    """Whether this kind of join can be made between two shots."""
    given = shot.clip is not None or shot.image is not None
    if shot.join == "continue" and given and before.clip is not None:
        said = "between a clip and what is given here nothing is made"
        table.refuse("join", said, 'join = "blend" makes a way between them')
    if shot.join == "continue" and given and before.last_image is not None:
        table.refuse("join", "the shot before has its own last_image", 'join = "cut"')
    made = before.clip is None
    if shot.join == "blend" and made == given:
        said = "a blend is between two made shots, or from a clip to a clip or a picture"
        table.refuse("join", said, 'join = "continue"')
    if shot.join == "blend" and shot.clip is None and shot.image is None and not shot.prompt:
        table.refuse("prompt", "a made shot has one", 'prompt = "…"')


def _timed(
    head: Table, tables: list[Table], shots: list[Shot], end: float | None
) -> tuple[Shot, ...]:
    """The shots with a start and a duration wherever the file alone says them.

    Times run on: `at` may only repeat where the shot before ends, or say it. After a clip that is
    shown to its end nobody knows the time before it has been opened.
    """
    timed: list[Shot] = []
    clock: float | None = 0.0
    for number, (table, shot) in enumerate(zip(tables, shots, strict=True)):
        if clock is not None and shot.has_way:
            clock += shot.over
        start = _start(table, shot, clock)
        length = shot.length
        if shot.clip is None and length is None:
            following = shots[number + 1] if number + 1 < len(shots) else None
            if following is None:
                stop, place, key = end, head, "duration"
            else:
                way = following.over if following.has_way else 0
                stop, place, key = following.start, tables[number + 1], "at"
                stop = None if stop is None else stop - way
            if stop is None or start is None:
                said = "nothing says how long it lasts"
                table.refuse(None, said, 'duration = "3s", or at = "…" in every shot')
            length = stop - start
            if length <= 0:
                said = f"{stop:g}s is not after {start:g}s, where the shot before begins"
                said = said.replace("the shot before", "the last shot") if place is head else said
                place.refuse(key, said, f'{key} = "{start + 3:g}s"')
        timed.append(replace(shot, start=start, duration=length))
        clock = None if start is None or length is None else start + length
    if end is not None and clock is not None and abs(clock - end) > TOLERANCE:
        head.refuse("duration", f"the last shot ends at {clock:g}s", f'duration = "{clock:g}s"')
    return tuple(timed)


def _start(table: Table, shot: Shot, clock: float | None) -> float | None:
    """Where a shot begins; `at` must not contradict what comes before."""
    if shot.start is None or clock is None:
        return clock if shot.start is None else shot.start
    if abs(shot.start - clock) > TOLERANCE:
        said = f"{shot.start:g}s, but what comes before ends at {clock:g}s"
        table.refuse("at", said, f'at = "{clock:g}s"')
    return clock


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """How a storyboard's words, pictures and clips are had.

    prompt: as the text encoder gets it, after expansion. picture: [1, h, w, 3] uint8 at the model's
    size. clip: the part that a shot shows; asked for once for every such shot.
    """

    prompt: Callable[[str], str]
    picture: Callable[[Path], np.ndarray]
    clip: Callable[[Shot], Part]


def as_segments(board: Storyboard, fps: float, material: Material) -> list[Segment]:
    """The storyboard as a timeline, its made frames counted at the model's rate."""
    segments: list[Segment] = []
    parts = [material.clip(shot) if shot.clip is not None else None for shot in board.shots]
    clock = 0.0
    for number, (shot, part) in enumerate(zip(board.shots, parts, strict=True)):
        before = parts[number - 1] if number else None
        following = board.shots[number + 1] if number + 1 < len(board.shots) else None
        if shot.has_way and before is not None:
            segments.append(_way(shot, before, part, clock, fps, material))
            clock += shot.over
        if part is not None:
            segments.append(part.kept())
            clock += part.duration
        else:
            tail = _tail(shot, following, parts[number + 1] if following else None, material)
            segments.append(_made(shot, following, clock, fps, material, before, tail))
            clock += shot.duration or 0.0
    return segments


def _way(
    shot: Shot, before: Part, part: Part | None, clock: float, fps: float, material: Material
) -> Span:
    """Frames from the end of a clip to a clip or a picture."""
    from sora_cli.pipeline.timeline import Span

    picture = None if shot.image is None else material.picture(shot.image)
    return Span(
        num_frames=_frames(clock, shot.over, fps),
        prompt=material.prompt(shot.prompt),
        head=before.tail(CONTEXT),
        tail=picture if part is None else part.head(CONTEXT),
    )


def _made(
    shot: Shot, following: Shot | None, clock: float, fps: float, material: Material,
    before: Part | None, tail: np.ndarray | None,
) -> Span:  # fmt: skip
    """A shot that is made. A cross-fade takes from both shots, half each: times stay as written."""
    from sora_cli.pipeline.timeline import Span

    assert shot.duration is not None, "a shot to be made has a length"
    growing, fading = (
        _cross_fade(shot, fps),
        0 if following is None else _cross_fade(following, fps),
    )
    picture = None if shot.image is None else material.picture(shot.image)
    return Span(
        num_frames=_frames(clock, shot.duration, fps) + growing // 2 + fading - fading // 2,
        prompt=material.prompt(shot.prompt),
        head=_head(shot, picture, before),
        tail=tail,
        shows_head=picture is not None,
        shows_tail=shot.last_image is not None,
        blend=growing,
    )


def _cross_fade(shot: Shot, fps: float) -> int:
    """Frames over which the shot before dissolves into this one, both being made."""
    return round(shot.over * fps) if shot.join == "blend" and not shot.has_way else 0


def _tail(
    shot: Shot, following: Shot | None, part: Part | None, material: Material
) -> np.ndarray | None:
    """What a made shot ends at: its own last picture, or what it is to lead into."""
    if shot.last_image is not None:
        return material.picture(shot.last_image)
    if following is None or following.join != "continue":
        return None
    if following.image is not None:
        return material.picture(following.image)
    return None if part is None else part.head(CONTEXT)


def _head(
    shot: Shot, picture: np.ndarray | None, before: Part | None
) -> np.ndarray | Literal["before"] | None:
    """What a made shot begins from."""
    if picture is not None or shot.join != "continue":
        return picture
    return "before" if before is None else before.tail(CONTEXT)


def _frames(start: float, length: float, fps: float) -> int:
    """Frames between two times, so that roundings do not add up; at least two, a way to go."""
    return max(2, round((start + length) * fps) - round(start * fps))
