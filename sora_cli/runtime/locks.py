"""Locks that end with the process that holds them, however it ends.

A lock is on an open file (flock on Unix, msvcrt on Windows), not a file's existence or a process
number in it: after a crash or a power cut nothing has to be cleared away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Whoever asks whether a lock is held takes it for a moment; that is not having it.
_TRIES, _PAUSE = 3, 0.01  # seconds


class Lock:
    """A lock that is held until `release`, or until the process is gone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let go; a second time does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock(path: Path) -> Lock | None:
    """Take the lock on a file, which is made where there is none; None where someone has it.

    Raises:
        OSError: the file cannot be made or opened, or the file system knows no locks.
    """
    tries = _TRIES
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if not _take(descriptor):
            tries -= 1
            if tries == 0:
                return None
            time.sleep(_PAUSE)
            continue
        # Between the two calls above whoever cleared the folder away may have removed the file.
        if _is_at(descriptor, path):
            return Lock(descriptor)
        os.close(descriptor)


def held(path: Path) -> bool:
    """Whether someone holds the lock on a file; False where there is no such file."""
    if not path.exists():
        return False
    with suppress(OSError):
        taken = lock(path)
        if taken is not None:
            taken.release()
        return taken is None
    return False


@contextmanager
def in_use(path: Path) -> Iterator[bool]:
    """Mark a file or folder as in use, so that whoever asks whether it is `abandoned` is told no.

    Gives False where one who asked before was quicker, and has removed it. Where the system cannot
    mark it (Windows, some network disks) nothing happens, and it gives True.
    """
    descriptor, there = None, True
    if fcntl is not None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # who asks has it for a moment only
            there = _is_at(descriptor, path)
        except FileNotFoundError:
            there = False
        except OSError:
            pass
    try:
        yield there
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Whether nobody has marked this file or folder as in use; False where nobody can know.

    Until the end nobody can mark it either: what is abandoned may be removed here.
    """
    descriptor, free = None, False
    if fcntl is not None:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            free = _take(descriptor, close=False)
    try:
        yield free
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _take(descriptor: int, *, close: bool = True) -> bool:
    """Lock an open file without waiting; False (and closed, if `close`) where it is locked."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        if close:
            os.close(descriptor)
        return False
    except OSError:
        if close:
            os.close(descriptor)
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether this open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False
