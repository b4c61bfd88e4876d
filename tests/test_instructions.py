"""What a language model is told, and what its answer is held against."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_cli.pipeline import instructions as rows
from sora_cli.pipeline.answers import length_in_words, objection, quoted, tidy, unquoted, words
from sora_cli.pipeline.instructions import Instructions, instructions_for
from sora_cli.weights import manifest

ROWS = {name: row for name, row in vars(rows).items() if isinstance(row, Instructions)}
REWRITING = [name for name, row in ROWS.items() if "{prompt}" in row.request]
LONG = "A red ball rolls over the grass to the left and then slowly comes to a stop by a wall."


# ---------------------------------------------------------------- what is told


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_fit_to_be_sent(name: str) -> None:
    row = ROWS[name]
    assert "  " not in row.system and row.system == row.system.strip()
    assert not re.search(r"[{}]|None", row.system)  # an f-string left open
    assert len(row.system.split()) < 400  # it is read before each answer
    assert row.max_new_tokens == 512


@pytest.mark.parametrize("name", REWRITING)
def test_no_row_lets_content_be_replaced(name: str) -> None:
    """Wan's own prompts change who is shown; these say in each case that nothing may be."""
    system = ROWS[name].system
    for rule in ("Everything in the prompt stays", "Replace, soften, generalise or leave out none",
                 "Add no person", "letter by letter", "in the language of the prompt"):  # fmt: skip
        assert rule in system, rule


def test_rows_for_pictures_speak_of_motion_alone() -> None:
    for name in ("I2V", "I2V_UNSEEN", "FLF2V", "I2V_EMPTY", "FLF2V_EMPTY"):
        assert "only what moves" in ROWS[name].system and "100 words" in ROWS[name].system
    for name in ("T2V", "STILL"):
        assert "at most four" in ROWS[name].system and "60 to 200 words" in ROWS[name].system


def test_the_row_follows_from_what_is_there() -> None:
    found = {
        (prompt, still, given_as, seen): instructions_for(
            prompt=prompt, still=still, given_as=given_as, seen=seen
        )
        for prompt in ("", "go")
        for still in (False, True)
        for given_as in (None, "first", "first-and-last", "clip")
        for seen in (False, True)
    }
    assert found["go", False, None, False] is found["go", False, None, True] is rows.T2V
    assert found["go", True, None, False] is rows.STILL
    assert found["go", False, "first", True] is rows.I2V
    assert found["go", False, "first-and-last", True] is rows.FLF2V
    assert found["go", False, "clip", True] is rows.CONTINUED
    assert found["", False, "first", True] is rows.I2V_EMPTY
    assert found["", False, "first-and-last", True] is rows.FLF2V_EMPTY
    assert found["", False, "clip", True] is rows.CAPTION_CLIP
    for (prompt, _, given_as, seen), row in found.items():
        if not prompt and not (given_as and seen):
            assert row is None  # nothing to write from
        elif row is not None and not (given_as and seen):
            assert "shown" not in row.system.split("\n")[0]  # a blind one is not told to look


def test_the_models_named_can_be_pulled() -> None:
    names = {row.name for row in manifest.rows()}
    assert {rows.TEXT_MODEL, rows.VISION_MODEL} <= names


# ---------------------------------------------------------------- tidying


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("A red ball.", "A red ball."),
        ("<think>Hm, a ball.</think>\n\nA red ball.", "A red ball."),
        ("<think></think>A red ball.", "A red ball."),
        ("Hm, a ball.</think>A red ball.", "A red ball."),  # the template opened the thought
        ("<think>Hm, I should", ""),
        ('"A red ball."', "A red ball."),
        ("“A red ball.”", "A red ball."),
        ("「赤いボール。」", "赤いボール。"),
        ("**Prompt:** A red ball.", "A red ball."),
        ('Rewritten prompt: "A red ball."', "A red ball."),
        ('"Caption: A red ball."', "A red ball."),
        ("提示词：红球。", "红球。"),
        ("A text: it says so.", "A text: it says so."),
        ('"OPEN" stands on a door, "SHUT" on another: "HA"', None),
        ('"A door says "OPEN" now."', 'A door says "OPEN" now.'),
        ("'90s cars at a dog's pace", None),
        ("", ""),
        ('"', '"'),
    ],
)
def test_tidy(answer: str, text: str | None) -> None:
    assert tidy(answer) == (answer if text is None else text)


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=200)
def test_tidying_any_text_leaves_no_thought_and_one_line(answer: str) -> None:
    text = tidy(answer)
    assert "<think>" not in text and "\n" not in text and text == text.strip()


@given(st.text(alphabet=string.ascii_letters + " ", min_size=3).map(str.strip).filter(len))
@settings(deadline=None, max_examples=50)
def test_plain_text_passes_unchanged(text: str) -> None:
    plain = " ".join(text.split())
    assert unquoted(plain) == plain and tidy(plain) == plain


# ---------------------------------------------------------------- measuring


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ('a sign that says "OPEN"', ["OPEN"]),
        ("a sign that says 'Be quiet!'", ["Be quiet"]),
        ("看板に「営業中」と『閉店』", ["営業中", "閉店"]),
        ("une enseigne «Chez Paul»", ["Chez Paul"]),
        ("a dog's tail and the cats' toys", []),
        ("rock 'n' roll", ["n"]),
        ('an empty "" quote', []),
        ("nothing", []),
    ],
)
def test_quoted(prompt: str, found: list[str]) -> None:
    assert quoted(prompt) == found


def test_length_is_about_the_same_in_any_script() -> None:
    same = [
        "A red ball rolls slowly over the green grass to the left",
        "一个红色的球在绿色的草地上慢慢地向左滚动",
        "赤いボールが緑の芝生の上をゆっくり左へ転がっていく",
        "Красный мяч медленно катится по зелёной траве влево",
    ]
    lengths = [length_in_words(text) for text in same]
    assert max(lengths) < 2.2 * min(lengths), lengths
    assert length_in_words("x" * 120_000) == 10_000  # no way around it: a "word" without an end
    assert length_in_words("") == 0
    assert words("naïve 🐶 e\u0301t\u0301e") == ["naïve", "🐶", "e\u0301t\u0301e"]


# ---------------------------------------------------------------- objections


@pytest.mark.parametrize(
    ("prompt", "answer", "clause"),
    [
        ("a red ball", LONG, None),
        ("a red ball", "", "no answer"),
        ("a red ball", " .,! 12", "no answer"),
        ("a red ball", "A red ball.", "too short"),
        ("a red ball", "I'm sorry, but " + LONG, "declined"),
        ("a red ball", "Sorry " + LONG, "declined"),
        ("ein Ball", "Es tut mir leid, " + LONG, "declined"),
        ("一个球", "抱歉,我无法生成这个内容," + "因为它不合适。" * 5, "declined"),
        ("she says sorry", "She says sorry. " + LONG, None),
        ('a ball marked "No. 5"', LONG, 'left out "No. 5"'),
        ('a ball marked "No. 5"', LONG + ' It is marked "NO. 5".', None),
        ("un ballon rouge", LONG, None),  # the same letters: not for us to judge
        ("красный мяч", LONG, "another language"),
        ("красный мяч", "Красный мяч катится по траве. " * 5, None),
        ("BMW在路上", "一辆宝马在路上行驶,画面平稳,天空晴朗,镜头跟随着汽车前进。", None),
        ("a red ball", "红色的球在草地上滚动,镜头不动。" * 2, "another language"),
        ("🐶", LONG, None),
        ("two women kiss", "A man and a woman kiss. " + LONG, "changed who"),
        ("two women kiss", "Two women kiss. She smiles. " + LONG, None),
        ("two grooms dance", "A groom and his bride dance. " + LONG, "changed who"),
        ("a boy and his mother", "A boy walks beside his mother. " + LONG, None),
        ("a dancer", "A dancer lifts her arm. " + LONG, None),
        ("两个男人跳舞", "一个男人和一个女人在跳舞。" * 3, "changed who"),
    ],
)  # fmt: skip
def test_objections(prompt: str, answer: str, clause: str | None) -> None:
    found = objection(prompt, answer, rows.T2V)
    assert (found is None) if clause is None else (clause in (found or "")), found


def test_a_taught_model_is_only_asked_for_words() -> None:
    assert objection("a red ball", "A ball.", None) is None
    assert objection("a red ball", "...", None) is not None


def test_motion_may_be_said_shortly() -> None:
    assert objection("go", "The camera slowly moves left.", rows.I2V) is None
    assert objection("", "The camera slowly moves left.", rows.I2V_EMPTY) is None
    assert objection("", "I cannot see it.", rows.CAPTION_PICTURE) is not None
