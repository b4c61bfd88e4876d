"""Clips and pictures as verbs use them: seen at the model's size and rate, kept at their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sora_cli.errors import UsageError
from sora_cli.pipeline.request import Request

if TYPE_CHECKING:
    import numpy as np

    from sora_cli.media.audio import AudioPlan
    from sora_cli.media.reader import Clip
    from sora_cli.models.specs import ModelSpec
    from sora_cli.pipeline.request import Settings
    from sora_cli.pipeline.stitch import Output
    from sora_cli.pipeline.timeline import Kept

Fit = Literal["crop", "pad", "stretch"]
CONTEXT = 16  # frames read at a clip's end, at the model's rate; more than any canvas is given


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A clip that a verb works from, and the settings of the canvases that work on it.

    Frames at the model's size are the whole picture, stretched by the little that the model's grid
    asks for, so that what comes back fits again.
    """

    clip: Clip
    settings: Settings

    @property
    def num_frames(self) -> int:
        """Frames of the clip at the model's rate."""
        from sora_cli.media import resample

        return resample.count(self.clip.num_frames, self.clip.fps, self.settings.fps)

    def head(self, count: int) -> np.ndarray:
        """The first `count` frames as the model sees them, uint8 [t, h, w, 3]; fewer if it ends.

        Counted from the clip's first frame on, so that this one is what a way leads to.
        """
        return self._at(round(i * self._pace) for i in range(count))

    def tail(self, count: int) -> np.ndarray:
        """The last `count` frames as the model sees them, counted back from the clip's last one."""
        last = self.clip.num_frames - 1
        return self._at(last - round(i * self._pace) for i in reversed(range(count)))

    @property
    def _pace(self) -> float:
        """Frames of the clip for one of the model."""
        return float(self.clip.fps) / self.settings.fps

    def _at(self, places: Iterable[int]) -> np.ndarray:
        """The clip's frames at these places, at the model's size; those outside it are left out."""
        import numpy as np

        from sora_cli.media import image

        inside = [place for place in places if 0 <= place < self.clip.num_frames]
        found, base = [], inside[0]
        for chunk in self.clip.frames(base, inside[-1] + 1):
            picks = [place - base for place in inside if base <= place < base + len(chunk)]
            base += len(chunk)
            found.append(chunk[picks])
        width, height = self.settings.width, self.settings.height
        return np.concatenate(list(image.fit_frames(found, width, height, "stretch")))

    def between(self, start: int, stop: int) -> np.ndarray:
        """Frames [start, stop) as the model sees them, as many of them as there are."""
        import numpy as np

        return np.concatenate(list(self.seen(start, min(stop, self.num_frames))))

    def seen(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Frames [start, stop) at the model's size and rate, in chunks."""
        from sora_cli.media import image, resample

        fps, rate = self.clip.fps, self.settings.fps
        size = (self.settings.width, self.settings.height)
        last = self.clip.num_frames - 1
        places = [min(resample.source_index(i, fps, rate), last) for i in range(start, stop)]
        first = places[0]
        wanted = [place - first for place in places]
        base = 0
        for chunk in self.clip.frames(first, first + wanted[-1] + 1):
            picks = [index - base for index in wanted if base <= index < base + len(chunk)]
            base += len(chunk)
            if picks:
                yield from image.fit_frames([chunk[picks]], size[0], size[1], "stretch")

    def kept(self, start: int = 0, stop: int | None = None, *, like: Source | None = None) -> Kept:
        """The clip's own frames from `start` to `stop`, as a segment of a video.

        like: the clip whose size and rate the video has; None = this one.
        """
        from sora_cli.media import image, resample
        from sora_cli.pipeline.timeline import Kept

        clip, other = self.clip, (like or self).clip
        stop = clip.num_frames if stop is None else stop
        same_size = (clip.width, clip.height) == (other.width, other.height)
        if same_size and clip.fps == other.fps:
            offset = start
            return Kept(
                num_frames=stop - start, frames=lambda a, b: clip.frames(offset + a, offset + b)
            )

        def converted(first: int, last: int) -> Iterator[np.ndarray]:
            chunks = resample.to_rate(clip.frames(start, stop), clip.fps, other.fps)
            parts = image.fit_frames(
                _between(chunks, first, last), other.width, other.height, "pad"
            )
            yield from parts

        count = resample.count(stop - start, clip.fps, other.fps)
        return Kept(num_frames=count, frames=converted)

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.clip.duration

    @property
    def output(self) -> Output | None:
        """The clip's own size and rate for made frames; None where they are the model's."""
        from sora_cli.media import image
        from sora_cli.pipeline.stitch import Output

        clip, settings = self.clip, self.settings
        same_size = (clip.width, clip.height) == (settings.width, settings.height)
        if same_size and math.isclose(float(clip.fps), settings.fps):
            return None
        return Output(
            width=clip.width, height=clip.height, fps=float(clip.fps),
            resize=lambda frames: next(
                image.fit_frames([frames], clip.width, clip.height, "stretch")
            ),
        )  # fmt: skip


def _between(chunks: Iterator[np.ndarray], first: int, last: int) -> Iterator[np.ndarray]:
    """Frames [first, last) of a clip that comes in chunks; reads no further."""
    at = 0
    for chunk in chunks:
        part = chunk[max(0, first - at) : max(0, last - at)]
        at += len(chunk)
        if len(part):
            yield part
        if at >= last:
            return


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a clip, as a storyboard shows it: seconds `start` to `stop`.

    like: the clip whose size and rate the video has.
    """

    source: Source
    start: float
    stop: float
    like: Source

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.stop - self.start

    def kept(self) -> Kept:
        """Its frames at the video's size and rate."""
        first, last = (round(time * self.source.clip.fps) for time in (self.start, self.stop))
        return self.source.kept(first, last, like=self.like)

    def head(self, count: int) -> np.ndarray:
        """Its first frames as the model sees them."""
        first, last = self._seen()
        return self.source.between(first, min(first + count, last))

    def tail(self, count: int) -> np.ndarray:
        """Its last frames as the model sees them."""
        first, last = self._seen()
        return self.source.between(max(first, last - count), last)

    def _seen(self) -> tuple[int, int]:
        rate = self.source.settings.fps
        first, last = (round(time * rate) for time in (self.start, self.stop))
        last = min(last, self.source.num_frames)
        return min(first, last - 1), last


def open_source(path: Path) -> Clip:
    """A clip to work from. Raises UsageError where it is none (media.reader.open_clip)."""
    from sora_cli.media.reader import open_clip

    return open_clip(path.expanduser())


def moments(clip: Clip) -> list[np.ndarray]:
    """Some frames of a clip from its first to its last, [H, W, 3] uint8 each, to be described."""
    from sora_cli.pipeline.caption import MAX_FRAMES

    last, count = clip.num_frames - 1, min(clip.num_frames, MAX_FRAMES)
    places = (round(i * last / max(count - 1, 1)) for i in range(count))
    return [next(iter(clip.frames(place, place + 1)))[0] for place in places]


def shaped_like(request: Request, clip: Clip, spec: ModelSpec) -> Request:
    """The request with the model's nearest to the clip's shape, where no size was asked for.

    A clip of a size that the model was trained on is worked on as it is, another one at the model's
    own number of pixels.
    """
    asked = (request.width, request.height, request.aspect, request.resolution)
    if any(value is not None for value in asked):
        return request
    low, high = spec.trained_sides
    width, height = clip.width, clip.height
    legal = width % spec.size_multiple == 0 and height % spec.size_multiple == 0
    area = spec.width * spec.height
    if legal and low <= min(width, height) <= max(width, height) <= high and width * height <= area:
        return replace(request, width=width, height=height)
    scale = math.sqrt(area / (width * height))
    multiple = spec.size_multiple
    sides = (max(1, round(side * scale / multiple)) * multiple for side in (width, height))
    width, height = sides
    return replace(request, width=width, height=height)


def recipe_of(path: Path) -> dict[str, Any] | None:
    """The recipe inside a file, None where there is none."""
    from sora_cli.media import recipe

    try:
        return recipe.read(path)
    except UsageError:
        return None


def sound(heard: Sequence[tuple[float, Clip]]) -> AudioPlan | None:
    """What is heard of clips, each from its second of the output on; None of silent ones."""
    from sora_cli.media import audio

    return audio.plan(*(audio.piece(clip, at=at) for at, clip in heard))


def picture(path: Path, settings: Settings, fit: Fit) -> np.ndarray:
    """One picture at the settings' size, uint8 [1, h, w, 3]."""
    from sora_cli.media import image

    found = image.read(path.expanduser())
    return image.fit(found, settings.width, settings.height, fit)[None]


def reference(path: Path, settings: Settings) -> np.ndarray:
    """A picture whole, in the middle of a white frame of the settings' size, [h, w, 3] uint8."""
    import numpy as np

    from sora_cli.media import image

    found = image.read(path.expanduser())
    tall, wide = found.shape[:2]
    scale = min(settings.height / tall, settings.width / wide)
    height, width = max(1, int(tall * scale)), max(1, int(wide * scale))
    top, left = (settings.height - height) // 2, (settings.width - width) // 2
    frame = np.full((settings.height, settings.width, 3), 255, np.uint8)
    frame[top : top + height, left : left + width] = image.fit(found, width, height, "stretch")
    return frame
