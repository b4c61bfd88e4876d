"""The study of captions: its arms differ in captions alone, and it runs from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from sora_cli.eval import recaptioning
from sora_cli.eval.clips import encode
from sora_cli.eval.judge import Judge, Reading
from sora_cli.eval.lessons import look, source_key
from sora_cli.eval.truth import prompts
from sora_cli.models.text_encoder import Tokenizer
from sora_cli.train import study, trial
from sora_cli.train.captions import attributes
from sora_cli.train.loop import save_checkpoint
from sora_cli.train.render import render
from sora_cli.train.world import draw_scene
from sora_cli.weights import load, store

TINY = store.locate("tiny")


@pytest.fixture(scope="module")
def clips() -> trial.Clips:
    """Six clips of the training split through the embedded autoencoder."""
    width, height, num_frames = study.SIZE
    scenes = [
        draw_scene(0, index, width=width, height=height, num_frames=num_frames)
        for index in range(6)
    ]
    with load.vae(TINY.parts["vae"], device="cpu", dtype=torch.float32) as vae:
        latents = torch.stack(encode(vae, render(scenes)[0]))
    return trial.Clips(latents=latents.half(), scenes=scenes)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = replace(trial.NARROW, num_layers=1, hidden_size=64, num_heads=1, ffn_dim=64)
    monkeypatch.setattr(trial, "NARROW", narrow)
    monkeypatch.setattr(trial, "BATCH", 4)
    monkeypatch.setattr(trial, "POINTS", 2)
    monkeypatch.setattr(study, "LOSS_CLIPS", 2)


def test_arms_differ_in_captions_only(clips: trial.Clips, tmp_path: Path) -> None:
    """The same clips, the same prompts left out, in the same order: what is compared is wording."""
    texts = {arm: study.captions_of(arm, clips, tmp_path, TINY) for arm in study.ARMS}
    drawn = {
        arm: [trial.draw(clips, rows, 0, n, trial.Recipe()) for n in range(30)]
        for arm, rows in texts.items()
    }
    for arm in ("dense", "captioner"):
        assert texts[arm] != texts["short"]
        for ours, theirs in zip(drawn[arm], drawn["short"], strict=True):
            assert torch.equal(ours.latents, theirs.latents)
            assert [not p for p in ours.prompts] == [not p for p in theirs.prompts]
    some = [p for batch in drawn["short"] for p in batch.prompts]
    assert "" in some and set(texts["short"]) <= set(some), "all clips, and some without words"


def test_the_noises_and_first_weights_are_the_same_in_all_arms(
    clips: trial.Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two arms under one caption end with the same weights; also where one was interrupted."""
    tokenizer = Tokenizer.from_folder(TINY.parts["tokenizer"])
    development = study.Development(2, study.SIZE, TINY)
    texts = study.captions_of("short", clips, tmp_path, TINY)

    def curve(arm: str) -> list[dict[str, float]]:
        return trial.train_arm(
            arm,
            clips,
            texts,
            tokenizer,
            tmp_path / arm,
            steps=4,
            seed=1,
            development=development,
            recipe=trial.Recipe(),
        )

    whole = curve("short")
    assert [point["samples"] for point in whole] == [8, 16]
    usual, seen = trial.losses, []

    def fails(*arguments: object) -> Tensor:
        seen.append(arguments)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return usual(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(trial, "losses", fails)
        with pytest.raises(KeyboardInterrupt):
            curve("dense")
    assert curve("dense") == whole
    ours, theirs = (
        (tmp_path / arm / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
        for arm in ("short", "dense")
    )
    assert ours == theirs


def test_captions_are_written_once_and_it_goes_on_after_the_last(
    clips: trial.Clips, tmp_path: Path
) -> None:
    whole = study.captions_of("captioner", clips, tmp_path, TINY)
    file = tmp_path / "captions.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("".join(json.dumps(text) + "\n" for text in ("kept", *whole[1:3])))
    assert study.captions_of("captioner", clips, tmp_path, TINY) == ["kept", *whole[1:]]
    assert [json.loads(line) for line in lines] == whole


def test_what_captions_say_is_held_against_the_scenes(clips: trial.Clips) -> None:
    true = study.captions_of("dense", clips, Path(), TINY)
    one = recaptioning.taught("dense", Path(), [], true, clips.scenes)
    assert one.named == one.right == 100
    other = recaptioning.taught("dense", Path(), [], true[1:] + true[:1], clips.scenes)
    assert other.right < 60
    brief = study.captions_of("short", clips, Path(), TINY)
    shorter = recaptioning.taught("short", Path(), [], brief, clips.scenes)
    assert shorter.right == 100 and shorter.named < 95 and shorter.words < one.words


def test_figures_count_what_is_asked_and_their_interval_holds_the_mean() -> None:
    asked = prompts(12, split="development", level="dense", width=64, height=64, num_frames=17)
    readings = []
    for number, prompt in enumerate(asked):
        values = attributes(prompt.scene)
        alone = {f"{name}1": values[f"{name}0"] for name in ("kind", "color", "motion")}
        wrong = {"floor": "none"} if number < 3 else {}
        readings.append(Reading(alone | values | wrong, torch.zeros(9, 2, 2)))
    found = recaptioning.figure(asked, readings, ordered=True)
    assert found.shares["floor"] == 75 and found.shares["thing"] == 100
    assert found.counts["floor"] == 12
    assert found.low < found.shares["mean"] < found.high <= 100


def test_the_study_runs_from_latents_to_table_and_picture(
    clips: trial.Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps of each arm: a table with every arm, numbers and counts, and one picture."""
    monkeypatch.setattr(trial.Clips, "of", classmethod(lambda cls, folder, size: clips))
    torch.manual_seed(0)
    judge = tmp_path / "judge.pt"
    known = {"source": source_key(), "look": look(), "finished": True}
    save_checkpoint(judge, {"ema": Judge().state_dict(), **known})
    picture = tmp_path / "pictures" / "recaptioning.png"
    argv = [
        "-", str(TINY.parts["tokenizer"]), str(tmp_path / "work"), "--steps", "2", "--samples", "2",
        "--judge", str(judge), "--out", str(tmp_path), "--picture", str(picture),
    ]  # fmt: skip
    assert study.main(argv) == 0
    table = json.loads((tmp_path / "recaptioning.json").read_text())
    assert set(table["arms"]) == set(study.ARMS)
    for arm in table["arms"].values():
        assert len(arm["curve"]) == 2 and set(arm["fidelity"]) == set(recaptioning.KINDS)
    text = (tmp_path / "recaptioning.md").read_text()
    assert all(name in text for name in recaptioning.NAMES.values())
    assert "2 prompts of the development split" in text
    with Image.open(picture) as image:
        assert image.height > image.width


def test_what_cannot_be_done_is_said_with_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main([str(tmp_path), "-", "-"]) == 2
    assert "no latents" in capsys.readouterr().err
    assert study.main([str(tmp_path), "-", "-", "--arms", "none"]) == 2
    assert "unknown arms: none" in capsys.readouterr().err
