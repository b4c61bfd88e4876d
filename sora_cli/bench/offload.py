"""What streaming a transformer's blocks costs: `python -m sora_cli.bench.offload --device cuda`.

One forward on random weights, with every block on the device and with ever fewer, the others coming
from pinned host memory one ahead of the computation (`runtime/offload.py`). The results must be the
same bits; then seconds, their ratio, and the peak beside the plan's. On a CPU the same code runs
with copies that are done when they are asked for: that proves the path and no figure.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sora_cli.bench.cases import CUDA_CASES, Case, scaled
from sora_cli.bench.timing import lap, spread
from sora_cli.errors import SoraError, UsageError
from sora_cli.models.dit import DiT
from sora_cli.runtime import costs
from sora_cli.runtime.device import choose_device
from sora_cli.runtime.memory import is_out_of_memory
from sora_cli.runtime.offload import BlockStream
from sora_cli.runtime.plan import MemoryPlan, Placement, phase_bytes
from sora_cli.runtime.shapes import DeviceKind, JobShape

# Name → the workload of the benchmark with its shapes, and how many blocks the model has.
MODELS = {
    "1.3b-480p": ("1.3b-480p-step", 30),
    "5b-704p": ("5b-704p-step", 30),
    "14b-480p": ("14b-blocks-480p", 40),
    "14b-720p": ("14b-blocks-720p", 40),
}
EIGHTHS = (8, 6, 4, 2, 0)  # of the blocks that stay


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One placement. None: there was no room for it, or nobody says how much it took.

    resident: blocks that stay on the device. ratio: seconds over those with all blocks resident.
    peak, planned: bytes on the device. rate: GB/s that passed through. same: the bits are.
    """

    resident: int
    seconds: float | None = None
    ratio: float | None = None
    peak: int | None = None
    planned: int = 0
    rate: float | None = None
    same: bool | None = None


def case_of(model: str, scale: float) -> Case:
    """A model's shapes, one row of one forward.

    Raises UsageError for a model that is not in the table.
    """
    if model not in MODELS:
        raise UsageError(f"no such model: {model}", hint=f"--model {' or '.join(MODELS)}")
    name, layers = MODELS[model]
    case = next(case for case in CUDA_CASES if case.name == name)
    return scaled(
        replace(case, transformer=replace(case.transformer, num_layers=layers), rows=1), scale
    )


def job_of(case: Case, device: DeviceKind, dtype: str) -> JobShape:
    """One forward of one row, as the planner counts it."""
    return JobShape(
        width=case.width, height=case.height, num_frames=case.num_frames, steps=1, contexts=1,
        dtype=dtype, device_kind=device,
    )  # fmt: skip


def build(case: Case, device: torch.device, dtype: torch.dtype) -> DiT:
    """A transformer of small random weights, made where it computes."""
    with torch.device("meta"):
        dit = DiT(case.transformer)
    dit = dit.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for parameter in dit.parameters():
        parameter.uniform_(-0.02, 0.02)
    return dit


def call_of(case: Case, dit: DiT, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    """One forward, as a denoising step calls it: the context was prepared before."""
    config = case.transformer
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, config.in_channels, *case.latent_size, generator=generator)
    text = torch.randn(1, config.text_len, config.text_dim, generator=generator)
    context = dit.prepare_context(text.to(device, dtype))
    return partial(dit, latents.to(device), torch.full((1,), 500.0, device=device), context)


@contextmanager
def passing(dit: DiT, resident: int, device: torch.device) -> Iterator[BlockStream | None]:
    """Let all blocks but the first `resident` ones pass through the device."""
    blocks = list(dit.blocks[resident:])
    if not blocks:
        yield None
        return
    for block in blocks:
        block.to("cpu")
    stream = BlockStream(blocks, device)
    try:
        yield stream
    finally:
        stream.close()


def planned(case: Case, resident: int, device: torch.device, dtype: torch.dtype) -> int:
    """The bytes that the planner expects while denoising."""
    kept = None if resident == case.transformer.num_layers else resident
    way = MemoryPlan(keep=False, keep_text_encoder=False, placement=Placement(blocks_resident=kept))
    job = job_of(case, "cuda" if device.type == "cuda" else "cpu", str(dtype)[len("torch.") :])
    return phase_bytes(way, case.shapes, job)["denoise"]


@torch.no_grad()
def measure(case: Case, device: torch.device, dtype: torch.dtype, rounds: int) -> Iterator[Row]:
    """Every placement, from all blocks on the device to none, on the same weights."""
    dit, layers = build(case, device, dtype), case.transformer.num_layers
    whole: float | None = None
    wanted: Tensor | None = None
    for resident in dict.fromkeys(layers * eighths // 8 for eighths in EIGHTHS):
        row = Row(resident=resident, planned=planned(case, resident, device, dtype))
        try:
            with passing(dit, resident, device) as stream:
                call = call_of(case, dit, device, dtype)
                found, row = _measured(call, stream, row, device, rounds)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            gc.collect()
        else:
            wanted = found if wanted is None else wanted
            whole = row.seconds if resident == layers else whole
            ratio = None if whole is None or row.seconds is None else row.seconds / whole
            row = replace(row, ratio=ratio, same=torch.equal(found, wanted))
        yield row


def _measured(
    call: Callable[[], Tensor], stream: BlockStream | None, row: Row, device: torch.device,
    rounds: int,
) -> tuple[Tensor, Row]:  # fmt: skip
    """The result, and the median of `rounds` calls after one to warm up."""
    found = call().cpu()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = 0 if stream is None else stream.loads
    seconds = spread([lap(call, device).wall for _ in range(rounds)]).median
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    rate = None
    if stream is not None:
        rate = (stream.loads - before) / rounds * stream.block_bytes / seconds / 1e9
    return found, replace(row, seconds=seconds, peak=peak, rate=rate)


def line(row: Row, layers: int) -> str:
    """One row of the table."""

    def said(value: float | None, form: str, scale: float = 1.0) -> str:
        return "—" if value is None else format(value / scale, form)

    same = {None: "—", True: "same", False: "DIFFERENT"}[row.same]
    cells = [
        f"{row.resident} of {layers}", said(row.seconds, ".3f"), said(row.ratio, ".3f"),
        said(row.peak, ".2f", 1e9), f"{row.planned / 1e9:.2f}", said(row.rate, ".1f"), same,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |\n"


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 where bits differ."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.bench.offload", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--model", default="14b-480p", help=", ".join(MODELS))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes, to try it out")
    arguments = parser.parse_args(argv)
    say, different = sys.stdout.write, False
    try:
        if arguments.rounds < 1 or not 0 < arguments.scale <= 1:
            raise UsageError("--rounds begins at 1, --scale is at most 1", hint="--rounds 5")
        case = case_of(arguments.model, arguments.scale)
        plan = choose_device(arguments.device, arguments.dtype)
        layers = case.transformer.num_layers
        flops = costs.forward_flops(case.shapes, job_of(case, plan.kind, plan.dtype_name))
        say(f"{arguments.model}, {flops / 1e12:.4g} TFLOP a forward, {plan.dtype_name}, ")
        say(f"{plan.chip or plan.device_name}, torch {torch.__version__}\n\n")
        say("| blocks resident | seconds | ratio | peak, GB | planned, GB | GB/s | bits |\n")
        say(f"|{'-|' * 7}\n")
        for row in measure(case, plan.device, plan.dtype, arguments.rounds):
            say(line(row, layers))
            sys.stdout.flush()
            different = different or row.same is False
    except SoraError as error:
        sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
        return int(error.exit_code)
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
