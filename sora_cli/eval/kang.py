"""Kang et al.'s measure on their preset: the mean error of the balls' velocities (m/s ... in a 10 m
world), from where their colours are in the frames (arXiv 2411.02385).

Frames are uint8 [T, H, W, 3]; those that are shown to the model do not count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sora_cli.train.events import Discs, leg_at
from sora_cli.train.flat import PAPER
from sora_cli.train.kang import GIVEN
from sora_cli.train.things import COLORS
from sora_cli.train.world import Scene


def true_places(scene: Scene, event: Discs) -> Tensor:
    """x right and y up (m) of each ball in each frame: [T, balls, 2]."""
    times = [frame / scene.fps for frame in range(scene.num_frames)]
    return torch.tensor(
        [[leg_at(d.legs, time).at(time)[:2] for d in event.discs] for time in times]
    )


def places_in(scene: Scene, event: Discs, frames: Tensor) -> Tensor:
    """Where each ball's colour has its middle (m): [T, balls, 2]; not a number where it is gone.

    Each pixel is taken as a mixture of paper and one ball's colour; the share is its weight.
    """
    unit = min(scene.width, scene.height) / event.side  # pixels a metre
    paper = torch.tensor(PAPER) * 255
    colors = torch.tensor([COLORS[d.color] for d in event.discs]) * 255 - paper  # [balls, 3]
    pixels = frames.float().cpu() - paper  # [T, H, W, 3]
    share = (pixels @ colors.T) / colors.square().sum(1)  # [T, H, W, balls]
    rest = (pixels[..., None, :] - share[..., None] * colors).norm(dim=-1)
    best = rest.argmin(-1, keepdim=True)
    own = torch.zeros_like(share).scatter_(-1, best, 1.0)
    weight = (share * own).clamp(0, 1)
    weight = torch.where(weight > 0.25, weight, 0.0)
    total = weight.sum((1, 2))  # [T, balls]
    x = (torch.arange(scene.width) + 0.5) / unit
    y = (scene.height - torch.arange(scene.height) - 0.5) / unit
    middle = torch.stack(
        ((weight.sum(1) * x[:, None]).sum(1), (weight.sum(2) * y[:, None]).sum(1)), -1
    )
    found = middle / total[..., None].clamp_min(1e-6)
    return torch.where((total > 4)[..., None], found, torch.nan)


def whole(scene: Scene, event: Discs) -> Tensor:
    """Whether each ball is wholly in the picture, [T, balls]."""
    places, radii = true_places(scene, event), torch.tensor([d.radius for d in event.discs])
    unit = min(scene.width, scene.height) / event.side
    size = torch.tensor((scene.width / unit, scene.height / unit))
    return ((places > radii[:, None]) & (places < size - radii[:, None])).all(-1)


def velocity_error(scene: Scene, event: Discs, frames: Tensor, given: int = GIVEN) -> float:
    """Mean |velocity - the true one| (m/s, per axis) of balls wholly seen, after the given frames.

    Not a number where none is; a ball that is gone counts as standing still.
    """
    true = true_places(scene, event).diff(dim=0) * scene.fps  # [T - 1, balls, 2]
    seen = places_in(scene, event, frames).diff(dim=0).nan_to_num() * scene.fps
    inside = whole(scene, event)
    count = inside[1:] & inside[:-1]
    count[: given - 1] = False
    return float((seen - true).abs().mean(-1)[count].mean())
