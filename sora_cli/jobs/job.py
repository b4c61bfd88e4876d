"""The one way from a request to a written file, whatever the verb.

A verb (app.py) says what is given and how it stands in time; here the request is checked, the
memory planned, the prompt expanded, the video made, written and described by its recipe. Nothing
heavy is imported before the request has been checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.errors import OutputError, UsageError
from sora_cli.jobs import account, making, planning, provenance
from sora_cli.pipeline.events import Event, Observer
from sora_cli.runs.run import begin_run

if TYPE_CHECKING:
    import numpy as np

    from sora_cli.batch import Shared
    from sora_cli.media.provenance_keys import Signer
    from sora_cli.media.reader import Clip
    from sora_cli.pipeline.expand import Expansion
    from sora_cli.pipeline.request import Request, Settings
    from sora_cli.pipeline.stitch import Output
    from sora_cli.pipeline.timeline import Segment
    from sora_cli.runs.calls import Call
    from sora_cli.runs.run import Run
    from sora_cli.runtime.device import DevicePlan
    from sora_cli.runtime.plan import MemoryPlan
    from sora_cli.weights.lora_arguments import Lora
    from sora_cli.weights.store import Installed


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where results go and what else is wanted of a making command.

    output: file, folder ("frames/": a str, Path would drop the slash) or "-" for stdout; None
        names it after prompt and seed.
    count: how many; number i has seed + i.
    crf: quality of lossy video, lower is better.
    dry_run: say what would be done, make nothing.
    metadata: write the recipe into the file.
    keep_run: keep the run's folder of unfinished work after success.
    keep_latents: write the last latents beside the video (`pipeline.sidecar`).
    profile: write a trace of the work there (`jobs.profile`); an empty name is chosen for you.
    sign: put a signed C2PA manifest into the file; with sign_certificate and sign_key (PEM) where
        it is not the one of `sora provenance init`. label: mark every frame as made with AI.
    memory_plan: the way of sharing the memory to prefer while it fits (`replay`).
    call: of the verb, set by the verb itself (`calls.recorded`); run: one to go on with (`resume`).
    shared: networks that outlive the job; item: what a batch knows this work by.
    """

    output: str | Path | None = None
    count: int = 1
    crf: int = 18
    force: bool = False
    dry_run: bool = False
    metadata: bool = True
    keep_run: bool = False
    keep_latents: bool = False
    profile: str | None = None
    sign: bool = False
    sign_certificate: Path | None = None
    sign_key: Path | None = None
    label: bool = False
    memory_plan: str | None = None
    call: Call | None = None
    run: Run | None = None
    shared: Shared | None = None
    item: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What was made: where it lies (None for a dry run) and the recipe it carries.

    beside: of the making and not of the file: where the time went, with `--profile`.
    """

    path: str | Path | None
    recipe: dict[str, Any]
    beside: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object of `--json` (docs/reference/recipe.schema.json)."""
        if self.path is None:
            return self.recipe
        return {"path": str(self.path), **self.recipe, **self.beside}


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """How a verb's outputs are checked before the work and written after it."""

    suffix: str
    check: Callable[..., str]
    check_stream: Callable[[], str]
    write: Callable[..., tuple[str, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verb:
    """What a verb adds to the one way of making.

    segments: the video in time; it gets what gives a prompt as the text encoder takes it.
    output: size and rate of the file where they are not the model's.
    closed: the video is played in a circle.
    name: what an unnamed output is called where there is no prompt.
    notes: about what was read, for stderr.
    extra: fields of the recipe that this verb adds.
    heard: clips whose sound begins with a segment, by its number.
    given, given_as: pictures [H, W, 3] uint8 for an LLM that sees what the prompt is about.
    """

    media: Media
    segments: Callable[[Callable[[str], str]], Sequence[Segment]]
    output: Output | None = None
    closed: bool = False
    name: str = ""
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    heard: tuple[tuple[int, Clip], ...] = ()
    given: tuple[np.ndarray, ...] = ()
    given_as: planning.GivenAs | None = None


@dataclass
class Clock:
    """Seconds spent in each phase, told by the events that pass through it."""

    observer: Observer
    phase: str | None = None
    since: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: int = 0  # steps of the finished canvases that were not computed

    def __call__(self, event: Event) -> None:
        if event.finished and event.message is None:
            self.skipped += event.skipped
        if event.phase not in ("note", self.phase):
            self.enter(event.phase)
        self.observer(event)

    def note(self, message: str) -> None:
        """One sentence for the user."""
        self(Event(phase="note", message=message))

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """All that is decided before the first network is loaded."""

    installed: Installed
    device: DevicePlan
    memory: MemoryPlan
    ladder: tuple[MemoryPlan, ...]
    settings: Settings
    loras: tuple[Lora, ...]
    verb: Verb
    signer: Signer | None = None
    segments: Sequence[Segment] = ()
    expansions: dict[str, Expansion] = field(default_factory=dict)


def make(
    request: Request, installed: Installed, settings: Settings, verb: Verb, target: Target,
    observer: Observer,
) -> Iterator[Result]:  # fmt: skip
    """Make one output for each seed, all that can be checked being checked first."""
    from sora_cli.jobs import profile as profiles

    clock = Clock(observer)
    clock.enter("plan")
    for note in verb.notes:
        clock.note(note)
    seeds = tuple(settings.seed + i for i in range(target.count))
    paths = _paths(target, settings, seeds, verb)
    signer = provenance.signer(target, paths, verb.media.suffix)
    profile = profiles.Profile(profiles.trace_path(target, settings, verb.name), force=target.force)
    if request.seed is None and not target.dry_run:
        clock.note(f"seed {settings.seed}")
    from sora_cli.weights import store

    store.verify(installed)
    begun = target.memory_plan if target.run is None else target.run.memory_plan
    work = _plan(request, installed, settings, verb, begun)
    if target.dry_run:
        yield Result(path=None, recipe=account.forecast(work))
        return
    facts = account.facts(work)
    clock.enter(None)
    begun_run = begin_run(target, seeds=seeds, outputs=paths, facts=facts, observer=observer)
    with profile.recording(), begun_run as run:
        clock.observer = run.watch(profile.watched(observer))
        clock(Event(phase="load"))
        if not work.memory.keep or request.memory:
            clock.note(work.memory.say())
        expansions: dict[str, Expansion] = {}

        def expanded(prompt: str) -> str:
            if prompt not in expansions:
                expansions[prompt] = _expanded(prompt, work, clock)
            return expansions[prompt].expanded_prompt

        segments = verb.segments(expanded)
        work = replace(work, segments=segments, expansions=expansions, signer=signer)
        for result in making.make(work, seeds, paths, target, clock, run):
            yield replace(result, beside=profile.facts())
    for sentence in profile.say():
        observer(Event(phase="note", message=sentence))


def _plan(
    request: Request, installed: Installed, settings: Settings, verb: Verb, begun: str | None
) -> Work:
    """Where and how the networks run, and whether that fits, before anything is loaded."""
    from sora_cli.runtime.device import choose_device

    device = choose_device(request.device, request.dtype)
    planning.require_fp8_matmuls(settings, device)
    # A verb that works from something encodes up to a whole canvas of it.
    given = settings.chunk_frames if "parents" in verb.extra else 0
    memory, ladder = planning.plan_memory(
        request, installed, settings, device, begun, given_frames=given
    )
    return Work(
        installed=installed,
        device=device,
        memory=memory,
        ladder=ladder,
        settings=settings,
        loras=planning.find_loras(request, installed.spec),
        verb=verb,
    )


def _paths(
    target: Target, settings: Settings, seeds: tuple[int, ...], verb: Verb
) -> list[str | Path]:
    """Where each seed's output goes, checked; several go to numbered siblings of the name given."""
    from sora_cli.media.output import default_path, numbered

    media, output, run = verb.media, target.output, target.run
    if run is not None and run.outputs == ["-"]:
        output = output or "-"
    if output == "-":
        if len(seeds) > 1:
            raise UsageError(f"{len(seeds)} files do not fit on stdout", hint="-o clip.mp4")
        standard_output()
        media.check_stream()
        return ["-"]
    paths: list[str | Path]
    if run is not None and output is None:
        paths = list(run.outputs)
    elif output is None:
        name = settings.prompt or verb.name
        paths = [default_path(name, seed, media.suffix) for seed in seeds]
    else:
        paths = [output if len(seeds) == 1 else numbered(output, seed) for seed in seeds]
    for seed, path in zip(seeds, paths, strict=True):
        if run is None or seed not in run.made:
            media.check(path, force=target.force)
    return paths


def standard_output() -> Any:
    """Standard output for bytes. Raises OutputError where it is closed."""
    import sys

    if sys.stdout is None:
        raise OutputError("standard output is closed", hint="to write a file: -o clip.mp4")
    return sys.stdout.buffer


def _expanded(prompt: str, work: Work, clock: Clock) -> Expansion:
    """The prompt as the text encoder gets it; its notes are told."""
    settings, verb = work.settings, work.verb
    # An LLM that sees may write a prompt from pictures alone.
    wanted = settings.expand and (bool(prompt) or bool(verb.given))
    if wanted:
        clock(Event(phase="expand"))
    expansion = planning.expand(
        prompt,
        work.installed,
        settings.seed,
        enabled=wanted,
        picture=settings.num_frames == 1,
        given=verb.given,
        given_as=verb.given_as,
        device=work.device.device_name,
    )
    for note in expansion.notes:
        clock.note(note)
    return expansion


def video_media() -> Media:
    """Videos: mp4, webm, mkv, gif, webp, a folder of PNGs."""
    from sora_cli.media import video

    def write(
        path: Any, frames: Any, *, size: tuple[int, int], target: Target, **how: Any
    ) -> tuple[str, ...]:
        width, height = size
        return video.write(
            path, frames, width=width, height=height, crf=target.crf, force=target.force, **how
        )

    return Media(
        suffix=".mp4", check=video.check_output, check_stream=video.check_stream, write=write
    )


def picture_media() -> Media:
    """Pictures: PNG, JPEG, WebP."""
    from sora_cli.media import image as picture

    def write(
        path: Any, frames: Any, *, recipe: Any, target: Target, seal: Any, **_: Any
    ) -> tuple[str, ...]:
        only = [frame for chunk in frames for frame in chunk]
        picture.write(path, only[0], recipe=recipe and recipe(), force=target.force, seal=seal)
        return ()

    return Media(
        suffix=".png", check=picture.check_output, check_stream=lambda: ".png", write=write
    )
