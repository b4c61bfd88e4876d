"""Text cleaning against what ftfy 6.3.1 and Wan's own cleaning make of the same strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_cli.models.specs import FAMILIES, WAN_NEGATIVE_PROMPT
from sora_cli.pipeline.prompt import clean_text

# Left: as typed or pasted. Right: made with ftfy.fix_text, html.unescape twice, strip and the
# collapse of whitespace, in an environment that has ftfy.
TABLE = [
    ("a red ball", "a red ball"),
    ("  a  red\tball \n bounces\r\n", "a red ball bounces"),
    ("一只猫，一条狗。", "一只猫,一条狗。"),
    ("！？：；（）［］", "!?:;()[]"),
    ("\uff2c\uff2f\uff35\uff24\u3000\uff2e\uff2f\uff29\uff33\uff25\uff33", "LOUD NOISES"),
    ("１６：９", "16:9"),
    ("“curly” ‘quotes’ it’s", "\"curly\" 'quotes' it's"),
    ("„low“ ‚low‘", "\"low\" 'low'"),
    ("«guillemets» stay", "«guillemets» stay"),
    ("ﬁre ﬂies oﬃce ﬀ ﬄ ﬆ", "fire flies office ff ffl st"),
    ("Ĳssel ŉ Ǆ ǆ", "IJssel 'n DŽ dž"),
    ("æ and œ stay", "æ and œ stay"),
    ("ﾊﾞﾅﾅ", "バナナ"),
    ("ｶﾀｶﾅ ﾃﾞｽ", "カタカナ デス"),
    ("￥100 ￦5 ￠", "¥100 ₩5 ¢"),
    ("cafe\u0301", "café"),
    ("a… b – c — d", "a… b – c — d"),
    ("1 < 2 &amp; 3", "1 < 2 & 3"),
    ("fish &amp; chips", "fish & chips"),
    ("&amp;amp; &lt;b&gt;", "& <b>"),
    ("&lt;b&gt; &ldquo;x&rdquo;", '<b> "x"'),
    ("<b> &ldquo;x&rdquo;", "<b> “x”"),
    ("P&EACUTE;REZ &nTILDE;", "PÉREZ &nTILDE;"),
    ("&#8220;x&#8221; &#x2019;", '"x" \''),
    ("AT&T &copy &hearts;", "AT&T © ♥"),
    ("&hellip;", "…"),
    ("zero\u200bwidth\u200djoiner", "zero\u200bwidth\u200djoiner"),
    ("\ufeffbom", "bom"),
    ("\x1b[31mred\x1b[0m", "red"),
    ("bell\x07 nul\x00 del\x7f", "bell nul del"),
    ("\u2028line\u2029para", "line para"),
    ("no\xa0break", "no break"),
    ("smart \x93quotes\x94 \x85", 'smart "quotes" …'),
    ("\ud83d\udca9 pair", "💩 pair"),
    ("\udca9 lone", "\ufffd lone"),
    (
        "\U0001f469\u200d\U0001f680 emoji \U0001f3f4\u200d\u2620\ufe0f",
        "\U0001f469\u200d\U0001f680 emoji \U0001f3f4\u200d\u2620\ufe0f",
    ),
    ("", ""),
    ("   \u3000 &nbsp; ", ""),
    ("10³ µm ½ ™", "10³ µm ½ ™"),
]

# wan/configs/shared_config.py of Wan2.1 and Wan2.2, as published.
PUBLISHED_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，"
    "毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


@pytest.mark.parametrize(("text", "cleaned"), TABLE)
def test_cleaning_is_ftfys(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


def test_the_negative_prompt_is_the_published_one_cleaned() -> None:
    assert clean_text(PUBLISHED_NEGATIVE_PROMPT) == WAN_NEGATIVE_PROMPT
    assert clean_text(WAN_NEGATIVE_PROMPT) == WAN_NEGATIVE_PROMPT
    assert "，" not in WAN_NEGATIVE_PROMPT
    assert FAMILIES["wan2.1-t2v"].negative_prompt == WAN_NEGATIVE_PROMPT


@given(st.text())
def test_cleaned_text_is_one_line_without_edges(text: str) -> None:
    cleaned = clean_text(text)
    assert cleaned == cleaned.strip()
    assert not any(character in cleaned for character in "\n\r\t\u2028\ufeff\x00，“’")
    cleaned.encode("utf-8")  # no surrogate is left to break the tokenizer


@given(st.text(alphabet=st.characters(exclude_characters="&")))
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean_text(clean_text(text)) == clean_text(text)


def test_a_long_prompt_is_cleaned_whole() -> None:
    assert clean_text("ball " * 10_000) == " ".join(["ball"] * 10_000)
