"""The bodies of many frames as tensors, and what bites take from them.

Every body is a unit shape moved by (rotation, half extents, centre). F is frames, S slots: the
primitives of one frame, each of one shape and one owner in all of them; K bites.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from sora_cli.train.bodies import Body, Owner, flesh, objects, owners, rotation, scoops
from sora_cli.train.shapes import SHAPES, Vector, along, dot
from sora_cli.train.world import Scene

NOWHERE = Body("", (0.0, -1e5, 0.0), (1.0, 1.0, 1.0), rotation(0, 0, 0), (0.0, 0.0, 0.0))
BITE: Owner = ("bite", 0)
FLAT = "trail"  # what lies so flat that it casts no shadow


@dataclass(frozen=True, slots=True)
class Primitives:
    """The bodies of F frames."""

    shapes: list[str]  # [S]
    owner: list[Owner]  # [S] whose part a slot is
    into: Tensor  # [F, S, 3, 3] from the world's axes to the unit frame's, extents divided out
    center: Tensor  # [F, S, 3]
    radius: Tensor  # [F, S] of the ball around it; -1 where the frame has no such primitive
    color: Tensor  # [F, S, 3]
    scoops: Tensor  # [F, K, 4] centre and radius of what is bitten off the first thing
    flesh: Tensor  # [F, 3] the colour that bites lay bare

    @property
    def placed(self) -> Tensor:
        """All that makes one frame look unlike another, [F, ...]."""
        parts = (self.center, self.into, self.scoops)
        return torch.cat([part.flatten(1) for part in parts], 1)

    @property
    def known(self) -> list[Owner]:
        """All that can be seen, bare bites included."""
        return sorted({*self.owner, *([BITE] if self.scoops.shape[1] else [])})

    @property
    def casting(self) -> list[int]:
        """The slots that throw shadows."""
        return [slot for slot, owner in enumerate(self.owner) if owner[0] != FLAT]


def collect(scenes: list[Scene]) -> Primitives:
    """The primitives of every frame of the scenes."""
    frames = [objects(s, frame / s.fps) for s in scenes for frame in range(s.num_frames)]
    most: dict[Owner, Counter[str]] = {owner: Counter() for s in scenes for owner in owners(s)}
    for frame in frames:
        for owner, bodies in frame.items():
            most[owner] |= Counter(body.shape for body in bodies)
    slots = [(owner, shape) for owner, counts in most.items() for shape in SHAPES
             for _ in range(counts[shape])]  # fmt: skip
    slots = slots or [(("thing", 0), "ball")]  # an empty place
    rows = []
    for frame in frames:
        left = {(owner, shape): [b for b in bodies if b.shape == shape]
                for owner, bodies in frame.items() for shape in SHAPES}  # fmt: skip
        rows.append([left[slot].pop() if left.get(slot) else NOWHERE for slot in slots])
    center, half, turned, color = (
        torch.tensor([[getattr(body, name) for body in row] for row in rows])
        for name in ("center", "half", "rotation", "color")
    )
    return Primitives(
        shapes=[shape for _, shape in slots],
        owner=[owner for owner, _ in slots],
        into=turned.transpose(2, 3) / half[..., None],
        center=center,
        radius=torch.where(center[..., 1] > -1e4, half.square().sum(2).sqrt(), -1.0),
        color=color,
        scoops=_scoops(scenes),
        flesh=torch.tensor([flesh(s) for s in scenes for _ in range(s.num_frames)]),
    )


def _scoops(scenes: list[Scene]) -> Tensor:
    rows = [[(*scoop.center, scoop.radius) for scoop in scoops(s, frame / s.fps)]
            for s in scenes for frame in range(s.num_frames)]  # fmt: skip
    most = max(len(row) for row in rows)
    return torch.tensor(
        [row + [(0.0, -1e5, 0.0, 0.0)] * (most - len(row)) for row in rows]
    ).view(len(rows), most, 4)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bitten:
    """Where rays meet what is left of a body: how far off, and the normal where a bite bared it."""

    distance: Tensor
    bare: Tensor
    normal: Vector


def bitten(scoops: Tensor, distance: Tensor, origin: Vector, direction: Vector) -> Bitten:
    """Carry rays that enter a body inside a bite to the far side of the bite, bite after bite.

    A ray that begins in a bite enters at distance 0. Whether it is still inside of the body there
    is for the caller to say.

    Args:
        scoops: [F, K, 4], balls in the world.
        distance: to the body, [F, h, w].
    """
    bare = torch.zeros_like(distance, dtype=torch.bool)
    normal: Vector = (torch.zeros_like(distance),) * 3
    for _ in range(scoops.shape[1]):  # one bite may lead into the next
        for scoop in scoops.unbind(1):
            x, y, z, radius = scoop[:, :, None, None].unbind(1)
            point = along(origin, direction, distance)
            inward: Vector = (x - point[0], y - point[1], z - point[2])
            left = radius * radius - dot(inward, inward)
            inside = left > 1e-5
            a, b = dot(direction, direction), dot(direction, inward)
            further = (b + (b * b + a * left.clamp_min(0)).sqrt()) / a
            distance = torch.where(inside, distance + further, distance)
            bare = bare | inside
            facing = (i - further * d for i, d in zip(inward, direction, strict=True))
            nx, ny, nz = (torch.where(inside, f, n) for f, n in zip(facing, normal, strict=True))
            normal = (nx, ny, nz)
    return Bitten(distance, bare, normal)
