"""One function per verb, and the public Python API: read inputs, say what is given, make, write.

A verb is what it knows and where that stands in time (`pipeline.timeline`); `job` does the rest.
Nothing heavy is imported before the request has been checked. Every verb returns one `Result` for
each of the target's seeds, and raises a `SoraError` whose message names the next command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sora_cli.about import caption as caption
from sora_cli.about import expand as expand
from sora_cli.about import info as info
from sora_cli.about import verify as verify
from sora_cli.jobs import arrange, job, planning, source
from sora_cli.jobs.job import Media, Result, Target, Verb
from sora_cli.jobs.source import CONTEXT, Fit
from sora_cli.pipeline.events import Event, Observer, ignore
from sora_cli.pipeline.request import Request
from sora_cli.runs.calls import recorded

if TYPE_CHECKING:
    from sora_cli.jobs.source import Source
    from sora_cli.pipeline.timeline import Segment

    Expand = Callable[[str], str]  # a prompt as the text encoder gets it
    Segments = Callable[[Expand], Sequence[Segment]]

Direction = Literal["forward", "backward", "both"]


@recorded
def generate(
    request: Request, *, target: Target | None = None, observer: Observer = ignore
) -> Iterator[Result]:
    """Make videos from a prompt; one longer than the model's own length is continued in pieces."""
    return _from_prompt(request, job.video_media(), target or Target(), observer)


@recorded
def image(
    request: Request, *, target: Target | None = None, observer: Observer = ignore
) -> Iterator[Result]:
    """Make pictures from a prompt: videos of one frame, written as PNG, JPEG or WebP."""
    request = replace(request, num_frames=1, duration=None)
    return _from_prompt(request, job.picture_media(), target or Target(), observer)


@recorded
def animate(
    image: Path,
    request: Request,
    *,
    last: Path | None = None,
    fit: Fit = "crop",
    target: Target | None = None,
    observer: Observer = ignore,
) -> Iterator[Result]:
    """Make videos that start with a picture, and end with `last` where that is given."""
    installed, settings = planning.settle(request, observer)
    if last is None:
        planning.require(installed, "i2v", "start from a picture")
    else:
        planning.require(installed, "flf2v", "lead from one picture to another")
    first = source.picture(image, settings, fit)
    end = None if last is None else source.picture(last, settings, fit)

    def segments(expand: Expand) -> Sequence[Segment]:
        from sora_cli.pipeline.timeline import Span

        prompt = expand(settings.prompt)
        return [
            Span(
                num_frames=settings.num_frames, prompt=prompt, head=first, tail=end,
                shows_head=True, shows_tail=end is not None,
            )
        ]  # fmt: skip

    settings = arrange.with_prompt(settings, request, image, installed, observer)
    parents = [path for path in (image, last) if path is not None]
    verb = Verb(
        media=job.video_media(),
        segments=segments,
        given=(first[0],) if end is None else (first[0], end[0]),
        given_as="first" if end is None else "first-and-last",
        **arrange.told("animate", parents),
    )
    return job.make(request, installed, settings, verb, target or Target(), observer)


@recorded
def extend(
    clip: Path,
    request: Request,
    *,
    by: float | None = None,
    to: float | None = None,
    direction: Direction = "forward",
    latents: Path | None = None,
    target: Target | None = None,
    observer: Observer = ignore,
) -> Iterator[Result]:
    """Continue a clip forward, backward or both; its own frames come back untouched.

    Args:
        by: seconds to add on each side asked for; None = what one canvas adds.
        to: seconds that the whole is to last, instead of `by`.
        latents: what `--keep-latents` left beside the clip (`pipeline.sidecar.beside`); a note says
            where it is not used.
    """
    found, installed, settings = arrange.from_clip(clip, request, "continue a clip", observer)
    sides = 2 if direction == "both" else 1
    frames = arrange.added_frames(found, by, to, sides)
    settings = arrange.with_prompt(settings, request, clip, installed, observer)

    def segments(expand: Expand) -> Sequence[Segment]:
        from sora_cli.pipeline.timeline import Span

        prompt = expand(settings.prompt)
        whole: list[Segment] = [found.kept()]
        if direction != "forward":
            whole.insert(0, Span(num_frames=frames, prompt=prompt, tail=found.head(CONTEXT)))
        if direction != "backward":
            head = found.tail(CONTEXT)
            kept = arrange.kept_latents(latents, found, installed, observer)
            whole.append(Span(num_frames=frames, prompt=prompt, head=head, head_latents=kept))
        return whole

    verb = _clip_verb("extend", found, [clip], segments)
    verb = replace(verb, heard=((0 if direction == "forward" else 1, found.clip),))
    return job.make(request, installed, settings, verb, target or Target(), observer)


@recorded
def loop(
    clip: Path | None,
    request: Request,
    *,
    over: float | None = None,
    target: Target | None = None,
    observer: Observer = ignore,
) -> Iterator[Result]:
    """Lead a clip's end back to its own start, so that it plays in a circle.

    Args:
        clip: None = make a loop from the prompt alone.
        over: seconds of the way back, None = what one canvas makes between two ends; of a loop from
            nothing, its length.
    """
    if clip is None:
        return _ring(request, over, target or Target(), observer)
    found, installed, settings = arrange.from_clip(clip, request, "close a loop", observer)
    frames = arrange.frames_over(found, over)
    settings = arrange.with_prompt(settings, request, clip, installed, observer)

    def segments(expand: Expand) -> Sequence[Segment]:
        from sora_cli.pipeline.timeline import Span

        prompt = expand(settings.prompt)
        back = Span(
            num_frames=frames, prompt=prompt, head=found.tail(CONTEXT), tail=found.head(CONTEXT)
        )
        return [found.kept(), back]

    verb = _clip_verb("loop", found, [clip], segments)
    verb = replace(verb, closed=True, heard=((0, found.clip),))
    return job.make(request, installed, settings, verb, target or Target(), observer)


@recorded
def connect(
    first: Path,
    second: Path,
    request: Request,
    *,
    over: float | None = None,
    target: Target | None = None,
    observer: Observer = ignore,
) -> Iterator[Result]:
    """Lead from one clip to another, at the size and rate of the first."""
    found, installed, settings = arrange.from_clip(first, request, "connect clips", observer)
    other = source.Source(clip=source.open_source(second), settings=settings)
    frames = arrange.frames_over(found, over)
    settings = arrange.with_prompt(settings, request, first, installed, observer)
    for note in (*other.clip.notes, *arrange.reconciled(found, other)):
        observer(Event(phase="note", message=f"{second.name}: {note}"))

    def segments(expand: Expand) -> Sequence[Segment]:
        from sora_cli.pipeline.timeline import Span

        prompt = expand(settings.prompt)
        end = None if request.prompt else arrange.prompt_in(second) or None
        ends: dict[str, Any] = {
            "head": found.tail(CONTEXT),
            "tail": other.head(CONTEXT),
            "end_prompt": end,
        }
        way = Span(num_frames=frames, prompt=prompt, **ends)
        return [found.kept(), way, other.kept(like=found)]

    verb = _clip_verb("connect", found, [first, second], segments)
    verb = replace(verb, heard=((0, found.clip), (2, other.clip)))
    return job.make(request, installed, settings, verb, target or Target(), observer)


@recorded
def edit(
    clip: Path,
    request: Request,
    *,
    strength: float = 0.6,
    between: tuple[float, float] | None = None,
    mask: Path | None = None,
    target: Target | None = None,
    observer: Observer = ignore,
) -> Iterator[Result]:
    """Change a clip by a prompt (SDEdit), or make a part of it anew.

    Args:
        strength: how much may change, above 0 to 1.
        between: (from, to) in seconds: make this part anew and leave the rest untouched.
        mask: a picture or a clip; only what is white in it may change.
    """
    arrange.check_strength(strength)
    found, installed, settings = arrange.from_clip(clip, request, "change a clip", observer)
    cut = None if between is None else arrange.cut_frames(found, between)
    white = None if mask is None else arrange.white_of(mask, found, installed, cut)
    settings = arrange.with_prompt(settings, request, clip, installed, observer)

    def segments(expand: Expand) -> Sequence[Segment]:
        from sora_cli.pipeline.timeline import Span

        prompt = expand(settings.prompt)
        if cut is None:
            return [
                Span(
                    num_frames=found.num_frames, prompt=prompt, source=found.seen,
                    strength=strength, mask=white,
                )
            ]  # fmt: skip
        return arrange.recut(found, prompt, *cut)

    verb = replace(_clip_verb("edit", found, [clip], segments), heard=((0, found.clip),))
    return job.make(request, installed, settings, verb, target or Target(), observer)


@recorded
def upscale(
    clip: Path,
    request: Request,
    *,
    scale: float = 2.0,
    strength: float = 0.3,
    target: Target | None = None,
    observer: Observer = ignore,
) -> Iterator[Result]:
    """Make a clip or a picture larger: resampled, partly noised and made anew, in tiles.

    Args:
        scale: of both sides, where the request has no size.
        strength: how much of it is made anew, above 0 to 1.
    """
    arrange.check_strength(strength)
    opened, installed = source.open_source(clip), planning.find_model(request)
    planning.require(installed, "t2v", "make a clip larger")
    width, height = arrange.larger(request, opened, scale)
    settings = arrange.large_settings(request, installed.spec, width, height)
    settings = arrange.with_prompt(settings, request, clip, installed, observer)
    found = source.Source(clip=opened, settings=settings)

    def segments(expand: Expand) -> Sequence[Segment]:
        from sora_cli.pipeline.timeline import Span

        return [
            Span(
                num_frames=found.num_frames, prompt=expand(settings.prompt), source=found.seen,
                strength=strength,
            )
        ]  # fmt: skip

    media = job.picture_media() if opened.num_frames == 1 else job.video_media()
    output = arrange.at_size(found, width, height)
    verb = Verb(media=media, segments=segments, output=output, **arrange.told("upscale", [clip]))
    verb = replace(verb, notes=opened.notes, heard=((0, opened),))
    return job.make(request, installed, settings, verb, target or Target(), observer)


@recorded
def storyboard(
    file: Path, request: Request, *, target: Target | None = None, observer: Observer = ignore
) -> Iterator[Result]:
    """Make a video from a storyboard: timed prompts, pictures and clips, cut or joined."""
    from sora_cli.pipeline import storyboard as boards

    board = boards.read(file)
    request = arrange.with_board(request, board)
    installed = planning.find_model(request)
    clips = arrange.open_clips(board)
    like = next(iter(clips.values()), None)
    shaped = request if like is None else source.shaped_like(request, like, installed.spec)
    settings = planning.settle(replace(shaped, num_frames=None, duration=None), observer)[1]
    found = None if like is None else source.Source(clip=like, settings=settings)
    pictures = {
        path: source.picture(path, settings, "crop")
        for shot in board.shots
        for path in (shot.image, shot.last_image)
        if path is not None
    }

    def segments(expand: Expand) -> Sequence[Segment]:
        material = boards.Material(
            prompt=expand,
            picture=pictures.__getitem__,
            clip=lambda shot: arrange.part(shot, clips, settings),
        )
        return boards.as_segments(board, settings.fps, material)

    output = None if found is None else found.output
    parents = [file, *dict.fromkeys(path for shot in board.shots for path in shot.files)]
    verb = Verb(
        media=job.video_media(),
        segments=segments,
        output=output,
        **arrange.told("storyboard", parents),
    )
    return job.make(request, installed, settings, verb, target or Target(), observer)


# ---------------------------------------------------------------- what verbs share


def _from_prompt(
    request: Request, media: Media, target: Target, observer: Observer
) -> Iterator[Result]:
    installed, settings = planning.settle(request, observer)
    planning.require(installed, "t2v", "make a video from a prompt alone")
    if request.references:
        planning.require(installed, "reference", "take references")
    looks = tuple(source.reference(Path(path), settings) for path in request.references)

    def segments(expand: Expand) -> Sequence[Segment]:
        from sora_cli.pipeline.timeline import Span

        prompt = expand(settings.prompt)
        return [Span(num_frames=settings.num_frames, prompt=prompt, references=looks)]

    verb = Verb(media=media, segments=segments)
    return job.make(request, installed, settings, verb, target, observer)


def _clip_verb(name: str, found: Source, parents: list[Path], segments: Segments) -> Verb:
    return Verb(
        media=job.video_media(),
        segments=segments,
        output=found.output,
        given=tuple(source.moments(found.clip)) if found.settings.expand else (),
        given_as="clip",
        **arrange.told(name, parents),
    )


def _ring(
    request: Request, over: float | None, target: Target, observer: Observer
) -> Iterator[Result]:
    """A loop from nothing, as long as `over` seconds or the model's own length."""
    length = request if over is None else replace(request, duration=over, num_frames=None)
    installed, settings = planning.settle(length, observer)
    planning.require(installed, "t2v", "make a video from a prompt alone")

    def segments(expand: Expand) -> Sequence[Segment]:
        from sora_cli.pipeline.timeline import Ring

        return [Ring(num_frames=settings.num_frames, prompt=expand(settings.prompt))]

    verb = Verb(media=job.video_media(), segments=segments, closed=True, extra={"verb": "loop"})
    return job.make(request, installed, settings, verb, target, observer)
