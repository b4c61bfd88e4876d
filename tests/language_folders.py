"""Small language models in the published ones' layout: Qwen3 and Qwen3-VL, as transformers saves.

Two kinds: one that babbles (random weights) and one that recites a text, whatever it is asked. A
reciter's blocks add nothing to what enters them, so the last token alone decides the next; its
whole text is one token of the vocabulary, which no prompt is ever split into.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sora_cli.models.vision_language import CHATML

KNOWN = frozenset(
    {"a", "the", "on", "by", "day", "red", "ball", "bounces", "spins", "slides", "camera", "stays",
     "still", "snow", "grass", "small", "house", "video", "of", "please"}
)  # fmt: skip
MARKS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|unknown|>",
)  # fmt: skip
END, IMAGE = MARKS.index("<|im_end|>"), MARKS.index("<|image_pad|>")
WIDTH = 32
ROPE = {
    "rope_type": "default", "rope_theta": 1e4, "mrope_interleaved": True,
    "mrope_section": [4, 2, 2],
}  # fmt: skip


def reciter(folder: Path, text: str, *, sees: bool = False) -> Path:
    """A model that answers everything with `text`; an empty text is no answer at all."""
    import torch

    vocabulary = _write_tokenizer(folder, text)
    model = _model(len(vocabulary), sees)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")) and "visual" not in name:
                parameter.zero_()
        inside, outside = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        outside.zero_()
        asked = vocabulary["\n"]  # with which a chat template ends
        if text:
            outside[vocabulary[text]] = inside[asked]
            outside[END] = inside[vocabulary[text]]
        else:
            outside[END] = inside[asked]
    return _write(folder, model, sees)


def babbler(folder: Path, *, sees: bool = False) -> Path:
    """A model of random weights, which says letters at random."""
    return _write(folder, _model(len(_write_tokenizer(folder, "")), sees), sees)


def _model(size: int, sees: bool) -> Any:
    import torch
    from transformers import (
        Qwen3Config,
        Qwen3ForCausalLM,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )

    text = {
        "vocab_size": size, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "max_position_embeddings": 4096, "initializer_range": 0.5, "eos_token_id": END,
        "pad_token_id": 0, "bos_token_id": None, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    if not sees:
        return Qwen3ForCausalLM(Qwen3Config(**text))
    eyes = {
        "depth": 1, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 2,
        "out_hidden_size": WIDTH, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        "initializer_range": 0.5,
    }  # fmt: skip
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config=text | {"rope_parameters": ROPE},
            vision_config=eyes,
            image_token_id=IMAGE,
            vision_start_token_id=3,
            vision_end_token_id=4,
            tie_word_embeddings=False,
        )  # fmt: skip
    )


def _write(folder: Path, model: Any, sees: bool) -> Path:
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    # The published models' own.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=20, top_p=0.8, eos_token_id=[END, 0], pad_token_id=0
    )
    model.bfloat16().save_pretrained(folder)
    if sees:
        table = {
            "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16,
            "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5], "processor_class": "Qwen3VLProcessor",
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(table))
    return folder


def _write_tokenizer(folder: Path, text: str) -> dict[str, int]:
    """One token for each character, and one for `text`; returns the vocabulary."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = [*MARKS, "\n", *map(chr, range(32, 127)), *([text] if text else [])]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(MARKS))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    table = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": "<|unknown|>",
        "extra_special_tokens": list(MARKS[1:6]), "chat_template": CHATML,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    return vocabulary
