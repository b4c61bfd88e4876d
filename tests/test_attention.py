"""The choice of an attention backend: by a timer that is handed in, on the CPU's two backends.

What is protected: the fastest that can and that agrees is taken, noise changes nothing, a shape is
tried once, the trial is small, and the user's word goes before all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sora_cli.errors import UsageError
from sora_cli.models import attention, fused

Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(attention.VARIABLE, raising=False)
    attention.forget()
    fused.reset()
    yield
    attention.forget()
    fused.reset()


def inputs(tokens: int = 6, heads: int = 2, keys: int | None = None) -> Inputs:
    torch.manual_seed(tokens)
    query = torch.randn(1, heads, tokens, 8)
    key, value = torch.randn(2, 1, heads, keys or tokens, 8)
    return query, key, value


def timer(*seconds: float) -> Callable[[Callable[[], object]], float]:
    """Says these one after another, having made each call."""
    left = list(seconds)

    def timed(call: Callable[[], object]) -> float:
        call()
        return left.pop(0)

    return timed


# A CPU has no cuDNN and no memory-efficient kernel: they are left out without being timed.
@pytest.mark.parametrize(
    ("seconds", "best"),
    [((1.0, 0.5, 0.4), "math"), ((1.0, 0.5, 0.6), "flash"), ((1.0, 0.98, 0.99), "default"),
     ((1.0, 2.0, 2.0), "default")],
)  # fmt: skip
def test_the_fastest_is_taken_if_it_is_clearly_faster(
    seconds: tuple[float, ...], best: str
) -> None:
    names = ("cudnn", "flash", "efficient", "math")
    assert attention.fastest(*inputs(), timer(*seconds), names) == best


def test_what_gives_something_else_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.run

    def wrong(name: str, *tensors: Tensor) -> Tensor:
        return right(name, *tensors) * (1.1 if name == "flash" else 1.0)

    monkeypatch.setattr(attention, "run", wrong)
    assert attention.fastest(*inputs(), timer(1.0, 0.9), ("flash", "math")) == "math"


def test_a_trial_is_cut_short_and_made_once_for_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "TRIAL", 16)
    tried: list[tuple[int, int]] = []

    def fastest(query: Tensor, key: Tensor, *_: object) -> str:
        tried.append((query.shape[2], key.shape[2]))
        return "math"

    monkeypatch.setattr(attention, "fastest", fastest)
    for tokens in (20, 31, 40, 100, 9, 15):
        assert attention.choice(*inputs(tokens)) == "math"
    assert tried == [(20, 20), (9, 9)]
    attention.choice(*inputs(20, keys=5))
    attention.choice(*inputs(20, heads=4))
    assert len(tried) == 4 and len(attention.chosen()) == 4


def test_long_inputs_are_tried_on_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "TRIAL", 16)
    shapes: list[torch.Size] = []

    def timed(call: Callable[[], object]) -> float:
        out = call()
        assert isinstance(out, Tensor)
        shapes.append(out.shape)
        return 1.0

    attention.fastest(*inputs(40, keys=5), timed, ("math",))
    assert set(shapes) == {torch.Size((1, 2, 16, 8))}


@pytest.mark.parametrize("name", ["default", "flash", "math"])
def test_the_users_word_is_followed_without_a_trial(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(attention.VARIABLE, name)
    assert attention.choice(*inputs()) == name
    wanted = torch.nn.functional.scaled_dot_product_attention(*inputs())
    torch.testing.assert_close(attention.attend(*inputs()), wanted)


def test_a_backend_that_cannot_is_told_of_and_a_name_that_is_none_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(attention.VARIABLE, "cudnn")  # on a CPU
    assert attention.choice(*inputs()) == "default"
    (said,) = fused.take_notes()
    assert "cudnn cannot compute torch.float32" in said
    attention.forget()
    monkeypatch.setenv(attention.VARIABLE, "flesh")
    with pytest.raises(UsageError, match="no attention backend"):
        attention.choice(*inputs())
