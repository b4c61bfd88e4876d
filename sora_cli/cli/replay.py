"""`sora replay`: make a file again from its recipe, and say what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sora_cli.cli import options
from sora_cli.cli.groups import (
    Marks,
    Running,
    Shortcuts,
    Weights,
    kept_marks,
    shortcuts_of,
    with_groups,
)

SAME = ("model", "vae", "text_encoder", "quantization", "device", "dtype", "memory")


@with_groups
def replay(
    context: typer.Context,
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Something sora made.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="Where it goes. [default: FILE-replay.mp4]"
        ),
    ] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input", metavar="PATH", help="What FILE was made from, where it is not beside it."
        ),
    ] = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    sampler: options.Sampler = None,
    shift: options.Shift = None,
    shortcuts: Shortcuts,
    weights: Weights,
    force: options.Force = False,
    marks: Marks,
    running: Running,
) -> None:
    """Make a file again as its recipe says, and say what differs.

    With other settings, where they are given. Prints the path of the new file on stdout and
    nothing else; what differs goes to stderr, or with --json into the object.
    """
    from sora_cli.runs.replay import replay as again

    out = options.output_of(context, running)
    results = again(
        file.expanduser(),
        output=options.target_of(output, out, count=1),
        force=force,
        given=[path.expanduser() for path in inputs or ()],
        marks=kept_marks(marks),
        observer=out.observe,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        shift=shift,
        **{name: getattr(weights, name) for name in SAME},
        loras=tuple(weights.lora) if weights.lora else None,
        **shortcuts_of(shortcuts),
        compile=weights.compile or None,
    )
    for result, comparison in results:
        for line in comparison.say():
            out.note(line)
        out.result(str(result.path), {**result.to_json(), **comparison.to_json()})
