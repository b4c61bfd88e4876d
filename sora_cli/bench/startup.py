"""Where the time before the first denoising step goes: `python -m sora_cli.bench.startup`.

The installed command runs in fresh processes, in turn: with the prompt as it is (`as-it-is`), with
an expansion and a text embedding that are remembered (`remembered`), with a prompt never seen
before (`new`); beside them a bare `import torch`, `sora --help`, and the help of a bare Typer app
of as many commands. Nothing is put into these processes: Python's own list of imports
(`-X importtime`) and the progress in JSON come over one pipe, in the order in which things happen,
and a run is stopped when its first step is done. So every phase is known with the imports within
it. Folders of their own keep the user's cache and runs out of it.

The embedded model's weights are in the page cache after the first run, which is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

PROMPT = "a red ball bounces on the snow at sunset"
KINDS = ("as-it-is", "remembered", "new")
# A line of -X importtime: self and cumulated microseconds, the name.
_IMPORT = re.compile(rb"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")
BARE_APP = """
import typer
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
for index in range(22):
    def command(word: str = "", number: int = 0) -> None: ...
    app.command(f"c{index}")(command)
app()
"""


@dataclass(kw_only=True, slots=True)
class Start:
    """One start, from the shell to its first step. Seconds.

    shell: until the command line is read, its imports included.
    phases: what the run tells of itself, in its order, imports left out; `check` is all that comes
        before the first news.
    imports: by package, everywhere after the shell.
    total: until the first step begins; cpu: of the processor, until then (None where not known).
    first_step: how long that step takes.
    """

    shell: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    imports: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    cpu: float | None = None
    first_step: float = 0.0

    def to_json(self) -> dict[str, object]:
        """As the report has it."""
        return {
            "shell_s": self.shell,
            "imports_s": sum(self.imports.values()),
            **{f"{name}_s": seconds for name, seconds in self.phases.items()},
            "first_step_s": self.first_step,
            "to_first_step_s": self.total,
            "cpu_s": self.cpu,
            "imports_by_package_s": self.imports,
        }


def environment(folder: Path) -> dict[str, str]:
    """The caller's, with caches and runs below `folder`, and bytecode that is kept."""
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **own, "PYTHONUNBUFFERED": "1"}


def start(words: Sequence[str], env: Mapping[str, str], folder: Path) -> Start:
    """Start `sora` with these words and stop it after its first step.

    Raises:
        RuntimeError: it ended before.
    """
    command = [sys.executable, "-X", "importtime", "-m", "sora_cli", *words, "--progress", "json"]
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=dict(env), cwd=folder
    ) as process:
        assert process.stderr is not None
        found, said = Start(), list[bytes]()
        phase, since, imported = "check", began, 0.0
        for line in process.stderr:
            now = time.perf_counter()
            if match := _IMPORT.match(line):
                seconds, name = int(match[1]) / 1e6, match[2].decode()
                if name == "sora_cli.cli.main":
                    found.shell = now - began
                    since, imported = now, 0.0
                elif found.shell:
                    package = name.partition(".")[0]
                    found.imports[package] = found.imports.get(package, 0.0) + seconds
                    imported += seconds
                continue
            event = _progress(line)
            if event is None:
                said.append(line)
                continue
            seconds, since = now - since - imported, now
            imported = 0.0
            if phase == "denoise":
                found.first_step = seconds
                process.send_signal(signal.SIGINT)
                process.communicate()
                return found
            found.phases[phase] = found.phases.get(phase, 0.0) + max(0.0, seconds)
            phase = str(event["phase"])
            if phase == "denoise":
                found.total, found.cpu = now - began, _cpu_seconds(process.pid)
    last = b"".join(said[-3:]).decode(errors="replace").strip()
    raise RuntimeError(f"it ended before its first step: {last}")


def _progress(line: bytes) -> dict[str, object] | None:
    """The progress that a line tells, if any."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    told = isinstance(content, dict) and content.get("event") == "progress"
    return content if told else None


def _cpu_seconds(pid: int) -> float | None:
    """What a running process has used of the processor; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seconds_of(command: Sequence[str], env: Mapping[str, str]) -> float:
    """Wall seconds of a process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, env=dict(env), stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def words_of(kind: str, number: int) -> list[str]:
    """The command line of a kind of start."""
    prompt = PROMPT if kind == "remembered" else f"{PROMPT} {number}"
    words = ["generate", prompt, "--seed", "1", "--model", "tiny", "-o", "start.mp4", "--force"]
    return [*words, "--no-expand"] if kind == "as-it-is" else words


def run(repeats: int) -> dict[str, object]:
    """Measure everything in turn, `repeats` times, and give the medians."""
    starts: dict[str, list[Start]] = {kind: [] for kind in KINDS}
    commands = {
        "torch": [sys.executable, "-c", "import torch"],
        "help": [sys.executable, "-m", "sora_cli", "--help"],
        "bare_help": [sys.executable, "-c", BARE_APP, "--help"],
    }
    others: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = environment(folder)
        # Writes the bytecode, fills the page cache and what is remembered.
        start(words_of("remembered", 0), env, folder)
        for number in range(1, repeats + 1):
            for kind, found in starts.items():
                found.append(start(words_of(kind, number), env, folder))
            for what, command in commands.items():
                others[what].append(seconds_of(command, env))
    times = {what: median(found) for what, found in others.items()}
    return {
        "repeats": repeats,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "starts": {kind: summary(found) for kind, found in starts.items()},
        "import_torch_s": round(times["torch"], 3),
        "help_s": round(times["help"], 3),
        "bare_help_s": round(times["bare_help"], 3),
        "help_ratio": round(times["help"] / times["bare_help"], 2),
        "ratio_to_torch": {
            kind: round(median(s.total for s in found) / times["torch"], 2)
            for kind, found in starts.items()
        },
    }


def summary(found: Sequence[Start]) -> dict[str, object]:
    """Medians of several starts, name by name, and the spread of the whole."""
    rows = [row.to_json() for row in found]
    packages = {package for row in found for package in row.imports}
    by_package = {p: median(row.imports.get(p, 0.0) for row in found) for p in packages}
    largest = sorted(by_package.items(), key=lambda item: -item[1])[:8]
    report: dict[str, object] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        numbers = [value for value in values if isinstance(value, float)]
        if numbers:
            report[name] = round(median(numbers), 3)
    totals = [row.total for row in found]
    return {
        **report,
        "to_first_step_range_s": [round(min(totals), 3), round(max(totals), 3)],
        "imports_by_package_s": {package: round(seconds, 3) for package, seconds in largest},
    }


def table(report: Mapping[str, object]) -> Iterator[str]:
    """The report as lines for a person."""
    starts = report["starts"]
    assert isinstance(starts, dict)
    names = dict.fromkeys(n for row in starts.values() for n, v in row.items() if n[-2:] == "_s")
    columns = [name for name in names if name != "imports_by_package_s" and "range" not in name]
    yield " ".join(f"{text:>12}" for text in ("", *starts))
    for name in columns:
        cells = (f"{row[name]:.2f}" if name in row else "-" for row in starts.values())
        yield " ".join(f"{text:>12}" for text in (name.removesuffix("_s")[:12], *cells))
    for name in ("import_torch_s", "help_s", "bare_help_s", "help_ratio"):
        yield f"{name}: {report[name]}"


def main(argv: list[str] | None = None) -> None:
    """Command line; prints a table, or with --json the report."""
    parser = argparse.ArgumentParser(
        prog="python -m sora_cli.bench.startup", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--repeats", "-n", type=int, default=5, help="fresh processes of each kind")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    arguments = parser.parse_args(argv)
    report = run(max(1, arguments.repeats))
    text = json.dumps(report, indent=2) if arguments.json else "\n".join(table(report))
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
