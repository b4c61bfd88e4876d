"""The judge: a small network that reads a scene's attributes and its things' places from a clip.

It looks at nine frames. Each goes, with its difference from the frame before, through a small
convolutional stem; attention maps find the left (or only) and the right thing; what they find and
a coarse grid of the whole picture go through convolutions over time to one head per attribute.
B clips, T looked-at frames, S slots (things), h×w cells of 8×8 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sora_cli.eval.truth import CLASSES, OF_THINGS, SLOTS

FRAMES = 9  # looked at, evenly from the first to the last
AREA = 160 * 96  # pixels a frame is resized to, sides to multiples of 16
CELL = 8  # pixels
WIDTHS, HIDDEN, GRID = (40, 80, 96), 128, (2, 3)


def looked_at(num_frames: int) -> list[int]:
    """The frame numbers that the judge sees of a clip."""
    return [round(i * (num_frames - 1) / (FRAMES - 1)) for i in range(FRAMES)]


def prepare(frames: Tensor) -> Tensor:
    """uint8 [B, T, H, W, 3], any size and length → [B, FRAMES, 3, h, w] in ±1 of about AREA."""
    height, width = frames.shape[2:4]
    scale = (AREA / (height * width)) ** 0.5
    size = [max(2, round(side * scale / 16)) * 16 for side in (height, width)]
    video = frames[:, looked_at(frames.shape[1])].float().div(127.5).sub(1).movedim(-1, 2)
    if size == [height, width]:
        return video.contiguous()
    flat = functional.interpolate(
        video.flatten(0, 1), size=size, mode="bilinear", antialias=True, align_corners=False
    )
    return flat.view(*video.shape[:3], *size)


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """[2, h, w] x and y of the cells' middles as fractions of the picture's sides."""
    x = (torch.arange(width, device=device) + 0.5) / width
    y = (torch.arange(height, device=device) + 0.5) / height
    return torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)))


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the judge thinks, before a choice is made."""

    logits: dict[str, Tensor]  # [B, S, classes] for a thing's attributes, [B, 1, classes] else
    attention: Tensor  # [B, T, S, h·w] log-probabilities of where each thing's middle is
    places: Tensor  # [B, T, S, 2] expected x and y, fractions of the picture's sides


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class _OverTime(nn.Module):
    """Two residual convolutions over the looked-at frames, then their mean and maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1) for _ in range(2))

    def forward(self, steps: Tensor) -> Tensor:
        """[N, T, HIDDEN] → [N, 2·HIDDEN]"""
        x = steps.transpose(1, 2)
        for convolution in self.convolutions:
            x = x + convolution(functional.relu(x))
        x = functional.relu(x)
        return torch.cat((x.mean(2), x.amax(2)), 1)


class Judge(nn.Module):
    """Reads a prepared clip."""

    def __init__(self) -> None:
        super().__init__()
        first, second, last = WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(6, first, 6, stride=4, padding=1), nn.ReLU())
        self.fine = nn.Sequential(
            _block(first, first), _block(first, second, 2), _block(second, second)
        )
        self.coarse = nn.Sequential(_block(second, last, 2), _block(last, last))
        self.merge = _block(second + last, last)
        self.find = nn.Sequential(
            nn.Conv2d(2 * last + 2, 64, 1), nn.ReLU(), nn.Conv2d(64, SLOTS, 1)
        )
        self.whole = nn.Linear(last * GRID[0] * GRID[1], HIDDEN)
        self.thing = nn.Linear(last + 2, HIDDEN)
        self.from_whole, self.from_things = (nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        self.clip_time, self.thing_time = _OverTime(), _OverTime()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * HIDDEN, len(values)) for name, values in CLASSES.items()}
        )

    def features(self, video: Tensor) -> Tensor:
        """[B, T, 3, H, W] → [B·T, C, h, w]"""
        moved = torch.zeros_like(video)
        moved[:, 1:] = video[:, 1:] - video[:, :-1]
        pictures = torch.cat((video, 2 * moved), 2).flatten(0, 1)
        fine = self.fine(self.stem(pictures.contiguous(memory_format=torch.channels_last)))
        coarse = functional.interpolate(self.coarse(fine), size=fine.shape[2:], mode="nearest")
        merged: Tensor = self.merge(torch.cat((fine, coarse), 1))
        return merged

    def forward(self, video: Tensor) -> Opinion:
        """[B, T, 3, H, W] in ±1, as `prepare` makes it → Opinion"""
        batch, steps = video.shape[:2]
        features = self.features(video)  # [B·T, C, h, w]
        height, width = features.shape[2:]
        centres = cell_centres(height, width, video.device)
        middle = features.mean((2, 3), keepdim=True).expand_as(features)
        where = centres.to(features.dtype).expand(len(features), -1, -1, -1)
        attention = self.find(torch.cat((features, middle, where), 1)).flatten(2).float()
        attention = attention.log_softmax(2)  # [B·T, S, h·w]
        weights = attention.exp()
        places = weights @ centres.flatten(1).T  # [B·T, S, 2]
        found = weights @ features.flatten(2).transpose(1, 2).float()  # [B·T, S, C]
        things = self.thing(torch.cat((found, 2 * places - 1), 2))  # [B·T, S, D]
        grid = functional.adaptive_avg_pool2d(features, GRID).flatten(1)
        whole = self.whole(grid)  # [B·T, D]
        clip = whole + self.from_things(functional.relu(things.mean(1)))
        things = things + self.from_whole(functional.relu(whole))[:, None]
        clip_vector = self.clip_time(clip.view(batch, steps, HIDDEN))[:, None]  # [B, 1, 2D]
        rows = things.view(batch, steps, SLOTS, HIDDEN).transpose(1, 2).flatten(0, 1)
        thing_vectors = self.thing_time(rows).view(batch, SLOTS, 2 * HIDDEN)
        logits = {
            name: head(thing_vectors if name in OF_THINGS else clip_vector).float()
            for name, head in self.heads.items()
        }
        return Opinion(
            logits=logits,
            attention=attention.view(batch, steps, SLOTS, -1),
            places=places.view(batch, steps, SLOTS, 2),
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """What the judge reads in one clip."""

    values: dict[str, str]  # kind0, color0, motion0, kind1 …, floor, sky, camera, count
    places: Tensor  # [FRAMES, SLOTS, 2] fractions of width and height


@torch.no_grad()
def read(judge: Judge, frames: Tensor, batch: int = 8) -> list[Reading]:
    """Read clips, uint8 [B, T, H, W, 3]. A second thing's values mean nothing where count is 1."""
    device = next(judge.parameters()).device
    readings: list[Reading] = []
    for first in range(0, len(frames), batch):
        opinion = judge(prepare(frames[first : first + batch].to(device)))
        choices = {name: logits.argmax(2).tolist() for name, logits in opinion.logits.items()}
        places = opinion.places.cpu()
        for row in range(len(places)):
            values = {}
            for name, chosen in choices.items():
                for slot, number in enumerate(chosen[row]):
                    key = f"{name}{slot}" if name in OF_THINGS else name
                    values[key] = CLASSES[name][number]
            readings.append(Reading(values, places[row]))
    return readings
