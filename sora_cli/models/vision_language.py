"""A vision-language model in a folder, through transformers: it reads pictures and writes text.

Only the image processor that needs nothing but Pillow is used: transformers' processor of such a
model builds a video processor too, which wants torchvision, so the text around the pictures is put
together here. A clip is read as several images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.errors import WeightsError
from sora_cli.models.language_model import (
    MAX_NEW_TOKENS,
    TEMPLATE_TOKENS,
    FromFolder,
    continue_from,
    count_tokens,
    read,
    shortened,
    spell,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

# A picture of 2**19 pixels is 512 tokens; what a language model must see for a caption, it sees.
PICTURE_PIXELS = 2**19
ALL_PIXELS = 2**20  # of all pictures together
EYES = "sora_eyes"  # model_type of a vision_config that models/captioner.py reads, not this module

# For a tokenizer without a template of its own: what all of Qwen's models read.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


def is_captioner(folder: Path) -> bool:
    """Whether a folder holds a small captioner (models/captioner.py), as its config.json says."""
    try:
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return bool(table["vision_config"]["model_type"] == EYES)
    except (OSError, ValueError, KeyError, TypeError):
        return False


class VisionLanguageModel(FromFolder):
    """A vision-language model: pictures and text in, text out.

    Args:
        folder: as any language model's, with preprocessor_config.json.
    """

    _look: _Look

    def describe(
        self, frames: Sequence[np.ndarray], instruction: str, *, seed: int,
        max_new_tokens: int = MAX_NEW_TOKENS, system: str | None = None,
    ) -> str:  # fmt: skip
        """What the model says of some pictures, on one line; the same for the same seed.

        Torch's global random state is left alone; an answer cut off by `max_new_tokens` keeps its
        whole sentences.

        Args:
            frames: uint8 [H, W, 3] each, of any sizes; none at all asks for text alone.
            instruction: what is wanted, after the pictures.
            system: what the model is told before them, None to tell it nothing.

        Raises:
            WeightsError: the folder does not hold a model that can be read.
        """
        model, tokenizer = self._load()
        inputs = self._inputs(frames, instruction, system, max_new_tokens)
        # A small model ends where its positions end.
        room = _positions(model) - inputs["input_ids"].shape[1]
        if room < 1:
            raise WeightsError(
                f"the model in {self.folder} cannot read {len(frames)} pictures at once",
                hint="fewer or smaller pictures",
            )
        wanted = min(max_new_tokens, room)
        ids = continue_from(model, tokenizer, inputs, seed=seed, max_new_tokens=wanted)
        return spell(ids, tokenizer, cut=len(ids) >= wanted)

    def _inputs(
        self, frames: Sequence[np.ndarray], instruction: str, system: str | None, answer: int
    ) -> dict[str, torch.Tensor]:
        """All that the model reads; batch 1, P patches of all pictures together.

        input_ids, attention_mask, mm_token_type_ids (1 at a picture's tokens) [1, L];
        pixel_values [P, C·pt·ph·pw]; image_grid_thw [pictures, 3] in patches.
        """
        import torch

        model, tokenizer = self._load()
        pictures = self._look(frames) if frames else {}
        grid = pictures["image_grid_thw"].tolist() if pictures else []
        merged = self._look.merge_size**2
        counts = [t * h * w // merged for t, h, w in grid]
        told = TEMPLATE_TOKENS * (1 + len(counts)) + count_tokens(system or "", tokenizer)
        room = _positions(model) - sum(counts) - told - answer
        text = shortened(instruction, tokenizer, room)
        ids = self._put_in(self._written(text, len(counts), system), counts)
        input_ids = torch.tensor([ids])
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if pictures:
            inputs["pixel_values"] = pictures["pixel_values"].to(model.dtype)
            inputs["image_grid_thw"] = pictures["image_grid_thw"]
            inputs["mm_token_type_ids"] = (input_ids == model.config.image_token_id).int()
        return inputs

    def _written(self, instruction: str, pictures: int, system: str | None) -> list[int]:
        """The conversation in tokens, with one token in the place of each picture."""
        tokenizer = self._load()[1]
        messages: list[dict[str, Any]] = []
        if system is not None:
            messages = [{"role": "system", "content": [{"type": "text", "text": system}]}]
        seen: list[dict[str, str]] = [{"type": "image"}] * pictures
        asked = [*seen, {"type": "text", "text": instruction}]
        text = tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": asked}], tokenize=False,
            add_generation_prompt=True, chat_template=_template(self.folder, tokenizer),
        )  # fmt: skip
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _put_in(self, ids: list[int], counts: list[int]) -> list[int]:
        """As many tokens as each picture has, in the place of the one that stands for it."""
        mark = self._load()[0].config.image_token_id
        if ids.count(mark) != len(counts):
            raise WeightsError(
                f"the chat template in {self.folder} has no place for pictures",
                hint="sora weights list",
            )
        waiting = iter(counts)
        return [n for number in ids for n in [number] * (next(waiting) if number == mark else 1)]

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._look = _Look(self.folder)  # first: it is read in no time, so it fails in no time
            self._loaded = read("AutoModelForImageTextToText", self.folder, self.device, self.dtype)
        return self._loaded


class _Look:
    """From pictures to patches, with Pillow alone; the sizes stay within this module's bounds."""

    def __init__(self, folder: Path) -> None:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        try:
            self._processor = Qwen2VLImageProcessorPil.from_pretrained(
                folder, local_files_only=True
            )
        except Exception as error:  # transformers raises whatever the file's reader raised
            raise WeightsError(
                f"the language model in {folder} cannot be read: {error}", hint="sora weights list"
            ) from error
        self.merge_size: int = self._processor.merge_size

    def __call__(self, frames: Sequence[np.ndarray]) -> Any:
        """pixel_values [P, C·pt·ph·pw] and image_grid_thw [pictures, 3]."""
        own = self._processor.size
        most = min(own["longest_edge"], PICTURE_PIXELS, ALL_PIXELS // len(frames))
        size = {"longest_edge": most, "shortest_edge": min(own["shortest_edge"], most)}
        # It would guess, and take a picture of three rows for one of three channels.
        return self._processor(
            images=list(frames), size=size, return_tensors="pt", input_data_format="channels_last"
        )


def _template(folder: Path, tokenizer: Any) -> str:
    """The tokenizer's chat template; else the processor's, a file of its own; else ours."""
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    try:
        table = json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))
        return str(table["chat_template"])
    except (OSError, ValueError, KeyError, TypeError):
        return CHATML


def _positions(model: Any) -> int:
    positions: int = model.config.get_text_config().max_position_embeddings
    return positions
