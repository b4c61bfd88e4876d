"""Matmuls in 8 bits: the device's own against their plain twin, and what the rounding costs.

torch multiplies 8-bit floats on a CPU too, slowly: enough to hold our call of it to the twin.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sora_cli.cli.main import main
from sora_cli.models import fp8
from sora_cli.models.fp8 import Fp8FeedForward, Fp8Linear, Fp8Matmul, Fp8Weight, quantise
from sora_cli.models.layers import FeedForward
from sora_cli.runtime.offload import BlockStream
from sora_cli.weights import load, store
from tests import figures
from tests.test_offload import VACE, build, run

BF16 = torch.bfloat16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40), inputs=st.sampled_from([16, 48, 128]),
    outputs=st.sampled_from([16, 64]), bias=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_the_devices_matmul_is_the_plain_one(
    rows: int, inputs: int, outputs: int, bias: bool, seed: int
) -> None:
    x = fp8.quantise_rows(random(rows, inputs, seed=seed).to(BF16))
    weight = quantise(random(outputs, inputs, seed=seed + 10))
    added = random(outputs, seed=seed).to(BF16) if bias else None
    found = fp8.matmul(x, weight, added, BF16)
    wanted = fp8.matmul_plain(x, weight, added, BF16)
    assert found.dtype == wanted.dtype == BF16
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2**-7)


def test_rows_have_scales_of_their_own() -> None:
    """A row of large numbers takes nothing from the others, zeros stay zeros, nothing overflows."""
    x = random(7, 64)
    x[2] *= 1e4
    x[5] = 0
    whole = fp8.quantise_rows(x)
    assert torch.isfinite(whole.values.float()).all() and whole.scale.shape == (7, 1)
    back = whole.dequantised(torch.float32)
    assert torch.equal(back[5], x[5])
    for row in (0, 1, 2, 3, 4, 6):
        assert off(back[row], x[row]) < 0.05


def test_a_feed_forward_layer_takes_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their number, and from a view with gaps."""
    plain = FeedForward(16, 48).requires_grad_(False)
    rounded = Fp8FeedForward(plain[0], plain[2])
    x = random(2, 5, 3, 16)[:, :, 1]
    wanted = rounded(x)
    monkeypatch.setattr(fp8, "ROWS", 3)
    torch.testing.assert_close(rounded(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_what_the_rounding_costs_a_feed_forward_layer(dtype: torch.dtype) -> None:
    plain = FeedForward(256, 1024).to(dtype).requires_grad_(False)
    x = random(2, 50, 256).to(dtype)
    wanted = FeedForward.forward(plain.float(), x.float())
    rounded = Fp8FeedForward(*(layer.to(dtype) for layer in (plain[0], plain[2])))
    found = rounded(x)
    assert found.shape == x.shape and found.dtype == dtype
    figures.within(0.06, f"8-bit feed-forward, {dtype}, relative error", off(found, wanted))


def test_only_feed_forward_layers_change() -> None:
    dit = build(VACE)
    wanted, before = run(dit), dict(dit.named_modules())
    fp8.multiply_in_fp8(dit)
    changed = {name for name, module in dit.named_modules() if isinstance(module, Fp8FeedForward)}
    blocks = [f"blocks.{n}" for n in range(4)] + [f"vace_blocks.{n}" for n in range(2)]
    assert changed == {f"{block}.ffn" for block in blocks}
    for name, module in dit.named_modules():
        if ".ffn" not in name:
            assert module is before[name]
    assert 0 < off(run(dit), wanted) < 0.05
    assert all(not parameter.requires_grad for parameter in dit.parameters())


def test_weights_that_are_stored_in_8_bits_are_taken_as_they_are() -> None:
    weight, bias = quantise(random(32, 16)), random(32)
    stored = Fp8Linear(weight, bias, torch.float32)
    matmul = fp8._in_fp8(stored)
    assert matmul.weight_fp8.data_ptr() == stored.weight_fp8.data_ptr(), "no second copy"
    assert torch.equal(matmul.weight_scale, stored.weight_scale)
    x = random(5, 16)
    assert off(matmul(x), stored(x)) < 0.05
    other = Fp8Weight(values=weight.values, scale=torch.full((1, 1), 0.01))  # one for the matrix
    again = fp8._in_fp8(Fp8Linear(other, bias, torch.float32))
    assert isinstance(again, Fp8Matmul) and again.weight_scale.shape == (32, 1)
    assert off(again(x), Fp8Linear(other, bias, torch.float32)(x)) < 0.05


def test_they_pass_through_the_slots() -> None:
    dit = build(VACE)
    fp8.multiply_in_fp8(dit)
    wanted = run(dit)
    stream = BlockStream(list(dit.blocks[1:]), torch.device("cpu"))
    assert torch.equal(run(dit), wanted)
    stream.close()
    assert torch.equal(run(dit), wanted)


def test_a_transformer_loads_with_them() -> None:
    part = store.locate("tiny").parts["transformer"]
    with load.dit(part, device="cpu", dtype=BF16, fp8_matmul="ffn") as dit:
        assert isinstance(dit.blocks[0].ffn, Fp8FeedForward)
        assert isinstance(dit.blocks[0].self_attn.q, nn.Linear)
        assert dit.blocks[0].ffn[0].weight_fp8.dtype == torch.float8_e4m3fn


def test_a_device_without_them_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a ball", "--fp8-matmul", "ffn", "--device", "cpu"]) == 4
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: cpu has no fp8 matmuls") and "--fp8-matmul" in hint
    assert not list(here.iterdir())
