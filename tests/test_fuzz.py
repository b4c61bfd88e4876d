"""What we parse, made wrong: a sample of `python -m tests.fuzz`, and each find that was mended.

Files of strangers, and texts that people write: never a traceback, a hang, a runaway allocation, a
file outside the folder or a path that was in them opened.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sora_cli.cli.main import main
from sora_cli.cli.output import Output
from sora_cli.errors import SoraError, UsageError, WeightsError
from sora_cli.media import image, output, packets, probe, stills
from sora_cli.media import recipe as recipes
from sora_cli.models.specs import TINY
from sora_cli.pipeline import storyboard
from sora_cli.pipeline.request import Request, resolve
from sora_cli.runs import folders
from sora_cli.runs.run import take_up
from sora_cli.runtime.preferences import load_preferences
from sora_cli.weights import manifest, records
from sora_cli.weights.folders import read_json
from sora_cli.weights.tensors import open_tensors
from tests.fuzz import guards, seeds
from tests.fuzz.harness import fuzz
from tests.fuzz.targets import TARGETS

Capture = pytest.CaptureFixture[str]
HUGE = 10**400


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So that the limit on processor time is one on time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", TARGETS)
def test_a_sample_of_every_target(tmp_path: Path, name: str) -> None:
    report = fuzz(name, tmp_path, seed=1, inputs=TARGETS[name].sample)
    assert report.found is None, f"{report.found}\n{report.saved}"
    assert report.inputs == TARGETS[name].sample


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TARGETS)
def test_more_of_every_target(tmp_path: Path, name: str) -> None:
    report = fuzz(name, tmp_path, seed=2, inputs=20 * TARGETS[name].sample)
    assert report.found is None, f"{report.found}\n{report.saved}"


def test_what_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guards themselves: each kind of wrong is told."""

    def spins(path: Path) -> None:
        while True:
            path.suffix  # noqa: B018

    def reads(path: Path) -> None:
        Path("/etc/passwd").read_bytes()

    def writes(path: Path) -> None:
        (path.parents[2] / "beside").write_text("")

    def allocates(path: Path) -> None:
        bytearray(1 << 33)

    def fails(path: Path) -> None:
        raise KeyError("x")

    monkeypatch.setattr("tests.fuzz.harness.SECONDS", 0.2)
    said = {}
    for read in (spins, reads, writes, allocates, fails):
        row = TARGETS["words"]
        monkeypatch.setitem(
            TARGETS, "words", type(row)(name="words", seeds=row.seeds, mutate=row.mutate, read=read)
        )
        folder = tmp_path / read.__name__
        said[read.__name__] = str(fuzz("words", folder, seed=1, inputs=3).found)
    assert said["spins"].startswith("hang") and said["reads"] == "/etc/passwd was opened"
    assert "outside the folder" in said["writes"]
    assert said["allocates"].startswith("runaway allocation")
    assert said["fails"].startswith("traceback: KeyError")


def test_the_same_seed_makes_the_same_inputs(tmp_path: Path) -> None:
    """A report can be checked by whoever reads it."""
    one, two = (fuzz("tags", tmp_path / str(n), seed=3, inputs=40) for n in range(2))
    assert (one.inputs, one.refused, one.lines) == (two.inputs, two.refused, two.lines)
    last = [(tmp_path / str(n) / "work" / "input").read_bytes() for n in range(2)]
    assert last[0] == last[1]


# ---------------------------------------------------------------- what was found, and is mended


def test_tags_that_are_cut_off_take_no_longer_than_others() -> None:
    """A tag of 8 MB is cut, half of the time after a backslash: that took days."""
    began = time.process_time()
    recipes.parse_ffmetadata(";FFMETADATA1\ntitle=" + "\\=" * 500_000 + "\\")
    assert time.process_time() - began < 5
    assert recipes.parse_ffmetadata("a=b\\\nc\nd=e\\") == {"a": "b\nc", "d": "e"}


@pytest.mark.parametrize("number", ["1e400", "-1e400", str(HUGE)])
def test_numbers_beyond_jsons_in_a_parents_recipe(tmp_path: Path, number: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(f'{{"schema": 1, "seed": {number}}}')
    (parent,) = recipes.parents(path)
    recipes.to_text({"parents": [parent]})


@pytest.mark.parametrize("box", [b"pitm", b"iloc", b"iinf", b"av01"])
def test_an_avif_without_one_of_its_boxes(tmp_path: Path, box: bytes) -> None:
    """Pillow's reader of this one format raises RuntimeError."""
    path = tmp_path / "a.avif"
    Image.new("RGB", (16, 16)).save(path)
    path.write_bytes(path.read_bytes().replace(box, b"free"))
    with pytest.raises(UsageError, match=r"a\.avif"):
        image.read(path)


def test_a_rate_beyond_all_floats() -> None:
    """A recipe may ask for it: JSON's whole numbers have no end."""
    with pytest.raises(UsageError, match="--fps must be a number"):
        resolve(Request(prompt="a ball", fps=HUGE), TINY)


def test_an_ffmpeg_that_dies_within_a_line() -> None:
    """And tags of a stranger, which stand in its log between the lines that are read."""
    found, look = packets.Packets(), probe.Look()
    lines = (
        "0,  1, 2",
        "0, x, y, z, 1",
        "#tb 0: 1/0",
        "#tb 0: 0/1",
        "#dimensions 0: 4xq",
        "²,1",
        "0,,,,,,F=",
    )
    for line in lines:
        assert found.take(line) is None
    assert not found.pts and found.tick == 1
    look("    comment : Display Matrix: rotation of -9.0.0 degrees")
    look("[Parsed_showinfo_0 @ 0x5] n: 0 pts: 0 fmt:yuv420p s:4 sar:1")
    assert look.rotation == 0


DEEP = "a = " + "[" * 5000
DIGITS = "seed = " + "9" * 5000


@pytest.mark.parametrize("text", [DEEP, DIGITS, "a = \ud800".encode("utf-8", "surrogatepass")])
def test_toml_that_its_parser_falls_over(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read, kind in (
        (storyboard.read, UsageError),
        (load_preferences, UsageError),
        (manifest.read_manifest, WeightsError),
    ):
        with pytest.raises(kind) as caught:
            read(path)
        assert caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize("change", ["model = 3", "[[model]]\nname = []\nkind = {}", "parts = 7"])
def test_a_manifest_of_other_kinds_of_values(tmp_path: Path, change: str) -> None:
    path = tmp_path / "m.toml"
    path.write_text(f"schema = 1\n{change}\n")
    with pytest.raises(WeightsError, match=r"m\.toml"):
        manifest.read_manifest(path)


def test_a_long_storyboard_is_read_in_time() -> None:
    """A thousand shots in a megabyte of empty lines: each looked for its line in all of them."""
    text = '[[shot]]\nprompt = "a"\nduration = "1s"\n' * 1000 + "\n" * 960_000
    began = time.process_time()
    assert len(storyboard.parse(text, Path()).shots) == 1000
    assert time.process_time() - began < 5


def test_the_home_of_a_user_who_is_not_there() -> None:
    board = storyboard.parse('[[shot]]\nimage = "~nobody-here/x.png"\nduration = "1s"', Path("f"))
    assert board.shots[0].image == Path("f/~nobody-here/x.png")


@pytest.mark.parametrize("name", ["x" * 300, "a\nb"])
def test_an_index_of_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    content = json.dumps({"weight_map": {"a": name}})
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match="is missing") as caught:
        open_tensors(tmp_path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("fps", ["1e400", "-1e400", str(-HUGE), "0", "-3", "1e-400"])
def test_a_folder_whose_rate_is_no_rate(tmp_path: Path, fps: str) -> None:
    (tmp_path / "recipe.json").write_text(f'{{"schema": 1, "fps": {fps}}}')
    with suppress(UsageError):
        assert 0 < stills.folder_rate(tmp_path)[0] <= 1000


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.safetensors", "b/c", "C:\\x", "a\0", 3])
def test_an_index_leads_nowhere_else(tmp_path: Path, name: object) -> None:
    content = json.dumps({"weight_map": {"a": name}})
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match="cannot be used"):
        open_tensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="cannot be used"):
        open_tensors(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="nested too deep"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_of_more_numbers_than_it_holds(tmp_path: Path, new: bool) -> None:
    """Strides of 0 make a terabyte of one number."""
    bomb = torch.zeros(1).as_strided((1 << 20, 1 << 18), (0, 0))
    torch.save({"a": bomb}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(WeightsError, match="is not made of numbers in the file"):
        open_tensors(tmp_path / "a.pth")


def test_an_old_pickle_with_an_endless_text(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(b"\x80\x02X\xff\xff\xff\x7fabc")
    with guards.limited(5, 512), pytest.raises(WeightsError) as caught:
        open_tensors(file)
    assert guards.judge(caught.value) is None


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1}, {"size": HUGE}, {"sha256": []}, {"repository": {}}, {"commit": 3},
        {"path": "a\0"}, {"path": None},
    ],
)  # fmt: skip
def test_a_record_of_other_kinds_of_values(change: dict[str, object]) -> None:
    (content,) = TARGETS["record"].seeds(Path())
    record = json.loads(content)
    record["files"][0] |= change
    records.folder().mkdir(parents=True)
    (records.folder() / "mine.json").write_text(json.dumps(record))
    assert records.read("mine") is None and records.read_all() == ()


@pytest.mark.parametrize(
    "change",
    [
        {"facts": []}, {"facts": None}, {"inputs": {"a": "b"}}, {"inputs": {"a": {"path": 3}}},
        {"seeds": [1]}, {"seeds": ["1", "2"]}, {"outputs": 3}, {"outputs": ["a\0", "b"]},
        {"options": None}, {"cwd": 7}, {"arguments": "x"},
    ],
)  # fmt: skip
def test_a_run_of_other_kinds_of_values_is_unreadable(
    tmp_path: Path, capsys: Capture, change: dict[str, object]
) -> None:
    content = json.loads(TARGETS["run"].seeds(tmp_path)[0])
    folder = folders.runs_dir() / "20260101-000000-abcd"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps({**content["recipe"], **change}))
    status = {**content["status"], "made": {"x": 1}, "step": HUGE, "created": HUGE, "pid": "kill"}
    (folder / "status.json").write_text(json.dumps(status))
    (stored,) = folders.stored()
    assert stored.state == "unreadable" and stored.status["made"] == {}
    with pytest.raises(UsageError, match="cannot be read"):
        take_up(stored)
    for words in (["runs", "list"], ["runs", "show", "--json"], ["runs", "show"]):
        assert main(words) == 0
    assert main(["resume", stored.id]) == 2
    assert "unexpected" not in capsys.readouterr().err


# ---------------------------------------------------------------- names, secrets, terminals

NUMBERED = (f"{device}{number}" for device in ("com", "lpt") for number in "0123456789¹²³")
RESERVED = {"con", "prn", "aux", "nul", *NUMBERED}
SIGNS = st.text('./\\:*?"<>|~$ \0\n', max_size=9)
TEXTS = st.text(max_size=300) | st.sampled_from(sorted(RESERVED)) | SIGNS


@given(prompt=TEXTS, seed=st.integers(0, 2**63 - 1))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_prompt_gives_a_name_that_every_system_takes(prompt: str, seed: int) -> None:
    """Linux, macOS and Windows: short, no separators, no devices, no dots or spaces at an end."""
    name = output.default_path(prompt, seed, folder="nowhere-at-all").name
    stem, suffix = os.path.splitext(name)
    assert suffix == ".mp4" and name == Path(name).name
    assert len(name.encode()) <= 160 and len(name.encode("utf-16-le")) // 2 <= 160
    assert not set(name) & set('<>:"/\\|?*\0') and all(ord(c) >= 32 for c in name)
    assert stem.split(".")[0].lower() not in RESERVED
    assert not stem.startswith((".", "-", " ")) and not stem.endswith((".", " "))
    assert all(c.isprintable() for c in name if ord(c) < 0x300)


SECRET = "hf_" + "aBcD1234" * 4


def test_no_token_in_recipes_logs_or_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """One from the environment, and one that an error of a library quotes."""
    from sora_cli.models.dit import DiT

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    words = ["generate", "a ball", "--size", "64x64", "--num-frames", "5", "--steps", "1"]
    words += ["--no-expand", "--seed", "1", "--progress", "plain"]
    assert main([*words, "-o", "a.mkv"]) == 0

    def fails(*_: object, **__: object) -> None:
        raise ValueError(f"401 for https://hub/?token={SECRET}\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(DiT, "forward", fails)
        assert main([*words, "-o", "b.mkv"]) == 1
    said = capsys.readouterr()
    assert "hf_…" in said.err and SECRET not in said.err + said.out
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "log.txt" for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_what_a_file_says_cannot_steer_a_terminal(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**seeds.RECIPE, "prompt": "\x1b]0;gone\x07\x1b[2J\u202ea\x9b1m"}))
    assert main(["info", str(path)]) == 0
    told = capsys.readouterr().out
    assert "\ufffd[2J\ufffda" in told and not set(told) & set("\x1b\x07\x9b\u202e")
    stream = io.StringIO()
    Output(stderr=stream).note("\x1b[31mred\ttab")
    assert stream.getvalue() == "note: \ufffd[31mred\ttab\n"


@given(content=st.binary(max_size=300), at=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_noise_after_a_files_first_bytes(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, at: int
) -> None:
    """Every reader is reached by the bytes that it goes by."""
    heads = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\xff\0\0\0WEBPVP8X", b"GIF89a", b"II*\0",
             b"GGUF\x03\0\0\0", b"\x80\x02", b"PK\x03\x04")  # fmt: skip
    path = tmp_path_factory.mktemp("noise") / "file"
    path.write_bytes(heads[at] + content)
    read = TARGETS["picture" if at < 5 else "pickle"].read
    try:
        read(path)
    except SoraError as error:
        assert guards.judge(error) is None
