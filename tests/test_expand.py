"""Expanding prompts: what is remembered, what passes unchanged, what the user is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sora_cli.pipeline import expand as module
from sora_cli.pipeline.ask import Question
from sora_cli.pipeline.ask import ask as ask_model
from sora_cli.pipeline.expand import Expansion, expand
from sora_cli.train.language_model import write_words
from tests.language_folders import KNOWN, babbler, reciter

CAPTION = "A small red ball bounces on the snow by day. The camera stays still."
LONG = (
    "A small red ball of rubber bounces over fresh snow from left to right, lower each time, until "
    "it rolls on and comes to rest. Low morning light, a medium shot at eye level."
)
TINY = Path(module.__file__).parents[1] / "assets" / "tiny" / "language_model"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was taught one world, one that writes, one that sees."""
    folder = tmp_path_factory.mktemp("models")
    (reciter(folder / "taught", CAPTION) / "known_words.txt").write_text("\n".join(KNOWN))
    reciter(folder / "writes", f'<think>A ball.</think>"{LONG}"')
    reciter(folder / "sees", LONG, sees=True)
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "taught", tmp_path / "language_model"))


@pytest.fixture
def ask(folder: Path, tmp_path: Path) -> Callable[..., Expansion]:
    def asked(prompt: str, seed: int = 1, **settings: object) -> Expansion:
        options = {"folder": folder, "cache_dir": tmp_path / "cache"} | settings
        return expand(prompt, seed=seed, **options)  # type: ignore[arg-type]

    return asked


def _entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "expansions").glob("*"))


def _picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)


# ---------------------------------------------------------------- expanding and remembering


def test_expands_once_then_remembers(ask: Callable[..., Expansion], tmp_path: Path) -> None:
    first = ask("a red ball")
    assert first == Expansion(prompt="a red ball", expanded_prompt=CAPTION, source="model")
    again = ask("  a red\nball ")
    assert (again.source, again.expanded_prompt) == ("remembered", CAPTION)
    assert again.prompt == "  a red\nball "  # as typed
    assert len(_entries(tmp_path)) == 1


def test_seed_picture_and_weights_are_told_apart(
    ask: Callable[..., Expansion], folder: Path, models: Path, tmp_path: Path
) -> None:
    assert ask("a red ball").source == "model"
    assert ask("a red ball", seed=2).source == "model"
    assert ask("a red ball", picture=True).source == "model"
    asked = sorted(json.loads(path.read_text())["prompt"] for path in _entries(tmp_path))
    assert asked == ["a picture. a red ball", "a red ball", "a red ball"]
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text() + "\n"
    )
    assert ask("a red ball").source == "model"
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert ask("a red ball").source == "none"  # not what was remembered of other weights


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"\xff\xfe", b'{"prompt": "another"}',
                b'{"prompt": "a red ball", "expanded_prompt": 3}',
                b'{"prompt": "a red ball", "expanded_prompt": ""}']
)  # fmt: skip
def test_damaged_entries_are_written_again(
    ask: Callable[..., Expansion], tmp_path: Path, content: bytes
) -> None:
    ask("a red ball")
    (entry,) = _entries(tmp_path)
    entry.write_bytes(content)
    assert ask("a red ball").source == "model"
    assert json.loads(entry.read_text())["expanded_prompt"] == CAPTION
    assert ask("a red ball").source == "remembered"


def test_the_cache_is_bounded(
    ask: Callable[..., Expansion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    for seed in range(6):
        ask("a red ball", seed=seed)
    assert len(_entries(tmp_path)) <= 3
    assert ask("a red ball", seed=5).source == "remembered"
    assert not [path for path in _entries(tmp_path) if path.suffix != ".json"]


def test_a_cache_that_cannot_be_written_does_no_harm(
    ask: Callable[..., Expansion], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert ask("a red ball").expanded_prompt == CAPTION
    assert ask("a red ball").source == "model"


# ---------------------------------------------------------------- the user's own words


@pytest.mark.parametrize("prompt", ["", "  ", CAPTION])
def test_nothing_to_expand(ask: Callable[..., Expansion], prompt: str) -> None:
    made = ask(prompt)
    assert (made.source, made.expanded_prompt, made.notes) == ("none", prompt.strip(), ())


def test_switched_off(ask: Callable[..., Expansion]) -> None:
    assert ask("a  red ball", enabled=False) == Expansion(
        prompt="a  red ball", expanded_prompt="a red ball"
    )
    assert ask("a red ball", enabled=False, folder=None).notes == ()
    assert "corgi" in ask("a red corgi", enabled=False).notes[0]


@pytest.mark.parametrize(
    ("given_as", "prompt", "start", "name"),
    [
        (None, "a red corgi", "the prompt was used as it is", "qwen3-4b-instruct"),
        ("first", "it runs", "the prompt was used as it is", "qwen3-vl-4b-instruct"),
        ("first", "", "no prompt was written", "qwen3-vl-4b-instruct"),
    ],
)
def test_without_a_language_model_the_note_says_how_to_get_one(
    ask: Callable[..., Expansion], given_as: str | None, prompt: str, start: str, name: str
) -> None:
    made = ask(prompt, folder=None, given_as=given_as)
    assert (made.source, made.expanded_prompt) == ("none", prompt)
    assert made.notes == (
        f"{start}, because no language model is here: sora weights pull {name}",
    )  # fmt: skip


@pytest.mark.parametrize("answer", ["", " .,! "])
def test_without_an_answer_the_prompt_stands(
    ask: Callable[..., Expansion], tmp_path: Path, answer: str
) -> None:
    mute = reciter(tmp_path / "mute", answer)
    (mute / "known_words.txt").write_text("a red ball")
    made = ask("a red ball", folder=mute)
    assert (made.source, made.expanded_prompt) == ("none", "a red ball")
    assert made.notes[0].startswith("the prompt was used as it is, because")
    assert not _entries(tmp_path)  # a failure is not remembered


def test_when_the_language_model_fails_the_prompt_stands(
    ask: Callable[..., Expansion], folder: Path, models: Path
) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")
    made = ask("a red ball")
    assert (made.source, made.expanded_prompt) == ("none", "a red ball")
    assert "cannot be read" in made.notes[0] and "\n" not in made.notes[0]
    shutil.copy(models / "taught" / "model.safetensors", folder)
    assert ask("a red ball").source == "model"


def test_a_missing_folder_is_a_note(ask: Callable[..., Expansion], tmp_path: Path) -> None:
    made = ask("a red ball", folder=tmp_path / "nowhere")
    assert (made.source, made.expanded_prompt) == ("none", "a red ball")
    assert "cannot be read" in made.notes[0]


# ---------------------------------------------------------------- models of the open world


def test_a_model_of_the_open_world_is_told_what_to_do(
    ask: Callable[..., Expansion], models: Path, tmp_path: Path
) -> None:
    """Thoughts and quotation marks are gone, nothing is unknown, and it is remembered."""
    made = ask("a red corgi plays chess", folder=models / "writes")
    assert made == Expansion(prompt="a red corgi plays chess", expanded_prompt=LONG, source="model")
    assert ask("a red corgi plays chess", folder=models / "writes").source == "remembered"
    # The same words, asked for otherwise.
    assert ask("a red corgi plays chess", folder=models / "writes", picture=True).source == "model"
    assert ask('"a red corgi plays chess"', folder=models / "writes").expanded_prompt == LONG


@pytest.mark.parametrize(
    ("prompt", "clause"),
    [("a ball marked 'OPEN'", 'left out "OPEN"'), ("красный мяч", "another language")],
)
def test_an_answer_that_loses_something_does_not_stand(
    ask: Callable[..., Expansion], models: Path, tmp_path: Path, prompt: str, clause: str
) -> None:
    made = ask(prompt, folder=models / "writes")
    assert (made.source, made.expanded_prompt) == ("none", prompt)
    assert clause in made.notes[0]
    assert not _entries(tmp_path)


def test_random_words_never_stand(ask: Callable[..., Expansion], tmp_path: Path) -> None:
    made = ask("красный мяч", folder=babbler(tmp_path / "babbler"))
    assert (made.source, made.expanded_prompt) == ("none", "красный мяч")


@pytest.mark.parametrize("prompt", ["word " * 150, "x" * 100_000, "球" * 400])
def test_a_long_prompt_says_enough(
    ask: Callable[..., Expansion], models: Path, prompt: str
) -> None:
    made = ask(prompt, folder=models / "writes")
    assert (made.source, made.expanded_prompt, made.notes) == ("none", prompt.strip(), ())


def test_pictures_are_shown_to_a_model_that_sees(
    ask: Callable[..., Expansion], models: Path
) -> None:
    def shown(prompt: str, *seeds: int, given_as: str = "first", model: str = "sees") -> str:
        given = [_picture(seed) for seed in seeds]
        return ask(prompt, folder=models / model, given=given, given_as=given_as).source

    assert shown("it rolls", 0) == "model"
    assert shown("it rolls", 0) == "remembered"
    assert shown("it rolls", 1) == "model"  # another picture
    assert shown("it rolls", 0, given_as="clip") == "model"  # another task
    assert shown("it rolls", 0, 1, given_as="first-and-last") == "model"
    assert shown("", 0) == "model"  # from the picture alone
    assert shown("it rolls", 0, model="writes") == "model"  # blind, and told so
    assert shown("it rolls", 1, model="writes") == "remembered"
    assert shown("", 0, model="writes") == "none"  # nothing to write from


def test_a_model_that_sees_also_writes_from_text_alone(
    ask: Callable[..., Expansion], models: Path
) -> None:
    assert ask("a red corgi", folder=models / "sees").expanded_prompt == LONG


# ---------------------------------------------------------------- where it runs


@pytest.fixture
def large(models: Path, tmp_path: Path) -> Path:
    """A model that counts as large: more than 256 MB, most of it holes that take no room."""
    path = Path(shutil.copytree(models / "writes", tmp_path / "large"))
    with (path / "more.safetensors").open("wb") as file:
        file.truncate(150_000_000)
    return path


def test_a_large_model_runs_where_it_is_told(ask: Callable[..., Expansion], large: Path) -> None:
    assert ask("a red ball", folder=large).source == "model"
    elsewhere = ask("a red ball", seed=2, folder=large, device="cuda:63")
    assert (elsewhere.source, len(elsewhere.notes)) == ("none", 1)  # a note, no error


def test_a_small_model_stays_on_the_cpu(ask: Callable[..., Expansion]) -> None:
    assert ask("a red ball", device="cuda:63", dtype=torch.float16).source == "model"


def test_what_memory_cannot_hold_is_not_loaded(ask: Callable[..., Expansion], large: Path) -> None:
    """The kernel would end the program, and with it the video that needs no expansion."""
    with (large / "more.safetensors").open("wb") as file:
        file.truncate(2**43)
    made = ask("a red ball", folder=large, dtype=torch.float32)
    assert made.source == "none" and "GB free" in made.notes[0]


# ---------------------------------------------------------------- the embedded model's own


@pytest.mark.parametrize("prompt", ["a red ball", "two cones on the snow"])
def test_the_embedded_model_keeps_what_was_asked(
    ask: Callable[..., Expansion], prompt: str
) -> None:
    """It is told nothing and answers in its own way, whatever else the call says."""
    made = ask(prompt, folder=TINY, seed=3)
    assert made.source == "model" and "camera" in made.expanded_prompt
    assert prompt.split()[-1].rstrip("s") in made.expanded_prompt
    given = ask(
        prompt, folder=TINY, seed=3, given=[_picture(0)], given_as="first", device="cuda:63"
    )
    assert (given.source, given.expanded_prompt) == ("remembered", made.expanded_prompt)


# ---------------------------------------------------------------- a model of one world


@pytest.fixture
def world(folder: Path) -> Path:
    """A model that always says CAPTION, with the words of the world and what they mean."""
    write_words(folder)
    return folder


def test_what_was_misspelt_is_no_unknown_word(ask: Callable[..., Expansion], world: Path) -> None:
    made = ask("a smal rde blal")
    assert (made.expanded_prompt, made.notes) == (
        CAPTION, ("read smal as small, rde as red, blal as ball",)
    )  # fmt: skip
    assert ask("a small red ball").source == "remembered"  # the same question


def test_what_stands_for_what_is_told(ask: Callable[..., Expansion], world: Path) -> None:
    note = ask("five pink corgis and a flurble").notes[0]
    assert note == (
        "tiny never learned: pink (here: red), corgis (here: snowman), flurble; "
        "get an open-domain model: sora weights list"
    )
    assert "tiny shows 3 things at most" in ask("five pink corgis").notes
    assert not any("at most" in note for note in ask("three pink corgis").notes)


def test_what_a_caption_does_not_keep_is_told(ask: Callable[..., Expansion], world: Path) -> None:
    """It is asked again and again; this one has only one answer."""
    made = ask("a blue cube at night, no snow")
    assert made.expanded_prompt == CAPTION
    assert made.notes == ("the caption may not keep: cube, at night, no snow",)
    assert ask("a blue cube at night, no snow").notes == made.notes  # remembered


def test_of_what_happens_a_terse_prompt_says_more_than_a_wrong_caption(
    ask: Callable[..., Expansion], world: Path
) -> None:
    """No answer has the collision, so that the prompt stands as it was typed."""
    made = ask("a red ball hits a small cube")
    assert (made.source, made.expanded_prompt) == ("none", "a red ball hits a small cube")
    assert made.notes == ("the prompt was used as it is, because no caption kept: collision, cube",)


def test_no_caption_of_the_world_does_not_stand(
    ask: Callable[..., Expansion], tmp_path: Path
) -> None:
    folder = reciter(tmp_path / "other", "A red ball red red. ball")
    write_words(folder)
    made = ask("a red ball", folder=folder)
    assert (made.source, made.expanded_prompt) == ("none", "a red ball")
    assert "no caption came of it" in made.notes[0]


def test_a_prompt_that_names_nothing_is_told_so(ask: Callable[..., Expansion], world: Path) -> None:
    assert "knows nothing that this prompt names" in ask("the economy").notes[-1]
    assert ask("", given_as=None).notes == ()


def test_denials_are_never_passed_on(ask: Callable[..., Expansion], world: Path) -> None:
    """The video model was trained on captions, which deny nothing."""
    dense = "A small red ball bounces on the snow by day. The camera stays still, not at night."
    assert ask(dense).expanded_prompt == CAPTION
    assert ask(CAPTION.replace("small", "large")).source == "none"  # a caption already


def test_a_faulty_answer_is_asked_for_again() -> None:
    """First in the same words with other seeds, then in plainer ones; the best stands."""
    question = Question(folder=TINY, prompt="a ball", seed=1, retold="a red ball")
    first = ask_model(question)
    assert first == ask_model(question, faults=lambda _: 0)
    assert "red ball" in ask_model(question, faults=lambda answer: "red" not in answer)
    assert ask_model(question, faults=lambda _: 3) == first  # none is better
