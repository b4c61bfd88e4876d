"""Checkpoints as named tensors, whatever file they are in.

Opening one reads names, shapes and dtypes; a tensor's values are read when they are asked for, one
at a time, straight into memory of their own. Files are recognised by their first bytes. Of a
pickle (`.pth`) nothing is ever built but tensors: `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

import torch
from torch import Tensor

from sora_cli.errors import WeightsError

Device = torch.device | str

PREFIXES = ("model.diffusion_model.", "diffusion_model.")  # of the single files in circulation
AGAIN = "download the file again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor before its values are read; `dtype` is the stored one."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorSource(Protocol):
    """A checkpoint: its tensors by name, and how to read one.

    Attributes:
        part: the folder or file, for messages.
        tensors: name → shape and dtype, in the checkpoint's order.
        metadata: text that the file carries besides (safetensors' `__metadata__`, GGUF's fields).
    """

    part: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]

    def read(
        self, name: str, *, device: Device = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """One tensor's values, on a device and in a dtype (None: as stored).

        Raises WeightsError where the file is damaged.
        """
        ...

    def close(self) -> None:
        """Let go of the files. Tensors that were read stay valid."""
        ...


def open_tensors(part: Path) -> TensorSource:
    """Open a part of a model: a folder of safetensors files, or one file of any kind.

    Args:
        part: a folder (with or without an index of shards), or a `.safetensors`, `.pth` or
            `.gguf` file.

    Returns:
        The tensors, without the prefix `model.diffusion_model.` that single files may have.

    Raises:
        WeightsError: missing, damaged, cut off, or of another kind; the message is one line.
    """
    if part.is_dir():
        files = _files(part)
        source = _open_file(files[0]) if len(files) == 1 else Shards(part, files)
    elif part.exists():
        source = _open_file(part)
    else:
        raise WeightsError(f"{part} is missing", hint="download the whole folder again")
    source.part = part
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in source.tensors):
            return Renamed(source, {n: n.removeprefix(prefix) for n in source.tensors})
    return source


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those of its index where it has one."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is None:
        files = sorted(folder.glob("*.safetensors"))
    else:
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            files = [folder / _plain(name) for name in sorted(shards)]
        except KeyError as error:
            raise WeightsError(
                f"{index} cannot be used: it lacks {error}", hint="download the whole folder again"
            ) from error
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise WeightsError(
                f"{index} cannot be used: {first_line(error)}",
                hint="download the whole folder again",
            ) from error
        for file in files:
            if not os.path.isfile(file):  # False for a name that no system takes, too
                raise WeightsError(f"{file} is missing", hint="download the whole folder again")
    if not files:
        raise WeightsError(f"no safetensors in {folder}", hint="download the whole folder again")
    return files


def _plain(name: str) -> str:
    """The name of a file in the folder itself: an index leads nowhere else. Raises ValueError."""
    if PurePosixPath(name).name != name or PureWindowsPath(name).name != name or "\0" in name:
        raise ValueError(f"{name[:80]!r} is no name of a file beside it")
    return name


def _open_file(path: Path) -> TensorSource:
    """Open one file by what its first bytes say it is."""
    # The readers import this module.
    from sora_cli.weights.gguf import open as open_gguf
    from sora_cli.weights.tensor_files import PickleFile, SafetensorsFile

    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if start.startswith(b"GGUF"):
        return open_gguf(path)
    # A safetensors file begins with its header's length, whose first byte may be a pickle's 0x80.
    header = start[8:9] == b"{"
    if not header and start.startswith((b"PK\x03\x04", b"\x80")):
        if path.suffix == ".safetensors":  # torch goes by the suffix
            raise WeightsError(
                f"{path} is no safetensors file but one of PyTorch's, damaged or misnamed",
                hint=f"mv {path.name} {path.stem}.pth",
            )
        return PickleFile(path)
    if start.startswith(b"version https://"):
        raise WeightsError(
            f"{path} is a pointer of Git LFS, not the file itself", hint="git lfs pull"
        )
    return SafetensorsFile(path)


def first_line(error: BaseException) -> str:
    """An error of another library, in one line that is not too long."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


class Shards:
    """Several files that are one checkpoint."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        self.part = folder
        self.tensors: Mapping[str, TensorInfo] = {}
        self.metadata: Mapping[str, str] = {}
        self._owner: dict[str, TensorSource] = {}
        self._sources: list[TensorSource] = []
        try:
            for path in files:
                self._add(path)
        except WeightsError:
            self.close()
            raise

    def _add(self, path: Path) -> None:
        source = _open_file(path)
        self._sources.append(source)
        twice = next((name for name in source.tensors if name in self._owner), None)
        if twice is not None:
            other = self._owner[twice].part.name
            raise WeightsError(
                f"{self.part} has {twice} twice, in {other} and {path.name}",
                hint="remove the file that is not of this model",
            )
        self._owner |= dict.fromkeys(source.tensors, source)
        self.tensors = {**self.tensors, **source.tensors}
        self.metadata = {**self.metadata, **source.metadata}

    def read(
        self, name: str, *, device: Device = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `TensorSource.read`."""
        return self._owner[name].read(name, device=device, dtype=dtype)

    def close(self) -> None:
        """As `TensorSource.close`."""
        for source in self._sources:
            with suppress(OSError):
                source.close()


class Renamed:
    """A checkpoint under other names; tensors that `names` leaves out are not there."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        """Wrap `source`; `names` are its names → the new ones, one to one.

        Raises:
            WeightsError: two tensors for one name.
        """
        self._source = source
        self._theirs = {new: old for old, new in names.items()}
        if len(self._theirs) < len(names):
            raise WeightsError(f"{source.part} has two tensors for one parameter", hint=AGAIN)
        self.part = source.part
        self.tensors: Mapping[str, TensorInfo] = {
            new: source.tensors[old] for old, new in names.items()
        }
        self.metadata = source.metadata

    def read(
        self, name: str, *, device: Device = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `TensorSource.read`."""
        return self._source.read(self._theirs[name], device=device, dtype=dtype)

    def close(self) -> None:
        """As `TensorSource.close`."""
        self._source.close()
