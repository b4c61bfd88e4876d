"""A small captioner in a folder: convolutional eyes before a causal language model of transformers.

It was taught to describe one world, from its pictures and clips alone, and is told nothing. What
the eyes see of a clip, one vector for each cell of the picture, stands where a prompt's embeddings
would; the language model goes on from there. config.json and model.safetensors are that model's
own, with the eyes' numbers under `vision_config` and their weights in eyes.safetensors.
B clips, T frames looked at, h×w cells of 16×16 pixels, D the language model's width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sora_cli.errors import WeightsError
from sora_cli.models.language_model import MAX_NEW_TOKENS, FromFolder, continue_from, read, spell
from sora_cli.models.vision_language import EYES

if TYPE_CHECKING:
    import numpy as np

WEIGHTS = "eyes.safetensors"
CELL = 16  # pixels of a prepared picture
PICTURE, CLIP = "<picture>", "<clip>"  # tokens that stand between what is seen and what is said


@dataclass(frozen=True, kw_only=True, slots=True)
class EyesConfig:
    """The eyes' numbers.

    frames: moments looked at, evenly from the first to the last.
    shorter: cells along a picture's shorter side; the longer side has up to four times as many.
    widths: channels at 1/4, 1/8 and 1/16 of the size.
    hidden_size: of the language model.
    """

    frames: int = 8
    shorter: int = 5
    widths: tuple[int, int, int] = (32, 64, 128)
    hidden_size: int = 128

    def to_json(self) -> dict[str, Any]:
        """As config.json has it, under `vision_config`."""
        return {"model_type": EYES, **asdict(self)}

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> EyesConfig:
        """Raises TypeError, KeyError or ValueError for what is none."""
        if table["model_type"] != EYES:
            raise ValueError(f"model_type is {table['model_type']}, not {EYES}")
        fields = {name: table[name] for name in cls.__slots__}
        first, second, third = fields.pop("widths")
        return cls(widths=(first, second, third), **fields)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Eyes(nn.Module):
    """Convolutions over pictures and their differences, then over time, cell by cell."""

    def __init__(self, config: EyesConfig) -> None:
        super().__init__()
        self.config = config
        first, second, third = config.widths
        self.stem = nn.Sequential(
            nn.Conv2d(6, first, 6, stride=4, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
        )
        self.fine = _block(first, first)
        self.middle = nn.Sequential(_block(first, second, 2), _block(second, second))
        self.coarse = nn.Sequential(_block(second, third, 2), _block(third, third))
        self.around = _block(third, third)
        self.times = nn.ModuleList(
            nn.Conv3d(third, third, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0))
            for _ in range(2)
        )
        steps = (config.frames + 3) // 4  # that two strides of 2 leave
        self.tokens = nn.Sequential(
            nn.Linear(steps * third + third + 4, 2 * config.hidden_size),
            nn.ReLU(),
            nn.Linear(2 * config.hidden_size, config.hidden_size),
        )

    def forward(self, video: Tensor) -> Tensor:
        """[B, T, 3, H, W] in ±1, sides of whole cells → [B, h·w, D], row by row."""
        batch, steps = video.shape[:2]
        moved = torch.zeros_like(video)
        moved[:, 1:] = video[:, 1:] - video[:, :-1]
        pictures = torch.cat((video, 2 * moved), 2).flatten(0, 1)  # [B·T, 6, H, W]
        x = self.stem(pictures.contiguous(memory_format=torch.channels_last))
        x = self.coarse(self.middle(x + self.fine(x)))
        x = x + self.around(x)  # [B·T, C, h, w]
        x = x.view(batch, steps, *x.shape[1:]).transpose(1, 2)  # [B, C, T, h, w]
        most = x.amax(2)  # [B, C, h, w]
        for convolution in self.times:
            x = functional.relu(convolution(x))
        where = _places(*x.shape[3:]).to(x).expand(batch, -1, -1, -1)
        cells = torch.cat((x.flatten(1, 2), most, where), 1)  # [B, …, h, w]
        tokens: Tensor = self.tokens(cells.flatten(2).transpose(1, 2))
        return tokens


def _places(height: int, width: int) -> Tensor:
    """[4, h, w] where each cell is: x and y in ±1 of the sides, and in cells from the middle."""
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    table = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)))
    return torch.cat((table, table * torch.tensor((width, height)).view(2, 1, 1) / 10))


def looked_at(num_frames: int, count: int) -> list[int]:
    """The numbers of `count` frames from the first to the last; some twice of a short clip."""
    return [round(i * (num_frames - 1) / (count - 1)) for i in range(count)]


def prepare(frames: Tensor, config: EyesConfig) -> Tensor:
    """uint8 [B, T, H, W, 3], any size and length → [B, frames, 3, h·16, w·16] in ±1."""
    height, width = frames.shape[2:4]
    scale = config.shorter / min(height, width)
    cells = [min(round(side * scale), 4 * config.shorter) for side in (height, width)]
    chosen = looked_at(frames.shape[1], config.frames)
    video = frames[:, chosen].movedim(-1, 2)  # [B, frames, 3, H, W]
    small = functional.interpolate(  # of bytes: several times as fast
        video.flatten(0, 1).contiguous(memory_format=torch.channels_last),
        size=[CELL * side for side in cells], mode="bilinear", antialias=True,
    )  # fmt: skip
    return small.float().div(127.5).sub(1).view(*video.shape[:3], *small.shape[2:])


class Captioner(FromFolder):
    """A captioner: pictures in, text out. It runs on the CPU in float32; it is that small."""

    _eyes: Eyes

    def describe(
        self, frames: Sequence[np.ndarray], *, seed: int, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> str:
        """What is seen in a picture (one frame) or a clip, on one line; the same for the same seed.

        Args:
            frames: uint8 [H, W, 3] each, of one size, evenly from the clip's first to its last.

        Raises:
            WeightsError: the folder does not hold a captioner that can be read.
        """
        import numpy as np

        model, tokenizer = self._load()
        video = torch.from_numpy(np.stack(list(frames)))[None]  # [1, T, H, W, 3]
        with torch.inference_mode():
            seen = self._eyes(prepare(video, self._eyes.config))
            mark = tokenizer.convert_tokens_to_ids(PICTURE if len(frames) == 1 else CLIP)
            asked = model.get_input_embeddings()(torch.tensor([[mark]]))
            embedded = torch.cat((seen, asked), 1)  # [1, h·w + 1, D]
        # What is answered to embeddings stands alone: no ids stand before it.
        inputs = {
            "input_ids": torch.empty(1, 0, dtype=torch.int64), "inputs_embeds": embedded,
            "attention_mask": torch.ones(embedded.shape[:2], dtype=torch.int64),
        }  # fmt: skip
        ids = continue_from(model, tokenizer, inputs, seed=seed, max_new_tokens=max_new_tokens)
        return spell(ids, tokenizer, cut=len(ids) >= max_new_tokens)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._eyes = load_eyes(self.folder)  # first: read in no time, so it fails in no time
            self._loaded = read("AutoModelForCausalLM", self.folder, self.device, torch.float32)
        return self._loaded


def load_eyes(folder: Path) -> Eyes:
    """The eyes of a captioner's folder, in float32, not to be trained.

    Raises:
        WeightsError: they cannot be read.
    """
    from safetensors.torch import load_file

    try:
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with torch.device("meta"):  # no random numbers are drawn from the caller's
            eyes = Eyes(EyesConfig.from_json(table["vision_config"]))
        eyes.load_state_dict(load_file(folder / WEIGHTS), assign=True)
    except Exception as error:  # of the file's reader, of its keys, of its shapes
        raise WeightsError(
            f"the captioner in {folder} cannot be read: {error}", hint="sora weights list"
        ) from error
    return eyes.float().eval().requires_grad_(False)
