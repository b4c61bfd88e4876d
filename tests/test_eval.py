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
from tokenizers import processors
from torch import Tensor

from sora_cli.eval import __main__ as program
from sora_cli.eval import binding, clips, edits, happenings, report, rows, sizes, verbs
from sora_cli.eval.abilities import ABILITIES
from sora_cli.eval.judge import Judge, Reading, looked_at
from sora_cli.eval.sheet import contact_sheet
from sora_cli.eval.truth import CLASSES, Prompt, paths, prompts, render_all
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.specs import TINY
from sora_cli.models.text_encoder import TextEncoder, TextEncoderConfig
from sora_cli.models.vae import VAE, VAEConfig
from sora_cli.train import captions, export, tokenizer
from sora_cli.train.captions import attributes
from sora_cli.train.dataset import to_video
from sora_cli.train.world import is_held_out

SPECIALS = ["<pad>", "</s>", "<unk>"]
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
    parts = {name: folder / name for name in ("transformer", "vae", "text_encoder", "tokenizer")}
    model = SimpleNamespace(spec=replace(TINY, **size), folder=folder, parts=parts)
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
    given = torch.zeros(2, 1, 48, 64, 3, dtype=torch.uint8)
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
    measures = {name: ABILITIES[name] for name in ("compression", "prompt fidelity", "animate")}
    card = {(r.ability, r.measure): r for measure in measures.values() for r in measure(exam)}
    assert set(card) == {key for key in report.BARS if key[0] in measures}
    assert card["compression", f"PSNR after {rows.TRIPS} trips, dB"].value > 60
    assert card["compression", "PSNR, dB"].value > 60
    assert card["compression", "position error, times the floor"].value == pytest.approx(1)
    fidelity = card["prompt fidelity", "mean, % right"]
    assert fidelity.value == fidelity.floor == fidelity.baselines["VAE floor"]
    assert card["animate", "frame 0 PSNR, dB"].value > 60
    assert set(card["animate", "motion, % right"].baselines) == {"copy the first frame"}
    assert {p.name for p in place.work.glob("*.png")} == {
        "compression-final.png", "dense-final.png", "short-final.png", "animate-final.png",
    }  # fmt: skip


def test_what_is_kept_is_not_made_again_nor_after_the_time_box(tmp_path: Path) -> None:
    place, made = studio(tmp_path), []
    place.work.mkdir()

    def build() -> dict[str, np.ndarray]:
        made.append(1)
        return {"video": np.arange(6, dtype=np.uint8).reshape(2, 3)[:, ::-1]}

    late = replace(place, deadline=0.0)
    assert clips.keep(late, "a way", build) is None
    first, second = clips.keep(place, "a way", build), clips.keep(late, "a way", build)
    assert first is not None and second is not None and made == [1]
    assert first["video"].tolist() == second["video"].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert clips.keep(place, "another way", build) is not None and made == [1, 1]


# ---------------------------------------------------------------------- edits


def test_a_change_is_one_attribute_in_record_and_words() -> None:
    for split in ("final", "held-out"):
        for prompt in asked(60, split=split):
            change = edits.changed(prompt)
            old, new = attributes(prompt.scene), attributes(change.asked.scene)
            assert [name for name in old if old[name] != new[name]] == [change.target]
            words = captions.read(change.asked.caption.text)
            assert words[change.target] == new[change.target] != old[change.target]
            thing = change.asked.scene.things[0]
            assert change.target != "color0" or not is_held_out(thing.kind, thing.color)
            assert edits.changed(prompt) == change, "always the same"
    assert {edits.changed(p).target for p in asked(6)} == set(edits.TARGETS)


def test_an_edit_is_scored_by_what_was_asked_and_what_was_not() -> None:
    changes = [edits.changed(prompt) for prompt in asked(30)]
    done = edits.score(changes, [perfect(change.asked) for change in changes])
    assert done == {"changed as asked": 100.0, "the rest kept": 100.0}
    undone = edits.score(changes, [perfect(change.before) for change in changes])
    assert undone == {"changed as asked": 0.0, "the rest kept": 100.0}
    two = next(change for change in changes if len(change.before.scene.things) == 2)
    reading = perfect(two.asked)
    lost = Reading(reading.values | {"count": "1"}, reading.places)
    assert edits.score([two], [lost])["the rest kept"] < 65, "a thing that is gone kept nothing"


# ---------------------------------------------------------------------- whole runs


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A folder with untrained little networks of the embedded model's shape."""
    torch.manual_seed(0)
    run = tmp_path / "run"
    pieces = tokenizer.build(["a red ball on the sand at night"], SPECIALS, 400, lowercase=True)
    pieces.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(pieces, run / "tokenizer", pad_token="<pad>", eos_token="</s>")
    text = TextEncoderConfig(
        vocab_size=400, hidden_size=16, num_layers=1, num_heads=2, head_dim=8, ffn_dim=16
    )
    export.save_text_encoder(run / "text_encoder", TextEncoder(text))
    config = DiTConfig(
        num_layers=1, hidden_size=24, num_heads=2, ffn_dim=24, in_channels=4, out_channels=4,
        text_dim=16, text_len=64, patch_size=(1, 1, 1),
    )  # fmt: skip
    export.save_dit(run / "transformer", DiT(config))
    vae = VAEConfig(
        z_dim=4, encoder_dim=4, decoder_dim=4, dim_mult=(1, 1, 1), num_res_blocks=1,
        temporal_downsample=(True, True), residual=True, patch_size=4, latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )  # fmt: skip
    export.save_vae(run / "vae", VAE(vae))
    export.assemble(run, tmp_path / "model", shift=3.0)
    return tmp_path / "model"


def test_the_program_measures_a_model_from_its_folder(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Every row that has a bar is measured, in the table's order, and nothing is made twice."""
    judge = Judge().eval()
    monkeypatch.setattr(program, "obtain_judge", lambda *_, **__: judge)
    monkeypatch.setattr(verbs, "MINUTE", 7.0)
    monkeypatch.setattr(sizes, "NEW_SIZES", report.NEW_SIZES[-1:])  # the others: time alone
    words = ["--model", str(small_model), "--samples", "1", "--device", "cpu"]
    words += ["--out", str(tmp_path / "docs"), "--work", str(tmp_path / "work")]
    assert program.main(words) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / "docs" / n) for n in ("tiny.json", "tiny.md")]
    content = json.loads((tmp_path / "docs" / "tiny.json").read_text())
    measured = [(r["ability"], r["measure"]) for r in content["rows"]]
    # A row of what moves, drops or bounces has no sample where the only scene does not; and this
    # model has neither a language model nor a captioner.
    assert measured == [key for key in report.BARS if key in measured]
    missing = set(report.BARS) - set(measured)
    unread = {"terse prompts", "captioner", *binding.QUESTIONS}
    assert {ability for ability, _ in missing} <= {
        "loop", "physics", "plausibility", "sizes", *unread
    }  # fmt: skip
    assert {a for a, _ in measured} >= set(ABILITIES) - {"extend", *unread}
    assert content["weights"].startswith("sha256:")
    # dense, short, 49 frames, physics, camera, animate; what happens; losses of pairs and under
    # exchanged words; extend both ways, loop, connect and their floor; a minute; edits
    events = len(happenings.QUESTIONS)
    assert len(list((tmp_path / "work").glob("*.safetensors"))) == 6 + events + 2 + 5 + 1 + 4
    assert err.count("made 1/1 clips") == 5 + events
    assert {p.stem for p in (tmp_path / "work").glob("*.png")} >= {
        f"{name}-final" for name in ("extend-forward", "loop", "connect", "minute-last", "edit-0.7")
    }
    assert str(tmp_path) not in (tmp_path / "docs" / "tiny.md").read_text()
    # A second run makes nothing again.
    monkeypatch.setattr(verbs, "filled", None)
    monkeypatch.setattr(verbs, "play", None)
    assert program.main([*words, "--rows", "animate,one minute,edit"]) == 0
    assert "made" not in capsys.readouterr().err
    again = json.loads((tmp_path / "docs" / "tiny.json").read_text())
    assert again == content, "the same figures, and the other rows are still there"


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
    join = {"ability": "loop", "measure": "last to first, times the median change"}
    for value, floor, met in ((1.5, None, True), (1.6, None, False), (1.6, 1.0, False),
                              (1.6, 1.4, True), (1.7, 1.4, False)):  # fmt: skip
        assert row(value, floor=floor, **join).to_json()["meets_first_bar"] is met
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
    assert program.main(["--edit-samples", "-1"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "unknown rows: poetry" in err and "hint: --rows" in err
    assert "--edit-samples must be at least 1" in err


def test_the_recorded_command_names_no_folders() -> None:
    arguments = program.parse(["--samples", "8", "--work", "somewhere", "--rows", "animate"])
    assert program.as_typed(arguments, "tiny") == (
        "python -m sora_cli.eval --model tiny --samples 8 --split final --rows animate"
    )
    capped = program.parse(["--join-samples", "4", "--long-samples", "5"])
    assert program.as_typed(capped, "tiny").endswith(" --join-samples 4"), "what is not the default"


def test_contact_sheets_show_every_clip_and_its_words(tmp_path: Path) -> None:
    videos = [np.full((9, 48, 64, 3), 200, np.uint8), np.full((1, 32, 32, 3), 10, np.uint8)]
    path = tmp_path / "sheet.png"
    contact_sheet(videos, ["a red ball " * 20, "a picture"], path, columns=4)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.width >= 4 * 64
        assert sheet.height > 48 + 32 + 3 * 14
        assert sheet.getpixel((8, 8)) == (200, 200, 200)
