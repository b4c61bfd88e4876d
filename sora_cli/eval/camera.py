"""3D consistency: a still scene before a moving camera goes on as its geometry says.

Five true frames are given. The last of them, carried along the known camera's path over the known
floor, thing and sky, is what each later frame should show; where the camera uncovers something, or
turns to what was out of sight, nothing is compared. Frames of H×W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sora_cli.eval.clips import make
from sora_cli.eval.physics import GIVEN
from sora_cli.eval.report import Row
from sora_cli.eval.rows import Exam
from sora_cli.eval.truth import middle, project, render_all
from sora_cli.train.world import TAN_HALF_FOV, Scene, camera_pose

STRIDE = 4  # frames from one that is looked at to the next
FAR = 400.0  # m: the sky
NEAR_EDGE = 2  # pixels around a thing's outline that do not count


def stands_still(scene: Scene) -> bool:
    """Whether one thing stands still before a camera that moves."""
    return len(scene.things) == 1 and scene.camera != "static" and scene.things[0].motion == "still"


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The camera at one moment. Axes: right, up, away; a row of `axes` for each."""

    eye: Tensor  # [3] m
    axes: Tensor  # [3, 3]
    focal: float  # pixels
    size: tuple[int, int]  # height, width

    @classmethod
    def of(cls, scene: Scene, time: float) -> View:
        """Where the scene's camera is at `time` (s)."""
        eye, turn, pitch = camera_pose(scene, time)
        cos, sin = math.cos(turn), math.sin(turn)
        yaw = torch.tensor([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])
        cos, sin = math.cos(pitch), math.sin(pitch)
        tilt = torch.tensor([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
        return cls(
            eye=torch.tensor(eye), axes=tilt @ yaw,
            focal=min(scene.width, scene.height) / 2 / TAN_HALF_FOV,
            size=(scene.height, scene.width),
        )  # fmt: skip

    def rays(self) -> Tensor:
        """World directions of all pixels, one metre deep: [H, W, 3]."""
        height, width = self.size
        x = (torch.arange(width) + 0.5 - width / 2) / self.focal
        y = (height / 2 - torch.arange(height) - 0.5) / self.focal
        plane = torch.stack(
            (x.expand(height, -1), y[:, None].expand(-1, width), torch.ones(height, width)), -1
        )
        return plane @ self.axes

    def pixels(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World points [..., 3] → x right and y down (pixels) [..., 2], and their depth (m)."""
        local = (points - self.eye) @ self.axes.T
        depth = local[..., 2].clamp_min(0.05)
        x = self.size[1] / 2 + self.focal * local[..., 0] / depth
        y = self.size[0] / 2 - self.focal * local[..., 1] / depth
        return torch.stack((x, y), -1), local[..., 2]


def points_seen(scene: Scene, view: View, mask: Tensor, time: float) -> Tensor:
    """The world point (m) behind each pixel: floor, sky, or the thing as a plane, [H, W, 3]."""
    rays = view.rays()
    down = -rays[..., 1]
    depth = torch.where(down > 1e-4, view.eye[1] / down.clamp_min(1e-4), FAR).clamp_max(FAR)
    thing = project(scene, middle(scene.things[0], time), time)[2]
    depth = torch.where(mask, torch.as_tensor(thing), depth)
    return view.eye + depth[..., None] * rays


def _wide(mask: Tensor) -> Tensor:
    """A mask [H, W] grown by NEAR_EDGE pixels."""
    size = 2 * NEAR_EDGE + 1
    return functional.max_pool2d(mask[None].float(), size, 1, NEAR_EDGE)[0] > 0


def residual(scene: Scene, clip: Tensor, masks: Tensor) -> float:
    """Mean |difference| (of 255) from the last given frame, carried to each later one.

    Args:
        clip: uint8 [T, H, W, 3]; masks: of the thing, true, [T, H, W].
    """
    source = GIVEN - 1
    height, width = clip.shape[1:3]
    picture = clip[source].permute(2, 0, 1)[None].float()
    start = View.of(scene, source / scene.fps)
    errors = []
    for number in range(source + STRIDE, len(clip), STRIDE):
        time = number / scene.fps
        points = points_seen(scene, View.of(scene, time), masks[number], time)
        places, depth = start.pixels(points)
        grid = 2 * places / torch.tensor((width, height)) - 1  # [H, W, 2], -1 to 1
        carried = functional.grid_sample(picture, grid[None], align_corners=False)[0]
        was = functional.grid_sample(masks[source][None, None].float(), grid[None],
                                     mode="nearest", align_corners=False)[0, 0] > 0  # fmt: skip
        edges = _wide(masks[number]) & ~masks[number]
        known = (grid.abs() < 1 - 1 / width).all(-1) & (depth > 0.1)
        known &= (was == masks[number]) & ~edges
        if known.any():
            shown = clip[number].permute(2, 0, 1).float()
            errors.append((carried - shown).abs().mean(0)[known].mean())
    return float(torch.stack(errors).mean()) if errors else math.nan


def consistency(exam: Exam) -> list[Row]:
    """How far what follows five true frames is from where the camera's path takes them."""
    asked = exam.prompts("dense", cap="camera", only=stands_still)
    exam.studio.say(f"rendering {len(asked)} scenes with a moving camera\n")
    frames, masks = render_all([p.scene for p in asked], str(exam.studio.device))
    latents = make(exam.studio, asked, given=frames[:, :GIVEN])
    asked, frames = asked[: len(latents)], frames[: len(latents)]
    if not asked:
        return []
    clips = exam.decoded(latents)
    exam.show(clips, asked, "camera")
    copied = frames.clone()
    copied[:, GIVEN:] = frames[:, GIVEN - 1 : GIVEN]
    ways = {
        "value": clips, "floor": frames, "VAE floor": exam.reconstructed(frames),
        "copy the last frame": copied,
    }  # fmt: skip
    found = {
        name: float(np.nanmean([
            residual(p.scene, clip, mask) for p, clip, mask in zip(asked, way, masks, strict=False)
        ]))
        for name, way in ways.items()
    }  # fmt: skip
    value, floor = found.pop("value"), found.pop("floor")
    measures = (("reprojection residual, of 255", 1.0),
                ("reprojection residual, times the floor", floor))  # fmt: skip
    return [
        Row(
            ability="3D consistency", measure=measure, value=value / unit, floor=floor / unit,
            baselines={name: mean / unit for name, mean in found.items()}, samples=len(asked),
            split=exam.split,
        )
        for measure, unit in measures
    ]  # fmt: skip
