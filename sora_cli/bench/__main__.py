"""Our speed beside diffusers' on this machine: `python -m sora_cli.bench`.

The workloads are a fixed table (`bench/cases.py`), one for a CPU and one for a GPU. Each is timed
only after both sides' results have been found equal. `python -m sora_cli.bench.memory`, `loading`,
`offload`, `startup` and `growth` in its place measure that alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from sora_cli.bench import ceilings, report
from sora_cli.bench.cases import BOTH, CUDA_CASES, Case, DtypeName, cpu_cases, scaled
from sora_cli.bench.measure import DTYPES, Conditions, ParityError, as_json, circumstances, measure
from sora_cli.errors import SoraError, UsageError
from sora_cli.runtime.device import choose_device
from sora_cli.runtime.memory import is_out_of_memory
from sora_cli.weights import loose, store
from sora_cli.weights.tensors import first_line

PROGRAM = "python -m sora_cli.bench"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="figures instead of a table")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin nothing after these")
    parser.add_argument("--only", default="", help="workloads, with commas between; see --list")
    parser.add_argument("--rounds", type=int, default=7, help="of each workload, at most")
    parser.add_argument("--seconds", type=float, default=90.0, help="of each workload's rounds")
    parser.add_argument("--dtype", choices=BOTH, default=None, help="this one alone")
    parser.add_argument("--threads", type=int, default=None, help="of torch; its own choice")
    parser.add_argument("--table", choices=("cpu", "cuda"), default=None, help="the device's")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes, to try it out")
    parser.add_argument("--no-compile", action="store_true", help="of theirs, on a GPU")
    parser.add_argument("--no-ceilings", action="store_true", help="measure the workloads alone")
    parser.add_argument("--out", type=Path, help="JSON, written anew after every workload")
    parser.add_argument("--add", action="store_true", help="to the figures that --out has already")
    parser.add_argument("--write", type=Path, help="a page, PAGE.md, and PAGE.json beside it")
    parser.add_argument("--of", type=Path, help="write the page of these figures; measure nothing")
    parser.add_argument("--list", action="store_true", help="the workloads of the table")
    return parser.parse_args(argv)


def say(text: str) -> None:
    """News for whoever watches."""
    sys.stderr.write(text)
    sys.stderr.flush()


def cases(table: str) -> tuple[Case, ...]:
    """The table of a kind of device."""
    if table == "cuda":
        return CUDA_CASES
    parts = store.locate("tiny").parts
    transformer, vae, text = (
        cast(Any, loose.look(parts[name]).config) for name in ("transformer", "vae", "text_encoder")
    )
    return cpu_cases((transformer, vae, text))


def chosen(arguments: argparse.Namespace) -> list[tuple[Case, DtypeName]]:
    """What is asked for, in the table's order.

    Raises UsageError for a name that is not in it, and for numbers that make no sense.
    """
    for name in ("rounds", "seconds", "minutes", "scale", "threads"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise UsageError(f"--{name} must be more than 0", hint=f"leave --{name} out")
    table = cases(arguments.table or arguments.device)
    names = [name.strip() for name in arguments.only.split(",") if name.strip()]
    known = [case.name for case in table]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(
            f"no such workload: {', '.join(unknown)}", hint=f"--only {','.join(known)}"
        )
    return [
        (scaled(case, arguments.scale), dtype)
        for case in table
        if case.name in names or not names
        for dtype in case.dtypes
        if arguments.dtype in (None, dtype)
    ]


def command(arguments: argparse.Namespace) -> str:
    """The command that makes these figures; files, which change no figure, are left out."""
    words = ["--device", arguments.device]
    for name in ("only", "dtype", "table", "threads"):
        value = getattr(arguments, name)
        words += [f"--{name}", str(value)] if value else []
    for name, default in {"rounds": 7, "seconds": 90.0, "minutes": 60.0, "scale": 1.0}.items():
        value = getattr(arguments, name)
        words += [f"--{name}", f"{value:g}"] if value != default else []
    for name in ("compile", "ceilings"):
        words += [f"--no-{name}"] if getattr(arguments, f"no_{name}") else []
    words += ["--add"] if arguments.add else []
    threads = os.environ.get("OMP_NUM_THREADS")
    return (f"OMP_NUM_THREADS={threads} " if threads else "") + f"{PROGRAM} {shlex.join(words)}"


def run(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure; the whole result after each piece of it.

    Raises:
        UsageError: as `chosen`. DeviceError: no such device.
    """
    todo = chosen(arguments)
    device = choose_device(arguments.device).device
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    on = Conditions(
        table=arguments.table or arguments.device, device=device, scale=arguments.scale,
        rounds=arguments.rounds, seconds=arguments.seconds,
        compiled=device.type == "cuda" and not arguments.no_compile,
    )  # fmt: skip
    result: dict[str, Any] = {"workloads": []} | circumstances(device, command(arguments))
    result |= {"scale": on.scale, "details": [], "refused": [], "left": [], "ceilings": []}
    if arguments.add:
        result |= _before(figures_of(arguments), result)
        known = {(row["name"], row["dtype"]) for row in result["workloads"]}
        todo = [(case, dtype) for case, dtype in todo if (case.name, dtype) not in known]
    deadline = time.monotonic() + 60 * arguments.minutes
    if not arguments.no_ceilings and not result["ceilings"]:
        used = tuple(DTYPES[name] for name in BOTH if name in {dtype for _, dtype in todo})
        for found in ceilings.measure(on.table, device, used, on.scale):
            result["ceilings"].append(asdict(found))
            yield result
    for number, (case, dtype) in enumerate(todo):
        if time.monotonic() > deadline:
            result["left"] = [f"{case.name} in {dtype}" for case, dtype in todo[number:]]
            say(f"no time left for {', '.join(result['left'])}\n")
            break
        say(f"{case.name}, {dtype} … ")
        _one(case, dtype, on, result)
        yield result
    yield result


def figures_of(arguments: argparse.Namespace) -> Path | None:
    """Where the figures go: beside the page, unless it is said."""
    page: Path | None = arguments.write
    return arguments.out or (page and page.with_suffix(".json"))


def _before(path: Path | None, result: dict[str, Any]) -> dict[str, Any]:
    """Rows and ceilings of earlier figures, to measure the others in another sitting.

    Raises UsageError where there are none, or of another machine or scale.
    """
    if path is None:
        raise UsageError("--add needs the file of the figures", hint="--add --out FIGURES.json")
    if not path.exists():
        return {}
    earlier = read(path)
    if any(earlier[name] != result[name] for name in ("machine", "scale")):
        raise UsageError(f"{path} was measured on another machine or at another scale",
                         hint="another --out, or no --add")  # fmt: skip
    kept = {name: earlier[name] for name in ("workloads", "details", "ceilings")}
    return kept | {"command": f"{earlier['command']} && {result['command']}"}


def _one(case: Case, dtype: DtypeName, on: Conditions, result: dict[str, Any]) -> None:
    """Measure a workload into the result, or say there why not."""
    try:
        row, beside = measure(case, dtype, on)
    except ParityError as error:
        why = error.message
        say(f"refused\nerror: {why}\nhint: {error.hint}\n")
    except Exception as error:
        # Of memory, of a kernel that a device lacks, of another version of a library: whatever it
        # is, the other workloads can still be measured.
        said = "out of memory" if is_out_of_memory(error) else first_line(error)
        why = f"{case.name} in {dtype}: {said}"
        say(f"refused\nerror: {why}\n")
    else:
        result["workloads"].append(as_json(row))
        result["details"].append(beside)
        say("ours alone\n" if row.ratio is None else f"{row.ratio:.2f}×\n")
        return
    result["refused"].append(why)


def write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    other = path.with_name(f".{path.name}.new")
    other.write_text(text, encoding="utf-8")
    other.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Figures that were written before. Raises UsageError for a file that holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        report.markdown(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} holds no figures of this program", hint=f"{PROGRAM} --out {path}"
        ) from error
    return dict(found)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; 1 where a workload was refused."""
    arguments = parse(argv)
    page = arguments.write
    out = figures_of(arguments)
    try:
        if arguments.list:
            for case in cases(arguments.table or arguments.device):
                sys.stdout.write(f"{case.name}\t{', '.join(case.dtypes)}\t{case.what}\n")
            return 0
        result: dict[str, Any] = {}
        if arguments.of is not None:
            result = read(arguments.of)
        else:
            for result in run(arguments):
                if out is not None:
                    write(out, json.dumps(result, indent=2) + "\n")
                if page is not None:  # after every piece, so that whoever stops it loses nothing
                    write(page, report.markdown(result, (out or page).name))
    except SoraError as error:
        say(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return int(error.exit_code)
    if page is not None and arguments.of is not None:
        write(page, report.markdown(result, arguments.of.name))
    text = json.dumps(result, indent=2) + "\n" if arguments.json else report.table(result)
    sys.stdout.write(text)
    return int(bool(result["refused"]))


if __name__ == "__main__":
    sys.exit(main())
