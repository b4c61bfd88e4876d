"""The programs beside the report card: sampling, scaling, learning curves and their charts."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sora_cli.eval import (
    curve,
    gallery,
    history,
    lessons,
    pictures,
    plot,
    sampling,
    scaling,
    sources,
)
from sora_cli.eval.judge import Judge
from sora_cli.eval.sheet import contact_sheet
from sora_cli.models.specs import TINY
from sora_cli.weights import store

# ---------------------------------------------------------------------- code as part of a key


def test_only_code_counts(tmp_path: Path) -> None:
    """A comment must not throw away hours of clips; a changed number must."""
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text('"""What it is."""\nx = 1  # why\n')
    two.write_text('"""Something else."""\n\nx = 1\n')
    assert sources.fingerprint([one]) == sources.fingerprint([two])
    two.write_text("x = 2\n")
    assert sources.fingerprint([one]) != sources.fingerprint([two])
    assert len(sources.making_code()) == 64 and len(lessons.source_key()) == 16


# ---------------------------------------------------------------------- charts


def test_ticks_are_round_and_inside() -> None:
    assert plot.ticks(0.0, 10.0, log=False) == [0, 2, 4, 6, 8, 10]
    assert plot.ticks(0.09, 2.1, log=True) == [0.1, 0.2, 0.5, 1, 2]
    assert plot.ticks(0.12, 0.2, log=True) == pytest.approx([0.12, 0.14, 0.16, 0.18, 0.2])
    assert [plot.said(v) for v in (0.05, 81_000, 2e6)] == ["0.05", "81k", "2M"]


def test_a_chart_is_drawn_where_its_numbers_are(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    line = plot.Line(name="x", points=[(1.0, 1.0), (100.0, 0.01)])
    plot.chart([line], path, title="t", x="x", y="y", log_x=True, log_y=True)
    with Image.open(path) as picture:
        assert picture.size == (plot.SIZE[0], plot.SIZE[1] + 17)  # a row of names below
        pixels = picture.convert("RGB")
        inks = [
            p
            for p in range(plot.SIZE[0])
            for q in (240,)
            if pixels.getpixel((p, q)) == plot.INKS[0]
        ]
    assert inks, "a falling line crosses the middle"
    plot.chart([plot.Line(name="one", points=[(3.0, 3.0)])], path, title="t", x="x", y="y")


def log_of(path: Path, rows: list[dict[str, float]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_curve_follows_the_run_that_went_on(tmp_path: Path) -> None:
    rows = [{"samples": n * 100, "steps": n * 10, "loss": 1 / n, "rate": 1e-3} for n in range(1, 9)]
    again = {"samples": 450.0, "steps": 45, "loss": 0.2, "rate": 1e-3}
    log = log_of(tmp_path / "run" / "transformer-run" / "log.jsonl", [*rows[:5], again])
    found = curve.points_of(log, "loss", 200)
    assert [samples for samples, _ in found] == [200, 300, 400, 450], "500 was gone over again"
    dip = [(float(n), 0.01 if 40 < n < 50 else 1.0) for n in range(100)]
    assert curve.smoothed(dip) == [(float(n), 1.0) for n in range(100)], "averages begun anew"


def test_the_curve_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"samples": n * 1000, "steps": n, "loss": 1 / n} for n in range(1, 9)]
    log, out = log_of(tmp_path / "a" / "r" / "log.jsonl", rows), tmp_path / "curve.png"
    assert curve.main([str(log), str(log), str(out)]) == 0 and out.is_file()
    assert capsys.readouterr().out == f"{out}\n"
    (tmp_path / "bad.jsonl").write_text("no json\n")
    for words in (
        [str(tmp_path / "none.jsonl"), str(out)], [str(tmp_path / "bad.jsonl"), str(out)],
        [str(log), str(out), "--measure", "joy"],
    ):  # fmt: skip
        assert curve.main(words) == 2
        assert "hint: " in capsys.readouterr().err
    assert curve.main([str(log), str(tmp_path / "no" / "where.png")]) == 1


# ---------------------------------------------------------------------- scaling


def test_a_power_law_is_found_again() -> None:
    points = [
        scaling.Point(samples=n, loss=3.0 * n**-0.25, fidelity=80.0) for n in (1000, 8000, 81_000)
    ]
    law = scaling.fitted(points)
    assert law.factor == pytest.approx(3.0) and law.exponent == pytest.approx(0.25)
    assert law.error < 1e-9 and law.at(16.0) == pytest.approx(1.5)
    bent = [*points, scaling.Point(samples=160_000, loss=1.0, fidelity=70.0)]
    assert scaling.fitted(bent).error > 0.1
    text = scaling.page(bent, scaling.fitted(bent), 4, [])
    assert "from each to the next: no" in text and "never falls: no" in text


def test_points_are_read_in_order_and_bad_ones_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scaling.parse_points(["20=b", "3=a"]) == [(3, Path("a")), (20, Path("b"))]
    for words in (["3=a"], ["a=3", "4=b"], ["=a", "4=b"], ["3=", "4=b"], ["3=a", "3=b"]):
        assert scaling.main(words) == 2
        assert "hint: " in capsys.readouterr().err


def test_one_set_of_weights_is_measured_twice_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two numbers of samples, the same weights: the same loss, so the law is flat."""
    judge = Judge().eval()
    monkeypatch.setattr(sampling, "obtain_judge", lambda *_, **__: judge)
    monkeypatch.setattr(
        scaling, "make", lambda studio, asked: [torch.zeros(48, 7, 6, 10) for _ in asked]
    )
    folder = store.locate("tiny").folder
    words = [f"1000={folder}", f"2000={folder}", "--samples", "1", "--device", "cpu"]
    words += ["--out", str(tmp_path), "--picture", str(tmp_path / "p" / "scaling.png")]
    assert scaling.main([*words, "--work", str(tmp_path / "work")]) == 0
    content = json.loads((tmp_path / "scaling.json").read_text())
    one, two = content["points"]
    assert one["loss"] == two["loss"] and 0 < one["loss"] < 1
    assert content["law"]["exponent"] == pytest.approx(0, abs=1e-9)
    assert str(folder) not in (tmp_path / "scaling.md").read_text()
    assert (tmp_path / "p" / "scaling.png").is_file()
    assert scaling.main([f"1000={tmp_path}", *words[1:]]) == 2
    assert "has no transformer" in capsys.readouterr().err


# ---------------------------------------------------------------------- sampling


def test_every_way_is_measured_and_the_best_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = Judge().eval()
    monkeypatch.setattr(sampling, "obtain_judge", lambda *_, **__: judge)
    words = ["--samples", "1", "--steps", "1,2", "--scales", "1", "--samplers", "euler"]
    words += ["--device", "cpu", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    assert sampling.main(words) == 0
    assert {w["physics"] is not None for w in json.loads(
        (tmp_path / "sampling.json").read_text())["ways"]} == {True}  # fmt: skip
    words += ["--physics-samples", "0"]
    for kept in (tmp_path / "work").glob("*.safetensors"):
        kept.unlink()
    assert sampling.main(words) == 0
    ways = json.loads((tmp_path / "sampling.json").read_text())["ways"]
    assert [(w["steps"], w["guidance_scale"]) for w in ways] == [(1, 1), (2, 1)]
    assert all(way["seconds"] > 0 and way["samples"] == 1 for way in ways)
    assert len(list((tmp_path / "work").glob("*.safetensors"))) == 2
    text = (tmp_path / "sampling.md").read_text()
    assert "| euler | 2 | 1 |" in text and str(tmp_path) not in text
    capsys.readouterr()
    assert sampling.main(words) == 0, "nothing is made again"
    assert "made" not in capsys.readouterr().err
    for wrong in (["--steps", "0"], ["--samplers", "magic"], ["--samples", "0"]):
        assert sampling.main([*words, *wrong]) == 2


def test_the_default_and_the_unbeaten_are_marked() -> None:
    quick = sampling.Way(
        sampler="euler", steps=4, guidance_scale=4.0, fidelity=70.0, seconds=1.0, samples=8
    )
    best = replace(quick, steps=TINY.num_inference_steps, fidelity=80.0, seconds=4.0)
    beaten = replace(best, sampler="unipc", fidelity=79.0, seconds=4.5)
    ways = [quick, best, beaten]
    assert [sampling.unbeaten(way, ways) for way in ways] == [True, True, False]
    lines = sampling.page(ways, 98.0, TINY, []).splitlines()
    marked = {
        line.split("|")[2].strip() + line.split("|")[1].strip(): line
        for line in lines
        if "| euler" in line or "| unipc" in line
    }
    assert marked[f"{TINY.num_inference_steps}euler"].endswith("| default * |")
    assert marked["4euler"].endswith("| * |")
    assert marked[f"{TINY.num_inference_steps}unipc"].endswith("|  |")


# ---------------------------------------------------------------------- contact sheets


def test_a_gallery_shows_each_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights can be looked at where there is neither a judge nor ffmpeg."""
    words = ["--samples", "2", "--sizes", "64x48,48x64", "--split", "development"]
    assert gallery.main([str(tmp_path), *words]) == 0
    paths = [tmp_path / f"gallery-{size}.png" for size in ("64x48", "48x64")]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    for path, width in zip(paths, (64, 48), strict=True):
        with Image.open(path) as sheet:
            assert sheet.width > gallery.COLUMNS * width and sheet.mode == "P"
    assert gallery.main([str(tmp_path), "--sizes", "64x50"]) == 2
    assert "steps of 16" in capsys.readouterr().err


# ---------------------------------------------------------------------- history


def committed(repository: Path, samples: int, rows: list[dict[str, object]]) -> None:
    """A report card and a provenance, committed; the weights went on from 600 clips."""
    run = {"samples": samples - 600, "started_from": {"samples": 600}}
    content = {"weights": f"sha256:{samples}", "rows": rows}
    files = {history.CARD: content, history.PROVENANCE: {"runs": {"transformer": run}}}
    for name, value in files.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(json.dumps(value))
    who = ("-c", "user.name=a test", "-c", "user.email=test@localhost")
    for words in (("add", "."), (*who, "commit", "-qm", f"{samples} clips")):
        subprocess.run(["git", *words], cwd=repository, check=True)


def card_row(ability: str, value: float, bar: float, **others: object) -> dict[str, object]:
    met = value <= bar if "error" in ability else value >= bar
    row = {"ability": ability, "measure": "of all, %", "value": value, "first_bar": bar}
    return row | {"samples": 16, "baselines": {}, "meets_first_bar": met} | others


def test_what_is_missed_is_read_from_the_cards_of_all_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for samples, first in ((1000, 1.0), (4000, 9.9), (4000, 1.0), (16000, 1.0)):
        # The second card of the same weights replaces their first.
        committed(tmp_path, samples, [
            card_row("error that falls", first * 8 * (samples / 1000) ** -0.5, 1.0),
            card_row("error of the autoencoder", 3.0, 1.0, baselines={"VAE floor": 2.0}),
            card_row("share that does not rise", 50.0, 80.0),
            card_row("share that is met", 90.0, 80.0),
            card_row("share of another measure", 70.0, 80.0, samples=2 if samples < 5000 else 16),
            {**card_row("share without a bar", 1.0, 1.0), "meets_first_bar": None},
        ])  # fmt: skip
    known = history.cards(tmp_path)
    assert [card.samples for card in known] == [1000, 4000, 16000]
    rows = {one.key[0]: one for one in history.missed(known)}
    assert list(rows) == [
        "error that falls", "error of the autoencoder", "share that does not rise",
        "share of another measure",
    ]  # fmt: skip
    falls = rows["error that falls"]
    assert falls.needs == pytest.approx(64_000) and "4 times the clips" in history.verdict(falls)
    assert "autoencoder" in history.verdict(rows["error of the autoencoder"])
    assert "does not help" in history.verdict(rows["share that does not rise"])
    assert rows["share of another measure"].values == ((16000, 70.0),)

    words = ["--repository", tmp_path, "--out", tmp_path / "m.md", "--picture", tmp_path / "m.png"]
    assert history.main([str(word) for word in words]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'm.md'}\n"
    assert "| 8, 4, 2 | 1 |" in (tmp_path / "m.md").read_text()
    assert Image.open(tmp_path / "m.png").width == plot.SIZE[0]
    assert history.main(["--repository", "/"]) == 2
    assert "history" in capsys.readouterr().err


# ---------------------------------------------------------------------- pictures


def test_the_first_clips_of_a_sheet_are_taken_with_their_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [np.full((3, 32, 48, 3), 60 * n, np.uint8) for n in range(4)]
    contact_sheet(clips, ["one", "two " * 90, "three", "four"], tmp_path / "all.png")
    contact_sheet(clips[:2], ["one", "two " * 90], tmp_path / "two.png")
    sheet, wanted = Image.open(tmp_path / "all.png"), Image.open(tmp_path / "two.png")
    found = pictures.first_rows(sheet, 2)
    assert found.size == wanted.size and found.tobytes() == wanted.tobytes()
    assert pictures.first_rows(sheet, 9).size == sheet.size

    assert pictures.main([str(tmp_path), str(tmp_path)]) == 2
    assert "animate-final.png" in capsys.readouterr().err


def test_a_sheet_is_made_by_the_command(tmp_path: Path) -> None:
    pictures.generated(("a red ball",), tmp_path / "sheet.png")
    picture = Image.open(tmp_path / "sheet.png")
    assert picture.mode == "P" and picture.width > 6 * 160 and picture.height > 96
