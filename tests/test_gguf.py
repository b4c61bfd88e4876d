"""GGUF files, written by the gguf package itself, read as the package dequantises them."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sora_cli.errors import SoraError, UsageError, WeightsError
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.text_encoder import TextEncoder, TextEncoderConfig
from sora_cli.weights import gguf as ours
from sora_cli.weights.layouts import recognise
from sora_cli.weights.tensors import open_tensors

ROWS, COLUMNS = 5, 512
# What the package's own writer can quantise, and what it can only read: there any bytes will do.
WRITTEN = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1)
READ_ONLY = (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS)

Stored = Mapping[str, tuple[np.ndarray, Kind]]


def write(
    path: Path,
    tensors: Stored,
    *,
    architecture: str = "wan",
    vocabulary: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """A file with some tensors, by the package's writer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if vocabulary:
        writer.add_token_list([f"word{i}" for i in range(vocabulary)])
        writer.add_token_scores([0.5] * vocabulary)
    for name, shape in (shapes or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(kind: Kind) -> np.ndarray:
    """Rows of a format, of arbitrary bytes."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(int(kind))
    return generator.integers(0, 256, (ROWS, COLUMNS // block * size), dtype=np.uint8)


def quantised(kind: Kind) -> np.ndarray:
    data = np.random.default_rng(1).standard_normal((ROWS, COLUMNS), dtype=np.float32)
    return gguf.quants.quantize(data, kind)


@pytest.mark.parametrize("kind", [*WRITTEN, *READ_ONLY], ids=lambda kind: kind.name)
def test_every_format_reads_as_the_package_dequantises_it(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = quantised(kind) if kind in WRITTEN else random_blocks(kind)
    monkeypatch.setattr(ours, "SLAB", 2 * COLUMNS)  # so that these few rows are several slabs
    source = open_tensors(write(tmp_path / "m.gguf", {"a.weight": (data, kind)}))
    with np.errstate(all="ignore"):
        wanted = torch.from_numpy(gguf.quants.dequantize(data, kind).astype(np.float32))
    assert source.tensors["a.weight"].shape == (ROWS, COLUMNS)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = source.read("a.weight", dtype=dtype)
        assert found.dtype == dtype and found.shape == (ROWS, COLUMNS)
        torch.testing.assert_close(found, wanted.to(dtype), rtol=0, atol=0, equal_nan=True)
    stored = {Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}.get(kind, torch.float32)
    assert source.read("a.weight").dtype == source.tensors["a.weight"].dtype == stored
    source.close()


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_shapes_come_back(tmp_path: Path, shape: list[int]) -> None:
    """The file has them reversed; five dimensions, which ggml itself lacks, are kept too."""
    values = torch.randn(shape)
    path = write(tmp_path / "m.gguf", {"a.weight": (values.numpy(), Kind.F32)})
    source = ours.open(path)
    assert source.tensors["a.weight"].shape == tuple(shape)
    assert source.read("a.weight").equal(values)
    source.close()


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_flattened_patch_embedding_is_a_convolution_again(
    tmp_path: Path, said: bool, prefix: str
) -> None:
    """By the field that some writers add, or by the width of its bias."""
    values = torch.randn(24, 4, 1, 2, 2)
    name = f"{prefix}patch_embedding.weight"
    tensors = {name: (values.reshape(24 * 4, 1, 2, 2).numpy(), Kind.F32)}
    if not said:
        tensors[f"{prefix}patch_embedding.bias"] = (np.zeros(24, np.float32), Kind.F32)
    shapes = {name: tuple(values.shape)} if said else None
    source = open_tensors(write(tmp_path / "m.gguf", tensors, shapes=shapes))
    assert source.read("patch_embedding.weight").equal(values)


def test_a_transformer_is_recognised_and_read(tmp_path: Path) -> None:
    """As published: matrices quantised, the rest in float32, the names the original ones."""
    config = DiTConfig(
        num_layers=1, hidden_size=128, num_heads=1, ffn_dim=64, in_channels=16, out_channels=16,
        text_dim=32, text_len=512,
    )  # fmt: skip
    state = {name: torch.randn(t.shape) for name, t in DiT(config).state_dict().items()}
    matrices = {n for n, t in state.items() if t.ndim == 2 and n.startswith("blocks.")}
    tensors = {
        name: (gguf.quants.quantize(t.numpy(), Kind.Q8_0), Kind.Q8_0)
        if name in matrices
        else (t.numpy(), Kind.F32)
        for name, t in state.items()
    }
    source = open_tensors(write(tmp_path / "m.gguf", tensors))
    layout = recognise(source)
    assert layout.kind == "transformer" and layout.config == config
    for name, values in state.items():
        found = source.read(name)
        error = (found - values).abs().max() / values.abs().max()
        assert error <= (0.01 if name in matrices else 0), name


def test_a_text_encoder_in_llama_cpps_names_is_ours(tmp_path: Path) -> None:
    """With the vocabulary that such files carry, and without T5's decoder."""
    config = TextEncoderConfig(
        vocab_size=32, hidden_size=32, num_layers=2, num_heads=2, head_dim=8, ffn_dim=64
    )
    state = TextEncoder(config).state_dict()
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, config.num_layers)
    theirs = {
        "token_embedding": "shared", "norm": "encoder.final_layer_norm",
        "norm1": "layer.0.layer_norm", "norm2": "layer.1.layer_norm",
        "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
        "ffn.gate.0": "layer.1.DenseReluDense.wi_0", "ffn.fc1": "layer.1.DenseReluDense.wi_1",
        "ffn.fc2": "layer.1.DenseReluDense.wo",
        **{f"attn.{p}": f"layer.0.SelfAttention.{p}" for p in "qkvo"},
    }  # fmt: skip
    tensors, names = {}, {}
    for name, tensor in state.items():
        path = name.removesuffix(".weight").removeprefix("blocks.")
        block, dot, rest = path.partition(".")
        path = f"encoder.block.{block}.{theirs[rest]}" if block.isdigit() else theirs[path]
        # The package's own table says what llama.cpp calls a module of transformers.
        stored = table.get_name(f"{path}.weight", try_suffixes=(".weight",))
        assert stored is not None, path
        names[stored] = name
        tensors[stored] = (tensor.numpy(), Kind.F32)
    tensors["dec.blk.0.attn_q.weight"] = tensors["output.weight"] = (
        np.ones(4, np.float32),
        Kind.F32,
    )
    path = write(tmp_path / "t.gguf", tensors, architecture="t5", vocabulary=300)
    source = open_tensors(path)
    layout = recognise(source)
    assert layout.kind == "text_encoder" and dict(layout.names) == names
    assert all(source.read(theirs).equal(state[name]) for theirs, name in names.items())


def test_without_the_package_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.gguf", {"a": (np.ones(4, np.float32), Kind.F32)})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError) as caught:
        open_tensors(path)
    assert caught.value.hint == "pip install 'sora-cli[gguf]'"


def test_another_architecture_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf", {"a": (np.ones(4, np.float32), Kind.F32)}, architecture="llama"
    )
    with pytest.raises(WeightsError, match="architecture 'llama'"):
        ours.open(path)


def test_a_format_that_the_package_cannot_read_is_named(tmp_path: Path) -> None:
    data = np.zeros((1, 292), np.uint8)  # one block of Q8_K, used only within llama.cpp
    path = write(tmp_path / "m.gguf", {"a.weight": (data, Kind.Q8_K)})
    source = ours.open(path)
    with pytest.raises(WeightsError, match="Q8_K"):
        source.read("a.weight")


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def header(tensors: int, fields: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


WAN = text(b"general.architecture") + struct.pack("<I", 8) + text(b"wan")
HUGE = 1 << 62


def tensor(*sizes: int, kind: int = 0, start: int = 0, name: bytes = b"a") -> bytes:
    return (
        text(name)
        + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        + struct.pack("<IQ", kind, start)
    )


HOSTILE = {
    "nothing": b"",
    "four bytes": b"GGUF",
    "other byte order": header(0, 1, WAN, version=3 << 24),
    "version 1": header(0, 1, WAN, version=1),
    "countless tensors": header(HUGE, 1, WAN),
    "countless fields": header(1, HUGE, WAN),
    "fewer than it says": header(3, 1, WAN + tensor(1)),
    "an endless name": header(0, 1, struct.pack("<Q", HUGE)),
    "a name that is no text": header(0, 1, text(b"\xff\xfe") + struct.pack("<IB", 0, 0)),
    "an endless text": header(0, 1, text(b"a") + struct.pack("<IQ", 8, HUGE)),
    "an endless list": header(0, 1, text(b"a") + struct.pack("<IIQ", 9, 0, HUGE)),
    "an endless vocabulary": header(0, 1, text(b"a") + struct.pack("<IIQ", 9, 8, HUGE)),
    "lists of lists": header(0, 1, text(b"a") + struct.pack("<IIQ", 9, 9, HUGE)),
    "an unknown field": header(0, 1, text(b"a") + struct.pack("<I", 99)),
    "many dimensions": header(1, 1, WAN + tensor(*[1] * 9)),
    "a huge tensor": header(1, 1, WAN + tensor(HUGE, HUGE, HUGE)),
    "an empty tensor": header(1, 1, WAN + tensor(0, 4)),
    "a tensor beyond the end": header(1, 1, WAN + tensor(4, start=HUGE)),
    "an unknown format": header(1, 1, WAN + tensor(4, kind=4000)),
    "half a block": header(1, 1, WAN + tensor(16, kind=8)),
    "alike tensors": header(2, 1, WAN + tensor(1) + tensor(1) + b"\0" * 64),
    "no alignment": header(
        0, 2, WAN + text(b"general.alignment") + struct.pack("<II", 4, 0)
    ),
    "another shape": header(
        1,
        2,
        WAN + text(b"comfy.gguf.orig_shape.a") + struct.pack("<IIQii", 9, 5, 2, 3, 3)
        + tensor(4) + b"\0" * 64,
    ),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_ends_in_one_line_and_at_once(tmp_path: Path, kind: str) -> None:
    """Counts and sizes that no file can keep are refused before anything is allocated."""
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(WeightsError) as caught:
        ours.open(path)
    assert caught.value.hint and "\n" not in caught.value.message


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_an_error_or_another_file(tmp_path: Path, data: st.DataObject) -> None:
    """Any byte changed, or the file cut anywhere: never another kind of exception."""
    path = tmp_path / "m.gguf"
    if not path.exists():
        write(path, {"a.weight": (quantised(Kind.Q8_0), Kind.Q8_0)}, vocabulary=3)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    end = 400  # the header, and some of the numbers
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, end))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    other = tmp_path / "damaged.gguf"
    other.write_bytes(damaged)
    try:
        source = ours.open(other)
        for name in source.tensors:
            source.read(name)
        source.close()
    except SoraError as error:
        assert "\n" not in error.message
