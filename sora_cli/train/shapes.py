"""Unit shapes of the ray tracer: where a ray enters a ball, box, cylinder or cone, and the normal.

Rays are given by their components, three tensors of shapes that broadcast, in the shape's own
frame, where it fills [-1, 1]³: one pass of plain arithmetic, nothing gathered. `distance` is FAR
where the ray misses; a normal belongs to a point on the surface and has no certain length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FAR = 1e6
Vector = tuple[Tensor, Tensor, Tensor]


def dot(a: Vector, b: Vector) -> Tensor:
    """Dot product of two vectors given by their components."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(v: Vector) -> Vector:
    """v at length 1."""
    scale = dot(v, v).clamp_min(1e-20).rsqrt()
    return v[0] * scale, v[1] * scale, v[2] * scale


def along(origin: Vector, direction: Vector, t: Tensor) -> Vector:
    """The point at distance t: origin + t · direction."""
    x, y, z = (o + t * d for o, d in zip(origin, direction, strict=True))
    return x, y, z


def _away_from_zero(x: Tensor, least: float) -> Tensor:
    return torch.where(x.abs() < least, least, x)


def _solve(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The nearer root of a t² + 2 b t + c = 0, FAR where there is none."""
    disc = b * b - a * c
    root = (-b - disc.clamp_min(0).sqrt()) / a
    return torch.where(disc > 0, root, FAR)


def _cap(o: Vector, d: Vector, y: float) -> Tensor:
    """Where the ray meets the disc of radius 1 at height y."""
    t = (y - o[1]) / _away_from_zero(d[1], 1e-9)
    x, z = o[0] + t * d[0], o[2] + t * d[2]
    return torch.where((x * x + z * z < 1) & (t > 0), t, FAR)


def _ball(o: Vector, d: Vector) -> Tensor:
    """x² + y² + z² = 1."""
    return _solve(dot(d, d), dot(o, d), dot(o, o) - 1)


def _box(o: Vector, d: Vector) -> Tensor:
    """|x|, |y|, |z| ≤ 1, by slabs."""
    entries, exits = [], []
    for place, step in zip(o, d, strict=True):
        inverse = 1 / _away_from_zero(step, 1e-9)
        first, second = (-1 - place) * inverse, (1 - place) * inverse
        entries.append(torch.minimum(first, second))
        exits.append(torch.maximum(first, second))
    near = torch.maximum(torch.maximum(entries[0], entries[1]), entries[2])
    far = torch.minimum(torch.minimum(exits[0], exits[1]), exits[2])
    return torch.where((near < far) & (near > 0), near, FAR)


def _cylinder(o: Vector, d: Vector) -> Tensor:
    """x² + z² = 1 between caps at y = ±1."""
    a = (d[0] * d[0] + d[2] * d[2]).clamp_min(1e-9)
    side = _solve(a, o[0] * d[0] + o[2] * d[2], o[0] * o[0] + o[2] * o[2] - 1)
    side = torch.where((o[1] + side * d[1]).abs() < 1, side, FAR)
    return torch.minimum(side, torch.minimum(_cap(o, d, 1.0), _cap(o, d, -1.0)))


def _cone(o: Vector, d: Vector) -> Tensor:
    """Apex at y = 1, base of radius 1 at y = -1: x² + z² = ((1 - y) / 2)²."""
    rise, slope = (1 - o[1]) / 2, -d[1] / 2
    a = _away_from_zero(d[0] * d[0] + d[2] * d[2] - slope * slope, 1e-6)
    b = o[0] * d[0] + o[2] * d[2] - rise * slope
    disc = b * b - a * (o[0] * o[0] + o[2] * o[2] - rise * rise)
    root = disc.clamp_min(0).sqrt()
    side = torch.full_like(disc, FAR)
    for t in ((-b - root) / a, (root - b) / a):  # either may lie on the cone's mirror image
        on_it = ((o[1] + t * d[1]).abs() < 1) & (t > 0) & (disc > 0)
        side = torch.minimum(side, torch.where(on_it, t, FAR))
    return torch.minimum(side, _cap(o, d, -1.0))


def _ball_normal(p: Vector) -> Vector:
    return p


def _box_normal(p: Vector) -> Vector:
    x, y, z = (c.abs() for c in p)
    on_x, on_y = (x >= y) & (x >= z), (y > x) & (y >= z)
    return (
        torch.where(on_x, torch.sign(p[0]), 0.0),
        torch.where(on_y, torch.sign(p[1]), 0.0),
        torch.where(on_x | on_y, 0.0, torch.sign(p[2])),
    )


def _cylinder_normal(p: Vector) -> Vector:
    side = p[0] * p[0] + p[2] * p[2] > p[1] * p[1]
    return (
        torch.where(side, p[0], 0.0),
        torch.where(side, 0.0, torch.sign(p[1])),
        torch.where(side, p[2], 0.0),
    )


def _cone_normal(p: Vector) -> Vector:
    radius = (p[0] * p[0] + p[2] * p[2]).sqrt()
    side = (radius - (1 - p[1]) / 2).abs() < p[1] + 1
    return (
        torch.where(side, p[0], 0.0),
        torch.where(side, (1 - p[1]) / 4, -1.0),
        torch.where(side, p[2], 0.0),
    )


def _in_ball(p: Vector) -> Tensor:
    return dot(p, p) < 1


def _in_box(p: Vector) -> Tensor:
    return (p[0].abs() < 1) & (p[1].abs() < 1) & (p[2].abs() < 1)


def _in_cylinder(p: Vector) -> Tensor:
    return (p[0] * p[0] + p[2] * p[2] < 1) & (p[1].abs() < 1)


def _in_cone(p: Vector) -> Tensor:
    radius = (1 - p[1]) / 2
    return (p[0] * p[0] + p[2] * p[2] < radius * radius) & (p[1].abs() < 1)


@dataclass(frozen=True, slots=True)
class Shape:
    """`distance(origin, direction)` where a ray enters, `normal(point)` of a point on it, and
    whether a point is `inside`.
    """

    distance: Callable[[Vector, Vector], Tensor]
    normal: Callable[[Vector], Vector]
    inside: Callable[[Vector], Tensor]


SHAPES = {
    "ball": Shape(_ball, _ball_normal, _in_ball),
    "box": Shape(_box, _box_normal, _in_box),
    "cylinder": Shape(_cylinder, _cylinder_normal, _in_cylinder),
    "cone": Shape(_cone, _cone_normal, _in_cone),
}
