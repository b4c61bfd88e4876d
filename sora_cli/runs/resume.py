"""Going on with a run that was stopped: the same call, the states it kept, the same bits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.errors import UsageError
from sora_cli.runs.calls import Call, fingerprint, from_json, same_device
from sora_cli.runs.folders import find
from sora_cli.runs.run import Run, take_up

if TYPE_CHECKING:
    from sora_cli.batch import Shared
    from sora_cli.jobs.job import Result, Target


def resume(
    name: str | None = None,
    *,
    output: str | Path | None = None,
    force: bool = False,
    shared: Shared | None = None,
    observer: Callable[[Any], None] = lambda event: None,
) -> Iterator[Result]:
    """Finish a run; yields what it was to make, what was made before included.

    Args:
        name: of the run, or the beginning of its name; None = the newest unfinished one.
        output: another place for what is not made yet.
        force: go on although weights or version have changed, and replace an existing output.
        shared: networks that are loaded already.
        observer: gets the news.

    Raises:
        UsageError: there is no such run, someone works on it, or an input has changed since.
    """
    run = take_up(find(name))
    try:
        call, target = rebuilt(run, output=output, force=force, shared=shared)
        check_inputs(run)
        run.watch(observer)
        yield from _made(run)
        yield from call.start(target=target, observer=observer)
    finally:
        run.release()


def rebuilt(
    run: Run, *, output: str | Path | None, force: bool, shared: Shared | None = None
) -> tuple[Call, Target]:
    """The call of a run, and its target: as they were, but for what is said here.

    Raises:
        UsageError: recipe.json holds something else.
    """
    from sora_cli.jobs.job import Target

    recipe = run.recipe
    try:
        call = Call.from_json(recipe)
        call = call.asking(**same_device(recipe["facts"]))
        options = {key: from_json(value) for key, value in recipe["options"].items()}
        options["force"] = force or bool(options.get("force"))
        run.accepts_changes = force
        run.keep_after = bool(options.get("keep_run"))
        target = Target(
            output=output, count=len(recipe["seeds"]), call=call, run=run, shared=shared, **options
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"the run {run.id} cannot be read: {error}", hint=f"sora runs clean {run.id}"
        ) from error
    return call, target


def check_inputs(run: Run) -> None:
    """Raises UsageError where a file that the run works from is gone or has changed since."""
    for name, known in run.recipe.get("inputs", {}).items():
        path = Path(known["path"])
        try:
            same = fingerprint(path) == known["sha256"]
        except OSError as error:
            raise UsageError(
                f"the run {run.id} needs {path} ({name}): {error.strerror or error}",
                hint="put it back, or begin anew",
            ) from error
        if not same:
            raise UsageError(
                f"{path} ({name}) has changed since the run {run.id} began",
                hint="put the old one back, or begin anew",
            )


def _made(run: Run) -> Iterator[Result]:
    """Outputs that are there already: said so by the run, or known by its name in their recipe.

    A process can be gone between the moment an output is in its place and the note of it.
    """
    from sora_cli.jobs.job import Result
    from sora_cli.media import recipe

    for seed, path in zip(run.recipe["seeds"], run.outputs, strict=True):
        if path == "-" or not os.path.lexists(path):
            continue
        try:
            found = recipe.read(path)
        except UsageError:
            found = {}
        if seed in run.made or found.get("run") == run.id:
            run.finish(seed, path)
            run.miss_latents(path)
            yield Result(path=path, recipe=found)
