"""What was pulled or imported on this machine: one small JSON file for each name.

A record says where the parts lie, from which commit of which repository each file came, and its
SHA-256, as the hub's metadata had it and the bytes confirmed it. It is what makes a later change
upstream, or on the disk, noticeable. Records are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sora_cli.errors import UsageError
from sora_cli.runtime.paths import state_dir
from sora_cli.weights.manifest import Kind

_SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}")
_CHUNK = 1 << 22

Arrived = Callable[[int], None]  # called with the number of bytes that are done since the last call


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """One file: where it is, and what it was when it came.

    Attributes:
        path: where it lies.
        size: in bytes.
        sha256: of its bytes, in hexadecimal.
        repository, commit, file: what it is on the hub; None for a file the user had.
        damaged: it was found to have other bytes.
    """

    path: Path
    size: int
    sha256: str
    repository: str | None = None
    commit: str | None = None
    file: str | None = None
    damaged: bool = False

    @property
    def present(self) -> bool:
        """Whether a file of this size is there, and not known to be damaged."""
        try:
            return self.path.stat().st_size == self.size and not self.damaged
        except OSError:
            return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One name's files on this machine.

    Attributes:
        name: of the manifest, or chosen at import.
        kind: what it is; an imported single part (a VAE, a text encoder) is a "part".
        parts: part name → the folder or file with it.
        files: every file that belongs to it.
        imported: the path the user gave, None for what was pulled.
    """

    name: str
    kind: Kind | str
    parts: Mapping[str, Path]
    files: tuple[FileRecord, ...]
    imported: Path | None = None

    @property
    def missing(self) -> Path | None:
        """The first file that is gone, has another size or is known to be damaged."""
        return next((file.path for file in self.files if not file.present), None)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @property
    def commits(self) -> dict[str, str]:
        """Repository → the commit its files are of."""
        return {f.repository: f.commit for f in self.files if f.repository and f.commit}


def folder() -> Path:
    """Where the records are."""
    return state_dir() / "weights"


def read(name: str) -> Record | None:
    """The record with this name; None where there is none, or none that can be read."""
    if not _NAME.fullmatch(name):
        return None
    try:
        content = json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))
        if content["schema"] != _SCHEMA or content["name"] != name:
            return None
        return Record(
            name=name,
            kind=_text(content["kind"]),
            parts={part: _path(path) for part, path in content["parts"].items()},
            files=tuple(map(_file, content["files"])),
            imported=_path(content["imported"]) if content["imported"] else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _file(content: Mapping[str, object]) -> FileRecord:
    """One file of a record. Raises ValueError, KeyError, TypeError for anything else."""
    size = content["size"]
    if not isinstance(size, int) or not 0 <= size < 1 << 63:
        raise ValueError("no size of a file")
    named = ("repository", "commit", "file")
    return FileRecord(
        path=_path(content["path"]),
        size=size,
        sha256=_text(content["sha256"]),
        damaged=content.get("damaged") is True,
        **{key: None if (said := content.get(key)) is None else _text(said) for key in named},
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("no text")
    return value


def _path(value: object) -> Path:
    text = _text(value)
    if "\0" in text:
        raise ValueError("no path")
    return Path(text)


def read_all() -> tuple[Record, ...]:
    """Every record that can be read, by name."""
    try:
        names = sorted(path.stem for path in folder().glob("*.json"))
    except OSError:
        return ()
    return tuple(record for name in names if (record := read(name)) is not None)


def write(record: Record) -> None:
    """Keep a record, replacing one of the same name."""
    content = {
        "schema": _SCHEMA,
        "name": record.name,
        "kind": record.kind,
        "parts": {part: str(path) for part, path in record.parts.items()},
        "files": [{**asdict(file), "path": str(file.path)} for file in record.files],
        "imported": None if record.imported is None else str(record.imported),
    }
    target = folder() / f"{record.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{record.name}.{os.getpid()}.part")
    try:
        draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def forget(name: str) -> None:
    """Remove a record; the files stay."""
    (folder() / f"{name}.json").unlink(missing_ok=True)


def check_name(name: str) -> str:
    """The name itself.

    Raises:
        UsageError: it cannot be the name of a file on every system.
    """
    if _NAME.fullmatch(name):
        return name
    raise UsageError(
        f"{name!r} cannot be a name", hint="letters, digits, dots and dashes: --name my-model"
    )


def sha256_of(path: Path, arrived: Arrived = lambda count: None) -> str:
    """A file's SHA-256 in hexadecimal, reading it once."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            arrived(len(chunk))
    return digest.hexdigest()


def examined(record: Record, arrived: Arrived) -> Record:
    """The record with what reading every file shows: which are damaged or gone."""

    def examine(file: FileRecord) -> FileRecord:
        try:
            right = file.path.stat().st_size == file.size
            right = right and sha256_of(file.path, arrived) == file.sha256
        except OSError:
            right = False
        return replace(file, damaged=not right)

    return replace(record, files=tuple(examine(file) for file in record.files))


def free_space(path: Path) -> int:
    """Free bytes where this folder is, or would be."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free
