"""The folders of runs: where they lie, what is in them, which are unfinished, which may go.

Only reading and removing; `runs` writes them. Quick to import: no torch, nothing of the pipeline.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora_cli.errors import UsageError
from sora_cli.runtime import locks
from sora_cli.runtime.disk import write_whole
from sora_cli.runtime.paths import state_dir

SCHEMA = 1
RECIPE, STATUS, LOG, LOCK = "recipe.json", "status.json", "log.txt", "lock"
MAX_AGE = 14 * 24 * 3600.0  # seconds after which an unfinished run is forgotten
MAX_BYTES = 20 << 30  # of all runs together

_SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}")
BEGINNING = 60.0  # seconds that a folder may be without a recipe
_MAX_JSON = 16 << 20
_MAX_OUTPUTS = 100_000  # of one command
_END_OF_TIME = 1e12  # seconds since 1970


def runs_dir() -> Path:
    """The folder of the runs."""
    return state_dir() / "runs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A run as it lies on the disk.

    state: running, interrupted (a signal), failed (an error), killed (its process is gone and
    could not say why), done (kept on wish), unreadable. Times in seconds since 1970, size in bytes.
    """

    folder: Path
    state: str
    recipe: dict[str, Any]
    status: dict[str, Any]
    created: float
    updated: float
    size: int

    @property
    def id(self) -> str:
        """Its name."""
        return self.folder.name

    @property
    def unfinished(self) -> bool:
        """Whether `resume` can go on with it."""
        return self.state in ("interrupted", "failed", "killed")

    @property
    def begun(self) -> bool:
        """Whether it has a recipe: there before any work, and the first thing to be removed."""
        return os.path.lexists(self.folder / RECIPE)


def stored() -> list[Stored]:
    """Every run, the oldest first."""
    return [run for run in _every() if run.begun or run.state == "running"]


def _every() -> list[Stored]:
    """As `stored`, and what was killed before its recipe was there or after it went: no run."""
    try:
        folders = [path for path in runs_dir().iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(map(_look, folders), key=lambda run: (run.created, run.id))


def remains() -> list[Stored]:
    """What is no run and surely nobody's: of processes that were killed as they began or ended."""
    now = time.time()
    return [run for run in _every() if not run.begun and now - run.updated > BEGINNING]


def _look(folder: Path) -> Stored:
    recipe, status = read_json(folder / RECIPE), read_status(folder)
    state = str(status.get("state"))
    busy = locks.held(folder / LOCK)
    if busy:
        state = "running"
    elif not is_whole(recipe):
        state = "unreadable"
    elif state not in ("interrupted", "failed", "done"):
        state = "killed"
    size, changed = 0, 0.0
    for path in folder.rglob("*"):
        with suppress(OSError):
            facts = path.stat()
            size, changed = size + facts.st_size, max(changed, facts.st_mtime)
    with suppress(OSError):
        changed = changed or folder.stat().st_mtime
    return Stored(
        folder=folder, state=state, recipe=recipe, status=status, size=size,
        created=_number(status.get("created"), changed),
        updated=_number(status.get("updated"), changed),
    )  # fmt: skip


def is_whole(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe.json has all that `resume` needs, each of the kind that it has to be.

    What the call in it means is for `calls` to say.
    """
    kinds = {
        "verb": str, "arguments": dict, "inputs": dict, "options": dict, "facts": dict, "cwd": str,
    }  # fmt: skip
    if recipe.get("schema") != SCHEMA or not all(
        isinstance(recipe.get(name), kind) for name, kind in kinds.items()
    ):
        return False
    seeds, outputs = recipe.get("seeds"), recipe.get("outputs")
    paths = [*(known.get("path") if isinstance(known, dict) else None
               for known in recipe["inputs"].values()), recipe["cwd"]]  # fmt: skip
    return (
        isinstance(seeds, list)
        and isinstance(outputs, list)
        and 0 < len(seeds) == len(outputs) <= _MAX_OUTPUTS
        and all(type(seed) is int and 0 <= seed < 1 << 63 for seed in seeds)
        and all(isinstance(path, str) and "\0" not in path for path in (*outputs, *paths))
        and all(isinstance(known.get("sha256"), str) for known in recipe["inputs"].values())
    )


def read_status(folder: Path) -> dict[str, Any]:
    """What a run's status.json says, without what is of another kind than it has to be."""
    status = read_json(folder / STATUS)
    made = status.get("made")
    known = made.items() if isinstance(made, dict) else ()
    whole = {seed: path for seed, path in known if seed.isdecimal() and isinstance(path, str)}
    status["made"] = {seed: path for seed, path in whole.items() if "\0" not in path}
    for name in ("step", "total", "pid"):
        value = status.get(name)
        if type(value) is not int or not 0 <= value < 1 << 32:
            status.pop(name, None)
    return status


def find(name: str | None) -> Stored:
    """The run of this name (or the beginning of it); None: the newest unfinished one.

    Raises:
        UsageError: there is none, or several.
    """
    if name is None:
        for run in reversed(stored()):
            if run.unfinished:
                return run
        raise UsageError("there is no unfinished run", hint="sora runs list")
    found = [run for run in stored() if run.id == name] or [
        run for run in stored() if name and run.id.startswith(name)
    ]
    if len(found) != 1:
        many = f"{len(found)} runs begin with {name}" if found else f"there is no run {name}"
        raise UsageError(many, hint="sora runs list")
    return found[0]


def clean(runs: Sequence[Stored]) -> list[Stored]:
    """Remove runs that nobody works on; returns those that are gone."""
    gone = []
    for run in runs:
        with suppress(OSError):
            lock = locks.lock(run.folder / LOCK)
            if lock is not None:
                remove(run.folder)
                lock.release()
                gone.append(run)
    return gone


def expire() -> list[Stored]:
    """Forget runs that are too old, then the oldest until the rest fits into MAX_BYTES.

    The newest unfinished one stays whatever the clock says.
    """
    now = time.time()
    clean(remains())
    runs = stored()
    spared = next((run.id for run in reversed(runs) if run.unfinished), None)
    idle = [run for run in runs if run.state != "running" and run.id != spared]
    old = [run for run in idle if now - run.updated > MAX_AGE]
    total = sum(run.size for run in runs) - sum(run.size for run in old)
    for run in idle:
        if total > MAX_BYTES and run not in old:
            old.append(run)
            total -= run.size
    return clean(old)


def remove(folder: Path) -> None:
    """Remove a run's folder; the recipe first, so that half of a run is never taken for one."""
    for name in (RECIPE, STATUS):
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def without_secrets(text: str) -> str:
    """A text without tokens of the hub, which an error of a library may quote."""
    return _SECRET.sub("hf_…", text)


def write_json(path: Path, content: Mapping[str, Any], *, lasting: bool) -> None:
    """Write an object to a file whole (`disk.write_whole`). Raises OSError."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode(), lasting=lasting)


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file; empty where there is none that can be read."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _number(value: object, otherwise: float) -> float:
    if isinstance(value, int | float) and abs(value) < _END_OF_TIME:
        return float(value)
    return otherwise


def new_folder() -> tuple[Path, locks.Lock]:
    """A run's own folder, locked; its name says when it began. Raises OSError."""
    while True:
        runs_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
        now = time.strftime("%Y%m%d-%H%M%S")
        folder = runs_dir() / f"{now}-{secrets.token_hex(2)}"
        try:
            folder.mkdir(mode=0o700)
            lock = locks.lock(folder / LOCK)
        except FileExistsError:
            continue
        except FileNotFoundError:  # whoever clears runs away was quicker
            continue
        if lock is not None:
            return folder, lock


def stamp() -> float:
    """The time, later than every other run's, so that the newest one is told by it.

    A clock that was set back must not make an old run the newest.
    """
    newest = max((run.created for run in stored()), default=0.0)
    return max(time.time(), newest + 0.001)
