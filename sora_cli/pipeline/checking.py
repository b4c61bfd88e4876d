"""A caption held against what its prompt names and rules out, attribute by attribute."""

from __future__ import annotations

from sora_cli.pipeline.lexicon import SIDE, Lexicon, Meaning
from sora_cli.pipeline.reading import OF_THINGS, Mention, Reading
from sora_cli.pipeline.steps import spelt, steps_of

Thing = dict[str, str]  # attribute → value: kind, color, size, motion
MALFORMED = "a caption of this world"
MOST = 3  # things that a pattern may have groups for
_UNTOLD = ("still", "circles")  # motions that captions of an event need not tell
NUMBERS = ("none", "one", "two", "three")


def told(caption: str, lexicon: Lexicon) -> dict[str, str] | None:
    """What a caption of the world says, by attribute: kind0, color0, floor, event, actions …

    None where it is none. `picture` is there in captions of one frame.
    """
    text = " ".join(caption.casefold().split())
    for event, pattern in lexicon.patterns:
        if match := pattern.fullmatch(text):
            said = {name: word for name, word in match.groupdict().items() if word is not None}
            found = {name: _value(name, word, lexicon) for name, word in said.items()}
            things = sum(name.startswith("kind") for name in found)
            found |= {"count": str(things)} if things else {}
            return found | ({"event": event} if event else {})
    return None


def _value(name: str, word: str, lexicon: Lexicon) -> str:
    if name == "actions":
        return " ".join(way for way, count in steps_of(word) for _ in range(count))
    return lexicon.values.get(name.rstrip("012"), {}).get(word, word)


def with_steps(caption: str, reading: Reading, lexicon: Lexicon) -> str:
    """A game's caption with the very steps that the prompt tells; any other as it is.

    A small language model copies words well and their number badly; here nothing need be guessed.
    """
    text = " ".join(caption.split())
    for _, pattern in lexicon.patterns if reading.steps else ():
        match = pattern.fullmatch(text.casefold())
        if match and "actions" in pattern.groupindex and match["actions"] is not None:
            first, last = match.span("actions")
            return text[:first] + spelt(reading.steps) + text[last:]
    return caption


def faults(
    caption: str, reading: Reading, lexicon: Lexicon, *, still: bool = False
) -> list[str]:  # fmt: skip
    """What the caption does not keep, in the prompt's words; empty where it keeps everything.

    still: the caption has to be of one frame. One that is none, and one that the world could not
    have, has a single fault, MALFORMED.
    """
    scene = told(with_steps(caption, reading, lexicon), lexicon)
    if scene is None or ("picture" in scene) != still:
        return [MALFORMED]
    things: list[Thing] = [
        {name: scene[f"{name}{number}"] for name in OF_THINGS if f"{name}{number}" in scene}
        for number in range(MOST) if f"kind{number}" in scene
    ]  # fmt: skip
    asserted = [m for m in reading.mentions if not m.denied and not (still and _moves(m))]
    found = _about_event(scene, reading)
    found += _about_things(things, reading, lexicon.most_things)
    found += _unkept(asserted, things, scene, reading)
    return found + _allowed(reading, things, scene, asserted)


def _about_event(scene: dict[str, str], reading: Reading) -> list[str]:
    """What happens, and in a game each step."""
    found = []
    event = scene.get("event", "")
    if event not in (reading.events or ("",)):
        found += list(reading.events) or [f"no {event}"]
    steps = " ".join(way for way, count in reading.steps for _ in range(count))
    if steps and scene.get("actions", "") != steps:
        found.append(steps)
    return found


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
        several = len(reading.kinds) > 1 and reading.ordered
        if several and not found and [k for k in kinds if k in reading.kinds] != [*reading.kinds]:
            found.append("left and right")
    if reading.things is not None and len(things) != reading.things:
        found.append(NUMBERS[reading.things])
    if reading.alike and len(set(kinds)) != 1:
        found.append(f"{NUMBERS[len(things)]} of {reading.kinds[0]}")
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
            right = [
                _is(thing[mention.name], mention) if mention.name in thing
                else mention.value in _UNTOLD for thing in things
            ]  # fmt: skip
            if mention.name == "color":  # of a trail, a wall, a player
                right += [scene.get(name) == mention.value for name in ("paint", "player")]
            every = reading.both and mention.name == "motion" and motions == 1
            if meaning not in bound and not (all(right) if every else any(right)):
                found.append(mention.words)
        elif mention.name not in ("kind", "event", SIDE[0]):
            wished = [m for m in asserted if m.name == mention.name]
            if not any(_is(scene.get(mention.name), wish) for wish in wished):
                found.append(mention.words)
    return found


def _is(value: str | None, mention: Mention) -> bool:
    """Whether a caption's value is the one meant, or has it in it: "thrown" and "thrown left".

    What a caption leaves open may be as it was meant.
    """
    return value is None or mention.value in (value, *value.split())


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
        elif mention.name not in OF_THINGS:
            if scene.get(mention.name) == mention.value:
                found.append(f"no {mention.words}")
        else:
            other = follower if follower and follower.at == mention.end else None
            kind = other.value if other and other.name == "kind" else None
            shown = [t for t in things if kind in (None, t["kind"])]
            if any(thing.get(mention.name) == mention.value for thing in shown):
                found.append(f"not {mention.words}")
    return found
