"""Compiled blocks, and frames that come one chunk behind: the same results, in the same order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sora_cli.models import attention, compiled, fused
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.pipeline.transfer import one_behind, to_host
from sora_cli.runtime.plan import Placement
from sora_cli.weights import load, store

CONFIG = DiTConfig(
    num_layers=2, hidden_size=24, num_heads=2, ffn_dim=32, in_channels=4, out_channels=4,
    text_dim=8, text_len=6, vace_layers=(0,), vace_in_channels=6,
)  # fmt: skip


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network() -> DiT:
    dit = DiT(CONFIG).eval().requires_grad_(False)
    for seed, parameter in enumerate(dit.parameters()):
        parameter.copy_(0.3 * draw(*parameter.shape, seed=seed))
    return dit


@torch.no_grad()
def run(dit: DiT, seed: int = 0) -> Tensor:
    latents, control = draw(1, 4, 2, 4, 4, seed=seed), draw(1, 6, 2, 4, 4, seed=9)
    return dit(latents, torch.tensor([500.0]), draw(1, 6, 8, seed=seed + 1), control)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(compiled.CACHE, "")  # restored at the end, whatever is written
    monkeypatch.delenv(compiled.CACHE)
    yield
    fused.take_notes()
    attention.forget()
    torch._dynamo.reset()


def test_every_block_is_traced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """No break in the graph, VACE's branch and time per frame included; state dict untouched.

    Traced and run without a compiler, so that only oneDNN's GELU, which is not traced, is missing.
    """
    whole: Callable[..., Any] = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: whole(f, backend="eager", fullgraph=True))
    dit, names = network(), list(network().state_dict())
    wanted = [run(dit, seed) for seed in range(2)]
    compiled.compile_blocks(dit)
    for seed, right in enumerate(wanted):
        torch.testing.assert_close(run(dit, seed), right, rtol=1e-5, atol=1e-5)
    assert list(dit.state_dict()) == names


def test_attention_is_one_call_that_chooses_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend is not what was chosen while it was traced, nor its shapes' order."""
    attention.register()
    query, key, value = draw(3, 1, 2, 8, 16)
    with torch.no_grad():
        traced = torch.compile(attention.attend, backend="aot_eager", fullgraph=True)
        for name in ("math", "flash"):
            monkeypatch.setenv(attention.VARIABLE, name)
            attention.forget()
            found = traced(query, key, value)
            assert list(attention.chosen().values()) == [name]
            torch.testing.assert_close(found, attention.run("default", query, key, value))


def test_the_folder_for_what_is_compiled_is_set_unless_the_user_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled.compile_blocks(network(), tmp_path / "ours")
    assert os.environ[compiled.CACHE] == str(tmp_path / "ours")
    monkeypatch.setenv(compiled.CACHE, str(tmp_path / "theirs"))
    compiled.compile_blocks(network(), tmp_path / "ours")
    assert os.environ[compiled.CACHE] == str(tmp_path / "theirs")


def test_a_loaded_transformer_is_compiled_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled before a block runs; without the option it never is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    part = store.locate("tiny").parts["transformer"]
    for wanted in (False, True):
        with load.dit(
            part, device="cpu", dtype=torch.float32, compile=wanted, place=Placement()
        ) as dit:
            assert ("forward" in vars(dit.blocks[0])) == wanted


@pytest.mark.slow
def test_compiled_by_inductor_it_differs_by_rounding_alone(tmp_path: Path) -> None:
    """With a compiler of C++, and what it made kept in the folder."""
    dit = network()
    wanted = run(dit)
    compiled.compile_blocks(dit, tmp_path)
    torch.testing.assert_close(run(dit), wanted, rtol=1e-4, atol=1e-4)
    assert any(tmp_path.rglob("*.cpp"))


@pytest.mark.parametrize("runs_on", [[True] * 4, [False] * 4, [True, False, True, True]])
def test_results_come_in_order_and_only_one_late(runs_on: list[bool]) -> None:
    begun: list[int] = []

    def begin(number: int) -> tuple[Callable[[], int], bool]:
        begun.append(number)
        return lambda: number, runs_on[number]

    ahead = []
    for number in one_behind(range(4), begin):
        ahead.append(len(begun) - 1 - number)
        assert number == len(ahead) - 1
    assert len(ahead) == 4 and max(ahead) <= 1
    assert ahead == [int(late and number < 3) for number, late in enumerate(runs_on)]


def test_frames_of_a_cpu_come_at_once() -> None:
    chunks = [torch.full((2, 3, 4, 3), number, dtype=torch.uint8) for number in range(3)]
    taken: list[int] = []

    def made() -> Iterator[Tensor]:
        for number, chunk in enumerate(chunks):
            taken.append(number)
            yield chunk

    for number, frames in enumerate(to_host(made())):
        assert taken[-1] == number
        np.testing.assert_array_equal(frames, chunks[number].numpy())
