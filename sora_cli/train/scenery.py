"""What stands still in a render: the camera, the light, the floor and the sky.

F is frames, S slots (primitives of one frame), h×w samples of a rectangle; lengths in metres.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from sora_cli.train.bodies import rotation
from sora_cli.train.shapes import FAR, Vector, along, unit
from sora_cli.train.world import TAN_HALF_FOV, Scene, camera_pose

FOG_DISTANCE = 45.0  # m
SEEN_FAR = 400.0  # m: the floor's last points
Rectangle = tuple[int, int, int, int]  # top, bottom, left, right, in samples


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
class Cameras:
    """Where each of the F frames is seen from, and how many samples a frame has."""

    eye: Tensor  # [F, 3]
    axes: Tensor  # [F, 3, 3] columns: right, up, forward
    height: int
    width: int

    @classmethod
    def of(cls, scenes: list[Scene], samples: int) -> Cameras:
        """The cameras of all frames of scenes of one size, with `samples`² rays a pixel."""
        poses = [camera_pose(s, f / s.fps) for s in scenes for f in range(s.num_frames)]
        return cls(
            torch.tensor([eye for eye, _, _ in poses]),
            torch.tensor([rotation(angle, 0.0, -pitch) for _, angle, pitch in poses]),
            scenes[0].height * samples,
            scenes[0].width * samples,
        )

    @property
    def focal(self) -> float:
        """Focal length in samples."""
        return min(self.height, self.width) / 2 / TAN_HALF_FOV

    @property
    def whole(self) -> Rectangle:
        """The whole frame."""
        return 0, self.height, 0, self.width

    def rays(self, frames: slice, part: Rectangle) -> tuple[Vector, Vector]:
        """Eyes [F, 1, 1] and directions [F, h, w], one long in depth, of a rectangle's samples."""
        top, bottom, left, right = part
        x = torch.arange(left, right, device=self.eye.device) + 0.5 - self.width / 2
        y = self.height / 2 - torch.arange(top, bottom, device=self.eye.device) - 0.5
        x, y = x / self.focal, y[:, None] / self.focal
        axes = self.axes[frames, :, :, None, None]
        dx, dy, dz = (axes[:, i, 0] * x + axes[:, i, 1] * y + axes[:, i, 2] for i in range(3))
        return planes(self.eye[frames]), (dx, dy, dz)

    def bounds(self, center: Tensor, radius: Tensor) -> Tensor:
        """[F, S, 4] top, bottom, left, right of balls at [F, S, 3]; nothing where radius < 0."""
        local = torch.einsum("fij,fsi->fsj", self.axes, center - self.eye[:, None])
        depth = local[..., 2]
        near = depth.clamp_min(0.3)
        reach = self.focal * radius / (depth - radius).clamp_min(0.3) * 1.15 + 2
        x = self.width / 2 + self.focal * local[..., 0] / near
        y = self.height / 2 - self.focal * local[..., 1] / near
        corners = torch.stack((y - reach, y + reach, x - reach, x + reach), -1)
        seen = (depth > -radius) & (radius > 0)
        return torch.where(seen[..., None], corners, torch.tensor((FAR, -FAR, FAR, -FAR)))


def planes(rows: Tensor) -> Vector:
    """[F, 3] → three planes [F, 1, 1]."""
    x, y, z = rows[..., None, None].unbind(1)
    return x, y, z


@dataclass(frozen=True, slots=True)
class Lighting:
    """The light of each of F frames: colours and the direction to the sun [F, 3]."""

    zenith: Tensor
    horizon: Tensor
    sun: Tensor
    ambient: Tensor
    shadow: Tensor  # [F, 1]
    toward_sun: Tensor

    @classmethod
    def of(cls, scenes: list[Scene]) -> Lighting:
        """Of all frames of the scenes; where the sun stands comes from the scene's number."""
        rows: list[tuple[tuple[float, ...], ...]] = []
        for scene in scenes:
            light = LIGHTS[scene.sky]
            azimuth = random.Random(f"sun/{scene.seed}/{scene.index}").uniform(-2.6, -0.55)
            at = (math.cos(azimuth), light.height, math.sin(azimuth))
            row = (light.zenith, light.horizon, light.sun, light.ambient, (light.shadow,), at)
            rows += [row] * scene.num_frames
        columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
        columns[5] = functional.normalize(columns[5], dim=1)
        return cls(*columns)

    def at(self, frames: slice) -> Lighting:
        """Of some of the frames."""
        return Lighting(*(getattr(self, f.name)[frames] for f in fields(self)))


def _grain(scene: Scene, x: Tensor, z: Tensor) -> Tensor:
    """How far a floor is from its first colour to its second, at world points; planes alike."""
    rng = random.Random(f"floor/{scene.seed}/{scene.index}")
    fade = torch.exp(-(z + 6).clamp_min(0) / 9.0)
    wave = torch.zeros_like(x)
    count = 2 if scene.floor in ("tiles", "wood") else 4
    for _ in range(count):
        angle, frequency = rng.uniform(0, math.tau), rng.uniform(1.0, 3.2)
        kx, kz = frequency * math.cos(angle), frequency * math.sin(angle)
        if scene.floor == "water":
            kx, kz = 0.35 * kx, 1.4 * frequency
        wave += torch.sin(x * kx + z * kz + rng.uniform(0, math.tau))
    if scene.floor == "tiles":  # soft-edged broad squares
        check = torch.sin(x * math.pi / 1.7) * torch.sin((z + 0.4) * math.pi / 1.7)
        mix = 0.5 + (0.5 * torch.tanh(check * 6) + 0.06 * wave) * fade
    elif scene.floor == "wood":  # planks running away from the viewer
        plank = torch.sin(x * math.pi / 0.8)
        mix = 0.5 + (0.42 * torch.tanh(plank * 4) + 0.10 * wave) * fade
    else:
        mix = 0.5 + 0.22 * wave / math.sqrt(count) * 1.4 * fade
    return mix.clamp(-0.2, 1.2)


@dataclass(frozen=True, slots=True)
class Background:
    """Floor and sky of V frames: colours in light and in shadow [V, 3, h, w], and the floor."""

    lit: Tensor
    dark: Tensor
    x: Tensor  # [V, h, w] of the floor's points; FAR in the sky
    z: Tensor


def background(
    scenes: list[Scene], frames: slice, cameras: Cameras, lighting: Lighting
) -> Background:
    """Floor and sky of whole frames; `scenes` names the scene of each of them."""
    eye, direction = cameras.rays(frames, cameras.whole)
    d = unit(direction)
    floor = d[1] < -1e-4
    t = torch.where(floor, eye[1] / (-d[1]).clamp_min(1e-4), FAR).clamp_max(SEEN_FAR)
    x, _, z = along(eye, d, t)
    mix = torch.stack([_grain(s, x[i], z[i]) for i, s in enumerate(scenes)])[:, None]
    low, high = (
        torch.tensor([FLOOR_COLORS[s.floor][i] for s in scenes], device=x.device)[..., None, None]
        for i in range(2)
    )
    albedo = low + (high - low) * mix
    light = lighting.at(frames)
    ambient, horizon, zenith = (
        c[..., None, None] for c in (light.ambient, light.horizon, light.zenith)
    )
    sunlight = (light.sun * light.toward_sun[:, 1:2])[..., None, None]
    left = 1 - light.shadow[..., None, None]  # of the sunlight, in a shadow
    fog = torch.exp(-t / FOG_DISTANCE)[:, None]
    sky = horizon + (zenith - horizon) * (d[1][:, None].clamp_min(0) * 2.2).clamp_max(1).sqrt()
    lit, dark = (
        torch.where(floor[:, None], horizon + (albedo * light - horizon) * fog, sky)
        for light in (ambient + sunlight, ambient + sunlight * left)
    )
    return Background(lit, dark, torch.where(floor, x, FAR), torch.where(floor, z, FAR))
