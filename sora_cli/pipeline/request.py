"""What the user asked for, and what it becomes for a given model.

A `Request` is the command line before a model is known: None means the model's default.
`resolve` checks it and returns `Settings`, every number legal for the model, with notes on what
was rounded and on what lies beyond the model's training. No torch here: `--dry-run` and bad
input answer at once.
"""

from __future__ import annotations

import math
import re
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from sora_cli.errors import UsageError
from sora_cli.models.specs import ModelSpec, SamplerName, SigmaGrid
from sora_cli.pipeline.prompt import clean_text

MAX_SEED = 2**63 - 1
MAX_SIDE = 100_000  # keeps the arithmetic sane; the model's own limit comes first
MAX_STEPS = 1000  # one for each timestep the models were trained with
MAX_FPS = 1000.0

T = TypeVar("T")

_SECONDS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_NUMBER = r"\d+(?:\.\d*)?|\.\d+"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One order. Lengths in seconds or frames, sizes in pixels; None = the model's default.

    aspect ("16:9") with resolution ("480p", the short side) is the other way of giving a size.
    expand: None = as the model does by default. image: the first frame, where one is given.
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
    shift: float | None = None
    sampler: str | None = None
    sigma_grid: str | None = None
    seed: int | None = None
    expand: bool | None = None
    device: str | None = None
    dtype: str | None = None
    image: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """A request resolved for one model: complete, checked, ready to run."""

    prompt: str
    negative_prompt: str
    model: str
    width: int
    height: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    shift: float
    sampler: SamplerName
    sigma_grid: SigmaGrid
    seed: int
    expand: bool

    @property
    def duration(self) -> float:
        """How long the clip plays, in seconds."""
        return self.num_frames / self.fps


def parse_size(text: str) -> tuple[int, int]:
    """`832x480` → (width, height) in pixels."""
    match = re.fullmatch(r"(\d{1,9})\s*[xX×]\s*(\d{1,9})", text.strip())
    if match is None:
        raise UsageError(
            f"cannot read the size {text!r}", hint="write WIDTHxHEIGHT in pixels: --size 832x480"
        )
    return int(match[1]), int(match[2])


def parse_duration(text: str) -> float:
    """`5s`, `500ms`, `1m`, `1h`, `1m30s` or a plain `2.5` (seconds) → seconds."""
    compact = text.strip().lower()
    part = rf"({_NUMBER})\s*(ms|sec|s|min|m|h)"
    if re.fullmatch(rf"-?(?:{_NUMBER})", compact):
        return float(compact)
    if re.fullmatch(rf"-?(?:{part}\s*)+", compact) is None:
        raise UsageError(
            f"cannot read the duration {text!r}",
            hint="write a number and s, ms, m or h: --duration 5s",
        )
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(part, compact))
    return -seconds if compact.startswith("-") else seconds


def parse_aspect(text: str) -> float:
    """`16:9` → width / height."""
    match = re.fullmatch(rf"({_NUMBER})\s*[:/]\s*({_NUMBER})", text.strip())
    width, height = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if height == 0 or not 0.01 <= width / height <= 100:
        raise UsageError(
            f"cannot use the aspect {text!r}",
            hint="write WIDTH:HEIGHT, from 1:100 to 100:1: --aspect 16:9",
        )
    return width / height


def parse_resolution(text: str) -> int:
    """`480p` → the short side, 480 pixels."""
    match = re.fullmatch(r"(\d{1,9})[pP]", text.strip())
    if match is None or int(match[1]) == 0:
        raise UsageError(
            f"cannot read the resolution {text!r}",
            hint="write the short side in pixels and a p: --resolution 480p",
        )
    return int(match[1])


def resolve(request: Request, spec: ModelSpec) -> tuple[Settings, list[str]]:
    """The request made complete and legal for a model.

    Returns:
        the settings, and notes: what was rounded, what is beyond the model's training.

    Raises:
        UsageError: what cannot be made at all, with the nearest thing that can.
    """
    if request.image is None and not clean_text(request.prompt):
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
        shift=_number("--shift", request.shift, spec.shift, above=0),
        sampler=_choice("--sampler", request.sampler, spec.sampler, get_args(SamplerName)),
        sigma_grid=_choice(
            "--sigma-grid", request.sigma_grid, spec.sigma_grid, get_args(SigmaGrid)
        ),
        seed=_whole("--seed", request.seed, secrets.randbelow(2**32), least=0, most=MAX_SEED),
        expand=_default(request.expand, spec.expand),
    )
    return settings, size_notes + length_notes


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
        notes.append(
            f"{made} is beyond the sizes {spec.name} was trained on (sides {low} to {high}): "
            "quality may suffer"
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
    if asked > longest + scale_t / 2:
        raise UsageError(
            f"{said} is too long: at {width}x{height} {spec.name} makes at most {longest} frames, "
            f"{say_duration(longest / fps)} at {fps:g} fps, in one piece; this version cannot "
            "continue a video piece by piece",
            hint=f"the most is --num-frames {longest}; "
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
    if num_frames > spec.trained_frames:
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
    raise UsageError(
        f"{flag} must be a number {' and '.join(bounds)}, not {value:g}",
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


def _choice(flag: str, value: str | None, default: T, names: tuple[T, ...]) -> T:
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


def say_duration(seconds: float) -> str:
    """Seconds as people write them: 5.04s, 2m2s, 1000h."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    return f"{seconds / 3600:g}h"
