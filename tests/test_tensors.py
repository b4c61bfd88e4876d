"""Checkpoints of every kind of file: what is read, lazily, and what is refused, in one line."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from sora_cli.errors import WeightsError
from sora_cli.weights import tensor_files
from sora_cli.weights.tensor_files import PickleFile, SafetensorsFile
from sora_cli.weights.tensors import PREFIXES, TensorInfo, open_tensors

State = dict[str, Tensor]
STARTS = (b"PK\x03\x04", b"\x80\x02", b"GGUF")
DTYPES = tensor_files.SAFETENSORS_DTYPES.values()


def some_state() -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        "blocks.0.weight": torch.randn(3, 5, generator=generator),
        "blocks.0.bias": torch.randn(5, generator=generator).bfloat16(),
        "head": torch.randn(1, 2, 7, generator=generator).half(),
        "one": torch.tensor(3.5),
        "none": torch.empty(0, 4),
    }


def read_all(path: Path, **options: Any) -> State:
    with closing(open_tensors(path)) as source:
        return {name: source.read(name, **options) for name in source.tensors}


def same(found: State, wanted: State) -> bool:
    return found.keys() == wanted.keys() and all(
        found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in wanted.items()
    )


def save_shards(state: State, folder: Path, *, index: bool) -> Path:
    folder.mkdir()
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(state)}
    for file in set(places.values()):
        save_file({n: t for n, t in state.items() if places[n] == file}, folder / file)
    if index:
        text = json.dumps({"metadata": {}, "weight_map": places})
        (folder / "model.safetensors.index.json").write_text(text)
    return folder


def write(state: State, folder: Path, kind: str) -> Path:
    """The state as one kind of file or folder."""
    if kind.startswith("shards"):
        return save_shards(state, folder / "shards", index=kind.endswith("index"))
    # Names that say nothing, or the wrong thing: files are told by their content.
    path = folder / ("weights.pth" if kind == "safetensors" else "weights")
    if kind == "safetensors":
        save_file(state, path, {"format": "pt"})
    else:
        content: Any = {"state_dict": state, "epoch": 3} if kind == "nested pickle" else state
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old pickle")
    return path


KINDS = ("safetensors", "shards", "shards with an index", "pickle", "nested pickle", "old pickle")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_reads_the_same(kind: str, tmp_path: Path) -> None:
    state = some_state()
    path = write(state, tmp_path, kind)
    assert same(read_all(path), state)
    cast = {name: tensor.double() for name, tensor in state.items()}
    assert same(read_all(path, dtype=torch.float64), cast)
    with closing(open_tensors(path)) as source:
        assert source.part == path
        infos = {n: TensorInfo(tuple(t.shape), t.dtype) for n, t in state.items()}
        assert dict(source.tensors) == infos
        assert source.tensors["head"].nbytes == 28


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_every_dtype_is_read_as_stored(kind: str, tmp_path: Path) -> None:
    values = torch.tensor([[0, 1, 2], [3, 4, 5]])
    state = {str(dtype): values.to(dtype) for dtype in DTYPES}
    found = read_all(write(state, tmp_path, kind))
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_what_was_read_outlives_the_file(kind: str, tmp_path: Path) -> None:
    """Nothing is a view of a mapped file, which a truncation would turn into a crash."""
    state = some_state()
    path = write(state, tmp_path, kind)
    found = read_all(path)
    path.write_bytes(b"")
    assert same(found, state)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.values() if tensor.numel())


def test_a_pickle_is_mapped_anew_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a cast of a large file does not keep the whole of it resident besides."""
    monkeypatch.setattr(tensor_files, "REMAP_BYTES", 16)
    state = some_state()
    assert same(read_all(write(state, tmp_path, "pickle")), state)


def test_a_header_whose_length_begins_like_a_pickle_is_a_header(tmp_path: Path) -> None:
    """One safetensors file in 32 has 0x80 as its first byte: lengths are multiples of 8."""
    state = {"a": torch.ones(2)}
    path = tmp_path / "a.safetensors"
    for said in range(0, 256, 8):
        save_file(state, path, {"x": "y" * said})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert same(read_all(path), state)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_removed(prefix: str, tmp_path: Path) -> None:
    state = some_state()
    path = write({f"{prefix}{n}": t for n, t in state.items()}, tmp_path, "safetensors")
    assert same(read_all(path), state)


def test_metadata_is_kept(tmp_path: Path) -> None:
    save_file(some_state(), tmp_path / "a.safetensors", {"format": "pt", "said": "this"})
    with closing(open_tensors(tmp_path / "a.safetensors")) as source:
        assert source.metadata["said"] == "this"


# ---------------------------------------------------------------- what is refused


def refuse(path: Path, words: str) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        read_all(path)
    assert words in caught.value.message, caught.value.message
    assert "\n" not in caught.value.message and len(caught.value.message) < 600
    return caught.value


class Bomb:
    """Unpickling this touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new", [True, False], ids=["archive", "old format"])
def test_a_pickle_that_runs_code_is_refused(new: bool, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "a.pth"
    content = {**some_state(), "x": Bomb(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    error = refuse(path, "holds more than tensors, so it is not read")
    assert "safetensors" in (error.hint or "")
    plain = tmp_path / "b.pth"
    plain.write_bytes(pickle.dumps(content))
    refuse(plain, "is not read")
    assert not mark.exists()


def test_a_bomb_in_an_archive_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    """The pickle within an otherwise good file replaced."""
    mark, path = tmp_path / "ran", tmp_path / "a.pth"
    torch.save(some_state(), tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            bad.writestr(name, pickle.dumps(Bomb(mark)) if name.endswith("data.pkl") else content)
    refuse(path, "is not read")
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["safetensors", "pickle", "old pickle"])
def test_a_file_that_is_cut_off_is_refused(kind: str, tmp_path: Path) -> None:
    path = write(some_state(), tmp_path, kind)
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refuse(path, "damaged or")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write(some_state(), tmp_path, "safetensors")
    with closing(open_tensors(path)) as source:
        os.truncate(path, path.stat().st_size - 200)
        with pytest.raises(WeightsError, match="is damaged: it ends within"):
            for name in source.tensors:
                source.read(name)


def test_no_flipped_bit_of_a_pickle_escapes(tmp_path: Path) -> None:
    """It is an error in our words, or harmless; never a crash of another kind."""
    path = write(some_state(), tmp_path, "pickle")
    content = path.read_bytes()
    generator = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(content)
        broken[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
        path.write_bytes(broken)
        try:
            read_all(path)
        except WeightsError as error:
            assert "\n" not in error.message


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=80))
def test_no_file_of_noise_escapes(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    for start, suffix in itertools.product((b"", *STARTS), (".pth", ".safetensors")):
        path = folder / f"noise{suffix}"
        path.write_bytes(start + content)
        with pytest.raises(WeightsError) as caught:
            read_all(path)
        assert "\n" not in caught.value.message


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    refuse(tmp_path / "a.safetensors", "a.safetensors is missing")
    refuse(tmp_path, "no safetensors in")
    folder = save_shards(some_state(), tmp_path / "shards", index=True)
    (folder / "model-1.safetensors").unlink()
    refuse(folder, "model-1.safetensors is missing")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{}", "it lacks 'weight_map'"), ("[]", "cannot be used"), ("{", "cannot be used"),
     ('{"weight_map": 3}', "cannot be used"), ('{"weight_map": {"a": 3}}', "cannot be used")],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(text: str, words: str, tmp_path: Path) -> None:
    folder = save_shards(some_state(), tmp_path / "shards", index=True)
    (folder / "model.safetensors.index.json").write_text(text)
    refuse(folder, words)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("model.fp16.safetensors", "model.safetensors"):
        save_file(some_state(), tmp_path / name)
    refuse(tmp_path, "twice, in model.fp16.safetensors and model.safetensors")


def test_pickles_without_tensors_are_refused(tmp_path: Path) -> None:
    for content in ({}, {"a": 3}, [torch.ones(2)], torch.ones(2)):
        torch.save(content, tmp_path / "a.pth")
        refuse(tmp_path / "a.pth", "holds no")


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid …\n")
    error = refuse(tmp_path / "a.safetensors", "is a pointer of Git LFS")
    assert error.hint == "git lfs pull"


def test_a_page_of_a_website_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("<!doctype html><title>404</title>" * 9)
    refuse(tmp_path / "a.safetensors", "is damaged or not a safetensors file")


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    """Opening a file of some gigabytes costs its header."""
    path = tmp_path / "a.safetensors"
    shape, nbytes = [1 << 15, 1 << 15], 4 << 30
    header = {"big": {"dtype": "F32", "shape": shape, "data_offsets": [0, nbytes]}}
    buffer = io.BytesIO()
    text = json.dumps(header).encode()
    buffer.write(len(text).to_bytes(8, "little") + text)
    path.write_bytes(buffer.getvalue())
    os.truncate(path, len(buffer.getvalue()) + nbytes)  # a hole: it takes no space
    with closing(SafetensorsFile(path)) as source:
        assert source.tensors["big"] == TensorInfo((1 << 15, 1 << 15), torch.float32)


def test_a_mapped_pickle_is_not_read_whole(tmp_path: Path) -> None:
    path = write(some_state(), tmp_path, "pickle")
    with closing(PickleFile(path)) as source:
        assert source.tensors["one"] == TensorInfo((), torch.float32)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_threads_read_a_tensor_in_pieces_as_one_does(
    mode: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, whose lanes these are; each file has a last piece that is not full."""
    monkeypatch.setattr(tensor_files, "LANES", {"cpu": (3, 64)})
    torch.manual_seed(0)
    tensors = {"long": torch.randn(37, 11), "short": torch.randn(3), "none": torch.empty(0, 4)}
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, path)
    with mode(), closing(open_tensors(path)) as source:
        for name, tensor in tensors.items():
            found = source.read(name, dtype=torch.float32)
            assert torch.equal(found, tensor.bfloat16().float())
    with closing(open_tensors(path)) as source:
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(WeightsError, match="it ends within long"):
            source.read("long", dtype=torch.float32)
