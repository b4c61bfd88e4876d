"""What a language model answered: tidied, and held against what it was asked.

A video of somebody else's idea is worse than one of a short prompt. So an answer stands only where
it says no less than the prompt, in its language, about the same people.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from sora_cli.pipeline.instructions import MEN_OR_WOMEN, MEN_OR_WOMEN_HAN, REFUSALS, Instructions
from sora_cli.pipeline.prompt import clean_text

LETTERS_PER_WORD = 12  # in a text without spaces that is in no script known to have none
HAN_PER_WORD = 1.6  # Chinese and Japanese characters that say as much as an English word

_QUOTE_PAIRS = {'"': '"', "'": "'", "«": "»", "「": "」", "『": "』", "`": "`"}
_QUOTED = re.compile(r""""([^"]+)"|«([^»]+)»|「([^」]+)」|『([^』]+)』|(?<!\w)'([^']+)'(?!\w)""")
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_LABEL = re.compile(
    r"^(?:(?:re-?written|expanded|new|final|video|image|motion)\s+){0,2}"
    r"(?:prompt|caption|description|text|提示词|描述)\s*:\s*",
    re.IGNORECASE,
)
# Japanese is written in three scripts at once.
_TOGETHER = dict.fromkeys(
    ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC"), "HAN"
)


def tidy(answer: str) -> str:
    """The text alone, cleaned as a prompt is: no thoughts, label, emphasis or quotes around it."""
    answer = _THOUGHT.sub(" ", answer)
    # A template may have opened the thought; a thought that was cut off has no answer after it.
    answer = answer.rpartition("</think>")[2].partition("<think>")[0]
    text = clean_text(answer.replace("**", "").replace("```", " "))
    return unquoted(_LABEL.sub("", unquoted(text)))


def unquoted(text: str) -> str:
    """A text without the quotation marks around the whole of it; those within stay."""
    end = _QUOTE_PAIRS.get(text[:1])
    inside = text[1:-1].strip()
    if len(text) < 3 or end is None or not text.endswith(end):
        return text
    # In `"a" and "b"` the second mark closes: a letter stands before it.
    second = inside.find(end)
    closes = second > 0 and not inside[second - 1].isspace()
    return text if closes else inside


def objection(prompt: str, answer: str, instructions: Instructions | None) -> str | None:
    """Why a tidied answer cannot stand for the prompt, as a clause; None where it can.

    Args:
        prompt: the cleaned prompt, empty where there was none.
        instructions: what was asked; None of a model that was taught the one thing it does.
    """
    if not any(character.isalpha() for character in answer):
        return "the language model had no answer"
    if instructions is None:
        return None
    if _declines(answer):
        return "the language model declined"
    if length_in_words(answer) < instructions.fewest_words:
        return "the language model's answer was too short"
    if not prompt:
        return None
    said = answer.casefold()
    for text in quoted(prompt):
        if text.casefold() not in said:
            return f'the language model left out "{text}"'
    asked = _scripts(prompt)
    if asked and _scripts(answer).most_common(1)[0][0] not in asked:
        return "the language model answered in another language"
    if _changes_people(prompt, answer):
        return "the language model changed who is shown"
    return None


def quoted(prompt: str) -> list[str]:
    """What stands in quotation marks within a prompt: text to be read in the video."""
    spans = (next(filter(None, match.groups())) for match in _QUOTED.finditer(prompt))
    return [text for span in spans if (text := span.strip(" .,!?;:"))]


def words(text: str) -> list[str]:
    """Runs of letters with their combining marks; an emoji is a word of its own."""
    found, run = [], ""
    for character in text:
        kind = unicodedata.category(character)
        if kind[0] == "L" or (kind[0] == "M" and run):
            run += character
            continue
        if run:
            found.append(run)
        run = ""
        if kind == "So" and ord(character) >= 0x2600:
            found.append(character)
    return [*found, run] if run else found


def length_in_words(text: str) -> float:
    """How much a text says, in words; scripts without spaces by their characters."""
    return sum(max(1.0, _weight(word)) for word in words(text))


def _weight(word: str) -> float:
    per_word = HAN_PER_WORD if _script(word[0]) == "HAN" else LETTERS_PER_WORD
    return len(word) / per_word


def _declines(answer: str) -> bool:
    return answer.casefold().lstrip(" \"'*-").startswith(REFUSALS)


def _scripts(text: str) -> Counter[str]:
    return Counter(_script(character) for character in text if character.isalpha())


def _script(character: str) -> str:
    name = unicodedata.name(character, "").split(" ")[0]
    return _TOGETHER.get(name, name)


def _changes_people(prompt: str, answer: str) -> bool:
    """Whether one sex alone is named in the prompt, and the other in the answer."""
    asked, told = ({word.casefold() for word in words(text)} for text in (prompt, answer))
    rows = [frozenset(row.split()) for row in MEN_OR_WOMEN]
    for one, other in (rows, rows[::-1]):
        if asked & one and not asked & other and told & other:
            return True
    man, woman = MEN_OR_WOMEN_HAN
    return any(
        one in prompt and other not in prompt and other in answer
        for one, other in ((man, woman), (woman, man))
    )
