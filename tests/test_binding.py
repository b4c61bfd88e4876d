"""The report card's rows on words: right of the truth, wrong of what is not, end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sora_cli.eval import binding
from sora_cli.eval.abilities import ABILITIES
from sora_cli.eval.clips import Studio
from sora_cli.eval.judge import Judge, Reading
from sora_cli.eval.paraphrases import PARAPHRASES
from sora_cli.eval.report import BARS
from sora_cli.eval.rows import Exam
from sora_cli.eval.truth import Prompt
from sora_cli.pipeline.expand import known_words
from sora_cli.train.captions import attributes
from sora_cli.train.prompts import draw_pair
from sora_cli.weights import store

TINY = store.locate("tiny")


def exam(work: Path, samples: int) -> Exam:
    """A sitting with a judge that has learned nothing; two steps of sampling at a quarter size."""
    torch.manual_seed(0)
    studio = Studio(
        model=replace(TINY, spec=replace(TINY.spec, width=80, height=48, num_frames=9)),
        device=torch.device("cpu"), dtype=torch.float32, work=work, deadline=float("inf"),
        say=lambda text: None, changes={"num_inference_steps": 2},
    )  # fmt: skip
    return Exam(studio=studio, judge=Judge().eval(), samples=samples, split="development")


def seen(prompt: Prompt, **changes: str) -> Reading:
    """A judge's reading of what the prompt's scene shows, with changes."""
    values = attributes(prompt.scene) | changes
    first = {name.replace("0", "1"): v for name, v in values.items() if name.endswith("0")}
    return Reading(first | values, torch.zeros(9, 2, 2))


def test_colours_are_kept_swapped_or_neither(tmp_path: Path) -> None:
    question = binding.binding(exam(tmp_path, 6))
    swapped, other, one = [], [], []
    for prompt in question.asked:
        left, right = prompt.scene.things
        assert f"{left.color} {left.kind}" in prompt.caption.text
        assert f"{right.color} {right.kind}" in prompt.caption.text
        swapped.append(seen(prompt, color0=right.color, color1=left.color))
        other.append(seen(prompt, color0=right.color))
        one.append(seen(prompt, count="1"))
    true = [seen(prompt) for prompt in question.asked]
    for readings, shares in (
        (true, (100, 0, 100, 100)), (swapped, (0, 100, 100, 100)), (other, (0, 0, 0, 100)),
        (one, (0, 0, 0, 0)),
    ):  # fmt: skip
        found = question.shares(question.asked, readings)
        assert found == dict(zip(binding.MEASURES["binding"], shares, strict=True))


def test_a_denied_colour_is_another_than_the_scene_has(tmp_path: Path) -> None:
    question = binding.negation(exam(tmp_path, 8))
    true = [seen(prompt) for prompt in question.asked]
    found = question.shares(question.asked, true)
    assert found == {binding.ASKED_FOR: 100, binding.DENIED: 0}
    said = [prompt.caption.text.split() for prompt in question.asked]
    denied = [
        seen(prompt, color0=words[words.index("not") + 1])
        for prompt, words in zip(question.asked, said, strict=True)
    ]
    found = question.shares(question.asked, denied)
    assert found == {binding.ASKED_FOR: 0, binding.DENIED: 100}
    assert question.shares(question.asked[:3], true[:3]) == {
        binding.ASKED_FOR: 100, binding.DENIED: 0,
    }, "also of as many as the time allowed"  # fmt: skip


def test_one_and_two_are_counted_apart(tmp_path: Path) -> None:
    question = binding.counts(exam(tmp_path, 8))
    assert {len(prompt.scene.things) for prompt in question.asked} == {1, 2}
    true = [seen(prompt) for prompt in question.asked]
    assert question.shares(question.asked, true) == {binding.ONE: 100, binding.TWO: 100}
    always_one = [seen(prompt, count="1") for prompt in question.asked]
    assert question.shares(question.asked, always_one) == {binding.ONE: 100, binding.TWO: 0}
    words = {word for prompt in question.asked for word in prompt.caption.text.split()}
    assert words & {"one"} and words & {"two"}
    assert binding.many("snowman") == "snowmen" and binding.many("car") == "cars"


def test_the_scenes_of_paraphrases_show_what_they_name(tmp_path: Path) -> None:
    """The floor is a render of what is asked: everything named but the size is in the scene."""
    question = binding.paraphrases(exam(tmp_path, len(PARAPHRASES)))
    for prompt, pair in zip(question.asked, PARAPHRASES, strict=False):
        shown = attributes(prompt.scene)
        wanted = {name: v for name, v in pair.named.items() if not name.startswith("size")}
        assert wanted.items() <= shown.items() and prompt.caption.text == pair.prompt
    true = [seen(prompt) for prompt in question.asked]
    found = question.shares(question.asked, true)
    assert found[binding.RIGHT] == 100 and found[binding.RULED_OUT] <= 20


def test_no_paraphrase_is_a_training_prompt() -> None:
    """They stay held out: none is drawn for training, nor is one a wording of the tables."""
    drawn = {draw_pair(0, index).prompt for index in range(400)}
    known = known_words(TINY.parts["language_model"])
    texts = {pair.prompt.lower() for pair in PARAPHRASES}
    assert not texts & drawn and not texts & known
    assert len(texts) == len(PARAPHRASES) > 50


@pytest.mark.parametrize("ability", ["binding", "paraphrases"])
def test_rows_are_made_both_ways_and_kept(tmp_path: Path, ability: str) -> None:
    """Every measure has its bar, a floor and its samples; a second sitting makes nothing."""
    sitting = exam(tmp_path, 2)
    rows = ABILITIES[ability](sitting)
    measures = {row.measure for row in rows}
    wanted = {measure for name, measure in BARS if name == ability}
    assert measures == wanted - {f"{way}: {binding.RULED_OUT}" for way in binding.WAYS}
    assert all(row.samples == 2 and row.floor is not None for row in rows)
    made = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(made) == 4
    late = replace(sitting, studio=replace(sitting.studio, deadline=0.0), kept={})
    assert ABILITIES[ability](late) == rows
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == made
