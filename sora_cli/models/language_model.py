"""A causal language model in a folder: the caption LLM, or a published one through transformers.

transformers takes seconds to import, so nothing here imports it before a text has to be written,
nor at all where `decoder` can read the folder. The folder's own chat template says how a prompt is
put to the model, its generation_config.json how the answer is drawn; so the embedded model and a
published one are asked in the same way.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sora_cli.errors import WeightsError

if TYPE_CHECKING:
    import torch

MAX_NEW_TOKENS = 80
# A prompt is a few sentences; a published model would read 262,144 tokens, and take hours.
MAX_PROMPT_TOKENS = 2048
TEMPLATE_TOKENS = 8  # what a chat template adds, about
CAUSAL = "AutoModelForCausalLM"
SENTENCE_ENDS = ".!?。！？।؟"


class FromFolder:
    """A model that is loaded from `folder` when first asked, and gone when its `with` ends.

    Args:
        folder: what `save_pretrained` writes, with a tokenizer that has a chat template.
        device: where it runs.
        dtype: of its weights; None for float32.
    """

    def __init__(
        self, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self._loaded: tuple[Any, Any] | None = None  # the model and its tokenizer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back; asked again, the model is loaded again."""
        if self._loaded is not None:
            free(self._loaded[0], self.device)
            self._loaded = None


class LanguageModel(FromFolder):
    """A causal language model: text in, text out."""

    def complete(
        self, prompt: str, *, seed: int, system: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> str:  # fmt: skip
        """The model's answer to `prompt`, on one line; the same for the same seed.

        A prompt too long for the model loses its end, an answer that would not end its last
        sentence: it may be empty. Torch's global random state is left alone.

        Args:
            system: what the model is told before the prompt, None to tell it nothing.

        Raises:
            WeightsError: the folder does not hold a model that can be read.
        """
        ids = self.draw(prompt, seed=seed, system=system, max_new_tokens=max_new_tokens)
        return spell(ids, self._load()[1], cut=len(ids) >= max_new_tokens)

    def draw(
        self, prompt: str, *, seed: int, max_new_tokens: int, system: str | None = None
    ) -> list[int]:
        """The answer's token ids, its end mark included where it has one."""
        model, tokenizer = self._load()
        told = (
            0 if system is None else len(tokenizer(system, add_special_tokens=False)["input_ids"])
        )
        room = model.config.max_position_embeddings - max_new_tokens - TEMPLATE_TOKENS - told
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages += [{"role": "user", "content": shortened(prompt, tokenizer, room)}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}  # [1, L]
        return continue_from(model, tokenizer, asked, seed=seed, max_new_tokens=max_new_tokens)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = read(CAUSAL, self.folder, self.device, self.dtype)
        return self._loaded


# ---------------------------------------------------------------- what all who write text share


def read(
    auto_class: str, folder: Path, device: torch.device | str, dtype: torch.dtype | None
) -> tuple[Any, Any]:
    """A model of transformers, by the name of its Auto class, and its tokenizer.

    A plain one, as the embedded model's, is read without transformers and asked in the same way.

    Raises:
        WeightsError: the folder does not hold what can be read as one.
    """
    import torch

    from sora_cli.models import decoder

    dtype = dtype or torch.float32
    try:
        plain = decoder.read(folder, device, dtype) if auto_class == CAUSAL else None
        return plain or _read_with_transformers(auto_class, folder, device, dtype)
    except Exception as error:  # whatever the file's reader raised
        raise WeightsError(
            f"the language model in {folder} cannot be read: {error}", hint="sora weights list"
        ) from error


def _read_with_transformers(
    auto_class: str, folder: Path, device: torch.device | str, dtype: torch.dtype
) -> tuple[Any, Any]:
    import transformers
    from transformers.utils import logging

    # It would write a bar and advice to our stderr.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = getattr(transformers, auto_class).from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return model.eval().to(device), tokenizer


def free(model: Any, device: torch.device | str) -> None:
    """Take a model's weights out of memory, whoever still holds on to it."""
    import torch

    model.to("meta")
    if torch.device(device).type == "cuda":
        gc.collect()  # the keys and values of what was said; it takes a while, so not for the CPU
        torch.cuda.empty_cache()


def continue_from(
    model: Any, tokenizer: Any, inputs: Mapping[str, torch.Tensor], *, seed: int,
    max_new_tokens: int,
) -> list[int]:  # fmt: skip
    """The token ids that follow `inputs` (input_ids [1, L] and what else the model reads)."""
    import torch

    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    placed = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    with torch.inference_mode(), _seeded(seed, model.device):
        output = model.generate(**placed, max_new_tokens=max_new_tokens, pad_token_id=pad)  # [1, L]
    answer: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return answer


def spell(ids: list[int], tokenizer: Any, *, cut: bool) -> str:
    """Token ids as one line of text; of an answer that was cut off, the whole sentences."""
    text = " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
    return text[: max(text.rfind(end) for end in SENTENCE_ENDS) + 1] if cut else text


def count_tokens(text: str, tokenizer: Any) -> int:
    """How many tokens a text has, without any that begin or end it."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def shortened(prompt: str, tokenizer: Any, room: int) -> str:
    """The prompt without the tokenizer's own marks, cut to `room` tokens."""
    added = tokenizer.added_tokens_decoder.values()
    marks = {*tokenizer.all_special_tokens, *(str(token) for token in added)}
    for mark in sorted(marks, key=len, reverse=True):
        prompt = prompt.replace(mark, " ")
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    room = max(0, min(room, MAX_PROMPT_TOKENS))
    return prompt if len(ids) <= room else str(tokenizer.decode(ids[:room]))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """generate() draws from the device's global generator only; the caller's state is put back."""
    import torch

    cuda = device.type == "cuda"
    place = None if device.type == "cpu" else torch.get_device_module(device.type)
    with torch.cuda.device(device) if cuda else nullcontext():
        before = torch.get_rng_state(), None if place is None else place.get_rng_state()
        torch.default_generator.manual_seed(seed)
        if place is not None:
            place.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(before[0])
            if place is not None:
                place.set_rng_state(before[1])
