"""What goes wrong, one by one: a clear line, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from PIL import Image

from sora_cli.cli.main import main
from sora_cli.cli.output import Output
from sora_cli.media import recipe as recipes
from sora_cli.pipeline.events import Event
from sora_cli.runs import folders
from tests.tiny_runs import PROMPT, SMALL, copy_of_tiny, generate, names_in, script

Capture = pytest.CaptureFixture[str]
PHASES = ("load", "encode", "denoise", "decode", "write")
SIGNALS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, and another for temporary files, where nothing of ours may stay."""
    folder, scratch = tmp_path / "here", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    yield folder
    assert [name for name in names_in(scratch) if "sora" in name] == []


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("--size 0x0", "the size 0x0 cannot be made: a side has 1 to 100000 pixels", "--size"),
        ("--size 9000x9000", "too large: tiny makes at most 4,194,304 pixels", "--size"),
        ("--duration 0", "--duration must be a number above 0, not 0", "--duration"),
        ("--duration -3s", "--duration must be a number above 0, not -3", "--duration"),
        ("--duration 1000h", "--duration 1000h is too long: tiny", "the most is --num-frames"),
        ("--num-frames 0", "--num-frames must be a whole number of at least 1", "--num-frames"),
        ("--steps 0", "--steps must be a whole number from 1 to 1000, not 0", "--steps"),
        ("--guidance-scale nan", "--guidance-scale must be a number", "--guidance-scale"),
        ("--seed -1", "--seed must be a whole number from 0", "--seed"),
        ("-m tinny", "unknown model 'tinny'", "did you mean tiny?"),
        ("-m .", ". has no model_index.json", "name a diffusers folder"),
        ("-o a.avi", "the suffix .avi of a.avi is unknown; known are .mp4", "try -o a.mp4"),
        ("-o there.mp4/", "there.mp4/ is a file, not a folder", "try -o"),
        ("-o none/a.mp4", "cannot write none/a.mp4: there is no folder", "mkdir -p"),
        ("-o there.mp4", "there.mp4 already exists", "add --force to replace it"),
        ("-o letters/", "the folder letters/ holds other files", "use a new folder"),
        ("-o . --num-videos 2", ". is no name for several outputs", "-o clip.mp4"),
        ("-o - --num-videos 2", "2 files do not fit on stdout", "-o clip.mp4"),
    ],
)
def test_bad_input(here: Path, capsys: Capture, words: str, message: str, hint: str) -> None:
    (here / "there.mp4").write_text("precious")
    (here / "letters").mkdir()
    (here / "letters" / "letter.txt").write_text("precious")
    assert main(["generate", PROMPT, *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    told, hinted = captured.err.splitlines()
    assert told.startswith("error: ") and message in told
    assert hinted.startswith("hint: ") and hint in hinted
    assert names_in(here) == ["letters", "there.mp4"]
    assert (here / "there.mp4").read_text() == "precious"


def test_devices_that_are_not_there(here: Path, capsys: Capture) -> None:
    assert generate("-o", "a.mp4", "--device", "tpu") == 2
    assert "error: unknown device 'tpu'\nhint: use cpu, " in capsys.readouterr().err
    assert generate("-o", "a.mp4", "--device", "cuda:77") == 4
    assert "hint: " in capsys.readouterr().err
    assert main(["image", PROMPT, "-o", "a"]) == 2
    assert "error: a has no suffix; known are .png" in capsys.readouterr().err
    assert names_in(here) == []


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
@pytest.mark.parametrize("verb", ["generate", "image"])
def test_empty_prompt(here: Path, capsys: Capture, verb: str, prompt: str) -> None:
    assert main([verb, prompt]) == 2
    assert capsys.readouterr().err.startswith("error: the prompt is empty\nhint: sora generate ")


def test_bad_pictures(here: Path, capsys: Capture) -> None:
    (here / "text.png").write_text("not a picture")
    for name, message in (
        ("none.png", "there is no picture none.png"),
        ("text.png", "cannot read the picture text.png"),
    ):
        assert main(["animate", name, "it moves", *SMALL, "-o", "a.mp4"]) == 2
        assert f"error: {message}" in capsys.readouterr().err
    assert names_in(here) == ["text.png"]


def test_what_is_not_legal_is_rounded_and_said(here: Path, capsys: Capture) -> None:
    assert generate("--size", "130x75", "-o", "a.mp4") == 0
    note = "note: size 130x75 becomes 128x80: tiny's sides are multiples of 16\n"
    assert note in capsys.readouterr().err
    assert recipes.read(here / "a.mp4")["size"] == [128, 80]


def test_an_existing_output_is_replaced_only_by_force(here: Path, capsys: Capture) -> None:
    (here / "a.mp4").write_text("precious")
    assert generate("-o", "a.mp4") == 2
    assert (here / "a.mp4").read_text() == "precious"
    assert generate("-o", "a.mp4", "--force") == 0
    assert recipes.read(here / "a.mp4")["seed"] == 1


def test_unwritable_output(here: Path, capsys: Capture) -> None:
    """Root may write anywhere, so a folder that takes no files stands in: /proc."""
    (here / "locked").mkdir(mode=0o500)
    target = "/proc/a.mp4" if os.access(here / "locked", os.W_OK) else "locked/a.mp4"
    assert generate("-o", target) == 1
    told, hint = capsys.readouterr().err.splitlines()
    assert told.startswith(f"error: could not write {target}: ")
    assert hint.startswith("hint: `sora doctor` shows the space left")


# ---------------------------------------------------------------- damaged weights


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
def test_damaged_weights(
    here: Path, tmp_path: Path, capsys: Capture, part: str, damage: str
) -> None:
    model = copy_of_tiny(tmp_path / "model")
    file = next((model / part).glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    assert generate("-m", model, "-o", "a.mp4") == 3
    told = [line for line in capsys.readouterr().err.splitlines() if line != "load"]
    what = "is missing" if damage == "gone" else "is damaged: its SHA-256 is not the published one"
    assert told == [f"error: {file} {what}", "hint: install again: pip install --force-reinstall "
                    "sora-cli"]  # fmt: skip
    assert names_in(here) == []


def test_truncated_weights_without_checksums(here: Path, tmp_path: Path, capsys: Capture) -> None:
    model = copy_of_tiny(tmp_path / "model")
    (model / "SHA256SUMS").unlink()
    file = next((model / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100_000])
    assert generate("-m", model, "-o", "a.mp4") == 3
    assert f"error: {file} is damaged or not a safetensors file" in capsys.readouterr().err
    (model / "vae" / "config.json").write_text("{")
    assert generate("-m", model, "-o", "a.mp4") == 3
    assert "config.json cannot be read" in capsys.readouterr().err
    assert names_in(here) == []


# ---------------------------------------------------------------- disks and pipes


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_full_disk(here: Path, name: str) -> None:
    """RLIMIT_FSIZE stands in for a disk that fills."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    verb = "image" if name.endswith("png") else "generate"
    words = [verb, PROMPT, "--size", "64x64", "--steps", "1", "--no-expand", "-o", name]
    process = script(*words, "--progress", "none", cwd=here, preexec_fn=limit)
    printed, told = process.communicate(timeout=120)
    assert (process.returncode, printed) == (1, b"")
    lines = told.decode().splitlines()
    *notes, error, hint = lines
    assert all(line.startswith("note: ") for line in notes) and hint.startswith("hint: ")
    assert error.startswith(f"error: could not write {name}: ")
    assert error.endswith("File too large")
    assert names_in(here) == []


def test_a_cache_that_cannot_be_written_does_no_harm(here: Path, own_folders: Path) -> None:
    own_folders.mkdir(parents=True, exist_ok=True)
    (own_folders / "cache").write_text("a file where the folder should be")
    assert generate("-o", "a.mp4") == 0


def test_a_reader_that_leaves(here: Path) -> None:
    process = script("generate", PROMPT, *SMALL, "--progress", "none", "-o", "-", cwd=here)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    told = process.stderr.read().decode()
    assert process.wait(timeout=120) == 1
    # No error: nobody asked for more. What is kept is said all the same.
    said = [line.split(" ")[:3] for line in told.splitlines()]
    assert [words[:2] for words in said[:1]] == [["note:", "seed"]]
    assert said[1:] == [["note:", "the", "work"]]
    assert names_in(here) == []


def test_a_closed_stdout_is_said_before_the_work(here: Path) -> None:
    from tests.tiny_runs import SCRIPT

    command = f'exec "{SCRIPT}" generate p --size 64x64 -o - >&-'
    done = subprocess.run(["sh", "-c", command], cwd=here, capture_output=True, text=True)
    expected = "error: standard output is closed\nhint: to write a file: -o clip.mp4\n"
    assert (done.returncode, done.stderr) == (1, expected)


# ---------------------------------------------------------------- Ctrl-C and SIGTERM


class Interrupting(Output):
    """Sends this process a signal when a phase has news."""

    def __init__(self, phase: str, number: signal.Signals) -> None:
        super().__init__()
        self.phase, self.number, self.sent = phase, number, False

    def observe(self, event: Event) -> None:
        super().observe(event)
        if event.phase == self.phase and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase(
    here: Path, capsys: Capture, phase: str, number: signal.Signals
) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    code, word = SIGNALS[number]
    out = Interrupting(phase, number)
    words = ["generate", PROMPT, *SMALL, "--seed", "1", "-o", "a.webp", "--progress", "none"]
    assert main(words, output=out) == code
    assert out.sent
    captured, (run,) = capsys.readouterr(), folders.stored()
    kept = f"note: the work so far is kept; to finish it: sora resume {run.id}\n"
    assert (captured.out, captured.err) == ("", f"{kept}error: {word}\n")
    assert names_in(here) == []
    assert [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_a_library_swallows_is_not_lost(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """As imports do now and then: the exception disappears, or turns into another one."""
    from sora_cli.weights import store

    code, word = SIGNALS[number]

    def swallows(installed: object) -> int:
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        except BaseException:
            return 0
        return 1

    monkeypatch.setattr(store, "verify", swallows)
    assert generate("-o", "a.mp4", "--progress", "none") == code
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {word}"

    def turns(installed: object) -> int:
        swallows(installed)
        raise ImportError("half a module")

    monkeypatch.setattr(store, "verify", turns)
    assert generate("-o", "a.mp4", "--progress", "none") == code
    assert capsys.readouterr().err == f"error: {word}\n"
    assert names_in(here) == []


def interrupted(here: Path, phase: str, number: signal.Signals) -> tuple[int, list[dict]]:
    """The script's exit code and events, when the signal is sent at a phase's first news."""
    words = ["generate", PROMPT, "--size", "160x96", "--num-frames", "49", "--steps", "4"]
    words += ["--no-expand", "--progress", "json", "--seed", "1", "-o", "a.mp4"]
    process = script(*words, cwd=here)
    assert process.stderr is not None and process.stdout is not None
    events = []
    for line in process.stderr:
        events.append(json.loads(line))
        if events[-1].get("phase") == phase and process.poll() is None:
            process.send_signal(number)
            break
    events += [json.loads(line) for line in process.stderr]
    assert process.stdout.read() == b""
    return process.wait(timeout=120), events


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("load", signal.SIGINT),
        ("decode", signal.SIGTERM),
        *(
            pytest.param(phase, number, marks=pytest.mark.slow)
            for phase in PHASES[:-1]
            for number in SIGNALS
        ),
    ],
)
def test_the_script_answers_signals(here: Path, phase: str, number: signal.Signals) -> None:
    code, word = SIGNALS[number]
    returned, events = interrupted(here, phase, number)
    assert returned == code
    error = {"event": "error", "message": word, "hint": None, "exit_code": code}
    assert events[-1] == error
    assert events[-2]["message"].endswith(f"sora resume {folders.stored()[0].id}")
    assert names_in(here) == []


def test_what_shells_ignore_stays_ignored(here: Path, capsys: Capture) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and `sh -c "… &"` do
    try:
        words = ["generate", PROMPT, *SMALL, "--seed", "1", "-o", "a.mp4"]
        assert main(words, output=Interrupting("denoise", signal.SIGINT)) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert names_in(here) == ["a.mp4"]


def test_animate_is_interrupted_cleanly_too(here: Path, tmp_path: Path, capsys: Capture) -> None:
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "red.png")
    words = ["animate", str(tmp_path / "red.png"), *SMALL, "-o", "frames/", "--progress", "none"]
    assert main(words, output=Interrupting("decode", signal.SIGTERM)) == 143
    assert names_in(here) == []
