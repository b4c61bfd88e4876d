"""Where the time before the first denoising step goes: `python -m sora_cli.bench.startup`.

The installed command runs in fresh processes, in turn: with the prompt as it is (`as-it-is`), with
an expansion and a text embedding that are remembered (`remembered`), with a prompt never seen
before (`new`); beside them a bare `import torch`, `sora --help`, and the help of a bare Typer app
of as many commands. Nothing is put into these processes: Python's own list of imports
(`-X importtime`) and the progress in JSON come over one pipe, in the order in which things happen,
and a run is stopped when its first step is done. So every phase is known with the imports within
it. Folders of their own keep the user's cache and runs out of it.

Weights are in the page cache after the first run, which is not counted. `--published 1.3b-480p`
writes a model of random weights in published shapes first, and starts that, on `--device`; beside
it, diffusers' own pipeline of the same folder, up to its transformer's first call. There nothing is
expanded, so that there are two kinds of start.
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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from sora_cli.errors import SoraError

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
# Says a line when the transformer is called for the first time.
THEIRS = """
import sys
from pathlib import Path
import torch
from sora_cli.bench import theirs
folder, device, dtype, prompt, *size = sys.argv[1:]
made = theirs.opened(Path(folder), torch.device(device), getattr(torch, dtype))
def tell(*_):
    if device == "cuda":
        torch.cuda.synchronize()
    sys.stdout.write("first step\\n")
    sys.stdout.flush()
made.transformer.register_forward_pre_hook(tell)
names = ("width", "height", "num_frames", "max_sequence_length")
made(prompt=prompt, num_inference_steps=2, **dict(zip(names, map(int, size))))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """What is started.

    model: a name or a folder. device, dtype: None, as the command chooses.
    size: (width, height, frames, tokens of a text), None for the model's own.
    """

    model: str = "tiny"
    device: str | None = None
    dtype: str | None = None
    size: tuple[int, int, int, int] | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of start that there are: only tiny has an LLM of its own."""
        return KINDS if self.model == "tiny" else KINDS[1:]

    def words(self, kind: str, number: int) -> list[str]:
        """The command line of a kind of start."""
        prompt = PROMPT if kind == "remembered" else f"{PROMPT} {number}"
        # A folder of frames needs no ffmpeg.
        output = "start.mp4" if self.model == "tiny" else "start/"
        words = ["generate", prompt, "--seed", "1", "--model", self.model, "-o", output, "--force"]
        words += ["--device", self.device] if self.device else []
        words += ["--dtype", self.dtype] if self.dtype else []
        if self.size is not None:
            width, height, frames, _ = self.size
            words += ["--size", f"{width}x{height}", "--num-frames", str(frames), "--steps", "2"]
        return words if self.model == "tiny" and kind != "as-it-is" else [*words, "--no-expand"]


@dataclass(kw_only=True, slots=True)
class Start:
    """One start, from the shell to its first step. Seconds.

    shell: until the command line is read, its imports included.
    phases: what the run tells of itself, in its order, imports left out; `check` is all that comes
        before the first news.
    imports: by package, everywhere after the shell.
    total: until the first step begins; cpu: of the processor, until then (None where not known).
    first_step: how long that step takes; on a GPU, until it is handed over.
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


def start_theirs(what: Started, number: int, env: Mapping[str, str]) -> Start:
    """Start diffusers' pipeline of a folder, and stop it at its first step.

    Raises:
        RuntimeError: it ended before.
    """
    given = [what.model, what.device or "cpu", what.dtype or "bfloat16", f"{PROMPT} {number}"]
    size = [str(number) for number in what.size or ()]
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", THEIRS, *given, *size], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=dict(env), text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        if process.stdout.readline():
            found = Start(total=time.perf_counter() - began, cpu=_cpu_seconds(process.pid))
            process.kill()
            process.communicate()
            return found
        said = process.communicate()[1].strip().splitlines()
    raise RuntimeError(f"diffusers ended before its first step: {said[-1] if said else ''}")


@contextmanager
def published(name: str, device: str, scale: float) -> Iterator[Started]:
    """A model of random weights in published shapes, in a folder that is gone at the end.

    name: of a model of `bench.offload.MODELS`, with its size and length.
    """
    from sora_cli.bench import checkpoints
    from sora_cli.bench.loading import DTYPES
    from sora_cli.bench.offload import case_of

    case, dtype = case_of(name, scale), "bfloat16"
    with tempfile.TemporaryDirectory() as parent:
        folder = checkpoints.write_model(
            Path(parent) / name, case.transformer, case.vae, case.text, DTYPES[dtype],
            per_frame=case.per_token,
        )  # fmt: skip
        size = (case.width, case.height, case.num_frames, case.transformer.text_len)
        yield Started(model=str(folder), device=device, dtype=dtype, size=size)


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


def run(repeats: int, what: Started, *, theirs: bool = False) -> dict[str, object]:
    """Measure everything in turn, `repeats` times, and give the medians.

    theirs: diffusers too, of a model in a folder.
    """
    starts: dict[str, list[Start]] = {kind: [] for kind in what.kinds}
    other: list[Start] = []
    commands = {
        "torch": [sys.executable, "-c", "import torch"],
        "help": [sys.executable, "-m", "sora_cli", "--help"],
        "bare_help": [sys.executable, "-c", BARE_APP, "--help"],
    }
    others: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own)
        env = environment(folder)
        # Writes the bytecode, fills the page cache and what is remembered.
        start(what.words("remembered", 0), env, folder)
        if theirs:
            start_theirs(what, 0, env)
        for number in range(1, repeats + 1):
            for kind, found in starts.items():
                found.append(start(what.words(kind, number), env, folder))
            other += [start_theirs(what, number, env)] if theirs else []
            for name, command in commands.items():
                others[name].append(seconds_of(command, env))
    times = {name: median(found) for name, found in others.items()}
    totals = {kind: median(s.total for s in found) for kind, found in starts.items()}
    beside: dict[str, object] = {}
    if other:
        seconds = median(one.total for one in other)
        beside["diffusers_s"] = round(seconds, 3)
        beside["diffusers_cpu_s"] = round(median(one.cpu or 0.0 for one in other), 3)
        beside["ratio_to_diffusers"] = {k: round(seconds / total, 2) for k, total in totals.items()}
    return {
        "repeats": repeats,
        "model": Path(what.model).name,
        "device": what.device or "auto",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "starts": {kind: summary(found) for kind, found in starts.items()},
        "import_torch_s": round(times["torch"], 3),
        "help_s": round(times["help"], 3),
        "bare_help_s": round(times["bare_help"], 3),
        "help_ratio": round(times["help"] / times["bare_help"], 2),
        "ratio_to_torch": {k: round(total / times["torch"], 2) for k, total in totals.items()},
        **beside,
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
    for name in ("import_torch_s", "help_s", "bare_help_s", "help_ratio", "diffusers_s",
                 "diffusers_cpu_s", "ratio_to_diffusers"):  # fmt: skip
        if name in report:
            yield f"{name}: {report[name]}"


def main(argv: list[str] | None = None) -> int:
    """Command line; prints a table, or with --json the report."""
    parser = argparse.ArgumentParser(
        prog="python -m sora_cli.bench.startup", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--repeats", "-n", type=int, default=5, help="fresh processes of each kind")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--model", default="tiny", help="a name, or a folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None, help="as it is chosen")
    parser.add_argument("--published", help="random weights of such a model: 1.3b-480p, 5b-704p")
    parser.add_argument("--scale", type=float, default=1.0, help="of its sizes, to try it out")
    parser.add_argument("--no-theirs", action="store_true", help="without diffusers")
    arguments = parser.parse_args(argv)
    repeats, theirs = max(1, arguments.repeats), False
    try:
        if arguments.device == "cuda":
            from sora_cli.runtime.device import choose_device

            choose_device("cuda")
        if arguments.model != "tiny" or arguments.published:
            from sora_cli.bench.theirs import available

            theirs = available() and not arguments.no_theirs
        if arguments.published:
            device = arguments.device or "cpu"
            with published(arguments.published, device, arguments.scale) as what:
                report = run(repeats, what, theirs=theirs)
        else:
            what = Started(model=arguments.model, device=arguments.device)
            report = run(repeats, what, theirs=theirs and Path(what.model).is_dir())
    except SoraError as error:
        sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
        return int(error.exit_code)
    text = json.dumps(report, indent=2) if arguments.json else "\n".join(table(report))
    print(text)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
