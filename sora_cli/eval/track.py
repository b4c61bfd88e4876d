"""Where the one thing of a scene is, in each frame of a clip: by its colours against its place.

The place without the thing is rendered, and the thing's colours are taken from true frames. A pixel
is the thing's where it is nearer to one of them than to the place, lit or in shadow; of the pieces
the heaviest counts. The camera stands still. T frames of H×W pixels, uint8 [T, H, W, 3].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from sora_cli.train.render import render
from sora_cli.train.scenery import LIGHTS
from sora_cli.train.world import Scene

COLOURS = 48  # of a thing's pixels, that stand for all of them
CERTAIN = 10.0  # of 255: by how much nearer to the thing than to the place
LEAST_PIXELS = 12  # of a thing that is seen
BEHIND = (0.0, 0.0, -80.0)  # m: behind every viewer, so that neither thing nor shadow is seen


def without_things(scene: Scene) -> Scene:
    """The same place with its things out of sight."""
    gone = tuple(
        replace(thing, start=BEHIND, velocity=(0.0, 0.0, 0.0), motion="still")
        for thing in scene.things
    )
    return replace(scene, things=gone)


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a thing and its place look like: lit and dark [H, W, 3], colours [N, 3], of 255."""

    lit: Tensor
    dark: Tensor
    colours: Tensor


def look_of(scene: Scene, frames: Tensor, masks: Tensor) -> Look:
    """From true frames [T, H, W, 3] and the masks [T, H, W] of the scene's one thing."""
    assert len(scene.things) == 1 and scene.camera == "static"
    empty = replace(without_things(scene), num_frames=1)
    lit = render([empty], device=frames.device)[0][0, 0].float()  # [H, W, 3]
    light = LIGHTS[scene.sky]
    up = light.height / (1 + light.height**2) ** 0.5
    ambient, sun = torch.tensor(light.ambient), torch.tensor(light.sun) * up
    dark = lit * ((ambient + sun * (1 - light.shadow)) / (ambient + sun)).to(lit)
    pixels = frames[masks].float()  # [n, 3]
    ordered = pixels[pixels.sum(1).argsort()]
    chosen = torch.linspace(0, len(ordered) - 1, min(COLOURS, len(ordered))).round().long()
    return Look(lit=lit, dark=dark, colours=ordered[chosen])


def margins(look: Look, frames: Tensor) -> Tensor:
    """By how much each pixel is nearer to the thing's colours than to the place's, [T, H, W]."""
    pixels = frames.float()
    along = look.lit - look.dark  # from shadow to light
    share = ((pixels - look.dark) * along).sum(-1) / along.square().sum(-1).clamp_min(1.0)
    nearest = look.dark + share.clamp(0, 1)[..., None] * along
    to_place = (pixels - nearest).norm(dim=-1)  # [T, H, W]
    other = to_place > CERTAIN / 2  # what looks like the place is not looked at again: quicker
    found = torch.zeros_like(to_place)
    found[other] = to_place[other] - torch.cdist(pixels[other], look.colours).amin(1)
    return functional.avg_pool2d(found[:, None], 3, 1, 1, count_include_pad=False)[:, 0]


def heaviest(weights: Tensor) -> Tensor:
    """Of each picture's connected pieces the one of most weight: weights [T, H, W], else 0."""
    inside = weights > 0
    shape = weights.shape
    labels = torch.arange(1, shape[1] * shape[2] + 1, dtype=torch.float32, device=weights.device)
    labels = labels.view(1, 1, *shape[1:]) * inside[:, None]
    while True:  # every piece takes its largest label
        spread = functional.max_pool2d(labels, 3, 1, 1) * inside[:, None]
        if torch.equal(spread, labels):
            break
        labels = spread
    flat = labels.flatten(1).long()  # [T, H·W]
    sums = weights.new_zeros(len(flat), shape[1] * shape[2] + 1)
    sums.scatter_add_(1, flat, weights.flatten(1))
    sums[:, 0] = 0  # what is outside of every piece
    return weights * (flat == sums.argmax(1, keepdim=True)).view(shape)


def seen_in(look: Look, frames: Tensor) -> Tensor:
    """The thing's mask, [T, H, W]."""
    return heaviest((margins(look, frames) - CERTAIN).clamp_min(0)) > 0


def middles(masks: Tensor) -> Tensor:
    """Mean x and y of the masks' pixels (pixels), [T, 2].

    Where there is none it stays where it was seen last; not a number before.
    """
    height, width = masks.shape[1:]
    places = torch.full((len(masks), 2), torch.nan)
    x = torch.arange(width, device=masks.device) + 0.5
    y = torch.arange(height, device=masks.device) + 0.5
    for number, mask in enumerate(masks):
        count = int(mask.sum())
        if count >= LEAST_PIXELS:
            places[number, 0] = float((mask.sum(0) * x).sum()) / count
            places[number, 1] = float((mask.sum(1) * y).sum()) / count
        elif number:
            places[number] = places[number - 1]
    return places


def whole(masks: Tensor) -> Tensor:
    """Whether the thing is in the picture and away from its edges, [T]."""
    edge = torch.cat((masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]), 1).any(1)
    return ~edge & (masks.sum((1, 2)) >= LEAST_PIXELS)


def overlap(one: Tensor, two: Tensor) -> float:
    """Intersection over union of two clips' masks [T, H, W], 0 to 1."""
    return float((one & two).sum()) / max(1, int((one | two).sum()))
