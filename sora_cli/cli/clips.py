"""The commands that work from clips: extend, loop, connect, edit, upscale, storyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sora_cli.cli import options
from sora_cli.cli.groups import (
    FrameSize,
    Length,
    Making,
    Running,
    Sampling,
    Video,
    Weights,
    request_of,
    show,
    target_of,
    with_groups,
)
from sora_cli.errors import UsageError

DirectionChoice = Literal["forward", "backward", "both"]

Clip = Annotated[
    Path, typer.Argument(metavar="CLIP", help="Any video, moving picture or folder of PNGs.")
]
Over = Annotated[
    str | None, typer.Option("--over", metavar="TIME", help="How long the way is: 2s.")
]


@with_groups
def extend(
    context: typer.Context,
    *,
    clip: Clip,
    prompt: options.OptionalPrompt = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="TIME", help="How much to add: 4s.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="How long the whole is to be: 60s.")
    ] = None,
    direction: Annotated[
        DirectionChoice, typer.Option("--direction", help="On which side to continue.")
    ] = "forward",
    video: Video,
    size: FrameSize,
    num_videos: options.NumVideos = 1,
    sampling: Sampling,
    weights: Weights,
    making: Making,
    running: Running,
) -> None:
    """Continue a clip, forward or backward; its own frames come back untouched.

    Without a prompt, the recipe in the clip says what is seen. Prints the path of the file on
    stdout and nothing else.
    """
    from sora_cli import app as verbs
    from sora_cli.pipeline.sidecar import beside

    out = options.output_of(context, running)
    target = target_of(video.output, out, making, video, num_videos)
    clip = clip.expanduser()
    kept = beside(clip)
    results = verbs.extend(
        clip,
        request_of(weights, sampling, size, prompt=prompt),
        by=options.duration_of(by),
        to=options.duration_of(to),
        direction=direction,
        latents=kept if direction != "backward" and kept.is_file() else None,
        target=target,
        observer=out.observe,
    )
    show(out, results, target)


@with_groups
def loop(
    context: typer.Context,
    *,
    clip: Annotated[
        Path | None, typer.Argument(metavar="CLIP", help="A clip; with --prompt, none is needed.")
    ] = None,
    text: options.OptionalPrompt = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="Make a loop from nothing but a prompt."),
    ] = None,
    over: Over = None,
    video: Video,
    size: FrameSize,
    num_videos: options.NumVideos = 1,
    sampling: Sampling,
    weights: Weights,
    making: Making,
    running: Running,
) -> None:
    """Lead a clip's end back to its start, so that it plays in a circle without a seam.

    Prints the path of the file on stdout and nothing else.
    """
    from sora_cli import app as verbs

    out = options.output_of(context, running)
    target = target_of(video.output, out, making, video, num_videos)
    if clip is None and prompt is None:
        raise UsageError("loop needs a clip or --prompt", hint="sora loop clip.mp4")
    request = request_of(weights, sampling, size, prompt=text if prompt is None else prompt)
    results = verbs.loop(
        None if clip is None else clip.expanduser(),
        request,
        over=options.duration_of(over),
        target=target,
        observer=out.observe,
    )
    show(out, results, target)


@with_groups
def connect(
    context: typer.Context,
    *,
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="The clip that comes first.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="The clip that it leads to.")],
    prompt: options.OptionalPrompt = None,
    over: Over = None,
    video: Video,
    size: FrameSize,
    num_videos: options.NumVideos = 1,
    sampling: Sampling,
    weights: Weights,
    making: Making,
    running: Running,
) -> None:
    """Lead from one clip to another; the frames of both stay as they are.

    The result has the first clip's size and rate. Prints the path of the file on stdout and
    nothing else.
    """
    from sora_cli import app as verbs

    out = options.output_of(context, running)
    target = target_of(video.output, out, making, video, num_videos)
    results = verbs.connect(
        first.expanduser(),
        second.expanduser(),
        request_of(weights, sampling, size, prompt=prompt),
        over=options.duration_of(over),
        target=target,
        observer=out.observe,
    )
    show(out, results, target)


@with_groups
def edit(
    context: typer.Context,
    *,
    clip: Clip,
    prompt: options.Prompt,
    strength: Annotated[
        float, typer.Option("--strength", help="How much may change: above 0, 1 is all of it.")
    ] = 0.6,
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Make a part anew, from here …")
    ] = None,
    stop: Annotated[str | None, typer.Option("--to", metavar="TIME", help="… to here.")] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="PATH", help="Picture or clip: white is what may change."),
    ] = None,
    video: Video,
    size: FrameSize,
    num_videos: options.NumVideos = 1,
    sampling: Sampling,
    weights: Weights,
    making: Making,
    running: Running,
) -> None:
    """Change a clip by a prompt, or make a part of it anew.

    With --from and --to the rest of the clip comes back untouched. Prints the path of the file on
    stdout and nothing else.
    """
    from sora_cli import app as verbs

    out = options.output_of(context, running)
    target = target_of(video.output, out, making, video, num_videos)
    results = verbs.edit(
        clip.expanduser(),
        request_of(weights, sampling, size, prompt=prompt),
        strength=strength,
        between=options.span_of(start, stop),
        mask=None if mask is None else mask.expanduser(),
        target=target,
        observer=out.observe,
    )
    show(out, results, target)


@with_groups
def upscale(
    context: typer.Context,
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A clip or a picture.")],
    prompt: options.OptionalPrompt = None,
    scale: Annotated[
        float, typer.Option("--scale", help="How many times as wide and as high, without --size.")
    ] = 2.0,
    strength: Annotated[
        float, typer.Option("--strength", help="How much is made anew: above 0, 1 is all of it.")
    ] = 0.3,
    video: Video,
    size: FrameSize,
    num_videos: options.NumVideos = 1,
    sampling: Sampling,
    weights: Weights,
    making: Making,
    running: Running,
) -> None:
    """Make a clip or a picture larger: resampled, partly noised, made anew in tiles.

    Prints the path of the file on stdout and nothing else.
    """
    from sora_cli import app as verbs

    out = options.output_of(context, running)
    target = target_of(video.output, out, making, video, num_videos)
    results = verbs.upscale(
        file.expanduser(),
        request_of(weights, sampling, size, prompt=prompt),
        scale=scale,
        strength=strength,
        target=target,
        observer=out.observe,
    )
    show(out, results, target)


@with_groups
def storyboard(
    context: typer.Context,
    *,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="TOML: shots with prompts, pictures, clips.")
    ],
    video: Video,
    size: FrameSize,
    fps: options.Fps = None,
    num_videos: options.NumVideos = 1,
    sampling: Sampling,
    weights: Weights,
    making: Making,
    running: Running,
) -> None:
    """Make a video from a storyboard: timed prompts, pictures and clips, cut or joined.

    Prints the path of the file on stdout and nothing else.
    """
    from sora_cli import app as verbs

    out = options.output_of(context, running)
    target = target_of(video.output, out, making, video, num_videos)
    results = verbs.storyboard(
        file.expanduser(),
        request_of(weights, sampling, size, Length(fps=fps)),
        target=target,
        observer=out.observe,
    )
    show(out, results, target)
