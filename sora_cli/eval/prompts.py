"""Measure how prompts are read: `python -m sora_cli.eval.prompts`.

Writes docs/reference/prompts.md: which share of what prompts name and rule out their captions keep,
by the form of the prompt, with the lexicon's reading and checking and by the language model alone;
and what some fifty prompts, many of them hostile or of another world, become.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sora_cli.errors import UsageError
from sora_cli.eval.paraphrases import PARAPHRASES, SHOWN
from sora_cli.eval.program import ended
from sora_cli.models.language_model import LanguageModel
from sora_cli.pipeline.ask import Question, best_answer
from sora_cli.pipeline.checking import MALFORMED, faults, with_steps
from sora_cli.pipeline.expand import GRAVE, Expansion, expand, known_words
from sora_cli.pipeline.lexicon import read_lexicon
from sora_cli.pipeline.prompt import clean_text
from sora_cli.pipeline.reading import read_prompt
from sora_cli.train.export import machine
from sora_cli.train.prompts import FORMS, PICTURE, Pair, draw_pair, kept
from sora_cli.train.world import SPLITS
from sora_cli.weights import store

Writer = Callable[[str, int], str]  # a prompt and a seed → a caption
HAND_WRITTEN = "hand-written paraphrases"
COLORS_OF_TWO = "two things: colours on the right thing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """Of one form: attributes kept and named, prompts kept whole and asked."""

    form: str
    kept: int
    named: int
    whole: int
    prompts: int

    @property
    def percent(self) -> float:
        """Attributes kept, %."""
        return 100 * self.kept / max(self.named, 1)


def pairs_of(form: str, split: str, samples: int) -> list[Pair]:
    """The first pairs of one form; "mixed" has all forms and all rough edges, as training has."""
    if form == HAND_WRITTEN:
        return list(PARAPHRASES)
    return [
        draw_pair(0, index, split, None if form == "mixed" else form) for index in range(samples)
    ]


def figure(form: str, pairs: Sequence[Pair], write: Writer, only: tuple[str, ...] = ()) -> Figure:
    """Ask for a caption of every pair's prompt, with its number as the seed.

    only: the attributes that count; all of them where it is empty.
    """
    rows = []
    for seed, pair in enumerate(pairs):
        table = kept(pair, write(pair.prompt, seed))
        rows.append([right for name, right in table.items() if not only or name in only])
    return Figure(
        form=form, kept=sum(map(sum, rows)), named=sum(map(len, rows)),
        whole=sum(map(all, rows)), prompts=len(rows),
    )  # fmt: skip


def as_the_user_gets_it(folder: Path, writer: LanguageModel) -> Writer:
    """Read, asked and checked as `expand.expand` does it, by a model that stays loaded."""
    lexicon, known = read_lexicon(folder), known_words(folder)
    if lexicon is None:
        raise UsageError(f"{folder} has no lexicon.json", hint="sora doctor")

    def write(prompt: str, seed: int) -> str:
        still = prompt.startswith(PICTURE)
        mark = PICTURE if still else ""
        reading = read_prompt(clean_text(prompt.removeprefix(mark)), lexicon, known)
        question = Question(
            folder=folder, prompt=mark + reading.text, seed=seed,
            retold=reading.retold and mark + reading.retold,
        )  # fmt: skip

        def count(caption: str) -> int:
            lost = faults(caption, reading, lexicon, still=still)
            return GRAVE if lost == [MALFORMED] else len(lost)

        return with_steps(best_answer(writer, question, count), reading, lexicon)

    return write


def expansions(folder: Path) -> list[tuple[Expansion, float]]:
    """What the prompts of the table become, row i with seed i, each with its seconds."""
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for seed, prompt in enumerate(("a warm-up", *SHOWN)):  # the first import takes seconds
            began = time.perf_counter()
            made = expand(prompt, folder=folder, seed=seed, cache_dir=Path(cache))
            rows.append((made, time.perf_counter() - began))
    return rows[1:]


# ---------------------------------------------------------------------- the page


def page(
    ours: Sequence[Figure], alone: Sequence[Figure], shown: Sequence[tuple[Expansion, float]],
    about: str,
) -> str:  # fmt: skip
    """docs/reference/prompts.md."""
    lines = [
        "# How tiny reads prompts", "",
        "Made by `python -m sora_cli.eval.prompts`. An attribute is kept when the caption says",
        "what the prompt names (thing, colour, size, motion, floor, sky, camera, count; of two",
        "things on the right one), or does not say what it rules out. *Alone* is the language",
        "model without the reading before it and the check behind it (`pipeline/reading.py`,",
        "`checking.py`). Prompts are drawn anew for the split; the hand-written ones use words and",
        "orders that are in no training table.", "",
        "| prompts | attributes kept, % | of | prompts kept whole, % | of | alone: attributes, % |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row, other in zip(ours, alone, strict=True):
        whole = 100 * row.whole / max(row.prompts, 1)
        lines.append(
            f"| {row.form} | **{row.percent:.1f}** | {row.named} | {whole:.1f} | {row.prompts} "
            f"| {other.percent:.1f} |"
        )
    seconds = [taken for made, taken in shown if made.source == "model"]
    lines += [
        "", f"To load the language model and answer, beyond the import: {_spread(seconds)}.", "",
        about, "", f"## {len(shown)} prompts", "",
        "Row i with seed i. Where nothing was expanded, the prompt is used as it is.", "",
        "| prompt | becomes | note |", "|---|---|---|",
    ]  # fmt: skip
    for made, _ in shown:
        became = "(as it is)" if made.source == "none" else made.expanded_prompt
        lines.append(f"| {_cell(made.prompt)} | {_cell(became)} | {_cell('; '.join(made.notes))} |")
    return "\n".join(lines) + "\n"


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "nothing was asked"
    return f"{statistics.median(seconds):.2f} s in the median, {max(seconds):.2f} s at most"


def _cell(text: str, most: int = 220) -> str:
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
    return text if len(text) <= most else f"{text[:most]}… ({len(text.split())} words)"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.eval.prompts", description=__doc__)
    parser.add_argument("--model", default="tiny", help="a name or a diffusers folder")
    parser.add_argument("--folder", type=Path, default=None, help="a language model's own folder")
    parser.add_argument("--samples", type=int, default=200, help="prompts of each form")
    parser.add_argument("--split", choices=list(SPLITS)[1:], default="final")
    parser.add_argument("--out", type=Path, default=Path("docs/reference/prompts.md"))
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Measure, and write the page."""
    if arguments.samples < 1:
        raise UsageError("--samples must be at least 1", hint="--samples 200")
    folder = arguments.folder or store.locate(arguments.model).language_model
    if folder is None:
        raise UsageError(f"{arguments.model} has no language model of its own", hint="--model tiny")
    ours, alone = [], []
    with LanguageModel(folder) as writer:
        checked = as_the_user_gets_it(folder, writer)

        def plain(prompt: str, seed: int) -> str:
            return writer.complete(prompt, seed=seed)

        for form in ("mixed", *FORMS, COLORS_OF_TWO, HAND_WRITTEN):
            colors = form == COLORS_OF_TWO
            only = ("kind0", "color0", "kind1", "color1") if colors else ()
            drawn = "two things" if colors else form
            pairs = pairs_of(drawn, arguments.split, arguments.samples)
            ours.append(figure(form, pairs, checked, only))
            alone.append(figure(form, pairs, plain, only))
            sys.stderr.write(f"{form}: {ours[-1].percent:.2f} alone {alone[-1].percent:.2f}\n")
    about = (
        f"Of `python -m sora_cli.eval.prompts --samples {arguments.samples} --split "
        f"{arguments.split}` on {datetime.now(UTC):%Y-%m-%d}; {machine()}, float32. "
        f"Pairs 0 to {arguments.samples - 1} of seed 0 of each form; caption i has seed i."
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page(ours, alone, expansions(folder), about), encoding="utf-8")
    sys.stdout.write(f"{arguments.out}\n")


def main(argv: list[str] | None = None) -> int:
    """The exit code of the program."""
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
