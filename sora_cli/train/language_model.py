"""Train the caption LLM: a terse prompt in, the dense caption that the DiT was trained on out.

`python -m sora_cli.train.language_model OUT --minutes 12` trains a small causal LM from nothing on
pairs drawn as they are needed (prompts.py), resumes from OUT/language_model-run/checkpoint.pt, and
writes OUT/language_model/ as transformers' AutoModelForCausalLM and AutoTokenizer read it, with
known_words.txt, the words it understands as they are meant, and lexicon.json, what they mean.
`--check N` then measures it. `--start FOLDER` begins with the weights and the tokenizer of a model
made earlier: when the wordings have grown, it learns the new ones in a fraction of the time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from torch.nn import functional

from sora_cli.models.language_model import LanguageModel
from sora_cli.train.lexicon import lexicon
from sora_cli.train.loop import (
    Ema,
    Run,
    learning_rate,
    load_checkpoint,
    run_recipe,
    save_checkpoint,
)
from sora_cli.train.prompts import draw_pair, kept, known_words
from sora_cli.train.tokenizer import PAD, UNKNOWN, build, save

PROMPT, CAPTION, END = "<prompt>", "<caption>", "<end>"
SPECIALS = [PAD, END, UNKNOWN, PROMPT, CAPTION]
# The prompt goes in lower case, the caption comes out as it will be shown.
CHAT_TEMPLATE = PROMPT + "{{ messages[-1]['content'] | lower }}" + CAPTION
VOCAB_SIZE, MAX_TOKENS, PAIRS_FOR_WORDS = 1024, 192, 12_000
BATCH, POOLED = 96, 8  # pairs in a step; batches sorted by length together, to pad little
PEAK_RATE = 3e-3
# Copying must be sure while the choices that the prompt leaves open stay open: a low temperature
# sharpens the former and leaves the latter, which are near uniform, as they are.
GENERATION = {"do_sample": True, "temperature": 0.6, "top_k": 0, "top_p": 1.0}


def caption_tokenizer() -> Tokenizer:
    """A byte-fallback BPE over prompts and captions, cased."""

    def texts() -> Iterator[str]:
        for index in range(PAIRS_FOR_WORDS):
            pair = draw_pair(-1, index)
            yield pair.prompt
            yield pair.caption

    tokenizer = build(texts(), SPECIALS, VOCAB_SIZE, lowercase=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    return tokenizer


def _tokenizer(path: Path, start: Path | None) -> Tokenizer:
    """The tokenizer that this run began with: an embedding means nothing without it."""
    if not path.exists() and start is not None:
        path.write_bytes((start / "tokenizer.json").read_bytes())
    elif not path.exists():
        caption_tokenizer().save(str(path))
    return Tokenizer.from_file(str(path))


def build_model(seed: int, start: Path | None = None) -> Any:
    """1.2 M parameters: 5 layers, 128 wide, of transformers' Llama class.

    start: a folder with the weights to begin with, None for random ones.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    if start is not None:
        return AutoModelForCausalLM.from_pretrained(
            start, dtype=torch.float32, local_files_only=True
        )
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=128, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=4, head_dim=32, intermediate_size=384, tie_word_embeddings=True,
        max_position_embeddings=MAX_TOKENS, initializer_range=0.04,
        pad_token_id=0, bos_token_id=None, eos_token_id=SPECIALS.index(END),
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def batches(
    tokenizer: Tokenizer, seed: int, first: int, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (input_ids, targets) [B, L] from pair number `first` on; -100 is not learned."""
    prompt_id, caption_id = SPECIALS.index(PROMPT), SPECIALS.index(CAPTION)
    while True:
        pairs = [draw_pair(seed, first + i) for i in range(size * POOLED)]
        first += len(pairs)
        prompts = tokenizer.encode_batch([p.prompt for p in pairs])
        captions = tokenizer.encode_batch([p.caption for p in pairs])
        rows = []
        for prompt, caption in zip(prompts, captions, strict=True):
            asked = [prompt_id, *prompt.ids[: MAX_TOKENS - 96], caption_id]
            answer = [*caption.ids, SPECIALS.index(END)]
            rows.append((asked + answer[:-1], [-100] * (len(asked) - 1) + answer))
        rows.sort(key=lambda row: len(row[0]))
        order = torch.randperm(POOLED, generator=torch.Generator().manual_seed(first)).tolist()
        for number in order:
            chosen = rows[number * size : (number + 1) * size]
            yield _padded([r[0] for r in chosen], 0), _padded([r[1] for r in chosen], -100)


def _padded(rows: list[list[int]], value: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def loss_of(model: Any, input_ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the captions' tokens (padding stands behind, where causality hides it)."""
    hidden = model.model(input_ids, use_cache=False).last_hidden_state  # [B, L, D]
    learned = targets != -100
    logits = model.lm_head(hidden[learned]).float()  # [tokens, vocabulary]
    return functional.cross_entropy(logits, targets[learned])


def train(arguments: argparse.Namespace) -> None:
    """The recipe, top to bottom."""
    device = torch.device(arguments.device)
    run = Run(folder=arguments.out / "language_model-run", minutes=arguments.minutes)
    path = run.folder / "checkpoint.pt"
    tokenizer = _tokenizer(run.folder / "tokenizer.json", arguments.start)
    model = build_model(arguments.seed, arguments.start).to(device)
    if device.type == "cpu":  # fused attention's backward pass is slow there on short rows
        model.set_attn_implementation("eager")
    ema = Ema(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.05)
    if state := load_checkpoint(path):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.shadow = {k: v.to(device) for k, v in state["ema"].items()}
        run.restore(state["run"])

    def checkpoint() -> None:
        state = {"model": model.state_dict(), "ema": ema.state(), "run": run.state()}
        save_checkpoint(path, state | {"optimizer": optimizer.state_dict()})

    saved = run.elapsed
    for input_ids, targets in batches(
        tokenizer, arguments.seed, run.samples, arguments.batch or BATCH
    ):
        progress = max(run.progress, run.steps / arguments.steps)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                progress, arguments.peak_rate, run.steps, warmup=40 if arguments.start else 200
            )
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model, input_ids.to(device), targets.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(run.steps)
        run.count(len(input_ids), loss=float(loss.detach()), norm=float(norm))
        if run.elapsed - saved > 60:
            saved = run.elapsed
            checkpoint()
    checkpoint()
    model.load_state_dict(ema.state())
    folder = arguments.out / "language_model"
    write(folder, model, tokenizer)
    if arguments.check:
        run.log(**check(folder, arguments.check))


def write(folder: Path, model: Any, tokenizer: Tokenizer) -> None:
    """The folder that transformers reads, in half precision, and the words that it knows."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.generation_config.update(**GENERATION)
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for the owner alone
    save(tokenizer, folder, pad_token=PAD, eos_token=END, unk_token=UNKNOWN,
         model_max_length=MAX_TOKENS, extra_special_tokens=[PROMPT, CAPTION],
         chat_template=CHAT_TEMPLATE)  # fmt: skip
    write_words(folder)


def write_words(folder: Path) -> None:
    """The words that the model knows, and what they mean."""
    (folder / "known_words.txt").write_text("\n".join(sorted(known_words())) + "\n")
    (folder / "lexicon.json").write_text(json.dumps(lexicon(), indent=1, sort_keys=True) + "\n")


def check(folder: Path, count: int, split: str = "development") -> dict[str, Any]:
    """Share of named attributes that expansions keep, by attribute, on prompts never trained."""
    language_model = LanguageModel(folder)
    tallies: dict[str, list[bool]] = {}
    began = time.monotonic()
    for index in range(count):
        pair = draw_pair(0, index, split)
        caption = language_model.complete(pair.prompt, seed=index)
        for name, right in kept(pair, caption).items():
            tallies.setdefault(name.rstrip("01"), []).append(right)
            tallies.setdefault("all", []).append(right)
    table = {f"kept_{name}": sum(rows) / len(rows) for name, rows in tallies.items()}
    return table | {"seconds_each": (time.monotonic() - began) / count, "prompts": count}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--start", type=Path, default=None, help="begin with this model's weights")
    parser.add_argument("--peak-rate", type=float, default=PEAK_RATE, help="of learning")
    parser.add_argument("--batch", type=int, default=None, help=f"pairs in a step, {BATCH}")
    parser.add_argument("--steps", type=int, default=10**9, help="end after this many steps")
    parser.add_argument("--check", type=int, default=500, help="development prompts to measure")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    run_recipe(parser, train)


if __name__ == "__main__":
    main()
