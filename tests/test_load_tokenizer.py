"""The tokenizer from every form it is published in: `tokenizer.json`, `spiece.model`, in a file."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import T5Tokenizer

from sora_cli.errors import WeightsError
from sora_cli.models.text_encoder import Tokenizer
from sora_cli.weights import load
from sora_cli.weights.spiece import parse_spiece
from tests import wan_folders

TEXTS = ["a red ball bounces on the snow", "", "it's  ， 色调艳丽 </s> qq\u2603", "A <pad> the"]
KINDS = {"<unk>": 2, "<pad>": 3, "</s>": 3}  # sentencepiece's numbers; a word is 1, the default


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: bytes | int | float) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def spiece(tokenizer: T5Tokenizer, *, model_type: int = 1) -> bytes:
    """The `ModelProto` of a tokenizer's vocabulary, with fields that a reader must pass over."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    out = b""
    for piece, score in model["vocab"]:
        kind = field(3, KINDS[piece]) if piece in KINDS else b""
        out += field(1, field(1, piece.encode()) + field(2, float(score)) + kind)
    trainer = field(1, b"corpus.txt") + field(3, model_type) + field(40, model["unk_id"])
    out += field(2, trainer + varint(9 << 3 | 1) + bytes(8))
    return out + field(3, field(1, b"identity")) + field(5, field(1, 7))


@pytest.fixture(scope="module")
def theirs() -> T5Tokenizer:
    return wan_folders.wan21().tokenizer


@pytest.fixture
def folder(theirs: T5Tokenizer, tmp_path: Path) -> Path:
    theirs.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def encode(tokenizer: Tokenizer) -> tuple[list[list[int]], list[list[int]]]:
    ids, mask = tokenizer.encode(TEXTS, 24)
    return ids.tolist(), mask.tolist()


def test_every_place_gives_the_same_tokens(
    theirs: T5Tokenizer, folder: Path, tmp_path: Path
) -> None:
    known = theirs(TEXTS, padding="max_length", max_length=24, truncation=True)
    wanted = (known["input_ids"], known["attention_mask"])
    original = tmp_path / "model" / "google" / "umt5-xxl"
    original.mkdir(parents=True)
    (original / "spiece.model").write_bytes(spiece(theirs))
    single = tmp_path / "umt5.safetensors"
    content = torch.frombuffer(bytearray(spiece(theirs)), dtype=torch.uint8)
    save_file({"spiece_model": content, "shared.weight": torch.ones(2, 2)}, single)
    places = [
        folder, folder.parent, folder / "tokenizer.json", original, original / "spiece.model",
        tmp_path / "model", single,
    ]  # fmt: skip
    for place in places:
        assert encode(load.tokenizer(place)) == wanted, place
    shutil.copy(folder / "tokenizer.json", original)
    (original / "spiece.model").write_bytes(b"not read where the other is")
    assert encode(load.tokenizer(original)) == wanted


def refuse(place: Path, words: str) -> None:
    with pytest.raises(WeightsError) as caught:
        load.tokenizer(place)
    assert words in caught.value.message, caught.value.message
    assert "\n" not in caught.value.message and caught.value.hint


def test_what_is_no_tokenizer_is_refused(theirs: T5Tokenizer, tmp_path: Path) -> None:
    refuse(tmp_path, "it is missing")
    refuse(tmp_path / "nowhere", "it is missing")
    path = tmp_path / "spiece.model"
    whole = spiece(theirs)
    for content in (b"", whole[:-9], whole[1:], b"\xff" * 99, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            load.tokenizer(path)
        assert "spiece.model is" in caught.value.message and "\n" not in caught.value.message
    path.write_bytes(spiece(theirs, model_type=2))
    refuse(path, "it is no unigram model")
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    refuse(tmp_path / "a.safetensors", "carries no tokenizer")


@settings(max_examples=80, deadline=None)
@given(content=st.binary(max_size=60))
def test_no_noise_escapes(content: bytes) -> None:
    with pytest.raises(WeightsError) as caught:
        parse_spiece(content, "noise")
    assert "\n" not in caught.value.message
