"""How fast a transformer's weights become a network: `python -m sora_cli.bench.loading`.

Writes a checkpoint of random values in a published model's shapes, with as many layers as asked
for, into a temporary folder. Then the file is, in fresh processes and in turn,

- mapped by the safetensors library, and every page touched: the library's tensors are views of the
  file, and their values are read when they are used;
- read by the library into memory (or onto the device) of its own, which is the raw read that
  loading is held against;
- loaded by `weights.load`: recognised, built on the meta device, read, assigned.

The best of each is reported. The file is in the page cache every time: the question is what
loading adds to reading, not how fast the disk is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sora_cli.bench.checkpoints import write_checkpoint
from sora_cli.bench.timing import refusal
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.runtime.memory import peak_memory
from sora_cli.weights import load
from sora_cli.weights.build import build_on_meta

WAN21_1_3B = DiTConfig(
    num_layers=30, hidden_size=1536, num_heads=12, ffn_dim=8960, in_channels=16, out_channels=16,
    text_dim=4096,
)  # fmt: skip
SHAPES: Mapping[str, DiTConfig] = {
    "wan2.1-t2v-1.3b": WAN21_1_3B,
    "wan2.1-t2v-14b": replace(
        WAN21_1_3B, num_layers=40, hidden_size=5120, num_heads=40, ffn_dim=13824
    ),
    "wan2.2-ti2v-5b": replace(
        WAN21_1_3B, hidden_size=3072, num_heads=24, ffn_dim=14336, in_channels=48, out_channels=48
    ),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PAGE = 4096


def parameter_shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    """Original names and shapes of a transformer's parameters, without making any."""
    network = build_on_meta(lambda: DiT(config), Path("bench"))
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def fit_layers(config: DiTConfig, size: int, dtype: torch.dtype) -> DiTConfig:
    """The config with as many layers (1 at least) as stay within `size` bytes."""
    one, two = (
        sum(torch.Size(s).numel() for s in parameter_shapes(replace(config, num_layers=n)).values())
        for n in (1, 2)
    )
    layers = 1 + (size // dtype.itemsize - one) // (two - one)
    return replace(config, num_layers=max(1, min(layers, config.num_layers)))


def read_raw(path: Path, device: str, *, copy: bool) -> list[Tensor]:
    """Read a file with the safetensors library and nothing else, every page of it."""
    from safetensors.torch import load_file

    tensors = load_file(path, device=device)
    for name, tensor in tensors.items():
        if device == "cpu" and copy:
            tensors[name] = tensor.clone()
        elif device == "cpu":
            tensor.flatten().view(torch.uint8)[::PAGE].sum()
    return list(tensors.values())


def resident_memory() -> int:
    """Bytes of this process that are in memory now; its peak where the platform does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_memory() or 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(what: str, path: Path, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of one way of reading a file, and by how much memory grew at its peak."""
    torch.empty(1, device=device)  # a GPU's context is nobody's loading time
    before, start = resident_memory(), time.perf_counter()
    if what != "load":
        kept = read_raw(path, device, copy=what == "read")
        seconds = time.perf_counter() - start
        del kept
    else:
        with load.dit(path, device=device, dtype=dtype):
            if device != "cpu":
                torch.accelerator.synchronize()
            seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak_bytes": (peak_memory() or 0) - before,
    }


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """Write the checkpoint, measure in turn, and put the best of each together."""
    stored, dtype = DTYPES[arguments.stored], DTYPES[arguments.dtype]
    config = SHAPES[arguments.model]
    config = (
        replace(config, num_layers=arguments.layers)
        if arguments.layers
        else fit_layers(config, arguments.megabytes * 1_000_000, stored)
    )
    shapes = parameter_shapes(config)
    rows: dict[str, list[dict[str, float]]] = {"map": [], "read": [], "load": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "checkpoint.safetensors"
        size = write_checkpoint(path, shapes, stored)
        for _ in range(arguments.repeats):
            for what, found in rows.items():
                command = [
                    sys.executable, "-m", "sora_cli.bench.loading", "--measure", what, str(path),
                    "--device", arguments.device, "--dtype", arguments.dtype,
                ]  # fmt: skip
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found.append(json.loads(done.stdout))
    report: dict[str, object] = {
        "model": arguments.model, "layers": config.num_layers, "device": arguments.device,
        "stored": arguments.stored, "dtype": arguments.dtype, "bytes": size,
        "resident_bytes": size // stored.itemsize * dtype.itemsize,
    }  # fmt: skip
    for what, found in rows.items():
        best = min(row["seconds"] for row in found)
        report[f"{what}_seconds"] = round(best, 4)
        report[f"{what}_gb_per_second"] = round(size / best / 1e9, 3)
        report[f"{what}_peak_bytes"] = int(min(row["peak_bytes"] for row in found))
    ratio = min(r["seconds"] for r in rows["read"]) / min(r["seconds"] for r in rows["load"])
    return report | {"speed_ratio": round(ratio, 3)}


def main(argv: list[str] | None = None) -> int:
    """Command line; prints the report as JSON."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.bench.loading", description=__doc__)
    parser.add_argument("--model", choices=list(SHAPES), default="wan2.2-ti2v-5b")
    parser.add_argument("--megabytes", type=int, default=500, help="as many layers as fit")
    parser.add_argument("--layers", type=int, default=None, help="instead of --megabytes")
    parser.add_argument("--stored", choices=list(DTYPES), default="bfloat16", help="in the file")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="of the network")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="for the checkpoint")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if code := refusal(arguments.device):
        return code
    if arguments.measure:
        what, path = arguments.measure
        print(json.dumps(measure(what, Path(path), arguments.device, DTYPES[arguments.dtype])))  # noqa: T201
        return 0
    print(json.dumps(run(arguments), indent=2))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
