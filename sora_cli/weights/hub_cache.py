"""The hub's cache on this disk, by the convention that all programs share.

    models--owner--name/refs/main                  the commit the branch was at
                        snapshots/<commit>/<file>  a link to
                        blobs/<entity tag>         the bytes: SHA-256 of a large file, git's SHA-1
                                                   of a small one
                        blobs/<entity tag>.incomplete   what has come so far

Source: the cache reference of huggingface_hub's documentation.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sora_cli.errors import WeightsError
from sora_cli.weights import records
from sora_cli.weights.manifest import SINGLE_FILES, PartSource
from sora_cli.weights.records import Record

REVISION = "main"
_HEX = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One file of a repository as the hub describes it.

    Attributes:
        file: its path in the repository.
        sha256: of a file in large-file storage; None for a small one, which has `blob` alone.
        blob: its git object id, the SHA-1 of its content behind a header of git's.
    """

    repository: str
    commit: str
    file: str
    size: int
    sha256: str | None
    blob: str

    def pointer(self, cache: Path) -> Path:
        """Its entry in the snapshot, a link to its blob."""
        return _root(cache, self.repository) / "snapshots" / self.commit / self.file

    def content(self, cache: Path) -> Path:
        """The blob itself, under the name that its entity tag gives it."""
        return _root(cache, self.repository) / "blobs" / (self.sha256 or self.blob)

    def partial(self, cache: Path) -> Path:
        """What has come of it so far."""
        return self.content(cache).with_suffix(".incomplete")


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A repository at one commit.

    Attributes:
        absence: why it is the cache's and not the hub's; None for the hub's.
    """

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]
    absence: WeightsError | None = None

    def root(self, cache: Path) -> Path:
        """The folder of this commit's files."""
        return _root(cache, self.repository) / "snapshots" / self.commit


def listing(cache: Path, repository: str, absence: WeightsError) -> Listing | None:
    """What the cache has of a repository's branch, None for nothing."""
    root = _root(cache, repository)
    with suppress(OSError):
        commit = (root / "refs" / REVISION).read_text(encoding="utf-8").strip()
        snapshot = root / "snapshots" / commit
        paths = [path for path in sorted(snapshot.rglob("*")) if path.is_file()]
        files = [
            RemoteFile(
                repository=repository,
                commit=commit,
                file=path.relative_to(snapshot).as_posix(),
                size=path.stat().st_size,
                sha256=path.resolve().name if len(path.resolve().name) == 64 else None,
                blob=path.resolve().name,
            )
            for path in paths
            if _HEX.fullmatch(path.resolve().name)
        ]
        if files:
            return Listing(
                repository=repository, commit=commit, files=tuple(files), absence=absence
            )
    return None


def check_whole(
    part: PartSource, found: Iterable[RemoteFile], listed: Listing, cache: Path
) -> None:
    """Raise why a cached part cannot be completed, where something of it is not in the cache.

    Raises:
        WeightsError: weights, or one of the shards that an index names, are not there.
    """
    assert listed.absence is not None
    names = {file.file for file in found}
    weights = any(name.endswith(SINGLE_FILES) for name in names)
    if not weights and any(pattern.endswith(SINGLE_FILES) for pattern in part.patterns):
        raise listed.absence
    for name in names:
        if name.endswith(".index.json"):
            path = listed.root(cache) / name
            shards = json.loads(path.read_text(encoding="utf-8")).get("weight_map", {}).values()
            if any(
                f"{name.rpartition('/')[0]}/{shard}".lstrip("/") not in names for shard in shards
            ):
                raise listed.absence


def keep_reference(listed: Listing, cache: Path) -> None:
    """Note which commit the branch was at, for other programs that read the cache."""
    path = _root(cache, listed.repository) / "refs" / REVISION
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(listed.commit, encoding="utf-8")


def link(content: Path, pointer: Path) -> None:
    """Make the snapshot's entry of a blob; where links cannot be made, the blob moves there."""
    if pointer.exists():
        return
    pointer.unlink(missing_ok=True)  # a link to a blob that was removed
    try:
        pointer.symlink_to(os.path.relpath(content, pointer.parent))
    except OSError:
        os.replace(content, pointer)


def delete(record: Record, kept: Iterable[Record]) -> int:
    """Forget a record and delete those of its pulled files that no kept record has.

    Imported files are the user's own and stay.

    Returns:
        The bytes that were freed.
    """
    used = {file.path for other in kept for file in other.files}
    freed = 0
    for file in record.files:
        if file.repository is None or file.path in used:
            continue
        root = next((p for p in file.path.parents if p.name.startswith("models--")), None)
        if root is not None:
            freed += _delete(file.path, root)
    records.forget(record.name)
    return freed


def _delete(pointer: Path, root: Path) -> int:
    """Delete a snapshot's entry, and its blob when nothing links to it any more; bytes freed."""
    blob = pointer.resolve()
    size = blob.stat().st_size if blob.is_file() else 0
    pointer.unlink(missing_ok=True)
    linked = any(
        path.is_symlink() and path.resolve() == blob for path in (root / "snapshots").rglob("*")
    )
    if linked or not blob.is_relative_to(root.resolve()):
        size = 0
    else:
        blob.unlink(missing_ok=True)
    _prune(pointer.parent, root)
    return size


def _prune(folder: Path, root: Path) -> None:
    """Remove the folders that a deletion left empty; with the last file, the repository's own."""
    with suppress(OSError):  # the first one that is not empty ends it
        while folder != root:
            folder.rmdir()
            folder = folder.parent
        (root / "blobs").rmdir()
        shutil.rmtree(root)


def _root(cache: Path, repository: str) -> Path:
    return cache / f"models--{repository.replace('/', '--')}"
