"""The report card: judges that judge right, figures computed from what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sora_cli.errors import WeightsError
from sora_cli.eval import __main__ as program
from sora_cli.eval import clips, lessons, report, rows
from sora_cli.eval.judge import CELL, FRAMES, Judge, Reading, looked_at, prepare, read
from sora_cli.eval.sheet import contact_sheet
from sora_cli.eval.truth import CLASSES, SLOTS, UNKNOWN, Prompt, labels, paths, prompts, render_all
from sora_cli.models.specs import TINY
from sora_cli.train.captions import attributes
from sora_cli.train.dataset import Bucket, to_video

SMALL = {"width": 64, "height": 48, "num_frames": 9}


def asked(count: int, level: str = "dense", split: str = "final") -> list[Prompt]:
    """Prompts for small clips."""
    return prompts(count, split=split, level=level, **SMALL)


def perfect(prompt: Prompt) -> Reading:
    """What a judge that is never wrong reads in the true clip."""
    scene = prompt.scene
    places = paths(scene, looked_at(scene.num_frames))
    values = attributes(scene)
    for name in ("kind", "color", "motion"):
        values.setdefault(f"{name}1", CLASSES[name][0])
    return Reading(values, places)


# ---------------------------------------------------------------------- judge


def test_prompts_are_the_same_for_ever_and_levels_share_scenes() -> None:
    assert asked(5) == asked(5)
    dense, short = asked(20), asked(20, "short")
    assert [p.scene for p in dense] == [p.scene for p in short]
    assert all(len(s.caption.text) < len(d.caption.text) for d, s in zip(dense, short, strict=True))


def test_labels_hide_what_a_picture_cannot_show() -> None:
    scene = next(p.scene for p in asked(50) if len(p.scene.things) == 1)
    row = labels(scene)
    assert row["kind"] == [CLASSES["kind"].index(scene.things[0].kind), UNKNOWN]
    assert row["camera"] == [CLASSES["camera"].index(scene.camera)]
    picture = labels(replace(scene, num_frames=1))
    assert picture["camera"] == [UNKNOWN] and picture["motion"] == [UNKNOWN, UNKNOWN]


@pytest.mark.parametrize("shape", [(25, 96, 160), (1, 96, 96), (33, 160, 64)])
def test_the_judge_reads_any_size_and_length(shape: tuple[int, int, int]) -> None:
    judge = Judge().eval()
    frames = torch.randint(0, 255, (1, *shape, 3), dtype=torch.uint8)
    video = prepare(frames)
    assert video.shape[:3] == (1, FRAMES, 3)
    assert all(side % 16 == 0 for side in video.shape[3:])
    assert 0.7 < video.shape[3] * video.shape[4] / (160 * 96) < 1.4
    reading = read(judge, frames)[0]
    assert set(reading.values) == {"kind0", "kind1", "color0", "color1", "motion0", "motion1",
                                   "floor", "sky", "camera", "count"}  # fmt: skip
    assert reading.places.shape == (FRAMES, SLOTS, 2) and reading.places.min() >= 0


@pytest.fixture
def small_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of four small clips."""
    monkeypatch.setattr(lessons, "BATCH", 4)
    bucket = Bucket(width=64, height=48, num_frames=9, share=1.0)
    monkeypatch.setattr(lessons, "BUCKETS", (bucket,))


def test_softening_keeps_clips_recognisable(small_lessons: None) -> None:
    torch.manual_seed(0)
    batch = lessons.Lessons(None, 0).draw()
    assert batch.video.shape[:3] == (4, FRAMES, 3)
    soft = lessons.soften(batch.video)
    assert soft.shape == batch.video.shape and soft.isfinite().all()
    assert 0 < float((soft - batch.video).abs().mean()) < 0.15


def test_the_judge_learns(small_lessons: None) -> None:
    torch.manual_seed(0)
    judge, batch = Judge(), lessons.Lessons(None, 0).draw()
    shape = (batch.video.shape[3] // CELL, batch.video.shape[4] // CELL)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    values = []
    for _ in range(8):
        loss, _ = lessons.judge_loss(judge(batch.video), batch, shape)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.8 * values[0]


def test_a_judge_is_kept_resumed_and_refused_when_the_world_changed(
    small_lessons: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    path = tmp_path / "judge.pt"
    options = {"minutes": 0.01, "pool": None, "say": said.append}
    first = lessons.obtain_judge(path, **options)
    again = lessons.obtain_judge(path, **options)
    assert len(said) == 1, "trained once"
    video = prepare(torch.zeros(1, 9, 48, 64, 3, dtype=torch.uint8))
    with torch.no_grad():
        assert torch.equal(first(video).logits["kind"], again(video).logits["kind"])
    state = lessons.load_checkpoint(path)
    assert state is not None and state["finished"] and state["run"]["steps"] >= 1
    monkeypatch.setattr(lessons, "source_key", lambda: "another world")
    with pytest.raises(WeightsError, match="another version"):
        lessons.obtain_judge(path, **options)


# ---------------------------------------------------------------------- measures


def test_a_perfect_clip_scores_everything() -> None:
    for level in ("dense", "short"):
        questions = asked(40, level)
        found = rows.scores(questions, [perfect(p) for p in questions], ordered=level == "dense")
        assert set(rows.percentages(found).values()) == {100.0}
    assert rows.place_errors([perfect(p) for p in questions], questions) == pytest.approx(0)


def test_only_named_attributes_count_and_wrong_ones_cost() -> None:
    question = next(p for p in asked(50, "short") if "sky" not in p.caption.named)
    reading = perfect(question)
    wrong = replace(reading, values=reading.values | {"sky": "?", "color0": "?"})
    found = rows.scores([question], [wrong], ordered=False)
    assert found["sky"] == []
    assert found["kind"][0] and ("color0" not in question.caption.named or not found["color"][0])


def test_unordered_things_count_either_way_and_a_missing_one_is_wrong() -> None:
    dense = next(p for p in asked(50) if len(p.scene.things) == 2)
    values = dict(perfect(dense).values)
    for name in ("kind", "color", "motion"):
        values[f"{name}0"], values[f"{name}1"] = values[f"{name}1"], values[f"{name}0"]
    swapped = Reading(values, perfect(dense).places)
    assert rows.scores([dense], [swapped])["kind"] == [False, False]
    assert rows.scores([dense], [swapped], ordered=False)["kind"] == [True, True]
    missing = Reading(perfect(dense).values | {"count": "1"}, swapped.places)
    found = rows.scores([dense], [missing])
    assert found["kind"] == [True, False] and found["count"] == [False]


def test_psnr_is_the_textbook_one() -> None:
    truth = torch.full((2, 3, 4, 4, 3), 100, dtype=torch.uint8)
    ours = truth + 10
    assert rows.psnr(ours, truth) == pytest.approx(20 * np.log10(255 / 10), abs=1e-4)
    mask = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    mask[0, 0, 0, 0] = True
    ours[0, 0, 0, 0] = 101
    assert rows.psnr(ours, truth, mask) == pytest.approx(20 * np.log10(255), abs=1e-4)


# ---------------------------------------------------------------------- clips


class PlainVAE(torch.nn.Module):
    """An autoencoder that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(()))

    def encode(self, video: Tensor) -> Tensor:
        return video

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@contextmanager
def plain_vae(folder: Path, **_: object) -> Iterator[PlainVAE]:
    yield PlainVAE()


def studio(tmp_path: Path, **changes: object) -> clips.Studio:
    """A studio for small clips of a model that is not there."""
    folder = tmp_path / "model"
    (folder / "vae").mkdir(parents=True, exist_ok=True)
    (folder / "vae" / "config.json").write_text("{}")
    size = {"width": 64, "height": 48, "num_frames": 9}
    model = SimpleNamespace(spec=replace(TINY, **size), folder=folder)
    made = clips.Studio(
        model=model, device=torch.device("cpu"), dtype=torch.float32, work=tmp_path / "work",
        deadline=float("inf"), say=lambda text: None,
    )  # type: ignore[arg-type]  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def test_clips_are_made_once_and_the_time_box_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def fake(studio: clips.Studio, chosen: list[Prompt], picture: Tensor | None) -> Tensor:
        calls.append(len(chosen))
        return torch.stack([torch.full((1, 1, 1, 1), float(p.seed)) for p in chosen])

    monkeypatch.setattr(clips, "_make_batch", fake)
    monkeypatch.setattr(clips, "BATCH", 4)
    place, questions = studio(tmp_path), asked(6)
    assert [int(x) for x in clips.make(place, questions[:4])] == [0, 1, 2, 3]
    assert [int(x) for x in clips.make(place, questions)] == [0, 1, 2, 3, 4, 5]
    assert calls == [4, 2]
    late = replace(place, deadline=0.0)
    assert len(clips.make(late, asked(9))) == 6, "only what was there"
    (place.model.folder / "vae" / "config.json").write_text('{"other": "weights"}')
    assert clips.make(late, questions) == []
    given = torch.zeros(2, 48, 64, 3, dtype=torch.uint8)
    assert len(clips.make(place, questions[:2], given=given)) == 2
    assert calls[2:] == [1, 1], "clips that go on from pictures are made one by one"


def test_settings_are_the_users_own(tmp_path: Path) -> None:
    settings = clips.settings_of(studio(tmp_path).model, asked(1)[0])
    assert settings.num_inference_steps == TINY.num_inference_steps and not settings.expand
    assert (settings.width, settings.height, settings.num_frames, settings.seed) == (64, 48, 9, 0)


def test_true_clips_get_the_floor_in_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def true_latents(
        place: clips.Studio, questions: list[Prompt], given: Tensor | None = None
    ) -> list[Tensor]:
        return list(to_video(render_all([p.scene for p in questions])[0]))

    monkeypatch.setattr(rows, "make", true_latents)
    monkeypatch.setattr(rows.load, "vae", plain_vae)
    place = studio(tmp_path)
    place.work.mkdir()
    exam = rows.Exam(studio=place, judge=Judge().eval(), samples=2, split="final")
    card = {(r.ability, r.measure): r for ability in rows.ABILITIES.values() for r in ability(exam)}
    assert set(card) == set(report.BARS)
    assert card["compression", "PSNR, dB"].value > 60
    assert card["compression", "position error, times the floor"].value == pytest.approx(1)
    fidelity = card["prompt fidelity", "mean, % right"]
    assert fidelity.value == fidelity.floor == fidelity.baselines["VAE floor"]
    assert card["animate", "frame 0 PSNR, dB"].value > 60
    assert set(card["animate", "motion, % right"].baselines) == {"copy the first frame"}
    assert {p.name for p in place.work.glob("*.png")} == {
        "compression-final.png", "dense-final.png", "short-final.png", "animate-final.png",
    }  # fmt: skip


# ---------------------------------------------------------------------- report


def row(value: float, **changes: object) -> report.Row:
    """A row of the report card."""
    plain = report.Row(
        ability="prompt fidelity", measure="color, % right", value=value, floor=99.5,
        baselines={"VAE floor": 98.0}, samples=128,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


HOW = report.Circumstances(
    model="tiny", weights="sha256:1", date="2026-01-01", command="python -m sora_cli.eval",
    seeds="0", judge="its own", device="cpu, float32",
)  # fmt: skip


def test_bars_are_met_by_the_value_and_nothing_else() -> None:
    assert row(92.0).to_json()["meets_first_bar"] is True
    assert row(91.99).to_json()["meets_first_bar"] is False
    measured = row(3.0, ability="animate", measure="motion, % right").to_json()
    assert measured["meets_first_bar"] is None and measured["goal"] is None
    assert row(93.0, split="held-out").to_json()["ability"] == "prompt fidelity (held-out)"


def test_the_report_is_written_and_keeps_what_was_not_measured_again(tmp_path: Path) -> None:
    numbers, page = report.write([row(95.0), row(80.0, split="held-out")], HOW, tmp_path / "docs")
    other = row(31.0, ability="compression", measure="PSNR, dB", floor=None, baselines={})
    report.write([other, row(96.0)], HOW, tmp_path / "docs")
    content = json.loads(numbers.read_text())
    assert set(content) == {"weights", "rows"} and content["weights"] == "sha256:1"
    assert [(r["ability"], r["value"]) for r in content["rows"]] == [
        ("compression", 31.0), ("prompt fidelity", 96.0), ("prompt fidelity (held-out)", 80.0),
    ]  # fmt: skip
    assert set(content["rows"][0]) == {
        "ability", "measure", "value", "floor", "baselines", "samples", "first_bar", "goal",
        "meets_first_bar",
    }  # fmt: skip
    text = page.read_text()
    assert "| prompt fidelity | color, % right | **96.0** | 99.5 | VAE floor 98.0 | 128 |" in text
    for fact in ("sha256:1", "2026-01-01", "python -m sora_cli.eval"):
        assert fact in text
    report.write([row(50.0)], replace(HOW, weights="sha256:2"), tmp_path / "docs")
    assert len(json.loads(numbers.read_text())["rows"]) == 1, "other weights start a new card"


def test_the_program_says_what_to_type_instead(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--rows", "poetry"]) == 2
    assert program.main(["--samples", "0"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "unknown rows: poetry" in err and "hint: --rows" in err


def test_the_recorded_command_names_no_folders() -> None:
    arguments = program.parse(["--samples", "8", "--work", "somewhere", "--rows", "animate"])
    assert program.as_typed(arguments, "tiny") == (
        "python -m sora_cli.eval --model tiny --samples 8 --split final --rows animate"
    )


def test_contact_sheets_show_every_clip_and_its_words(tmp_path: Path) -> None:
    videos = [np.full((9, 48, 64, 3), 200, np.uint8), np.full((1, 32, 32, 3), 10, np.uint8)]
    path = tmp_path / "sheet.png"
    contact_sheet(videos, ["a red ball " * 20, "a picture"], path, columns=4)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.width >= 4 * 64
        assert sheet.height > 48 + 32 + 3 * 14
        assert sheet.getpixel((8, 8)) == (200, 200, 200)
