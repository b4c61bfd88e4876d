"""GGUF files: quantised tensors under the original names, dequantised when they are read.

The header is read here, every size in it held against the file's, because the `gguf` package
trusts a header and takes seconds for one that carries a vocabulary; what the blocks of numbers
mean is the package's to say, an optional extra. Format: ggml's docs/gguf.md, versions 2 and 3,
little-endian. Sizes stand in it reversed, the fastest first. Of the diffusion transformers the
architecture is `wan`, of umT5 `t5encoder` or, with a decoder that nothing here uses, `t5`.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sora_cli.errors import UsageError, WeightsError
from sora_cli.weights.tensors import AGAIN, Device, TensorInfo

ARCHITECTURES = ("wan", "t5encoder", "t5")
PLAIN: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
}  # fmt: skip
VERSIONS = (2, 3)
MOST_ENTRIES = 1 << 16  # fields, and tensors; a model of 40 blocks has 1,100
MOST_DIMENSIONS = 8
LONGEST_NAME = 1 << 10
LONGEST_TEXT = 1 << 16  # of a field that is kept
# Numbers dequantised at a time: the package needs some twenty bytes for each.
SLAB = 1 << 22
PATCHES = "patch_embedding.weight"  # and vace_patch_embedding
PATCH_SIZE = (1, 2, 2)  # of every model of the architecture

_SCALARS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"
}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor lies and how: its kind in ggml's numbering, sizes in torch's order."""

    kind: int
    shape: tuple[int, ...]
    start: int
    nbytes: int


class _Damaged(ValueError):
    """A header that says what cannot be."""


def open(path: Path) -> GgufFile:
    """Open a GGUF file of a diffusion transformer or a umT5 encoder.

    Returns:
        A `TensorSource` under the file's own names, which for a transformer are the original ones.

    Raises:
        UsageError: the `gguf` package is not installed.
        WeightsError: damaged, cut off, or of another architecture.
    """
    return GgufFile(path)


class GgufFile:
    """One GGUF file, as a `TensorSource`. Quantised tensors count as float32."""

    def __init__(self, path: Path) -> None:
        """Read the header; errors as `open`."""
        self._package = _package()
        self.part = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
        try:
            # Mapped for its header only: what is read of a mapping stays in resident memory.
            with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                fields, self._stored = _read_header(mapped, self._package)
            self._shapes = _shapes(self._stored, fields)
        except (OSError, ValueError) as error:  # _Damaged, text that is none, an empty file
            self.close()
            raise WeightsError(f"{path} is damaged or cut off: {error}", hint=AGAIN) from error
        self.metadata: Mapping[str, str] = {
            name: str(value) for name, value in fields.items() if isinstance(value, str | int)
        }
        architecture = self.metadata.get("general.architecture", "none")
        if architecture not in ARCHITECTURES:
            self.close()
            raise WeightsError(
                f"{path} is a GGUF file of the architecture {architecture[:80]!r}; those read are "
                + ", ".join(ARCHITECTURES),
                hint="sora weights list shows what can run",
            )
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(self._shapes[name], self._dtype(stored))
            for name, stored in self._stored.items()
            if not name.startswith("dec.") and name != "output.weight"
        }

    def read(
        self, name: str, *, device: Device = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `TensorSource.read`; a slab of rows at a time, so that little is held in float32."""
        stored, info = self._stored[name], self.tensors[name]
        kind = self._package.GGMLQuantizationType(stored.kind)
        block, size = self._package.GGML_QUANT_SIZES[kind]
        values = torch.empty(math.prod(info.shape), dtype=dtype or info.dtype)
        row = stored.shape[-1] if stored.shape else 1
        step = max(SLAB // row, 1) * row  # whole rows, and so whole blocks
        for first in range(0, len(values), step):
            count = min(step, len(values) - first)
            start = stored.start + first // block * size
            data = self._bytes(start, count // block * size)
            values[first : first + count] = self._dequantised(kind, data, count // row)
        return values.view(info.shape).to(device)

    def close(self) -> None:
        """As `TensorSource.close`."""
        self._file.close()

    def _bytes(self, start: int, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        try:
            self._file.seek(start)
            while view:  # one read gives at most 2 GiB
                got = self._file.readinto(view)
                if not got:
                    raise EOFError("it has become shorter")
                view = view[got:]
        except (OSError, EOFError) as error:
            raise WeightsError(f"{self.part} cannot be read: {error}", hint=AGAIN) from error
        return data

    def _dtype(self, stored: _Stored) -> torch.dtype:
        return PLAIN.get(self._package.GGMLQuantizationType(stored.kind).name, torch.float32)

    def _dequantised(self, kind: Any, data: bytearray, rows: int) -> Tensor:
        """The numbers of whole rows, flat."""
        if kind.name in PLAIN:
            return torch.frombuffer(data, dtype=PLAIN[kind.name])
        try:
            with np.errstate(all="ignore"):  # what is not finite in the file stays so
                blocks = np.frombuffer(data, np.uint8).reshape(rows, -1)
                plain = self._package.quants.dequantize(blocks, kind)
        except RuntimeError as error:  # what the package raises for a format it only writes
            raise WeightsError(
                f"{self.part} is quantised as {kind.name}, which the gguf package cannot read",
                hint="take another variant, as Q8_0 or Q4_K_M",
            ) from error
        return torch.from_numpy(np.ascontiguousarray(plain, dtype=np.float32)).flatten()


class _Header:
    """A place in a header that moves on as it is read, and never past the end."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped, self.place = mapped, 0

    def skip(self, count: int) -> int:
        """Move over `count` bytes, and say where they start."""
        start = self.place
        if count > len(self._mapped) - start:
            raise _Damaged("its header ends early")
        self.place += count
        return start

    def number(self, form: str) -> Any:
        start = self.skip(struct.calcsize(f"<{form}"))
        return struct.unpack_from(f"<{form}", self._mapped, start)[0]

    def count(self, most: int, what: str) -> int:
        """A number of things that cannot be more than `most`."""
        number: int = self.number("Q")
        if number > most:
            raise _Damaged(f"it claims {number} {what}")
        return number

    def text(self, longest: int) -> str:
        length = self.count(longest, "bytes of text")
        start = self.skip(length)
        text = self._mapped[start : start + length].decode("utf-8")
        if not text.isprintable():  # it is going to stand in messages
            raise _Damaged(f"it has the name {text[:80]!r}")
        return text

    def value(self) -> object:
        """A field's value: numbers, short texts and short lists of numbers; None for the rest."""
        kind = self.number("I")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self._text_or_none()
        if kind != _ARRAY:
            raise _Damaged(f"it has a field of the unknown kind {kind}")
        kind = self.number("I")
        length: int = self.number("Q")
        if kind in _SCALARS:
            form = _SCALARS[kind]
            if length <= MOST_DIMENSIONS:
                return tuple(self.number(form) for _ in range(length))
            self.skip(length * struct.calcsize(f"<{form}"))
        elif kind == _TEXT:  # a vocabulary; each text takes at least the bytes of its length
            for _ in range(length):
                self.skip(self.number("Q"))
        else:
            raise _Damaged(f"it has a list of the unknown kind {kind}")
        return None

    def _text_or_none(self) -> str | None:
        length: int = self.number("Q")
        start = self.skip(length)
        if length > LONGEST_TEXT:
            return None
        return self._mapped[start : start + length].decode("utf-8", errors="replace")


def _read_header(
    mapped: mmap.mmap, package: ModuleType
) -> tuple[dict[str, object], dict[str, _Stored]]:
    """Fields and tensors. Raises _Damaged where a size does not fit the file."""
    header = _Header(mapped)
    if mapped[header.skip(4) : 4] != b"GGUF":
        raise _Damaged("it does not begin with GGUF")
    version = header.number("I")
    if version not in VERSIONS:
        raise _Damaged(f"its version is {version}; {VERSIONS} are read")
    tensor_count = header.count(MOST_ENTRIES, "tensors")
    field_count = header.count(MOST_ENTRIES, "fields")
    fields = {header.text(LONGEST_NAME): header.value() for _ in range(field_count)}
    entries = [_read_entry(header, package) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= LONGEST_TEXT:
        raise _Damaged(f"its tensors are aligned to {alignment}")
    base = -(-header.place // alignment) * alignment
    tensors: dict[str, _Stored] = {}
    for name, kind, shape, start, nbytes in entries:
        if name in tensors:
            raise _Damaged(f"it has {name} twice")
        if base + start + nbytes > len(mapped):
            raise _Damaged(f"it ends before {name}")
        tensors[name] = _Stored(kind=kind, shape=shape, start=base + start, nbytes=nbytes)
    return fields, tensors


def _read_entry(header: _Header, package: ModuleType) -> tuple[str, int, tuple[int, ...], int, int]:
    """One tensor's name, kind, shape in torch's order, start after the header, and bytes."""
    name = header.text(LONGEST_NAME)
    dimensions = header.number("I")
    if dimensions > MOST_DIMENSIONS:
        raise _Damaged(f"{name} has {dimensions} dimensions")
    shape = tuple(header.number("Q") for _ in range(dimensions))[::-1]
    kind, start = header.number("I"), header.number("Q")
    try:
        block, size = package.GGML_QUANT_SIZES[package.GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise _Damaged(f"{name} is of the unknown kind {kind}") from error
    if (shape[-1] if shape else 1) % block or 0 in shape:
        raise _Damaged(f"{name} of {shape} is no whole number of blocks")
    return name, kind, shape, start, math.prod(shape) // block * size


def _shapes(
    stored: Mapping[str, _Stored], fields: Mapping[str, object]
) -> dict[str, tuple[int, ...]]:
    """The shapes in torch: as stored, but for those that had more dimensions than ggml's four.

    Some writers put the original shape in a field; others flattened a convolution, and its width
    is then that of its bias.
    """
    shapes = {}
    for name, tensor in stored.items():
        said = fields.get(_ORIGINAL_SHAPE + name)
        bias = stored.get(name.removesuffix("weight") + "bias")
        shape = tensor.shape
        if isinstance(said, tuple) and all(isinstance(n, int) and n > 0 for n in said):
            shape = said
        elif name.endswith(PATCHES) and len(shape) != 5 and bias and bias.shape:
            width, patch = bias.shape[0], math.prod(PATCH_SIZE)
            shape = (width, math.prod(shape) // (width * patch), *PATCH_SIZE)
        if math.prod(shape) != math.prod(tensor.shape):
            raise _Damaged(f"{name} of {tensor.shape} cannot have the shape {shape}")
        shapes[name] = shape
    return shapes


def _package() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise UsageError(
            "GGUF files need the gguf package, which is not installed",
            hint="pip install 'sora-cli[gguf]'",
        ) from error
    return gguf
