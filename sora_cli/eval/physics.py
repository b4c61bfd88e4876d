"""Physics: clips that go on from five true frames; does what moves go on as it did?

The one thing of each scene is followed by its colours (`track`) in what was made, and in the same
way in the truth and in the truth after the autoencoder: those are the floors. What is right is
known from the render's own masks and from the world's gravity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sora_cli.eval import track
from sora_cli.eval.clips import make
from sora_cli.eval.report import Row
from sora_cli.eval.rows import Exam
from sora_cli.eval.track import Look
from sora_cli.eval.truth import Prompt, middle, project, render_all
from sora_cli.train.world import GRAVITY, Scene, Vec3, bounce_height

GIVEN = 5  # frames: two latents
MOVING = ("left", "right", "toward", "away", "bounces", "falls")
FOLLOWED = 0.6  # least overlap of the followed with the true mask; else a scene is left out
SPEEDS = (1.0, 14.0)  # m/s²: between these gravity is looked for
TIMES_VAE = "velocity error, times the VAE floor"
_ERROR, _TIMES = "velocity error, widths a second", "velocity error, times the floor"
_GRAVITY = "gravity from a bounce, % off"


@dataclass(frozen=True, kw_only=True, slots=True)
class Followed:
    """A scene whose thing can be followed: its prompt, clip [T, H, W, 3], masks and look."""

    prompt: Prompt
    frames: Tensor
    masks: Tensor
    look: Look

    def places(self, clip: Tensor) -> Tensor:
        """Where the thing's middle is in a clip of the same place (pixels), [T, 2]."""
        return track.middles(track.seen_in(self.look, clip))


def moves_alone(scene: Scene) -> bool:
    """Whether one thing moves before a camera that stands still."""
    return len(scene.things) == 1 and scene.camera == "static" and scene.things[0].motion in MOVING


def followed(asked: Sequence[Prompt], frames: Tensor, masks: Tensor) -> list[Followed]:
    """The scenes whose thing is found well in the true clip; nothing else decides."""
    kept = []
    for prompt, clip, mask in zip(asked, frames, masks, strict=True):
        if int(mask[:GIVEN].sum()) < GIVEN * track.LEAST_PIXELS:
            continue
        look = track.look_of(prompt.scene, clip[:GIVEN], mask[:GIVEN])
        if track.overlap(track.seen_in(look, clip), mask) >= FOLLOWED:
            kept.append(Followed(prompt=prompt, frames=clip, masks=mask, look=look))
    return kept


# ---------------------------------------------------------------------- velocity


def velocities(places: Tensor, fps: float, width: int) -> Tensor:
    """Widths a second at frames 1 to T - 2, from the frames around each: [T - 2, 2]."""
    return (places[2:] - places[:-2]) * fps / (2 * width)


def velocity_error(one: Followed, places: Tensor) -> float:
    """Mean distance (widths a second) from the true velocity over the frames that follow.

    Frames in which the true thing touches the picture's edge do not count; not a number where
    none is left.
    """
    scene = one.prompt.scene
    whole = track.whole(one.masks)
    count = whole[2:] & whole[:-2]
    count[: GIVEN - 1] = False
    true = velocities(track.middles(one.masks), scene.fps, scene.width)
    ours = velocities(places, scene.fps, scene.width)
    return float((ours - true).norm(dim=1)[count].mean())


def steady(places: Tensor) -> Tensor:
    """The given places, and from there on at the last velocity: the baseline."""
    speed = (places[GIVEN - 1] - places[GIVEN - 3]) / 2
    steps = torch.arange(1, len(places) - GIVEN + 1)[:, None]
    return torch.cat((places[:GIVEN], places[GIVEN - 1] + steps * speed))


def held(places: Tensor) -> Tensor:
    """The given places, and from there on the last of them: the other baseline."""
    return torch.cat((places[:GIVEN], places[GIVEN - 1 :][:1].expand(len(places) - GIVEN, -1)))


# ---------------------------------------------------------------------- gravity


def heights(scene: Scene, places: Tensor) -> np.ndarray:
    """How high (m) the thing's foot is in each frame, from where its middle is seen, [T].

    Which part of a thing its pixels' middle is, is taken from the given frames.
    """
    thing = scene.things[0]
    grid = np.linspace(-1.0, 4.0, 251)
    x, _, z = thing.start
    half: Vec3 = middle(thing, 0.0)
    above = half[1] - thing.start[1]
    rows = np.array([project(scene, (x, height + above, z), 0.0)[1] for height in grid])
    found = np.interp(-places[:, 1].numpy(), -rows, grid)  # rows fall as heights grow
    times = np.arange(GIVEN) / scene.fps
    true = [bounce_height(thing.start[1], thing.restitution, time) for time in times]
    return found - float(np.mean(found[:GIVEN] - np.array(true)))


def bounced(start: float, restitution: float, gravity: float, times: np.ndarray) -> np.ndarray:
    """`world.bounce_height` under any gravity: the same flights at another pace."""
    pace = (gravity / GRAVITY) ** 0.5
    return np.array([bounce_height(start, restitution, time * pace) for time in times])


def fitted_gravity(scene: Scene, places: Tensor, counted: Tensor) -> float:
    """The gravity (m/s²) whose bounces fit the heights after the given frames best.

    The restitution is free, the height it is dropped from known. counted: frames that are looked
    at, [T].
    """
    thing = scene.things[0]
    frames = np.flatnonzero(counted.numpy())
    frames = frames[frames >= GIVEN]
    seen, times = heights(scene, places)[frames], frames / scene.fps
    best, chosen = np.inf, GRAVITY
    for gravity in np.geomspace(*SPEEDS, 120):
        for restitution in np.linspace(0.3, 1.0, 29):
            wanted = bounced(thing.start[1], float(restitution), float(gravity), times)
            error = float(np.abs(wanted - seen).mean())
            if error < best:
                best, chosen = error, float(gravity)
    return chosen


def gravity_error(one: Followed, places: Tensor) -> float:
    """% by which gravity is off."""
    gravity = fitted_gravity(one.prompt.scene, places, track.whole(one.masks))
    return 100 * abs(gravity / GRAVITY - 1)


# ---------------------------------------------------------------------- rows


def physics(exam: Exam) -> list[Row]:
    """Velocities and gravity in what follows five true frames."""
    asked = exam.prompts("dense", cap="physics", only=moves_alone)
    exam.studio.say(f"rendering {len(asked)} moving scenes\n")
    frames, masks = render_all([p.scene for p in asked], str(exam.studio.device))
    known = followed(asked, frames, masks)
    if not known:
        return []
    given = torch.stack([one.frames[:GIVEN] for one in known])
    latents = make(exam.studio, [one.prompt for one in known], given=given)
    known = known[: len(latents)]
    if not known:
        return []
    clips = exam.decoded(latents)
    exam.show(clips, [one.prompt for one in known], "physics")
    rebuilt = exam.reconstructed(torch.stack([one.frames for one in known]))
    places = {
        "value": [one.places(clip) for one, clip in zip(known, clips, strict=True)],
        "floor": [one.places(one.frames) for one in known],
        "VAE floor": [one.places(clip) for one, clip in zip(known, rebuilt, strict=True)],
    }
    places["copy the last frame"] = [held(p) for p in places["floor"]]
    places["constant velocity"] = [steady(p) for p in places["floor"]]
    return [*_velocity_rows(exam, known, places), *_gravity_rows(exam, known, places)]


def _velocity_rows(exam: Exam, known: list[Followed], places: dict[str, list[Tensor]]) -> list[Row]:
    table = np.array(
        [
            [velocity_error(one, p) for one, p in zip(known, rows, strict=True)]
            for rows in places.values()
        ]
    )  # [ways, scenes]
    table = table[:, ~np.isnan(table[0])]  # what leaves the picture at once has no velocity
    if not table.shape[1]:
        return []
    means = dict(zip(places, table.mean(1).tolist(), strict=True))
    value, floor = means.pop("value"), means.pop("floor")
    rows = ((_ERROR, 1.0), (_TIMES, floor), (TIMES_VAE, means["VAE floor"]))
    return [
        Row(
            ability="physics", measure=measure, value=value / max(unit, 1e-4),
            floor=floor / max(unit, 1e-4),
            baselines={name: mean / max(unit, 1e-4) for name, mean in means.items()},
            samples=table.shape[1], split=exam.split,
        )
        for measure, unit in rows
    ]  # fmt: skip


def _gravity_rows(exam: Exam, known: list[Followed], places: dict[str, list[Tensor]]) -> list[Row]:
    chosen = [
        n for n, one in enumerate(known) if one.prompt.scene.things[0].motion == "bounces"
        and int(track.whole(one.masks)[GIVEN:].sum()) >= 8
    ]  # fmt: skip
    if not chosen:
        return []
    found = {
        name: float(np.mean([gravity_error(known[n], places[name][n]) for n in chosen]))
        for name in ("value", "floor", "VAE floor")
    }
    return [
        Row(
            ability="physics", measure=_GRAVITY, value=found["value"], floor=found["floor"],
            baselines={"VAE floor": found["VAE floor"]}, samples=len(chosen), split=exam.split,
        )
    ]  # fmt: skip
