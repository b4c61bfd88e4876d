"""What the user asked for, and what it becomes for a given model.

A `Request` is the command line before a model is known: None means the model's default.
`resolve` checks it and returns `Settings`, every number legal for the model, with notes on what
was rounded and on what lies beyond the model's training. No torch here: `--dry-run` and bad
input answer at once.
"""

from __future__ import annotations

import math
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from sora_cli.errors import UsageError
from sora_cli.models.specs import ModelSpec, SamplerName, SigmaGrid
from sora_cli.pipeline.prompt import clean_text
from sora_cli.pipeline.units import parse_aspect, parse_resolution, say_duration

MAX_SEED = 2**63 - 1
MAX_SIDE = 100_000  # keeps the arithmetic sane; the model's own limit comes first
MAX_STEPS = 1000  # one for each timestep the models were trained with
MAX_FPS = 1000.0

T = TypeVar("T")
D = TypeVar("D")
Fp8Layers = Literal["ffn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One order. Lengths in seconds or frames, sizes in pixels; None = the model's default.

    aspect ("16:9") with resolution ("480p", the short side) is the other way of giving a size.
    guidance_scale_2: of a second expert. expand: None = as the model does by default.
    references: pictures that say how things look. loras: as typed, [high:|low:]PATH[=SCALE].
    vae, text_encoder: for a model in a single file.
    guidance_interval, step_cache, fp8_matmul: shortcuts, as in `Settings`.
    compile: the transformer's blocks are compiled before they run.
    memory: "auto", "low" or gigabytes. needs_prompt: False where something else says what is to be
    seen.
    """

    prompt: str = ""
    negative_prompt: str | None = None
    model: str | None = None
    width: int | None = None
    height: int | None = None
    aspect: str | None = None
    resolution: str | None = None
    duration: float | None = None
    num_frames: int | None = None
    fps: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    shift: float | None = None
    sampler: str | None = None
    sigma_grid: str | None = None
    seed: int | None = None
    expand: bool | None = None
    device: str | None = None
    dtype: str | None = None
    loras: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    vae: Path | None = None
    text_encoder: Path | None = None
    quantization: str | None = None
    guidance_interval: tuple[float, float] | None = None
    step_cache: float | None = None
    fp8_matmul: str | None = None
    compile: bool = False
    memory: str | None = None
    needs_prompt: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """A request resolved for one model: complete, checked, ready to run.

    num_frames: of the whole video. chunk_frames: of each canvas that it is made on.
    guidance_scale_2: the low-noise expert's, where the model has two.
    guidance_scale_onward, given_sigma_onward: as in `ModelSpec`.
    fixed_sigmas: a few-step model's noise levels instead of the grid.
    tile: (width, height) of what the transformer sees at once; None = the whole frame.
    begin_at: the noise level at which a canvas begins; below 1, something stands on it already.
    guidance_interval: the part of the steps that is guided, the others go by the prompt alone.
    step_cache: a step's velocity is drawn from those before while it is predicted to have changed
        by less than this; None = every step is computed.
    fp8_matmul: layers that multiply in 8 bits: "ffn", the feed-forward ones.
    compile: the transformer's blocks are compiled.
    """

    prompt: str
    negative_prompt: str
    model: str
    width: int
    height: int
    num_frames: int
    chunk_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    shift: float
    sampler: SamplerName
    sigma_grid: SigmaGrid
    fixed_sigmas: tuple[float, ...] | None
    seed: int
    expand: bool
    tile: tuple[int, int] | None = None
    begin_at: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    step_cache: float | None = None
    fp8_matmul: Fp8Layers | None = None
    compile: bool = False
    guidance_scale_onward: float | None = None
    given_sigma_onward: float = 0.0

    @property
    def duration(self) -> float:
        """How long the clip plays, in seconds."""
        return self.num_frames / self.fps


def resolve(request: Request, spec: ModelSpec) -> tuple[Settings, list[str]]:
    """The request made complete and legal for a model.

    Returns:
        the settings, and notes: what was rounded, what is beyond the model's training.

    Raises:
        UsageError: what cannot be made at all, with the nearest thing that can.
    """
    if request.needs_prompt and not clean_text(request.prompt):
        raise UsageError(
            "the prompt is empty", hint='say what to make: sora generate "a red ball bounces"'
        )
    fps = _number("--fps", request.fps, spec.fps, above=0, most=MAX_FPS)
    (width, height), size_notes = _resolve_size(request, spec)
    num_frames, length_notes = _resolve_length(request, spec, fps, width, height)
    settings = Settings(
        prompt=request.prompt,
        negative_prompt=_default(request.negative_prompt, spec.negative_prompt),
        model=spec.name,
        width=width,
        height=height,
        num_frames=num_frames,
        chunk_frames=spec.chunk(width, height, num_frames),
        fps=fps,
        num_inference_steps=_whole(
            "--steps",
            request.num_inference_steps,
            spec.num_inference_steps,
            least=1,
            most=MAX_STEPS,
        ),
        guidance_scale=_number(
            "--guidance-scale", request.guidance_scale, spec.guidance_scale, least=0
        ),
        guidance_scale_2=_low_noise_scale(request, spec),
        shift=_number("--shift", request.shift, spec.shift, above=0),
        sampler=_choice("--sampler", request.sampler, spec.sampler, get_args(SamplerName)),
        sigma_grid=_choice(
            "--sigma-grid", request.sigma_grid, spec.sigma_grid, get_args(SigmaGrid)
        ),
        fixed_sigmas=_fixed_sigmas(request, spec),
        seed=_whole("--seed", request.seed, secrets.randbelow(2**32), least=0, most=MAX_SEED),
        expand=_default(request.expand, spec.expand),
        guidance_interval=_guidance_interval(request),
        step_cache=_number("--step-cache", request.step_cache, 0.0, least=0, most=1) or None,
        fp8_matmul=_choice("--fp8-matmul", request.fp8_matmul, None, get_args(Fp8Layers)),
        compile=request.compile,
        guidance_scale_onward=spec.scale_onward(request.guidance_scale),
        given_sigma_onward=spec.given_sigma_onward,
    )
    _refuse_vain_shortcuts(request, settings)
    return settings, size_notes + length_notes


def _low_noise_scale(request: Request, spec: ModelSpec) -> float | None:
    """Guidance of the second expert: its own, else what was asked of the first, else the model's.

    Raises UsageError where a second scale is given to a model with one transformer.
    """
    if spec.boundary is None:
        if request.guidance_scale_2 is not None:
            raise UsageError(
                f"--guidance-scale-2 is for models with two experts; {spec.name} has one",
                hint=f"--guidance-scale {request.guidance_scale_2:g}",
            )
        return None
    default = spec.guidance_scale_2 if request.guidance_scale is None else request.guidance_scale
    default = spec.guidance_scale if default is None else default
    return _number("--guidance-scale-2", request.guidance_scale_2, default, least=0)


def _guidance_interval(request: Request) -> tuple[float, float]:
    """The part of the steps that is guided. Raises UsageError where it is no part of them."""
    start, end = request.guidance_interval or (0.0, 1.0)
    if not 0 <= start < end <= 1:
        raise UsageError(
            f"--guidance-interval must be two rising numbers from 0 to 1, not {start}:{end}"[:200],
            hint="to guide the first half of the steps: --guidance-interval 0:0.5",
        )
    return float(start), float(end)


def _refuse_vain_shortcuts(request: Request, settings: Settings) -> None:
    """Raises UsageError for a shortcut that has nothing to leave out, or nothing to go by."""
    scales = {settings.guidance_scale, settings.guidance_scale_2}
    if request.guidance_interval and scales <= {1, None}:
        raise UsageError(
            "--guidance-interval has nothing to leave out: guidance is off at scale 1",
            hint="leave out --guidance-interval",
        )
    if settings.step_cache and settings.sampler == "renoise":
        raise UsageError(
            "--step-cache cannot be used with --sampler renoise: its steps begin from new noise",
            hint="leave out --step-cache",
        )


def _fixed_sigmas(request: Request, spec: ModelSpec) -> tuple[float, ...] | None:
    """A few-step model's own noise levels, unless another way of choosing them is asked for."""
    asked = (request.shift, request.sigma_grid)
    return spec.fixed_sigmas if all(option is None for option in asked) else None


def _resolve_size(request: Request, spec: ModelSpec) -> tuple[tuple[int, int], list[str]]:
    """(width, height) on the model's grid, with notes."""
    asked = _asked_size(request, spec)
    multiple = spec.size_multiple
    width, height = (max(1, _nearest(side / multiple)) * multiple for side in asked)
    made = f"{width}x{height}"
    if width * height > spec.max_pixels:
        raise UsageError(
            f"{made} is too large: {spec.name} makes at most {spec.max_pixels:,} pixels a frame",
            hint=f"its own size is --size {spec.width}x{spec.height}",
        )
    notes = []
    if (width, height) != asked:
        wanted = f"{_nearest(asked[0])}x{_nearest(asked[1])}"
        if request.aspect is not None:
            wanted = f"{request.aspect} ({wanted})"
        notes.append(
            f"size {wanted} becomes {made}: {spec.name}'s sides are multiples of {multiple}"
        )
    low, high = spec.trained_sides
    if min(width, height) < low or max(width, height) > high:
        way_out = "; make a smaller one and enlarge it: sora upscale FILE --size " + made
        notes.append(
            f"{made} is beyond the sizes {spec.name} was trained on (sides {low} to {high}): "
            f"quality may suffer{way_out if max(width, height) > high else ''}"
        )
    return (width, height), notes


def _asked_size(request: Request, spec: ModelSpec) -> tuple[float, float]:
    """(width, height) as asked for, before rounding; fractions where an aspect gave them."""
    width, height = request.width, request.height
    if any(side is not None and not 1 <= side <= MAX_SIDE for side in (width, height)):
        raise UsageError(
            f"the size {_default(width, '?')}x{_default(height, '?')} cannot be made: a side has "
            f"1 to {MAX_SIDE} pixels",
            hint=f"{spec.name}'s own size is --size {spec.width}x{spec.height}",
        )
    if width and height:
        _refuse_both("--size", "--aspect", request.aspect)
    if width or height:
        _refuse_both("--size", "--resolution", request.resolution)
    aspect = spec.width / spec.height if request.aspect is None else parse_aspect(request.aspect)
    if width or height:
        return width or (height or 0) * aspect, height or (width or 0) / aspect
    if request.resolution is not None:
        short = parse_resolution(request.resolution)
        return (short * aspect, short) if aspect >= 1 else (short, short / aspect)
    if request.aspect is None:
        return spec.width, spec.height
    pixels = spec.width * spec.height  # an aspect alone keeps the amount of work
    return math.sqrt(pixels * aspect), math.sqrt(pixels / aspect)


def _resolve_length(
    request: Request, spec: ModelSpec, fps: float, width: int, height: int
) -> tuple[int, list[str]]:
    """The number of frames, scale_t·k + 1, with notes."""
    longest, scale_t = spec.longest(width, height), spec.vae_scale_factors[0]
    if request.duration is None and request.num_frames is None:
        return min(spec.num_frames, longest), []
    asked, said = _asked_length(request, spec, fps)
    most = spec.max_frames if spec.continues else longest
    if asked > most + scale_t / 2:
        piece = "" if spec.continues else f" at {width}x{height}, and cannot continue a video"
        raise UsageError(
            f"{said} is too long: {spec.name} makes at most {most} frames, "
            f"{say_duration(most / fps)} at {fps:g} fps{piece}",
            hint=f"the most is --num-frames {most}; "
            f"{spec.name} was trained on up to {spec.trained_frames}",
        )
    num_frames = scale_t * max(0, _nearest((asked - 1) / scale_t)) + 1
    notes = []
    # A clip has one frame more than intervals: 5 s at 24 fps as 121 frames is what was asked for.
    if abs(num_frames - asked) > (0 if request.duration is None else 1):
        notes.append(
            f"{said} becomes {num_frames} frames, {say_duration(num_frames / fps)}: "
            f"{spec.name}'s lengths are {scale_t}k+1 frames"
        )
    chunk = spec.chunk(width, height, num_frames)
    if num_frames > chunk:
        then = f", then {onward}" if (onward := spec.onward(width, height)) > chunk else ""
        pieces = f"{num_frames} frames are made in pieces of {chunk}{then}"
        notes.append(f"{pieces}, each continuing the one before")
    elif num_frames > spec.trained_frames:
        notes.append(
            f"{num_frames} frames are beyond the {spec.trained_frames} that {spec.name} was "
            "trained on: quality may suffer"
        )
    return num_frames, notes


def _asked_length(request: Request, spec: ModelSpec, fps: float) -> tuple[float, str]:
    """The number of frames as asked for, before rounding, and how the user said it."""
    if request.duration is not None:
        _refuse_both("--duration", "--num-frames", request.num_frames)
        seconds = _number("--duration", request.duration, spec.num_frames / spec.fps, above=0)
        return seconds * fps, f"--duration {say_duration(seconds)}"
    num_frames = _whole("--num-frames", request.num_frames, spec.num_frames, least=1)
    return num_frames, f"--num-frames {num_frames}"


def _number(
    flag: str,
    value: float | None,
    default: float,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = sys.float_info.max,
) -> float:
    """A finite number in the range that the flag allows."""
    if value is None:
        return default
    if above < value <= most and value >= least:
        return float(value)
    bounds = [f"above {above:g}"] if above > -math.inf else [f"of at least {least:g}"]
    bounds += [f"at most {most:g}"] if most < sys.float_info.max else []
    # A recipe's JSON may hold whole numbers that no float is as large as.
    said = f"{value:g}" if isinstance(value, float) or abs(value) <= most else "that"
    raise UsageError(
        f"{flag} must be a number {' and '.join(bounds)}, not {said}",
        hint=f"leave it out, or use the model's default: {flag} {default:g}",
    )


def _whole(
    flag: str, value: int | None, default: int, *, least: int, most: int | None = None
) -> int:
    """A whole number in the range that the flag allows."""
    if value is None:
        return default
    if least <= value and (most is None or value <= most):
        return value
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise UsageError(
        f"{flag} must be a whole number {bounds}, not {value}",
        hint=f"leave it out, or try {flag} {default}",
    )


def _choice(flag: str, value: str | None, default: D, names: tuple[T, ...]) -> T | D:
    """One of the names that the flag allows."""
    if value is None:
        return default
    for name in names:
        if name == value:
            return name
    raise UsageError(
        f"{flag} {value!r} is unknown", hint=f"choose one: {flag} {' or '.join(map(str, names))}"
    )


def _refuse_both(flag: str, other: str, other_value: object) -> None:
    """Raises where two flags that say the same thing are both given."""
    if other_value is not None:
        raise UsageError(
            f"{flag} and {other} cannot be used together", hint=f"leave out {other} or {flag}"
        )


def _default(value: T | None, default: T) -> T:
    return default if value is None else value


def _nearest(value: float) -> int:
    """The nearest whole number; halves go down, towards less work (720 is 704 in steps of 32)."""
    return math.ceil(value - 0.5)
