"""`sora batch`: each item on its own, networks loaded once, nothing made twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sora_cli import batch
from sora_cli.cli.main import main
from sora_cli.cli.output import Output
from sora_cli.media import recipe as recipes
from sora_cli.pipeline.events import Event
from sora_cli.runs import folders
from sora_cli.weights import load
from tests.tiny_runs import frames_of, names_in, style

Capture = pytest.CaptureFixture[str]
SORA = "from sora_cli.cli.main import run; run()"
BALL = {"prompt": "a red ball", "size": "64x64", "num-frames": 5, "steps": 2, "expand": False}


def write(items: list[Any], name: str = "items.jsonl") -> str:
    lines = (item if isinstance(item, str) else json.dumps(item) for item in items)
    Path(name).write_text("\n".join(lines) + "\n")
    return name


def run(capsys: Capture, *words: str, output: Output | None = None) -> tuple[int, list, list[str]]:
    """The exit code, the objects on stdout, and the lines on stderr."""
    capsys.readouterr()
    code = main(["batch", *words, "--progress", "none"], output=output)
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err.splitlines()


def test_items_are_made_and_failures_do_not_stop_the_rest(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, dit = [], load.dit
    monkeypatch.setattr(load, "dit", lambda *a, **k: loaded.append(a) or dit(*a, **k))
    name = write(
        [
            {**BALL, "seed": 1, "output": "a.mkv"},
            "not json",
            {**BALL, "seed": 2, "num_frames": 9},
            "",
            {"prompt": "x", "size": "0x0"},
            {"verb": "image", "prompt": "a cube", "size": "64x64", "steps": 1, "expand": False},
            {**BALL, "seed": 5, "num-videos": 2, "output": "two.mkv"},
        ]
    )
    code, told, err = run(capsys, name)
    assert code == 1
    assert err[-1] == "error: 6 items: 4 made, 2 failed"
    assert [item["item"] for item in told] == [1, 2, 3, 4, 5, 6]
    assert [item.get("exit_code") for item in told] == [None, 2, None, 2, None, None]
    assert told[5]["paths"] == ["two-5.mkv", "two-6.mkv"]
    assert told[2]["path"].startswith("a-red-ball-") and told[4]["path"].endswith(".png")
    assert len(names_in(here)) == 1 + 5
    assert len(loaded) == 1, "the transformer is loaded once"
    # The same as one by one.
    words = ["--size", "64x64", "--num-frames", "5", "--steps", "2", "--no-expand", "--seed", "1"]
    assert main(["generate", "a red ball", *words, "-o", "one.mkv"]) == 0
    assert np.array_equal(frames_of(here / "one.mkv"), frames_of(here / "a.mkv"))
    # What is there already is not made again, whatever became of the other lines.
    times = {path: path.stat().st_mtime_ns for path in here.iterdir()}
    code, again, err = run(capsys, name, "--resume")
    assert (code, err[-1]) == (1, "error: 6 items: 4 skipped, 2 failed")
    assert again == [t if "error" in t else {**t, "skipped": True} for t in told]
    assert {path: path.stat().st_mtime_ns for path in here.iterdir()} == times


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([1], "item 1 cannot be read: it is no object"),
        ("{", "item 1 cannot be read: "),
        ('{"prompt": NaN}', "item 1 cannot be read: NaN is not JSON"),
        ("[" * 100_000, "item 1 cannot be read: "),
        ('{"prompt": "' + "x" * batch.MAX_LINE + '"}', "item 1 is longer than 1048576 bytes"),
        ({"prompt": 5}, "prompt cannot be 5"),
        ({"prompt": "-"}, "prompt cannot be '-'"),
        ({"prompt": ["a"]}, "prompt cannot be ['a']"),
        ({"prompt": "x", "output": "-"}, "an item's output is a file or a folder/, not stdout"),
        ({"prompt": "x", "output": 5}, "an item's output is a file"),
        ({"prompt": "x", "frobnicate": 1}, "generate has no option 'frobnicate'"),
        ({"prompt": "x", "json": True}, "generate has no option 'json'"),
        ({"prompt": "x", "help": True}, "generate has no option 'help'"),
        ({"prompt": "x", "expand": "no"}, "expand is true or false, not 'no'"),
        ({"prompt": "x", "steps": "many"}, "invalid value for '--steps'"),
        ({"prompt": "x", "steps": 1e400}, "item 1 cannot be read: "),
        ({"prompt": "x", "verb": "weights"}, "'weights' is no verb"),
        ({"prompt": "x", "verb": ["generate"]}, "item 1 cannot be read: its verb is no text"),
        ({"steps": 5}, "missing argument 'PROMPT'"),
        ({"prompt": "--help", "size": "0x0"}, "the size 0x0 cannot be made"),
        ({"prompt": "x", "output": "none/a.mp4"}, "cannot write none/a.mp4: there is no folder"),
    ],
)
def test_hostile_lines_are_errors_of_their_items(
    here: Path, capsys: Capture, item: Any, message: str
) -> None:
    text = item if isinstance(item, str) else json.dumps(item).replace("Infinity", "Infinity")
    code, told, err = run(capsys, write([text]))
    assert code == 1
    (only,) = told
    assert only["item"] == 1 and only["exit_code"] == 2
    assert message in only["error"]
    assert err == ["error: 1 item: 1 failed"]
    assert names_in(here) == ["items.jsonl"]


@given(content=st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_items_or_problems(content: bytes) -> None:
    items = list(batch.read_items(BytesIO(content)))
    lines = [line for line in content.split(b"\n") if line.strip()]
    assert [item.number for item in items] == list(range(1, len(lines) + 1))


def test_items_that_say_the_same_are_told_apart() -> None:
    line = json.dumps(BALL).encode() + b"\n"
    shuffled = json.dumps(dict(reversed(BALL.items()))).replace("-", "_").encode() + b"\n"
    first, second, third = batch.read_items(BytesIO(line + shuffled + line))
    again = next(batch.read_items(BytesIO(b"\n \n" + shuffled)))
    assert first.id == again.id and len({first.id, second.id, third.id}) == 3


def test_items_come_through_a_pipe(here: Path) -> None:
    """And those after one that is being made are read only then."""
    process = subprocess.Popen(
        [sys.executable, "-c", SORA, "batch", "-", "-q"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({**BALL, "output": "a.mkv"}) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline()) == {"item": 1, "path": "a.mkv"}
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def test_a_file_that_is_not_there(here: Path, capsys: Capture) -> None:
    assert main(["batch", "none.jsonl"]) == 2
    assert "error: cannot read none.jsonl: No such file" in capsys.readouterr().err
    assert run(capsys, write([])) == (0, [], ["note: 0 items: nothing to do"])


class Stopping(Output):
    """Ctrl-C at the n-th event of a phase."""

    def __init__(self, phase: str, count: int) -> None:
        super().__init__()
        self.phase, self.count = phase, count

    def observe(self, event: Event) -> None:
        super().observe(event)
        self.count -= event.phase == self.phase
        if self.count == 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_batch_goes_on_in_the_middle_of_an_item(here: Path, capsys: Capture) -> None:
    """With the seed that was drawn for it, from the state that was kept."""
    name = write([{**BALL, "output": f"{n}.mkv", "steps": 4} for n in range(3)])
    code, told, err = run(capsys, name, output=Stopping("denoise", 5 + 3))
    assert (code, told) == (130, [{"item": 1, "path": "0.mkv"}])
    assert err[-2:] == [f"note: 1 item: 1 made; to make the rest: sora batch {name} --resume",
                        "error: interrupted"]  # fmt: skip
    seeds = [int(line.split()[-1]) for line in err if "seed" in line]
    (kept,) = folders.stored()
    assert kept.recipe["seeds"] == seeds[1:] and kept.status["step"] == 2
    code, told, err = run(capsys, name, "--resume")
    assert (code, err[-1]) == (0, "note: 3 items: 2 made, 1 skipped")
    assert [recipes.read(here / f"{n}.mkv")["seed"] for n in range(2)] == seeds
    assert folders.stored() == []


def test_an_input_that_has_changed_makes_its_item_anew(here: Path, capsys: Capture) -> None:
    """The item says the same, but the picture that it names is another one."""
    Image.new("RGB", (64, 64), (200, 30, 30)).save(here / "red.png")
    (here / "board.toml").write_text(
        'size = "64x64"\n[[shot]]\nimage = "red.png"\nprompt = "a"\nduration = "0.5s"\n'
    )
    small = {"steps": 1, "seed": 1, "expand": False}
    animated = {"verb": "animate", "image": "red.png", "prompt": "it moves", **small}
    animated |= {"num_frames": 5, "size": "64x64", "output": "a.mkv"}
    board = {"verb": "storyboard", "file": "board.toml", "output": "b.mkv", **small}
    name = write([animated, board])
    assert run(capsys, name)[0] == 0
    code, told, _ = run(capsys, name, "--resume")
    assert (code, [item.get("skipped") for item in told]) == (0, [True, True])
    before = [(here / path).read_bytes() for path in ("a.mkv", "b.mkv")]
    Image.new("RGB", (64, 64), (30, 30, 200)).save(here / "red.png")
    code, told, notes = run(capsys, name, "--resume")
    assert (code, [item.get("skipped") for item in told]) == (0, [None, None])
    assert sum("made again, because red.png has changed" in line for line in notes) == 2
    after = [(here / path).read_bytes() for path in ("a.mkv", "b.mkv")]
    assert before[0] != after[0] and before[1] != after[1]
    style(here / "s.safetensors")
    styled = {**BALL, "lora": ["s.safetensors=0.5"], "output": "c.mkv"}
    name = write([animated, board, styled])
    assert run(capsys, name, "--resume")[0] == 0
    code, told, _ = run(capsys, name, "--resume")
    assert (code, [item.get("skipped") for item in told]) == (0, [True, True, True])
    style(here / "s.safetensors", seed=2)
    code, told, _ = run(capsys, name, "--resume")
    assert (code, [item.get("skipped") for item in told]) == (0, [True, True, None])
    # What is gone cannot be made from, and what was made of it stays.
    (here / "red.png").unlink()
    code, told, _ = run(capsys, name, "--resume")
    assert (code, [item.get("skipped") for item in told]) == (0, [True, True, True])


def test_another_output_of_that_name_is_not_taken_for_the_items(
    here: Path, capsys: Capture
) -> None:
    words = ["--size", "64x64", "--num-frames", "5", "--steps", "1", "--no-expand"]
    assert main(["generate", "another", *words, "-o", "a.mkv"]) == 0
    code, (told,), _ = run(capsys, write([{**BALL, "output": "a.mkv"}]), "--resume")
    assert code == 1 and told["error"] == "a.mkv already exists"
    code, (told,), _ = run(capsys, "items.jsonl", "--resume", "--force")
    assert (code, told) == (0, {"item": 1, "path": "a.mkv"})


def killed(name: str, outputs: list[str], kills: int, seed: int) -> Counter[str]:
    """Kills a batch at work so many times; returns after news of which phases.

    After any number of its news, half an item's in the mean, and a moment more, so that it gets on
    but slowly; one that ends by itself begins anew, because a kill after the end is none.
    """
    chance, phases = random.Random(seed), Counter[str]()
    while phases.total() < kills:
        process = subprocess.Popen(
            [sys.executable, "-c", SORA, "batch", name, "--resume", "--progress", "json"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        with process, process.stderr as news:
            told = [news.readline() for _ in range(1 + int(chance.expovariate(1 / 8)))]
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
            said = [json.loads(line) for line in told if line]
        if process.returncode == -signal.SIGKILL:
            phases[said[-1].get("phase", "note")] += 1
            continue
        assert process.returncode == 0
        for output in outputs:
            Path(output).unlink()
    return phases


@pytest.mark.parametrize(
    ("items", "kills"),
    [(3, 2), pytest.param(20, 100, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_random_kills(here: Path, capsys: Capture, items: int, kills: int) -> None:
    """Every item exactly once in the end, the same as if nothing had happened, nothing beside."""
    kinds = ["mkv", "gif", "mp4"]
    name = write([{**BALL, "seed": n, "output": f"{n}.{kinds[n % 3]}"} for n in range(items)])
    outputs = [f"{n}.{kinds[n % 3]}" for n in range(items)]
    phases = killed(name, outputs, kills, seed=items)
    assert kills < 100 or len(phases) >= 5, phases
    code, told, _ = run(capsys, name, "--resume")
    assert code == 0
    assert [item["path"] for item in told] == outputs
    assert names_in(here) == sorted([*outputs, "items.jsonl"])
    assert [recipes.read(here / path)["seed"] for path in outputs] == list(range(items))
    assert folders.stored() == []
    words = ["--size", "64x64", "--num-frames", "5", "--steps", "2", "--no-expand", "--seed", "0"]
    assert main(["generate", "a red ball", *words, "-o", "one.mkv"]) == 0
    assert np.array_equal(frames_of(here / "one.mkv"), frames_of(here / "0.mkv"))
