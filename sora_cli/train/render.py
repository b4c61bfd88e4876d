"""A ray tracer for the procedural world, in plain torch, the same on CPU and GPU.

A ray goes into a primitive's unit frame, where ball, box, cylinder and cone have short closed
forms. Few frames are drawn at a time, and of each only the rectangles that a thing or its shadow
can reach, by plain arithmetic on planes small enough to stay in the cache; where the camera stands
still, floor and sky are drawn once. F is frames, S slots (primitives of one frame), h×w samples of
a rectangle. Flat worlds have no rays: flat.py draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sora_cli.train.bodies import Owner, owners
from sora_cli.train.events import FLAT
from sora_cli.train.flat import flat_frames
from sora_cli.train.primitives import BITE, Bitten, Primitives, bitten, collect
from sora_cli.train.scenery import (
    Background,
    Cameras,
    Lighting,
    Rectangle,
    background,
    planes,
)
from sora_cli.train.shapes import FAR, SHAPES, Vector, along, dot, unit
from sora_cli.train.world import Scene

MOVING = ("thing", "piece", "bite")  # what counts as a thing in masks
FRAMES_AT_ONCE = 2  # on a CPU, so that what is computed stays in its cache
Numbers = TypeVar("Numbers")


class _Drawing:
    """A few frames of one camera's size, from their background to their colours."""

    def __init__(
        self, primitives: Primitives, cameras: Cameras, lighting: Lighting, frames: slice
    ) -> None:
        self.primitives, self.cameras, self.frames = primitives, cameras, frames
        light = lighting.at(frames)
        self.toward_sun, self.sun = planes(light.toward_sun), planes(light.sun)
        self.ambient, self.shadow = planes(light.ambient), light.shadow[..., None]

    def _unit_frame(
        self, slot: int, origin: Vector, direction: Vector
    ) -> tuple[Tensor, Vector, Vector]:
        """The matrix into a slot's unit frame [F, 3, 3, 1, 1], and the rays there."""
        into = self.primitives.into[self.frames, slot, :, :, None, None]
        center = planes(self.primitives.center[self.frames, slot])
        x, y, z = (o - c for o, c in zip(origin, center, strict=True))
        return into, _turned(into, (x, y, z)), _turned(into, direction)

    def darken(self, slot: int, origin: Vector) -> Tensor:
        """Whether a slot's primitive stands between points and the sun."""
        _, o, d = self._unit_frame(slot, origin, self.toward_sun)
        t = SHAPES[self.primitives.shapes[slot]].distance(o, d)
        if self._is_bitten(slot):
            t = self._left(slot, t, origin, self.toward_sun, o, d).distance
        return (t > 1e-3) & (t < FAR / 2)

    def meet(
        self, slot: int, origin: Vector, direction: Vector
    ) -> tuple[Tensor, Vector, Tensor | None]:
        """Distance to a slot's primitive along rays, its normal there, where a bite bared it."""
        into, o, d = self._unit_frame(slot, origin, direction)
        shape = SHAPES[self.primitives.shapes[slot]]
        t = shape.distance(o, d)
        normal = unit(_turned(into.transpose(1, 2), shape.normal(along(o, d, t))))
        if not self._is_bitten(slot):
            return t, normal, None
        left = self._left(slot, t, origin, direction, o, d)
        x, y, z = (torch.where(left.bare, inner, outer)
                   for inner, outer in zip(unit(left.normal), normal, strict=True))  # fmt: skip
        return left.distance, (x, y, z), left.bare

    def _is_bitten(self, slot: int) -> bool:
        return self.primitives.owner[slot] == ("thing", 0) and self.primitives.scoops.shape[1] > 0

    def _left(
        self, slot: int, t: Tensor, origin: Vector, direction: Vector, o: Vector, d: Vector
    ) -> Bitten:
        """Where rays, also given in the slot's unit frame, meet what bites have left of it."""
        inside = SHAPES[self.primitives.shapes[slot]].inside
        start = torch.where(inside(o), 0.0, t)  # a ray out of a bite begins inside the whole thing
        left = bitten(self.primitives.scoops[self.frames], start, origin, direction)
        there = inside(along(o, d, left.distance))
        return replace(
            left, distance=torch.where(~left.bare, t, torch.where(there, left.distance, FAR))
        )

    def thing(self, slots: list[int], part: Rectangle, bounds: dict[int, Rectangle]) -> _Surface:
        """One thing in a rectangle: where it is met, and its colour in the light."""
        eye, direction = self.cameras.rays(self.frames, part)
        size = direction[0].shape
        best = torch.full(size, FAR, device=direction[0].device)
        normal, albedo = best.new_zeros(3, *size), best.new_zeros(3, *size)
        bitten_there = torch.zeros_like(best, dtype=torch.bool)
        for slot in slots:
            inner = _within(bounds[slot], part)
            if inner is None:
                continue
            rays = tuple(d[inner] for d in direction)
            t, facing, bare = self.meet(slot, eye, (rays[0], rays[1], rays[2]))
            closer = (t > 0.05) & (t < best[inner])
            best[inner] = torch.where(closer, t, best[inner])
            color = planes(self.primitives.color[self.frames, slot])
            flesh = planes(self.primitives.flesh[self.frames])
            if bare is not None:
                bitten_there[inner] = torch.where(closer, bare, bitten_there[inner])
            for i in range(3):
                own = color[i] if bare is None else torch.where(bare, flesh[i], color[i])
                normal[i][inner] = torch.where(closer, facing[i], normal[i][inner])
                albedo[i][inner] = torch.where(closer, own, albedo[i][inner])
        point = along(eye, direction, best)
        shaded = self._shade(point, unit(direction), normal, albedo)
        return _Surface(best, shaded, bitten_there)

    def _shade(self, point: Vector, direction: Vector, normal: Tensor, albedo: Tensor) -> Tensor:
        """Colours [F, 3, h, w] of points whose normals and albedos are [3, F, h, w]."""
        facing = (normal[0], normal[1], normal[2])
        x, y, z = (p + 4e-3 * n for p, n in zip(point, facing, strict=True))
        dark = torch.zeros_like(x, dtype=torch.bool)
        for slot in self.primitives.casting:
            dark |= self.darken(slot, (x, y, z))
        sunlight = 1 - dark * self.shadow
        diffuse = dot(facing, self.toward_sun).clamp_min(0) * sunlight
        a, b, c = (s - d for s, d in zip(self.toward_sun, direction, strict=True))
        gloss = 0.35 * dot(facing, unit((a, b, c))).clamp_min(0) ** 24 * sunlight
        sky_share = 0.72 + 0.28 * facing[1]  # less ambient light from below
        return torch.stack(
            [
                1.15 * own * (ambient * sky_share + sun * diffuse) + sun * gloss
                for own, ambient, sun in zip(albedo, self.ambient, self.sun, strict=True)
            ],
            1,
        )


@dataclass(frozen=True, slots=True)
class _Surface:
    """A thing as it is seen."""

    depth: Tensor  # [F, h, w], FAR where it is not
    color: Tensor  # [F, 3, h, w]
    bare: Tensor  # [F, h, w] whether a bite laid it bare


def _turned(matrix: Tensor, v: Vector) -> Vector:
    """[F, 3, 3, 1, 1] times a vector of planes."""
    x, y, z = (matrix[:, i, 0] * v[0] + matrix[:, i, 1] * v[1] + matrix[:, i, 2] * v[2]
               for i in range(3))  # fmt: skip
    return x, y, z


def _within(inner: Rectangle, outer: Rectangle) -> tuple[Any, slice, slice] | None:
    """The index of a rectangle in the planes of another that may hold less of it; None if empty."""
    top, bottom, left, right = _common(inner, outer)
    if top >= bottom or left >= right:
        return None
    return ..., slice(top - outer[0], bottom - outer[0]), slice(left - outer[2], right - outer[2])


def _common(one: Rectangle, two: Rectangle) -> Rectangle:
    return max(one[0], two[0]), min(one[1], two[1]), max(one[2], two[2]), min(one[3], two[3])


def _around(rectangles: list[Rectangle]) -> Rectangle:
    """The smallest rectangle that holds all."""
    top, bottom, left, right = zip(*rectangles, strict=True)
    return min(top), max(bottom), min(left), max(right)


class _Shot:
    """Frames that are drawn in one: of one scene on a CPU, of all on a GPU."""

    def __init__(self, scenes: list[Scene], samples: int, device: torch.device) -> None:
        self.samples, self.device = samples, device
        self.of_frame = [scene for scene in scenes for _ in range(scene.num_frames)]
        cameras, primitives = Cameras.of(scenes, samples), collect(scenes)
        lighting = Lighting.of(scenes)
        self.still = len(scenes) == 1 and scenes[0].camera == "static"
        self.again: Tensor | None = None  # [F]: which of the frames drawn is shown
        if self.still:  # what stands or lies is drawn once
            _, self.again = primitives.placed.unique_consecutive(dim=0, return_inverse=True)
            first = self.again.diff(prepend=self.again.new_tensor([-1])) > 0
            self.of_frame = scenes * int(first.sum())
            cameras = _changed(cameras, lambda t: t[first])
            primitives = _changed(primitives, lambda t: t[first])
            lighting = _changed(lighting, lambda t: t[first])
        # On the CPU: what is drawn where has to be known there.
        self.things = cameras.bounds(primitives.center, primitives.radius)
        sun = lighting.toward_sun[:, None]
        foot = primitives.center - sun * (primitives.center[..., 1:2] / sun[..., 1:2])
        self.shadows = cameras.bounds(foot, primitives.radius / sun[..., 1])
        self.cameras = _changed(cameras, lambda t: t.to(device))
        self.primitives = _changed(primitives, lambda t: t.to(device))
        self.lighting = _changed(lighting, lambda t: t.to(device))

    def rectangles(self, bounds: Tensor, frames: slice) -> dict[int, Rectangle]:
        """Of each slot that can be seen in any of the frames: where, in whole pixels."""
        top, _, left, _ = bounds[frames].amin(0).unbind(1)
        _, bottom, _, right = bounds[frames].amax(0).unbind(1)
        s, found = self.samples, {}
        for slot, (a, b, c, d) in enumerate(
            torch.stack((top, bottom, left, right), 1).div(s).tolist()
        ):
            if a < b:
                corners = (math.floor(a) * s, math.ceil(b) * s, math.floor(c) * s, math.ceil(d) * s)
                found[slot] = _common(corners, self.cameras.whole)
        return {n: r for n, r in found.items() if r[0] < r[1] and r[2] < r[3]}

    def draw(self, groups: Sequence[frozenset[Owner]]) -> tuple[Tensor, Tensor]:
        """uint8 [F, H, W, 3], and a mask of each group of objects [F, groups, H, W]."""
        count = len(self.of_frame)
        at_once = FRAMES_AT_ONCE if self.device.type == "cpu" else count
        size = (count, self.cameras.height // self.samples, self.cameras.width // self.samples)
        video = torch.empty(*size, 3, dtype=torch.uint8, device=self.device)
        covered = torch.zeros(count, len(groups), *size[1:], dtype=torch.bool, device=self.device)
        known = self.primitives.known
        chosen = torch.tensor([[owner in group for group in groups] for owner in [*known, None]],
                              dtype=torch.float32, device=self.device)  # fmt: skip
        behind: Background | None = None
        if self.still:
            behind = background(self.of_frame[:1], slice(1), self.cameras, self.lighting)
            video[:] = self._pixels(behind.lit)
        for first in range(0, count, at_once):
            frames = slice(first, min(first + at_once, count))
            there = behind or background(self.of_frame[frames], frames, self.cameras, self.lighting)
            part, color, who = self._compose(frames, there, known)
            rows, columns = (slice(part[i] // self.samples, part[i + 1] // self.samples)
                             for i in (0, 2))  # fmt: skip
            video[frames, rows, columns] = self._pixels(color)
            shares = self._mean(chosen[who].movedim(-1, 1))  # [F, groups, H, W]
            covered[frames, :, rows, columns] = shares > 0.5
        return (video, covered) if self.again is None else (video[self.again], covered[self.again])

    def _compose(
        self, frames: slice, there: Background, known: list[Owner]
    ) -> tuple[Rectangle, Tensor, Tensor]:
        """The rectangle that differs from a still background, its colours [F, 3, h, w], and which
        of the known objects is seen [F, h, w]; -1: none.
        """
        drawing = _Drawing(self.primitives, self.cameras, self.lighting, frames)
        bounds = self.rectangles(self.things, frames)
        casting = set(self.primitives.casting)
        shadows = {n: r for n, r in self.rectangles(self.shadows, frames).items() if n in casting}
        part = self.cameras.whole
        if self.still:
            part = _around([*bounds.values(), *shadows.values()] or [(0, 0, 0, 0)])
        here: Any = _within(part, self.cameras.whole) or (..., slice(0), slice(0))
        count = frames.stop - frames.start
        color = there.lit[here].repeat(count // len(there.lit), 1, 1, 1)
        for slot, rectangle in shadows.items():
            inner, outer = _within(rectangle, part), _within(rectangle, self.cameras.whole)
            assert inner is not None and outer is not None
            x, z = there.x[outer], there.z[outer]
            dark = drawing.darken(slot, (x, torch.zeros_like(x), z)) & (x < FAR / 2)
            color[inner] = torch.where(dark[:, None], there.dark[outer], color[inner])
        depth = torch.full_like(color[:, 0], FAR)
        who = torch.full_like(depth, -1, dtype=torch.int64)
        for owner in sorted({self.primitives.owner[slot] for slot in bounds}):
            slots = [n for n in bounds if self.primitives.owner[n] == owner]
            around = _around([bounds[n] for n in slots])
            surface = drawing.thing(slots, around, bounds)
            inner = _within(around, part)
            assert inner is not None
            closer = surface.depth < depth[inner]
            depth[inner] = torch.where(closer, surface.depth, depth[inner])
            who[inner] = torch.where(closer, known.index(owner), who[inner])
            if BITE in known:
                who[inner] = torch.where(closer & surface.bare, known.index(BITE), who[inner])
            color[inner] = torch.where(closer[:, None], surface.color, color[inner])
        return part, color, who

    def _mean(self, plane: Tensor) -> Tensor:
        """[..., h, w] samples → [..., H, W] pixels."""
        s = self.samples
        rows = sum((plane[..., i::s, :] for i in range(1, s)), plane[..., ::s, :])
        return sum((rows[..., i::s] for i in range(1, s)), rows[..., ::s]) / s**2

    def _pixels(self, color: Tensor) -> Tensor:
        """[F, 3, h, w] → uint8 [F, H, W, 3]."""
        mean = self._mean(color.clamp(0, 1))
        return (mean * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1)


def _changed(numbers: Numbers, change: Callable[[Tensor], Tensor]) -> Numbers:
    """A dataclass with its tensors changed."""
    found = {f.name: getattr(numbers, f.name) for f in fields(numbers)}  # type: ignore[arg-type]
    tensors = {name: change(v) for name, v in found.items() if isinstance(v, Tensor)}
    return replace(numbers, **tensors)  # type: ignore[type-var]


@torch.no_grad()
def render(
    scenes: list[Scene], *, device: str | torch.device = "cpu", samples: int = 2
) -> tuple[Tensor, Tensor]:
    """Render scenes of one size and length, of any families.

    Returns uint8 frames [B, T, H, W, 3] and boolean masks of the things and their pieces
    [B, T, H, W] (neither walls nor paint); `samples`² rays a pixel.
    """
    first = scenes[0]
    shape = (first.num_frames, first.height, first.width)
    assert all((s.num_frames, s.height, s.width) == shape for s in scenes)
    device = torch.device(device)
    video = torch.empty(len(scenes), *shape, 3, dtype=torch.uint8, device=device)
    covered = torch.empty(len(scenes), *shape, dtype=torch.bool, device=device)
    solid: dict[object, list[int]] = {}  # what is drawn in one: scenes of one family on a GPU
    for number, scene in enumerate(scenes):
        if isinstance(scene.event, FLAT):
            video[number], covered[number] = flat_frames(scene, device)
        else:
            solid.setdefault(number if device.type == "cpu" else scene.family, []).append(number)
    for shot in solid.values():
        chosen = [scenes[number] for number in shot]
        moving = frozenset(o for s in chosen for o in owners(s) if o[0] in MOVING)
        frames, masks = _Shot(chosen, samples, device).draw([moving])
        video[shot] = frames.view(len(shot), *shape, 3)
        covered[shot] = masks[:, 0].view(len(shot), *shape)
    return video, covered


@torch.no_grad()
def render_objects(scene: Scene, *, samples: int = 2) -> dict[Owner, Tensor]:
    """Where each object of a scene is seen (not hidden by another): masks [T, H, W].

    Its keys are `bodies.owners`; ("thing", 0) and ("piece", 3) are such objects.
    """
    every = owners(scene)
    masks = _Shot([scene], samples, torch.device("cpu")).draw([frozenset([o]) for o in every])[1]
    return dict(zip(every, masks.unbind(1), strict=True))
