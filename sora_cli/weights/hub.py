"""The conversation with a hub: what a repository has, and the bytes of one file.

Through `huggingface_hub`: its endpoint, token, offline mode and session. The bytes are fetched
here, because the library's present versions start a file anew after the process was killed; here
it goes on from where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sora_cli.errors import WeightsError
from sora_cli.weights import hub_cache, hub_errors
from sora_cli.weights.hub_cache import REVISION, Listing, RemoteFile
from sora_cli.weights.records import FileRecord

_CHUNK = 1 << 20
_PAUSES = (0.2, 0.5, 1.0, 2.0)  # seconds before each new attempt that follows one without progress


class Hub:
    """One pull's conversation.

    Args:
        cache: the hub's cache folder.
        again: the command that goes on with it, for the hints.
    """

    def __init__(self, cache: Path, again: str) -> None:
        self.cache = cache
        self.again = again
        self.stop = threading.Event()  # set to end every download soon

    def listing(self, repository: str) -> Listing:
        """The files of a repository's main branch, with sizes and hashes.

        Without a network, those that the cache has; `absence` then says why there are no others.

        Raises:
            WeightsError: it cannot be had; the message says why.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT
        from huggingface_hub.errors import OfflineModeIsEnabled

        try:
            info = HfApi().model_info(
                repository, revision=REVISION, files_metadata=True, timeout=HF_HUB_ETAG_TIMEOUT
            )
        except Exception as error:  # whatever the library and the network raise
            absence = self._explain(error, repository)
            if isinstance(error, OfflineModeIsEnabled) or hub_errors.is_transient(error):
                cached = hub_cache.listing(self.cache, repository, absence)
                if cached is not None:
                    return cached
            raise absence from error
        commit, files = str(info.sha), info.siblings or []
        if not re.fullmatch(r"[0-9a-f]{40}", commit) or any(_unsafe(f.rfilename) for f in files):
            raise WeightsError(f"what the hub says of {repository} makes no sense", hint=self.again)
        return Listing(
            repository=repository,
            commit=commit,
            files=tuple(
                RemoteFile(
                    repository=repository,
                    commit=commit,
                    file=file.rfilename,
                    size=file.size or 0,
                    sha256=None if file.lfs is None else file.lfs.sha256,
                    blob=file.blob_id or "",
                )
                for file in files
            ),
        )

    def fetch(self, file: RemoteFile, arrived: Callable[[int], None]) -> FileRecord:
        """Bring one file into the cache, going on from what is there of it, and check its bytes.

        Args:
            arrived: called with the number of bytes that are done since the last call; a negative
                number takes some back.

        Raises:
            WeightsError: the hub or the network failed, the disk is full, or the bytes are not
                those that the hub announced.
            Stopped: `stop` was set.
        """
        content, pointer = file.content(self.cache), file.pointer(self.cache)
        try:
            for folder in (content.parent, pointer.parent):
                folder.mkdir(parents=True, exist_ok=True)
            with self._locked(content):
                sha256 = self._complete(file, arrived)
                hub_cache.link(content, pointer)
        except OSError as error:
            raise self._explain(error, file.repository, file.file) from error
        return FileRecord(
            path=pointer, size=file.size, sha256=sha256,
            repository=file.repository, commit=file.commit, file=file.file,
        )  # fmt: skip

    def _complete(self, file: RemoteFile, arrived: Callable[[int], None]) -> str:
        """The SHA-256 of a file that is then whole in the cache."""
        content, partial, pointer = (
            place(self.cache) for place in (file.content, file.partial, file.pointer)
        )
        for whole in (content, pointer):  # the latter on systems without links
            if whole.is_file():
                check = _Check(file)
                self._read(whole, check, arrived)
                if check.right:
                    return check.sha256
                arrived(-check.count)
                whole.unlink()
        resumed = partial.exists()
        check = self._download(file, partial, arrived)
        if not check.right and resumed:  # what was there from before may have been at fault
            arrived(-check.count)
            partial.unlink()
            check = self._download(file, partial, arrived)
        if not check.right:
            partial.unlink()
            raise WeightsError(
                f"{file.file} of {file.repository} came with another hash than the hub announced; "
                "it was thrown away",
                hint=f"{self.again}, and if it happens again tell the publisher",
            )
        os.replace(partial, content)
        return check.sha256

    def _download(self, file: RemoteFile, partial: Path, arrived: Callable[[int], None]) -> _Check:
        check, failures = _Check(file), 0
        with partial.open("ab+", buffering=0) as target:
            if target.tell() > file.size:
                target.truncate(0)
            self._read(partial, check, arrived)
            while check.count < file.size:
                before = check.count
                failure: Exception | None = None
                try:
                    self._stream(file, target, check, arrived)
                except Stopped:
                    raise
                except Exception as error:  # whatever the library and the network raise
                    failure = error
                if check.count == file.size:
                    break
                failures = 0 if check.count > before else failures + 1
                if hub_errors.is_past_end(failure) or failures > len(_PAUSES):
                    cut = failure is None or hub_errors.is_cut(failure)
                    raise (
                        self._cut_off(file, check)
                        if cut or failure is None
                        else self._explain(failure, file.repository, file.file)
                    ) from failure
                if failure is not None and not hub_errors.is_transient(failure):
                    raise self._explain(failure, file.repository, file.file) from failure
                if failures and self.stop.wait(_PAUSES[failures - 1]):
                    raise Stopped
        return check

    def _stream(
        self, file: RemoteFile, target: Any, check: _Check, arrived: Callable[[int], None]
    ) -> None:
        """One request: from what is there to the end, or to where the connection breaks."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = hf_hub_url(file.repository, file.file, revision=file.commit)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if check.count:
            headers["Range"] = f"bytes={check.count}-"
        with get_session().stream(
            "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            hf_raise_for_status(response)
            if check.count and response.status_code != 206:  # the range was not heard
                arrived(-check.count)
                check.reset()
                target.truncate(0)
            # As they come: gathered into larger pieces, the last ones would be lost in a break.
            for chunk in response.iter_bytes():
                if self.stop.is_set():
                    raise Stopped
                chunk = chunk[: file.size - check.count]
                rest = memoryview(chunk)
                while rest:  # a raw write may take less than all, and then fails the next time
                    rest = rest[target.write(rest) :]
                check.add(chunk)
                arrived(len(chunk))

    def _read(self, path: Path, check: _Check, arrived: Callable[[int], None]) -> None:
        """Count and hash what is on the disk."""
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                if self.stop.is_set():
                    raise Stopped
                check.add(chunk)
                arrived(len(chunk))

    def _locked(self, content: Path) -> Any:
        """The cache's lock for one blob: another process may be fetching the same."""
        from filelock import FileLock, Timeout

        root = content.parents[1]
        place = root.parent / ".locks" / root.name
        place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place / f"{content.name}.lock")
        while True:
            if self.stop.is_set():
                raise Stopped
            with suppress(Timeout):
                return lock.acquire(timeout=0.5)

    def _explain(
        self, error: BaseException, repository: str, file: str | None = None
    ) -> WeightsError:
        return hub_errors.explain(error, repository, file, again=self.again, cache=self.cache)

    def _cut_off(self, file: RemoteFile, check: _Check) -> WeightsError:
        return WeightsError(
            f"{file.file} of {file.repository} is truncated: {check.count} of {file.size} bytes "
            "came, and then no more",
            hint=f"{self.again} goes on from there",
        )


class Stopped(Exception):
    """A download ended because it was told to."""


class _Check:
    """Counts and hashes bytes as they pass."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self._sha256 = hashlib.sha256()
        # Small files are known by git's name of them; this is a name, not a protection.
        self._sha1 = hashlib.sha1(b"blob %d\0" % self._file.size, usedforsecurity=False)

    def add(self, chunk: bytes) -> None:
        self.count += len(chunk)
        self._sha256.update(chunk)
        if self._file.sha256 is None:
            self._sha1.update(chunk)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def right(self) -> bool:
        """Whether the bytes are those the hub announced."""
        if self.count != self._file.size:
            return False
        if self._file.sha256 is not None:
            return self.sha256 == self._file.sha256
        return self._sha1.hexdigest() == self._file.blob


def _unsafe(file: str) -> bool:
    """Whether a name from the hub would lead out of its folder."""
    return file.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", file) or ":" in file
