"""The judge: what it looks at, how it learns, how it is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sora_cli.errors import WeightsError
from sora_cli.eval import lessons
from sora_cli.eval.judge import CELL, FRAMES, Judge, prepare, read
from sora_cli.eval.truth import CLASSES, SLOTS, UNKNOWN, Prompt, labels, prompts
from sora_cli.train.dataset import Bucket
from sora_cli.train.things import is_held_out


def asked(count: int, level: str = "dense") -> list[Prompt]:
    """Prompts for small clips."""
    return prompts(count, split="final", level=level, width=64, height=48, num_frames=9)


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


def test_the_judge_is_shown_what_the_generator_never_sees(small_lessons: None) -> None:
    """A judge that thinks there are no cyan balls would call every one of them something else."""
    drawn = lessons.Lessons(None, 0)
    pairs = [
        is_held_out(thing.kind, thing.color)
        for _ in range(60)
        for scene in drawn._some(lessons.BUCKETS[0])[1]
        for thing in scene.things
    ]
    assert 0.02 < sum(pairs) / len(pairs) < 0.4


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


def test_a_judge_stays_good_for_pictures_that_differ_in_their_last_digit() -> None:
    """A faster renderer must not cost everyone a new judge; another world must."""
    seen = lessons.look()
    nearly = (seen.int() + 1).clamp(max=255).to(torch.uint8)
    assert lessons._same_look(seen) and lessons._same_look(nearly)
    assert not lessons._same_look(None) and not lessons._same_look(seen.flip(3))
    darker = (seen.float() * 0.97).to(torch.uint8)
    assert not lessons._same_look(darker)
