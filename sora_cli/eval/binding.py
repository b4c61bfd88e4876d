"""Rows of the report card on words: colours that stay with their things, denials, counts, and
sentences that are in no training table.

Each is asked twice: as typed, which shows what the text encoder understands, and in the words of
the caption LLM, which is what a user gets. The floor is the judge on true renders of what is asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sora_cli.eval import report
from sora_cli.eval.clips import make
from sora_cli.eval.judge import Reading
from sora_cli.eval.judge import read as read_clips
from sora_cli.eval.paraphrases import PARAPHRASES
from sora_cli.eval.report import Bar, Row
from sora_cli.eval.rows import Exam, percentages, scores
from sora_cli.eval.sizes import expanded
from sora_cli.eval.truth import OF_THINGS, Prompt, prompts, render_all
from sora_cli.train.captions import Caption
from sora_cli.train.denials import article
from sora_cli.train.prompts import Pair
from sora_cli.train.world import COLORS, Scene

CAP = "word"  # of CAPS
WAYS = ("as typed", "expanded")
KEPT, SWAPPED = "colours on their things, % of clips", "colours swapped, % of clips"
COLORS_SHOWN, KINDS_SHOWN = "both colours shown, % of clips", "both things shown, % of clips"
ASKED_FOR, DENIED = "the colour asked for, % of clips", "the colour denied, % of clips"
ONE, TWO = "one thing asked for and shown, %", "two things asked for and shown, %"
RIGHT, RULED_OUT = "% right", "shows what is ruled out, % of denials"
_SHARE, _SLIP = Bar(first=92.0, goal=99.0), Bar(first=5.0, goal=0.0, smaller_is_better=True)
MEASURES: dict[str, dict[str, Bar]] = {
    "binding": {KEPT: _SHARE, SWAPPED: _SLIP, COLORS_SHOWN: Bar(), KINDS_SHOWN: Bar()},
    "negation": {ASKED_FOR: _SHARE, DENIED: _SLIP},
    "counts": {ONE: _SHARE, TWO: _SHARE},
    "paraphrases": {RIGHT: _SHARE, RULED_OUT: _SLIP},
}
BARS: dict[tuple[str, str], Bar] = {
    (ability, f"{way}: {measure}"): bar
    for ability, measures in MEASURES.items()
    for way in WAYS
    for measure, bar in measures.items()
}
report.BARS.update(BARS)
Shares = dict[str, float]  # by measure


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Prompts of one ability, and what the readings of as many clips say of it."""

    asked: list[Prompt]
    shares: Callable[[list[Prompt], list[Reading]], Shares]


def rows(exam: Exam, ability: str) -> list[Row]:
    """One ability's question, both ways; nothing of a model without a caption LLM of its own."""
    question = QUESTIONS[ability](exam)
    longer = expanded(exam, question.asked)
    if longer is None:
        return []
    truth = render_all([prompt.scene for prompt in question.asked], str(exam.studio.device))[0]
    seen = read_clips(exam.judge, truth)
    found: list[Row] = []
    for way, prompts_of in zip(WAYS, (question.asked, longer), strict=True):
        latents = make(exam.studio, prompts_of)
        if not latents:
            break
        clips, asked = exam.decoded(latents), question.asked[: len(latents)]
        exam.show(clips, prompts_of, f"{ability}-{way.replace(' ', '-')}")
        shares = question.shares(asked, read_clips(exam.judge, clips))
        floors = question.shares(asked, seen[: len(asked)])
        found += [
            Row(
                ability=ability, measure=f"{way}: {measure}", value=shares[measure],
                floor=floors[measure], samples=len(asked), split=exam.split,
            )
            for measure in MEASURES[ability] if measure in shares
        ]  # fmt: skip
    return found


def shown(reading: Reading, name: str) -> set[str]:
    """The values of an attribute that the judge reads in a clip, of whichever thing."""
    if name not in OF_THINGS:
        return {reading.values[name]}
    return {reading.values[f"{name}{slot}"] for slot in range(int(reading.values["count"]))}


def _share(rights: Sequence[bool]) -> float:
    return 100 * sum(rights) / len(rights)


def _worded(prompt: Prompt, text: str, *named: str) -> Prompt:
    return replace(prompt, caption=Caption(text=text, named=frozenset(named)))


# ---------------------------------------------------------------------- binding


def binding(exam: Exam) -> Question:
    """ "a red ball and a blue cube": two things, and a colour for each."""

    def told_apart(scene: Scene) -> bool:
        if len(scene.things) != 2:
            return False
        left, right = scene.things
        return left.kind != right.kind and left.color != right.color

    asked = []
    for prompt in exam.prompts("short", cap=CAP, only=told_apart):
        nouns = [article(f"{thing.color} {thing.kind}") for thing in prompt.scene.things]
        names = ("kind0", "color0", "kind1", "color1", "count")
        asked.append(_worded(prompt, " and ".join(nouns), *names))
    return Question(asked=asked, shares=bound)


def bound(asked: list[Prompt], readings: list[Reading]) -> Shares:
    """Of how many clips the colours are on their things, and on each other's."""
    found: dict[str, list[bool]] = {measure: [] for measure in MEASURES["binding"]}
    for prompt, reading in zip(asked, readings, strict=True):
        left, right = prompt.scene.things
        pairs = {
            (reading.values[f"kind{slot}"], reading.values[f"color{slot}"])
            for slot in range(int(reading.values["count"]))
        }
        found[KEPT].append(pairs == {(left.kind, left.color), (right.kind, right.color)})
        found[SWAPPED].append(pairs == {(left.kind, right.color), (right.kind, left.color)})
        found[COLORS_SHOWN].append(shown(reading, "color") == {left.color, right.color})
        found[KINDS_SHOWN].append(shown(reading, "kind") == {left.kind, right.kind})
    return {measure: _share(rights) for measure, rights in found.items()}


# ---------------------------------------------------------------------- negation


def negation(exam: Exam) -> Question:
    """ "a ball that is not red but blue"."""
    asked, wrong = [], []
    for prompt in exam.prompts("short", cap=CAP, only=lambda scene: len(scene.things) == 1):
        thing = prompt.scene.things[0]
        rng = random.Random(f"negation/{prompt.seed}")
        wrong.append(rng.choice([color for color in COLORS if color != thing.color]))
        text = f"{article(thing.kind)} that is not {wrong[-1]} but {thing.color}"
        asked.append(_worded(prompt, text, "kind0", "color0", "count"))

    def shares(chosen: list[Prompt], readings: list[Reading]) -> Shares:
        colors = [shown(reading, "color") for reading in readings]
        wanted = [prompt.scene.things[0].color for prompt in chosen]
        return {
            ASKED_FOR: _share([a in seen for a, seen in zip(wanted, colors, strict=True)]),
            DENIED: _share([w in seen for w, seen in zip(wrong, colors, strict=False)]),
        }

    return Question(asked=asked, shares=shares)


# ---------------------------------------------------------------------- counts


def counts(exam: Exam) -> Question:
    """ "one red ball" and "two red balls", every other one."""
    asked = []
    for number, prompt in enumerate(exam.prompts("short", cap=CAP, only=_several)):
        first, second = prompt.scene.things
        if number % 2 == 0:
            scene = replace(prompt.scene, things=(first,))
            text = f"one {first.color} {first.kind}"
        else:
            twin = replace(second, kind=first.kind, color=first.color)
            scene = replace(prompt.scene, things=(first, twin))
            text = f"two {first.color} {many(first.kind)}"
        asked.append(_worded(replace(prompt, scene=scene), text, "kind0", "color0", "count"))
    return Question(asked=asked, shares=counted)


def many(kind: str) -> str:
    """The plural of a kind's name."""
    return kind.removesuffix("man") + "men" if kind.endswith("man") else kind + "s"


def _several(scene: Scene) -> bool:
    return len(scene.things) == 2


def counted(asked: list[Prompt], readings: list[Reading]) -> Shares:
    """Of how many clips the judge counts as many things as were asked for, one and two apart."""
    right: dict[str, list[bool]] = {ONE: [], TWO: []}
    for prompt, reading in zip(asked, readings, strict=True):
        wanted = len(prompt.scene.things)
        right[ONE if wanted == 1 else TWO].append(reading.values["count"] == str(wanted))
    return {measure: _share(rights) for measure, rights in right.items() if rights}


# ---------------------------------------------------------------------- paraphrases


def paraphrases(exam: Exam) -> Question:
    """The hand-written sentences of paraphrases.py; what they name and rule out is known."""
    pairs = PARAPHRASES[: exam.most(CAP)]
    asked = [
        replace(
            _worded(scene_of(exam, pair), pair.prompt, *pair.named), seed=number
        )
        for number, pair in enumerate(pairs)
    ]  # fmt: skip

    def shares(chosen: list[Prompt], readings: list[Reading]) -> Shares:
        slips = [
            value in shown(reading, name)
            for pair, reading in zip(pairs, readings, strict=False)
            for name, value in pair.excluded
        ]
        right = {RIGHT: percentages(scores(chosen, readings, ordered=False))["mean"]}
        return right | ({RULED_OUT: _share(slips)} if slips else {})

    return Question(asked=asked, shares=shares)


def scene_of(exam: Exam, pair: Pair) -> Prompt:
    """A scene that shows what a pair names: for the floor.

    The split's first one of such a count, motion and camera, with the things' kinds and colours,
    the floor and the sky exchanged.
    """
    count = 2 if "kind1" in pair.named else 1

    def moves_so(scene: Scene) -> bool:
        if len(scene.things) != count or scene.camera != pair.named.get("camera", scene.camera):
            return False
        motions = [pair.named.get(f"motion{n}", t.motion) for n, t in enumerate(scene.things)]
        return motions == [thing.motion for thing in scene.things]

    spec = exam.studio.model.spec
    found = prompts(
        1, split=exam.split, level="short", width=spec.width, height=spec.height,
        num_frames=spec.num_frames, only=moves_so,
    )[0]  # fmt: skip
    things = tuple(
        replace(
            thing, kind=pair.named.get(f"kind{n}", thing.kind),
            color=pair.named.get(f"color{n}", thing.color),
        )
        for n, thing in enumerate(found.scene.things)
    )  # fmt: skip
    scene = replace(
        found.scene, things=things, floor=pair.named.get("floor", found.scene.floor),
        sky=pair.named.get("sky", found.scene.sky),
    )  # fmt: skip
    return replace(found, scene=scene)


QUESTIONS: dict[str, Callable[[Exam], Question]] = {
    "binding": binding, "negation": negation, "counts": counts, "paraphrases": paraphrases,
}  # fmt: skip
