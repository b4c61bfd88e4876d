"""The note on words that a model never learned: which they are, in any script, and the way out."""

from __future__ import annotations

import pytest

from sora_cli.pipeline.expand import unknown_note, unknown_words
from tests.language_folders import KNOWN


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
