"""The folders of runs: sound states, locks, what is listed, what is forgotten."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_cli.cli.main import main
from sora_cli.cli.runs import _facts
from sora_cli.errors import SoraError, Terminated, UsageError
from sora_cli.jobs.job import Target
from sora_cli.pipeline.events import Event
from sora_cli.pipeline.request import Request
from sora_cli.pipeline.sampler import SamplerState
from sora_cli.runs import calls, checkpoints, folders
from sora_cli.runs.resume import resume
from sora_cli.runs.run import Run, begin_run, take_up
from sora_cli.runtime import locks

FACTS = {"version": "1", "weights": "sha256:0", "torch": "2", "device": "cpu", "threads": 1}


def state(step: int = 3, history: int = 2) -> SamplerState:
    def tensor(number: int) -> torch.Tensor:
        return torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(number))

    return SamplerState(
        latents=tensor(step), step=step, corrected=tensor(100 + step) if history else None,
        denoised=tuple(tensor(200 + i) for i in range(history)), seed=2**63 - 1,
    )  # fmt: skip


def same(one: SamplerState | None, two: SamplerState) -> bool:
    if one is None:
        return False
    pairs = zip(
        (one.latents, one.corrected, *one.denoised),
        (two.latents, two.corrected, *two.denoised),
        strict=True,
    )
    equal = all(a is b is None or torch.equal(a, b) for a, b in pairs)
    return equal and (one.step, one.seed) == (two.step, two.seed)


def begin(**changes: Any) -> Run:
    call = calls.Call(verb="generate", arguments={"request": Request(prompt="a ball", seed=1)})
    target = Target(call=call, **changes)
    return begin_run(target, seeds=[1], outputs=["a.mp4"], facts=FACTS, observer=lambda event: None)


def latents_in(run: Run) -> list[str]:
    assert run.folder is not None
    return sorted(str(p.relative_to(run.folder)) for p in run.folder.rglob("*.safetensors"))


# ---------------------------------------------------------------- states on disk


@pytest.mark.parametrize("history", [0, 1, 2, 3])
def test_a_state_comes_back_bit_for_bit(tmp_path: Path, history: int) -> None:
    checkpoints.save(tmp_path / "s.safetensors", state(history=history))
    assert same(checkpoints.load(tmp_path / "s.safetensors"), state(history=history))
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


def test_tensors_that_share_their_memory_are_kept(tmp_path: Path) -> None:
    shared = torch.ones(1, 4, 2, 3, 3)
    kept = SamplerState(latents=shared, corrected=shared, denoised=(shared[:, :2],))
    checkpoints.save(tmp_path / "s.safetensors", kept)
    assert same(checkpoints.load(tmp_path / "s.safetensors"), kept)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_anywhere_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    path = tmp_path_factory.mktemp("bits") / "s.safetensors"
    checkpoints.save(path, state())
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    assert checkpoints.load(path) is None


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=30, deadline=None)
def test_a_state_cut_short_or_too_long_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    path = tmp_path_factory.mktemp("cut") / "s.safetensors"
    checkpoints.save(path, state())
    content = path.read_bytes()
    for damaged in (content[: int(share * len(content))], content + b"\0"):
        path.write_bytes(damaged)
        assert checkpoints.load(path) is None


@given(content=st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_other_file_counts_as_no_state(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("other") / "s.safetensors"
    path.write_bytes(content)
    assert checkpoints.load(path) is None


# ---------------------------------------------------------------- keeping


def test_the_newest_sound_state_is_recalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two states of the canvas in work; a damaged one falls back to the one before."""
    monkeypatch.setattr("sora_cli.runs.run.KEEP_SECONDS", 0)
    monkeypatch.setattr("sora_cli.runs.run.KEEP_SHARE", 1e9)
    with pytest.raises(KeyboardInterrupt), begin() as run:
        for step in (1, 2, 3):
            run.keep("1-0", state(step), 8)
        assert latents_in(run) == ["latents-1-0-0002.safetensors", "latents-1-0-0003.safetensors"]
        raise KeyboardInterrupt
    folder = run.folder
    for damage, step in ((None, 3), ("0003", 2), ("0002", None)):
        if damage:
            path = folder / f"latents-1-0-{damage}.safetensors"
            path.write_bytes(path.read_bytes()[:-1])
        again = take_up(folders.find(None))
        recalled = again.recall("1-0")
        assert (recalled and recalled.step) == step
        assert again.recall("1-1") is None
        again.release()


def test_the_last_state_of_a_canvas_is_always_kept() -> None:
    """Long before the next state is due, because decoding comes after it."""
    with pytest.raises(RuntimeError), begin() as run:
        for step in (1, 2, 3):
            run.keep("1-0", state(step), 3)
        run.keep("1-1", state(1), 3)
        assert latents_in(run) == ["chunks/1-0.safetensors"]
        raise RuntimeError("a device fell off the bus")
    # A failure has time for one more state.
    assert latents_in(run) == ["chunks/1-0.safetensors", "latents-1-1-0001.safetensors"]
    again = take_up(folders.find(None))
    assert same(again.recall("1-0"), state(3)) and same(again.recall("1-1"), state(1))
    again.release()


def test_states_are_kept_by_time_not_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with begin() as run:
        for step in range(1, 40):
            now += 1.0  # seconds a step
            run.keep("1-0", state(step), 100)
        kept = latents_in(run)
    assert kept == ["latents-1-0-0020.safetensors", "latents-1-0-0030.safetensors"]


def test_success_removes_a_run_unless_it_is_to_stay() -> None:
    with begin() as run:
        pass
    assert not run.folder.exists() and folders.stored() == []
    with begin(keep_run=True) as run:
        pass
    assert [r.state for r in folders.stored()] == ["done"]
    with pytest.raises(UsageError, match="there is no unfinished run"):
        folders.find(None)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (KeyboardInterrupt(), "interrupted", "interrupted"),
        (Terminated(), "interrupted", "terminated"),
        (SoraError("no luck", hint="try again"), "failed", "no luck"),
        (ValueError("bad token hf_abcdefghijklmnop\nmore"), "failed", "ValueError: bad token hf_…"),
    ],
)
def test_an_end_is_written_down_without_secrets(error: BaseException, kind: str, said: str) -> None:
    with pytest.raises(type(error)), begin() as run:
        raise error
    (found,) = folders.stored()
    assert (found.state, found.status["error"]["message"]) == (kind, said)
    everything = b"".join(p.read_bytes() for p in run.folder.rglob("*") if p.is_file())
    assert b"hf_abc" not in everything
    assert said.encode() in (run.folder / "log.txt").read_bytes()


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(own_folders: Path) -> None:
    own_folders.mkdir(parents=True)
    (own_folders / "state").write_text("a file where the folder should be")
    heard: list[Event] = []
    call = calls.Call(verb="generate", arguments={"request": Request(prompt="a ball")})
    run = begin_run(
        Target(call=call), seeds=[1], outputs=["a"], facts=FACTS, observer=heard.append
    )  # fmt: skip
    with run:
        run.keep("1-0", state(3), 3)
        assert same(run.recall("1-0"), state(3))  # for a second try with less memory
        run.finish(1, "a.mp4")
    assert run.folder is None
    assert ["cannot be kept" in str(event.message) for event in heard] == [True]


def test_a_state_that_cannot_be_written_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    heard: list[Event] = []
    with begin() as run:
        run.watch(heard.append)
        monkeypatch.setattr(checkpoints, "write_whole", full)
        for step in (1, 2, 3):
            run.keep("1-0", state(step), 1)
    (note,) = heard
    assert note.message is not None and "No space left on device" in note.message


# ---------------------------------------------------------------- locks


HOLD = """
import sys, time
from pathlib import Path
from sora_cli.runtime import locks
assert locks.lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    assert locks.lock(path) is None and locks.held(path)
    process.kill()
    process.wait()
    taken = locks.lock(path)
    assert taken is not None and locks.lock(path) is None
    taken.release()
    assert not locks.held(path)


def test_what_is_in_use_is_not_abandoned(tmp_path: Path) -> None:
    for path in (tmp_path / "file", tmp_path / "folder"):
        path.mkdir() if path.name == "folder" else path.touch()
        with locks.in_use(path) as one, locks.in_use(path) as two:
            assert one and two and not _free(path)
        assert _free(path)
    assert not _free(tmp_path / "none")
    with locks.in_use(tmp_path / "none") as there:
        assert not there


def _free(path: Path) -> bool:
    with locks.abandoned(path) as free:
        return free


def test_two_runs_at_once_never_meet() -> None:
    with begin() as one, begin() as two:
        assert one.folder != two.folder
        assert [run.state for run in folders.stored()] == ["running"] * 2
        assert folders.clean(folders.stored()) == []
        with pytest.raises(UsageError, match="still at work"):
            take_up(folders.find(one.id))
        with pytest.raises(UsageError, match="there is no unfinished run"):
            folders.find(None)


# ---------------------------------------------------------------- listing and forgetting


def left_behind(age: float = 0.0, size: int = 0) -> str:
    """A run whose process is gone, of another age and size."""
    run = begin()
    run.release()
    assert run.folder is not None
    grow_old(run.folder.name, age)
    if size:
        with (run.folder / "latents-1-0-0001.safetensors").open("wb") as file:
            file.truncate(size)
    return run.folder.name


def grow_old(name: str, age: float) -> None:
    status = {"state": "running", "created": time.time() - age, "updated": time.time() - age}
    (folders.runs_dir() / name / "status.json").write_text(json.dumps(status))


def test_old_runs_are_forgotten_and_the_newest_never() -> None:
    names = [left_behind() for _ in range(4)]
    for name, days in zip(names, (30, 20, 15, 13), strict=True):
        grow_old(name, days * 86400.0)
    assert [run.id for run in folders.expire()] == names[:3]
    # The clock jumped a year ahead: the newest unfinished work is still there.
    grow_old(names[3], 365 * 86400.0)
    assert folders.expire() == []
    assert folders.find(None).id == names[3]


def test_the_oldest_go_when_they_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [left_behind(100 - number, 1_000_000) for number in range(4)]
    monkeypatch.setattr(folders, "MAX_BYTES", 2_500_000)
    folders.expire()
    assert [run.id for run in folders.stored()] == names[2:]


def test_a_clock_set_back_does_not_make_an_old_run_the_newest() -> None:
    ahead = left_behind(-3600)
    assert folders.find(None).id == ahead
    with pytest.raises(KeyboardInterrupt), begin() as run:
        raise KeyboardInterrupt
    assert folders.find(None).id == run.id


def test_runs_are_found_by_the_beginning_of_their_names() -> None:
    name = left_behind()
    assert folders.find(name[:-2]).id == folders.find(name).id == name
    with pytest.raises(UsageError, match="there is no run 1999"):
        folders.find("1999")
    left_behind()
    with pytest.raises(UsageError, match="2 runs begin with 2"):
        folders.find("2")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["request", "verb", "arguments", "path", "list", "options", "seeds", "outputs", "error",
             "inputs", "facts", "made", "updated", "schema", "step", "prompt"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(recipe=JSON, status=JSON)
@settings(max_examples=60, deadline=None)
def test_anything_in_a_runs_files_is_listed_and_refused(recipe: Any, status: Any) -> None:
    folders.clean(folders.stored())
    folder = folders.runs_dir() / "20260101-000000-abcd"
    folder.mkdir(parents=True)
    if isinstance(recipe, dict):
        recipe = {"schema": 1, **recipe}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "status.json").write_text(json.dumps(status))
    (found,) = folders.stored()
    assert _facts(found)["run"] == folder.name
    with pytest.raises(UsageError):
        list(resume("2026"))
    assert folders.clean([found]) == [found]
    assert not folder.exists()


def test_the_commands_say_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list"]) == 0
    assert capsys.readouterr() == ("", "note: there are no runs: nothing is unfinished\n")
    with pytest.raises(KeyboardInterrupt), begin() as run:
        run.watch(lambda event: None)(Event(phase="denoise", step=0, total=8))
        run.keep("1-0", state(3), 8)
        raise KeyboardInterrupt
    assert main(["runs", "list"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["RUN", "STATE", "AGE", "SIZE", "VERB", "STEP", "PROMPT"]
    assert row.split()[:2] == [run.id, "interrupted"] and row.endswith("generate  3/8   a ball")
    assert main(["runs", "show", str(run.id), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["phase"], shown["step"]) == ("interrupted", "denoise", 3)
    assert shown["log"][-1].endswith("stopped: interrupted")
    assert main(["runs", "clean"]) == 0
    assert capsys.readouterr().out.startswith("1 run removed, ")


def test_listing_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from sora_cli.cli.main import main; assert main(['runs', 'list']) == 0; "
        "heavy = {'torch', 'numpy', 'safetensors', 'transformers'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    left_behind()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
