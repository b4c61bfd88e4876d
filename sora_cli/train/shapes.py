"""Unit shapes of the ray tracer: where a ray enters a ball, box, cylinder or cone, and the normal.

Rays are [R, 3] origins and directions in the shape's own frame, where it fills [-1, 1]³. Each
function gives the distance [R] along the ray (FAR where it misses) and an unnormalised normal
[R, 3].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FAR = 1e6


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product over the last axis; on the CPU faster than a reduction over three numbers."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def unit(v: Tensor) -> Tensor:
    """v at length 1, over the last axis."""
    return v * dot(v, v).clamp_min(1e-20).rsqrt()[..., None]


def _solve(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The nearer root of a t² + 2 b t + c = 0, FAR where there is none."""
    disc = b * b - a * c
    root = (-b - disc.clamp_min(0).sqrt()) / a
    return torch.where(disc > 0, root, FAR)


def _cap(o: Tensor, d: Tensor, y: float, radius: float = 1.0) -> Tensor:
    t = (y - o[:, 1]) / torch.where(d[:, 1].abs() < 1e-9, 1e-9, d[:, 1])
    x, z = o[:, 0] + t * d[:, 0], o[:, 2] + t * d[:, 2]
    return torch.where((x * x + z * z < radius) & (t > 0), t, FAR)


def hit_ball(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """x² + y² + z² = 1."""
    t = _solve(dot(d, d), dot(o, d), dot(o, o) - 1)
    return t, o + t[:, None] * d


def hit_box(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """|x|, |y|, |z| ≤ 1, by slabs."""
    inverse = 1 / torch.where(d.abs() < 1e-9, 1e-9, d)
    near = torch.minimum((-1 - o) * inverse, (1 - o) * inverse)
    far = torch.maximum((-1 - o) * inverse, (1 - o) * inverse)
    t, axis = near.max(1)
    hit = (t < far.min(1).values) & (t > 0)
    normal = functional.one_hot(axis, 3) * -torch.sign(d)
    return torch.where(hit, t, FAR), normal


def hit_cylinder(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """x² + z² = 1 between caps at y = ±1."""
    a = (d[:, 0] ** 2 + d[:, 2] ** 2).clamp_min(1e-9)
    b = o[:, 0] * d[:, 0] + o[:, 2] * d[:, 2]
    side = _solve(a, b, o[:, 0] ** 2 + o[:, 2] ** 2 - 1)
    side = torch.where((o[:, 1] + side * d[:, 1]).abs() < 1, side, FAR)
    cap = torch.minimum(_cap(o, d, 1.0), _cap(o, d, -1.0))
    t = torch.minimum(side, cap)
    point = o + t[:, None] * d
    up = torch.tensor([0.0, 1.0, 0.0], device=o.device) * torch.sign(point[:, 1:2])
    radial = point * torch.tensor([1.0, 0.0, 1.0], device=o.device)
    return t, torch.where((side < cap)[:, None], radial, up)


def hit_cone(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Apex at y = 1, base of radius 1 at y = -1: x² + z² = ((1 - y) / 2)²."""
    rise, slope = (1 - o[:, 1]) / 2, -d[:, 1] / 2
    a = d[:, 0] ** 2 + d[:, 2] ** 2 - slope**2
    b = o[:, 0] * d[:, 0] + o[:, 2] * d[:, 2] - rise * slope
    c = o[:, 0] ** 2 + o[:, 2] ** 2 - rise**2
    disc = (b * b - a * c).clamp_min(0).sqrt()
    safe = torch.where(a.abs() < 1e-6, 1e-6, a)
    roots = torch.stack(((-b - disc) / safe, (-b + disc) / safe))  # either may be the upper nappe
    y = o[:, 1] + roots * d[:, 1]
    valid = (y.abs() < 1) & (roots > 0) & (b * b - a * c > 0)
    side = torch.where(valid, roots, FAR).min(0).values
    base = _cap(o, d, -1.0)
    t = torch.minimum(side, base)
    point = o + t[:, None] * d
    normal = torch.stack((point[:, 0], (1 - point[:, 1]) / 4, point[:, 2]), 1)
    down = torch.tensor([0.0, -1.0, 0.0], device=o.device).expand_as(normal)
    return t, torch.where((side < base)[:, None], normal, down)


HITS = {"ball": hit_ball, "box": hit_box, "cylinder": hit_cylinder, "cone": hit_cone}
