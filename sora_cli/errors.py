"""Every error a user can meet, and the exit code each one ends the program with.

The messages follow one form: what went wrong, with the value that was wrong, and in `hint` the next
command to try. Programming mistakes are asserts and plain exceptions, never a `SoraError`.
"""

from __future__ import annotations

from enum import IntEnum

MAX_LENGTH = 1600  # characters of a message; a path of the deepest folders is shorter


class ExitCode(IntEnum):
    """What the program returns to the shell; published in docs/reference/cli.md."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    WEIGHTS = 3
    DEVICE = 4
    SIGINT = 130
    SIGTERM = 143


class SoraError(Exception):
    """A failure that the user can do something about.

    Args:
        message: what went wrong, in one sentence without a full stop; a strange name in it may
            have line ends, which become spaces, and be endless: its middle is left out.
        hint: the next command to try, or the value that would have been right.
    """

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = _line(message)
        super().__init__(self.message)
        self.hint = None if hint is None else _line(hint)


def _line(text: str) -> str:
    line = " ".join(text.splitlines())
    return line if len(line) <= MAX_LENGTH else f"{line[:1000]} … {line[-500:]}"


class UsageError(SoraError):
    """Bad usage or bad input: an unknown model, an existing output, an unknown suffix."""

    exit_code = ExitCode.USAGE


class WeightsError(SoraError):
    """Weights that are not here, do not match their hash, or cannot be read."""

    exit_code = ExitCode.WEIGHTS


class DeviceError(SoraError):
    """A device that is not there, or memory that does not suffice."""

    exit_code = ExitCode.DEVICE


class OutputError(SoraError):
    """Output that cannot be written: no permission, no space, an encoder that died."""

    exit_code = ExitCode.FAILURE


class Terminated(BaseException):
    """SIGTERM arrived. Raised by the handler in `cli/main`, so that `finally` blocks clean up."""
