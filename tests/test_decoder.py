"""The plain reader of small language models says what transformers would, and knows its limits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sora_cli.models import decoder
from sora_cli.models.language_model import LanguageModel, _read_with_transformers
from sora_cli.weights import store

PROMPTS = (
    "a red ball",
    "A BIG blue cube, spinning",
    "ball " * 300,
    "日本の犬 🐶",
    "<prompt>x<end>",
)


@pytest.fixture(scope="module")
def tiny() -> Path:
    return store.locate("tiny").parts["language_model"]


@pytest.fixture(scope="module")
def theirs(tiny: Path) -> LanguageModel:
    model = LanguageModel(tiny)
    model._loaded = _read_with_transformers("AutoModelForCausalLM", tiny, "cpu", torch.float32)
    return model


def test_the_embedded_model_is_read_here(tiny: Path) -> None:
    """Else every new prompt costs the import of transformers, and nobody would notice."""
    assert decoder.read(tiny, "cpu", torch.float32) is not None


@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_says_what_transformers_says(tiny: Path, theirs: LanguageModel, prompt: str) -> None:
    with LanguageModel(tiny) as ours:
        assert isinstance(ours._load()[0], decoder.Decoder)
        for seed in range(2):
            asked: dict[str, Any] = {"seed": seed, "max_new_tokens": 60}
            assert ours.draw(prompt, **asked) == theirs.draw(prompt, **asked)


def test_scores_agree_for_every_token_of_a_continuation(tiny: Path, theirs: LanguageModel) -> None:
    network, tokenizer = theirs._load()
    mine, words = decoder.read(tiny, "cpu", torch.float32) or pytest.fail("not read")
    asked = words.apply_chat_template([{"role": "user", "content": PROMPTS[0]}])
    same = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}], return_tensors="pt", return_dict=True
    )
    assert torch.equal(asked["input_ids"], same["input_ids"])
    ids = asked["input_ids"]
    with torch.inference_mode():
        scores, past = mine(ids)
        for _ in range(20):
            reference = network(input_ids=ids).logits[:, -1]
            torch.testing.assert_close(scores, reference, atol=1e-5, rtol=1e-5)
            fresh = reference.argmax(-1, keepdim=True)
            ids = torch.cat([ids, fresh], dim=1)
            scores, past = mine(fresh, past)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("config.json", {"model_type": "qwen3"}),
        ("config.json", {"attention_bias": True}),
        ("config.json", {"num_key_value_heads": 2}),
        ("config.json", {"sliding_window": 64}),
        ("config.json", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
        ("config.json", {"tie_word_embeddings": False}),
        ("generation_config.json", {"top_p": 0.9}),
        ("generation_config.json", {"repetition_penalty": 1.1}),
        ("tokenizer_config.json", {"chat_template": "{% for m in messages %}{% endfor %}"}),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<new>"]}),
        ("tokenizer_config.json", {"add_bos_token": True}),
    ],
)
def test_what_is_not_plain_is_left_to_transformers(
    tiny: Path, tmp_path: Path, name: str, changed: dict[str, Any]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    assert decoder.read(folder, "cpu", torch.float32) is not None
    said = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**said, **changed}))
    assert decoder.read(folder, "cpu", torch.float32) is None


def test_a_greedy_model_takes_the_likeliest(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    (folder / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": 1, '
                                                   '"top_k": 0, "top_p": 1.0, '
                                                   '"output_attentions": false, '
                                                   '"output_hidden_states": false}')  # fmt: skip
    with LanguageModel(folder) as model:
        first = model.draw("a red ball", seed=1, max_new_tokens=40)
        assert first == model.draw("a red ball", seed=2, max_new_tokens=40)
        assert first[-1] == 1
