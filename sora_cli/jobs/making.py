"""From decided work to written files: one for each seed, with less memory where it ran out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.jobs import account, provenance
from sora_cli.pipeline.events import Event

if TYPE_CHECKING:
    import numpy as np

    from sora_cli.jobs.job import Clock, Result, Target, Work
    from sora_cli.media.audio import AudioPlan
    from sora_cli.pipeline.networks import Networks
    from sora_cli.pipeline.seams import Journal
    from sora_cli.runs.run import Run
    from sora_cli.runtime.plan import MemoryPlan


def make(
    work: Work, seeds: tuple[int, ...], paths: list[str | Path], target: Target, clock: Clock,
    run: Run,
) -> Iterator[Result]:  # fmt: skip
    """One result for each seed that the run has not made yet."""
    from sora_cli.pipeline import networks as nets
    from sora_cli.runtime.paths import cache_dir

    model = nets.Model(
        spec=work.installed.spec, parts=work.installed.parts, device=work.device.device,
        dtype=work.device.dtype, plan=work.memory, loras=work.loras, cache_dir=cache_dir(),
        fp8_matmul=work.settings.fp8_matmul, compile=work.settings.compile,
    )  # fmt: skip
    shared = target.shared
    opened = shared.open(model, clock) if shared else nets.Networks(model, clock)
    with opened as networks:
        for seed, path in zip(seeds, paths, strict=True):
            while seed not in run.made:
                try:
                    result = _make_one(networks, work, seed, path, target, clock, run)
                except Exception as error:
                    smaller = _smaller(work, path, error)
                    if smaller is None:
                        raise
                else:
                    yield result
                    break
                # Only here have the error, and what its frames held, let go of the memory.
                clock.note(f"out of memory: going on with less: {smaller.say()}")
                work = replace(work, memory=smaller)
                networks.replan(smaller)
                run.changed_plan(smaller.name)
            clock.seconds.clear()


def _smaller(work: Work, path: str | Path, error: Exception) -> MemoryPlan | None:
    """The way of sharing the memory to go on with; None where memory is not what was missing."""
    from sora_cli.runtime import plan
    from sora_cli.runtime.memory import is_out_of_memory

    if path == "-" or not is_out_of_memory(error):
        return None  # of a stream, a part may be with its reader
    return plan.next_plan(work.ladder, work.memory)


def _make_one(
    networks: Networks, work: Work, seed: int, path: str | Path, target: Target, clock: Clock,
    run: Run,
) -> Result:  # fmt: skip
    """One video, from its seed to its file."""
    from sora_cli.jobs.job import Result, standard_output
    from sora_cli.pipeline.seams import Journal
    from sora_cli.pipeline.timeline import play

    verb, journal, clock.skipped = work.verb, Journal(), 0
    frames = play(
        networks, work.settings, work.segments, seed=seed, output=verb.output,
        closed=verb.closed, journal=journal, keeper=run,
    )  # fmt: skip
    counted = _Counted(provenance.labelled(frames, target), clock)

    def recipe() -> dict[str, Any]:
        return {
            **account.recipe(work, seed),
            **run.marks,
            **counted.length(work),
            **account.joins(journal),
            **account.skipped(work, clock),
            **account.measured(clock),
            **provenance.fields(target),
        }

    notes = verb.media.write(
        path if path != "-" else standard_output(),
        iter(counted),
        size=account.size_of(work),
        fps=account.fps_of(work),
        recipe=recipe if target.metadata else None,
        target=target,
        audio=_sound(work),
        seal=provenance.seal(work, path, target, run, clock),
    )
    if target.keep_latents:
        notes += _keep_latents(networks, work, path, journal)
    run.finish(seed, path)
    for note in (*notes, *(seam.say() for seam in journal.seams)):
        clock.note(note)
    # What could not be known when the file's recipe was written: how long that took.
    return Result(path=path, recipe=recipe())


def _keep_latents(
    networks: Networks, work: Work, path: str | Path, journal: Journal
) -> tuple[str, ...]:
    """The sidecar of a video that ends in made frames; a note where there is none to write."""
    from sora_cli.pipeline import sidecar
    from sora_cli.weights.store import identity

    if path == "-" or str(path).endswith("/") or journal.tail is None:
        return ("no latents are kept: only a file that ends in made frames has a sidecar",)
    beside = sidecar.beside(Path(path))
    sidecar.save(beside, networks, work.settings, journal.tail, identity(work.installed))
    return (f"latents for a later extend: {beside}",)


class _Counted:
    """The frames of a video, counted; after the last one the encoder still has work to do."""

    def __init__(self, frames: Iterator[np.ndarray], clock: Clock) -> None:
        self.frames, self.clock, self.count = frames, clock, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for chunk in self.frames:
            self.count += len(chunk)
            yield chunk
        self.clock(Event(phase="write"))

    def length(self, work: Work) -> dict[str, Any]:
        """How long the video is, as the recipe says it: as planned until it is made."""
        frames = self.count or work.settings.num_frames
        return {"num_frames": frames, "duration": frames / account.fps_of(work)}


def _sound(work: Work) -> AudioPlan | None:
    """What is heard: each clip's sound from where its segment begins."""
    from sora_cli.jobs.source import sound
    from sora_cli.pipeline.timeline import video_frames

    verb = work.verb
    starts = [
        video_frames(work.segments[:number], work.settings, verb.output) / account.fps_of(work)
        for number, _ in verb.heard
    ]
    return sound([(at, clip) for at, (_, clip) in zip(starts, verb.heard, strict=True)])
