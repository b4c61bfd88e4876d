"""Triton's kernels in its interpreter, against the plain torch code that they stand in for.

What is protected: every kernel gives its twin's result for any width, length, grouping and dtype; a
kernel that is wrong or does not compile is replaced by the twin, and that is said once; the
transformer as a whole is the same with and without them. The interpreter cuts off where a GPU
rounds to bfloat16, so there a result may be one rounding off; in the other dtypes it is exact to
fp32's own last digits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sora_cli.models import fp8, fused, residual
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.layers import LayerNorm, RMSNorm, SelfAttention, rope_table
from sora_cli.runtime import costs
from sora_cli.runtime.shapes import TransformerShape
from tests.live_tensors import LiveTensors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CONFIG = DiTConfig(
    num_layers=2, hidden_size=36, num_heads=3, ffn_dim=40, in_channels=4, out_channels=4,
    text_dim=8, text_len=6, freq_dim=16,
)  # fmt: skip


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    fused.reset()
    with torch.no_grad():
        yield
    fused.reset()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filled(module: nn.Module) -> Any:
    for seed, parameter in enumerate(module.parameters()):
        parameter.copy_(draw(*parameter.shape, seed=100 + seed))
    return module


def verdicts() -> set[str]:
    """Kernels that ran and agreed with their twins."""
    return {seen[0] for seen in fused._verdicts}


def agree(kernel: fused.Kernel, *args: Any) -> None:
    """The kernel launched by itself, not by way of the check, on all tokens."""
    for mine, right in zip(kernel.launch(*args), kernel.plain(*args), strict=True):
        assert mine.dtype == right.dtype and mine.shape == right.shape
        assert fused.within(mine, right), (mine.float() - right.float()).abs().max()


# Batch, tokens, width, groups, whether the batch shares the modulation.
SHAPES = [(1, 1, 8, 1, True), (2, 6, 24, 3, True), (2, 6, 50, 6, False), (1, 5, 129, 1, False)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "tokens", "width", "groups", "shared"), SHAPES)
def test_sums_and_norms_equal_their_twins(
    batch: int, tokens: int, width: int, groups: int, shared: bool, dtype: torch.dtype
) -> None:
    """The modulation is read where `unbind` of the time projection leaves it, strided."""
    rows = 1 if shared else batch
    x, update = draw(batch, tokens, width), draw(batch, tokens, width, seed=1, dtype=dtype)
    shift, scale, gate = draw(rows, groups, 3, width, seed=2).unbind(2)
    norm, own = LayerNorm(width), filled(LayerNorm(width, affine=True)).to(dtype)
    agree(residual._ADD, x, update, gate)
    agree(residual._NORM, norm, x, dtype, shift, scale)
    agree(residual._NORM, own, x, dtype, None, None)
    agree(residual._ADD_NORM, own, x, update, gate, dtype, None, None)
    agree(residual._ADD_NORM, norm, x, update, None, dtype, shift, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "grid", "heads", "head_dim"),
    [(1, (1, 1, 1), 1, 2), (2, (2, 1, 3), 3, 12), (1, (1, 3, 2), 2, 34)],
)
def test_norm_and_rotation_equal_their_twin(
    batch: int, grid: tuple[int, int, int], heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    from sora_cli.models.layers import _NORM_ROTATE

    width, tokens = heads * head_dim, grid[0] * grid[1] * grid[2]
    query, key = (draw(batch, tokens, width, seed=seed, dtype=dtype) for seed in (1, 2))
    norms = filled(RMSNorm(width)).to(dtype), filled(RMSNorm(width)).to(dtype)
    rope = rope_table(grid, head_dim, torch.device("cpu"))
    agree(_NORM_ROTATE, norms, (query, key), rope, heads)
    agree(_NORM_ROTATE, norms[:1], (query,), None, heads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (7, 50), (5, 1000)])
def test_rounding_to_8_bits_equals_its_twin(tokens: int, width: int, dtype: torch.dtype) -> None:
    """Bit for bit: of large, small and no numbers, beside each other in the rows of a batch."""
    x = draw(1, tokens, width, dtype=dtype)
    x[:, -1] = 0
    x[:, tokens // 2] *= 1e4
    for mine, right in zip(fp8._ROUND.launch(x), fp8._ROUND.plain(x), strict=True):
        assert mine.dtype == right.dtype and torch.equal(mine.float(), right.float())


def test_every_8_bit_number_is_rounded_to() -> None:
    """To nearest, ties to even: every one of them, what lies between two, and its neighbours."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = numbers[numbers.isfinite()].sort().values
    between = (numbers[1:] + numbers[:-1]) / 2
    beside = [torch.nextafter(between, side) for side in (numbers[1:], numbers[:-1])]
    x = torch.cat([numbers, between, *beside, torch.tensor([1e-30, -1e-30])])[None]
    rounded = fp8.quantise_rows(x)
    assert rounded.scale == 1 and verdicts() == {"rounding to 8 bits"}
    assert torch.equal(rounded.values.float(), x.to(torch.float8_e4m3fn).float())


def test_the_stream_is_written_over_once_a_kernel_is_proved() -> None:
    """With one block of memory fewer, the same numbers; and a kernel that fails leaves it alone."""
    gate, update = draw(1, 1, 8, seed=2), draw(1, 6, 8, seed=1)
    x = draw(1, 6, 8)
    (wanted,) = residual._plain_add(x, update, gate)
    kept = x.clone()
    residual._ADD.launch(x, update, gate)
    assert torch.equal(x, kept), "not while it is looked at"
    found = residual.add_gated(x, update, gate)
    assert found.data_ptr() == x.data_ptr() and fused.within(found, wanted)
    once = draw(1, 6, 8)[:, :1].expand(1, 6, 8)  # one row that stands for all: not to be written
    before = once.clone()
    (wanted,) = residual._plain_add(once, update, gate)
    assert fused.within(residual.add_gated(once, update, gate), wanted)
    assert torch.equal(once, before) and not fused.overwrites()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ffn_dim", [36, 150], ids=["attention", "feed-forward"])
def test_live_bytes_are_the_planned_ones(
    dtype: torch.dtype, ffn_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 4 %, while kernels are held to their twins and after, whatever phase takes the most.

    Programs on a device allocate nothing, so they are left out, and their results not looked at.
    """
    from sora_cli.models import kernels

    class Program:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *args, **more: None

    for name in ("residual_norm_kernel", "norm_rotate_kernel"):
        monkeypatch.setattr(kernels, name, Program())
    monkeypatch.setattr(fused, "within", lambda found, right: True)
    monkeypatch.setattr(fused, "SAMPLED", 8)  # of the few tokens that there are here
    config = replace(CONFIG, ffn_dim=ffn_dim)
    dit, latents = DiT(config).to(dtype), draw(1, 4, 3, 32, 48)
    context = dit.prepare_context(draw(1, 6, 8))
    kept = [tensor for pair in context.keys_values for tensor in pair]
    shape = TransformerShape.of(config)
    predicted = costs.block_bytes(shape, 3 * 16 * 24, dtype.itemsize, kernels=True)
    rope_table((3, 16, 24), config.head_dim, latents.device)  # is remembered
    for _ in range(2):
        with LiveTensors([latents, *kept, *dit.parameters()]) as live:
            dit(latents, torch.tensor([500.0]), context)
        assert predicted / live.peak == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("per_frame", [False, True], ids=["one-time", "time-per-frame"])
@pytest.mark.parametrize("cross_attn_norm", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_the_transformer_is_the_same(
    per_frame: bool, cross_attn_norm: bool, qk_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kernel takes part, and what has no kernel goes the plain way."""
    config = replace(CONFIG, cross_attn_norm=cross_attn_norm, qk_norm=qk_norm)
    dit = filled(DiT(config)).eval()
    times = torch.tensor([[900.0, 100.0]]) if per_frame else torch.tensor([500.0])
    inputs = draw(1, 4, 2, 4, 6), times, draw(1, 6, 8, seed=3)
    found = dit(*inputs)
    assert verdicts() == {"gated sum", "norm", "sum and norm"} | (
        {"norm and rotation"} if qk_norm else set()
    )
    assert fused.take_notes() == ()
    monkeypatch.delenv("TRITON_INTERPRET")
    torch.testing.assert_close(found, dit(*inputs), rtol=2e-4, atol=2e-4)


def test_checks_are_made_once_for_a_class_of_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 to 7 tokens are a class; the blocks of a network, whose weights differ, are one too."""
    counted: list[int] = []
    counting = replace(residual._ADD, plain=lambda *a: counted.append(1) or residual._plain_add(*a))
    monkeypatch.setattr(residual, "_ADD", counting)
    for tokens in (5, 6, 7, 5, 8, 15):
        residual.add_gated(draw(1, tokens, 4), draw(1, tokens, 4), draw(1, 1, 4))
    assert len(counted) == 2
    norms = [filled(LayerNorm(12, affine=True)) for _ in range(3)]
    for norm in norms:
        residual.normed(norm, draw(1, 4, 12), torch.float32)
    assert len([seen for seen in fused._verdicts if seen[0] == "norm"]) == 1


@pytest.mark.parametrize("fault", ["wrong", "broken", "nan"])
def test_a_faulty_kernel_is_switched_off_and_that_is_said_once(fault: str) -> None:
    def launch(x: Tensor, update: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
        if fault == "broken":
            raise ValueError("the compiler gave up\nsecond line")
        (out,) = residual._plain_add(x, update, gate)
        out[:, -1, 0] += float("nan") if fault == "nan" else 1e-3  # one number of the last token
        return (out,)

    kernel = replace(residual._ADD, name="faulty", launch=launch)
    args = draw(1, 700, 4), draw(1, 700, 4, seed=1), draw(1, 1, 4, seed=2)
    for _ in range(2):
        assert torch.equal(kernel(*args)[0], residual._plain_add(*args)[0])
    (said,) = fused.take_notes()
    assert said.startswith("plain torch from here on instead of the kernel faulty: ")
    assert "second line" not in said
    assert ("the compiler gave up" in said) == (fault == "broken")
    assert fused.take_notes() == ()


def test_memory_that_runs_out_is_no_reason_to_switch_off() -> None:
    def launch(*args: Tensor) -> tuple[Tensor, ...]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    kernel = replace(residual._ADD, name="hungry", launch=launch)
    with pytest.raises(torch.OutOfMemoryError):
        kernel(draw(1, 2, 4), draw(1, 2, 4), draw(1, 1, 4))
    assert fused.take_notes() == () and not fused._off


@pytest.mark.parametrize(
    ("found", "right", "allowed"),
    [
        (1.0, 1.0, True), (1.0 + 2**-8, 1.0, True), (1.0 + 2**-6, 1.0, False),
        (float("inf"), float("inf"), True), (float("nan"), float("nan"), True),
        (float("nan"), 1.0, False), (1.0, float("nan"), False), (-float("inf"), 1.0, False),
    ],
)  # fmt: skip
def test_the_bound_is_one_rounding(found: float, right: float, allowed: bool) -> None:
    """Of bfloat16, beside a number of the same size so that fp32's share of the bound counts."""
    mine, other = (torch.tensor([1.0, value], dtype=torch.bfloat16) for value in (found, right))
    assert fused.within(mine, other) == allowed


def test_training_compiling_and_the_switch_leave_kernels_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = draw(1, 2, 8)
    assert fused.usable(x)
    with torch.enable_grad():
        assert not fused.usable(x)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not fused.usable(x)  # a CPU has none outside the interpreter
    gpu = torch.empty(1, device="meta")
    assert not fused.usable(gpu)


def test_attention_with_kernels_trains_as_without() -> None:
    """Gradients flow through the plain code: kernels have no backward."""
    layer = filled(SelfAttention(12, 2, qk_norm=True, eps=1e-6))
    with torch.enable_grad():
        x = draw(1, 4, 12).requires_grad_()
        layer(x, rope_table((1, 2, 2), 6, torch.device("cpu"))).sum().backward()
    assert x.grad is not None and verdicts() == set()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sora_cli.models import kernels

def build(kernel, pointers, constants):
    types = pointers | {"eps": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    shape = {"num_warps": 8}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=shape).asm

FLOAT, HALF = "*fp32", "*bf16"
for adds, gated, norms in ((1, 1, 0), (0, 0, 1), (1, 1, 1), (1, 0, 1)):
    sides = dict(x=FLOAT, update=HALF, gate=FLOAT, shift=FLOAT, scale=FLOAT, out=FLOAT, normed=HALF)
    flags = dict(ADDS=adds, GATED=gated, NORMS=norms, AROUND_ONE=1, WIDTH=1536, BLOCK=2048)
    absent = [] if adds else ["update", "out"]
    absent += [] if gated else ["gate"]
    absent += [] if norms else ["shift", "scale", "normed"]
    made = build(kernels.residual_norm_kernel, sides, flags | dict.fromkeys(absent))
    assert made["cubin"] and (not norms or "cvt.rn.bf16" in made["ptx"])
sides = dict.fromkeys(("query", "key", "query_weight", "key_weight", "query_out", "key_out"), HALF)
for pairs in (0, 64):
    flags = dict(WIDTH=5120, BLOCK=8192, PAIRS=pairs) | ({} if pairs else {"table": None})
    made = build(kernels.norm_rotate_kernel, sides | {"table": FLOAT}, flags)
    assert made["cubin"] and "cvt.rn.bf16" in made["ptx"]
flags = dict(WIDTH=13824, BLOCK=16384, LARGEST=448.0)
made = build(kernels.quantise_kernel, dict(x=HALF, values="*fp8e4nv", scale=FLOAT), flags)
assert made["cubin"] and "cvt.rn.satfinite.e4m3x2" in made["ptx"]
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """To machine code of Hopper (sm_90), rounding to nearest where they write bfloat16."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False,
        cwd=Path(__file__).resolve().parents[1], env=environ | {"TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
