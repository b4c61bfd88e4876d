"""How a run gets along with a busy machine: `python -m sora_cli.bench.threads [--write PAGE]`.

The same short clip is made with one thread, and with a thread for every core that waits for the
others as the OpenMP library does by itself, as `sora` tells it to (`cli/main.py`), and asleep; on
the machine as it is, and beside a process that keeps one core busy. Seconds of the wall clock, the
median of some runs, starting up included.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

COMMAND = (
    "generate", "a red ball rolls to the right", "--no-expand", "--seed", "1", "--steps", "4",
    "--size", "96x64", "--num-frames", "9", "--quiet", "--force",
)  # fmt: skip
WAYS: Mapping[str, Mapping[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "all cores, spinning as libgomp does": {"GOMP_SPINCOUNT": "300000"},
    "all cores, as sora sets it": {},
    "all cores, asleep": {"OMP_WAIT_POLICY": "passive"},
}
NAMES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@contextmanager
def one_core_busy(busy: bool) -> Iterator[None]:
    """A process that does nothing, as fast as it can, on the first core that this one may use."""
    if not busy:
        yield
        return
    spin = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as process:
        try:
            yield
        finally:
            process.kill()


def seconds(way: Mapping[str, str], limit: float) -> float:
    """How long the command takes; the limit where it takes longer."""
    env = {name: value for name, value in os.environ.items() if name not in NAMES} | dict(way)
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "sora_cli", *COMMAND, "-o", f"{folder}/clip.mp4"]
        began = time.perf_counter()
        try:
            subprocess.run(words, check=True, env=env, capture_output=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return limit
        return time.perf_counter() - began


def measure(repeats: int, limit: float) -> dict[str, list[float]]:
    """Of each way the median, on the machine as it is and with one core busy."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for busy in (False, True):
        with one_core_busy(busy):
            laps = [{name: seconds(way, limit) for name, way in WAYS.items()}
                    for _ in range(repeats)]  # fmt: skip
        for name, column in found.items():
            column.append(median(lap[name] for lap in laps))
    return found


def page(found: Mapping[str, list[float]], repeats: int, limit: float) -> str:
    """The table, with when and where."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    lines = [
        "# Threads on a busy machine", "",
        f"`python -m sora_cli.bench.threads --repeats {repeats} --limit {limit:g}`, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {cores} cores, load before and meanwhile "
        f"{load:.1f}. Seconds from command to file, median of {repeats}:", "",
        f"`sora {' '.join(COMMAND[:1])} … {' '.join(COMMAND[2:])}`", "",
        "| way | as it is | one core busy |", "|-|-|-|",
    ]  # fmt: skip
    for name, column in found.items():
        cells = (f"over {limit:g}" if took >= limit else f"{took:.2f}" for took in column)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Measure and print; on Linux, whose scheduler can be told which core."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.bench.threads", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that a run may take")
    parser.add_argument("--write", type=Path, help="the page")
    arguments = parser.parse_args(argv)
    text = page(measure(arguments.repeats, arguments.limit), arguments.repeats, arguments.limit)
    if arguments.write is not None:
        arguments.write.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
