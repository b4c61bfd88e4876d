"""Expanding prompts: what is remembered, what passes unchanged, what the user is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sora_cli.pipeline import expand as module
from sora_cli.pipeline.expand import Expansion, expand, unknown_note, unknown_words

KNOWN = frozenset(
    {"a", "the", "on", "by", "day", "red", "ball", "bounces", "spins", "slides", "camera", "stays",
     "still", "snow", "grass", "small", "house", "video", "of", "please"}
)  # fmt: skip
CAPTION = "A small red ball bounces on the snow by day. The camera stays still."


class FakeModel:
    """Answers with a caption and counts how often it was asked."""

    asked: list[tuple[str, int]] = []
    answer: str | Exception = CAPTION

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def complete(self, prompt: str, *, seed: int) -> str:
        FakeModel.asked.append((prompt, seed))
        if isinstance(FakeModel.answer, Exception):
            raise FakeModel.answer
        return FakeModel.answer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "LanguageModel", FakeModel)
    FakeModel.asked, FakeModel.answer = [], CAPTION
    path = tmp_path / "language_model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "known_words.txt").write_text("\n".join(KNOWN))
    return path


@pytest.fixture
def ask(folder: Path, tmp_path: Path) -> Callable[..., Expansion]:
    def asked(prompt: str, seed: int = 1, **settings: object) -> Expansion:
        options = {"folder": folder, "cache_dir": tmp_path / "cache"} | settings
        return expand(prompt, seed=seed, **options)  # type: ignore[arg-type]

    return asked


def _entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "expansions").glob("*"))


# ---------------------------------------------------------------- expanding and remembering


def test_expands_once_then_remembers(ask: Callable[..., Expansion], tmp_path: Path) -> None:
    first = ask("a red ball")
    assert first == Expansion(prompt="a red ball", expanded_prompt=CAPTION, source="model")
    again = ask("  a red\nball ")
    assert (again.source, again.expanded_prompt) == ("remembered", CAPTION)
    assert again.prompt == "  a red\nball "  # as typed
    assert FakeModel.asked == [("a red ball", 1)]
    assert len(_entries(tmp_path)) == 1


def test_seed_picture_and_weights_are_told_apart(
    ask: Callable[..., Expansion], folder: Path
) -> None:
    ask("a red ball")
    ask("a red ball", seed=2)
    ask("a red ball", picture=True)
    (folder / "model.safetensors").write_bytes(b"other weights")
    ask("a red ball")
    (folder / "config.json").write_text('{"a": 1}')
    ask("a red ball")
    asked = ["a red ball", "a red ball", "a picture. a red ball", "a red ball", "a red ball"]
    assert [prompt for prompt, _ in FakeModel.asked] == asked


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": "another"}',
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
    monkeypatch.setattr(module, "MAX_REMEMBERED", 10)
    for seed in range(30):
        ask("a red ball", seed=seed)
    assert len(_entries(tmp_path)) <= 10
    assert ask("a red ball", seed=29).source == "remembered"
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
    assert FakeModel.asked == []


def test_switched_off_or_without_a_language_model(ask: Callable[..., Expansion]) -> None:
    assert ask("a  red ball", enabled=False).expanded_prompt == "a red ball"
    assert ask("a red corgi", folder=None) == Expansion(
        prompt="a red corgi", expanded_prompt="a red corgi"
    )
    assert "corgi" in ask("a red corgi", enabled=False).notes[0]
    assert FakeModel.asked == []


@pytest.mark.parametrize("answer", [RuntimeError("out of luck\nsecond line"), "", " .,! "])
def test_when_the_language_model_fails_the_prompt_stands(
    ask: Callable[..., Expansion], tmp_path: Path, answer: str | Exception
) -> None:
    FakeModel.answer = answer
    made = ask("a red ball")
    assert (made.source, made.expanded_prompt) == ("none", "a red ball")
    assert len(made.notes) == 1 and made.notes[0].startswith("the prompt was used as it is")
    assert "second line" not in made.notes[0]
    FakeModel.answer = CAPTION
    assert ask("a red ball").source == "model"  # a failure is not remembered


def test_a_missing_folder_is_a_note(ask: Callable[..., Expansion], tmp_path: Path) -> None:
    FakeModel.answer = OSError("gone")
    made = ask("a red ball", folder=tmp_path / "nowhere")
    assert (made.source, made.expanded_prompt) == ("none", "a red ball")
    assert "gone" in made.notes[0]


# ---------------------------------------------------------------- words never learned


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red ball", []),
        ("A RED BALL, bouncing!", []),
        ("two balls bounced; spinning houses slide", ["two"]),
        ("a Corgi and a corgi play chess", ["Corgi", "and", "play", "chess"]),
        ("the ball's shadow", ["shadow"]),
        ("a red ball 4k 1080p x 3", []),
        ("un ballon rouge", ["un", "ballon", "rouge"]),
        ("красный ball", ["красный"]),
        ("赤いボール", ["赤いボール"]),
        ("犬 on the snow", ["犬"]),
        ("एक लाल गेंद", ["एक", "लाल", "गेंद"]),
        ("🐶 on the grass", ["🐶"]),
        ("", []),
        ("1234 !!! ...", []),
    ],
)
def test_unknown_words(prompt: str, words: list[str]) -> None:
    found = [word for word in unknown_words(prompt, KNOWN) if word != "k"]
    assert found == words


def test_nothing_is_unknown_without_a_list() -> None:
    assert unknown_words("a corgi plays chess", frozenset()) == []
    assert unknown_note("a corgi", frozenset()) is None


def test_the_note_names_words_and_the_way_out() -> None:
    note = unknown_note("a corgi on the snow", KNOWN)
    assert note == (
        "tiny never learned: corgi; get an open-domain model: sora weights list"
    )  # fmt: skip
    many = unknown_note(" ".join(f"word{chr(97 + i)}q" for i in range(20)), KNOWN, model="small")
    assert many is not None and many.startswith("small never learned: ") and "and 12 more" in many
    long = unknown_note("z" * 10_000, KNOWN)
    assert long is not None and len(long) < 120
