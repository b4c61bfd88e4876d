"""Which LoRAs an option asks for: paths, scales and experts, read from strings alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_cli.errors import UsageError
from sora_cli.weights.lora_arguments import (
    Lora,
    assign_experts,
    fold_lora_arguments,
    for_expert,
    parse_lora,
)

PATHS = st.text(st.sampled_from("ab/=:.0 5-highlowbt"), min_size=1).map(Path)
LORAS = st.builds(
    Lora,
    path=PATHS.filter(lambda path: str(path).strip() != ""),
    scale=st.floats(-100, 100),
    expert=st.sampled_from(["both", "high", "low"]),
)


@given(LORAS)
def test_what_a_lora_prints_as_reads_back_as_itself(lora: Lora) -> None:
    """Recipes keep LoRAs as text, and must give back the very same."""
    assert parse_lora(str(lora)) == lora


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("a.safetensors", Lora(path=Path("a.safetensors"))),
        ("a.safetensors=0.8", Lora(path=Path("a.safetensors"), scale=0.8)),
        ("low:b/a=-1", Lora(path=Path("b/a"), scale=-1, expert="low")),
        ("high:x=y", Lora(path=Path("x=y"), expert="high")),
        ("C:/loras/a=.5", Lora(path=Path("C:/loras/a"), scale=0.5)),
    ],
)
def test_an_option_value_is_read(text: str, lora: Lora) -> None:
    assert parse_lora(text) == lora


@pytest.mark.parametrize("text", ["", " ", "=0.5", "high:", "a=nan", "a=inf", "a=1e999"])
def test_an_option_value_that_makes_no_sense_is_bad_usage(text: str) -> None:
    with pytest.raises(UsageError):
        parse_lora(text)


@pytest.mark.parametrize(
    ("words", "folded"),
    [
        ("--lora a 0.8 prompt", "--lora a=0.8 prompt"),
        ("--lora a prompt", "--lora a prompt"),
        ("--lora=a -0.8 prompt", "--lora=a=-0.8 prompt"),
        ("--lora a 1 --lora b 2 p", "--lora a=1 --lora b=2 p"),
        ("--lora a=0.5 7", "--lora a=0.5 7"),  # a prompt that is a number
        ("--seed 7 --lora a", "--seed 7 --lora a"),
        ("p -- --lora a 1", "p -- --lora a 1"),
        ("--lora", "--lora"),
    ],
)
def test_a_scale_after_the_path_is_folded_into_it(words: str, folded: str) -> None:
    assert fold_lora_arguments(words.split()) == folded.split()


@given(st.lists(st.sampled_from(["--lora", "--", "a", "0.5", "--lora=b", "-1", "--seed"])))
def test_folding_again_changes_nothing(words: list[str]) -> None:
    once = fold_lora_arguments(words)
    assert fold_lora_arguments(once) == once


def loras(*names: str) -> list[Lora]:
    return [Lora(path=Path(name)) for name in names]


@pytest.mark.parametrize(
    ("names", "experts"),
    [
        (("x_high_noise.safetensors", "x_low_noise.safetensors"), ["high", "low"]),
        (("x-LOW", "x-HIGH"), ["low", "high"]),
        (("high/a", "low/a", "style"), ["high", "low", "both"]),
        (("slow_high", "slow_low"), ["high", "low"]),
        (("x_high",), ["both"]),  # a name alone decides nothing
        (("slow_motion", "flower_glow"), ["both", "both"]),
        (("x_high", "y_low"), ["both", "both"]),
    ],
)
def test_a_pair_is_known_by_its_names(names: tuple[str, ...], experts: list[str]) -> None:
    assert [lora.expert for lora in assign_experts(loras(*names))] == experts


def test_each_expert_gets_its_own() -> None:
    both, high, low = loras("style", "a", "b")
    high, low = replace(high, expert="high"), replace(low, expert="low")
    assert assign_experts([both, high, low]) == (both, high, low)
    assert for_expert([both, high, low], "high") == (both, high)
    assert for_expert([both, high, low], "low") == (both, low)
    assert for_expert([both], None) == (both,)
    with pytest.raises(UsageError, match="a is for the high-noise expert"):
        for_expert([both, high], None)
