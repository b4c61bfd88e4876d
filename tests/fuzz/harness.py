"""One target, fuzzed in this process: inputs made, read under guard, counted, kept if they fail."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.guards import CANARIES, SECONDS, Lines, judge, limited, watched
from tests.fuzz.targets import TARGETS, Target

POOL = 400  # inputs that reached new lines, beside the valid ones


@dataclass(kw_only=True)
class Report:
    """How it went: inputs read, seconds, refusals, lines of the package reached, what was found."""

    target: str
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    lines: int = 0
    found: str | None = None
    saved: str | None = None
    sizes: list[int] = field(default_factory=list)


def fuzz(
    name: str,
    folder: Path,
    *,
    seed: int,
    inputs: int | None = None,
    seconds: float | None = None,
    before: Callable[[], None] = lambda: None,
) -> Report:
    """Read so many inputs of a target, or for so long; ends at the first thing found.

    Args:
        folder: an empty one for everything that is written; the failing input stays in it.
        seed: of the random numbers; with `inputs` (and not `seconds`) all follows from it.
        before: called before each input is read.
    """
    target = TARGETS[name]
    for place in ("seeds", "work", "found", "tmp", "state"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    valid = target.seeds(folder / "seeds")
    pool, lines = list(valid), Lines()
    report, numbers = Report(target=name), random.Random(f"{seed} {name}")
    began, cwd = time.monotonic(), os.getcwd()
    os.chdir(folder / "work")
    try:
        while inputs is None or report.inputs < inputs:
            if seconds is not None and time.monotonic() - began > seconds:
                break
            # First the valid ones as they are: what is not read cannot teach.
            number = report.inputs
            fresh = number < len(valid)
            content = valid[number] if fresh else _mutated(numbers, target, pool)
            before()
            known = len(lines.seen)
            report.found = read_one(target, content, folder, lines, report)
            report.inputs += 1
            if report.found is not None:
                report.saved = str(_save(target, content, folder))
                break
            if len(lines.seen) > known and not fresh and len(pool) < POOL:
                pool.append(content)
    finally:
        os.chdir(cwd)
    report.seconds, report.lines = time.monotonic() - began, len(lines.seen)
    return report


def _mutated(numbers: random.Random, target: Target, pool: list[bytes]) -> bytes:
    content = numbers.choice(pool)
    for _ in range(numbers.choice((1, 1, 1, 2, 3))):
        content = target.mutate(numbers, content, pool)
    return content


def read_one(
    target: Target, content: bytes, folder: Path, lines: Lines | None, report: Report | None = None
) -> str | None:
    """Read one input under guard; what was wrong, or None."""
    path = folder / "work" / f"input{target.suffix}"
    path.write_bytes(content)
    tempfile.tempdir = str(folder / "tmp")
    state = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    lines = Lines() if lines is None else lines
    try:
        canaries = () if target.own else CANARIES
        with watched(folder, canaries) as watch, limited(SECONDS, target.megabytes), lines.traced():
            target.read(path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if report is not None:
            report.refused += 1
        if (said := judge(error)) is not None:
            return said
    finally:
        tempfile.tempdir = None
        if state is None:
            del os.environ["XDG_STATE_HOME"]
        else:
            os.environ["XDG_STATE_HOME"] = state
    return watch.found


def _save(target: Target, content: bytes, folder: Path) -> Path:
    name = f"{target.name}-{hashlib.sha256(content).hexdigest()[:12]}{target.suffix}"
    path = folder / "found" / name
    path.write_bytes(content)
    return path
