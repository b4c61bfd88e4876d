"""What the text encoder is taught beside denoising: which words belong to which thing, and when.

A clip shows its things together, so a denoiser learns slowly from pixels whose colour a word is:
after 358,000 clips the encoder held a bag of words (docs/log.md). Captions come with their scenes,
and a thousand captions cost less than one clip: at every token of a thing's clause, linear heads
read which of the things it is, its kind, colour, size and motion, and what happens to it; at every
step of a game, which way and after how many others. The heads are thrown away.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sora_cli.models.text_encoder import Tokenizer
from sora_cli.train.captions import dense, short
from sora_cli.train.events import Game
from sora_cli.train.families import EVENTFUL, WIDE
from sora_cli.train.grid_game import MOVES, runs
from sora_cli.train.stories import TELLING, attributes, row_of
from sora_cli.train.things import WALLS
from sora_cli.train.words import ALL_KINDS, ALL_MOTIONS, COUNTS, SIZE_WORDS, Caption
from sora_cli.train.world import COLORS, SIZES, Scene, draw_scene

_NUMBERS = tuple(map(str, range(len(COUNTS))))
VALUES: dict[str, tuple[str, ...]] = {
    "place": ("1/1", "1/2", "2/2", "1/3", "2/3", "3/3"),  # the first of two, …
    "kind": tuple(ALL_KINDS),
    "color": tuple(COLORS),
    "size": tuple(SIZES),
    "motion": (*ALL_MOTIONS, "circles", "left then away", "right then away"),
    "event": tuple(TELLING),
    "beside": (*WALLS, *COLORS),  # the wall's colour, or the paint's
    "number": _NUMBERS,  # of bites or pieces
    "outcome": ("bounces back", "stops", "goes on"),
    "way": tuple(MOVES),  # of a game's steps
    "steps before": _NUMBERS,
    "steps after": _NUMBERS,
}
NOTHING = -100  # the target that cross_entropy skips
_MANY = "|".join(COUNTS[1:])
_RUN = re.compile(
    rf"(?:(?:{_MANY}) steps? )?\b(?P<way>{'|'.join(MOVES)})\b"
    rf"(?: twice| (?:{_MANY}) (?:times|cells))?"
)
_ADJECTIVES = "|".join((*COLORS, *(w for words in SIZE_WORDS.values() for w in words)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Clause:
    """Where a text speaks of thing `number`: characters [start, end)."""

    number: int
    start: int
    end: int


def clauses(text: str, scene: Scene) -> list[Clause]:
    """Each mention of a thing, with its adjectives before and what is said of it after."""
    text = text.lower()
    found: list[Clause] = []
    for number, thing in enumerate(scene.things):
        nouns = "|".join(sorted(set(ALL_KINDS.get(thing.kind, ())), key=len, reverse=True))
        for match in re.finditer(rf"\b(?:(?:{_ADJECTIVES}) )*(?:{nouns})\b", text) if nouns else ():
            found.append(Clause(number=number, start=match.start(), end=match.end()))
    # "ball" stands in "striped ball" too: the longer mention is meant.
    found.sort(key=lambda c: c.start - c.end)
    mentions: list[Clause] = []
    for clause in found:
        if all(clause.end <= other.start or other.end <= clause.start for other in mentions):
            mentions.append(clause)
    mentions.sort(key=lambda c: c.start)
    starts = [c.start for c in mentions[1:]] + [len(text)]
    ends = [
        following if (stop := re.search("[.,]", text[c.end : following])) is None
        else c.end + stop.start()
        for c, following in zip(mentions, starts, strict=True)
    ]  # fmt: skip
    return [
        Clause(number=c.number, start=c.start, end=end)
        for c, end in zip(mentions, ends, strict=True)
    ]


def targets(tokenizer: Tokenizer, captions: list[tuple[Scene, Caption]], length: int) -> Tensor:
    """What the heads should read: indices into VALUES, int64 [heads, B, length].

    Only what the caption names is asked for; elsewhere stands NOTHING.
    """
    table = torch.full((len(VALUES), len(captions), length), NOTHING)
    for row, (scene, caption) in enumerate(captions):
        offsets = tokenizer.offsets(caption.text)[:length]
        for start, end, says in told(scene, caption):
            where = [i for i, (a, b) in enumerate(offsets) if start < b and a < end]
            for head, (name, values) in enumerate(VALUES.items()):
                if says.get(name) in values:
                    table[head, row, where] = values.index(says[name])
    return table


def told(scene: Scene, caption: Caption) -> list[tuple[int, int, dict[str, str]]]:
    """Parts of a caption, characters [start, end), and what each says, by head."""
    if isinstance(scene.event, Game):
        return _steps(scene.event, caption)
    happens = _happens(scene, caption)
    return [
        (c.start, c.end, happens | {"place": f"{c.number + 1}/{len(scene.things)}"} | {
            name: getattr(scene.things[c.number], name)
            for name in ("kind", "color", "size", "motion")
            if f"{name}{c.number}" in caption.named
        })
        for c in clauses(caption.text, scene)
    ]  # fmt: skip


def _happens(scene: Scene, caption: Caption) -> dict[str, str]:
    """What a caption says of the scene's event."""
    if scene.event is None:
        return {}
    values = attributes(scene)
    heads = {"wall": "beside", "paint": "beside", "bites": "number", "pieces": "number",
             "outcome": "outcome"}  # fmt: skip
    return {"event": row_of(scene)} | {
        head: values[name]
        for name, head in heads.items()
        if name in values and name in caption.named
    }


def _steps(game: Game, caption: Caption) -> list[tuple[int, int, dict[str, str]]]:
    """Each run of like steps in a game's caption, with the steps before it and after it."""
    steps, text, before = runs(game.actions), caption.text.lower(), 0
    found: list[tuple[int, int, dict[str, str]]] = []
    for match, (way, count) in zip(_RUN.finditer(text), steps, strict="actions" in caption.named):
        assert match["way"] == way, f"{text!r} does not say {steps}"
        says = {"way": way, "steps before": str(before), "steps after": str(before + count)}
        found.append((match.start(), match.end(), says))
        before += count
    if player := re.search(rf"\b({'|'.join(COLORS)}) player\b", text):
        found.append((player.start(), player.end(), {"color": game.color}))
    return found


class Reader(nn.Module):
    """One linear head a thing's attribute, over the encoder's tokens [B, L, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(values)) for values in VALUES.values())

    def forward(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """Mean cross-entropy over the attributes asked; `wanted` [heads, B, L] as `targets`'."""
        rows = [
            F.cross_entropy(head(tokens).flatten(0, 1), row.flatten(), ignore_index=NOTHING)
            for head, row in zip(self.heads, wanted, strict=True)
            if bool((row != NOTHING).any())
        ]
        return torch.stack(rows).mean()


def draw_captions(rng: random.Random, count: int) -> list[tuple[Scene, Caption]]:
    """Captions at both levels of new scenes, many of them with several things or an event."""
    rows: list[tuple[Scene, Caption]] = []
    while len(rows) < count:
        mixture, two = rng.choices(((WIDE, None), (WIDE, 2), (EVENTFUL, None)), (4, 3, 3))[0]
        scene = draw_scene(
            rng.getrandbits(40), 0, width=160, height=96, num_frames=rng.choice((17, 25)),
            mixture=mixture, num_things=two,
        )  # fmt: skip
        if scene.things or scene.event is not None:
            rows.append((scene, (dense if rng.random() < 0.5 else short)(scene, rng)))
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """Captions as the encoder takes them: ids, mask [B, L]; what to read [heads, B, L]."""

    ids: Tensor
    mask: Tensor
    wanted: Tensor


def lesson(
    tokenizer: Tokenizer, rng: random.Random, count: int, max_length: int, device: torch.device
) -> Lesson:
    """`count` new captions to read."""
    captions = draw_captions(rng, count)
    ids, mask = tokenizer.encode([caption.text for _, caption in captions], max_length)
    longest = int(mask.sum(1).max())
    return Lesson(
        ids=ids[:, :longest].to(device), mask=mask[:, :longest].to(device),
        wanted=targets(tokenizer, captions, longest).to(device),
    )  # fmt: skip
