"""Falls and recoveries: whatever stops a run, `sora resume` gives the same bits.

The full matrix is docs/reference/reliability.md; what is marked slow is run by `make test-all`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sora_cli.cli.main import main
from sora_cli.cli.output import Output
from sora_cli.media import recipe as recipes
from sora_cli.pipeline.events import Event
from sora_cli.runs import folders
from sora_cli.runs.run import take_up
from tests.tiny_runs import EAGER, PROMPT, SMALL, SORA, frames_of, generate, moving_folder, names_in

Capture = pytest.CaptureFixture[str]
PHASES = ("load", "encode", "denoise", "decode", "write")
SIGNALS = ("SIGKILL", "SIGINT", "SIGTERM")
# Long enough for two canvases, and for UniPC's history to matter.
LONG = ("--size", "64x64", "--num-frames", "41", "--no-expand", "--seed", "1")
WATCHED = ("--size", "64x64", "--num-frames", "17", "--steps", "6", "--no-expand", "--seed", "1")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state is kept, as a slow model's are."""
    monkeypatch.setattr("sora_cli.runs.run.KEEP_SECONDS", 0)
    monkeypatch.setattr("sora_cli.runs.run.KEEP_SHARE", 1e9)


class Stopping(Output):
    """Sends this process a signal at the n-th event of a phase."""

    def __init__(self, phase: str, count: int = 1, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.phase, self.count, self.number = phase, count, number

    def observe(self, event: Event) -> None:
        super().observe(event)
        if event.phase == self.phase:
            self.count -= 1
            if self.count == 0:
                os.kill(os.getpid(), self.number)


class Snapshots(Output):
    """Copies the state folder at every event: what a power cut would leave at that moment."""

    def __init__(self, state: Path, copies: Path) -> None:
        super().__init__()
        self.state, self.copies, self.names = state, copies, []

    def observe(self, event: Event) -> None:
        super().observe(event)
        if event.message is None and (self.state / "sora" / "runs").is_dir():
            name = f"{len(self.names):03d}-{event.phase}-{event.step}"
            shutil.copytree(self.state, self.copies / name)
            self.names.append(name)


def sample(names: list[str], count: int) -> list[str]:
    return sorted(random.Random(7).sample(names, count))


def resumed_at(name: str, copies: Path, state: Path) -> bytes:
    """The frames that `sora resume` makes from a snapshot."""
    shutil.rmtree(state)
    shutil.copytree(copies / name, state)
    path = Path(f"{name}.mkv")
    assert main(["resume", "-o", str(path), "--progress", "none"]) == 0
    assert folders.stored() == []
    frames = frames_of(path).tobytes()
    path.unlink()
    return frames


# ---------------------------------------------------------------- every step, every canvas


@pytest.mark.parametrize(
    ("sampler", "count"),
    [
        ("unipc", 2),
        *(
            pytest.param(name, 0, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])
            for name in ("euler", "unipc", "renoise")
        ),
    ],
)
def test_a_power_cut_at_any_moment(
    here: Path, own_folders: Path, tmp_path: Path, eager: None, sampler: str, count: int
) -> None:
    """After every step and every decoded latent of two canvases (count: of a sample of them)."""
    state = own_folders / "state"
    words = ["generate", PROMPT, *LONG, "--steps", "4", "--sampler", sampler, "-o", "whole.mkv"]
    out = Snapshots(state, tmp_path / "copies")
    assert main([*words, "--progress", "none"], output=out) == 0
    whole = frames_of(here / "whole.mkv").tobytes()
    (here / "whole.mkv").unlink()  # else each of its moments finds its work done
    state.mkdir(parents=True, exist_ok=True)
    made = [name for name in out.names if "-denoise-" in name or "-decode-" in name]
    assert sum("-denoise-4" in name for name in made) == 2, "two canvases"
    chosen = sample(made, count) if count else out.names
    for name in chosen:
        assert resumed_at(name, tmp_path / "copies", state) == whole, name


@pytest.mark.parametrize(
    "verb",
    ["edit", *(pytest.param(v, marks=pytest.mark.slow) for v in ("extend", "loop", "connect"))],
)
def test_verbs_that_work_on_clips_are_resumed(here: Path, verb: str) -> None:
    moving_folder(here / "clip")
    clips = ["clip", "clip"] if verb == "connect" else ["clip"]
    words = [verb, *clips, "a ball", "--steps", "4", "--no-expand", "--seed", "5"]
    words += {"edit": ["--strength", "0.95"], "extend": ["--by", "1s"]}.get(verb, ["--over", "1s"])
    assert main([*words, "-o", "whole.mkv"]) == 0
    for phase, count in (("denoise", 3), ("decode", 2)):
        assert main([*words, "-o", "again.mkv", "--force"], output=Stopping(phase, count)) == 130
        assert main(["resume"]) == 0
        assert np.array_equal(frames_of(here / "again.mkv"), frames_of(here / "whole.mkv"))
        (here / "again.mkv").unlink()


def test_several_videos_go_on_with_the_one_that_was_stopped(here: Path, capsys: Capture) -> None:
    words = ["generate", PROMPT, *SMALL, "--num-videos", "2", "--seed", "4", "-o", "a.mkv"]
    assert main([*words, "--progress", "none"], output=Stopping("denoise", 5)) == 130
    first = capsys.readouterr().out
    assert first == "a-4.mkv\n"
    assert main(["resume", "--progress", "none"]) == 0
    # What was made before is named again, so that a script sees all of it.
    assert capsys.readouterr().out == "a-4.mkv\na-5.mkv\n"
    assert [recipes.read(here / f"a-{seed}.mkv")["seed"] for seed in (4, 5)] == [4, 5]
    assert names_in(here) == ["a-4.mkv", "a-5.mkv"]


def test_a_name_and_a_seed_that_were_chosen_stay(here: Path, capsys: Capture) -> None:
    """Without -o and --seed both are decided at the beginning; elsewhere means the same file."""
    words = ["generate", PROMPT, *SMALL, "--progress", "none"]
    assert main(words, output=Stopping("decode")) == 130
    seed = int(capsys.readouterr().err.splitlines()[0].removeprefix("note: seed "))
    os.chdir(here.parent)
    assert main(["resume"]) == 0
    made = here / f"a-red-ball-bounces-on-the-snow-at-sunset-{seed}.mp4"
    assert capsys.readouterr().out == f"{made}\n"
    assert recipes.read(made)["seed"] == seed


@pytest.mark.slow
def test_a_stream_is_resumed_as_a_stream(here: Path) -> None:
    words = [sys.executable, "-c", SORA]
    made = subprocess.run([*words, "generate", PROMPT, *SMALL, "--seed", "1", "-o", "-"],
                          capture_output=True, check=True)  # fmt: skip
    assert main(["generate", PROMPT, *SMALL, "--seed", "1", "-o", "a.mkv"],
                output=Stopping("decode")) == 130  # fmt: skip
    folder = folders.find(None).folder
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps({**recipe, "outputs": ["-"]}))
    again = subprocess.run([*words, "resume"], capture_output=True, check=True)
    assert np.array_equal(frames_of(again.stdout), frames_of(made.stdout))


# ---------------------------------------------------------------- signals, through the script


def stopped(phase: str, name: str, *words: str) -> tuple[int, str]:
    """The script's exit code and last words, when a signal comes at a phase's first news."""
    command = [sys.executable, "-c", EAGER + SORA, "generate", PROMPT, *WATCHED, *words]
    process = subprocess.Popen(
        [*command, "--progress", "json"], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if json.loads(line).get("phase") == phase:
            process.send_signal(getattr(signal, name))
            break
    lines += process.stderr
    return process.wait(timeout=120), lines[-1].decode()


@pytest.mark.parametrize(
    ("phase", "name"),
    [
        ("write", "SIGKILL"),
        *(
            pytest.param(phase, name, marks=pytest.mark.slow)
            for phase in PHASES
            for name in SIGNALS
        ),
    ],
)
def test_a_signal_in_any_phase(here: Path, phase: str, name: str) -> None:
    code, last = stopped(phase, name, "-o", "a.mkv")
    expected = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}[name]
    assert code == expected, last
    (found,) = folders.stored()
    assert found.state == ("killed" if name == "SIGKILL" else "interrupted")
    assert not (here / "a.mkv").exists()
    if name != "SIGKILL":
        assert names_in(here) == []
    assert main(["resume", "--progress", "none"]) == 0
    assert names_in(here) == ["a.mkv"], "what the killed one left is cleared away"
    assert folders.stored() == []
    assert main(["generate", PROMPT, *WATCHED, "-o", "whole.mkv"]) == 0
    assert np.array_equal(frames_of(here / "a.mkv"), frames_of(here / "whole.mkv"))


# ---------------------------------------------------------------- damage, and what has changed


@pytest.mark.parametrize(
    ("which", "damage"),
    [
        ("newest", "flipped"),
        *(
            pytest.param(which, damage, marks=pytest.mark.slow)
            for which in ("newest", "all")
            for damage in ("flipped", "truncated", "empty", "gone")
        ),
    ],
)
def test_damaged_states_fall_back(
    here: Path, eager: None, capsys: Capture, damage: str, which: str
) -> None:
    words = [PROMPT, "--size", "64x64", "--num-frames", "5", "--steps", "4", "--no-expand"]
    words = ["generate", *words, "--seed", "1", "--sampler", "unipc"]
    assert main([*words, "-o", "whole.mkv"]) == 0
    assert main([*words, "-o", "a.mkv"], output=Stopping("denoise", 4)) == 130
    states = sorted(folders.find(None).folder.glob("latents-*"))
    assert [path.name[-16:-12] for path in states] == ["0002", "0003"]
    for path in states if which == "all" else states[-1:]:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes({"flipped": content, "empty": b""}.get(damage, content[:-9]))
    capsys.readouterr()
    assert main(["resume", "--progress", "none"]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == (0 if damage == "gone" else 2 if which == "all" else 1)
    assert np.array_equal(frames_of(here / "a.mkv"), frames_of(here / "whole.mkv"))


def test_a_changed_input_is_one_clear_error(here: Path, capsys: Capture) -> None:
    Image.new("RGB", (64, 64), (200, 30, 30)).save(here / "red.png")
    words = ["animate", "red.png", "it moves", *SMALL, "-o", "a.mp4", "--progress", "none"]
    assert main(words, output=Stopping("denoise")) == 130
    kept = (here / "red.png").read_bytes()
    Image.new("RGB", (64, 64), (30, 30, 200)).save(here / "red.png")
    capsys.readouterr()
    assert main(["resume"]) == 2
    told, hint = capsys.readouterr().err.splitlines()
    assert told.startswith(f"error: {here}/red.png (image) has changed since the run ")
    assert hint == "hint: put the old one back, or begin anew"
    (here / "red.png").unlink()
    assert main(["resume"]) == 2
    assert "No such file" in capsys.readouterr().err
    (here / "red.png").write_bytes(kept)
    assert main(["resume"]) == 0


def test_latents_beside_a_clip_are_an_input_of_its_run(here: Path, capsys: Capture) -> None:
    """Without them the clip's end would be encoded again: other bits, and nobody would know."""
    assert generate("-o", "a.mkv", "--keep-latents", "--progress", "none") == 0
    words = ["extend", "a.mkv", "on", "--by", "1s", "--steps", "2", "--no-expand", "--seed", "1"]
    words += ["--progress", "none"]
    assert main([*words, "-o", "whole.mkv"]) == 0
    again = [*words, "--keep-latents", "-o", "b.mkv"]
    assert main(again, output=Stopping("denoise")) == 130
    beside = here / "a.mkv.latents.safetensors"
    beside.rename(here / "away")
    capsys.readouterr()
    assert main(["resume"]) == 2
    assert f"needs {beside} (latents): No such file" in capsys.readouterr().err
    (here / "away").rename(beside)
    assert main(["resume"]) == 0
    assert (frames_of(here / "b.mkv") == frames_of(here / "whole.mkv")).all()
    assert (here / "b.mkv.latents.safetensors").exists(), "as the command asked"


@pytest.mark.parametrize("named", ["a.png", "clip"])
def test_what_a_storyboard_names_must_be_the_same(here: Path, capsys: Capture, named: str) -> None:
    """Its own text is the same, but not the picture or the clip in it."""
    moving_folder(here / "clip")
    Image.new("RGB", (64, 64), (200, 30, 30)).save(here / "a.png")
    picture = '[[shot]]\nimage = "a.png"\nprompt = "it moves"\nduration = "0.5s"\n'
    (here / "board.toml").write_text(f'size = "64x64"\n{picture}\n[[shot]]\nclip = "clip"\n')
    words = ["storyboard", "board.toml", "--steps", "1", "--no-expand", "--seed", "1"]
    words += ["-o", "a.mkv", "--progress", "none"]
    assert main(words, output=Stopping("denoise")) == 130
    path = here / (named if named == "a.png" else "clip/000002.png")
    kept = path.read_bytes()
    Image.new("RGB", (64, 64), (30, 30, 200)).save(path)
    capsys.readouterr()
    assert main(["resume"]) == 2
    shot = "shot 1 (line 2)" if named == "a.png" else "shot 2 (line 7)"
    told = capsys.readouterr().err
    assert told.startswith(f"error: {here / named} ({shot}: {named}) has changed since the run ")
    path.write_bytes(kept)
    assert main(["resume"]) == 0


def test_a_dtype_that_was_chosen_stays(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine chooses by itself may be another one after an update."""
    words = ["generate", PROMPT, *SMALL, "--seed", "1", "--progress", "none"]
    assert main([*words, "--dtype", "bfloat16", "-o", "whole.mkv"]) == 0
    assert main([*words, "-o", "a.mkv"], output=Stopping("denoise")) == 130
    folder = folders.find(None).folder
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["facts"]["dtype"] = "bfloat16"
    (folder / "recipe.json").write_text(json.dumps(recipe))
    for state in folder.glob("latents-*"):
        state.unlink()
    assert main(["resume", "--progress", "none"]) == 0
    assert recipes.read(here / "a.mkv")["dtype"] == "bfloat16"
    assert np.array_equal(frames_of(here / "a.mkv"), frames_of(here / "whole.mkv"))


def test_another_version_is_refused_unless_forced(here: Path, capsys: Capture) -> None:
    words = ["generate", PROMPT, *SMALL, "--seed", "1", "-o", "b.mp4", "--progress", "none"]
    assert main(words, output=Stopping("denoise")) == 130
    folder = folders.find(None).folder
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["facts"] |= {"version": "0.0.1", "threads": 77}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    capsys.readouterr()
    assert main(["resume"]) == 2
    told, hint = capsys.readouterr().err.splitlines()[-2:]
    assert "was begun with another version (0.0.1, now " in told
    assert hint.endswith(f"sora resume {folder.name} --force")
    assert main(["resume", "--force", "--progress", "none"]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert [note.split("(")[0] for note in notes] == [
        "note: other than when the run began: version ",
        "note: other than when the run began: threads ",
    ]


@pytest.mark.slow
def test_an_output_that_appeared_is_not_overwritten(here: Path, capsys: Capture) -> None:
    words = ["generate", PROMPT, *SMALL, "--seed", "1", "-o", "a.mp4", "--progress", "none"]
    assert main(words, output=Stopping("decode")) == 130
    (here / "a.mp4").write_text("precious")
    assert main(["resume"]) == 2
    assert "a.mp4 already exists" in capsys.readouterr().err
    assert (here / "a.mp4").read_text() == "precious"
    assert main(["resume", "-o", "b.mp4"]) == 0
    assert (here / "a.mp4").read_text() == "precious"


def test_a_run_that_ended_before_it_could_say_so(here: Path, capsys: Capture) -> None:
    """Killed between the moment the output is in its place and the removal of the run."""
    assert generate("-o", "a.mp4", "--keep-run", "--keep-latents") == 0
    (here / "a.mp4.latents.safetensors").unlink()
    folder = folders.stored()[0].folder
    status = json.loads((folder / "status.json").read_text())
    del status["made"]
    (folder / "status.json").write_text(json.dumps({**status, "state": "running"}))
    before = (here / "a.mp4").stat()
    capsys.readouterr()
    assert main(["resume", "--progress", "none"]) == 0
    said = capsys.readouterr()
    assert said.out == "a.mp4\n" and "its latents were not kept" in said.err
    assert (here / "a.mp4").stat().st_mtime_ns == before.st_mtime_ns


def test_two_processes_cannot_resume_one_run(here: Path, capsys: Capture) -> None:
    words = ["generate", PROMPT, *SMALL, "--seed", "1", "-o", "a.mp4", "--progress", "none"]
    assert main(words, output=Stopping("decode")) == 130
    found = folders.find(None)
    held = take_up(found)
    assert main(["resume", found.id]) == 2
    assert "is still at work" in capsys.readouterr().err
    held.release()
    assert main(["resume", found.id]) == 0
