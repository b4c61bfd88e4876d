"""The text encoder and its tokenizer against transformers', and their own promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from sora_cli.errors import WeightsError
from sora_cli.models.text_encoder import TextEncoder, TextEncoderConfig, Tokenizer, position_buckets
from sora_cli.weights.configs import text_encoder_config
from sora_cli.weights.keymaps import (
    UMT5_HF,
    inverse,
    rename,
    text_encoder_config_to_hf,
)
from tests import figures

TOLERANCE = 1e-5

CONFIG = TextEncoderConfig(
    vocab_size=50,
    hidden_size=48,
    num_layers=3,
    num_heads=4,
    head_dim=10,  # not hidden_size / num_heads
    ffn_dim=70,
    num_buckets=16,
    max_distance=24,
)
LENGTHS = (60, 17, 1)  # real tokens of each text, padded to the first

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "ball", "bounces", "twice", "."]
TEXTS = ["a red ball bounces twice.", "", "ball", "red zebra", "a " * 12]


def randomise(model: nn.Module) -> None:
    """New values everywhere: parameters that start as ones would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in sorted(model.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator)
        matrix = parameter.ndim > 1
        parameter.data = values * parameter.shape[-1] ** -0.5 if matrix else 1 + 0.3 * values
        if name.endswith("q.weight"):  # T5 keeps the 1/√K that attention lacks in this scale
            parameter.data *= CONFIG.head_dim**-0.5


def pair() -> tuple[UMT5EncoderModel, TextEncoder]:
    """The reference and ours, with the same random weights."""
    reference = UMT5EncoderModel(UMT5Config(**text_encoder_config_to_hf(CONFIG))).eval()
    randomise(reference)
    with torch.device("meta"):
        ours = TextEncoder(CONFIG)
    state = dict(reference.named_parameters())
    names = rename(state, UMT5_HF)
    ours.load_state_dict({names[k]: v for k, v in state.items()}, strict=True, assign=True)
    return reference, ours


def random_encoder() -> TextEncoder:
    model = TextEncoder(CONFIG)
    randomise(model)
    return model


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, CONFIG.vocab_size, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return ids * mask, mask.long()


@torch.no_grad()
def test_matches_transformers() -> None:
    reference, ours = pair()
    ids, mask = inputs()
    expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    assert expected.abs().max() > 1
    figures.within(TOLERANCE, "umT5", ours(ids, mask), expected)


@torch.no_grad()
def test_padding_does_not_reach_the_text() -> None:
    model = random_encoder()
    ids, mask = inputs()
    padded = model(ids, mask)
    for row, length in enumerate(LENGTHS):
        alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert (padded[row, :length] - alone[0]).abs().max() <= TOLERANCE


def test_buckets_are_those_of_transformers() -> None:
    reference = UMT5EncoderModel(UMT5Config(**text_encoder_config_to_hf(CONFIG)))
    attention = reference.encoder.block[0].layer[0].SelfAttention
    positions = torch.arange(60)
    expected = attention._relative_position_bucket(positions[None, :] - positions[:, None])
    buckets = position_buckets(60, CONFIG.num_buckets, CONFIG.max_distance)
    assert torch.equal(buckets, expected)
    assert set(buckets.flatten().tolist()) == set(range(CONFIG.num_buckets)) - {8}


def test_bf16_weights_keep_an_fp32_residual_stream() -> None:
    ids, mask = inputs()
    model = random_encoder()
    with torch.no_grad():
        exact = model(ids, mask)
    model.to(torch.bfloat16)
    streams = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: streams.append(out.dtype))
    with torch.inference_mode():
        rough = model(ids, mask)
    assert streams == [torch.float32] * CONFIG.num_layers
    kept = mask.bool()
    assert (rough - exact)[kept].abs().mean() < 0.03 * exact[kept].abs().mean()


def test_autocast_gives_every_parameter_a_gradient() -> None:
    model = TextEncoder(CONFIG)
    model.init_weights()
    ids, mask = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedded = model(ids, mask)
    embedded[mask.bool()][:, :5].sum().backward()
    assert 0.5 < embedded.detach().square().mean() < 2
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_names_map_one_to_one() -> None:
    with torch.device("meta"):
        theirs = dict(UMT5EncoderModel(UMT5Config(**text_encoder_config_to_hf(CONFIG)))
                      .named_parameters())  # fmt: skip
        ours = TextEncoder(CONFIG).state_dict()
    there = rename(theirs, UMT5_HF)
    back = rename(ours, inverse(UMT5_HF))
    assert set(there.values()) == set(ours)
    assert {name: back[there[name]] for name in theirs} == {name: name for name in theirs}


def test_either_name_of_the_tied_embedding_will_do() -> None:
    names = ("shared.weight", "encoder.embed_tokens.weight")
    for name in names:
        assert rename([name], UMT5_HF) == {name: "token_embedding.weight"}
    with pytest.raises(KeyError, match="two names"):
        rename(names, UMT5_HF)


def test_config_survives_the_round_trip() -> None:
    text = json.dumps(text_encoder_config_to_hf(CONFIG))
    shapes = {name: tuple(tensor.shape) for name, tensor in random_encoder().state_dict().items()}
    assert text_encoder_config(shapes, json.loads(text)) == CONFIG
    theirs = UMT5Config(**text_encoder_config_to_hf(CONFIG))
    assert text_encoder_config(shapes, theirs.to_dict()) == CONFIG


@torch.no_grad()
def test_transformers_loads_what_we_save(tmp_path: Path) -> None:
    ours = random_encoder()
    names = rename(ours.state_dict(), inverse(UMT5_HF))
    (tmp_path / "config.json").write_text(json.dumps(text_encoder_config_to_hf(CONFIG)))
    tensors = {names[k]: v for k, v in ours.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = UMT5EncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids, mask = inputs()
    expected = loaded.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    assert (ours(ids, mask) - expected).abs().max() <= TOLERANCE


def write_tokenizer(folder: Path, *, ending: bool = True) -> Path:
    """A word-level tokenizer with T5's conventions: pad 0, `</s>` 1, `</s>` at the end."""
    vocab = {word: number for number, word in enumerate(WORDS)}
    tokenizer = RawTokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:3])
    if ending:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("max_length", [1, 4, 6, 7, 20])
def test_tokenizer_matches_transformers(max_length: int, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer")
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="</s>"
    )
    expected = reference(
        TEXTS, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
    )
    ids, mask = Tokenizer.from_folder(folder).encode(TEXTS, max_length)
    assert ids.dtype == mask.dtype == torch.int64
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])


def test_tokenizer_ends_and_pads_every_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path / "tokenizer"))
    ids, mask = tokenizer.encode(["a red ball bounces twice.", "zebra", ""], 5)
    assert ids.tolist() == [[3, 4, 5, 6, 1], [2, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    # The lengths of one call do not stick.
    assert tokenizer.encode(["a"], 3)[0].tolist() == [[3, 1, 0]]


def test_tokenizer_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot read the tokenizer"):
        Tokenizer.from_folder(tmp_path / "absent")
    folder = write_tokenizer(tmp_path / "endless", ending=False)
    with pytest.raises(WeightsError, match="adds no </s>"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="cannot read the tokenizer"):
        Tokenizer.from_folder(folder)
