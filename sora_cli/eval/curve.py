"""Learning curves of a recipe: `python -m sora_cli.eval.curve LOG… OUT.png`.

A log is a recipe's `log.jsonl` (`train.loop.Run`). Several are drawn one beside the other, each
under its folder's name.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

from sora_cli.errors import OutputError, UsageError
from sora_cli.eval.plot import Line, chart
from sora_cli.eval.program import ended

# Lines whose median is drawn: after a pause a recipe's running averages begin anew with a single
# batch, which a dozen lines later is forgotten.
AROUND = 25


def points_of(log: Path, measure: str, first: int) -> list[tuple[float, float]]:
    """(samples, value) of every line of a log from `first` samples on that has the measure.

    Where a run went on from an earlier checkpoint, the lines that it went over again replace those
    they repeat.

    Raises:
        UsageError: no log, a line that is none, or no such measure in it.
    """
    found: list[tuple[float, float]] = []
    try:
        for text in log.read_text(encoding="utf-8").splitlines():
            row = json.loads(text)
            samples = float(row["samples"])
            if measure in row and samples >= first:
                while found and found[-1][0] >= samples:
                    found.pop()
                found.append((samples, float(row[measure])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{log} is not a recipe's log: {error}", hint="it lies at RUN/transformer-run/log.jsonl"
        ) from error
    if not found:
        raise UsageError(
            f"{log} says nothing of {measure!r} from {first} samples on", hint="--measure loss"
        )
    return found


def smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each point at the median of the AROUND lines around it."""
    half, values = AROUND // 2, [value for _, value in points]
    return [
        (samples, median(values[max(0, n - half) : n + half + 1]))
        for n, (samples, _) in enumerate(points)
    ]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.eval.curve", description=__doc__)
    parser.add_argument("logs", type=Path, nargs="+", metavar="LOG")
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("--measure", default="loss", help="what is drawn: a name in the log")
    parser.add_argument("--first", type=int, default=2000, help="samples before which is warm-up")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Read the logs and draw."""
    lines = [
        Line(
            name=log.parent.parent.name if len(arguments.logs) > 1 else arguments.measure,
            points=smoothed(points_of(log, arguments.measure, arguments.first)),
        )
        for log in arguments.logs
    ]  # fmt: skip
    if any(value <= 0 for line in lines for point in line.points for value in point):
        raise UsageError(f"{arguments.measure} is not above 0 everywhere", hint="--measure loss")
    try:
        chart(
            lines, arguments.out, title=f"Learning curve: {arguments.measure} of the recipe",
            x="clips seen", y=arguments.measure, log_x=True, log_y=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {arguments.out}: {error}", hint="OUT.png") from error
    sys.stdout.write(f"{arguments.out}\n")


def main(argv: list[str] | None = None) -> int:
    """The exit code of the program."""
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
