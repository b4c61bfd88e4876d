"""The commands: each turns its options into a request and calls the verb of that name in `app`.

`sora_cli.app` and what it needs are imported inside the functions, so that `sora --help` is
instant.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sora_cli.cli import options, weights
from sora_cli.cli.output import Output

if TYPE_CHECKING:
    from sora_cli.app import Result

app = typer.Typer(
    name="sora",
    help="Make and animate video from the command line, with weights you own.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(weights.app, name="weights")


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


@app.command()
def generate(
    context: typer.Context,
    prompt: options.Prompt,
    output: options.VideoOutput = None,
    model: options.Model = None,
    size: options.Size = None,
    width: options.Width = None,
    height: options.Height = None,
    aspect: options.Aspect = None,
    resolution: options.Resolution = None,
    duration: options.Duration = None,
    num_frames: options.NumFrames = None,
    fps: options.Fps = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    negative_prompt: options.NegativePrompt = None,
    seed: options.Seed = None,
    num_videos: options.NumVideos = 1,
    expand: options.Expand = None,
    sampler: options.Sampler = None,
    sigma_grid: options.SigmaGrid = None,
    shift: options.Shift = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    crf: options.Crf = 18,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.AsJson = False,
    progress: options.ProgressForm = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Make a video from a prompt.

    Prints the path of the file on stdout and nothing else.
    """
    out = options.output_of(context)
    out.configure(quiet=quiet, as_json=as_json, progress=progress)
    from sora_cli import app as verbs
    from sora_cli.pipeline.request import Request

    width, height = options.size_of(size, width, height)
    request = Request(
        prompt=options.read_prompt(prompt),
        negative_prompt=negative_prompt,
        model=options.model_of(model),
        width=width,
        height=height,
        aspect=aspect,
        resolution=resolution,
        duration=options.duration_of(duration),
        num_frames=num_frames,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        shift=shift,
        sampler=sampler,
        sigma_grid=sigma_grid,
        seed=seed,
        expand=expand,
        device=device,
        dtype=dtype,
    )
    target = options.target_of(output, out, count=num_videos)
    results = verbs.generate(
        request,
        output=target,
        num_videos=num_videos,
        crf=crf,
        force=force,
        dry_run=dry_run,
        observer=out.observe,
    )
    _show(out, results, target, dry_run=dry_run)


@app.command()
def image(
    context: typer.Context,
    prompt: options.Prompt,
    output: options.ImageOutput = None,
    model: options.Model = None,
    size: options.Size = None,
    width: options.Width = None,
    height: options.Height = None,
    aspect: options.Aspect = None,
    resolution: options.Resolution = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    negative_prompt: options.NegativePrompt = None,
    seed: options.Seed = None,
    num_images: options.NumImages = 1,
    expand: options.Expand = None,
    sampler: options.Sampler = None,
    sigma_grid: options.SigmaGrid = None,
    shift: options.Shift = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.AsJson = False,
    progress: options.ProgressForm = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Make a picture from a prompt: a video of one frame.

    Prints the path of the file on stdout and nothing else.
    """
    out = options.output_of(context)
    out.configure(quiet=quiet, as_json=as_json, progress=progress)
    from sora_cli import app as verbs
    from sora_cli.pipeline.request import Request

    width, height = options.size_of(size, width, height)
    request = Request(
        prompt=options.read_prompt(prompt),
        negative_prompt=negative_prompt,
        model=options.model_of(model),
        width=width,
        height=height,
        aspect=aspect,
        resolution=resolution,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        shift=shift,
        sampler=sampler,
        sigma_grid=sigma_grid,
        seed=seed,
        expand=expand,
        device=device,
        dtype=dtype,
    )
    target = options.target_of(output, out, count=num_images)
    results = verbs.image(
        request,
        output=target,
        num_images=num_images,
        force=force,
        dry_run=dry_run,
        observer=out.observe,
    )
    _show(out, results, target, dry_run=dry_run)


@app.command()
def animate(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The first frame: PNG, JPEG …")],
    prompt: options.OptionalPrompt = None,
    output: options.VideoOutput = None,
    model: options.Model = None,
    size: options.Size = None,
    width: options.Width = None,
    height: options.Height = None,
    aspect: options.Aspect = None,
    resolution: options.Resolution = None,
    duration: options.Duration = None,
    num_frames: options.NumFrames = None,
    fps: options.Fps = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    negative_prompt: options.NegativePrompt = None,
    seed: options.Seed = None,
    num_videos: options.NumVideos = 1,
    expand: options.Expand = None,
    sampler: options.Sampler = None,
    sigma_grid: options.SigmaGrid = None,
    shift: options.Shift = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    crf: options.Crf = 18,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.AsJson = False,
    progress: options.ProgressForm = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Make a video that starts with a picture.

    Prints the path of the file on stdout and nothing else.
    """
    out = options.output_of(context)
    out.configure(quiet=quiet, as_json=as_json, progress=progress)
    from sora_cli import app as verbs
    from sora_cli.pipeline.request import Request

    width, height = options.size_of(size, width, height)
    request = Request(
        image=image.expanduser(),
        prompt="" if prompt is None else options.read_prompt(prompt),
        negative_prompt=negative_prompt,
        model=options.model_of(model),
        width=width,
        height=height,
        aspect=aspect,
        resolution=resolution,
        duration=options.duration_of(duration),
        num_frames=num_frames,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        shift=shift,
        sampler=sampler,
        sigma_grid=sigma_grid,
        seed=seed,
        expand=expand,
        device=device,
        dtype=dtype,
    )
    target = options.target_of(output, out, count=num_videos)
    results = verbs.animate(
        request,
        output=target,
        num_videos=num_videos,
        crf=crf,
        force=force,
        dry_run=dry_run,
        observer=out.observe,
    )
    _show(out, results, target, dry_run=dry_run)


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
def expand(
    context: typer.Context,
    prompt: options.Prompt,
    model: options.Model = None,
    seed: options.Seed = None,
    as_json: options.AsJson = False,
    progress: options.ProgressForm = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Print the long form of a short prompt, as the caption LLM says it."""
    out = options.output_of(context)
    out.configure(quiet=quiet, as_json=as_json, progress=progress)
    from sora_cli import app as verbs

    expansion = verbs.expand(options.read_prompt(prompt), options.model_of(model), seed)
    for note in expansion.notes:
        out.note(note)
    content = {"prompt": expansion.prompt, "expanded_prompt": expansion.expanded_prompt}
    out.result(expansion.expanded_prompt, {**content, "notes": list(expansion.notes)})


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


def _show(
    out: Output, results: Iterator[Result], target: str | Path | None, *, dry_run: bool
) -> None:
    """Print each result as soon as it is made."""
    for result in results:
        if dry_run:
            out.facts(result.to_json())
        elif target != "-":
            out.result(str(result.path), result.to_json())
