"""Strict reading of TOML tables: every complaint names the file, line, entry and key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sora_cli.errors import UsageError
from sora_cli.pipeline.units import parse_duration

T = TypeVar("T")

LARGEST = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One table of a file: its head (number None), or entry `number` of an array of tables.

    file, text: the file's name and what it holds, for messages.
    array: the name of the array of tables, as in [[shot]].
    """

    content: dict[str, Any]
    file: str
    text: str
    array: str
    number: int | None = None

    @property
    def where(self) -> str:
        """`shot 2 (line 9)`."""
        line = self._line(None)
        return f"{self.array} {(self.number or 0) + 1}" + (f" (line {line})" if line else "")

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def entries(self) -> list[Table]:
        """The tables of the array, in order; none where it is missing or something else."""
        tables = self.content.get(self.array)
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            return []
        return [
            Table(content=t, file=self.file, text=self.text, array=self.array, number=n)
            for n, t in enumerate(tables)
        ]

    def only(self, keys: Sequence[str]) -> None:
        """Refuses any other key."""
        for key in self.content:
            if key not in keys:
                self.refuse(key, "no such key", f"the keys here: {', '.join(keys)}")

    def string(self, key: str) -> str | None:
        """A text, or None where the key is missing; so the others."""
        value = self.content.get(key)
        if value is not None and not isinstance(value, str):
            self.refuse(key, f"{value!r} is no text", f'{key} = "…"')
        return value

    def path(self, key: str, folder: Path) -> Path | None:
        """A file name, relative to `folder`."""
        value = self.string(key)
        if value is not None and (not value or "\0" in value):
            self.refuse(key, "it names no file", f'{key} = "file"')
        # os.path's leaves the home of a user who is not there as it is written.
        return None if value is None else folder / os.path.expanduser(value)

    def number_of(self, key: str) -> float | None:
        """A finite number."""
        value = self.content.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not _usable(value):
            self.refuse(key, f"{value} is no number that can be used", f"{key} = 3")
        return float(value)

    def whole(self, key: str) -> int | None:
        """A whole number."""
        value = self.content.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            self.refuse(key, f"{value!r} is no whole number", f"{key} = 7")
        return value

    def seconds(self, key: str, *, above: bool = False) -> float | None:
        """A time: a number of seconds or a text such as "1m30s"; with `above`, more than none."""
        value = self.content.get(key)
        if isinstance(value, str):
            seconds: float | None = self.parsed(key, parse_duration)
        else:
            seconds = self.number_of(key)
        if seconds is not None and (seconds < 0 or (above and seconds == 0)):
            least = "above 0" if above else "0 or more"
            self.refuse(key, f"{seconds:g}s is not {least}", f'{key} = "3s"')
        return seconds

    def parsed(self, key: str, parse: Callable[[str], T]) -> T | None:
        """What `parse` makes of a text; its complaint with the place."""
        text = self.string(key)
        try:
            return None if text is None else parse(text)
        except UsageError as error:
            self.refuse(key, error.message, error.hint or f'{key} = "…"')

    def refuse(self, key: str | None, said: str, hint: str) -> NoReturn:
        """Raises UsageError: `board.toml, line 9, shot 2: at: …`."""
        line = self._line(key)
        place = self.file + (f", line {line}" if line else "")
        if self.number is not None:
            place += f", {self.array} {self.number + 1}"
        raise UsageError(f"{place}: {f'{key}: ' if key else ''}{said}", hint=hint)

    def _line(self, key: str | None) -> int | None:
        """The line of a key, else of the entry's header; None where it cannot be told."""
        lines, headers = _headers(self.text, self.array)
        if self.number is None:
            first, last = 0, headers[0] if headers else len(lines)
        elif self.number < len(headers):
            first = headers[self.number]
            last = headers[self.number + 1] if self.number + 1 < len(headers) else len(lines)
        else:  # shots written in another way, as an inline array
            return None
        if key is not None:
            written = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=""")
            for number in range(first, last):
                if written.match(lines[number]):
                    return number + 1
        return first or None


@lru_cache(maxsize=4)
def _headers(text: str, array: str) -> tuple[list[str], list[int]]:
    """A file's lines, and the numbers (from 1) of those that begin an entry of the array.

    Remembered, because every entry asks: a thousand shots in a megabyte of empty lines would
    otherwise take minutes.
    """
    lines = text.splitlines()
    header = re.compile(rf"\s*\[\[\s*{re.escape(array)}\s*\]\]")
    return lines, [number for number, line in enumerate(lines, start=1) if header.match(line)]


def first_line(error: Exception) -> str:
    """What a TOML parser has to say, in one line."""
    said = str(error).splitlines()
    return said[0][:200] if said and not isinstance(error, RecursionError) else "nested too deep"


def _usable(value: float) -> bool:
    return abs(value) < LARGEST  # so neither infinite nor "not a number"
