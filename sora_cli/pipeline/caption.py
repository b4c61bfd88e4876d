"""Pictures and clips in words: what a vision-language model sees in them, remembered on disk.

The other half of Sora's language: the videos a model learns from are described at length, and so
is a clip that is to be continued, when its owner says nothing about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sora_cli.errors import SoraError, UsageError, WeightsError
from sora_cli.models.vision_language import is_captioner
from sora_cli.pipeline.answers import objection
from sora_cli.pipeline.ask import Question, ask, recall, remember, sees
from sora_cli.pipeline.expand import known_words
from sora_cli.pipeline.instructions import (
    CAPTION_CLIP,
    CAPTION_PICTURE,
    VISION_MODEL,
    Instructions,
)
from sora_cli.pipeline.remember import Memory

if TYPE_CHECKING:
    import numpy as np
    import torch

MAX_REMEMBERED = 2000  # captions, of about half a kilobyte each
MAX_FRAMES = 8  # that are looked at, of a clip of any length
PULL = f"sora weights pull {VISION_MODEL}"
# What captions of the embedded model's world say of a picture alone (train/captions.py).
A_PICTURE, STANDS = "A picture. ", " stands "
ONE_WORLD = (
    "this captioner has seen one small world of coloured things, and describes everything as if it "
    f"were of it; one that knows more: {PULL}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """What was seen.

    text: one paragraph.
    frames: how many moments were looked at.
    source: "model" (written now) or "remembered" (read from the cache).
    notes: sentences for stderr.
    """

    text: str
    frames: int
    source: Literal["model", "remembered"]
    notes: tuple[str, ...] = ()


def caption(
    frames: Sequence[np.ndarray], *, folder: Path | None, cache_dir: Path, seed: int = 0,
    instructions: Instructions | None = None, device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Caption:  # fmt: skip
    """Describe a picture (one frame) or a clip (more, of which some are looked at).

    Args:
        frames: uint8 [H, W, 3] each, in order; an array [T, H, W, 3] too.
        folder: of a vision-language model, or of a small captioner that was taught to describe
            one world (it has a list of known words) and is told nothing; None where none is here.
        cache_dir: where captions are remembered, in `captions/`.
        seed: the same gives the same caption.
        instructions: what is told instead of how to write captions, as `instructions.I2V_EMPTY`.
        device, dtype: where a large model runs, as `ask.ask` takes them.

    Raises:
        UsageError: no frames.
        WeightsError: no model that sees, or one that cannot be read.
        DeviceError: there is not the memory for it.
        SoraError: the model had nothing to say, or failed.
    """
    if not len(frames):
        raise UsageError("there is no frame to describe", hint="sora caption FILE")
    if folder is None:
        raise WeightsError("no model that describes pictures is here", hint=PULL)
    if not sees(folder):
        raise WeightsError(f"the model in {folder} cannot see", hint=PULL)
    told = instructions or (CAPTION_PICTURE if len(frames) == 1 else CAPTION_CLIP)
    seen = spread(frames)
    question = Question(
        folder=folder, prompt="", seed=seed, frames=seen,
        instructions=None if known_words(folder) else told,
    )  # fmt: skip
    memory = Memory(folder=cache_dir / "captions", suffix=".json", limit=MAX_REMEMBERED)
    facts = question.facts()
    notes = (ONE_WORLD,) if is_captioner(folder) else ()
    if remembered := recall(memory, facts, "caption"):
        return Caption(text=remembered, frames=len(seen), source="remembered", notes=notes)
    text = _written(question, device, dtype)
    remember(memory, facts, caption=text)
    return Caption(text=text, frames=len(seen), source="model", notes=notes)


def spread(frames: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """At most MAX_FRAMES of a clip, at even distances, with the first and the last."""
    last = len(frames) - 1
    count = min(len(frames), MAX_FRAMES)
    return tuple(frames[round(i * last / max(count - 1, 1))] for i in range(count))


def as_beginning(text: str) -> str:
    """A small captioner's caption of a picture as words for a video that begins with it.

    It says that nothing moves, and a video of such words stands still; what happens is left for
    the caption LLM to say.
    """
    words = text.removeprefix(A_PICTURE).replace(STANDS, " ")
    return words[:1].upper() + words[1:]


def _written(question: Question, device: torch.device | str, dtype: torch.dtype | None) -> str:
    """The answer, where there is one worth the name; raises as `caption`."""
    try:
        if is_captioner(question.folder):
            answer = _described(question)
        else:
            answer = ask(question, device=device, dtype=dtype)
    except SoraError:
        raise
    except Exception as error:  # transformers raises whatever went wrong within it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SoraError(f"no caption could be written: {reason}", hint="sora doctor") from error
    if amiss := objection("", answer, question.instructions):
        raise SoraError(f"no caption could be written: {amiss}", hint="another --seed")
    return answer


def _described(question: Question) -> str:
    """The answer of a small captioner, which is told nothing and runs on the CPU."""
    from sora_cli.models.captioner import Captioner

    with Captioner(question.folder) as captioner:
        return captioner.describe(question.frames, seed=question.seed)
