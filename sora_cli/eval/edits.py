"""One attribute of a scene changed, in the record and in its words, and whether a clip shows it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sora_cli.eval.judge import Reading
from sora_cli.eval.truth import Prompt
from sora_cli.train.captions import attributes, dense
from sora_cli.train.world import COLORS, FLOORS, SKIES, Scene, is_held_out

TARGETS = ("color0", "floor", "sky")  # changed in turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A prompt, the same with one attribute changed, and which."""

    before: Prompt
    asked: Prompt
    target: str


def changed(prompt: Prompt) -> Change:
    """One attribute of the prompt changed, always the same for the same prompt.

    A thing does not become like the other one, nor a pairing that training held back.
    """
    scene = prompt.scene
    target = TARGETS[scene.index % len(TARGETS)]
    rng = random.Random(f"edit/{scene.seed}/{scene.index}")
    after = _recoloured(scene, rng) if target == "color0" else _moved(scene, target, rng)
    words = random.Random(f"edit/words/{scene.seed}/{scene.index}")
    asked = Prompt(scene=after, caption=dense(after, words), seed=prompt.seed)
    return Change(before=prompt, asked=asked, target=target)


def _recoloured(scene: Scene, rng: random.Random) -> Scene:
    first, *others = scene.things
    taken = {first.color, *(thing.color for thing in others)}
    free = [c for c in COLORS if c not in taken and not is_held_out(first.kind, c)]
    return replace(scene, things=(replace(first, color=rng.choice(free)), *others))


def _moved(scene: Scene, target: str, rng: random.Random) -> Scene:
    if target == "floor":
        return replace(scene, floor=rng.choice([f for f in FLOORS if f != scene.floor]))
    return replace(scene, sky=rng.choice([s for s in SKIES if s != scene.sky]))


def score(changes: Sequence[Change], readings: Sequence[Reading]) -> dict[str, float]:
    """% of the targets that are as asked, and % of all other attributes that are as they were."""
    hits: list[bool] = []
    kept: list[bool] = []
    for change, reading in zip(changes, readings, strict=True):
        wanted = attributes(change.asked.scene)
        for name, value in wanted.items():
            if name not in reading.values:  # sizes, which the judge does not read
                continue
            missing = name.endswith("1") and reading.values["count"] == "1"
            right = not missing and reading.values[name] == value
            (hits if name == change.target else kept).append(right)
    return {
        "changed as asked": 100 * sum(hits) / len(hits),
        "the rest kept": 100 * sum(kept) / len(kept),
    }
