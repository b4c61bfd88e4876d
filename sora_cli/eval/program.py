"""What every program of this room does around its work: news, and errors in one line and a hint."""

from __future__ import annotations

import sys
from collections.abc import Callable

from sora_cli.errors import SoraError


def say(text: str) -> None:
    """News for whoever watches."""
    sys.stderr.write(text)


def ended(work: Callable[[], None]) -> int:
    """Do the work; the exit code, after what went wrong was said with the next command to try."""
    try:
        work()
    except SoraError as error:
        say(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return int(error.exit_code)
    return 0
