"""The options that several commands share, each declared once, and what they mean.

Ranges are `pipeline.request`'s to check: it knows the model and says what would be right.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sora_cli.cli.output import Output
from sora_cli.errors import UsageError

if TYPE_CHECKING:
    from sora_cli.cli.groups import Running

FitChoice = Literal["crop", "pad", "stretch"]
SamplerChoice = Literal["euler", "unipc", "renoise"]
SigmaGridChoice = Literal["diffusers", "original"]
ProgressChoice = Literal["auto", "plain", "json", "none"]

# The heading in help of what is faster and changes the picture.
SHORTCUTS = "Shortcuts (faster, and not quite the same picture; docs/reference/shortcuts.md)"
EXAMPLE = 'sora generate "a red ball bounces on the snow at sunset"'

Prompt = Annotated[
    str, typer.Argument(metavar="PROMPT", help="What to show; - reads it from stdin.")
]
OptionalPrompt = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="What happens; - reads it from stdin.")
]
VideoOutput = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="File (.mp4 .webm .mkv .gif .webp), folder/ of PNGs, or - for stdout. "
        "Without it, a new name from the prompt and the seed.",
    ),
]
ImageOutput = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="File (.png .jpg .webp), or - for stdout. Without it, a new name from the prompt "
        "and the seed.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|FOLDER",
        help="A name of `sora weights list`, or a diffusers folder. "
        "[default: SORA_MODEL, then config.toml, then tiny]",
    ),
]
Size = Annotated[
    str | None, typer.Option("--size", metavar="WxH", help="Frame size in pixels: 832x480.")
]
Width = Annotated[int | None, typer.Option("--width", help="Frame width in pixels.")]
Height = Annotated[int | None, typer.Option("--height", help="Frame height in pixels.")]
Aspect = Annotated[
    str | None, typer.Option("--aspect", metavar="W:H", help="Frame shape: 16:9, 1:1, 9:16.")
]
Resolution = Annotated[
    str | None,
    typer.Option("--resolution", metavar="LINES", help="The shorter side: 480p, 720p, 96p."),
]
Fit = Annotated[FitChoice, typer.Option("--fit", help="How a picture of another shape is fitted.")]
Duration = Annotated[
    str | None, typer.Option("--duration", metavar="TIME", help="Length: 5s, 500ms, 1m, 2.5.")
]
NumFrames = Annotated[
    int | None, typer.Option("--num-frames", help="Length in frames, instead of --duration.")
]
Fps = Annotated[float | None, typer.Option("--fps", help="Frames per second.")]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Denoising steps: more is slower and finer.")
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale",
        help="How closely to follow the prompt; 1 is off. By default a long video's later canvases "
        "follow their pictures instead, where the model says so (tiny).",
    ),
]
GuidanceScale2 = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale-2", help="The same for the second expert of a model that has two."
    ),
]
NegativePrompt = Annotated[
    str | None, typer.Option("--negative-prompt", "-n", metavar="TEXT", help="What not to show.")
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="Same seed, same picture. Without it, a random one, recorded in the file.",
    ),
]
NumVideos = Annotated[
    int,
    typer.Option(
        "--num-videos",
        help="How many; video i uses seed + i, and the name given with -o gets its seed added.",
        min=1,
    ),
]
NumImages = Annotated[
    int,
    typer.Option(
        "--num-images",
        help="How many; image i uses seed + i, and the name given with -o gets its seed added.",
        min=1,
    ),
]
Expand = Annotated[
    bool | None,
    typer.Option(
        "--expand/--no-expand", help="Let the caption LLM say a short prompt in full, or not."
    ),
]
Sampler = Annotated[SamplerChoice | None, typer.Option("--sampler", help="The denoising method.")]
SigmaGrid = Annotated[
    SigmaGridChoice | None,
    typer.Option("--sigma-grid", help="Noise levels as diffusers or the original code has them."),
]
Shift = Annotated[
    float | None, typer.Option("--shift", help="Shift of the noise levels towards noise.")
]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        "--guidance-interval", metavar="START:END", rich_help_panel=SHORTCUTS,
        help="Guide only this part of the steps, 0:0.5 being the first half: the others take half "
        "the time.",
    ),
]  # fmt: skip
StepCache = Annotated[
    float | None,
    typer.Option(
        "--step-cache", metavar="THRESHOLD", rich_help_panel=SHORTCUTS,
        help="Do not compute steps whose velocity is predicted to have changed by less than this, "
        "as 0.1.",
    ),
]  # fmt: skip
Fp8Matmul = Annotated[
    Literal["ffn"] | None,
    typer.Option(
        "--fp8-matmul", rich_help_panel=SHORTCUTS,
        help="Multiply in 8 bits in the feed-forward layers, on GPUs that can.",
    ),
]  # fmt: skip
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the transformer's blocks first: minutes once for a shape, then faster steps; "
        "kept on disk.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:0, mps.")
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", metavar="NAME", help="float32, bfloat16, float16.")
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="PATH [SCALE]",
        help="A LoRA to merge, by file or name, with its strength; repeatable. high:PATH and "
        "low:PATH are for one of two experts.",
    ),
]
VaeFile = Annotated[
    Path | None,
    typer.Option("--vae", metavar="PATH", help="The autoencoder of a model in a single file."),
]
TextEncoderFile = Annotated[
    Path | None,
    typer.Option(
        "--text-encoder", metavar="PATH", help="The text encoder of a model in a single file."
    ),
]
Quantization = Annotated[
    Literal["fp8"] | None,
    typer.Option("--quantization", help="Keep the transformer's weights in 8 bits."),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="auto|low|GB", help="How much memory to plan for: all, little, or GB."
    ),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference", metavar="IMAGE",
        help="A picture of how something looks, repeatable; for models that take references.",
    ),
]  # fmt: skip
KeepLatents = Annotated[
    bool,
    typer.Option(
        "--keep-latents", help="Write the last latents beside the video, for a later extend."
    ),
]
KeepRun = Annotated[
    bool, typer.Option("--keep-run", help="Keep the run's folder of unfinished work after success.")
]
Crf = Annotated[
    int, typer.Option("--crf", help="Compression of mp4 and webm: less is finer.", min=0, max=51)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be made and what it takes; load nothing.")
]
Sign = Annotated[
    bool | None,
    typer.Option(
        "--sign/--no-sign",
        help="Sign the file as made by AI (C2PA). [default: SORA_SIGN, then config.toml, then no]",
    ),
]
SignCertificate = Annotated[
    Path | None,
    typer.Option(
        "--sign-certificate", metavar="PEM",
        help="Certificate chain to sign with. [default: that of `sora provenance init`]",
    ),
]  # fmt: skip
SignKey = Annotated[
    Path | None, typer.Option("--sign-key", metavar="PEM", help="The certificate's private key.")
]
Metadata = Annotated[
    bool,
    typer.Option(
        "--metadata/--no-metadata", help="Write the recipe into the file, or leave it out."
    ),
]
Label = Annotated[
    bool | None,
    typer.Option("--label/--no-label", help='Write "made with AI" into a corner of every frame.'),
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile", metavar="[FILE]",
        help="Write a trace of the work (.json.gz, .json) and say what each phase took. Without "
        "FILE, a new name from the prompt and the seed.",
    ),
]  # fmt: skip
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print results as JSON objects, one a line.")]
ProgressForm = Annotated[
    ProgressChoice,
    typer.Option("--progress", help="auto: a bar on a terminal, lines elsewhere."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]


def output_of(context: typer.Context, running: Running | None = None) -> Output:
    """The streams `main` made for this command line, speaking as `running` says."""
    output = context.obj if isinstance(context.obj, Output) else Output()
    if running is not None:
        output.configure(quiet=running.quiet, as_json=running.as_json, progress=running.progress)
    return output


def read_prompt(prompt: str) -> str:
    """The prompt itself, or for `-` what stands on stdin.

    Raises:
        UsageError: there is nothing in it, or stdin is not text.
    """
    text = _read_stdin() if prompt == "-" else prompt
    if not text.strip():
        raise UsageError("the prompt is empty", hint=EXAMPLE)
    return text.strip()


def size_of(
    size: str | None, width: int | None, height: int | None
) -> tuple[int | None, int | None]:
    """`--size`, or `--width` and `--height`, as a request has them.

    Raises:
        UsageError: both were given, or the size is not a size.
    """
    from sora_cli.pipeline.units import parse_size

    if size is None:
        return width, height
    if width is not None or height is not None:
        raise UsageError(
            "--size says the width and the height already", hint=f"--size {size} alone"
        )
    return parse_size(size)


def duration_of(duration: str | None) -> float | None:
    """`--duration` in seconds."""
    from sora_cli.pipeline.units import parse_duration

    return None if duration is None else parse_duration(duration)


def interval_of(interval: str | None) -> tuple[float, float] | None:
    """`--guidance-interval` as its two ends."""
    from sora_cli.pipeline.units import parse_interval

    return None if interval is None else parse_interval(interval)


def span_of(start: str | None, stop: str | None) -> tuple[float, float] | None:
    """`--from` and `--to` in seconds.

    Raises:
        UsageError: only one of them was given.
    """
    first, last = duration_of(start), duration_of(stop)
    if first is None and last is None:
        return None
    if first is None or last is None:
        raise UsageError("--from and --to go together", hint="--from 1s --to 2s")
    return first, last


def model_of(model: str | None) -> str:
    """`--model`, or what stands for it."""
    from sora_cli.runtime.preferences import default_model

    return default_model() if model is None else model


def fold_profile_arguments(arguments: Sequence[str]) -> list[str]:
    """Join `--profile FILE` to `--profile=FILE`, and make `--profile` alone `--profile=`.

    A parser of options cannot make a value optional. What follows is a file only if it is named
    like a trace (.json, .json.gz); anything else is left where it stands, and so is everything
    after `--`.
    """
    folded: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*folded, word, *rest]
        if word == "--profile":
            named = rest and rest[0][0:1] != "-" and rest[0].endswith((".json", ".json.gz"))
            word = f"--profile={rest.pop(0) if named else ''}"
        folded.append(word)
    return folded


def target_of(output: str | None, out: Output, *, count: int) -> str | Path | None:
    """`--output` as `sora_cli.app` takes it.

    Raises:
        UsageError: stdout cannot carry what is asked for.
    """
    if output is None:
        return None
    if not output:
        raise UsageError("the output has no name", hint="-o clip.mp4")
    if output != "-":
        path = os.path.expanduser(output)
        # Path would drop the slash of `frames/`, which says that a folder is wanted.
        return path if path.endswith(("/", os.sep)) else Path(path)
    if out.as_json:
        raise UsageError("--json and -o - both want stdout", hint="-o clip.mp4 --json")
    if count > 1:
        raise UsageError(f"{count} files do not fit on stdout", hint="-o clip.mp4")
    if out.stdout_is_terminal:
        raise UsageError("stdout is a terminal, not a file", hint="-o - > clip.mp4")
    return "-"


def _read_stdin() -> str:
    if sys.stdin is None:
        raise UsageError("standard input is closed, so - has no prompt", hint=EXAMPLE)
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError("the prompt on stdin is not text", hint=EXAMPLE) from error
