"""What a storyboard holds: shots, in the order of the video. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Join = Literal["cut", "continue", "blend"]

OVER = 1.0  # seconds of a blend that does not say
JOINS: tuple[Join, ...] = get_args(Join)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """One entry: frames to be made from a prompt, or a clip to be shown. Times in seconds.

    where: "shot 2 (line 9)", for messages.
    start: where it begins in the video. duration: how long it lasts; of a clip None until the clip
        has been opened, unless `from` and `to` say it.
    image, last_image: pictures that it begins and ends with.
    clip, clip_from, clip_to: the part of a clip; clip_to None = its end.
    over: length of a blend with the shot before.
    """

    where: str
    prompt: str = ""
    start: float | None = None
    duration: float | None = None
    image: Path | None = None
    last_image: Path | None = None
    clip: Path | None = None
    clip_from: float = 0.0
    clip_to: float | None = None
    join: Join = "cut"
    over: float = OVER

    @property
    def files(self) -> list[Path]:
        """The files it needs."""
        return [path for path in (self.image, self.last_image, self.clip) if path is not None]

    @property
    def length(self) -> float | None:
        """Seconds, where the entry itself says it."""
        if self.clip is not None and self.clip_to is not None:
            return self.clip_to - self.clip_from
        return self.duration

    @property
    def has_way(self) -> bool:
        """Whether frames are to be made between the clip before and this shot."""
        return self.join == "blend" and (self.clip is not None or self.image is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Storyboard:
    """What a storyboard file says; None where it says nothing."""

    shots: tuple[Shot, ...]
    size: tuple[int, int] | None = None
    fps: float | None = None
    seed: int | None = None
    model: str | None = None
    negative_prompt: str | None = None
    duration: float | None = None

    @property
    def prompts(self) -> list[str]:
        """Every prompt, once, in order."""
        return list(dict.fromkeys(shot.prompt for shot in self.shots if shot.prompt))
