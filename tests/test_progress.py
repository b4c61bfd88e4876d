"""Progress: what is said, how often, and how the time left is reckoned."""

from __future__ import annotations

import io

import pytest

from sora_cli.cli.output import Output
from sora_cli.cli.progress import Lines, Pace, duration_text
from sora_cli.pipeline.events import Event


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def denoise(step: int, total: int = 10) -> Event:
    return Event(phase="denoise", step=step, total=total)


def test_pace_leaves_the_first_step_out() -> None:
    pace = Pace().advance(denoise(0), 100.0)
    assert pace.text() == "denoise 0/10"
    pace = pace.advance(denoise(1), 108.0)  # warming up
    assert pace.seconds_per_step == 8.0
    for step in range(2, 6):
        pace = pace.advance(denoise(step), 108.0 + step - 1)
    assert pace.seconds_per_step == 1.0
    assert pace.seconds_left == 5.0
    assert pace.text() == "denoise 5/10, 1.00 s/step, 5 s left"


def test_pace_starts_again_with_each_phase() -> None:
    pace = Pace().advance(denoise(10), 50.0).advance(Event(phase="decode", total=7), 51.0)
    assert (pace.started, pace.seconds_per_step, pace.text()) == (51.0, None, "decode 0/7")
    pace = pace.advance(Event(phase="load"), 60.0)
    assert pace.text() == "load"
    # The next video of the same command goes through the same phases.
    again = Pace().advance(denoise(10), 1.0).advance(denoise(1), 2.0)
    assert again.started == 2.0


def test_lines_come_at_a_gentle_rate() -> None:
    written: list[str] = []
    times = iter([float(t) for t in range(1000)])
    lines = Lines(written.append, lambda: next(times))
    for step in range(101):
        lines.observe(denoise(step, 100))
    lines.observe(denoise(100, 100))
    assert written[0] == "denoise 0/100"
    assert written[-1].startswith("denoise 100/100")
    assert len(written) == 21


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_duration_text(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    stdout, terminal, file = io.StringIO(), Terminal(), io.StringIO()
    for stderr in (terminal, file):
        out = Output(stdout=stdout, stderr=stderr)
        out.configure()
        for step in range(4):
            out.observe(denoise(step, 3))
        out.note("rounded")
        out.result("clip.mp4", {})
        out.close()
    assert stdout.getvalue() == "clip.mp4\n" * 2
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b[3" not in terminal.getvalue(), "NO_COLOR is set"
    assert "note: rounded\n" in terminal.getvalue()
    assert "\x1b" not in file.getvalue()
    assert file.getvalue().splitlines()[0] == "denoise 0/3"
