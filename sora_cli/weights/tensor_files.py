"""Readers of the two kinds of file that PyTorch weights are published in."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sora_cli.errors import WeightsError
from sora_cli.weights.tensors import AGAIN, Device, TensorInfo, first_line

# Bytes after which a mapped pickle is opened anew: what has been read stays in resident memory
# for as long as the mapping lives.
REMAP_BYTES = 1 << 28
LONGEST_TEXT = 1 << 12  # bytes of a name in a pickle
# By kind of device: how many threads read a tensor, and the bytes of a piece. One thread reads at
# about 8 GB/s, a sixth of what a GPU's bus carries; on the CPU a piece that stays in its cache is
# cast fastest.
LANES: Mapping[str, tuple[int, int]] = {"cuda": (6, 1 << 24)}
ONE_LANE = (1, 1 << 22)
SAFETENSORS_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class SafetensorsFile:
    """One safetensors file.

    The library checks the header; the values are read with plain reads into aligned memory. Its
    own tensors would be views of the mapped file, aligned to nothing, so that the same weights
    could give other last digits from another file.
    """

    def __init__(self, path: Path) -> None:
        self.part = path
        try:
            with safe_open(path, framework="pt") as checked:
                self.metadata: Mapping[str, str] = checked.metadata() or {}
            self._file = path.open("rb", buffering=0)
            length = int.from_bytes(self._file.read(8), "little")
            header = json.loads(self._file.read(length))
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(
                f"{path} is damaged or not a safetensors file: {first_line(error)}", hint=AGAIN
            ) from error
        header.pop("__metadata__", None)
        try:
            self.tensors: Mapping[str, TensorInfo] = {
                name: TensorInfo(tuple(entry["shape"]), SAFETENSORS_DTYPES[entry["dtype"]])
                for name, entry in header.items()
            }
        except KeyError as error:
            self._file.close()
            raise WeightsError(
                f"{path} has tensors of the dtype {error.args[0]}, which is not among those read",
                hint="take another variant of the same model",
            ) from error
        self._path = path  # `part` may become the folder that it is in
        self._lanes: dict[str, Lanes] = {}  # by kind of device
        self._starts = {n: 8 + length + entry["data_offsets"][0] for n, entry in header.items()}

    def read(
        self, name: str, *, device: Device = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `TensorSource.read`."""
        info, device = self.tensors[name], torch.device(device)
        dtype = dtype or info.dtype
        try:
            self._file.seek(self._starts[name])
            if device.type == "cpu" and dtype == info.dtype:
                values = torch.empty(info.shape, dtype=dtype)
                _fill(self._file, values.view(-1).view(torch.uint8), name)
                return values
            return self._read_in_pieces(name, info, device, dtype)
        except (OSError, EOFError) as error:
            raise WeightsError(
                f"{self.part} is damaged: {first_line(error)}", hint=AGAIN
            ) from error

    def _read_in_pieces(
        self, name: str, info: TensorInfo, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Cast or moved on the way, so that there is never a second copy of a whole tensor."""
        if device.type not in self._lanes:
            self._lanes[device.type] = Lanes(self._path, device.type)
        lanes = self._lanes[device.type]
        values = torch.empty(info.shape, dtype=dtype, device=device)
        flat, size = values.view(-1), info.dtype.itemsize
        step = lanes.piece_bytes // size

        @torch.inference_mode()  # a thread has a mode of its own, and `values` may be the caller's
        def move(start: int, file: io.FileIO, whole: Tensor) -> None:
            part = flat[start : start + step]
            piece = whole[: len(part) * size]
            file.seek(self._starts[name] + start * size)
            _fill(file, piece, name)
            # Moved first, cast there: a GPU casts faster than the processor does.
            part.copy_(piece.view(info.dtype).to(values.device))

        lanes.run(move, range(0, len(flat), step))
        return values

    def close(self) -> None:
        """As `TensorSource.close`."""
        self._file.close()
        for lanes in self._lanes.values():
            lanes.close()
        self._lanes.clear()


class Lanes:
    """Threads that read one file, each with a handle and a piece of memory of its own.

    From page-locked memory a GPU copies at the full speed of its bus.
    """

    def __init__(self, path: Path, kind: str) -> None:
        """Open the file for a kind of device. Raises OSError."""
        count, self.piece_bytes = LANES.get(kind, ONE_LANE)
        self._free: SimpleQueue[tuple[io.FileIO, Tensor]] = SimpleQueue()
        self._files = [path.open("rb", buffering=0) for _ in range(count)]
        for file in self._files:
            piece = torch.empty(self.piece_bytes, dtype=torch.uint8, pin_memory=kind == "cuda")
            self._free.put((file, piece))
        self._pool = ThreadPoolExecutor(count) if count > 1 else None

    def run(self, move: Callable[[int, io.FileIO, Tensor], None], starts: Sequence[int]) -> None:
        """Call `move` for every start, with a file and memory that no other call has meanwhile."""

        def one(start: int) -> None:
            lane = self._free.get()
            try:
                move(start, *lane)
            finally:
                self._free.put(lane)

        # A thread is no faster for a single piece.
        together = self._pool.map if self._pool is not None and len(starts) > 1 else map
        for _ in together(one, starts):
            pass

    def close(self) -> None:
        """Let go of threads, files and memory."""
        if self._pool is not None:
            self._pool.shutdown()
        for file in self._files:
            file.close()


def _fill(file: io.FileIO, content: Tensor, name: str) -> None:
    """Fill bytes from where a file stands."""
    buffer, done = content.numpy().data, 0
    while done < len(buffer):  # one read gives at most 2 GiB
        count = file.readinto(buffer[done:])
        if not count:
            raise EOFError(f"it ends within {name}")
        done += count


class _Bounded(io.BufferedReader):
    """A file of which no more is asked than it has.

    A pickle says how long each of its texts is, and Python makes room for that before it reads.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._end = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        """As every file's; of tensors' numbers torch makes its own reads."""
        rest = max(0, self._end - self.tell())
        asked = rest if size is None or size < 0 else min(size, rest)
        if asked > LONGEST_TEXT:
            raise pickle.UnpicklingError(f"a text of {asked} bytes")
        return super().read(asked)

    def readline(self, size: int | None = -1) -> bytes:
        """As every file's; a line too long is cut, and then no name of anything."""
        return super().readline(LONGEST_TEXT)


def _check_archive(path: Path) -> None:
    """Raise UnpicklingError where an archive tells of more than its file has, or its pickle has a
    text that is no name.

    torch makes room for what a record is said to have, and looks for words in an error's message in
    a time that goes with the square of its length.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # as torch tells an archive from what was before
            return
    with zipfile.ZipFile(path) as archive:
        told = max((record.file_size for record in archive.infolist()), default=0)
    if told > path.stat().st_size:
        raise pickle.UnpicklingError(f"a record of {told} bytes")
    records = torch._C.PyTorchFileReader(str(path))
    for _, argument, _ in pickletools.genops(io.BytesIO(records.get_record("data.pkl"))):
        if isinstance(argument, str | bytes) and len(argument) > LONGEST_TEXT:
            raise pickle.UnpicklingError(f"a text of {len(argument)} characters")


class PickleFile:
    """One `.pth` file: a dictionary of tensors, and nothing else, whatever it asks for."""

    def __init__(self, path: Path) -> None:
        self.part = path
        self.metadata: Mapping[str, str] = {}
        self._mapped = self._load()
        self._read = 0
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tuple(t.shape), t.dtype) for name, t in self._mapped.items()
        }

    def _load(self) -> dict[str, Tensor]:
        try:
            content = self._unpickle(mapped=True)
            if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
                content = content["state_dict"]
        except pickle.UnpicklingError as error:
            raise WeightsError(
                f"{self.part} is damaged or holds more than tensors, so it is not read: "
                "unpickling anything else could run a stranger's code",
                hint=f"{AGAIN}, or take the safetensors variant",
            ) from error
        # Of a damaged file torch's unpickler makes errors of every class.
        except Exception as error:
            raise WeightsError(
                f"{self.part} is damaged or not a PyTorch file: {first_line(error)}", hint=AGAIN
            ) from error
        if not isinstance(content, Mapping):
            raise WeightsError(f"{self.part} holds no dictionary of tensors", hint=AGAIN)
        found = {
            str(name): tensor
            for name, tensor in content.items()
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided
        }
        for name, tensor in found.items():
            self._check(name, tensor)
        if not found:
            raise WeightsError(f"{self.part} holds no tensors", hint=AGAIN)
        return found

    def _check(self, name: str, tensor: Tensor) -> None:
        """Raise WeightsError for a tensor that is none of plain numbers in the file.

        One with strides of 0 is as large as its writer likes, whatever the size of the file.
        """
        plain = tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise WeightsError(
                f"{self.part} is damaged: {name[:80]!r} is not made of numbers in the file",
                hint=AGAIN,
            )

    def _unpickle(self, *, mapped: bool) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                if not mapped:
                    with _Bounded(self.part) as file:
                        return torch.load(file, map_location="cpu", weights_only=True)
                _check_archive(self.part)
                return torch.load(self.part, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                # Only the archives of torch ≥ 1.6 can be mapped.
                if mapped and "mmap can only be used" in str(error):
                    return self._unpickle(mapped=False)
                raise

    def read(
        self, name: str, *, device: Device = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `TensorSource.read`."""
        info = self.tensors[name]
        if self._read > REMAP_BYTES:
            self._mapped, self._read = {}, 0
            self._mapped = self._load()
        self._read += info.nbytes
        mapped = self._mapped[name].detach()
        values = mapped.to(device).to(dtype or info.dtype)
        # A view of the mapping would share other tensors' memory and need the file for ever.
        return values.clone(memory_format=torch.contiguous_format) if values is mapped else values

    def close(self) -> None:
        """As `TensorSource.close`."""
        self._mapped = {}
