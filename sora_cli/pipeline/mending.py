"""Mending a prompt's words before a language model of one world reads them.

Misspelt words become what was meant, things that the world lacks the nearest that it has, and what
is said again and again is said once. Words stand between gaps: `gaps[i]` is what was written before
word i, the last one what follows the last word.
"""

from __future__ import annotations

import re

from sora_cli.pipeline.lexicon import Lexicon, Meaning, bases, forms, one_slip

MOST_WORDS = 1000  # of a prompt that are read
LONGEST_REPEAT = 24  # words of a phrase that is said again and again

_WORD = re.compile(r"[^\W\d_]+|\d+")
STOP = re.compile(r"[,.;:!?/()]")  # ends what belongs together
_WISHES = frozenset(
    ("wants", "wanted", "asks", "asked", "likes", "said", "says", "thinks", "needs")
)
_PLACED = frozenset(
    (
        "on",
        "in",
        "at",
        "near",
        "inside",
        "under",
        "over",
        "by",
        "onto",
        "into",
        "across",
        "behind",
        "through",
        "along",
        "above",
        "against",
    )
)
_STRESS = frozenset(("right", "straight", "directly"))  # "coming right at us"
_AT = frozenset(("at", "toward", "towards"))
_ARTICLES = frozenset(("a", "an", "the", "my", "our", "his", "her", "their", "some", "this"))


def split(prompt: str) -> tuple[list[str], list[str]]:
    """The words, and what stands before, between and after them."""
    matches = list(_WORD.finditer(prompt))[:MOST_WORDS]
    starts = [m.start() for m in matches]
    ends = [0, *(m.end() for m in matches)]
    gaps = [prompt[a:b] for a, b in zip(ends, starts, strict=False)]
    tail = prompt[ends[-1] :] if len(matches) < MOST_WORDS else ""
    return [m.group() for m in matches], [*gaps, tail]


def mend(words: list[str], lexicon: Lexicon, known: frozenset[str]) -> list[str]:
    """Misspelt words as they were meant; all others as they are."""
    right = known | lexicon.real | lexicon.many
    right |= {word[:-1] for word in right if word.endswith("s")}  # gets → get
    right |= {word[:-3] for word in right if word.endswith("ing")}
    return [
        word if bases(word) & right or not word.isascii() or after == "t"  # "don't"
        else _meant(word, lexicon)
        for word, after in zip(words, [*words[1:], ""], strict=False)
    ]  # fmt: skip


def _meant(word: str, lexicon: Lexicon) -> str:
    if not (3 <= len(word) <= 20 and word.isalpha()):
        return word
    near = [target for target in lexicon.targets if one_slip(word, target)]
    # Of several the one with the same letters in another order, then of the same ending.
    near.sort(key=lambda t: (sorted(t) != sorted(word), t[-1] != word[-1], len(t) < len(word), t))
    return near[0] if near else word


def once(words: list[str], gaps: list[str]) -> tuple[list[str], list[str]]:
    """What is said again and again at once, said once: "a red ball a red ball".

    Not one word or two on both sides of a mark: "toward the camera, the camera pans".
    """
    kept = list(range(len(words)))
    for length in range(1, min(LONGEST_REPEAT, len(words) // 2) + 1):
        out: list[int] = []
        for index in kept:
            out.append(index)
            tail = [words[i] for i in out[-2 * length :]]
            parted = length <= 2 and len(out) >= length and STOP.search(gaps[out[-length]])
            if len(tail) == 2 * length and tail[:length] == tail[length:] and not parted:
                del out[-length:]
        kept = out
    return [words[i] for i in kept], [*(gaps[i] for i in kept), gaps[-1]]


def unstressed(words: list[str], gaps: list[str]) -> tuple[list[str], list[str]]:
    """Without words that only stress where something goes: "coming right at us"."""
    after = [*words[1:], ""]
    kept = [i for i, w in enumerate(words) if not (w in _STRESS and after[i] in _AT)]
    return [words[i] for i in kept], [*(gaps[i] for i in kept), gaps[-1]]


def stand_in(
    words: list[str], gaps: list[str], lexicon: Lexicon
) -> tuple[list[str], list[str], tuple[tuple[str, str], ...]]:
    """The nearest that the world has, in the place of what it lacks, and what stands for what."""
    out: list[str] = []
    between = [gaps[0]]
    table: dict[str, str] = {}
    at = 0
    while at < len(words):
        count, meaning = wording_at(words, at, lexicon), None
        if not count:
            count, meaning = _nearest(words, at, lexicon)
        pieces = words[at : at + count]
        follow = gaps[at + 1 : at + count]
        if meaning is not None and meaning in lexicon.shown:
            table[" ".join(pieces)] = lexicon.shown[meaning]
            pieces = lexicon.shown[meaning].split()
            follow = [" "] * (len(pieces) - 1)
        at += count
        out += pieces
        between += [*follow, gaps[at]]
    return out, between, tuple(table.items())


def _nearest(words: list[str], at: int, lexicon: Lexicon) -> tuple[int, Meaning | None]:
    """How many words from `at` on name one strange thing, and what comes closest to it.

    Behind "on the" stands a place, if the word can be one.
    """
    for count in (3, 2):
        piece = tuple(words[at : at + count])
        if len(piece) == count and (meaning := lexicon.nearest.get(piece)):
            return count, meaning
    spelt = forms(words[at])
    before = at - 1
    while before >= 0 and words[before] in _ARTICLES:
        before -= 1
    if before >= 0 and words[before] in _PLACED:
        for form in spelt:
            if form in lexicon.places:
                return 1, lexicon.places[form]
    if not _is_shown(words, at, before, lexicon):
        return 1, None
    near = (lexicon.nearest[(form,)] for form in spelt if (form,) in lexicon.nearest)
    return 1, next(near, None)


def _is_shown(words: list[str], at: int, before: int, lexicon: Lexicon) -> bool:
    """Whether a strange thing is one to be shown: not "my kid wants", "eating a pizza".

    before: the place of the word before its article.
    """
    verb = words[before] if 0 <= before < at - 1 else ""
    with_it = verb == "with" or (verb.endswith("ing") and (verb,) not in lexicon.phrases)
    return not with_it and not _WISHES & set(words[at + 1 : at + 2])


def wording_at(words: list[str], at: int, lexicon: Lexicon) -> int:
    """How many words from `at` on are one of the lexicon's wordings; 0 for none."""
    if at >= len(words):
        return 0
    for count in range(min(lexicon.longest, len(words) - at), 0, -1):
        if tuple(words[at : at + count]) in lexicon.phrases:
            return count
    return int(any((form,) in lexicon.phrases for form in forms(words[at])))
