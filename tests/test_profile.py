"""`--profile`: a whole trace or none, and phases that add up to the time the work took."""

from __future__ import annotations

import gzip
import json
import signal
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sora_cli.cli.main import main
from sora_cli.cli.options import fold_profile_arguments
from sora_cli.pipeline.events import Event
from tests.tiny_runs import PROMPT, SMALL, frames_of, generate, names_in, script

Capture = pytest.CaptureFixture[str]
SCHEMA = json.loads(
    (Path(__file__).parents[1] / "docs" / "reference" / "recipe.schema.json").read_text()
)


def trace_of(path: Path) -> dict[str, Any]:
    """The trace in a file, packed or not."""
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_trace_shows_every_phase_and_the_operations_in_it(
    here: Path, capsys: Capture, name: str
) -> None:
    assert generate("-o", "a.mkv", "--json", "--profile", name) == 0
    told = capsys.readouterr()
    made = json.loads(told.out)
    jsonschema.validate(made, SCHEMA)
    assert names_in(here) == ["a.mkv", name]
    profile = made["profile"]
    assert profile["trace"] == name
    assert {"plan", "load", "denoise", "decode"} <= set(profile["phases"])
    assert sum(profile["shares"].values()) == pytest.approx(1, abs=0.01)
    assert profile["phases"]["denoise"] == pytest.approx(made["timings"]["denoise"], rel=0.2)
    for phase in profile["phases"]:
        assert f"note: {phase} " in told.err
    events = trace_of(here / name)["traceEvents"]
    phases = {e["name"]: e for e in events if str(e.get("name", "")).startswith("phase: ")}
    assert {"phase: denoise", "phase: decode", "phase: write"} <= set(phases)
    step = phases["phase: denoise"]
    within = [
        e for e in events
        if str(e.get("name")).endswith(("::linear", "::addmm", "::mm", "::_linear_pointwise"))
        and "dur" in e
        and step["ts"] <= e["ts"] <= step["ts"] + step["dur"]
    ]  # fmt: skip
    assert len(within) > 100


def test_an_unnamed_trace_gets_a_name_of_its_own(here: Path, capsys: Capture) -> None:
    assert main(["image", "--profile", PROMPT, *SMALL[:2], *SMALL[4:], "--seed", "1", "-o", "a.png",
                 "--progress", "json"]) == 0  # fmt: skip
    trace = "a-red-ball-bounces-on-the-snow-at-sunset-1.trace.json.gz"
    assert names_in(here) == [trace, "a.png"]
    notes = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert any(trace in str(note.get("message")) for note in notes)


def test_a_file_carries_no_profile_and_its_bits_are_the_same(here: Path, capsys: Capture) -> None:
    assert generate("-o", "a.mkv", "--profile", "t.json") == 0
    assert generate("-o", "b.mkv", "--quiet") == 0
    capsys.readouterr()
    assert main(["info", "a.mkv", "--json"]) == 0
    assert "profile" not in json.loads(capsys.readouterr().out)
    assert (frames_of(here / "a.mkv") == frames_of(here / "b.mkv")).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--profile=trace.txt"], "a trace is a .json or a .json.gz, not trace.txt"),
        (["--profile", "there.json"], "there.json already exists"),
        (["--profile=no/t.json"], "there is no folder"),
        (["--profile", "--dry-run"], "a dry run makes nothing to profile"),
    ],
)
def test_what_stands_in_the_way_is_said_before_any_work(
    here: Path, capsys: Capture, words: list[str], said: str
) -> None:
    (here / "there.json").write_text("mine")
    assert generate("-o", "a.mkv", *words) == 2
    errors = capsys.readouterr().err
    assert said in errors and "hint: " in errors and "load" not in errors
    assert names_in(here) == ["there.json"] and (here / "there.json").read_text() == "mine"


def test_work_that_fails_leaves_no_trace(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sora_cli.cli.output import Output

    class Failing(Output):
        def observe(self, event: Event) -> None:
            if event.phase == "decode":
                raise RuntimeError("the decoder broke")

    words = ["generate", PROMPT, *SMALL, "--seed", "1", "-o", "a.mkv", "--profile", "t.json"]
    assert main(words, output=Failing()) == 1
    assert names_in(here) == []
    (here / "t.json").write_text("old")
    assert generate("-o", "a.mkv", "--force", "--profile", "t.json") == 0  # it was put away
    assert trace_of(here / "t.json")["traceEvents"]


def test_ctrl_c_leaves_no_trace(here: Path) -> None:
    process = script(
        "generate", PROMPT, *SMALL[:4], "--steps", "500", "--no-expand", "-o", "a.mkv",
        "--profile", "t.json", "--progress", "json", cwd=here,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if b'"denoise", "step": 2' in line:
            process.send_signal(signal.SIGINT)
            break
    began = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 30
    assert names_in(here) == []


def test_only_a_name_of_a_trace_is_taken_as_one() -> None:
    fold = fold_profile_arguments
    assert fold(["--profile", "a ball"]) == ["--profile=", "a ball"]
    assert fold(["--profile", "t.json", "a ball"]) == ["--profile=t.json", "a ball"]
    assert fold(["a", "--profile", "x/t.json.gz"]) == ["a", "--profile=x/t.json.gz"]
    assert fold(["--profile=t.json", "u.json"]) == ["--profile=t.json", "u.json"]
    assert fold(["--profile", "--force"]) == ["--profile=", "--force"]
    assert fold(["--", "--profile", "t.json"]) == ["--", "--profile", "t.json"]
    assert fold(["--profile", "--", "t.json"]) == ["--profile=", "--", "t.json"]
