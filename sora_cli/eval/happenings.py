"""What happens in the wide world, measured: things behind walls, paint, bites, pieces, blows, the
grid game; and how balls move on Kang et al.'s preset.

Clips go on from true first frames under their dense prompts, so that the looks of things and places
are known (interaction.py, grid.py, kang.py). The truth and the truth after the autoencoder go
through the same measures; the baseline holds the last given frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sora_cli.eval import grid, interaction, kang
from sora_cli.eval.clips import make
from sora_cli.eval.report import Row
from sora_cli.eval.rows import Exam
from sora_cli.eval.truth import Prompt, prompts
from sora_cli.train.bodies import Owner
from sora_cli.train.events import Bites, Breaking, Collision, Discs, Game
from sora_cli.train.families import WIDE
from sora_cli.train.kang import FPS, FRAMES, KANG, SIZE
from sora_cli.train.render import render, render_objects
from sora_cli.train.world import Mixture

_HELD = "copy the last frame"
BITES = "as many bites as asked, %"
PIECES = "as many pieces as asked, % of the frames after"


@dataclass(frozen=True, kw_only=True, slots=True)
class Happening:
    """A scene in which something happens, as it truly is: frames [T, H, W, 3], masks [T, H, W]."""

    prompt: Prompt
    frames: Tensor
    masks: Mapping[Owner, Tensor]


Measure = Callable[[Happening, Tensor], dict[str, float]]  # of frames; not a number: cannot be told


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked of one family of a mixture, after how many true frames, in whose rows.

    size: width, height, frames and frames a second of the scenes; None: the model's own.
    """

    ability: str
    family: str
    given: int
    measure: Measure
    mixture: Mixture = WIDE
    size: tuple[int, int, int, float] | None = None


def hidden(one: Happening, frames: Tensor) -> dict[str, float]:
    """Whether what goes behind a wall is gone while it is there, and comes out again, and when."""
    true = one.masks["thing", 0]
    looks = [
        interaction.object_look(one.prompt.scene, one.frames, one.masks[owner])
        for owner in (("thing", 0), ("wall", 0))
    ]
    seen, gone = interaction.seen_apart(looks, frames)[0], interaction.hidden_in(true)
    return {
        "comes out from behind a wall, %": 100.0 * interaction.reappears(seen, true),
        "behind a wall it is not seen, % of frames": 100 * interaction.stays_hidden(seen, gone),
        "comes out, frames too soon or too late": float(interaction.exit_error(seen, true)),
    }


def painted(one: Happening, frames: Tensor) -> dict[str, float]:
    """Whether paint stays where it was put, and where it should be."""
    thing, paint = one.masks["thing", 0], one.masks["trail", 0]
    look = interaction.object_look(one.prompt.scene, one.frames, paint)
    seen = interaction.seen(look, frames)
    return {
        "paint stays, overlap of all that was with the last": interaction.trail_persistence(
            seen, thing, paint[-1]
        ),
        "paint at the end, overlap with the true": interaction.trail_match(seen, paint, thing),
    }


def eaten(one: Happening, frames: Tensor) -> dict[str, float]:
    """Whether bites only take, and how many there are."""
    event = one.prompt.scene.event
    assert isinstance(event, Bites)
    skin = interaction.skin_seen(one.prompt.scene, frames, one.frames, dict(one.masks))
    return {
        "what is eaten never grows, % of steps": 100 * interaction.never_grows(skin),
        BITES: 100.0 * (interaction.bites_seen(skin) == len(event.times)),
    }


def broken(one: Happening, frames: Tensor) -> dict[str, float]:
    """Whether as many pieces lie there as should, once they lie."""
    scene = one.prompt.scene
    assert isinstance(scene.event, Breaking)
    matter = torch.stack([mask for (kind, _), mask in one.masks.items() if kind != "wall"]).any(0)
    seen = interaction.seen(interaction.object_look(scene, one.frames, matter), frames)
    first = math.ceil(scene.event.settled * scene.fps)
    share = interaction.pieces_stay(seen, first, len(scene.event.pieces))
    return {PIECES: 100 * share}


def collided(one: Happening, frames: Tensor) -> dict[str, float]:
    """Whether momentum is kept in a blow."""
    scene, event = one.prompt.scene, one.prompt.scene.event
    assert isinstance(event, Collision)
    looks = [
        interaction.object_look(scene, one.frames, one.masks["thing", number])
        for number in range(2)
    ]
    first, second = interaction.seen_apart(looks, frames)
    places = interaction.lane_places(scene, (first, second))
    return {
        "momentum after a collision, % off": 100 * interaction.momentum_error(scene, event, places)
    }


def played(one: Happening, frames: Tensor) -> dict[str, float]:
    """Whether the grid game keeps its rules, and the player does what the prompt says."""
    scene, game = one.prompt.scene, one.prompt.scene.event
    assert isinstance(game, Game)
    return {
        "legal transitions, %": 100 * grid.legal_share(scene, game, frames),
        "actions obeyed, %": 100 * grid.obeyed_share(scene, game, frames),
        "ends where the actions lead, %": 100.0 * grid.reached(scene, game, frames),
    }


def moved(one: Happening, frames: Tensor) -> dict[str, float]:
    """How far the balls' velocities are off."""
    scene, event = one.prompt.scene, one.prompt.scene.event
    assert isinstance(event, Discs)
    error = kang.velocity_error(scene, event, frames, given=KANG_GIVEN)
    return {f"Kang's preset, {event.kind}: velocity error, m/s": error}


KANG_GIVEN = 5  # frames: two latents; the paper's models are shown three
QUESTIONS = (
    Question(ability="physics", family="collision", given=5, measure=collided),
    *(
        Question(
            ability="physics", family=family.name, given=KANG_GIVEN, measure=moved,
            mixture=KANG, size=(SIZE, SIZE, FRAMES, FPS),
        )
        for family in KANG
    ),
    Question(ability="permanence", family="behind", given=5, measure=hidden),
    Question(ability="interaction", family="trail", given=5, measure=painted),
    Question(ability="interaction", family="eaten", given=5, measure=eaten),
    Question(ability="interaction", family="broken", given=5, measure=broken),
    Question(ability="digital world", family="game", given=1, measure=played),
)  # fmt: skip


def happenings(exam: Exam, ability: str) -> list[Row]:
    """The rows of an ability that ask what happens."""
    asked = [question for question in QUESTIONS if question.ability == ability]
    return [row for question in asked for row in _answers(exam, question)]


def _answers(exam: Exam, question: Question) -> list[Row]:
    ways = watched(exam, question)
    names = ways["value"][0] if ways else {}
    rows = (_row(exam, question, name, ways) for name in names)
    return [row for row in rows if row.samples]


def watched(exam: Exam, question: Question) -> dict[str, list[dict[str, float]]]:
    """What is measured in each scene: of what is made, of the truth, after the autoencoder, held.

    Nothing where the time box left no clip.
    """
    known = _truth(exam, question)
    given = torch.stack([one.frames[: question.given] for one in known])
    latents = make(exam.studio, [one.prompt for one in known], given=given)
    known = known[: len(latents)]
    if not known:
        return {}
    clips = exam.decoded(latents)
    exam.show(clips, [one.prompt for one in known], question.family)
    true = torch.stack([one.frames for one in known])
    held = true.clone()
    held[:, question.given :] = true[:, question.given - 1 : question.given]
    return {
        name: [question.measure(one, clip) for one, clip in zip(known, frames, strict=True)]
        for name, frames in {
            "value": clips, "floor": true, "VAE floor": exam.reconstructed(true), _HELD: held,
        }.items()
    }  # fmt: skip


def _truth(exam: Exam, question: Question) -> list[Happening]:
    spec = exam.studio.model.spec
    usual = (spec.width, spec.height, spec.num_frames, spec.fps)
    width, height, num_frames, fps = question.size or usual
    asked = prompts(
        exam.most("event"), split=exam.split, level="dense", width=width, height=height,
        num_frames=num_frames, fps=fps, mixture=question.mixture,
        only=lambda scene: scene.family == question.family,
    )  # fmt: skip
    exam.studio.say(f"rendering {len(asked)} scenes of {question.family}\n")
    return [
        Happening(
            prompt=prompt, frames=render([prompt.scene])[0][0],
            masks={} if isinstance(prompt.scene.event, Game | Discs)
            else render_objects(prompt.scene),
        )
        for prompt in asked
    ]  # fmt: skip


def _row(exam: Exam, question: Question, name: str, ways: dict[str, list[dict[str, float]]]) -> Row:
    """The means over the scenes of which both the clip's and the truth's figure can be told."""
    table = {way: np.array([found[name] for found in rows]) for way, rows in ways.items()}
    told = ~np.isnan(table["value"]) & ~np.isnan(table["floor"])
    means = {
        way: float(values[told & ~np.isnan(values)].mean()) for way, values in table.items()
        if (told & ~np.isnan(values)).any()
    }  # fmt: skip
    value, floor = means.pop("value", math.nan), means.pop("floor", None)
    return Row(
        ability=question.ability, measure=name, value=value, floor=floor, baselines=means,
        samples=int(told.sum()), split=exam.split,
    )  # fmt: skip
