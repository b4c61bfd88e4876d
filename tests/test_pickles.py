"""PyTorch's own files, made wrong: neither a hang nor more memory than the file has bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from sora_cli.errors import WeightsError
from sora_cli.weights.tensors import open_tensors
from tests.fuzz import guards


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_of_more_numbers_than_it_holds(tmp_path: Path, new: bool) -> None:
    """Strides of 0 make a terabyte of one number."""
    bomb = torch.zeros(1).as_strided((1 << 20, 1 << 18), (0, 0))
    torch.save({"a": bomb}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(WeightsError, match="is not made of numbers in the file"):
        open_tensors(tmp_path / "a.pth")


def test_an_old_pickle_with_an_endless_text(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(b"\x80\x02X\xff\xff\xff\x7fabc")
    with guards.limited(5, 512), pytest.raises(WeightsError) as caught:
        open_tensors(file)
    assert guards.judge(caught.value) is None


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_with_a_name_that_goes_on_for_ever(tmp_path: Path, new: bool) -> None:
    """torch looks into its own message of it, in a time with the square of the length."""
    endless = b"a" * 1_000_000
    name, bad = b"ctorch\n" + endless + b"\n", b"X" + len(endless).to_bytes(4, "little") + endless
    for number, content in enumerate((name, b"(" + bad + b"tQ")):
        file = tmp_path / f"{number}.pth"
        torch.save({"a": torch.zeros(1)}, file, _use_new_zipfile_serialization=new)
        if new:
            _replace(file, b"\x80\x02" + content + b".")
        else:
            whole = file.read_bytes()
            end = whole.index(b"ctorch._utils")
            file.write_bytes(whole[:end] + content + b"." + whole[end:])
        with guards.limited(5, 512), pytest.raises(WeightsError) as caught:
            open_tensors(file)
        assert guards.judge(caught.value) is None


def test_an_archive_that_tells_of_more_than_it_holds(tmp_path: Path) -> None:
    """torch would make room for two gigabytes before it reads a kilobyte."""
    file = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1)}, file)
    with zipfile.ZipFile(file) as archive:
        (size,) = (i.file_size for i in archive.infolist() if i.filename.endswith("data.pkl"))
    whole = file.read_bytes()
    entry = whole.index(b"PK\x01\x02")  # of the directory: the first record's, 24 bytes before
    told = (2_130_706_724).to_bytes(4, "little")
    assert whole[entry + 24 : entry + 28] == size.to_bytes(4, "little")
    file.write_bytes(whole[: entry + 24] + told + whole[entry + 28 :])
    with guards.limited(5, 512), pytest.raises(WeightsError) as caught:
        open_tensors(file)
    assert guards.judge(caught.value) is None


def _replace(archive: Path, pickled: bytes) -> None:
    """Put another pickle into one of torch's archives."""
    with zipfile.ZipFile(archive) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as new:
        for name, data in content.items():
            new.writestr(name, pickled if name.endswith("data.pkl") else data)
