"""What is imported and spent before the first denoising step, and how cost grows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sora_cli.bench import growth, startup
from sora_cli.bench.plots import draw

Capture = pytest.CaptureFixture[str]


def test_every_start_is_measured_and_none_imports_transformers(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A prompt never seen before is said in full by the embedded model's own reader.

    transformers alone costs more than all the rest of a start.
    """
    found = []
    start = startup.start
    monkeypatch.setattr(startup, "start", lambda *a: found.append(start(*a)) or found[-1])
    startup.main(["--repeats", "1", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert set(report["starts"]) == {"as-it-is", "remembered", "new"}
    for kind, row in report["starts"].items():
        assert 0 < row["shell_s"] < row["to_first_step_s"], kind
        assert row["first_step_s"] > 0 and row["load_s"] > 0
        assert ("expand_s" in row) == (kind != "as-it-is")
    assert report["import_torch_s"] > 0 and report["help_ratio"] > 0
    assert len(found) == 4  # the first one warms
    for one in found:
        assert "torch" in one.imports
        heavy = {"transformers", "diffusers", "sympy", "pandas", "scipy"} & set(one.imports)
        assert not heavy, f"a start imports {heavy}"
    assert "\n" in "\n".join(startup.table(report))


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    env = startup.environment(tmp_path)
    with pytest.raises(RuntimeError, match="unknown model"):
        startup.start(["generate", "a ball", "--model", "nothing-like-it"], env, tmp_path)


# ---------------------------------------------------------------- growth


def test_decoding_a_stream_takes_the_same_for_every_frame() -> None:
    """No copies of what was decoded before: a late frame costs what an early one did."""
    growth.decode(9)  # whatever a first decoding in this process warms
    told = [growth.decode(193)["late_to_early"] for _ in range(3)]  # a busy machine has bad moments
    assert min(ratio for ratio in told if ratio is not None) < 1.5


def test_growth_writes_a_page_with_its_figures_and_picture(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each point is a process of its own, so its memory is: a long decode needs no more of it."""
    axis = growth.Axis(unit="frames", values=(9, 49, 97), fixed="few")
    monkeypatch.setitem(growth.AXES, "decode", axis)  # type: ignore[arg-type]
    growth.main(["--minutes", "0", "--axis", "decode", "--folder", str(tmp_path)])
    figures = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "reference" / "growth.json").read_text())
    assert figures == kept
    points = figures["axes"]["decode"]["points"]
    assert [point["value"] for point in points] == [9, 49]  # no time for the last
    assert points[1]["cpu_s"] > points[0]["cpu_s"] > 0
    assert figures["axes"]["decode"]["memory_ratio"] < 1.15
    page = (tmp_path / "reference" / "growth.md").read_text()
    assert "## Decode" in page and "growth.png" in page
    assert (tmp_path / "pictures" / "growth.png").stat().st_size < 60_000
    other = {**figures, "axes": {"steps": figures["axes"]["decode"]}}
    growth.write(other, tmp_path, "again")
    both = json.loads((tmp_path / "reference" / "growth.json").read_text())["axes"]
    assert list(both) == ["decode", "steps"]  # what was not measured again stays


@pytest.mark.parametrize("heights", [(1e6, 2e6, 9e9), (5e5, 5e5, 5e5), (1.0, 0.0, 1e7)])
def test_plots_hold_any_figures(tmp_path: Path, heights: tuple[float, ...]) -> None:
    points = [
        {"value": value, "cpu_s": height / 1e6, "peak_bytes": height}
        for value, height in zip((1, 10, 100), heights, strict=True)
    ]
    draw({"duration": {"unit": "frames", "points": points}}, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (300, 420)
        assert len(picture.convert("RGB").getcolors() or ()) > 4
