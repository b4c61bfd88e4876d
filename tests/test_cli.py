"""The command line's manners: streams, exit codes, options, messages."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sora_cli
from sora_cli.cli import reference
from sora_cli.cli.main import main
from sora_cli.cli.output import Output
from sora_cli.errors import DeviceError, ExitCode, OutputError, SoraError, Terminated, WeightsError
from sora_cli.jobs.job import Target
from tests.cli_stub import StubApp

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[1]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubApp:
    app = StubApp()
    monkeypatch.setattr(sora_cli, "app", app, raising=False)
    return app


def test_stdout_is_exactly_the_path(stub: StubApp, capsys: Capture) -> None:
    assert main(["generate", "a red ball"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "ball-0.mp4\n"
    assert "note: size 130x75 becomes 128x80" in captured.err
    assert "denoise 3/3" in captured.err


def test_every_option_reaches_the_request(stub: StubApp) -> None:
    words = """generate p -n dark -m tiny --size 64x96 --duration 1.5s --fps 12 --steps 4
        --guidance-scale 2.5 --seed 7 --num-videos 2 --no-expand --sampler unipc
        --sigma-grid original --shift 4 --device cpu --dtype bf16 --crf 20 --force --dry-run
        -o out.webm"""
    assert main(words.split()) == 0
    request = stub.request
    assert (request.prompt, request.negative_prompt, request.model) == ("p", "dark", "tiny")
    assert (request.width, request.height, request.duration, request.fps) == (64, 96, 1.5, 12)
    assert (request.num_inference_steps, request.guidance_scale, request.seed) == (4, 2.5, 7)
    assert (request.expand, request.sampler, request.sigma_grid) == (False, "unipc", "original")
    assert (request.shift, request.device, request.dtype) == (4, "cpu", "bf16")
    assert stub.arguments["target"] == Target(
        output=Path("out.webm"), count=2, crf=20, force=True, dry_run=True
    )


def test_animate_and_image_make_requests(stub: StubApp) -> None:
    assert main(["animate", "cat.png", "it jumps", "--num-frames", "9"]) == 0
    assert stub.arguments["image"] == Path("cat.png")
    assert (stub.request.prompt, stub.request.num_frames) == ("it jumps", 9)
    assert main(["animate", "cat.png"]) == 0
    assert stub.request.prompt == "" and not stub.request.needs_prompt
    assert main(["image", "a cat", "--aspect", "1:1", "--resolution", "64p"]) == 0
    assert stub.calls[-1][0] == "image"
    assert (stub.request.aspect, stub.request.resolution) == ("1:1", "64p")


def test_json_is_one_object_a_line(stub: StubApp, capsys: Capture) -> None:
    assert main(["generate", "p", "--num-videos", "2", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["ball-0.mp4", "ball-1.mp4"]
    assert "für" in lines[0]


def test_progress_json_makes_every_stderr_line_an_object(stub: StubApp, capsys: Capture) -> None:
    stub.before = lambda: (_ for _ in ()).throw(WeightsError("gone", hint="sora weights list"))
    assert main(["generate", "p", "--progress", "json"]) == 3
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["note", *["progress"] * 3, "error"]
    assert events[3]["step"] == events[3]["total"] == 3
    assert events[4] == {
        "event": "error",
        "message": "gone",
        "hint": "sora weights list",
        "exit_code": 3,
    }


@pytest.mark.parametrize("words", [["--quiet"], ["--progress", "none", "-q"]])
def test_quiet_is_quiet_but_not_about_errors(
    stub: StubApp, capsys: Capture, words: list[str]
) -> None:
    assert main(["generate", "p", *words]) == 0
    assert capsys.readouterr().err == ""
    stub.before = lambda: (_ for _ in ()).throw(SoraError("it broke"))
    assert main(["generate", "p", *words]) == 1
    assert capsys.readouterr().err == "error: it broke\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (WeightsError("not pulled", hint="sora weights list"), 3, "hint: sora weights list"),
        (DeviceError("no CUDA device here"), 4, "error: no CUDA device here"),
        (OutputError("cannot write x"), 1, "error: cannot write x"),
        (MemoryError(), 4, "error: out of memory\nhint: a smaller --size"),
        (torch.OutOfMemoryError("CUDA out of memory."), 4, "error: out of memory"),
        (RuntimeError("[enforce fail] can't allocate memory: 9 bytes"), 4, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: no space left"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "a/b: Permission denied"),
        (
            ZeroDivisionError("by\nzero"),
            1,
            "unexpected ZeroDivisionError: by\nhint: set SORA_DEBUG",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (Terminated(), 143, "error: terminated"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_exit_codes(
    stub: StubApp, capsys: Capture, error: BaseException, code: int, message: str
) -> None:
    def fail() -> None:
        raise error

    stub.before = fail
    assert main(["generate", "p", "--progress", "none"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err
    if not message:
        assert "error" not in captured.err


def test_traceback_only_when_asked_for(
    stub: StubApp, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.before = lambda: 1 / 0
    monkeypatch.setenv("SORA_DEBUG", "1")
    assert main(["generate", "p"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "error: no such command 'frobnicate'"),
        (["generat"], "Did you mean 'generate'"),
        (["generate"], "error: missing argument 'PROMPT'\nhint: sora generate --help"),
        (["generate", "p", "--nope"], "error: no such option: --nope"),
        (["generate", "p", "--steps", "many"], "'--steps'"),
        (["generate", "p", "--num-videos", "0"], "'--num-videos'"),
        (["generate", "p", "--sampler", "magic"], "'magic' is not one of 'euler', 'unipc'"),
        (["generate", ""], "error: the prompt is empty\nhint: sora generate"),
        (["generate", " \n"], "error: the prompt is empty"),
        (["generate", "p", "--size", "big"], "'big'"),
        (["generate", "p", "--size", "64x64", "--width", "64"], "--size 64x64 alone"),
        (["generate", "p", "--duration", "soon"], "'soon'"),
        (["generate", "p", "-o", ""], "the output has no name"),
        (["generate", "p", "-o", "-", "--json"], "both want stdout"),
        (["generate", "p", "-o", "-", "--num-videos", "2"], "do not fit on stdout"),
        (["weights"], "error: missing command\nhint: sora weights --help"),
        (["weights", "path", "tinny"], "unknown model 'tinny'\nhint: did you mean tiny?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage(stub: StubApp, capsys: Capture, words: list[str], message: str) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_stdout_of_a_terminal_takes_no_file(stub: StubApp) -> None:
    stderr = io.StringIO()
    assert main(["generate", "p", "-o", "-"], output=Output(stdout=Terminal(), stderr=stderr)) == 2
    assert "error: stdout is a terminal" in stderr.getvalue()


def test_streamed_output_prints_no_path(stub: StubApp, capsys: Capture) -> None:
    assert main(["generate", "p", "-o", "-"]) == 0
    assert stub.arguments["target"].output == "-"
    assert capsys.readouterr().out == ""


def test_dash_reads_the_prompt(
    stub: StubApp, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a red ball\n"))
    assert main(["generate", "-"]) == 0
    assert stub.request.prompt == "a red ball"
    bad = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\x00"), encoding="utf-8")
    for stdin, message in ((io.StringIO(""), "empty"), (bad, "not text"), (None, "closed")):
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(["generate", "-"]) == 2
        assert message in capsys.readouterr().err


def test_default_model(
    stub: StubApp, own_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def asked(*words: str) -> str | None:
        assert main(["generate", "p", *words]) == 0
        return stub.request.model

    monkeypatch.setattr("sys.platform", "linux")
    settings = own_folders / "config" / "sora" / "config.toml"
    settings.parent.mkdir(parents=True)
    assert asked() == "tiny"
    settings.write_text('model = "wan2.2-ti2v-5b"\n')
    assert asked() == "wan2.2-ti2v-5b"
    monkeypatch.setenv("SORA_MODEL", "other")
    assert asked() == "other"
    assert asked("-m", "third") == "third"
    monkeypatch.delenv("SORA_MODEL")
    for text, message in (
        ('modle = "tiny"', "unknown key 'modle'"),
        ("model = 3", "model in"),
        ("model =", "not valid TOML"),
    ):
        settings.write_text(text)
        assert main(["generate", "p"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert str(settings) in error


def test_info_prints_the_recipe(stub: StubApp, capsys: Capture) -> None:
    assert main(["info", "ball.mp4"]) == 0
    expected = "schema: 1\nsize: 160, 96\ntimings:\n  denoise: 1.5\nexpand: -\n"
    assert capsys.readouterr().out == expected
    assert main(["info", "ball.mp4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == [160, 96]


def test_expand_prints_the_long_prompt(stub: StubApp, capsys: Capture) -> None:
    assert main(["expand", "a ball"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "a ball, in long\n"
    assert captured.err == "note: said in full\n"


def test_weights_list_and_path(capsys: Capture) -> None:
    assert main(["weights", "list"]) == 0
    captured = capsys.readouterr()
    names = [line.split()[0] for line in captured.out.splitlines()]
    assert names[:2] == ["NAME", "tiny"] and "wan2.2-ti2v-5b" in names
    assert main(["weights", "list", "--json"]) == 0
    models: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["models"]
    assert {row["name"]: row for row in models}["wan2.2-ti2v-5b"]["size"] == [1280, 704]
    assert main(["weights", "path", "wan2.2-ti2v-5b"]) == ExitCode.WEIGHTS
    assert "hint: sora weights pull wan2.2-ti2v-5b" in capsys.readouterr().err
    assert main(["weights", "path", "tiny"]) == 0
    assert Path(capsys.readouterr().out.strip(), "model_index.json").is_file()


def test_doctor(capsys: Capture) -> None:
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["device"] == "cpu" and report["dtype"] in ("float32", "bfloat16")
    assert report["reason"].startswith(f"cpu was asked for; {report['dtype']}, ")
    assert report["ffmpeg"]["version"]
    assert report["models"] == ["tiny"]
    assert report["memory"]["total"] is None or report["memory"]["total"] > 2**28
    assert main(["doctor", "--device", "cpu", "--dtype", "bf16"]) == 0
    assert "dtype: bfloat16" in capsys.readouterr().out
    assert main(["doctor", "--device", "tpu"]) == 2
    if not torch.cuda.is_available():
        assert main(["doctor", "--device", "cuda"]) == 4


def test_help(capsys: Capture) -> None:
    for words in ([], ["--help"], ["generate", "--help"]):
        assert main(words) == 0
        captured = capsys.readouterr()
        assert captured.out.startswith("Usage: sora")
        assert captured.err == ""


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sora 0.")


def test_reference_is_current() -> None:
    written = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert written == reference.render(), "run `make docs`"
