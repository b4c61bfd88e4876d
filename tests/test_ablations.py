"""The ablations: each row differs from the recipe in one choice, and that choice is real."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from sora_cli.eval.clips import encode
from sora_cli.eval.judge import Judge, Reading
from sora_cli.eval.lessons import look, source_key
from sora_cli.eval.truth import paths, prompts
from sora_cli.train import ablations, trial
from sora_cli.train.loop import Muon, save_checkpoint
from sora_cli.train.render import render
from sora_cli.train.world import IN_PLACE, draw_scene
from sora_cli.weights import load, store

TINY = store.locate("tiny")


@pytest.fixture(scope="module")
def broad() -> trial.Clips:
    """Four clips of 96x64 through the embedded autoencoder."""
    width, height, num_frames = ablations.BROAD
    scenes = [draw_scene(0, i, width=width, height=height, num_frames=num_frames) for i in range(4)]
    with load.vae(TINY.parts["vae"], device="cpu", dtype=torch.float32) as vae:
        latents = torch.stack(encode(vae, render(scenes)[0]))
    return trial.Clips(latents=latents.half(), scenes=scenes)


def test_a_row_takes_back_one_choice() -> None:
    base = {ablations.SQUARE: "whole", ablations.BROAD: "native"}
    for arm in ablations.ARMS:
        changed = [
            f.name for f in fields(trial.Recipe)
            if getattr(arm.recipe, f.name) != getattr(ablations.WHOLE, f.name)
        ]  # fmt: skip
        assert len(changed) == (arm.name != base[arm.size]), arm.name


def test_square_crops_are_parts_of_the_same_clips(broad: trial.Clips) -> None:
    texts = ["a", "b", "c", "d"]
    whole, square = (
        trial.draw(broad, texts, 0, 3, recipe)
        for recipe in (ablations.WHOLE, replace(ablations.WHOLE, square=True))
    )
    assert whole.latents.shape[3:] == (4, 6) and square.latents.shape[3:] == (4, 4)
    begins = set()
    for clip, part in zip(whole.latents, square.latents, strict=True):
        found = [b for b in range(3) if torch.equal(clip[..., b : b + 4], part)]
        assert found, "somewhere along the longer side"
        begins.update(found)
    assert begins == {0, 1, 2}


def test_choices_change_what_they_name(broad: trial.Clips) -> None:
    """Optimizers, noise levels, prompts left out, latents given."""
    torch.manual_seed(0)
    model = trial.Captioned(replace(trial.NARROW, num_layers=1, hidden_size=64, num_heads=1))
    kinds = [type(o) for o in trial.optimizers_of(model, ablations.WHOLE)]
    assert Muon in kinds
    plain = trial.optimizers_of(model, replace(ablations.WHOLE, muon=False))
    assert [type(o) for o in plain] == [torch.optim.AdamW]
    assert sum(len(g["params"]) for g in plain[0].param_groups) == len(list(model.parameters()))
    early, late = trial.draw_sigmas(4000, 80), ablations.only_late(4000, 80)
    assert float((early > 0.98).float().mean()) > 5 * float((late > 0.98).float().mean())
    assert abs(float(ablations.even(4000, 80).mean()) - 0.5) < 0.03
    none = replace(ablations.WHOLE, drop=0.0, given=0.0)
    for step in range(20):
        batch = trial.draw(broad, ["a"] * 4, 0, step, none)
        assert all(batch.prompts) and batch.mask.min() == 1
    drawn = [trial.draw(broad, ["a"] * 4, 0, step, ablations.WHOLE) for step in range(20)]
    assert "" in {p for batch in drawn for p in batch.prompts}
    given = torch.cat([batch.mask for batch in drawn])
    assert 0.2 < float((given[:, 0] == 0).float().mean()) < 0.4 and given[:, 1:].min() == 1


def test_how_much_of_a_thing_is_inside() -> None:
    """All of it where the scene has it; half of it with its middle on the frame's edge."""
    width, height, num_frames = ablations.BROAD
    asked = prompts(
        40, split="development", level="dense", width=width, height=height, num_frames=num_frames
    )
    alone = [p for p in asked if len(p.scene.things) == 1 and p.scene.things[0].motion in IN_PLACE]
    places = [paths(p.scene, [0] * 9) for p in alone]
    edge = [torch.zeros(9, 2, 2) for _ in alone]
    true, cut = (
        ablations.share_inside(alone, [Reading({}, place) for place in rows])
        for rows in (places, edge)
    )
    assert true > 95 and cut == pytest.approx(50, abs=8)


def test_it_runs_from_latents_to_table_and_picture(
    broad: trial.Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = replace(trial.NARROW, num_layers=1, hidden_size=64, num_heads=1, ffn_dim=64)
    for name, value in (("NARROW", narrow), ("BATCH", 4), ("POINTS", 2)):
        monkeypatch.setattr(trial, name, value)
    arms = tuple(
        replace(arm, recipe=replace(arm.recipe, read=1))
        for arm in ablations.ARMS if arm.size == ablations.BROAD
    )  # fmt: skip
    monkeypatch.setattr(ablations, "ARMS", arms)
    monkeypatch.setattr(ablations, "LOSS_CLIPS", 2)
    monkeypatch.setattr(trial.Clips, "of", classmethod(lambda cls, folder, size: broad))
    torch.manual_seed(0)
    judge = tmp_path / "judge.pt"
    known = {"source": source_key(), "look": look(), "finished": True}
    save_checkpoint(judge, {"ema": Judge().state_dict(), **known})
    picture = tmp_path / "ablations.png"
    argv = [
        "-", str(TINY.parts["tokenizer"]), str(tmp_path / "work"), "--steps", "2", "--samples", "2",
        "--judge", str(judge), "--out", str(tmp_path), "--picture", str(picture),
        "--arms", "native,crops",
    ]  # fmt: skip
    assert ablations.main(argv) == 0
    table = json.loads((tmp_path / "ablations.json").read_text())
    assert set(table["arms"]) == {"native", "crops"}
    for arm in table["arms"].values():
        assert {"samples", "dense", "given"} <= set(arm["curve"][-1])
    text = (tmp_path / "ablations.md").read_text()
    assert "square crops" in text and "--arms native,crops" in text
    with Image.open(picture) as image:
        assert image.width > 100


def test_what_cannot_be_done_is_said_with_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = str(TINY.parts["tokenizer"])
    assert ablations.main([str(tmp_path), tokenizer, "-", "--arms", "none"]) == 2
    assert "unknown arms: none" in capsys.readouterr().err
    assert ablations.main([str(tmp_path), tokenizer, "-", "--steps", "0"]) == 2
    assert "--steps must be at least 1" in capsys.readouterr().err
