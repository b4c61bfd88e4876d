"""The only writer of stdout and stderr.

stdout carries results and nothing else; progress, notes, hints and errors go to stderr. NO_COLOR
is rich's to respect: only the bar has colours.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TextIO

from sora_cli.errors import OutputError

if TYPE_CHECKING:
    from sora_cli.batch import Shared
    from sora_cli.cli.progress import Progress
    from sora_cli.pipeline.events import Event

ProgressMode = Literal["auto", "plain", "json", "none"]

# Control characters but tab and line end, and those that turn the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Output:
    """The streams of one command line. Made by `main` before the options are known."""

    def __init__(self, *, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        # Either of the process's streams is None when the caller closed it.
        self._stdout = sys.stdout if stdout is None else stdout
        self._stderr = sys.stderr if stderr is None else stderr
        self._quiet = False
        self._json = False
        self._mode: ProgressMode = "auto"
        self._progress: Progress | None = None
        self.checkpoint: Callable[[], None] = lambda: None  # called with every event; may raise
        self.shared: Shared | None = None  # networks that a batch keeps loaded
        self.item: str | None = None  # what a batch knows this command by

    def configure(
        self, *, quiet: bool = False, as_json: bool = False, progress: ProgressMode = "auto"
    ) -> None:
        """Take over a command's options.

        Args:
            quiet: neither progress nor notes; errors still come.
            as_json: results as JSON objects, one a line.
            progress: `auto` is a bar on a terminal and lines elsewhere.
        """
        self._quiet, self._json, self._mode = quiet, as_json, progress
        self._progress = self._choose_progress()

    @property
    def as_json(self) -> bool:
        """Whether results are JSON objects."""
        return self._json

    @property
    def stdout_is_terminal(self) -> bool:
        """Whether a person would see what goes to stdout."""
        return self._stdout is not None and self._stdout.isatty()

    def result(self, text: str, content: Mapping[str, Any]) -> None:
        """Write a result on stdout: the text, or with --json the object, on one line.

        Raises:
            BrokenPipeError: the reader has left.
            OutputError: stdout is closed, or full.
        """
        self._write_result(_json(content) if self._json else text)

    def result_line(self, line: str) -> None:
        """Write a line on stdout as it is: one of several that programs read."""
        self._write_result(line)

    def facts(
        self, content: Mapping[str, Any], *, readable: Mapping[str, Any] | None = None
    ) -> None:
        """Write a mapping on stdout, as `key: value` lines or with --json as one object.

        Args:
            content: the facts as programs want them.
            readable: the same as people want them, where that differs.
        """
        shown = content if readable is None else readable
        self.result(_shown("\n".join(_fact_lines(shown, ""))), content)

    def table(self, rows: list[list[str]], content: Mapping[str, Any]) -> None:
        """Write rows in aligned columns; the first row is the heading."""
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )
        self.result(_shown("\n".join(lines)), content)

    def note(self, message: str) -> None:
        """Say something worth knowing on stderr."""
        if not self._quiet:
            self._line(message if self._mode == "json" else f"note: {message}")

    def observe(self, event: Event) -> None:
        """The `Observer` that commands hand to the pipeline."""
        if event.message is not None:
            self.note(event.message)  # first: the last of them is how to go on
        self.checkpoint()
        if event.message is None and self._progress is not None and not self._quiet:
            self._progress.observe(event)

    def error(self, message: str, *, hint: str | None, exit_code: int) -> None:
        """Say what ended the command, and the next command to try."""
        self.close()
        if self._mode == "json":
            error = {"event": "error", "message": message, "hint": hint, "exit_code": exit_code}
            self._write_error(_json(error))
            return
        self._write_error(f"error: {message}")
        if hint is not None:
            self._write_error(f"hint: {hint}")

    def error_text(self, text: str) -> None:
        """Write text on stderr as it is: a traceback."""
        self.close()
        self._write_error(text)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.close()

    def _line(self, text: str) -> None:
        if self._progress is None:
            self._write_error(text)
        else:
            self._progress.line(_shown(text))

    def _choose_progress(self) -> Progress:
        from sora_cli.cli.progress import Bar, JsonLines, Lines, Silent

        if self._mode == "json":
            return JsonLines(lambda event: self._write_error(_json(event)))
        if self._quiet or self._mode == "none":
            return Silent(self._write_error)
        stream = self._stderr
        terminal = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
        if self._mode == "auto" and terminal:
            return Bar(stream)
        return Lines(self._write_error)

    def _write_result(self, text: str) -> None:
        if self._stdout is None:
            raise OutputError(f"standard output is closed, so this was not printed: {text}")
        self.close()
        if hasattr(self._stdout, "reconfigure"):
            # A file name that is not text in this locale goes out as the bytes it came in as.
            self._stdout.reconfigure(errors="surrogateescape")
        try:
            self._stdout.write(text + "\n")
            self._stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to standard output: {error.strerror}") from error

    def _write_error(self, text: str) -> None:
        if self._stderr is None:
            return
        try:
            self._stderr.write(_shown(text) + "\n")
            self._stderr.flush()
        except (OSError, ValueError):
            # Nobody listens. The work is worth more than the news of it.
            self._stderr = None


def _json(content: Mapping[str, Any]) -> str:
    import json

    return json.dumps(content, ensure_ascii=False)


def _shown(text: str) -> str:
    """A text as a terminal may have it: a stranger's file may be quoted in it, or a token."""
    from sora_cli.runs.folders import without_secrets

    return _STEERING.sub("\N{REPLACEMENT CHARACTER}", without_secrets(text))


def _fact_lines(content: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key}:")
            lines.extend(_fact_lines(value, indent + "  "))
        else:
            lines.append(f"{indent}{key}: {_value_text(value)}".rstrip())
    return lines


def _value_text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        if not value:
            return "none"
        return ", ".join(_value_text(item) for item in value)
    return str(value)
