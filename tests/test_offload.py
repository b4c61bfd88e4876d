"""Blocks that pass through the device: the same bits, whatever stays and whoever asks first.

Run on the CPU, where the slots are plain memory and a copy is done when it is asked for; what is
tested is all that can be wrong without a GPU: which block lies where, and when.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sora_cli.bench import offload
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.fp8 import Fp8Linear, quantise
from sora_cli.runtime.offload import BlockStream, streamed

PLAIN = DiTConfig(
    num_layers=5, hidden_size=24, num_heads=2, ffn_dim=32, in_channels=4, out_channels=4,
    text_dim=8, text_len=6,
)  # fmt: skip
IMAGE = DiTConfig(
    num_layers=3, hidden_size=24, num_heads=2, ffn_dim=32, in_channels=4, out_channels=4,
    text_dim=8, text_len=6, image_dim=10,
)  # fmt: skip
VACE = DiTConfig(
    num_layers=4, hidden_size=24, num_heads=2, ffn_dim=32, in_channels=4, out_channels=4,
    text_dim=8, text_len=6, vace_layers=(0, 2), vace_in_channels=6,
)  # fmt: skip
CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(config: DiTConfig) -> DiT:
    dit = DiT(config).eval().requires_grad_(False)
    for seed, parameter in enumerate(dit.parameters()):
        parameter.copy_(0.3 * random(*parameter.shape, seed=seed))
    return dit


@torch.no_grad()
def run(dit: DiT, seed: int = 0) -> Tensor:
    """One call as the pipeline makes it: the context's keys and values first, then a step."""
    config = dit.config
    image = None if config.image_dim is None else random(1, 257, config.image_dim, seed=3)
    control = None
    if config.vace_in_channels is not None:
        control = random(1, config.vace_in_channels, 2, 4, 4, seed=4)
    context = dit.prepare_context(random(1, config.text_len, config.text_dim, seed=seed), image)
    latents = random(1, config.in_channels, 2, 4, 4, seed=seed + 1)
    return dit(latents, torch.tensor([500.0]), context, control)


@pytest.mark.parametrize("config", [PLAIN, IMAGE, VACE], ids=["plain", "image", "vace"])
@pytest.mark.parametrize("resident", [0, 1, 2])
def test_outputs_are_the_same_bits(config: DiTConfig, resident: int) -> None:
    dit = build(config)
    wanted = [run(dit, seed) for seed in range(3)]
    state = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    stream = BlockStream([*dit.vace_blocks, *dit.blocks[resident:]], CPU)
    found = [run(dit, seed) for seed in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    during = dit.state_dict()
    assert all(torch.equal(during[name], tensor) for name, tensor in state.items())
    stream.close()
    after = dit.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    loads = stream.loads
    assert torch.equal(run(dit), wanted[0])
    assert stream.loads == loads, "a closed stream still moves blocks"


def test_blocks_are_fetched_one_ahead() -> None:
    """After the first pass the computation never has to ask: the next block is on its way."""
    dit = build(PLAIN)
    stream = BlockStream(list(dit.blocks[1:]), CPU)
    run(dit)
    assert stream.waits <= 2
    waits, loads = stream.waits, stream.loads
    for _ in range(3):
        run(dit)
    assert stream.waits == waits
    assert stream.loads == loads + 3 * 2 * 4  # four blocks, for the context and for the step
    stream.close()


def test_only_two_blocks_are_in_the_slots() -> None:
    """And the others point to host memory: the weights are not in memory twice."""
    dit = build(PLAIN)
    stream = BlockStream(list(dit.blocks), CPU)
    run(dit)
    slots = {slot.untyped_storage().data_ptr() for slot in stream._slots}
    inside = [
        block
        for block in dit.blocks
        if block.self_attn.q.weight.untyped_storage().data_ptr() in slots
    ]
    assert len(slots) == len(inside) == 2
    assert len({id(parameter) for parameter in dit.parameters()}) == len(list(dit.parameters()))
    stream.close()


def test_calls_out_of_order_are_right_and_wait() -> None:
    """The order is only a guess: whoever asks for a block gets that block."""
    dit = build(PLAIN)
    context = random(1, 6, 24)
    wanted = [block.cross_attn.keys_values(context) for block in dit.blocks]
    stream = BlockStream(list(dit.blocks), CPU)
    for index in (3, 0, 4, 4, 1, 2, 0, 3, 1):
        found = dit.blocks[index].cross_attn.keys_values(context)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted[index], strict=True))
    stream.close()


def test_a_single_block_and_inference_mode() -> None:
    dit = build(PLAIN)
    wanted = run(dit)
    with torch.inference_mode():
        stream = BlockStream([dit.blocks[-1]], CPU)
        assert torch.equal(run(dit), wanted)
        stream.close()
    assert torch.equal(run(dit), wanted)
    assert not any(parameter.is_inference() for parameter in dit.parameters())


def test_weights_in_8_bits_pass_through() -> None:
    """What is moved is what is stored: 8-bit values and their scales, and no wider copy."""
    dit = build(PLAIN)
    for block in dit.blocks:
        inner = block.ffn[0]
        block.ffn[0] = Fp8Linear(quantise(inner.weight), inner.bias, torch.float32)
    wanted = run(dit)
    stream = BlockStream(list(dit.blocks[2:]), CPU)
    assert torch.equal(run(dit), wanted)
    assert dit.blocks[3].ffn[0].weight_fp8.dtype == torch.float8_e4m3fn
    stream.close()
    assert torch.equal(run(dit), wanted)


class LateLane:
    """Copies as late as they may be: only when somebody waits for them, or for a later one.

    Time is counted in calls. What is right here waits for every copy that it reads; and no copy
    may be asked for that does not come after all that was computed from its slot's last content.
    """

    def __init__(self) -> None:
        self.now = 0
        self.pending: list[tuple[int, Tensor, Tensor]] = []
        self.begun: dict[int, int] = {}  # slot → when the computation last began to read it

    def copy(self, target: Tensor, source: Tensor, after: int | None) -> tuple[int, int]:
        self.now += 1
        slot = target.data_ptr()
        if slot in self.begun:
            assert after is not None and after > self.begun[slot], "written while it is read"
        self.pending.append((self.now, target, source))
        return self.now, slot

    def wait(self, copied: tuple[int, int]) -> None:
        self.now += 1
        self.begun[copied[1]] = self.now
        while self.pending and self.pending[0][0] <= copied[0]:
            _, target, source = self.pending.pop(0)
            target.copy_(source)

    def mark(self) -> int:
        self.now += 1
        return self.now

    def finish(self) -> None:
        while self.pending:
            _, target, source = self.pending.pop(0)
            target.copy_(source)


@pytest.mark.parametrize("config", [PLAIN, IMAGE, VACE], ids=["plain", "image", "vace"])
@pytest.mark.parametrize("resident", [0, 1, 2])
def test_copies_that_run_beside_the_computation_are_waited_for(
    config: DiTConfig, resident: int
) -> None:
    """The order of events on a device, with every copy as late and as early as it may be."""
    dit, lane = build(config), LateLane()
    wanted = [run(dit, seed) for seed in range(3)]
    blocks = [*dit.vace_blocks, *dit.blocks[resident:]]
    stream = BlockStream(blocks, CPU, lane)
    for slot in stream._slots:
        slot.fill_(0x7F)  # what was there before: numbers that are none
    assert all(torch.equal(run(dit, seed), wanted[seed]) for seed in range(3))
    assert len(lane.pending) == (len(blocks) > 2), "the next block is on its way"
    stream.close()
    assert torch.equal(run(dit), wanted[0])


def test_on_a_cpu_nothing_is_streamed() -> None:
    """Every block is where it computes, so nothing is copied, hooked or changed."""
    dit = build(PLAIN)
    wanted = run(dit)
    with streamed(dit, "cpu") as stream:
        assert stream is None
        assert torch.equal(run(dit), wanted)
    assert not any(module._forward_pre_hooks for module in dit.modules())


def test_the_measurement_runs_small_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Every placement gives the same bits, and is reported; on a card the same code is timed."""
    words = ["--device", "cpu", "--model", "1.3b-480p", "--scale", "0.1", "--rounds", "1"]
    assert offload.main([*words, "--dtype", "float32"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if " of 3 |" in line]
    assert [row.split()[1] for row in rows] == ["3", "2", "1", "0"]
    assert all(row.endswith("| same |") for row in rows)
    for wrong in (["--model", "x"], ["--rounds", "0"], ["--scale", "2"]):
        assert offload.main([*words, *wrong]) == 2
        assert "hint: " in capsys.readouterr().err
