"""`python -m tests.fuzz --minutes 5 [--target NAME] [--seed N]`: what we parse, made wrong, read.

Each target is read in a process of its own, so that a crash of a library's native code, or a hang
in it, is found too. Stops at the first thing found and says where the input lies; `--again FILE`
reads that one input again, with its traceback.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.guards import WALL


def main() -> int:
    """Run it; 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="for all targets together")
    parser.add_argument("--target", action="append", help="a name, several times for several")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inputs", type=int, help="so many of each target, however long it takes")
    parser.add_argument("--save", type=Path, default=Path("fuzz-found"), help="for failing inputs")
    parser.add_argument("--again", type=Path, help="read this input of --target again")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return _work(options)
    if options.again:
        return _again(options.target[0], options.again)
    from tests.fuzz.targets import TARGETS

    names = options.target or list(TARGETS)
    total, refused, seconds = 0, 0, 0.0
    for name in names:
        report = _run(name, options, 60 * options.minutes / len(names))
        total, refused = total + report["inputs"], refused + report["refused"]
        seconds += report["seconds"]
        rate = report["inputs"] / max(report["seconds"], 1e-9)
        _say(
            f"{name:12} {report['inputs']:9,} inputs {report['seconds']:7.1f} s {rate:8.0f}/s "
            f"{report['refused']:9,} refused {report['lines']:5} lines"
        )
        if report["found"]:
            _say(f"found: {report['found']}")
            _say(f"again: python -m tests.fuzz --target {name} --again {report['saved']}")
            return 1
    _say(f"{'all':12} {total:9,} inputs {seconds:7.1f} s, {refused:,} refused, nothing found")
    return 0


def _run(name: str, options: argparse.Namespace, seconds: float) -> dict:
    """One target in a process of its own; a process that dies is a find."""
    with tempfile.TemporaryDirectory(prefix="sora-fuzz-") as folder:
        words = ["--worker", folder, "--target", name, "--seed", str(options.seed)]
        words += ["--inputs", str(options.inputs)] if options.inputs else []
        words += ["--minutes", str(seconds / 60)]
        ran = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", *words], capture_output=True, text=True
        )
        lines = ran.stdout.strip().splitlines()
        try:
            report = json.loads(lines[-1])
        except (IndexError, ValueError):
            tail = ran.stderr.strip()[-2000:]
            report = {
                "inputs": 0, "refused": 0, "seconds": 0.0, "lines": 0,
                "found": f"the process ended with {ran.returncode}: {tail}",
                "saved": str(next((Path(folder) / "work").glob("input*"), "")),
            }  # fmt: skip
        if report["found"] and report["saved"]:
            options.save.mkdir(parents=True, exist_ok=True)
            kept = options.save / f"{name}-{Path(report['saved']).name}"
            kept.write_bytes(Path(report["saved"]).read_bytes())
            report["saved"] = str(kept)
        return report


def _work(options: argparse.Namespace) -> int:
    """In the process of a target: fuzz it and write the report as one line."""
    import torch

    from tests.fuzz.harness import fuzz

    torch.set_num_threads(1)

    def before() -> None:
        faulthandler.dump_traceback_later(WALL, exit=True)

    seconds = None if options.inputs else 60 * options.minutes
    report = fuzz(
        options.target[0], options.worker, seed=options.seed, inputs=options.inputs,
        seconds=seconds, before=before,
    )  # fmt: skip
    faulthandler.cancel_dump_traceback_later()
    _say(json.dumps(asdict(report)))
    return 0


def _again(name: str, path: Path) -> int:
    import os
    import traceback

    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    content = path.read_bytes()
    with tempfile.TemporaryDirectory(prefix="sora-fuzz-") as folder:
        os.environ["XDG_STATE_HOME"] = folder
        os.chdir(folder)
        file = Path(folder) / f"input{target.suffix}"
        file.write_bytes(content)
        try:
            target.read(file)
        except Exception:
            _say(traceback.format_exc())
            return 1
    _say("it is read")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
