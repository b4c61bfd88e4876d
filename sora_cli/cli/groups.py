"""Groups of options that making commands share: a dataclass is a group, a field is an option.

`with_groups` gives a command the fields of its groups as options, and hands it the groups filled
in. So an option is declared once, and a command names the groups it takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from sora_cli.cli import options

if TYPE_CHECKING:
    from sora_cli.cli.output import Output
    from sora_cli.jobs.job import Result, Target
    from sora_cli.pipeline.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """How a command speaks: JSON or paths, its progress, or not at all."""

    as_json: options.AsJson = False
    progress: options.ProgressForm = "auto"
    quiet: options.Quiet = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """How a file says that a model made it, to programs and to people."""

    sign: options.Sign = None
    sign_certificate: options.SignCertificate = None
    sign_key: options.SignKey = None
    label: options.Label = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Making(Marks):
    """What every making command has beside what it makes: whether, over what, with what marks."""

    dry_run: options.DryRun = False
    force: options.Force = False
    metadata: options.Metadata = True
    keep_run: options.KeepRun = False
    profile: options.Profile = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """Where a video goes and how it is compressed."""

    output: options.VideoOutput = None
    crf: options.Crf = 18
    keep_latents: options.KeepLatents = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSize:
    """Width and height, as people say them."""

    size: options.Size = None
    width: options.Width = None
    height: options.Height = None
    aspect: options.Aspect = None
    resolution: options.Resolution = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """How long, and at what rate."""

    duration: options.Duration = None
    num_frames: options.NumFrames = None
    fps: options.Fps = None


FAST_INTERVAL, FAST_THRESHOLD = (0.0, 0.5), 0.1  # a row of docs/reference/shortcuts.md
Fast = Annotated[
    bool,
    typer.Option(
        "--fast", rich_help_panel=options.SHORTCUTS,
        help="As --guidance-interval 0:0.5 --step-cache 0.1, where these are not given.",
    ),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortcuts:
    """What makes it faster and changes it; never a default."""

    fast: Fast = False
    guidance_interval: options.GuidanceInterval = None
    step_cache: options.StepCache = None
    fp8_matmul: options.Fp8Matmul = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling(Shortcuts):
    """How noise becomes a video."""

    steps: options.Steps = None
    guidance_scale: options.GuidanceScale = None
    guidance_scale_2: options.GuidanceScale2 = None
    negative_prompt: options.NegativePrompt = None
    seed: options.Seed = None
    expand: options.Expand = None
    sampler: options.Sampler = None
    sigma_grid: options.SigmaGrid = None
    shift: options.Shift = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Which model, with what changes, where and in how much memory."""

    model: options.Model = None
    lora: options.Loras = None
    vae: options.VaeFile = None
    text_encoder: options.TextEncoderFile = None
    quantization: options.Quantization = None
    device: options.Device = None
    dtype: options.Dtype = None
    compile: options.Compile = False
    memory: options.Memory = None


@cache  # every command has some of the same groups, and `--help` is asked for often
def _field_types(group: type) -> dict[str, Any]:
    return get_type_hints(group, include_extras=True)


def with_groups(function: Callable[..., None]) -> Callable[..., None]:
    """A Typer command from a function whose parameters may be groups.

    A parameter annotated with one of the dataclasses above is replaced by its fields; the function
    is called with the group made of what was typed.
    """
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        group = groups[parameter.name]
        types = _field_types(group)
        for field in fields(group):
            assert field.default is not MISSING, f"{field.name} of a group needs a default"
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
                    annotation=types[field.name],
                )
            )  # fmt: skip
    ordered = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]

    @wraps(function)
    def command(**values: Any) -> None:
        filled = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        function(**values, **filled)

    del command.__wrapped__
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in ordered}
    return command


def request_of(
    weights: Weights,
    sampling: Sampling,
    size: FrameSize | None = None,
    length: Length | None = None,
    prompt: str | None = None,
) -> Request:
    """The request that the groups make; `prompt` as typed, None where none was."""
    from sora_cli.pipeline.request import Request

    size, length = size or FrameSize(), length or Length()
    width, height = options.size_of(size.size, size.width, size.height)
    return Request(
        prompt="" if prompt is None else options.read_prompt(prompt),
        negative_prompt=sampling.negative_prompt,
        model=options.model_of(weights.model),
        width=width,
        height=height,
        aspect=size.aspect,
        resolution=size.resolution,
        duration=options.duration_of(length.duration),
        num_frames=length.num_frames,
        fps=length.fps,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        guidance_scale_2=sampling.guidance_scale_2,
        shift=sampling.shift,
        sampler=sampling.sampler,
        sigma_grid=sampling.sigma_grid,
        seed=sampling.seed,
        expand=sampling.expand,
        device=weights.device,
        dtype=weights.dtype,
        compile=weights.compile,
        loras=tuple(weights.lora or ()),
        vae=_path(weights.vae),
        text_encoder=_path(weights.text_encoder),
        quantization=weights.quantization,
        **shortcuts_of(sampling),
        memory=weights.memory,
        needs_prompt=prompt is not None,
    )


def shortcuts_of(asked: Shortcuts) -> dict[str, Any]:
    """The fields of a request that shortcuts are; `--fast` fills in those that were not typed."""
    interval, threshold = options.interval_of(asked.guidance_interval), asked.step_cache
    if asked.fast:
        interval = FAST_INTERVAL if interval is None else interval
        threshold = FAST_THRESHOLD if threshold is None else threshold
    return {
        "guidance_interval": interval, "step_cache": threshold, "fp8_matmul": asked.fp8_matmul
    }  # fmt: skip


def _path(text: Path | None) -> Path | None:
    return None if text is None else text.expanduser()


def marks_of(marks: Marks) -> dict[str, Any]:
    """The fields of a target that signing and labelling have, preferences included.

    A certificate or key on the command line means that a signature is wanted, and is of that pair:
    the other one is not looked for elsewhere.
    """
    from sora_cli.runtime.preferences import preferred_path, preferred_switch

    certificate, key = _path(marks.sign_certificate), _path(marks.sign_key)
    given = certificate is not None or key is not None
    if not given:
        certificate, key = preferred_path("sign_certificate"), preferred_path("sign_key")
    sign, label = marks.sign, marks.label
    return {
        "sign": (given or preferred_switch("sign")) if sign is None else sign,
        "label": preferred_switch("label") if label is None else label,
        "sign_certificate": certificate,
        "sign_key": key,
    }


def kept_marks(marks: Marks) -> dict[str, Any]:
    """The same for what is made again: what no flag said is missing, so it stays as it was."""
    found = marks_of(marks)
    if marks.sign is None and marks.sign_certificate is None and marks.sign_key is None:
        del found["sign"]
    if marks.label is None:
        del found["label"]
    return found


def target_of(
    output: str | None, out: Output, making: Making, video: Video | None = None, count: int = 1
) -> Target:
    """Where results go, as `app` takes it.

    Raises:
        UsageError: stdout cannot carry what is asked for.
    """
    from sora_cli.jobs.job import Target

    return Target(
        output=options.target_of(output, out, count=count),
        count=count,
        crf=18 if video is None else video.crf,
        keep_latents=video is not None and video.keep_latents,
        force=making.force,
        dry_run=making.dry_run,
        metadata=making.metadata,
        keep_run=making.keep_run,
        profile=making.profile,
        **marks_of(making),
        shared=out.shared,
        item=out.item,
    )


def show(out: Output, results: Iterator[Result], target: Target) -> None:
    """Print each result as soon as it is made."""
    for result in results:
        if target.dry_run:
            out.facts(result.to_json())
        elif target.output != "-":
            out.result(str(result.path), result.to_json())
