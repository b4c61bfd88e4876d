"""How long work shows itself: a bar on a terminal, gentle lines elsewhere, JSON lines for programs.

Each form is an `Observer`-like object with `observe(event)` and `close()`; `cli/output.py` chooses
one and gives it the way to write.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TextIO

from sora_cli.pipeline.events import Event

# A line every few seconds is enough for a log file and still answers "does it move?".
_LINE_SECONDS = 5.0


class Progress(Protocol):
    """What `Output` asks of a form of progress."""

    def observe(self, event: Event) -> None:
        """Show one event."""

    def line(self, text: str) -> None:
        """Write a line of its own on stderr, beside the progress."""

    def close(self) -> None:
        """Leave the terminal as it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How fast the present phase goes. Times are `time.monotonic` seconds.

    The first step of a phase warms caches up and would spoil the estimate, so the rate counts
    from the moment it was finished.
    """

    phase: str = ""
    started: float = 0.0
    first_step: int = 0
    first_at: float = 0.0
    step: int = 0
    total: int = 0
    now: float = 0.0

    def advance(self, event: Event, now: float) -> Pace:
        """The pace after one more event."""
        if event.phase != self.phase or event.step < self.step:
            fresh = Pace(phase=event.phase, started=now, first_at=now, now=now)
            return replace(fresh, step=event.step, first_step=event.step, total=event.total)
        reached = replace(self, step=event.step, total=event.total, now=now)
        if self.step == 0 and event.step > 0:
            return replace(reached, first_step=event.step, first_at=now)
        return reached

    @property
    def seconds_per_step(self) -> float | None:
        """Mean seconds a step, None before the first one is finished."""
        if self.step > self.first_step:
            return (self.now - self.first_at) / (self.step - self.first_step)
        elapsed = self.now - self.started
        return elapsed / self.step if self.step and elapsed > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Time left in this phase, None where nobody can know."""
        rate = self.seconds_per_step
        return None if rate is None or not self.total else rate * max(0, self.total - self.step)

    def text(self) -> str:
        """`denoise 12/30, 0.31 s/step, 6 s left`: what both the lines and the bar say."""
        words = self.phase + (f" {self.step}/{self.total}" if self.total else "")
        rate, left = self.seconds_per_step, self.seconds_left
        if rate is not None and self.total:
            words += f", {rate:.2f} s/step"
        if left is not None and self.step < self.total:
            words += f", {duration_text(left)} left"
        return words


class Silent:
    """No progress; lines still come."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def observe(self, event: Event) -> None:
        """Nothing to show."""

    def line(self, text: str) -> None:
        """Write the line."""
        self._write(text)

    def close(self) -> None:
        """Nothing to undo."""


class Lines(Silent):
    """A line when a phase starts, then one every few seconds, then one when it is done."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(write)
        self._clock = clock
        self._pace = Pace()
        self._written = 0.0

    def observe(self, event: Event) -> None:
        """Write a line if the phase is new or done, or if the last one is old."""
        now = self._clock()
        before = self._pace
        self._pace = before.advance(event, now)
        new = before.phase != event.phase
        done = event.finished and (new or before.step < before.total or not before.total)
        if new or done or now - self._written >= _LINE_SECONDS:
            self._write(self._pace.text())
            self._written = now


class Bar:
    """One line on a terminal, redrawn: phase, bar, step, pace, time left."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._console = Console(file=stream, highlight=False, markup=False)
        self._progress = RichProgress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            transient=True,
        )
        self._pace = Pace()
        self._task = self._progress.add_task("", total=None)

    def observe(self, event: Event) -> None:
        """Redraw for this event."""
        before = self._pace
        self._pace = before.advance(event, time.monotonic())
        if before.phase != event.phase:
            self._progress.reset(self._task, total=event.total or None)
        self._progress.start()
        self._progress.update(
            self._task,
            description=self._pace.text(),
            completed=event.step,
            total=event.total or None,
        )

    def line(self, text: str) -> None:
        """Write above the bar."""
        self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()


class JsonLines(Silent):
    """Every event as a JSON object on a line of its own."""

    def __init__(self, emit: Callable[[dict[str, object]], None]) -> None:
        super().__init__(lambda text: emit({"event": "note", "message": text}))
        self._emit = emit
        self._pace = Pace()

    def observe(self, event: Event) -> None:
        """Write the event with its pace; seconds are null where nobody can know them."""
        self._pace = self._pace.advance(event, time.monotonic())
        self._emit(
            {
                "event": "progress",
                "phase": event.phase,
                "step": event.step,
                "total": event.total,
                "seconds_per_step": _rounded(self._pace.seconds_per_step),
                "seconds_left": _rounded(self._pace.seconds_left),
            }
        )


def duration_text(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
