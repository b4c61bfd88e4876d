"""What is missed, how it came there, and what it would take: `python -m sora_cli.eval.history`.

The report card of every set of weights is in git. Of each row that misses its first bar today this
reads what it was with the weights before, against the clips that their transformers had seen, fits
a power law through the errors, and says with how many clips the law would meet the bar, if nothing
but clips were missing. Rows are compared over changes of the autoencoder and of the sampling too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora_cli.errors import OutputError, UsageError
from sora_cli.eval.plot import Line, chart
from sora_cli.eval.program import ended
from sora_cli.eval.scaling import Law, Point, fitted

CARD, PROVENANCE = "docs/reference/tiny.json", "sora_cli/assets/tiny/provenance.json"
VAE_FLOOR = "VAE floor"
TOO_WRONG = 0.5  # a law that errs by more at one of its points is none
TOO_FAR = 1000.0  # times the clips seen: beyond, a law through a few points says nothing
LEAST = 0.25  # of today's samples: with fewer a row was another measure
Key = tuple[str, str]  # ability, measure


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The rows of one set of weights, and the clips that its transformer had seen."""

    weights: str
    samples: int
    rows: Mapping[Key, Mapping[str, Any]]


def clips_seen(run: Mapping[str, Any]) -> int:
    """Samples of a run and of all those that it went on from."""
    before = run.get("started_from") or {}
    return int(run.get("samples", 0)) + (clips_seen(before) if before else 0)


def card_of(card: str, provenance: str) -> Card:
    """From the text of a report card and that of the weights' provenance."""
    content = json.loads(card)
    return Card(
        weights=content["weights"],
        samples=clips_seen(json.loads(provenance)["runs"]["transformer"]),
        rows={(row["ability"], row["measure"]): row for row in content["rows"]},
    )


def _git(repository: Path, *words: str) -> str:
    result = subprocess.run(
        ["git", *words], cwd=repository, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise UsageError(
            f"git {words[0]} failed: {result.stderr.strip().splitlines()[-1]}",
            hint="run this in a clone of the repository, with all its history",
        )
    return result.stdout


def cards(repository: Path) -> list[Card]:
    """One for each set of weights, oldest first: the last that was committed, or lies there now.

    Raises:
        UsageError: no repository, or one without a card.
    """
    found: dict[str, Card] = {}
    for commit in _git(repository, "log", "--reverse", "--format=%H", "--", CARD).split():
        card = card_of(*(_git(repository, "show", f"{commit}:{p}") for p in (CARD, PROVENANCE)))
        found[card.weights] = card
    try:
        last = card_of(*((repository / path).read_text("utf-8") for path in (CARD, PROVENANCE)))
    except OSError as error:
        raise UsageError(f"there is no report card: {error}", hint="make eval") from error
    found.pop(last.weights, None)  # so that it stands last
    return [*found.values(), last]


@dataclass(frozen=True, kw_only=True, slots=True)
class Missed:
    """A row that misses its bar: (clips, value) of each set of weights that has it, the last now.

    nearest: what the autoencoder alone reaches, where that is known. law: of what is missing.
    """

    key: Key
    bar: float
    smaller_is_better: bool
    values: tuple[tuple[int, float], ...]
    nearest: float | None
    law: Law | None

    def missing(self, value: float) -> float:
        """How much is wrong: the value itself, or what a percentage lacks."""
        return value if self.smaller_is_better else 100.0 - value

    @property
    def within_reach(self) -> bool:
        """Whether the transformer could meet it: the autoencoder alone does."""
        if self.nearest is None:
            return True
        return self.missing(self.nearest) <= self.missing(self.bar)

    @property
    def needs(self) -> float | None:
        """Clips with which the law meets the bar; None where it does not say."""
        if self.law is None or self.law.exponent <= 0 or self.law.error > TOO_WRONG:
            return None
        return float((self.law.factor / self.missing(self.bar)) ** (1 / self.law.exponent))


def missed(history: Sequence[Card]) -> list[Missed]:
    """The rows that miss their first bar today, in the card's order."""
    found = []
    for key, row in history[-1].rows.items():
        if row["meets_first_bar"] is not False:
            continue
        smaller = row["value"] > row["first_bar"]  # else it would be met
        least = LEAST * row["samples"]
        values = tuple(
            (c.samples, c.rows[key]["value"])
            for c in history
            if key in c.rows and c.rows[key]["samples"] >= least
        )
        share = "%" in key[1]
        errors = {n: v if smaller else 100.0 - v for n, v in values if smaller or share}
        points = [Point(samples=n, loss=e, fidelity=0.0) for n, e in errors.items() if e > 0]
        found.append(
            Missed(
                key=key, bar=row["first_bar"], smaller_is_better=smaller, values=values,
                nearest=row["baselines"].get(VAE_FLOOR),
                law=fitted(points) if len(points) > 2 else None,
            )
        )  # fmt: skip
    return found


def verdict(one: Missed) -> str:
    """What it would take, in words."""
    if not one.within_reach:
        return f"another autoencoder: this one alone is at {one.nearest:.3g}"
    now = one.values[-1][0]
    if one.needs is None:
        flat = one.law is not None and one.law.exponent <= 0
        return "more of the same does not help" if flat else "not to be read from these"
    if one.needs > TOO_FAR * now:
        return f"more than {TOO_FAR:g} times the clips"
    return (
        f"{one.needs / now:.2g} times the clips (±{100 * (one.law.error if one.law else 0):.0f} %)"
    )


def page(rows: Sequence[Missed], history: Sequence[Card]) -> str:
    """The table for people."""
    table = [
        f"| {ability} | {measure} | {', '.join(f'{v:.3g}' for _, v in one.values)} | {one.bar:g} "
        f"| {verdict(one)} |"
        for one in rows
        for ability, measure in [one.key]
    ]
    return "\n".join([
        "# What is missed, and what it would take", "",
        "Made by `python -m sora_cli.eval.history` from the report cards that git keeps: the rows",
        "of [the report card](tiny.md) that miss their first bar, with every set of weights that",
        "has the row. *What it would take*: the clips at which a power law through these errors",
        "(for shares: through what 100 % lacks) meets the bar, as many times those seen so far;",
        "in brackets how far the law is off at worst. Between the sets changed more than clips:",
        "the autoencoder, the steps, what is drawn, how many samples a row has;",
        "[the log](../log.md) says what. Rows *as typed* go round the caption LLM, as",
        "`sora generate --no-expand` does.", "",
        f"Clips seen by the weights: {', '.join(f'{card.samples:,}' for card in history)}.", "",
        "![errors against clips seen](../pictures/missed.png)", "",
        "| ability | measure | with each weights that have it | first bar | what it would take |",
        "|---|---|---|---|---|", *table, "",
    ])  # fmt: skip


def draw(rows: Sequence[Missed], path: Path) -> None:
    """What is wrong over what may be, so that 1 is the bar of each row; of what users get.

    Raises:
        OutputError: the picture cannot be written.
    """
    lines = [
        Line(
            name=f"{one.key[0]}: {one.key[1]}"[:60],
            points=[(n, max(one.missing(v), 1e-3) / one.missing(one.bar)) for n, v in one.values],
        )
        for one in rows
        if one.law is not None and not one.key[1].startswith("as typed")
    ]
    if not lines:
        return
    ends = [n for line in lines for n, _ in line.points]
    lines.append(Line(name="the bar", points=[(min(ends), 1.0), (max(ends), 1.0)]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        chart(lines, path, title="Rows that miss their first bar", x="clips seen",
              y="times what the bar allows", log_x=True, log_y=True)  # fmt: skip
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}", hint="--picture FILE.png") from error


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.eval.history", description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=Path("docs/reference/missed.md"))
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/missed.png"))
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Read the cards, write the page and the picture."""
    history = cards(arguments.repository)
    rows = missed(history)
    draw(rows, arguments.picture)
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page(rows, history), "utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {arguments.out}: {error}", hint="--out FILE.md") from error
    sys.stdout.write(f"{arguments.out}\n")


def main(argv: list[str] | None = None) -> int:
    """The exit code of the program."""
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
