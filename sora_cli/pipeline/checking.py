"""A caption held against what its prompt names and rules out, attribute by attribute."""

from __future__ import annotations

from sora_cli.pipeline.lexicon import Lexicon, Meaning
from sora_cli.pipeline.reading import Mention, Reading

Thing = dict[str, str]  # attribute → value: kind, color, size, motion
_PLACES: tuple[str, ...] = ("floor", "sky", "camera")
MALFORMED = "a caption of this world"


def faults(
    caption: str, reading: Reading, lexicon: Lexicon, *, still: bool = False
) -> list[str]:  # fmt: skip
    """What the caption does not keep, in the prompt's words; empty where it keeps everything.

    still: the caption has to be of one frame. One that is none, and one that the world could not
    have, has a single fault, MALFORMED.
    """
    match = lexicon.pattern.fullmatch(" ".join(caption.casefold().split()))
    if match is None or (match["picture"] is not None) != still:
        return [MALFORMED]
    groups = {name: word for name, word in match.groupdict().items() if word is not None}
    things: list[Thing] = [
        {name: lexicon.values[name][groups[f"{name}{number}"]]
         for name in ("kind", "color", "size", "motion")}
        for number in (0, 1) if f"kind{number}" in groups
    ]  # fmt: skip
    places = [name for name in _PLACES if name in groups]
    scene = {name: lexicon.values[name][groups[name]] for name in places}
    asserted = [m for m in reading.mentions if not m.denied and not (still and _moves(m))]
    found = _about_things(things, reading, lexicon.most_things)
    found += _unkept(asserted, things, scene, reading)
    return found + _allowed(reading, things, scene, asserted)


def _moves(mention: Mention) -> bool:
    return mention.name in ("motion", "camera")


def _about_things(things: list[Thing], reading: Reading, most: int) -> list[str]:
    """Which things, how many, and in which order."""
    kinds = [thing["kind"] for thing in things]
    found = []
    if len(reading.kinds) > most:
        found += [f"no {kind}" for kind in kinds if kind not in reading.kinds]
    else:
        found += [kind for kind in reading.kinds if kind not in kinds]
        if len(reading.kinds) == 2 and not found and kinds != list(reading.kinds):
            found.append("left and right")
    if reading.things is not None and len(things) != reading.things:
        found.append("one" if reading.things == 1 else "two")
    if reading.alike and len(set(kinds)) != 1:
        found.append(f"two of {reading.kinds[0]}")
    for kind, (name, value) in reading.bound:
        if kind in kinds and not any(t["kind"] == kind and t[name] == value for t in things):
            found.append(f"{value} {kind}")
    return found


def _unkept(
    asserted: list[Mention], things: list[Thing], scene: dict[str, str], reading: Reading
) -> list[str]:
    """Attributes named and not kept, whatever thing they belong to."""
    bound = {meaning for _, meaning in reading.bound}
    motions = sum(mention.name == "motion" for mention in asserted)
    found = []
    for mention in asserted:
        if mention.name in ("color", "size", "motion"):
            meaning: Meaning = (mention.name, mention.value)
            right = [thing[mention.name] == mention.value for thing in things]
            every = reading.both and mention.name == "motion" and motions == 1
            if meaning not in bound and not (all(right) if every else any(right)):
                found.append(mention.words)
        elif mention.name in ("floor", "sky", "camera"):
            wished = {m.value for m in asserted if m.name == mention.name}
            if scene.get(mention.name, mention.value) not in wished:
                found.append(mention.words)
    return found


def _allowed(
    reading: Reading, things: list[Thing], scene: dict[str, str], asserted: list[Mention]
) -> list[str]:
    """What is ruled out and shown all the same."""
    wished = {(m.name, m.value) for m in asserted}
    denied = [m for m in reading.mentions if m.denied and (m.name, m.value) not in wished]
    found = []
    for number, mention in enumerate(denied):
        follower = denied[number + 1] if number + 1 < len(denied) else None
        if mention.name == "kind":
            before = denied[number - 1] if number else None
            paired = before is not None and before.name == "color" and before.end == mention.at
            if not paired and any(t["kind"] == mention.value for t in things):
                found.append(f"no {mention.words}")
        elif mention.name in ("floor", "sky", "camera"):
            if scene.get(mention.name) == mention.value:
                found.append(f"no {mention.words}")
        else:
            other = follower if follower and follower.at == mention.end else None
            kind = other.value if other and other.name == "kind" else None
            shown = [t for t in things if kind in (None, t["kind"])]
            if any(thing[mention.name] == mention.value for thing in shown):
                found.append(f"not {mention.words}")
    return found
