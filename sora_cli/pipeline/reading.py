"""Reading a prompt by a world's lexicon: what it names, what it rules out, what belongs to what.

The caption is the language model's; `checking.py` holds it against what is read here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sora_cli.pipeline.lexicon import SIDE, Lexicon, Meaning, forms
from sora_cli.pipeline.mending import (
    STOP,
    mend,
    once,
    split,
    stand_in,
    unstressed,
    wording_at,
)
from sora_cli.pipeline.steps import steps_of

MANY_WORDS = 60  # beyond these only what has a meaning here is put to the language model
BEHIND = 6  # words that a "not" reaches

_NOT = frozenset(
    ("not", "no", "without", "never", "non", "except", "instead", "rather", "nor", "t")
)
_ENDS_DENIAL = frozenset(("but", "just", "only", "it", "there", "with", "one"))
_ANY = frozenset(("color", "colour", "anything", "everything", "any"))
_JOINTS = _NOT | frozenset(
    ("and", "but", "with", "of", "than", "one", "two", "both", "the", "a", "an", "is", "are", "on",
     "in", "at", "to", "left", "right", "first", "second", "other", "each", "next")
)  # fmt: skip
_IS = frozenset(("is", "that", "which", "in", "colored", "coloured", "of", "color", "colour"))
_ALIKE = dict.fromkeys(("two", "2", "couple", "pair", "twin", "twins"), 2) | dict.fromkeys(
    ("three", "3", "trio", "triplets"), 3
)
_COUNT = ("no", "one", "two", "three")
_COMES = frozenset(("falls", "falling", "fell"))
_NAMELY = re.compile(r":|\s[-–—]+\s|—")
OF_THINGS = ("kind", "color", "size", "motion")
GAME = "game"  # the event whose steps are told
_ONE = frozenset(("a", "an", "one", "my"))
_HEADS = frozenset(("a", "an", "one", "my", "the", "something", "thing"))
_MORE = frozenset(
    ("something", "thing", "and", "with", "next", "beside", "while", "plus", "another", "second",
     "other")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Mention:
    """Words of a prompt that name an attribute's value.

    at, end: from which word to before which. denied: they stand behind a "not".
    """

    name: str
    value: str
    words: str
    at: int
    end: int
    denied: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A prompt as it was understood.

    text: what to put to the language model. retold: the same in the plainest words, without what
        is denied; empty where nothing was understood.
    mended: (typed, read) of misspelt words. stand_ins: (typed, shown) of things the world lacks.
    mentions: what is named, in order. bound: (thing's kind, (attribute, value)).
    kinds: of the things asked for, from left to right as far as the prompt says.
    things: how many there shall be, None where it is left open.
    ordered: `kinds` are in the order in which a caption must name them.
    alike: two of one kind are asked for, or three. both: the same is said of two things at once.
    events: what may happen, any of which is meant; nothing where nobody asks for any.
    steps: of a game, (way, how often).
    too_many: more things are asked for than the world shows.
    """

    text: str
    retold: str = ""
    mended: tuple[tuple[str, str], ...] = ()
    stand_ins: tuple[tuple[str, str], ...] = ()
    mentions: tuple[Mention, ...] = ()
    bound: tuple[tuple[str, Meaning], ...] = ()
    kinds: tuple[str, ...] = ()
    things: int | None = None
    ordered: bool = True
    alike: bool = False
    events: tuple[str, ...] = ()
    steps: tuple[tuple[str, int], ...] = ()
    both: bool = False
    too_many: bool = False

    @property
    def denies(self) -> bool:
        """Whether something is ruled out."""
        return any(mention.denied for mention in self.mentions)


def read_prompt(prompt: str, lexicon: Lexicon, known: frozenset[str]) -> Reading:
    """Read a cleaned prompt.

    known: words that need no mending, whatever they mean.
    """
    typed, gaps = split(prompt)
    lowered = [word.casefold() for word in typed]
    words = mend(lowered, lexicon, known)
    fixes = tuple(dict.fromkeys((w, m) for w, m in zip(lowered, words, strict=True) if w != m))
    mentions = _mentions(words, gaps, lexicon)
    if GAME in _events(mentions, lexicon):  # every word counts, and some are said twice
        text = _joined(words, gaps)
        own = tuple(m for m in mentions if m.name in ("event", "color", *lexicon.implied))
        return Reading(text=text, mended=fixes, mentions=own, events=(GAME,), steps=steps_of(text))
    words, gaps = unstressed(*once(words, gaps))
    words, gaps, stand_ins = stand_in(words, gaps, lexicon)
    mentions = _mentions(words, gaps, lexicon)
    if len(words) > MANY_WORDS:
        words, gaps = _meaningful(words, gaps, mentions)
        mentions = _mentions(words, gaps, lexicon)
    words, crowd = _few(words, mentions, lexicon)
    kinds, events = _kinds(words, gaps, mentions), _events(mentions, lexicon)
    reading = Reading(
        text=_joined(words, gaps), mended=fixes, stand_ins=stand_ins, mentions=mentions,
        bound=_bound(words, gaps, mentions), kinds=kinds, events=events,
        things=None if events else _things(words, gaps, kinds, mentions, lexicon),
        ordered=_ordered(words, kinds, events, mentions),
        alike=_alike(words, kinds, mentions) > 0, both="both" in words,
        too_many=crowd or len(kinds) > lexicon.most_things,
    )  # fmt: skip
    return replace(reading, retold="" if events else _retold(reading, lexicon))


def _joined(words: list[str], gaps: list[str]) -> str:
    rows = zip(words, gaps[1:], strict=True)
    return (gaps[0] + "".join(word + gap for word, gap in rows)).strip()


def _events(mentions: tuple[Mention, ...], lexicon: Lexicon) -> tuple[str, ...]:
    """What is asked to happen: by its own words, or by those for what only comes with it."""
    asserted = [m for m in mentions if not m.denied]
    named = [m.value if m.name == "event" else lexicon.implied.get(m.name, "") for m in asserted]
    return tuple(dict.fromkeys(event for event in named if event))


def _ordered(
    words: list[str], kinds: tuple[str, ...], events: tuple[str, ...],
    mentions: tuple[Mention, ...],
) -> bool:  # fmt: skip
    """Whether the order of the kinds is known: not in "hit by", nor of three with their sides."""
    sides = any(m.name == SIDE[0] for m in mentions)
    return not sides and "by" not in words if events else not sides or len(kinds) < 3


def _meaningful(
    words: list[str], gaps: list[str], mentions: tuple[Mention, ...]
) -> tuple[list[str], list[str]]:
    """Of a long prompt the words that mean something here, and those that join them."""
    meant = {i for mention in mentions for i in range(mention.at, mention.end)}
    near = {i + step for i in meant for step in (-2, -1, 1, 2)}
    keep = [i for i, w in enumerate(words) if i in meant or (i in near and w in _JOINTS)]
    keep = keep[:MANY_WORDS]
    marks = ["".join(STOP.findall(gaps[i])[:1]) + " " for i in keep]
    return [words[i] for i in keep], [*marks, ""]


# ---------------------------------------------------------------------- what is named


def _mentions(words: list[str], gaps: list[str], lexicon: Lexicon) -> tuple[Mention, ...]:
    found: list[Mention] = []
    inside: set[int] = set()
    at = 0
    while at < len(words):
        count = wording_at(words, at, lexicon)
        if words[at] in _NOT and wording_at(words, at + 1, lexicon) > count - 1:
            count = 0  # "not moving left" denies "moving left"
        if words[at + count - 1] in ("left", "right") and words[at + count :][:1] == ["of"]:
            count = 0  # "rolling to the right of" says where
        meaning = _meaning(words, at, count, lexicon) if count else None
        if words[at] in _COMES and found and found[-1].name == "sky" and found[-1].end == at:
            count, meaning = 0, None  # "as night falls"
        end = at + max(count, 1)
        stops = end == len(words) or bool(STOP.search(gaps[end])) or words[end] == "and"
        if (
            not count
            and words[at] in ("left", "right")
            and stops
            and found[-1:]
            and (found[-1].name == "kind" and found[-1].end == at)
        ):
            count, meaning = 1, SIDE  # "red ball left, blue cube right"
        if meaning is not None and count:
            text = " ".join(words[at:end])
            whither = _whither(words, end) if words[end - 1] in ("off", "away") else ()
            if whither and whither in lexicon.phrases:  # "drives off to the left"
                meaning, text = lexicon.phrases[whither], " ".join(whither)
                end += 3 if words[end] == "to" else 1
            inside |= set(range(at, end))
            found.append(Mention(name=meaning[0], value=meaning[1], words=text, at=at, end=end))
        at = end
    denied = _denied(words, gaps, found, inside)
    return tuple(replace(m, denied=m.at in denied) for m in found if m.name != SIDE[0]) + tuple(
        m for m in found if m.name == SIDE[0]
    )


def _whither(words: list[str], at: int) -> tuple[str, ...]:
    """ "left" or "to the left" from `at` on, as a whole wording; nothing where it says of what."""
    rest = words[at + 2 :] if words[at : at + 2] == ["to", "the"] else words[at:]
    if rest[:1] not in (["left"], ["right"]) or rest[1:2] == ["of"]:
        return ()
    return ("moves", "to", "the", rest[0])


def _meaning(words: list[str], at: int, count: int, lexicon: Lexicon) -> Meaning | None:
    exact = lexicon.phrases.get(tuple(words[at : at + count]))
    if exact is not None:
        return exact
    found = ((form,) for form in forms(words[at]))
    return next((lexicon.phrases[form] for form in found if form in lexicon.phrases), None)


def _denied(
    words: list[str], gaps: list[str], mentions: list[Mention], inside: set[int]
) -> set[int]:
    """Where the mentions stand that a "not" reaches."""
    starts = {mention.at: mention for mention in mentions}
    denied: set[int] = set()
    for at, word in enumerate(words):
        but = word == "but" and at > 0 and words[at - 1] in _ANY
        if at in inside or not (but or word in _NOT):
            continue
        for place in range(at + 1, min(at + 1 + BEHIND, len(words))):
            # "not red, but blue"; "instead of a cube, a ball"; "no clouds and a ball".
            after = starts.get(place + 1)
            joined = words[place] == "and" and (after is None or after.name in OF_THINGS)
            if STOP.search(gaps[place]) or words[place] in _ENDS_DENIAL or joined:
                break
            if mention := starts.get(place):
                denied.add(place)
                if mention.name == "kind":
                    break
    return denied


def _bound(
    words: list[str], gaps: list[str], mentions: tuple[Mention, ...]
) -> tuple[tuple[str, Meaning], ...]:  # fmt: skip
    """Which colours and sizes stand with which thing: "a small red ball", "the ball is red"."""
    asserted = [m for m in mentions if not m.denied and m.name != SIDE[0]]
    kinds = [m for m in asserted if m.name == "kind"]
    rows, used = [], set()
    for kind in kinds:
        at, reach = kind.at, 1
        for mention in reversed([m for m in asserted if m.end <= kind.at]):
            gap = words[mention.end : at]
            parted = len(gap) > reach or set(gap) & (_JOINTS | _MORE)
            stopped = any(STOP.search(gaps[i]) for i in range(mention.end, at + 1))
            if mention.name not in ("color", "size") or parted or stopped:
                break
            at = mention.at
            rows.append((kind.value, (mention.name, mention.value)))
            used.add(mention.at)
        for mention in asserted:
            between = words[kind.end : mention.at]
            joined = between and len(between) <= 3 and set(between) <= _IS
            if mention.at > kind.at and mention.name == "color" and joined:
                rows.append((kind.value, (mention.name, mention.value)))
                used.add(mention.at)
    spare = [m for m in asserted if m.name == "color" and m.at not in used]
    names = list(dict.fromkeys(kind.value for kind in kinds))
    bound_kinds = {kind for kind, (name, _) in rows if name == "color"}
    if len(spare) == len(names) == 2 and not bound_kinds:  # "a ball and a cube, red and blue"
        rows += [(k, ("color", m.value)) for k, m in zip(names, spare, strict=True)]
    return tuple(dict.fromkeys(rows))


def _kinds(words: list[str], gaps: list[str], mentions: tuple[Mention, ...]) -> tuple[str, ...]:
    """The kinds of things asked for, the left one first where the prompt says which is where."""
    mentioned = [m for m in mentions if m.name == "kind"]
    kinds = list(dict.fromkeys(m.value for m in mentioned if not m.denied))
    if not kinds and mentioned:  # "not a red ball but a blue one": a ball all the same
        colors = [m for m in mentions if m.name == "color"]
        if any(m.denied for m in colors) and any(not m.denied for m in colors):
            kinds = [mentioned[0].value]
    if len(kinds) != 2:
        return tuple(kinds)
    for side in (m for m in mentions if m.name == SIDE[0]):
        left = "left" in side.words
        if side.words.endswith("of"):  # "a ball to the right of a cube"
            return tuple(kinds if left else kinds[::-1])
        before = [m for m in mentioned if m.end <= side.at and not m.denied]
        after = [m for m in mentioned if m.at >= side.end and not m.denied]
        leads = side.at == 0 or bool(STOP.search(gaps[side.at])) or not before
        near = after[:1] if leads else before[-1:]
        if near and side.words != "in the middle":
            first = near[0].value == kinds[0]
            return tuple(kinds if first == left else kinds[::-1])
    return tuple(kinds)


def _things(
    words: list[str], gaps: list[str], kinds: tuple[str, ...], mentions: tuple[Mention, ...],
    lexicon: Lexicon,
) -> int | None:  # fmt: skip
    """How many things there shall be; None where a word may mean another that nobody knows."""
    inside = {i for m in mentions for i in range(m.at, m.end)}
    if len(kinds) >= 2:
        more = len(kinds) < lexicon.most_things and _strange(words, inside, mentions)
        return None if more else min(len(kinds), lexicon.most_things)
    if alike := _alike(words, kinds, mentions):
        return alike
    if kinds and "both" in words:
        return 2
    plural = any(m.name == "kind" and m.words != m.value and m.words.endswith("s")
                 for m in mentions)  # fmt: skip
    rest = [i for i in range(len(words)) if i not in _announced(words, gaps, mentions)]
    nouns = sum(words[i] in _ONE and i not in inside for i in rest)
    others = plural or nouns > 1 or _MORE & {words[i] for i in rest}
    return 1 if kinds and not others and all(m.name != SIDE[0] for m in mentions) else None


def _strange(words: list[str], inside: set[int], mentions: tuple[Mention, ...]) -> bool:
    """Whether there seems to be a thing that nobody knows: an article and no known thing soon."""
    kinds = {m.at for m in mentions if m.name == "kind"}
    heads = [i for i, word in enumerate(words) if word in _HEADS and i not in inside]
    for at, then in zip(heads, [*heads[1:], len(words)], strict=False):
        if words[at + 2 : at + 3] != ["of"] and not kinds & set(range(at, min(then, at + 5))):
            return True
    return False


def _announced(words: list[str], gaps: list[str], mentions: tuple[Mention, ...]) -> set[int]:
    """The words from "a thing" to the last mark before its name: "something red: a car"."""
    found: set[int] = set()
    for at in (i for i, word in enumerate(words) if word in ("something", "thing")):
        named = next((m.at for m in mentions if m.name == "kind" and m.at > at), at)
        marks = [i for i in range(at + 1, named + 1) if _NAMELY.search(gaps[i])]
        found |= set(range(max(at - 1, 0), marks[-1])) if marks else set()
    return found


def _alike(words: list[str], kinds: tuple[str, ...], mentions: tuple[Mention, ...]) -> int:
    """How many of one kind are asked for: "two red balls"; 0 where not so many."""
    if len(kinds) != 1:
        return 0
    return max((_ALIKE.get(words[at], 0) for at in _before_things(mentions)), default=0)


def _few(
    words: list[str], mentions: tuple[Mention, ...], lexicon: Lexicon
) -> tuple[list[str], bool]:  # fmt: skip
    """As many as the world shows of what there shall be more of; whether there shall be more."""
    crowd = {at for at in _before_things(mentions) if words[at] in lexicon.many}
    most = _COUNT[lexicon.most_things]
    return [most if at in crowd else word for at, word in enumerate(words)], bool(crowd)


def _before_things(mentions: tuple[Mention, ...]) -> set[int]:
    """Where the words stand that may say how many: the three before a thing."""
    things = [m.at for m in mentions if m.name == "kind" and not m.denied]
    near = {place for at in things for place in range(max(at - 3, 0), at)}
    return near - {i for m in mentions for i in range(m.at, m.end)}  # not "two bites of a cube"


def _retold(reading: Reading, lexicon: Lexicon) -> str:
    """What is asked for in the plainest words: "small red ball bouncing, on the snow"."""
    asserted = [m for m in reading.mentions if not m.denied]
    heads = {m.value: m.at for m in reversed(asserted) if m.name == "kind"}
    motions = [m for m in asserted if m.name == "motion"]
    clauses: list[str] = []
    for kind in reading.kinds[: lexicon.most_things]:
        adjectives = [value for name in ("size", "color") for k, (n, value) in reading.bound
                      if k == kind and n == name][:2]  # fmt: skip
        loose = [m.value for m in asserted if m.name in ("color", "size")]
        if len(reading.kinds) == 1:
            adjectives = list(dict.fromkeys([*adjectives, *loose]))
        later = [at for at in heads.values() if at > heads.get(kind, 0)]
        own = [m.words for m in motions if len(reading.kinds) == 1 or not later
               or m.at < min(later)]  # fmt: skip
        own = [w for w in own if len(reading.kinds) == 1 or w not in " ".join(clauses)][:1]
        clauses.append(" ".join([*adjectives, kind, *own]))
    if not clauses:
        loose = [m.words for m in asserted if m.name in ("color", "size", "motion")]
        clauses = [" ".join(loose)] if loose else []
    if reading.alike and len(clauses) == 1:
        clauses[0] = f"{_COUNT[reading.things or 2]} {clauses[0]}"
    places = [m.words for m in asserted if m.name not in (*OF_THINGS, SIDE[0])]
    return ", ".join([part for part in (" and ".join(clauses), *dict.fromkeys(places)) if part])
