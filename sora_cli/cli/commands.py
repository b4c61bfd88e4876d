"""The commands: each turns its options into a request and calls the verb of that name in `app`.

`sora_cli.app` and what it needs are imported inside the functions, so that `sora --help` is
instant.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sora_cli.cli import batch, clips, options, provenance, replay, runs, weights
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
from sora_cli.cli.output import Output
from sora_cli.cli.panels import PanelCommand

app = typer.Typer(
    name="sora",
    help="Make and animate video from the command line, with weights you own.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(weights.app, name="weights")
app.add_typer(runs.app, name="runs")
app.add_typer(provenance.app, name="provenance")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        Output().result(f"sora {version('sora-cli')}", {})
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Make and animate video from the command line, with weights you own."""


@app.command(cls=PanelCommand)
@with_groups
def generate(
    context: typer.Context,
    *,
    prompt: options.Prompt,
    video: Video,
    size: FrameSize,
    length: Length,
    reference: options.References = None,
    num_videos: options.NumVideos = 1,
    sampling: Sampling,
    weights: Weights,
    making: Making,
    running: Running,
) -> None:
    """Make a video from a prompt.

    Prints the path of the file on stdout and nothing else.
    """
    from sora_cli import app as verbs

    out = options.output_of(context, running)
    target = target_of(video.output, out, making, video, num_videos)
    results = verbs.generate(
        replace(
            request_of(weights, sampling, size, length, prompt), references=tuple(reference or ())
        ),
        target=target,
        observer=out.observe,
    )
    show(out, results, target)


@app.command(cls=PanelCommand)
@with_groups
def image(
    context: typer.Context,
    *,
    prompt: options.Prompt,
    output: options.ImageOutput = None,
    size: FrameSize,
    num_images: options.NumImages = 1,
    sampling: Sampling,
    weights: Weights,
    making: Making,
    running: Running,
) -> None:
    """Make a picture from a prompt: a video of one frame.

    Prints the path of the file on stdout and nothing else.
    """
    from sora_cli import app as verbs

    out = options.output_of(context, running)
    target = target_of(output, out, making, count=num_images)
    results = verbs.image(
        request_of(weights, sampling, size, prompt=prompt),
        target=target,
        observer=out.observe,
    )
    show(out, results, target)


@app.command(cls=PanelCommand)
@with_groups
def animate(
    context: typer.Context,
    *,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The first frame: PNG, JPEG …")],
    prompt: options.OptionalPrompt = None,
    last: Annotated[
        Path | None, typer.Option("--last", metavar="IMAGE", help="The last frame.")
    ] = None,
    fit: options.Fit = "crop",
    video: Video,
    size: FrameSize,
    length: Length,
    num_videos: options.NumVideos = 1,
    sampling: Sampling,
    weights: Weights,
    making: Making,
    running: Running,
) -> None:
    """Make a video that starts with a picture, or leads from one picture to another.

    Prints the path of the file on stdout and nothing else.
    """
    from sora_cli import app as verbs

    out = options.output_of(context, running)
    target = target_of(video.output, out, making, video, num_videos)
    results = verbs.animate(
        image.expanduser(),
        request_of(weights, sampling, size, length, prompt),
        last=None if last is None else last.expanduser(),
        fit=fit,
        target=target,
        observer=out.observe,
    )
    show(out, results, target)


for verb in (
    clips.extend,
    clips.loop,
    clips.connect,
    clips.edit,
    clips.storyboard,
    clips.upscale,
):
    app.command(cls=PanelCommand)(verb)


for command in (batch.batch, runs.resume, provenance.verify):
    app.command()(command)
app.command(cls=PanelCommand)(replay.replay)


@app.command()
def info(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Something sora made.")],
    as_json: options.AsJson = False,
) -> None:
    """Print the recipe that a made file carries."""
    out = options.output_of(context)
    out.configure(as_json=as_json)
    from sora_cli import app as verbs

    out.facts(verbs.info(file.expanduser()))


@app.command()
@with_groups
def expand(
    context: typer.Context,
    *,
    prompt: options.Prompt,
    model: options.Model = None,
    seed: options.Seed = None,
    running: Running,
) -> None:
    """Print the long form of a short prompt, as the caption LLM says it."""
    out = options.output_of(context, running)
    from sora_cli import app as verbs

    expansion = verbs.expand(options.read_prompt(prompt), options.model_of(model), seed)
    for note in expansion.notes:
        out.note(note)
    content = {"prompt": expansion.prompt, "expanded_prompt": expansion.expanded_prompt}
    out.result(expansion.expanded_prompt, {**content, "notes": list(expansion.notes)})


@app.command()
@with_groups
def caption(
    context: typer.Context,
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A picture or a clip.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME|FOLDER", help="In the language that this model reads."
        ),
    ] = None,
    seed: options.Seed = None,
    running: Running,
) -> None:
    """Print what is seen in a picture or a clip, in words.

    The vision-language model says it where it was pulled, else tiny's captioner, which knows no
    more than tiny's world.
    """
    out = options.output_of(context, running)
    from sora_cli import app as verbs

    found = verbs.caption(file.expanduser(), model=model, seed=seed)
    for note in found.notes:
        out.note(note)
    content = {"path": str(file), "caption": found.text, "frames": found.frames}
    out.result(found.text, {**content, "notes": list(found.notes)})


@app.command()
def doctor(
    context: typer.Context,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what this machine has: device, memory, disk, ffmpeg, caches, versions, models."""
    out = options.output_of(context)
    out.configure(as_json=as_json)
    from sora_cli.cli.doctor import examine, readable

    report = examine(device, dtype)
    out.facts(report, readable=readable(report))
    if report["problems"]:
        raise typer.Exit(1)
