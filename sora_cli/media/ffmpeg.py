"""ffmpeg as a process that is ours from start to end, killed when anything goes wrong."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from queue import Queue
from typing import IO, TYPE_CHECKING, BinaryIO

from sora_cli.errors import OutputError, UsageError
from sora_cli.media import output

if TYPE_CHECKING:
    import numpy as np

READ_TIMEOUT = 30.0  # s, to read a file's tags
SILENCE = 60.0  # s without a byte after which a reading ffmpeg is ended
MAX_LINE = 1 << 16  # bytes; a stranger's tags can be longer than any log line worth keeping
BUNDLED = "pip install --force-reinstall imageio-ffmpeg, and unset IMAGEIO_FFMPEG_EXE"


def executable() -> str:
    """ffmpeg's path: IMAGEIO_FFMPEG_EXE, else the binary that imageio-ffmpeg brings."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise OutputError("there is no ffmpeg on this machine", hint=BUNDLED) from error


def check_encoder(encoder: str) -> None:
    """Raise OutputError when this ffmpeg cannot be run or lacks `encoder`."""
    _check_encoder(executable(), encoder)


@cache
def _check_encoder(program: str, encoder: str) -> None:
    command = [program, "-hide_banner", "-h", f"encoder={encoder}"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=READ_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OutputError(f"cannot run {program}: {error}", hint=BUNDLED) from error
    if f"Encoder {encoder}" not in shown.stdout:
        raise OutputError(f"{program} has no encoder {encoder}", hint=BUNDLED)


class Encoder:
    """Raw frames into ffmpeg's stdin; the last lines of its stderr kept for the error message.

    A thread writes them, a chunk while the next is being made: a pipe holds but a part of a frame,
    so whoever makes the frames would otherwise stand still while they are encoded.

    With `sink`, what ffmpeg writes to stdout goes there; a sink closed early raises
    BrokenPipeError, for the caller to end quietly.
    """

    def __init__(self, arguments: list[str], path: object, sink: BinaryIO | None) -> None:
        self.path = path
        self.sink_error: Exception | None = None
        self.lines: deque[str] = deque(maxlen=20)
        with output.writing(path):
            # restore_signals=False: a file size limit is then an error message, not a signal.
            # Its own session: Ctrl-C in the terminal reaches us, and we end ffmpeg.
            self.process = subprocess.Popen(
                [executable(), "-hide_banner", "-v", "error", "-nostats", "-y", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if sink else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                restore_signals=False,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        self.pump = threading.Thread(target=self._pump, args=(sink,), daemon=True) if sink else None
        if self.pump:
            self.pump.start()
        self.refused = False  # ffmpeg takes no more: it has ended
        self.waiting: Queue[np.ndarray | None] = Queue()  # None: there are no more
        self.writer = threading.Thread(target=self._write, daemon=True)
        self.writer.start()

    def send(self, frames: np.ndarray) -> None:
        """Frames [t, H, W, 3] uint8, not to be changed afterwards: they are written meanwhile.

        Raises OutputError when ffmpeg has ended, if not here then at the next call.
        """
        self.waiting.join()  # one chunk is held here, not more
        if self.refused:
            self._ended()
        self.waiting.put(frames)

    def finish(self) -> None:
        """Let ffmpeg write what is left; raises OutputError when it fails."""
        self._written()
        if self.refused:
            self._ended()
        try:
            _pipe(self.process.stdin).close()
        except OSError:
            self._ended()
        self._join()
        if self.process.returncode:
            self._ended()

    def kill(self) -> None:
        """End ffmpeg now, whatever it does; harmless when it has ended.

        The sink's thread is not waited for: a reader that sleeps must not hold up Ctrl-C.
        """
        self.process.kill()
        self.process.wait()
        self.listener.join()
        self.refused = True
        self._written()
        with suppress(OSError):  # frames that a dead process will not take
            _pipe(self.process.stdin).close()

    def _written(self) -> None:
        """Wait until every frame is with ffmpeg, or refused by it."""
        if self.writer.is_alive():
            self.waiting.put(None)
            self.writer.join()

    def _write(self) -> None:
        more = True
        while more:
            frames = self.waiting.get()
            more = frames is not None
            try:
                if frames is not None and not self.refused:
                    _pipe(self.process.stdin).write(frames.data)
            except OSError:
                self.refused = True
            del frames  # before the next is waited for: it may be all the memory there is
            self.waiting.task_done()

    def _join(self) -> None:
        self.process.wait()
        self.listener.join()
        if self.pump:
            self.pump.join()

    def _ended(self) -> None:
        self._join()
        if isinstance(self.sink_error, BrokenPipeError):
            raise self.sink_error
        if self.sink_error:
            reason = getattr(self.sink_error, "strerror", None) or str(self.sink_error)
            raise output.failed(self.path, reason) from self.sink_error
        raise output.failed(self.path, f"ffmpeg stopped: {self._reason()}")

    def _reason(self) -> str:
        lines = [re.sub(r"^(\[[^]]*\] )+", "", line) for line in self.lines]
        lines = [line for line in lines if line and line != "Conversion failed!"]
        if lines:
            return lines[-1]
        code = self.process.returncode
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _listen(self) -> None:
        with _pipe(self.process.stderr) as stderr:
            for line in stderr:
                self.lines.append(line.decode("utf-8", "replace").strip())

    def _pump(self, sink: BinaryIO) -> None:
        # past the buffer of sys.stdout: a thread that sleeps inside its lock aborts the exit
        sink = getattr(sink, "raw", sink)
        try:
            with _pipe(self.process.stdout) as stdout:
                while block := stdout.read1(1 << 16):  # type: ignore[attr-defined]
                    while block:
                        block = block[sink.write(block) :]
        except (OSError, ValueError) as error:  # ValueError: the sink was closed by its owner
            self.sink_error = error
            self.process.kill()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


@contextmanager
def encoder(arguments: list[str], path: object, sink: BinaryIO | None = None) -> Iterator[Encoder]:
    """An ffmpeg that is finished when the block ends well and killed when it does not."""
    process = Encoder(arguments, path, sink)
    try:
        yield process
        process.finish()
    finally:
        process.kill()


class Source:
    """ffmpeg's stdout, read by us: bounded in silence, its log kept, ended when we stop reading."""

    def __init__(
        self, arguments: list[str], listen: Callable[[str], None] | None, folder: Path | None
    ) -> None:
        self.lines: deque[str] = deque(maxlen=200)
        self.silent = False
        self.listen = listen or self.lines.append
        command = [executable(), "-hide_banner", "-nostdin", "-nostats", *arguments]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            raise UsageError(f"cannot run {command[0]}: {error}", hint=BUNDLED) from error
        self.waiting_since: float | None = None  # time.monotonic() when we began to wait
        self.ended = threading.Event()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def fill(self, buffer: memoryview) -> int:
        """Read until `buffer` is full or the output has ended; returns the bytes read."""
        done = 0
        while done < len(buffer):
            self.waiting_since = time.monotonic()
            count = _pipe(self.process.stdout).readinto(buffer[done:])  # type: ignore[attr-defined]
            if not count:
                break
            done += count
        self.waiting_since = None  # what our reader does meanwhile is not ffmpeg's silence
        return done

    def text(self) -> Iterator[str]:
        """The lines of stdout, as they come."""
        while True:
            self.waiting_since = time.monotonic()
            line = _pipe(self.process.stdout).readline(MAX_LINE)
            self.waiting_since = None
            if not line:
                return
            yield line.decode("utf-8", "replace").rstrip("\r\n")

    def finish(self) -> int:
        """Wait for the end of a process whose output was read; returns its exit code."""
        self.waiting_since = time.monotonic()
        self.listener.join()
        return self.process.wait()

    def kill(self) -> None:
        """End ffmpeg now; harmless when it has ended."""
        self.ended.set()
        self.process.kill()
        self.process.wait()
        self.listener.join()
        _pipe(self.process.stdout).close()

    def _watch(self) -> None:
        while not self.ended.wait(SILENCE / 60):
            since = self.waiting_since
            if since is not None and time.monotonic() - since > SILENCE:
                self.silent = True
                self.process.kill()
                return

    def _listen(self) -> None:
        with _pipe(self.process.stderr) as stderr:
            while line := stderr.readline(MAX_LINE):
                self.listen(line.decode("utf-8", "replace").rstrip())
                if self.waiting_since is not None:
                    self.waiting_since = time.monotonic()


@contextmanager
def source(
    arguments: list[str],
    *,
    listen: Callable[[str], None] | None = None,
    folder: Path | None = None,
) -> Iterator[Source]:
    """An ffmpeg that is read from and that ends with the block.

    Args:
        listen: gets each line of the log, in a thread; by default the last ones are kept.
        folder: where it runs, for files that a filter names.
    """
    process = Source(arguments, listen, folder)
    try:
        yield process
    finally:
        process.kill()


def url(path: Path) -> str:
    """A path that ffmpeg takes as one, also when it has a colon or starts with a hyphen."""
    return f"file:{path.absolute()}"


def metadata(path: Path, demuxer: str, max_bytes: int) -> str:
    """A video's tags as an ffmetadata text, cut at `max_bytes` (escaping doubles at most)."""
    arguments = ["-v", "error", "-nostdin", "-protocol_whitelist", "file,pipe", "-f", demuxer]
    command = [executable(), *arguments, "-i", url(path), "-f", "ffmetadata", "pipe:1"]
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise UsageError(f"cannot run {command[0]}: {error}", hint=BUNDLED) from error
    timer = threading.Timer(READ_TIMEOUT, process.kill)
    try:
        timer.start()
        return _pipe(process.stdout).read(2 * max_bytes).decode("utf-8", "replace")
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        _pipe(process.stdout).close()
