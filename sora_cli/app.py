"""One function per verb: read inputs, run the path, write, return a `Result`.

This is the public Python API too, and the only module that joins the pipeline to media. Nothing
heavy is imported before the request has been checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.errors import OutputError, UsageError
from sora_cli.pipeline.events import Event, Observer, ignore

if TYPE_CHECKING:
    import numpy as np

    from sora_cli.models.specs import ModelSpec
    from sora_cli.pipeline.expand import Expansion
    from sora_cli.pipeline.request import Request, Settings
    from sora_cli.runtime.device import DevicePlan
    from sora_cli.weights.store import Installed

# A folder of frames is a str that ends in a slash, which Path would drop; "-" is stdout.
Target = str | Path | None
SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What was made: where it lies (None for a dry run) and the recipe it carries."""

    path: str | Path | None
    recipe: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The object of `--json` (docs/reference/recipe.schema.json)."""
        return self.recipe if self.path is None else {"path": str(self.path), **self.recipe}


@dataclass
class _Clock:
    """Seconds spent in each phase, told by the events that pass through it."""

    observer: Observer
    phase: str | None = None
    since: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        if event.phase not in ("note", self.phase):
            self.enter(event.phase)
        self.observer(event)

    def enter(self, phase: str | None) -> None:
        """Close the running phase and begin another."""
        now = time.perf_counter()
        if self.phase is not None:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.since
        self.phase, self.since = phase, now

    def timings(self) -> dict[str, float]:
        """Phases that are over, and the running one so far."""
        self.enter(self.phase)
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}


def generate(
    request: Request,
    *,
    output: Target = None,
    num_videos: int = 1,
    crf: int = 18,
    force: bool = False,
    dry_run: bool = False,
    observer: Observer = ignore,
) -> Iterator[Result]:
    """Make videos from a prompt, one for each of `num_videos` seeds.

    Args:
        output: file, folder (frames/) or "-"; None names it after prompt and seed.
        crf: quality of lossy video, lower is better.
        dry_run: say what would be done, make nothing.

    Raises:
        SoraError: see errors.py; the message names the next command.
    """
    from sora_cli.media import video

    def write(path: Any, made: Any, recipe: dict[str, Any], settings: Settings) -> None:
        video.write(
            path, made, width=settings.width, height=settings.height, fps=settings.fps,
            recipe=recipe, crf=crf, force=force,
        )  # fmt: skip

    media = _Media(
        suffix=".mp4", check=video.check_output, check_stream=video.check_stream, write=write
    )
    return _make(request, media, output, num_videos, force, dry_run, observer)


def animate(
    request: Request,
    *,
    output: Target = None,
    num_videos: int = 1,
    crf: int = 18,
    force: bool = False,
    dry_run: bool = False,
    observer: Observer = ignore,
) -> Iterator[Result]:
    """Make videos that start with the picture `request.image`; otherwise as `generate`."""
    if request.image is None:
        raise UsageError("no picture to animate", hint="sora animate IMAGE [PROMPT]")
    if request.prompt == "":
        observer(Event(phase="note", message="no prompt: the picture alone decides what moves"))
        request = replace(request, expand=False)
    return generate(
        request, output=output, num_videos=num_videos, crf=crf, force=force, dry_run=dry_run,
        observer=observer,
    )  # fmt: skip


def image(
    request: Request,
    *,
    output: Target = None,
    num_images: int = 1,
    force: bool = False,
    dry_run: bool = False,
    observer: Observer = ignore,
) -> Iterator[Result]:
    """Make pictures from a prompt: videos of one frame, written as PNG, JPEG or WebP."""
    from sora_cli.media import image as picture

    def write(path: Any, made: Any, recipe: dict[str, Any], settings: Settings) -> None:
        picture.write(path, next(iter(made))[0], recipe=recipe, force=force)

    request = replace(request, num_frames=1, duration=None)
    media = _Media(
        suffix=".png", check=picture.check_output, check_stream=lambda: ".png", write=write
    )
    return _make(request, media, output, num_images, force, dry_run, observer)


def info(path: Path) -> dict[str, Any]:
    """The recipe that a made file carries. Raises UsageError when it carries none."""
    from sora_cli.media import recipe

    return recipe.read(path)


def expand(prompt: str, model: str = "tiny", seed: int | None = None) -> Expansion:
    """The long form of a short prompt, as the model's caption LLM says it."""
    from sora_cli.weights import store

    installed = store.locate(model)
    if installed.language_model is None:
        raise UsageError(
            f"{installed.spec.name} has no caption LLM of its own",
            hint='sora expand "…" -m tiny',
        )
    return _expand(prompt, installed, 0 if seed is None else seed, enabled=True)


# ---------------------------------------------------------------- the one way of making


@dataclass(frozen=True, kw_only=True, slots=True)
class _Media:
    """How a verb's outputs are checked before the work and written after it."""

    suffix: str
    check: Callable[..., str]
    check_stream: Callable[[], str]
    write: Callable[..., None]


def _make(
    request: Request, media: _Media, output: Target, count: int, force: bool, dry_run: bool,
    observer: Observer,
) -> Iterator[Result]:  # fmt: skip
    """Check everything that can be checked, then make one output for each seed."""
    from sora_cli.pipeline.request import resolve
    from sora_cli.weights import store

    clock = _Clock(observer)
    installed = store.locate(request.model or "tiny")
    settings, notes = resolve(request, installed.spec)
    for note in notes:
        observer(Event(phase="note", message=note))
    seeds = tuple(settings.seed + i for i in range(count))
    targets = _targets(output, settings, seeds, media, force)
    first_frame = _first_frame(request, settings, installed.spec)
    if request.seed is None and not dry_run:
        observer(Event(phase="note", message=f"seed {settings.seed}"))
    if dry_run:
        yield Result(path=None, recipe=_plan(settings, installed, request))
        return
    from sora_cli.runtime.device import choose_device

    clock(Event(phase="load"))
    plan = choose_device(request.device, request.dtype)
    store.verify(installed)
    expansion = _expand_for(settings, installed, clock)
    work = _Work(installed=installed, plan=plan, settings=settings, expansion=expansion)
    for made, target in zip(_run(work, seeds, first_frame, clock), targets, strict=True):
        recipe = _recipe(work, made.seed, clock)
        frames = _then_write(made.frames, clock)
        media.write(target if target != "-" else _stdout(), frames, recipe, settings)
        # What could not be known when the file's recipe was written: decoding and writing too.
        yield Result(path=target, recipe={**recipe, **_measured(clock)})
        clock.seconds.clear()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    installed: Installed
    plan: DevicePlan
    settings: Settings
    expansion: Expansion


def _run(
    work: _Work, seeds: tuple[int, ...], first_frame: np.ndarray | None, clock: _Clock
) -> Iterator[Any]:
    clock(Event(phase="load"))
    from sora_cli.pipeline.generate import Order, generate
    from sora_cli.runtime.paths import cache_dir

    order = Order(
        settings=work.settings, spec=work.installed.spec, folder=work.installed.folder,
        device=work.plan.device, dtype=work.plan.dtype,
        prompt=work.expansion.expanded_prompt, seeds=seeds, first_frame=first_frame,
        cache_dir=cache_dir(),
    )  # fmt: skip
    return generate(order, clock)


def _targets(
    output: Target, settings: Settings, seeds: tuple[int, ...], media: _Media, force: bool
) -> list[str | Path]:
    """Where each seed's output goes, checked; several go to numbered siblings of the name given."""
    from sora_cli.media.output import default_path, numbered

    if output == "-":
        if len(seeds) > 1:
            raise UsageError(f"{len(seeds)} files do not fit on stdout", hint="-o clip.mp4")
        _stdout()
        media.check_stream()
        return ["-"]
    targets: list[str | Path]
    if output is None:
        targets = [default_path(settings.prompt, seed, media.suffix) for seed in seeds]
    else:
        targets = [output if len(seeds) == 1 else numbered(output, seed) for seed in seeds]
    for target in targets:
        media.check(target, force=force)
    return targets


def _then_write(frames: Iterator[np.ndarray], clock: _Clock) -> Iterator[np.ndarray]:
    """The same frames; after the last one the encoder still has work to do."""
    yield from frames
    clock(Event(phase="write"))


def _first_frame(request: Request, settings: Settings, spec: ModelSpec) -> np.ndarray | None:
    if request.image is None:
        return None
    if spec.conditioning != "tokens":
        raise UsageError(
            f"{spec.name} cannot start from a picture",
            hint="a model of the wan2.2-ti2v family can, and the embedded one: -m tiny",
        )
    from sora_cli.media import image as picture

    return picture.fit(picture.read(request.image), settings.width, settings.height)


def _stdout() -> Any:
    import sys

    if sys.stdout is None:
        raise OutputError("standard output is closed", hint="to write a file: -o clip.mp4")
    return sys.stdout.buffer


def _expand_for(settings: Settings, installed: Installed, clock: _Clock) -> Expansion:
    if settings.expand:
        clock(Event(phase="expand"))
    expansion = _expand(
        settings.prompt,
        installed,
        settings.seed,
        enabled=settings.expand,
        picture=settings.num_frames == 1,
    )
    for note in expansion.notes:
        clock(Event(phase="note", message=note))
    return expansion


def _expand(
    prompt: str, installed: Installed, seed: int, *, enabled: bool, picture: bool = False
) -> Expansion:
    from sora_cli.pipeline.expand import expand as long_form
    from sora_cli.runtime.paths import cache_dir

    return long_form(
        prompt,
        folder=installed.language_model,
        seed=seed,
        cache_dir=cache_dir(),
        enabled=enabled,
        picture=picture,
        model=installed.spec.name,
    )


def _recipe(work: _Work, seed: int, clock: _Clock) -> dict[str, Any]:
    """The recipe of one output, as docs/reference/recipe.schema.json describes it."""
    from importlib.metadata import version

    from sora_cli.weights.store import identity

    settings, expansion = work.settings, work.expansion
    expanded = None if expansion.source == "none" else expansion.expanded_prompt
    return {
        **_numbers(replace(settings, seed=seed)),
        "expanded_prompt": expanded,
        "device": work.plan.device_name,
        "dtype": work.plan.dtype_name,
        "device_reason": work.plan.reason,
        "weights": identity(work.installed),
        "version": version("sora-cli"),
        **_measured(clock),
    }


def _measured(clock: _Clock) -> dict[str, Any]:
    from sora_cli.runtime.memory import peak_memory

    return {"timings": clock.timings(), "peak_memory": peak_memory()}


def _numbers(settings: Settings) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "seed": settings.seed,
        "model": settings.model,
        "size": [settings.width, settings.height],
        "num_frames": settings.num_frames,
        "fps": settings.fps,
        "duration": settings.num_frames / settings.fps,
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "shift": settings.shift,
        "sampler": settings.sampler,
        "sigma_grid": settings.sigma_grid,
    }


def _plan(settings: Settings, installed: Installed, request: Request) -> dict[str, Any]:
    """What a dry run says: the settings, and what they cost."""
    from sora_cli.weights import store

    tokens = installed.spec.tokens(settings.width, settings.height, settings.num_frames)
    passes = settings.num_inference_steps * (1 if settings.guidance_scale == 1 else 2)
    return {
        **_numbers(settings),
        "device": request.device or "auto",
        "tokens": tokens,
        "denoising_flops": passes * store.denoising_flops(installed, tokens),
        "weights_bytes": store.size_on_disk(installed),
    }
