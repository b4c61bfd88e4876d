"""The caption LLM: a causal language model in a folder, through transformers.

transformers takes seconds to import, so nothing here imports it before a text has to be written.
The folder's own chat template says how a prompt is put to the model, its generation_config.json
how the answer is drawn; so the embedded model and a published one are asked in the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sora_cli.errors import WeightsError

MAX_NEW_TOKENS = 80


class LanguageModel:
    """A language model from `folder`, on the CPU, in float32; loaded when first asked.

    Args:
        folder: what `save_pretrained` writes, with a tokenizer that has a chat template.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: tuple[Any, Any] | None = None

    def complete(self, prompt: str, *, seed: int, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """The model's answer to `prompt`, on one line; the same for the same seed.

        A prompt too long for the model loses its end, an answer that would not end its last
        sentence: it may be empty. Torch's global random state is left alone.

        Raises:
            WeightsError: the folder does not hold a model that can be read.
        """
        ids = self.draw(prompt, seed=seed, max_new_tokens=max_new_tokens)
        text = " ".join(self._load()[1].decode(ids, skip_special_tokens=True).split())
        return text if len(ids) < max_new_tokens else text[: text.rfind(".") + 1]

    def draw(self, prompt: str, *, seed: int, max_new_tokens: int) -> list[int]:
        """The answer's token ids, its end mark included where it has one."""
        import torch

        model, tokenizer = self._load()
        room = model.config.max_position_embeddings - max_new_tokens - 8  # 8: the template's own
        messages = [{"role": "user", "content": _shortened(prompt, tokenizer, room)}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        # generate() draws from the global generator only; a fork keeps the caller's untouched.
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            output = model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
                max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id,
            )  # [1, L]  # fmt: skip
        answer: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return answer

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = _read(self.folder)
        return self._loaded


def _read(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    # It would write a bar and advice to our stderr.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # transformers raises whatever the file's reader raised
        raise WeightsError(
            f"the language model in {folder} cannot be read: {error}", hint="sora weights list"
        ) from error
    return model.eval(), tokenizer


def _shortened(prompt: str, tokenizer: Any, room: int) -> str:
    """The prompt without the template's own marks, cut to `room` tokens."""
    for mark in tokenizer.all_special_tokens:
        prompt = prompt.replace(mark, " ")
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return prompt if len(ids) <= room else str(tokenizer.decode(ids[:room]))
