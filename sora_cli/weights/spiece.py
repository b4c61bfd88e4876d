"""SentencePiece models (`spiece.model`), read without the sentencepiece and protobuf packages.

The file is one protobuf message, `ModelProto` of sentencepiece's `sentencepiece_model.proto`; a
handful of its fields make a tokenizer. Wan's original folders and ComfyUI's single files carry the
text encoder's tokenizer in this form.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors

from sora_cli.errors import WeightsError
from sora_cli.models.text_encoder import END_TOKEN, Tokenizer
from sora_cli.weights.tensors import first_line

# Fields of ModelProto, and of the messages in it.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, UNKNOWN_ID = 3, 40
CHARACTER_MAP = 2
UNIGRAM = 1
MAX_MAP = 1 << 22  # bytes; the published ones have 240,000
UNKNOWN, CONTROL = 2, 3  # types of pieces that no text is cut into

Field = tuple[int, int | bytes]


def read_spiece(path: Path) -> Tokenizer:
    """The tokenizer of a `spiece.model` file; errors as `parse_spiece`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    return parse_spiece(content, str(path))


def parse_spiece(content: bytes, source: str) -> Tokenizer:
    """The T5 tokenizer that a serialised model describes.

    Args:
        content: a `ModelProto`.
        source: where it comes from, for messages.

    Raises:
        WeightsError: damaged, or no unigram model.
    """
    try:
        return Tokenizer(_build(content), source=source)
    except WeightsError:
        raise
    # tokenizers reports what it cannot use as a bare Exception.
    except Exception as error:
        raise WeightsError(
            f"{source} is damaged or no SentencePiece model: {first_line(error)}",
            hint="download it again",
        ) from error


def _build(content: bytes) -> tokenizers.Tokenizer:
    pieces: list[tuple[str, float]] = []
    special: list[str] = []
    unknown, characters, whole = 0, b"", False
    for number, value in _fields(content):
        if number == PIECES:
            piece, score, kind = _piece(_message(value))
            pieces.append((piece, score))
            special += [piece] if kind in (UNKNOWN, CONTROL) else []
        elif number == TRAINER:
            whole = True  # it comes after the pieces
            for key, setting in _fields(_message(value)):
                if key == MODEL_TYPE and setting != UNIGRAM:
                    raise ValueError("it is no unigram model")
                unknown = setting if key == UNKNOWN_ID and isinstance(setting, int) else unknown
        elif number == NORMALIZER:
            for key, setting in _fields(_message(value)):
                characters = _message(setting) if key == CHARACTER_MAP else characters
    if not whole:
        raise ValueError("it is cut off")
    # As transformers converts it: unknown characters become <unk>, not bytes.
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=False))
    if characters:
        _check_map(characters)
        tokenizer.normalizer = normalizers.Precompiled(characters)
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in special])
    end = tokenizer.token_to_id(END_TOKEN)
    if end is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", END_TOKEN], special_tokens=[(END_TOKEN, end)]
        )
    return tokenizer


def _check_map(content: bytes) -> None:
    """Raises ValueError for a map of characters that leads outside itself.

    tokenizers believes it: asks for as much memory as it says, and panics at an index that is not
    there. It is the size of a trie in bytes, the trie (a double array of darts-clone's units), and
    the texts that its values are places in, each up to a zero.
    """
    size = int.from_bytes(content[:4], "little")
    if not 4 <= size <= min(len(content) - 4, MAX_MAP):
        raise ValueError("its map of characters is cut off")
    units = np.frombuffer(content, "<u4", size // 4, 4).astype(np.int64)
    texts = np.frombuffer(content + b"\0", np.uint8, offset=4 + size // 4 * 4)
    starts = (texts & 0xC0) != 0x80  # of characters in UTF-8
    offsets = (units >> 10) << ((units & 0x200) >> 6)
    seen, labels = np.zeros(len(units), bool), np.arange(1, 256)
    nodes = offsets[:1]
    while len(nodes):
        places = nodes[:4096, None] ^ labels  # where any next byte leads
        if places.max() >= len(units):
            raise ValueError("its map of characters is damaged")
        found = places[units[places] & 0x800000FF == labels]
        found = np.unique(found[~seen[found]])
        seen[found] = True
        after = found ^ offsets[found]
        ends = after[(units[found] >> 8) & 1 == 1]
        if (ends >= len(units)).any():
            raise ValueError("its map of characters is damaged")
        values = units[ends] & 0x7FFFFFFF
        if (values >= len(texts)).any() or not starts[values].all():
            raise ValueError("its map of characters is damaged")
        nodes = np.concatenate([nodes[4096:], after])


def _piece(content: bytes) -> tuple[str, float, int]:
    piece, score, kind = "", 0.0, 1
    for number, value in _fields(content):
        if number == PIECE:
            piece = _message(value).decode()
        elif number == SCORE:
            (score,) = struct.unpack("<f", _message(value))
        elif number == TYPE and isinstance(value, int):
            kind = value
    return piece, score, kind


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field is of another type")
    return value


def _fields(content: bytes) -> Iterator[Field]:
    """The fields of a protobuf message: numbers as integers, everything else as bytes."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        wire = key & 7
        if wire == 0:
            value, place = _varint(content, place)
            yield key >> 3, value
            continue
        if wire == 2:
            size, place = _varint(content, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if place + size > len(content):
            raise ValueError("it is cut off")
        yield key >> 3, content[place : place + size]
        place += size


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(content) or shift > 63:
            raise ValueError("it is cut off")
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
