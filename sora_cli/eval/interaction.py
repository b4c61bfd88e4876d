"""Interactions, measured: does paint stay, do bites only take, do pieces stay, is momentum kept,
does what was hidden come out again?

Pure functions from masks (bool [T, H, W]) and places to numbers; each is 1, 0 or a share on true
renders and falls when the clip is spoiled (the tests spoil them). `object_look` finds an object of
known colours in frames whose masks are not known, as generated ones' are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from sora_cli.eval import track
from sora_cli.eval.track import Look
from sora_cli.train.bodies import Owner
from sora_cli.train.events import Collision
from sora_cli.train.render import render
from sora_cli.train.scenery import LIGHTS
from sora_cli.train.world import CAMERA_DISTANCE, TAN_HALF_FOV, Scene

LEAST_PIXELS = 6  # of a piece
GROWTH = 0.04  # of the area at the start: outlines flicker by less
BITE = 0.045  # of the area at the start: a bite takes more
REST = 0.013  # of the area at the start, a frame: falls by less are none
ALIKE = 0.35  # by which the area before and after a wall may differ
GONE = 0.25  # of what was seen of a thing before the wall: less is none of it
BESIDE = 1  # frames around a blow that do not count


def object_look(scene: Scene, frames: Tensor, mask: Tensor) -> Look:
    """What an object (its true mask [T, H, W] in true frames) and its place look like."""
    empty = replace(scene, things=(), event=None, num_frames=1)
    lit = render([empty])[0][0, 0].float().to(frames.device)  # [H, W, 3]
    light = LIGHTS[scene.sky]
    up = light.height / (1 + light.height**2) ** 0.5
    ambient, sun = torch.tensor(light.ambient), torch.tensor(light.sun) * up
    dark = lit * ((ambient + sun * (1 - light.shadow)) / (ambient + sun)).to(lit)
    pixels = frames[mask].float()  # [n, 3]
    ordered = pixels[pixels.sum(1).argsort()]
    chosen = torch.linspace(0, len(ordered) - 1, min(track.COLOURS, len(ordered))).round().long()
    return Look(lit=lit, dark=dark, colours=ordered[chosen])


def seen(look: Look, frames: Tensor) -> Tensor:
    """Where an object of this look is in frames [T, H, W, 3]; every piece of it counts."""
    return track.margins(look, frames) > track.CERTAIN


def seen_apart(looks: Sequence[Look], frames: Tensor) -> Tensor:
    """Where each of several objects is: a pixel is that one's whose look it is nearest to.

    Returns masks [looks, T, H, W].
    """
    margins = torch.stack([track.margins(look, frames) for look in looks])
    nearest = margins.argmax(0)
    numbers = torch.arange(len(looks), device=frames.device).view(-1, 1, 1, 1)
    return (margins > track.CERTAIN) & (nearest == numbers)


def skin_seen(scene: Scene, frames: Tensor, true: Tensor, masks: dict[Owner, Tensor]) -> Tensor:
    """Where the skin of what is eaten is seen in frames [T, H, W]: not the place, not the flesh.

    Args:
        frames: to be looked at; true: the true ones, whose `masks` are `render_objects`.
    """
    looks = [object_look(scene, true, masks[owner]) for owner in (("thing", 0), ("bite", 0))]
    return seen_apart(looks, frames)[0]


# ---------------------------------------------------------------------- trails


def trail_persistence(painted: Tensor, covered: Tensor, region: Tensor) -> float:
    """Overlap (IoU) of what was ever painted with what is painted at the end, 0 to 1.

    Args:
        painted: where paint is seen, [T, H, W].
        covered: by things, true; what they hide at the end does not count, [T, H, W].
        region: of the true trail, [H, W]: elsewhere the same colour may be a thing's.
    """
    shown = region & ~covered[-1]
    ever = (painted & ~covered).any(0) & shown
    last = painted[-1] & shown
    return _share(ever & last, ever | last)


def trail_match(painted: Tensor, true: Tensor, covered: Tensor) -> float:
    """Overlap (IoU) of the paint at the end with the true trail, where no thing hides it."""
    shown = ~covered[-1]
    return _share(painted[-1] & true[-1] & shown, (painted[-1] | true[-1]) & shown)


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part.sum()) / max(1, int(whole.sum()))


# ---------------------------------------------------------------------- eating, breaking


def never_grows(masks: Tensor) -> float:
    """Share of the steps from frame to frame in which what is eaten does not grow."""
    areas = masks.sum((1, 2)).float()
    least = torch.cummin(areas, 0).values[:-1]  # what there was of it before
    return float((areas[1:] <= least + GROWTH * areas[0]).float().mean())


def bites_seen(masks: Tensor) -> int:
    """How many times a piece goes: falls of the area by more than `BITE` of the first in all, over
    however many frames an autoencoder spreads them, with rest between them.
    """
    least = torch.cummin(masks.sum((1, 2)).float(), 0).values
    count, fallen = 0, 0.0
    for step in (*(-least.diff() / least[0].clamp_min(1)).tolist(), 0.0):
        if step > REST:
            fallen += step
        else:
            count, fallen = count + (fallen > BITE), 0.0
    return count


def pieces_in(mask: Tensor) -> int:
    """How many pieces of more than a few pixels lie apart in a mask [H, W]."""
    labels = torch.arange(1, mask.numel() + 1, dtype=torch.float32).view(1, 1, *mask.shape)
    inside = mask[None, None].cpu()
    labels = labels * inside
    while True:  # every piece takes its largest label
        spread = functional.max_pool2d(labels, 3, 1, 1) * inside
        if torch.equal(spread, labels):
            break
        labels = spread
    counts = labels[inside].unique(return_counts=True)[1]
    return int((counts >= LEAST_PIXELS).sum())


def pieces_stay(masks: Tensor, first: int, count: int) -> float:
    """Share of the frames from `first` on in which as many pieces lie as there should."""
    return sum(pieces_in(mask) == count for mask in masks[first:]) / max(1, len(masks) - first)


# ---------------------------------------------------------------------- collisions


def lane_places(scene: Scene, masks: tuple[Tensor, Tensor]) -> Tensor:
    """x (m) of two things' middles on their lane, from their masks: [T, 2].

    Not a number where one of them is not wholly in the picture.
    """
    depth = CAMERA_DISTANCE + scene.things[0].legs[0].start[2]
    focal = min(scene.width, scene.height) / 2 / TAN_HALF_FOV
    columns = torch.stack([track.middles(mask)[:, 0] for mask in masks], 1)
    both = torch.stack([track.whole(mask) for mask in masks], 1).all(1)
    columns[~both] = torch.nan
    return (columns - scene.width / 2) * depth / focal


def speeds(scene: Scene, event: Collision, places: Tensor) -> tuple[Tensor, Tensor]:
    """Mean speeds (m/s) of both things before and after the blow, from places [T, 2]: [2] each.

    Not a number where fewer than two frames are left on a side.
    """
    times = torch.arange(len(places)) / scene.fps
    known = places.isfinite().all(1)
    early = known & (times < event.time - (BESIDE - 0.5) / scene.fps)
    late = known & (times > event.time + (BESIDE - 0.5) / scene.fps)
    return _slope(times[early], places[early]), _slope(times[late], places[late])


def _slope(times: Tensor, places: Tensor) -> Tensor:
    if len(times) < 2:
        return torch.full((2,), torch.nan)
    t = (times - times.mean())[:, None]
    return (t * (places - places.mean(0))).sum(0) / t.square().sum()


def momentum_error(scene: Scene, event: Collision, places: Tensor) -> float:
    """By how much the momentum after the blow differs from that before, of all that moves there.

    The masses are the scene's; 0 is right.
    """
    before, after = speeds(scene, event, places)
    masses = torch.tensor(event.masses)
    change = (masses * after).sum() - (masses * before).sum()
    return float(change.abs() / (masses * before.abs()).sum().clamp_min(1e-6))


def restitution_error(scene: Scene, event: Collision, places: Tensor) -> float:
    """By how much the speed of parting differs from what it should be, of the approach."""
    before, after = speeds(scene, event, places)
    parting = (after[1] - after[0]) / (before[0] - before[1])
    return float((parting - event.restitution).abs())


# ---------------------------------------------------------------------- behind a wall


def hidden_in(masks: Tensor) -> list[int]:
    """The frames in which nothing is seen, between others in which something is: the truth's, of
    true masks [T, H, W].
    """
    gone = [f for f, mask in enumerate(masks) if int(mask.sum()) < track.LEAST_PIXELS]
    seen = [f for f in range(len(masks)) if f not in gone]
    return [f for f in gone if seen and seen[0] < f < seen[-1]]


def _areas(masks: Tensor, hidden: list[int]) -> tuple[Tensor, float]:
    """Pixels in each frame [T], and how many at most are as good as none: a share of those before.

    What blur leaves at the edges of a wall is no thing.
    """
    areas = masks.sum((1, 2)).float()
    largest = float(areas[: hidden[0]].max())
    return areas, max(GONE * largest, track.LEAST_PIXELS - 1)


def reappears(masks: Tensor, true: Tensor) -> bool:
    """Whether what went behind the wall comes out on the other side, about as large as it went in.

    Args:
        masks: where it is seen, [T, H, W].
        true: where it should be seen, [T, H, W].
    """
    hidden = hidden_in(true)
    whole, places = track.whole(masks), track.middles(true)[:, 0]
    start, end = float(places[hidden[0] - 1]), float(places[-1])
    before = [f for f in range(hidden[0]) if whole[f]]
    ours = track.middles(masks)[:, 0]
    across = (ours - end).abs() < abs(start - end) / 2
    after = [f for f in range(hidden[-1] + 1, len(masks)) if whole[f] and across[f]]
    if not before or not after:
        return False
    areas = masks.sum((1, 2)).float()
    one, two = float(areas[before].max()), float(areas[after].max())
    return abs(one - two) <= ALIKE * max(one, two)


def stays_hidden(masks: Tensor, hidden: list[int]) -> float:
    """Share of the hidden frames in which nothing of it is seen."""
    areas, none = _areas(masks, hidden)
    return float((areas[hidden] <= none).float().mean())


def exit_error(masks: Tensor, true: Tensor) -> int:
    """Frames between when it is seen again and when it should be; all the rest if it never is."""
    hidden = hidden_in(true)

    def comes(seen: Tensor) -> int:
        areas, none = _areas(seen, hidden)
        later = range(hidden[len(hidden) // 2], len(seen))
        return next((f for f in later if areas[f] > none), len(seen))

    return abs(comes(masks) - comes(true))
