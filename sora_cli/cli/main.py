"""The way in and the way out: signals, error mapping, exit codes.

`run` is the installed script; `main` is the same without touching the process, for tests. Nothing
heavy is imported here, so that Ctrl-C is answered from the first moment on.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from sora_cli.errors import ExitCode, SoraError, Terminated
from sora_cli.runtime import cores

if TYPE_CHECKING:
    from sora_cli.cli.output import Output

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def run() -> NoReturn:
    """The `sora` script: one command, then exit with its code."""
    _open_closed_streams()
    # These are read when the libraries are imported, which happens after this.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "OMP_WAIT_POLICY" not in os.environ:
        # So is this, by torch's threads. Left alone they spin for 300,000 rounds, about 15 ms,
        # wherever they wait for each other: on busy cores a clip then takes thirty times as long
        # (docs/reference/threads.md). 1,000 rounds cost a quiet machine a tenth, 5,000 little.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    threads = None if cores.VARIABLE in os.environ else cores.thread_limit()
    if threads is not None:
        os.environ[cores.VARIABLE] = str(threads)
    if not _debugging():
        import warnings

        warnings.simplefilter("ignore")
        sys.unraisablehook = _unraisable
    sys.exit(_flushed(main(sys.argv[1:])))


def main(argv: Sequence[str], *, output: Output | None = None) -> int:
    """Run one command line and return the exit code; never raises and never exits.

    Args:
        argv: the words after `sora`.
        output: where results and progress go; the process's streams when None.
    """
    stop = _Stop()
    try:
        with stop.handlers():
            from sora_cli.cli.output import Output

            output = Output() if output is None else output
            output.checkpoint = stop.check
            try:
                return int(_invoke(argv, output))
            except BaseException as error:
                return int(_report(stop.cause_of(error), output))
            finally:
                output.close()
    except KeyboardInterrupt:
        return int(ExitCode.SIGINT)
    except Terminated:
        return int(ExitCode.SIGTERM)


def _invoke(argv: Sequence[str], output: Output) -> int:
    import typer.main

    from sora_cli.cli.commands import app
    from sora_cli.cli.options import fold_profile_arguments
    from sora_cli.weights.lora_arguments import fold_lora_arguments

    command = typer.main.get_command(app)
    # Without standalone mode typer raises its errors instead of printing them; it still turns
    # KeyboardInterrupt into a returned 130 and EPIPE into SystemExit.
    words = fold_profile_arguments(fold_lora_arguments(argv)) or ["--help"]
    code = command.main(args=words, prog_name="sora", standalone_mode=False, obj=output)
    if code == ExitCode.SIGINT:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else ExitCode.OK


def _report(error: BaseException, output: Output) -> int:
    """Say what went wrong on stderr, and choose the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else ExitCode.FAILURE
    if isinstance(error, BrokenPipeError):
        return ExitCode.FAILURE  # whoever read stdout has left; there is nobody to tell
    if _debugging():
        import traceback

        output.error_text("".join(traceback.format_exception(error)).rstrip())
    code, message, hint = describe(error)
    output.error(message, hint=hint, exit_code=code)
    return code


def describe(error: BaseException) -> tuple[int, str, str | None]:
    """The exit code, the message and the hint of any exception."""
    if isinstance(error, SoraError):
        return error.exit_code, error.message, error.hint
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.SIGINT, "interrupted", None
    if isinstance(error, Terminated):
        return ExitCode.SIGTERM, "terminated", None
    if (usage := _typer_error(error)) is not None:
        return usage
    from sora_cli.runtime.memory import is_out_of_memory

    if is_out_of_memory(error):
        hint = "a smaller --size or a shorter --duration needs less; sora doctor shows what is free"
        return ExitCode.DEVICE, "out of memory", hint
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return ExitCode.FAILURE, "no space left to write to", "free some, or choose another -o"
    if isinstance(error, OSError) and error.filename is not None:
        return ExitCode.FAILURE, f"{error.filename}: {error.strerror}", None
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # Path.expanduser
        return (
            ExitCode.USAGE,
            "a path begins with ~ and a name that no user has",
            "write it in full",
        )
    lines = str(error).strip().splitlines()
    message = f"unexpected {type(error).__name__}: {lines[0] if lines else 'no message'}"
    return ExitCode.FAILURE, message, "set SORA_DEBUG=1 to see where, and report it"


def _typer_error(error: BaseException) -> tuple[int, str, str | None] | None:
    import typer

    if isinstance(error, typer.Abort):
        return ExitCode.FAILURE, "the input ended early", None
    if not isinstance(error, typer.TyperException):
        return None
    context: Any = getattr(error, "ctx", None)
    # Typer's validator puts its own words before the message of ours.
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    path = context.command_path if context is not None else "sora"
    return ExitCode.USAGE, message[:1].lower() + message[1:], f"{path} --help"


class _Stop:
    """SIGINT and SIGTERM as exceptions, so that `finally` blocks remove what is half-written.

    One that comes while a library is being imported may be swallowed there or turn into another
    error. So it is remembered, and raised again with the next news of the work.
    """

    def __init__(self) -> None:
        self.arrived: type[BaseException] | None = None

    def check(self) -> None:
        """Raise what arrived."""
        if self.arrived is not None:
            raise self.arrived

    def cause_of(self, error: BaseException) -> BaseException:
        """What arrived, if anything did: the error is then its consequence."""
        if self.arrived is None or isinstance(error, self.arrived):
            return error
        return self.arrived().with_traceback(error.__traceback__)

    @contextmanager
    def handlers(self) -> Iterator[None]:
        """Handle both signals, except where the caller wants them ignored (nohup)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                if handler is not None:  # None: not one of Python's
                    signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.arrived = KeyboardInterrupt if number == signal.SIGINT else Terminated
        raise self.arrived


def _open_closed_streams() -> None:
    """Give closed standard streams to the null device: else the next file opened becomes one."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _unraisable(unraisable: Any) -> None:
    """Pass over Ctrl-C inside a callback or a finaliser: `_Stop` remembers it."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt | Terminated):
        sys.__unraisablehook__(unraisable)


def _flushed(code: int) -> int:
    """Flush stdout now: at exit Python would print a traceback where the reader has left."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return code or ExitCode.FAILURE
    return code


def _debugging() -> bool:
    return os.environ.get("SORA_DEBUG", "") not in ("", "0")
