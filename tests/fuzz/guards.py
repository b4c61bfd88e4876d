"""What a reader may not do while it reads a stranger's file, and how that is noticed.

No error but a SoraError of one line; no more processor time than SECONDS; no more memory than its
allowance; no file written outside a folder, none of CANARIES opened, no program run but ffmpeg, no
connection made.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from sora_cli.errors import SoraError

SECONDS = 5.0  # of the processor, for one input; valid ones take milliseconds
WALL = 40.0  # s, for one input; ffmpeg has time of its own
CANARIES = ("/etc/passwd", "/etc/shadow", "canary")
PACKAGE = str(Path(__file__).resolve().parents[2] / "sora_cli")


class Found(BaseException):
    """What was found wrong. Not an Exception, so that no reader catches it."""


class Hang(Found):
    """The time is up."""


@contextmanager
def limited(seconds: float, megabytes: int) -> Iterator[None]:
    """Processor time from now on, and memory beyond what is mapped already."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds:g} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_mapped() + (megabytes << 20), hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


def _mapped() -> int:
    """Bytes of address space in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


# ---------------------------------------------------------------- files, programs, connections


class Watch:
    """An audit hook that can be switched on and off; hooks cannot be removed."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.found: str | None = None
        self.canaries: tuple[str, ...] = CANARIES

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Remember the first thing that no reader may do."""
        if self.folder is None or self.found is not None:
            return
        if event == "open":
            self._opened(*arguments)
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.symlink"):
            self._written(arguments[0 if event != "os.symlink" else 1], event)
        elif event in ("os.rename", "os.link"):
            self._written(arguments[1], event)
        elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn"):
            if "ffmpeg" not in os.path.basename(os.fsdecode(arguments[0])):
                self.found = f"{arguments[0]} was run"
        elif event in ("os.system", "socket.connect", "socket.bind", "socket.getaddrinfo"):
            self.found = f"{event} {arguments!r:.200}"

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        text = os.path.abspath(os.fsdecode(path))
        if any(text.endswith(name) for name in self.canaries):
            self.found = f"{text} was opened"
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            self._written(path, "open")

    def _written(self, path: Any, event: str) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        text = os.path.abspath(os.fsdecode(path))
        if not text.startswith(str(self.folder) + os.sep) and text != os.devnull:
            self.found = f"{event} wrote {text}, outside the folder"


_WATCH: list[Watch] = []


@contextmanager
def watched(folder: Path, canaries: tuple[str, ...] = CANARIES) -> Iterator[Watch]:
    """The audit hook, switched on; it is installed once in a process."""
    if not _WATCH:
        _WATCH.append(Watch())
        sys.addaudithook(_WATCH[0])
    watch = _WATCH[0]
    watch.folder, watch.found, watch.canaries = str(folder), None, canaries
    try:
        yield watch
    finally:
        watch.folder = None


# ---------------------------------------------------------------- lines that were reached


class Lines:
    """Which lines of the package ran; an input that reaches a new one is worth changing further."""

    def __init__(self) -> None:
        self.seen: set[tuple[CodeType, int]] = set()

    @contextmanager
    def traced(self) -> Iterator[None]:
        """Trace this thread."""
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        self.seen.add((frame.f_code, frame.f_lineno))
        return self._line


# ---------------------------------------------------------------- errors


def judge(error: BaseException) -> str | None:
    """What is wrong with an error that a reader raised; None where it is as it should be."""
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause).lower()
        if isinstance(cause, MemoryError) or "can't allocate memory" in text or "bad_alloc" in text:
            return f"runaway allocation: {type(cause).__name__}: {cause!s:.200}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, Found):
        return f"hang: {error}"
    if not isinstance(error, SoraError):
        return f"traceback: {type(error).__name__}: {error!s:.300}"
    said = f"{error.message}{error.hint or ''}"
    if "\n" in said or "\r" in said:
        return f"the message has several lines: {said!r:.300}"
    if len(error.message) > 2000:
        return f"the message has {len(error.message)} characters: {said!r:.100}"
    return None
