"""What we parse, made wrong: a sample of `python -m tests.fuzz`, and each find that was mended.

Files of strangers, and texts that people write: never a traceback, a hang, a runaway allocation, a
file outside the folder or a path that was in them opened.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sora_cli.cli.main import main
from sora_cli.errors import SoraError, UsageError, WeightsError
from sora_cli.media import image, packets, probe, stills
from sora_cli.media import recipe as recipes
from sora_cli.models.specs import TINY
from sora_cli.pipeline import storyboard
from sora_cli.pipeline.request import Request, resolve
from sora_cli.runs import folders
from sora_cli.runs.run import take_up
from sora_cli.runtime.preferences import load_preferences
from sora_cli.weights import manifest, records
from sora_cli.weights.folders import read_folder, read_json
from sora_cli.weights.lora_arguments import parse_lora
from sora_cli.weights.spiece import read_spiece
from sora_cli.weights.tensors import open_tensors
from tests.fuzz import guards, seeds
from tests.fuzz.harness import fuzz
from tests.fuzz.targets import TARGETS
from tests.fuzz.targets import TINY as TINY_FOLDER

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


def test_a_lora_whose_path_no_system_takes() -> None:
    """Of a batch: no shell passes it on."""
    with pytest.raises(UsageError, match="names no file"):
        parse_lora("~\0.safetensors")


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
        f"#tb 0: {HUGE}/1",
        f"0,0,0,{HUGE},1",
        f"0,0,{HUGE},1,1",
        "#dimensions 0: 4xq",
        "²,1",
        "0,,,,,,F=",
    )
    for line in lines:
        assert found.take(line) is None
    assert not found.pts and not found.durations and found.tick == 1
    look("[Parsed_showinfo_0 @ 0x5] config in time_base: 0/1, frame_rate: 8/1")
    assert look.tick == 1
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


LORA = '[[model]]\nname = "a"\nkind = "lora"\nrepository = "b/c"'  # only a model's has parts


@pytest.mark.parametrize(
    "change", ["model = 3", "[[model]]\nname = []\nkind = {}", "parts = 7", LORA]
)
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


@pytest.mark.parametrize("name", ["x" * 5000, "a\nb"])
def test_an_index_of_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    content = json.dumps({"weight_map": {"a": name}})
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match="is missing") as caught:
        open_tensors(tmp_path)
    assert guards.judge(caught.value) is None


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


@pytest.mark.parametrize("halved", [[True, 10**18], [True, 1.5], "yes", 2])
def test_a_model_whose_time_is_halved_for_ever(tmp_path: Path, halved: object) -> None:
    """Two to that power is a number that no memory holds."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.txt"))
    vae = folder / "vae" / "config.json"
    vae.write_text(json.dumps({**json.loads(vae.read_text()), "temperal_downsample": halved}))
    with pytest.raises(WeightsError, match="cannot be used"):
        read_folder(folder)


def spiece_with(characters: bytes) -> bytes:
    """A SentencePiece model with this map of characters."""
    (model,) = seeds.words_of_spiece()
    field = bytes([0x12, *varint(len(characters))]) + characters
    return model + bytes([0x1A, *varint(len(field))]) + field


def varint(number: int) -> list[int]:
    return [number & 0x7F | 0x80, number >> 7]


def test_a_map_of_characters_that_leads_outside_itself(tmp_path: Path) -> None:
    """tokenizers asks for the memory that it says, and panics at an index that is not there."""
    path = tmp_path / "spiece.model"
    nothing, leads = [0] * 256, 97 | 1 << 8  # the text of "a", by a value that is no place in it
    for units, texts in (([], b"a"), ([0], b"a"), ([1 << 20], b"a"),
                         ([*nothing[:97], leads, *nothing[98:]], b"a")):  # fmt: skip
        trie = b"".join(unit.to_bytes(4, "little") for unit in units)
        path.write_bytes(spiece_with(len(trie).to_bytes(4, "little") + trie + texts))
        with pytest.raises(WeightsError, match="its map of characters"):
            read_spiece(path)
    path.write_bytes(spiece_with(b"\0\0\x80\xbf"))
    with guards.limited(5, 512), pytest.raises(WeightsError, match="is cut off"):
        read_spiece(path)
    path.write_bytes(spiece_with((1024).to_bytes(4, "little") + bytes(1024) + b"a"))
    assert read_spiece(path).encode(["a red ball"], 4)[1].tolist() == [[1, 1, 1, 1]]


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


def test_a_runs_endless_path_is_told_in_short(tmp_path: Path, capsys: Capture) -> None:
    content = json.loads(TARGETS["run"].seeds(tmp_path)[0])
    content["recipe"]["inputs"]["image"]["path"] = "x" * 5000
    folder = folders.runs_dir() / "20260101-000000-abcd"
    folder.mkdir(parents=True)
    for name in ("recipe", "status"):
        (folder / f"{name}.json").write_text(json.dumps(content[name]))
    assert main(["resume"]) == 2
    told = capsys.readouterr().err
    assert "xx (image): File name too long" in told and len(told) < 2000


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


# ---------------------------------------------------------------- noise


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
