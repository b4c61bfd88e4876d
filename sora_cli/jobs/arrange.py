"""How verbs stand clips and pictures in time, and what they ask of a request: small decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.errors import SoraError, UsageError
from sora_cli.jobs import planning
from sora_cli.jobs.source import CONTEXT, Part, Source, moments, open_source, recipe_of, shaped_like
from sora_cli.pipeline.events import Event, Observer

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sora_cli.media.reader import Clip
    from sora_cli.models.specs import ModelSpec
    from sora_cli.pipeline.request import Request, Settings
    from sora_cli.pipeline.stitch import Output
    from sora_cli.pipeline.storyboard import Shot, Storyboard
    from sora_cli.pipeline.timeline import Segment
    from sora_cli.weights.store import Installed

MAX_PIXELS = 8192 * 8192  # of a frame that is worked on in tiles


def added_frames(found: Source, by: float | None, to: float | None, sides: int) -> int:
    """How many frames, at the model's rate, an extension has on each side."""
    if by is not None and to is not None:
        raise UsageError("--by and --to cannot be used together", hint="--by 4s")
    if to is not None:
        if to <= found.clip.duration:
            raise UsageError(
                f"--to {to:g}s: the clip lasts {found.clip.duration:g}s already", hint="--by 4s"
            )
        by = (to - found.clip.duration) / sides
    if by is None:
        return max(4, found.settings.chunk_frames - 9)
    return _frame_count(found, by, "--by")


def frames_over(found: Source, over: float | None) -> int:
    """How many frames a way between two ends has."""
    if over is None:
        return max(4, found.settings.chunk_frames - 17)
    return _frame_count(found, over, "--over")


def _frame_count(found: Source, seconds: float, option: str) -> int:
    most = found.settings.fps * 3600
    frames = round(seconds * found.settings.fps) if 0 < seconds < 3601 else 0
    if not 1 <= frames <= most:
        least = 1 / found.settings.fps
        raise UsageError(
            f"{option} must be a time from {least:g}s to 1h, not {seconds:g}s", hint=f"{option} 2s"
        )
    return frames


def cut_frames(found: Source, between: tuple[float, float]) -> tuple[int, int]:
    """(first, after last) of the clip's own frames in a part of it."""
    start, stop = between
    clip = found.clip
    first, last = round(start * clip.fps), round(stop * clip.fps)
    if not 0 <= first < last <= clip.num_frames:
        raise UsageError(
            f"--from {start:g}s --to {stop:g}s is no part of a clip of {clip.duration:g}s",
            hint=f"--from 0s --to {clip.duration / 2:g}s",
        )
    if first == 0 and last == clip.num_frames:
        raise UsageError("--from and --to leave nothing of the clip", hint="leave both out")
    return first, last


def recut(found: Source, prompt: str, first: int, last: int) -> list[Segment]:
    """A clip whose frames from `first` to `last` are made anew, between those that stay."""
    from sora_cli.media import resample
    from sora_cli.pipeline.timeline import Span

    clip, settings = found.clip, found.settings
    start = resample.count(first, clip.fps, settings.fps)
    stop = found.num_frames - resample.count(clip.num_frames - last, clip.fps, settings.fps)
    way = Span(
        num_frames=max(1, stop - start),
        prompt=prompt,
        head=found.between(max(0, start - CONTEXT), start) if first else None,
        tail=found.between(stop, stop + CONTEXT) if last < clip.num_frames else None,
    )
    whole: list[Segment] = [found.kept(0, first)] if first else []
    whole.append(way)
    return [*whole, found.kept(last)] if last < clip.num_frames else whole


def reconciled(found: Source, other: Source) -> list[str]:
    """How a second clip is brought to the first one's size and rate, in words."""
    one, two, notes = found.clip, other.clip, []
    if (one.width, one.height) != (two.width, two.height):
        notes.append(
            f"fitted from {two.width}x{two.height} into {one.width}x{one.height}, the first clip's"
        )
    if one.fps != two.fps:
        notes.append(f"read at {float(one.fps):g} fps, the first clip's, not {float(two.fps):g}")
    return notes


def with_prompt(
    settings: Settings, request: Request, path: Path, installed: Installed, observer: Observer
) -> Settings:
    """The settings with a prompt: the one given, else the one in the file's recipe, else what the
    captioner sees in it, else none; stderr says which.

    A prompt for something that is given is said in full only by an LLM that sees it (or where the
    user asks for it): another one would invent a sky or a floor that contradicts the picture.
    """
    if request.expand is None and not planning.language_model_sees(installed):
        settings = replace(settings, expand=False)
    if request.prompt:
        return settings
    found, where = prompt_in(path), f"taken from the recipe in {path.name}"
    if not found and (folder := planning.captioner(installed)):
        found, still = _described(path, folder, observer)
        where = f"what is seen in {path.name}"
        if still:  # what happens is for the LLM to say: it keeps what the words name
            observer(Event(phase="note", message=f"no prompt: {where}: {found}"))
            return replace(settings, prompt=found, expand=request.expand is not False)
    if not found:
        where = f"what is seen in {path.name} alone decides what happens"
    observer(Event(phase="note", message=f"no prompt: {where}{': ' if found else ''}{found}"))
    return replace(settings, prompt=found, expand=settings.expand and not found)


def prompt_in(path: Path) -> str:
    """What the recipe in a file says is seen, as the text encoder got it; empty where none does.

    Of a picture it is the words that asked for it: the long form says that nothing moves.
    """
    recipe = recipe_of(path) or {}
    names = ("prompt",) if recipe.get("num_frames") == 1 else ("expanded_prompt", "prompt")
    said = (recipe.get(name) for name in names)
    return next((text for text in said if isinstance(text, str) and text), "")


def _described(path: Path, folder: Path, observer: Observer) -> tuple[str, bool]:
    """A clip in words, or nothing where that fails: the video can be made without.

    And whether they are of a picture, by a captioner that was taught to say that it stands still.
    """
    from sora_cli.models.vision_language import is_captioner
    from sora_cli.pipeline.caption import as_beginning, caption
    from sora_cli.runtime.paths import cache_dir

    observer(Event(phase="caption"))
    try:
        found = caption(moments(open_source(path)), folder=folder, cache_dir=cache_dir())
    except SoraError as error:
        observer(Event(phase="note", message=f"no caption: {error.message}"))
        return "", False
    for note in found.notes:
        observer(Event(phase="note", message=note))
    still = found.frames == 1 and is_captioner(folder)
    return (as_beginning(found.text), True) if still else (found.text, False)


def from_clip(
    path: Path, request: Request, what: str, observer: Observer
) -> tuple[Source, Installed, Settings]:
    """A clip, the model that works on it, and settings of the clip's shape; `with_prompt` is next,
    once all else that was asked for is known to be right: it may have to look at the clip."""
    clip = open_source(path)
    installed = planning.find_model(request)
    planning.require(installed, "given", what)
    # The canvas is the model's own length; how much is made is the verb's to say.
    shaped = shaped_like(request, clip, installed.spec)
    settings = planning.settle(replace(shaped, num_frames=None, duration=None), observer)[1]
    for note in clip.notes:
        observer(Event(phase="note", message=f"{path.name}: {note}"))
    return Source(clip=clip, settings=settings), installed, settings


def white_of(
    mask: Path, found: Source, installed: Installed, cut: tuple[int, int] | None
) -> Callable[[int, int], Iterator[Any]]:
    """Where a clip may change, as a span's mask."""
    planning.require(installed, "mask", "change regions of a clip")
    if cut is not None:
        raise UsageError("--mask and --from/--to cannot be used together", hint="leave one out")
    return white(open_source(mask), found)


def check_strength(strength: float) -> None:
    """Raises UsageError for a strength that means nothing."""
    if not 0 < strength <= 1:
        raise UsageError(
            f"--strength must be above 0 and at most 1, not {strength:g}", hint="--strength 0.6"
        )


def told(name: str, parents: list[Path]) -> dict[str, Any]:
    """What a verb says of where its frames came from, and a name for the file."""
    from sora_cli.media import recipe

    told = {"verb": name, "parents": recipe.parents(*parents)}
    name = f"{parents[0].stem} {name}"
    return {"name": name, "extra": told}


def kept_latents(
    path: Path | None, found: Source, installed: Installed, observer: Observer
) -> Tensor | None:
    """What `--keep-latents` left beside a clip, where it fits; a note says what became of it."""
    if path is None:
        return None
    from sora_cli.pipeline import sidecar
    from sora_cli.weights.store import identity

    latents, said = sidecar.load(path, found.settings, found.tail(1), identity(installed))
    if said:
        observer(Event(phase="note", message=said))
    return latents


# ---------------------------------------------------------------- larger than the model's own


def larger(request: Request, clip: Clip, scale: float) -> tuple[int, int]:
    """(width, height) that a clip is to have: as asked for, else `scale` times its own."""
    from sora_cli.pipeline.units import parse_aspect, parse_resolution

    if request.aspect is not None:
        parse_aspect(request.aspect)
        raise UsageError(
            "--aspect changes the shape; a clip keeps its own", hint="--size 1920x1080"
        )
    aspect = clip.width / clip.height
    width, height = request.width, request.height
    if request.resolution is not None:
        short = parse_resolution(request.resolution)
        width, height = (None, short) if aspect >= 1 else (short, None)
    if width is None and height is None:
        if not 1 <= scale <= 16:
            raise UsageError(f"--scale must be from 1 to 16, not {scale:g}", hint="--scale 2")
        return round(clip.width * scale), round(clip.height * scale)
    return width or round((height or 0) * aspect), height or round((width or 0) / aspect)


def large_settings(request: Request, spec: ModelSpec, width: int, height: int) -> Settings:
    """Settings of a canvas that is worked on in tiles of the model's own size.

    Raises:
        UsageError: no model makes frames as large.
    """
    from sora_cli.pipeline.request import resolve

    multiple = spec.size_multiple
    wide, tall = (-(-side // multiple) * multiple for side in (width, height))
    # Only tiles go through the transformer, so its own limits hold for them; this is the frame's.
    if not (width >= 1 and height >= 1 and wide * tall <= MAX_PIXELS):
        raise UsageError(
            f"{width}x{height} is too large: a frame has at most {MAX_PIXELS:,} pixels",
            hint="--size 1920x1080",
        )
    own = replace(request, width=spec.width, height=spec.height, aspect=None, resolution=None)
    settings, _ = resolve(replace(own, num_frames=None, duration=None), spec)
    tile = (min(wide, spec.width), min(tall, spec.height))
    return replace(settings, width=wide, height=tall, tile=tile)


def at_size(found: Source, width: int, height: int) -> Output:
    """A file of this size at the clip's own rate."""
    from sora_cli.media import image
    from sora_cli.pipeline.stitch import Output

    still = found.clip.num_frames == 1  # whatever rate a picture is said to have
    return Output(
        width=width, height=height, fps=found.settings.fps if still else float(found.clip.fps),
        resize=lambda frames: next(image.fit_frames([frames], width, height, "stretch")),
    )  # fmt: skip


def white(mask: Clip, found: Source) -> Callable[[int, int], Iterator[np.ndarray]]:
    """Where a mask is white, [t, h, w] of 0 and 1 at the model's size and rate; a mask that is
    shorter than the clip stands still after its last frame."""
    import numpy as np

    shaped = Source(clip=mask, settings=found.settings)

    def frames(start: int, stop: int) -> Iterator[np.ndarray]:
        last = shaped.num_frames
        seen = shaped.between(min(start, last - 1), min(stop, last)) if start < last else None
        chunk = shaped.between(last - 1, last) if seen is None else seen
        still = np.repeat(chunk[-1:], stop - start - len(chunk), axis=0)
        yield (np.concatenate([chunk, still]).mean(axis=3) > 127).astype(np.uint8)

    return frames


# ---------------------------------------------------------------- storyboards


def with_board(request: Request, board: Storyboard) -> Request:
    """A storyboard's own settings, where the command line says nothing."""
    asked = (request.width, request.height, request.aspect, request.resolution)
    if board.size is not None and all(value is None for value in asked):
        request = replace(request, width=board.size[0], height=board.size[1])
    return replace(
        request,
        model=board.model if request.model is None else request.model,
        fps=board.fps if request.fps is None else request.fps,
        seed=board.seed if request.seed is None else request.seed,
        negative_prompt=(
            board.negative_prompt if request.negative_prompt is None else request.negative_prompt
        ),
        prompt=" ".join(board.prompts)[:500],
        needs_prompt=False,
    )


def open_clips(board: Storyboard) -> dict[Path, Clip]:
    """Every clip that a storyboard shows, opened once."""
    paths = dict.fromkeys(shot.clip for shot in board.shots if shot.clip is not None)
    return {path: open_source(path) for path in paths}


def part(shot: Shot, clips: dict[Path, Clip], settings: Settings) -> Part:
    """The part of a clip that a shot shows.

    Raises:
        UsageError: the clip is not as long.
    """
    assert shot.clip is not None
    clip, like = clips[shot.clip], next(iter(clips.values()))
    stop = clip.duration if shot.clip_to is None else shot.clip_to
    if stop > clip.duration + 0.5 / float(clip.fps) or shot.clip_from >= stop:
        raise UsageError(
            f"{shot.where}: {shot.clip.name} lasts {clip.duration:g}s, "
            f"so {shot.clip_from:g}s to {stop:g}s is no part of it",
            hint=f'to = "{clip.duration:g}s"',
        )
    return Part(
        source=Source(clip=clip, settings=settings), start=shot.clip_from, stop=stop,
        like=Source(clip=like, settings=settings),
    )  # fmt: skip
