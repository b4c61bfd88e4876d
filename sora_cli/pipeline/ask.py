"""Asking a language model one question: what it is shown and told, where it runs, what it says.

The model's life is one `with` block, over before the text encoder needs the memory. A question
that memory cannot hold is put to the CPU instead, and refused before the kernel would end the
program.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.errors import DeviceError
from sora_cli.models.language_model import MAX_NEW_TOKENS, LanguageModel
from sora_cli.models.vision_language import VisionLanguageModel
from sora_cli.pipeline.answers import tidy
from sora_cli.pipeline.instructions import Instructions
from sora_cli.pipeline.remember import Memory, weights_facts
from sora_cli.runtime.device import device_memory
from sora_cli.runtime.memory import available_memory

if TYPE_CHECKING:
    import numpy as np
    import torch

# A model so small answers at once on the CPU, and there in the same words on every machine.
SMALL_BYTES = 2**28
# A small model draws an answer in a twentieth of a second; so another is cheap.
ATTEMPTS, AS_ASKED = 12, 4  # answers drawn; how many of them to the prompt as it was asked
SEED_STEP = 1_000_003  # between attempts, so that the answers to the next seed are others
# Beyond the weights: what was said so far, in keys and values, and the work of one step.
ROOM_FOR_WORK = 1.15


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """All that an answer follows from.

    folder: of the model.
    prompt: the user's text, cleaned; empty where there is none.
    instructions: what the model is told; None for a model that was taught the one thing it does.
    frames: what it is shown, uint8 [H, W, 3] each.
    retold: the prompt in plainer words that follow from it, for when no answer to it holds.
    """

    folder: Path
    prompt: str
    seed: int
    instructions: Instructions | None = None
    frames: tuple[np.ndarray, ...] = ()
    retold: str = ""

    def facts(self) -> tuple[object, ...] | None:
        """What the answer follows from, for a Memory; None when the model cannot be read."""
        try:
            facts = (self.prompt, self.seed, weights_facts(self.folder))
        except OSError:
            return None
        told = self.instructions and [self.instructions.system, self.instructions.request]
        frames = [_frame_facts(frame) for frame in self.frames]
        return (*facts, told, frames) if told or frames else facts


def ask(
    question: Question, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
    faults: Callable[[str], int] | None = None,
) -> str:  # fmt: skip
    """The model's answer, tidied; the same for the same question on the same device.

    Args:
        faults: how much is wrong with an answer. A model that was taught the one thing it does is
            asked up to ATTEMPTS times, and its first answer without a fault stands, or the best.
        device: where a large model runs; where the memory there is too small, it runs on the CPU.
            A small one always does, in float32.
        dtype: of a large model on `device`; None for bfloat16.

    Raises:
        WeightsError: the folder does not hold a model that can be read.
        DeviceError: there is not the memory for it.
    """
    import torch

    needed: list[str] = []
    for place, kind in _places(question.folder, device, dtype):
        shortage = _shortage(question.folder, place, kind)
        if shortage is None:
            try:
                return _ask_there(question, place, kind, faults)
            except torch.OutOfMemoryError:
                shortage = f"{place} ran out of memory"
            gc.collect()  # what was loaded until then, before it is loaded elsewhere
        needed.append(shortage)
    raise DeviceError(f"the language model does not fit: {'; '.join(needed)}", hint="sora doctor")


def sees(folder: Path) -> bool:
    """Whether the model in a folder can be shown pictures, as its config.json says."""
    try:
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(table, dict) and "vision_config" in table


def recall(memory: Memory, facts: tuple[object, ...] | None, key: str) -> str | None:
    """A remembered text, or None; a damaged entry counts as none."""
    content = memory.recall(*facts) if facts else None
    try:
        text = json.loads(content)[key] if content else None
    except (ValueError, KeyError, TypeError):
        return None
    return text if isinstance(text, str) and text else None


def remember(memory: Memory, facts: tuple[object, ...] | None, **entry: str) -> None:
    """Keep texts under the facts that they follow from; nothing where those are unknown."""
    if facts:
        memory.remember((json.dumps(entry, ensure_ascii=False) + "\n").encode(), *facts)


def _ask_there(
    question: Question, device: torch.device, dtype: torch.dtype,
    faults: Callable[[str], int] | None,
) -> str:  # fmt: skip
    told, folder, seed = question.instructions, question.folder, question.seed
    request, system, longest = question.prompt, None, MAX_NEW_TOKENS
    if told is not None:
        request, system = told.request.replace("{prompt}", question.prompt), told.system
        longest = told.max_new_tokens
    if sees(folder):
        with VisionLanguageModel(folder, device, dtype) as viewer:
            answer = viewer.describe(
                question.frames, request, seed=seed, system=system, max_new_tokens=longest
            )
    else:
        with LanguageModel(folder, device, dtype) as writer:
            if told is None and faults is not None:
                return best_answer(writer, question, faults)
            answer = writer.complete(request, seed=seed, system=system, max_new_tokens=longest)
    return answer if told is None else tidy(answer)


def best_answer(writer: LanguageModel, question: Question, faults: Callable[[str], int]) -> str:
    """The first answer without a fault, or the first of those with the fewest."""
    best: tuple[int, str] | None = None
    for attempt in range(ATTEMPTS):
        plainer = question.retold if attempt >= AS_ASKED else ""
        answer = writer.complete(
            plainer or question.prompt, seed=(question.seed + attempt * SEED_STEP) % 2**63
        )
        wrong = faults(answer)
        if best is None or wrong < best[0]:
            best = wrong, answer
        if not wrong:
            break
    assert best is not None
    return best[1]


def _places(
    folder: Path, device: torch.device | str, dtype: torch.dtype | None
) -> list[tuple[torch.device, torch.dtype]]:
    """Where the model may run, the wished-for place first."""
    import torch

    cpu = torch.device("cpu")
    if _weight_bytes(folder, torch.float32) <= SMALL_BYTES:
        return [(cpu, torch.float32)]
    wished, spare = (torch.device(device), dtype or torch.bfloat16), (cpu, torch.bfloat16)
    return [wished] if wished == spare else [wished, spare]


def _shortage(folder: Path, device: torch.device, dtype: torch.dtype) -> str | None:
    """What is missing for the model to run there, or None; None too where nobody knows."""
    needed = _weight_bytes(folder, dtype) * ROOM_FOR_WORK
    own = device_memory(device)
    free = available_memory() if own is None else own[0]
    if free is None or needed <= free:
        return None
    return f"it needs {needed / 1e9:.1f} GB, {device} has {free / 1e9:.1f} GB free"


def _weight_bytes(folder: Path, dtype: torch.dtype) -> float:
    """The weights' size in a dtype; they are stored in half precision, all that are published."""
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return stored * dtype.itemsize / 2


def _frame_facts(frame: np.ndarray) -> list[object]:
    import numpy as np

    return [list(frame.shape), hashlib.sha256(np.ascontiguousarray(frame).data).hexdigest()]
