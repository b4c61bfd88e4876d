"""What is done with weights that are on this machine: taken in, checked, removed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sora_cli.errors import UsageError, WeightsError
from sora_cli.weights import folders, hub_cache, manifest, records, store
from sora_cli.weights.manifest import SINGLE_FILES
from sora_cli.weights.records import FileRecord, Record

Observe = Callable[[int, int], None]  # bytes that are done, and all


def take_in(path: Path, name: str | None, observe: Observe) -> Record:
    """Give a name to a folder or file that the user has. It stays where it is.

    What it is, is told by its tensors, or for a diffusers folder by its `model_index.json`. Every
    file is read once for its SHA-256.

    Raises:
        UsageError: nothing there, nothing with weights, or a name that is taken.
        WeightsError: damaged.
    """
    path = Path(path.expanduser().absolute())
    if not path.exists():
        raise UsageError(f"{path} is not there", hint="sora weights import FOLDER or FILE")
    name = _free_name(path, name)
    if (path / folders.INDEX).is_file():
        _, parts = folders.read_folder(path)
    elif path.is_file() and path.suffix not in SINGLE_FILES:
        raise UsageError(
            f"{path} is a file that holds no weights",
            hint=f"weights come in folders and {', '.join(SINGLE_FILES)} files",
        )
    else:
        from sora_cli.weights import loose

        parts = loose.parts_in(path)
    files = sorted({file for part in parts.values() for file in _files_of(part)})
    total = sum(file.stat().st_size for file in files)
    count = _Counter(observe, total)
    record = Record(
        name=name,
        kind=_kind(parts),
        parts=parts,
        files=tuple(
            FileRecord(path=f, size=f.stat().st_size, sha256=records.sha256_of(f, count.add))
            for f in files
        ),
        imported=path,
    )
    records.write(record)
    return record


def verify(names: Sequence[str], observe: Observe) -> int:
    """Read every file of these names (all that are here, for none); how many were read.

    What is found to be damaged is noted in the record, so that it is not used, and pulled anew.

    Raises:
        UsageError: a name of nothing that is here.
        WeightsError: a file is damaged or gone; the message names it, and the next command.
    """
    found = [_record(name) for name in names] if names else list(records.read_all())
    embedded = [row.name for row in manifest.rows() if row.folder() is not None]
    checked = sum(store.verify(store.locate(n)) for n in embedded if n in names or not names)
    known = [record for record in found if record is not None]
    count = _Counter(observe, sum(record.size for record in known))
    damaged: list[tuple[Record, FileRecord]] = []
    for record in known:
        after = records.examined(record, count.add)
        if after != record:
            records.write(after)
        damaged += [(after, file) for file in after.files if file.damaged]
        checked += len(after.files)
    if damaged:
        record, file = damaged[0]
        raise _damaged(record, file, len(damaged) - 1)
    return checked


def remove(name: str) -> int:
    """Forget a name; of what was pulled for it, delete what no other name needs; bytes freed.

    Raises:
        UsageError: it is in the package, or not on this machine.
    """
    record = _record(name)
    if record is None:
        raise UsageError(f"{name} is in the package", hint="pip uninstall sora-cli removes both")
    return hub_cache.delete(record, [r for r in records.read_all() if r.name != name])


def _record(name: str) -> Record | None:
    """What is recorded for a name; None for the model in the package."""
    record = records.read(name)
    if record is None and manifest.find(name).folder() is None:
        raise UsageError(
            f"{name} is not on this machine",
            hint=f"sora weights pull {name}, or: sora weights list",
        )
    return record


def _damaged(record: Record, file: FileRecord, others: int) -> WeightsError:
    more = f" (and {others} more)" if others else ""
    what = "is damaged: its SHA-256 is not the recorded one" if file.path.exists() else "is gone"
    hint = f"sora weights pull {record.name} fetches it again"
    if record.imported is not None:
        hint = f"put it back, or: sora weights remove {record.name}"
    return WeightsError(f"{file.path} of {record.name} {what}{more}", hint=hint)


def _free_name(path: Path, name: str | None) -> str:
    if name is None:
        base = path.stem if path.is_file() else path.name
        name = re.sub(r"[^a-z0-9.+-]+", "-", base.lower()).strip("-.+") or "model"
    records.check_name(name)
    taken = any(row.name == name for row in manifest.rows())
    if taken or records.read(name) is not None:
        free = "" if taken else f", or: sora weights remove {name}"
        raise UsageError(f"{name} is already the name of a model", hint=f"--name my-{name}{free}")
    return name


def _kind(parts: dict[str, Path]) -> str:
    if "transformer" in parts:
        return "model"
    return "lora" if {"both", "high", "low"} & set(parts) else "part"


def _files_of(part: Path) -> list[Path]:
    """The files of a part that matter: its weights, and a folder's configs and vocabularies."""
    if part.is_file():
        return [part]
    wanted = (*SINGLE_FILES, ".json", ".model", ".txt")
    return [path for path in part.iterdir() if path.is_file() and path.suffix in wanted]


class _Counter:
    """Adds up bytes for an observer."""

    def __init__(self, observe: Observe, total: int) -> None:
        self._observe, self._total, self._done = observe, total, 0

    def add(self, count: int) -> None:
        self._done += count
        self._observe(self._done, self._total)
