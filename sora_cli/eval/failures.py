"""How often a clip goes wrong as no clip should: things from nowhere, things that vanish or turn
into others, breaking and eating that come to nothing.

The first three are of the clips of "prompt fidelity", which the judge reads a second at a time; in
the truth things come and go where the camera or they themselves move. The last two are of those of
"interaction". What went wrong is shown, the first ones, nothing chosen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from sora_cli.eval import report
from sora_cli.eval.happenings import BITES, PIECES, QUESTIONS, watched
from sora_cli.eval.judge import Judge, read
from sora_cli.eval.lasting import SECOND, things_in
from sora_cli.eval.report import Bar, Row
from sora_cli.eval.rows import Exam

Seen = Sequence[tuple[tuple[str, str], ...]]  # kind and colour of each thing, second by second


def appears(seen: Seen) -> bool:
    """Whether there is more at some time than before."""
    return any(len(b) > len(a) for n, a in enumerate(seen) for b in seen[n + 1 :])


def vanishes(seen: Seen) -> bool:
    """Whether there is less at some time than before."""
    return any(len(b) < len(a) for n, a in enumerate(seen) for b in seen[n + 1 :])


def turns(seen: Seen) -> bool:
    """Whether as many things are there all the time, and not the same."""
    alike = len({len(things) for things in seen}) == 1
    return alike and any(Counter(things) != Counter(seen[0]) for things in seen)


KINDS: Mapping[str, Callable[[Seen], bool]] = {
    "things from nowhere, % of clips": appears,
    "things that vanish, % of clips": vanishes,
    "things that turn into others, % of clips": turns,
}
EVENTS = {  # of which question, below which of its figures a clip has failed
    "breaking: pieces missing or too many, % of clips": ("broken", PIECES, 50.0),
    "eating: bites missing or too many, % of clips": ("eaten", BITES, 50.0),
}

report.BARS.update({("failures", name): Bar(smaller_is_better=True) for name in (*KINDS, *EVENTS)})


def seconds(judge: Judge, clips: Tensor) -> list[Seen]:
    """What is there in the first, the middle and the last second of clips [B, T, H, W, 3]."""
    length = clips.shape[1]
    firsts = sorted({0, max(0, (length - SECOND) // 2), max(0, length - SECOND)})
    readings = [read(judge, clips[:, first : first + SECOND]) for first in firsts]
    return [[things_in(one) for one in of_clip] for of_clip in zip(*readings, strict=True)]


def failures(exam: Exam) -> list[Row]:
    """The rates, beside those of the truth."""
    return [*_of_things(exam), *_of_events(exam)]


def _of_things(exam: Exam) -> list[Row]:
    asked, clips = exam.dense()
    if not asked:
        return []
    ways = {
        "value": clips, "floor": exam.truth()[0][: len(asked)],
        "VAE floor": exam.truth_reconstructed()[: len(asked)],
    }  # fmt: skip
    seen = {name: seconds(exam.judge, way) for name, way in ways.items()}
    wrong = [
        (number, name) for name, fails in KINDS.items()
        for number, one in enumerate(seen["value"]) if fails(one)
    ]  # fmt: skip
    wrong.sort()
    exam.sheet(
        "failures", [clips[number].numpy() for number, _ in wrong],
        [f"{name.split(',')[0]}: {asked[number].caption.text}" for number, name in wrong],
    )  # fmt: skip
    return [
        Row(
            ability="failures", measure=name, samples=len(asked), split=exam.split,
            value=_share(fails, seen["value"]), floor=_share(fails, seen["floor"]),
            baselines={"VAE floor": _share(fails, seen["VAE floor"])},
        )
        for name, fails in KINDS.items()
    ]  # fmt: skip


def _share(fails: Callable[[Seen], bool], seen: Sequence[Seen]) -> float:
    return 100 * sum(map(fails, seen)) / len(seen)


def _of_events(exam: Exam) -> list[Row]:
    rows = []
    for name, (family, measure, least) in EVENTS.items():
        question = next(q for q in QUESTIONS if q.family == family)
        ways = watched(exam, question)
        found = {
            way: np.array([row[measure] for row in table]) for way, table in ways.items()
        }  # fmt: skip
        told = {way: values[~np.isnan(values)] for way, values in found.items()}
        if not len(told.get("value", ())):
            continue
        rates = {
            w: 100 * float((v < least).mean()) if len(v) else math.nan for w, v in told.items()
        }
        rows.append(
            Row(
                ability="failures", measure=name, value=rates.pop("value"),
                floor=rates.pop("floor"), baselines=rates, samples=len(told["value"]),
                split=exam.split,
            )
        )  # fmt: skip
    return rows
