"""The embedded model's captioner: its recipe, the folder that it writes, and who asks it."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from sora_cli.cli.main import main
from sora_cli.errors import WeightsError
from sora_cli.media import image
from sora_cli.media import recipe as recipes
from sora_cli.models.captioner import (
    CELL,
    CLIP,
    PICTURE,
    WEIGHTS,
    Captioner,
    EyesConfig,
    looked_at,
    prepare,
)
from sora_cli.models.vision_language import is_captioner
from sora_cli.pipeline.caption import as_beginning, caption
from sora_cli.train import captioner as recipe
from sora_cli.train import dataset, export, loop
from sora_cli.train.captions import dense, read
from sora_cli.train.dataset import Bucket
from sora_cli.train.world import draw_scene
from sora_cli.weights.store import locate
from tests.clips import made, moving

Capture = pytest.CaptureFixture[str]
TINY = Path(export.__file__).parents[1] / "assets" / "tiny"
TEXT = "A large red ball rolls to the left on the snow at night. The camera does not move."


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained") / "captioner"
    recipe.write(folder, recipe.Student(0), recipe.caption_tokenizer())
    return folder


@pytest.fixture(scope="module")
def reciter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner that was taught one caption, whatever it sees."""
    tokenizer, student = recipe.caption_tokenizer(), recipe.Student(0)
    words = torch.tensor([[*tokenizer.encode(TEXT).ids, recipe.SPECIALS.index(recipe.END)]])
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    noise, step, worst = torch.Generator().manual_seed(0), 0, [1.0, 1.0]
    while max(worst) > 0.01:  # of a picture and of a clip: far from where an answer could vary
        kind, step = step % 2, step + 1
        mark = recipe.SPECIALS.index(PICTURE if kind else CLIP)
        asked = torch.cat((torch.tensor([[mark]]), words[:, :-1]), 1)
        hidden, _ = student(torch.randn(1, 8, 3, 80, 80, generator=noise), asked)
        logits = student.language_model.lm_head(hidden)[0]
        losses = functional.cross_entropy(logits, words[0], reduction="none")
        worst[kind] = float(losses.max())
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        assert step < 400
    folder = tmp_path_factory.mktemp("reciter") / "captioner"
    recipe.write(folder, student, tokenizer)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of two little clips or pictures."""
    buckets = (
        Bucket(width=48, height=32, num_frames=9, share=0.6),
        Bucket(width=32, height=32, num_frames=1, share=0.4),
    )
    for module in (dataset, recipe):
        monkeypatch.setattr(module, "SHARD", 2)
        monkeypatch.setattr(module, "BUCKETS", buckets)


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """The recipe as `python -m` runs it."""
    monkeypatch.setattr(sys, "argv", ["captioner", *map(str, words)])
    recipe.main()


# ---------------------------------------------------------------- the recipe


def test_the_recipe_goes_on_where_it_stopped(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sessions on rendered shards; what they leave describes clips."""
    pool, out = tmp_path / "pool", tmp_path / "run"
    for shard in range(4):
        dataset.render_shard(pool, shard)
    for steps in (1, 3):
        run(monkeypatch, pool, out, "--steps", steps, "--minutes", 5, "--check", steps - 1)
    state = loop.load_checkpoint(out / "captioner-run" / "checkpoint.pt")
    assert state is not None and state["run"]["steps"] == 3
    rows = (out / "captioner-run" / "log.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["clips"] == 2  # --check
    assert sum(file.stat().st_size for file in (out / "captioner").iterdir()) < 4e6
    with Captioner(out / "captioner") as captioner:
        captioner.describe(moving(9), seed=0)


def test_what_is_learned_is_what_is_seen(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The targets spell the captions of the very clips, one token after the inputs; the answers of
    the heads say the same."""
    monkeypatch.setattr(recipe, "WIDE_SHARE", 0)  # whose stories captions.read cannot read
    tokenizer = recipe.caption_tokenizer()
    lessons = recipe.Lessons((), tokenizer, 0, 4)
    kinds = set()
    for _ in range(6):
        lesson = lessons.draw()
        assert lesson.video.shape[:3] == (4, EyesConfig().frames, 3)
        assert torch.equal(
            lesson.input_ids[:, 1:][lesson.targets[:, 1:] >= 0],
            lesson.targets[:, :-1][lesson.targets[:, 1:] >= 0],
        )
        for row in range(4):
            ids = [i for i in lesson.targets[row].tolist() if i >= 0]
            assert ids.pop() == recipe.SPECIALS.index(recipe.END)
            said = read(tokenizer.decode(ids))
            mark = recipe.SPECIALS[lesson.input_ids[row, 0]]
            kinds.add(mark)
            assert ("camera" in said) == (mark == CLIP)
            for name, answers in lesson.answers.items():
                if name in said:
                    assert recipe.ANSWERS[name][answers[row]] == said[name], name
    assert kinds == {PICTURE, CLIP}


def test_the_wide_worlds_clips_are_taught_with_their_own_words(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pools; first frames are of the plain one alone, where a picture can tell all."""
    plain, wide = tmp_path / "plain", tmp_path / "wide"
    dataset.claim(wide, "wide")
    for shard in range(4):
        dataset.render_shard(plain, shard)
        dataset.render_shard(wide, shard)
    lessons = recipe.Lessons((plain, wide), recipe.caption_tokenizer(), 0, 4)
    families = set()
    for first in (False, True) * 8:
        bucket = dataset.BUCKETS[0]
        frames, scenes = lessons._clips(bucket, 2, first)
        families |= {(first, scene.family) for scene in scenes}
        assert all((scene.num_frames == 1) == first for scene in scenes)
        assert not first or torch.equal(frames[:, 0], frames[:, -1])
    assert {family for first, family in families if first} == {"plain"}
    assert len({family for first, family in families if not first}) > 1


def test_softened_clips_are_near_the_sharp_ones() -> None:
    video = torch.rand(8, 4, 3, 32, 48) * 2 - 1
    torch.manual_seed(0)
    soft = recipe.soften(video)
    assert soft.shape == video.shape
    assert torch.equal(soft[:4], video[:4])
    assert 0 < (soft[4:] - video[4:]).abs().mean() < 0.6


# ---------------------------------------------------------------- the folder


@pytest.mark.parametrize("size", [(96, 160), (64, 64), (480, 832), (3, 90), (200, 7), (1, 1)])
@pytest.mark.parametrize("length", [1, 3, 25])
def test_any_clip_becomes_whole_cells(size: tuple[int, int], length: int) -> None:
    config = EyesConfig()
    frames = torch.zeros(1, length, *size, 3, dtype=torch.uint8)
    frames[:, -1] = 255
    video = prepare(frames, config)
    cells = sorted(side // CELL for side in video.shape[3:])
    assert video.shape[:3] == (1, config.frames, 3)
    assert cells[0] == config.shorter and cells[1] <= 4 * config.shorter
    assert all(side % CELL == 0 for side in video.shape[3:])
    assert video.min() == (1 if length == 1 else -1) and video[:, -1].min() == 1


def test_looks_from_end_to_end() -> None:
    for length in (1, 2, 8, 9, 25, 481):
        chosen = looked_at(length, 8)
        assert len(chosen) == 8 and chosen == sorted(chosen)
        assert (chosen[0], chosen[-1]) == (0, length - 1)


def test_an_untrained_folder_describes_and_repeats_itself(untrained: Path) -> None:
    before = torch.random.get_rng_state()
    with Captioner(untrained) as captioner:
        for frames in (moving(1), moving(5, 64, 64), moving(25, 96, 160)):
            first = captioner.describe(frames, seed=1, max_new_tokens=12)
            assert captioner.describe(frames, seed=1, max_new_tokens=12) == first
            assert "\n" not in first
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_folder_is_a_language_models_with_eyes_beside_it(untrained: Path) -> None:
    """The language model's half is read by transformers alone; all of it in half precision."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(untrained, local_files_only=True)
    for name in ("model.safetensors", WEIGHTS):
        tensors = load_file(untrained / name).values()
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float16}
    assert is_captioner(untrained)
    assert not is_captioner(TINY / "language_model")


@pytest.mark.parametrize("name", ["model.safetensors", WEIGHTS, "config.json", "tokenizer.json"])
def test_a_damaged_folder_is_a_weights_error(untrained: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(untrained, tmp_path / "captioner")
    (folder / name).write_bytes(b"{]")
    with pytest.raises(WeightsError, match="cannot be read"):
        Captioner(folder).describe(moving(3), seed=0)


# ---------------------------------------------------------------- who asks it


def test_says_what_it_was_taught_and_that_it_knows_no_more(reciter: Path, tmp_path: Path) -> None:
    for frames in (moving(1), moving(12, 64, 80)):
        found = caption(frames, folder=reciter, cache_dir=tmp_path)
        assert found.text == TEXT and found.source == "model"
        assert "sora weights pull" in found.notes[0]
        again = caption(frames, folder=reciter, cache_dir=tmp_path)
        assert again.source == "remembered" and again.notes == found.notes


def test_a_picture_in_words_may_begin_to_move() -> None:
    """Everything that the caption names is still said, and no more that nothing moves."""
    for index in range(60):
        scene = draw_scene(0, index, width=96, height=96, num_frames=1)
        text = dense(scene, random.Random(index)).text
        words = as_beginning(text)
        assert read(words) == read(text)
        assert words[0].isupper() and not {"stands", "picture."} & set(words.lower().split())


@pytest.fixture
def model(reciter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The embedded model's folder, with this captioner."""
    folder = tmp_path / "model"
    folder.mkdir()
    for part in TINY.iterdir():
        if part.name not in ("captioner", "SHA256SUMS"):
            (folder / part.name).symlink_to(part)
    (folder / "captioner").symlink_to(reciter)
    monkeypatch.chdir(tmp_path)
    return str(folder)


def test_the_command_describes_clips_and_pictures(model: str, capsys: Capture) -> None:
    assert locate(model).parts["captioner"].name == "captioner"
    made(Path("a.mkv"), moving(9, 64, 64), "-c:v", "ffv1", "-pix_fmt", "bgr0", fps="8")
    assert main(["caption", "a.mkv", "-m", model, "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["caption"] == TEXT and told["frames"] == 8
    assert told["notes"] and f"note: {told['notes'][0]}" in printed.err
    Image.new("RGB", (90, 50), (90, 160, 60)).save("b.png")
    assert main(["caption", "b.png", "-m", model]) == 0
    assert capsys.readouterr().out == f"{TEXT}\n"
    # Of what the model itself made there is nothing to be warned of.
    told = {"schema": 1, "model": locate(model).spec.name}
    image.write("c.png", np.zeros((64, 64, 3), np.uint8), recipe=told)
    assert main(["caption", "c.png", "-m", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []


def test_a_clip_is_extended_by_its_recipe_else_by_what_is_seen(model: str, capsys: Capture) -> None:
    """And stderr says which."""
    made(Path("a.mkv"), moving(9, 64, 64), "-c:v", "ffv1", "-pix_fmt", "bgr0", fps="8")
    words = ["--by", "500ms", "-m", model, "--steps", "1", "--seed", "1"]
    assert main(["extend", "a.mkv", *words, "-o", "b.mkv"]) == 0
    assert f"note: no prompt: what is seen in a.mkv: {TEXT}\n" in capsys.readouterr().err
    assert recipes.read(Path("b.mkv"))["prompt"] == TEXT
    assert main(["extend", "b.mkv", *words, "-o", "c.mkv"]) == 0
    assert f"taken from the recipe in b.mkv: {TEXT}\n" in capsys.readouterr().err
    image.write("d.png", np.zeros((64, 64, 3), np.uint8))
    assert main(["animate", "d.png", *words[2:], "--num-frames", "5", "-o", "d.mkv"]) == 0
    assert f"note: no prompt: what is seen in d.png: {TEXT}\n" in capsys.readouterr().err
