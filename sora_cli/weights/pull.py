"""Pulling: what a name needs from the hub, brought into the hub's cache and recorded.

    rows of the manifest → files of the hub → space → bytes, several files at a time → a record

Asking again costs nothing: what is there is recognised, what is half there goes on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sora_cli.errors import UsageError, WeightsError
from sora_cli.runtime.paths import hub_cache_dir
from sora_cli.weights import hub_cache, hub_errors, records
from sora_cli.weights.hub import Hub, Stopped
from sora_cli.weights.hub_cache import Listing, RemoteFile
from sora_cli.weights.manifest import OPTIONAL, ManifestRow, PartSource
from sora_cli.weights.records import FileRecord, Record

WORKERS = 6  # files at a time
_GIB = 1 << 30
_TICK = 0.2  # seconds between two looks at how far the threads are
_PATIENCE = 2.0  # seconds that threads get to notice that they should end

Observe = Callable[[int, int], None]  # bytes that are done, and all
Say = Callable[[str], None]


def pull(row: ManifestRow, observe: Observe, say: Say) -> Record:
    """Make a name's files those of the hub, and record them.

    Args:
        observe: called several times a second; what it raises ends the pull.
        say: told what is worth knowing: that the publisher has changed something.

    Raises:
        UsageError: the name's weights are in the package.
        WeightsError: they cannot be had; what has come is kept, and the same command goes on.
    """
    if row.source == "embedded":
        raise UsageError(f"{row.name} is in the package; there is nothing to pull")
    cache = hub_cache_dir()
    hub = Hub(cache, f"sora weights pull {row.name}")
    before = records.read(row.name)
    try:
        listings = {name: hub.listing(name) for name in _repositories(row)}
    except WeightsError:
        if before is None or before.missing is not None:
            raise
        say(f"{row.name} is here; it could not be compared with the hub")
        return before
    wanted = _wanted(row, listings, cache)
    if any(listing.absence is not None for listing in listings.values()):
        say(f"{row.name} is as the cache has it; it could not be compared with the hub")
    if before is not None:
        _tell_changes(before, wanted, say)
    files = _fetched(hub, wanted, before, observe)
    for listing in listings.values():
        if listing.absence is None:
            hub_cache.keep_reference(listing, cache)
    record = Record(
        name=row.name,
        kind=row.kind,
        parts={
            part.name: listings[part.repository].root(cache) / part.path
            for part in row.parts
            if part.name != "index" and _has(part, files)
        },
        files=files,
    )
    records.write(record)
    return record


def _has(part: PartSource, files: tuple[FileRecord, ...]) -> bool:
    return any(f.repository == part.repository and part.wants(f.file or "") for f in files)


def _repositories(row: ManifestRow) -> list[str]:
    return list(dict.fromkeys(part.repository for part in row.parts))


def _wanted(
    row: ManifestRow, listings: Mapping[str, Listing], cache: Path
) -> tuple[RemoteFile, ...]:
    """The files of every part, each once.

    Raises:
        WeightsError: a part of which the hub has nothing, or the cache, offline, not all.
    """
    found: dict[tuple[str, str], RemoteFile] = {}
    for part in row.parts:
        listing = listings[part.repository]
        files = [file for file in listing.files if part.wants(file.file)]
        if listing.absence is not None:
            hub_cache.check_whole(part, files, listing, cache)
        if not files and part.name not in OPTIONAL:
            raise listing.absence or hub_errors.missing(
                f"{part.path or part.name} of {part.repository}"
            )
        found |= {(file.repository, file.file): file for file in files}
    return tuple(found.values())


def _tell_changes(before: Record, wanted: tuple[RemoteFile, ...], say: Say) -> None:
    """Say which repositories have moved on since they were pulled, and whether it matters."""
    old = {(file.repository, file.file): file for file in before.files}
    for repository, commit in before.commits.items():
        now = [file for file in wanted if file.repository == repository]
        if not now or now[0].commit == commit:
            continue
        changed = sum(1 for file in now if not _same(old.get((repository, file.file)), file))
        say(
            f"{repository} has changed since it was pulled: {commit[:10]} is now "
            f"{now[0].commit[:10]}; {changed} of the {len(now)} files needed are other ones"
        )


def _same(old: FileRecord | None, new: RemoteFile) -> bool:
    """Whether a recorded file is the one that the hub has now, as far as its metadata tells."""
    if old is None or old.size != new.size:
        return False
    return old.commit == new.commit or (new.sha256 is not None and old.sha256 == new.sha256)


@dataclass
class _Count:
    """Bytes that are done, counted by several threads."""

    done: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.done += count


def _fetched(
    hub: Hub, wanted: tuple[RemoteFile, ...], before: Record | None, observe: Observe
) -> tuple[FileRecord, ...]:
    """Every file in the cache, checked; those that a record vouches for are not read again."""
    known = {} if before is None else {file.path: file for file in before.files}
    results: dict[RemoteFile, FileRecord] = {}
    for file in wanted:
        old = known.get(file.pointer(hub.cache))
        if old is not None and old.present and _same(old, file):
            results[file] = old
    absent = [file for file in wanted if file not in results]
    _check_space(hub, absent)
    if absent:
        _in_threads(hub, absent, results, observe)
    return tuple(results[file] for file in wanted)


def _check_space(hub: Hub, absent: list[RemoteFile]) -> None:
    places = {file.content(hub.cache): file for file in absent}
    needed = 0
    for place, file in places.items():
        with suppress(OSError):
            needed += file.size
            needed -= (place if place.exists() else file.partial(hub.cache)).stat().st_size
    free = records.free_space(hub.cache)
    if needed > free:
        raise WeightsError(
            f"{needed / _GIB:.1f} GiB are to come and {hub.cache} has {free / _GIB:.1f} GiB free",
            hint=f"free some, or set HF_HOME to a larger disk, then: {hub.again}",
        )


def _in_threads(
    hub: Hub, absent: list[RemoteFile], results: dict[RemoteFile, FileRecord], observe: Observe
) -> None:
    """Fetch files several at a time, the largest first; the first failure ends all.

    The threads are daemons: one that waits for a dead connection must not keep the process from
    ending. What they wrote is whole up to its last byte, so that the next pull goes on from it.
    """
    pending: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    for file in sorted(absent, key=lambda file: -file.size):
        pending.put(file)
    failures: list[BaseException] = []
    count, total = _Count(), sum(file.size for file in absent)

    def work() -> None:
        with suppress(queue.Empty, Stopped):
            while not hub.stop.is_set():
                file = pending.get_nowait()
                try:
                    results[file] = hub.fetch(file, count.add)
                except Stopped:
                    raise
                except BaseException as error:
                    failures.append(error)
                    hub.stop.set()

    threads = [
        threading.Thread(target=work, name=f"pull-{number}", daemon=True)
        for number in range(min(WORKERS, len(absent)))
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive() and not failures:
                observe(count.done, total)
                thread.join(_TICK)
    finally:
        hub.stop.set()
        for thread in threads:
            thread.join(_PATIENCE / len(threads))
    if failures:
        raise failures[0]
    observe(total, total)
