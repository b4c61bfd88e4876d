"""Whole jobs in the benchmark, and starting a model of published shapes, at small size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sora_cli.bench import __main__ as bench
from sora_cli.bench import checkpoints, report, startup, whole
from sora_cli.bench.cases import CUDA_CASES, WHOLE, Case, scaled
from sora_cli.bench.pairs import Place
from sora_cli.bench.workloads import prepared
from sora_cli.weights import load

Capture = pytest.CaptureFixture[str]
SMALL = ["--table", "cuda", "--scale", "0.04", "--rounds", "1", "--no-ceilings", "--json"]


def small(name: str) -> Case:
    (case,) = (case for case in CUDA_CASES if case.name == name)
    return scaled(case, 0.04)


def place(folder: Path) -> Place:
    return Place(device=torch.device("cpu"), dtype=torch.bfloat16, folder=folder)


def test_each_row_of_what_follows_denoising_is_in_the_table() -> None:
    """At the sizes that are published, each with its bound."""
    bounds = {
        case.name: [(goal.kind, goal.bound) for goal in case.goals]
        for case in CUDA_CASES if case.kind in WHOLE
    }  # fmt: skip
    assert bounds == {
        "1.3b-480p-tail": [("multiple", 1.05)], "1.3b-480p-first": [("seconds", 0.5)],
        "1.3b-480p-batch": [("busy", 0.97), ("multiple", 1.031)],
        "1.3b-480p-long": [("multiple", 17), ("flat", 1.05)],
        "5b-704p-tail": [("multiple", 1.05)], "5b-704p-first": [("seconds", 0.5)],
    }  # fmt: skip
    (long,) = (case for case in CUDA_CASES if case.kind == "long")
    assert 1 + long.count * (long.num_frames - 1) == 961  # a minute at 16 frames a second
    kinds = [case.kind for case in bench.cases("cpu") if case.kind in WHOLE]
    assert kinds == list(WHOLE)


def test_tiny_has_such_rows_too(capsys: Capture) -> None:
    """On a CPU, through ffmpeg; a longer video begins with the same frame, bit for bit."""
    words = ["--only", "tiny-long", *SMALL[2:]]
    assert bench.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in result["workloads"]] == ["tiny-long"]
    for beside in result["details"]:
        assert "frames went through ffmpeg into mp4" in beside["notes"]


def test_without_ffmpeg_frames_go_raw_into_a_file_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A machine with a card may have torch and nothing else."""
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    only = "1.3b-480p-tail,1.3b-480p-first,1.3b-480p-batch"
    assert bench.main([*SMALL, "--only", only]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["workloads"]) == 3
    for beside in result["details"]:
        assert "frames went raw into a file" in beside["notes"]
        assert beside["difference"] == 0
    tail, first, batch = result["details"]
    assert {"decoding alone", "writing alone"} <= tail["variants"].keys()
    assert first["variants"]["until the encoder has the first frame"] > 0
    assert "networks loaded by the last video of the batch: 0" in batch["notes"]
    assert "raw into a file" in report.markdown(result)


def test_raw_frames_are_the_frames(tmp_path: Path) -> None:
    """Decoded ones come with their axes swapped, which a file must not show."""
    frames = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(3, 2, 4, 5).transpose(1, 2, 3, 0)
    whole.write_raw(iter([frames, frames[:1]]), tmp_path / "frames.rgb")
    found = np.frombuffer((tmp_path / "frames.rgb").read_bytes(), np.uint8)
    assert np.array_equal(found, np.concatenate([frames, frames[:1]]).ravel())


def test_the_first_frames_are_out_before_the_rest_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an encoder that looks ahead, one chunk of latents is enough."""
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    case = small("1.3b-480p-first")
    with torch.no_grad(), prepared(case, place(tmp_path)) as pair:
        pair.ours()
        assert (tmp_path / "first.rgb").stat().st_size == case.width * case.height * 3


def test_a_batchs_jobs_touch_nobodys_runs_and_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie beside the weights; afterwards the environment is what it was."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with torch.no_grad(), prepared(small("1.3b-480p-batch"), place(tmp_path / "work")) as pair:
        pair.ours()
    assert not (tmp_path / "mine").exists() and (tmp_path / "work" / "cache").is_dir()
    assert whole.os.environ["XDG_STATE_HOME"] == str(tmp_path / "mine")
    assert "XDG_CACHE_HOME" not in whole.os.environ


def test_a_random_tokenizer_has_as_many_words_as_it_should(tmp_path: Path) -> None:
    folder = checkpoints.write_tokenizer(tmp_path / "tokenizer", 500)
    ids, mask = load.tokenizer(folder).encode(["a red ball"], 16)
    assert 2 < int(mask.sum()) <= 16 and 0 <= int(ids.max()) < 500
    assert len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) == 500


def test_a_model_of_published_shapes_is_started(tmp_path: Path) -> None:
    """In a fresh process, as the shell would; of a folder, and nothing is expanded."""
    with startup.published("1.3b-480p", "cpu", 0.04) as what:
        assert what.kinds == ("remembered", "new")
        env = startup.environment(tmp_path)
        found = startup.start(what.words("new", 1), env, tmp_path)
        assert {"check", "load", "encode"} <= found.phases.keys()
        assert found.total > 0 and found.first_step > 0
        assert not {"transformers", "diffusers"} & set(found.imports)
    assert not Path(what.model).exists()


@pytest.mark.slow
def test_diffusers_is_started_beside_it(capsys: Capture) -> None:
    """Its own pipeline, of the same folder, up to the same moment."""
    words = ["--published", "1.3b-480p", "--scale", "0.04", "--repeats", "1", "--json"]
    assert startup.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["diffusers_s"] > 0
    assert set(found["ratio_to_diffusers"]) == {"remembered", "new"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--device", "cuda"], 4, "no CUDA device here"),
        (["--published", "3b"], 2, "no such model: 3b\nhint: --model 1.3b-480p"),
    ],
)
def test_a_start_that_cannot_be_is_refused(
    words: list[str], code: int, said: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert startup.main(words) == code
    assert said in capsys.readouterr().err
