"""A batched ray tracer for the procedural world, in plain torch, the same on CPU and GPU.

Every primitive is a unit shape moved by (rotation, half extents, centre): the ray goes into the
unit frame, where ball, box, cylinder and cone have short closed forms. Only the pixels inside a
primitive's projected bounding circle are traced. F is frames, N rays of one frame, R traced rays.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from sora_cli.train.shapes import FAR, HITS, dot, unit
from sora_cli.train.world import COLORS, TAN_HALF_FOV, THINGS, Scene, camera_pose, position, yaw

SHAPES = tuple(HITS)
FOG_DISTANCE = 45.0  # m


@dataclass(frozen=True, kw_only=True, slots=True)
class Light:
    """A sky: colours at the zenith and the horizon, and the light that falls from it."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    sun: tuple[float, float, float]
    ambient: tuple[float, float, float]
    height: float  # of the sun: its y over its horizontal distance
    shadow: float  # share of sunlight that a shadow takes away


LIGHTS: dict[str, Light] = {
    "day": Light(zenith=(0.22, 0.48, 0.90), horizon=(0.74, 0.87, 0.98), sun=(0.72, 0.69, 0.63),
                 ambient=(0.42, 0.43, 0.46), height=1.7, shadow=0.85),
    "sunset": Light(zenith=(0.36, 0.28, 0.50), horizon=(1.00, 0.55, 0.22), sun=(0.72, 0.57, 0.42),
                    ambient=(0.42, 0.38, 0.40), height=1.1, shadow=0.80),
    "night": Light(zenith=(0.01, 0.02, 0.10), horizon=(0.09, 0.12, 0.30), sun=(0.50, 0.53, 0.66),
                   ambient=(0.24, 0.26, 0.34), height=1.6, shadow=0.75),
    "overcast": Light(zenith=(0.58, 0.61, 0.66), horizon=(0.76, 0.78, 0.80),
                      sun=(0.34, 0.34, 0.34), ambient=(0.60, 0.61, 0.62), height=3.0, shadow=0.7),
}  # fmt: skip
FLOOR_COLORS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "grass": ((0.20, 0.46, 0.12), (0.30, 0.55, 0.17)),
    "sand": ((0.80, 0.66, 0.38), (0.88, 0.75, 0.48)),
    "snow": ((0.88, 0.91, 0.95), (0.95, 0.96, 0.98)),
    "tiles": ((0.44, 0.46, 0.50), (0.70, 0.71, 0.73)),
    "wood": ((0.44, 0.26, 0.12), (0.56, 0.35, 0.18)),
    "water": ((0.03, 0.22, 0.42), (0.08, 0.34, 0.56)),
}


@dataclass(frozen=True, slots=True)
class _Primitives:
    shape: Tensor  # [F, P] index into SHAPES, -1 where there is none
    center: Tensor  # [F, P, 3]
    half: Tensor  # [F, P, 3]
    rotation: Tensor  # [F, P, 3, 3] columns are the primitive's axes in the world
    color: Tensor  # [F, P, 3]


def _rotation(turn: float, roll: float, tilt: float) -> list[list[float]]:
    """Roll about z, then tilt about x, then turn about y (rad)."""
    cy, sy, cz, sz = math.cos(turn), math.sin(turn), math.cos(roll), math.sin(roll)
    cx, sx = math.cos(tilt), math.sin(tilt)
    return [
        [cy * cz + sy * sx * sz, -cy * sz + sy * sx * cz, sy * cx],
        [cx * sz, cx * cz, -sx],
        [-sy * cz + cy * sx * sz, sy * sz + cy * sx * cz, cy * cx],
    ]


def _collect(scenes: list[Scene], device: torch.device) -> _Primitives:
    slots = max(sum(len(THINGS[t.kind]) for t in scene.things) for scene in scenes)
    rows = []
    for scene in scenes:
        jitter = random.Random(f"colour/{scene.seed}/{scene.index}")
        tints = [[jitter.uniform(-0.03, 0.03) for _ in range(3)] for _ in scene.things]
        for frame in range(scene.num_frames):
            row = []
            for thing, tint in zip(scene.things, tints, strict=True):
                foot = position(thing, frame / scene.fps)
                turn = yaw(thing, frame / scene.fps)
                cos, sin = math.cos(turn), math.sin(turn)
                own = [c + d for c, d in zip(COLORS[thing.color], tint, strict=True)]
                for part in THINGS[thing.kind]:
                    x, y, z = (c * thing.scale for c in part.center)
                    center = [foot[0] + cos * x + sin * z, foot[1] + y, foot[2] - sin * x + cos * z]
                    half = [h * thing.scale for h in part.half]
                    row.append(
                        (
                            SHAPES.index(part.shape),
                            center,
                            half,
                            _rotation(turn, part.roll, part.tilt),
                            list(part.color or own),
                        )
                    )
            empty = (-1, [0.0] * 3, [1.0] * 3, _rotation(0, 0, 0), [0.0] * 3)
            rows.append(row + [empty] * (slots - len(row)))
    fields = [[[slot[i] for slot in row] for row in rows] for i in range(5)]
    tensors = [torch.tensor(fields[0])] + [torch.tensor(f, dtype=torch.float32) for f in fields[1:]]
    return _Primitives(*(t.to(device) for t in tensors))


def _trace(
    primitives: _Primitives, slot: int, frame: Tensor, origin: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor]:
    """Distance [R] and world normal [R, 3] of one primitive slot along R rays of given frames."""
    rotation, half = primitives.rotation[frame, slot], primitives.half[frame, slot]
    o = torch.einsum("rij,ri->rj", rotation, origin - primitives.center[frame, slot]) / half
    d = torch.einsum("rij,ri->rj", rotation, direction) / half
    shape = primitives.shape[frame, slot]
    t, normal = torch.full_like(o[:, 0], FAR), torch.zeros_like(o)
    for index in shape.unique().tolist():
        if index < 0:
            continue
        rows = (shape == index).nonzero()[:, 0]
        t[rows], normal[rows] = HITS[SHAPES[index]](o[rows], d[rows])
    world = torch.einsum("rij,rj->ri", rotation, normal / half)
    return t, unit(world)


class _View:
    """The rays of a batch: one row per distinct camera pose; `row` maps frames to rows."""

    def __init__(self, scenes: list[Scene], samples: int, device: torch.device) -> None:
        poses, row = [], []
        for scene in scenes:
            for frame in range(scene.num_frames):
                if frame == 0 or scene.camera != "static":
                    poses.append(camera_pose(scene, frame / scene.fps))
                row.append(len(poses) - 1)
        self.row = torch.tensor(row, device=device)  # [F]
        self.eye = torch.tensor([p[0] for p in poses], device=device)  # [V, 3]
        self.height, self.width = scenes[0].height * samples, scenes[0].width * samples
        self.focal = min(self.height, self.width) / 2 / TAN_HALF_FOV  # in samples
        axes = [_rotation(angle, 0.0, -pitch) for _, angle, pitch in poses]
        self.axes = torch.tensor(axes, device=device)  # [V, 3, 3]
        x = (torch.arange(self.width, device=device) + 0.5 - self.width / 2) / self.focal
        y = (self.height / 2 - torch.arange(self.height, device=device) - 0.5) / self.focal
        size = (self.height, self.width)
        plane = torch.stack((x.expand(size), y[:, None].expand(size), torch.ones(size).to(x)), -1)
        rays = torch.einsum("vij,hwj->vhwi", self.axes, plane)
        self.direction = unit(rays).flatten(1, 2)  # [V, N, 3]

    def bounding_circle(self, center: Tensor, radius: Tensor) -> Tensor:
        """[F, H, W] mask of the samples that can see a ball at `center` [F, 3]."""
        local = torch.einsum(
            "fij,fi->fj", self.axes[self.row], center - self.eye[self.row]
        )  # [F, 3]
        depth = local[:, 2]
        reach = self.focal * radius / (depth - radius).clamp_min(0.3) * 1.15 + 2
        cx = self.width / 2 + self.focal * local[:, 0] / depth.clamp_min(0.3)
        cy = self.height / 2 - self.focal * local[:, 1] / depth.clamp_min(0.3)
        x = torch.arange(self.width, device=center.device) + 0.5
        y = torch.arange(self.height, device=center.device) + 0.5
        dx, dy = (x - cx[:, None]) ** 2, (y - cy[:, None]) ** 2
        limit = torch.where(depth > -radius, reach**2, -1.0)
        return dy[:, :, None] + dx[:, None, :] < limit[:, None, None]


def _floor(scenes: list[Scene], view: _View, which: list[int], point: Tensor) -> Tensor:
    """The floor's albedo [V, N, 3] at world points; detail fades with distance."""
    albedo = torch.empty_like(point)
    for row, number in enumerate(which):
        scene = scenes[number]
        rng = random.Random(f"floor/{scene.seed}/{scene.index}")
        low, high = (torch.tensor(c, device=point.device) for c in FLOOR_COLORS[scene.floor])
        x, z = point[row, :, 0], point[row, :, 2]
        fade = torch.exp(-(z + 6).clamp_min(0) / 9.0)
        wave = torch.zeros_like(x)
        count = 2 if scene.floor in ("tiles", "wood") else 4
        for _ in range(count):
            angle, frequency = rng.uniform(0, math.tau), rng.uniform(1.0, 3.2)
            kx, kz = frequency * math.cos(angle), frequency * math.sin(angle)
            if scene.floor == "water":
                kx, kz = 0.35 * kx, 1.4 * frequency
            wave += torch.sin(x * kx + z * kz + rng.uniform(0, math.tau))
        mix = 0.5 + 0.22 * wave / math.sqrt(count) * 1.4 * fade
        if scene.floor == "tiles":  # soft-edged broad squares
            check = torch.sin(x * math.pi / 1.7) * torch.sin((z + 0.4) * math.pi / 1.7)
            mix = 0.5 + (0.5 * torch.tanh(check * 6) + 0.06 * wave) * fade
        elif scene.floor == "wood":  # planks running away from the viewer
            plank = torch.sin(x * math.pi / 0.8)
            mix = 0.5 + (0.42 * torch.tanh(plank * 4) + 0.10 * wave) * fade
        albedo[row] = low + (high - low) * mix.clamp(-0.2, 1.2)[:, None]
    return albedo


def _light(scenes: list[Scene], which: list[int], device: torch.device) -> dict[str, Tensor]:
    """Per row of `which`: the sky's colours, the sun's direction and colours, [V, 3] or [V]."""
    lights = [LIGHTS[scenes[n].sky] for n in which]
    sun = []
    for number, light in zip(which, lights, strict=True):
        scene = scenes[number]
        azimuth = random.Random(f"sun/{scene.seed}/{scene.index}").uniform(-2.6, -0.55)
        sun.append((math.cos(azimuth), light.height, math.sin(azimuth)))
    table = {
        name: torch.tensor([getattr(light, name) for light in lights], device=device)
        for name in ("zenith", "horizon", "sun", "ambient", "shadow")
    }
    table["toward_sun"] = unit(torch.tensor(sun, device=device))
    return table


def _background(scenes: list[Scene], view: _View) -> tuple[Tensor, Tensor, Tensor, dict]:
    """Sky and floor alone: colour, colour in shadow and floor points [V, N, 3], and the lights."""
    which = [n for n, s in enumerate(scenes) for f in range(s.num_frames)
             if f == 0 or s.camera != "static"]  # fmt: skip
    light = _light(scenes, which, view.eye.device)
    d = view.direction
    down = -d[..., 1]
    t = torch.where(down > 1e-4, view.eye[:, None, 1] / down.clamp_min(1e-4), FAR)
    seen = t < FAR
    point = view.eye[:, None] + t.clamp_max(400.0)[..., None] * d
    albedo = _floor(scenes, view, which, point)
    up = light["toward_sun"][:, None, 1:2]
    lit = albedo * (light["ambient"][:, None] + light["sun"][:, None] * up)
    dark = (
        albedo
        * (
            light["ambient"]
            + light["sun"] * light["toward_sun"][:, 1:2] * (1 - light["shadow"][:, None])
        )[:, None]
    )
    fog = torch.exp(-t.clamp_max(400.0) / FOG_DISTANCE)[..., None]
    horizon, zenith = light["horizon"][:, None], light["zenith"][:, None]
    sky = horizon + (zenith - horizon) * (d[..., 1:2].clamp_min(0) * 2.2).clamp_max(1).sqrt()
    color = torch.where(seen[..., None], horizon + (lit - horizon) * fog, sky)
    shadowed = torch.where(seen[..., None], horizon + (dark - horizon) * fog, sky)
    return color, shadowed, torch.where(seen[..., None], point, FAR), light


def _in_shadow(primitives: _Primitives, frame: Tensor, point: Tensor, sun: Tensor) -> Tensor:
    """[R] whether anything stands between world points [R, 3] and the sun."""
    dark = torch.zeros(len(point), dtype=torch.bool, device=point.device)
    for slot in range(primitives.shape.shape[1]):
        offset = primitives.center[frame, slot] - point
        along = dot(offset, sun)
        distance = dot(offset, offset) - along * along
        radius = (primitives.half[frame, slot] ** 2).sum(1)
        near = (distance < radius) & (along > -radius.sqrt()) & (primitives.shape[frame, slot] >= 0)
        rows = near.nonzero()[:, 0]
        t, _ = _trace(primitives, slot, frame[rows], point[rows], sun[rows])
        dark[rows] |= (t > 1e-3) & (t < FAR / 2)
    return dark


def _ground_shadow(
    primitives: _Primitives, view: _View, floor: Tensor, toward_sun: Tensor
) -> Tensor:
    """Flat indices (frame·N + ray) of the floor samples that lie in shadow."""
    frames = primitives.shape.shape[0]
    found = []
    sun = toward_sun[view.row]  # [F, 3]
    for slot in range(primitives.shape.shape[1]):
        center = primitives.center[:, slot]
        radius = (primitives.half[:, slot] ** 2).sum(1).sqrt()
        foot = center - sun * (center[:, 1] / sun[:, 1])[:, None]  # the shadow's middle on y = 0
        reach = radius / sun[:, 1]
        dx = floor[view.row, :, 0] - foot[:, 0:1]
        dz = floor[view.row, :, 2] - foot[:, 2:3]
        inside = (
            dx * dx + dz * dz < torch.where(primitives.shape[:, slot] >= 0, reach**2, -1.0)[:, None]
        )
        flat = inside.flatten().nonzero()[:, 0]
        frame, ray = flat // floor.shape[1], flat % floor.shape[1]
        t, _ = _trace(primitives, slot, frame, floor[view.row[frame], ray], sun[frame])
        found.append(flat[(t > 1e-3) & (t < FAR / 2)])
    assert frames
    return torch.cat(found)


def _things(
    primitives: _Primitives, view: _View, light: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The samples covered by things: flat indices [R] and their shaded colours [R, 3]."""
    frames, samples = primitives.shape.shape[0], view.direction.shape[1]
    device = view.eye.device
    best = torch.full((frames * samples,), FAR, device=device)
    normals = torch.zeros(frames * samples, 3, device=device)
    albedo = torch.zeros(frames * samples, 3, device=device)
    for slot in range(primitives.shape.shape[1]):
        radius = (primitives.half[:, slot] ** 2).sum(1).sqrt()
        radius = torch.where(primitives.shape[:, slot] >= 0, radius, -1e3)
        flat = view.bounding_circle(primitives.center[:, slot], radius).flatten().nonzero()[:, 0]
        frame, ray = flat // samples, flat % samples
        row = view.row[frame]
        t, normal = _trace(primitives, slot, frame, view.eye[row], view.direction[row, ray])
        closer = (t > 0.05) & (t < best[flat])
        flat = flat[closer]
        best[flat], normals[flat] = t[closer], normal[closer]
        albedo[flat] = primitives.color[frame[closer], slot]
    flat = (best < FAR / 2).nonzero()[:, 0]
    frame, ray = flat // samples, flat % samples
    row = view.row[frame]
    direction, normal = view.direction[row, ray], normals[flat]
    point = view.eye[row] + best[flat, None] * direction
    sun = light["toward_sun"][row]
    dark = _in_shadow(primitives, frame, point + 4e-3 * normal, sun)
    sunlight = 1 - dark * light["shadow"][row]
    diffuse = dot(normal, sun).clamp_min(0) * sunlight
    halfway = unit(sun - direction)
    gloss = 0.35 * dot(normal, halfway).clamp_min(0) ** 24 * sunlight
    sky_share = 0.72 + 0.28 * normal[:, 1]  # less ambient light from below
    color = albedo[flat] * (
        light["ambient"][row] * sky_share[:, None] + light["sun"][row] * diffuse[:, None]
    )
    return flat, 1.15 * color + light["sun"][row] * gloss[:, None]


@torch.no_grad()
def render(
    scenes: list[Scene], *, device: str | torch.device = "cpu", samples: int = 2
) -> tuple[Tensor, Tensor]:
    """Render scenes of one size and length.

    Returns uint8 frames [B, T, H, W, 3] and boolean masks of the things [B, T, H, W];
    `samples`² rays a pixel.
    """
    first = scenes[0]
    shape = (first.num_frames, first.height, first.width)
    assert all((s.num_frames, s.height, s.width) == shape for s in scenes)
    device = torch.device(device)
    view = _View(scenes, samples, device)
    primitives = _collect(scenes, device)
    color, shadowed, floor, light = _background(scenes, view)
    frames = len(scenes) * first.num_frames
    picture = color[view.row].flatten(0, 1)  # [F·N, 3]
    shade = _ground_shadow(primitives, view, floor, light["toward_sun"])
    picture[shade] = shadowed[view.row[shade // floor.shape[1]], shade % floor.shape[1]]
    flat, shaded = _things(primitives, view, light)
    picture[flat] = shaded
    covered = torch.zeros(len(picture), device=device)
    covered[flat] = 1
    planes = torch.cat((picture, covered[:, None]), 1)
    planes = planes.view(frames, first.height, samples, first.width, samples, 4).clamp(0, 1)
    planes = planes.mean((2, 4))
    video = (planes[..., :3].clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    batch = (len(scenes), first.num_frames, first.height, first.width)
    return video.view(*batch, 3), (planes[..., 3] > 0.5).view(batch)
