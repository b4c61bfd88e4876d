"""Predicted against measured peak memory: `python -m sora_cli.bench.memory`.

Each case runs in a fresh process, on networks of random weights in sizes between the embedded model
and the published ones, and reports the most it has had resident (on CUDA: allocated). The
prediction is that of `runtime/plan.py` for the phase, plus on the CPU what a process takes that
runs the same code on networks of no size: Python, torch and the kernels' code, which is measured
too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sora_cli.bench.timing import refusal
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.text_encoder import TextEncoder, TextEncoderConfig
from sora_cli.models.vae import VAE, VAEConfig
from sora_cli.models.vae_tiles import decode_stream_tiled
from sora_cli.runtime.memory import peak_memory, return_large_blocks
from sora_cli.runtime.plan import MemoryPlan, phase_bytes
from sora_cli.runtime.shapes import (
    JobShape,
    NetworkShapes,
)

TEXT = TextEncoderConfig(
    vocab_size=32_000, hidden_size=1024, num_layers=10, num_heads=16, head_dim=64, ffn_dim=2816
)
TRANSFORMER = DiTConfig(
    num_layers=10, hidden_size=1024, num_heads=8, ffn_dim=5504, in_channels=16, out_channels=16,
    text_dim=1024, text_len=256,
)  # fmt: skip
VAE_21 = VAEConfig(
    z_dim=16, encoder_dim=48, decoder_dim=48, dim_mult=(1, 2, 4, 4), residual=False,
    temporal_downsample=(False, True, True), latents_mean=(0.0,) * 16, latents_std=(1.0,) * 16,
)  # fmt: skip
VAE_22 = replace(VAE_21, encoder_dim=64, decoder_dim=64, residual=True, patch_size=2)
# 208 × 176 pixels, 5 latent frames of 26 × 22: a phase of each kind takes 5 to 20 s on one core.
JOB = JobShape(
    width=208, height=176, num_frames=9, steps=1, dtype="float32", device_kind="cpu",
    given_frames=9,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One phase of one job on one set of networks, under one plan."""

    phase: str
    job: JobShape = JOB
    vae: VAEConfig = VAE_21
    transformer: DiTConfig = TRANSFORMER
    text: TextEncoderConfig = TEXT
    tile: int | None = None

    @property
    def shapes(self) -> NetworkShapes:
        """The networks as plain numbers."""
        return NetworkShapes.of(self.transformer, self.vae, self.text)

    def predicted(self) -> int:
        """Bytes of the phase, one network at a time."""
        way = MemoryPlan(keep=False, keep_text_encoder=False, tile=self.tile)
        return phase_bytes(way, self.shapes, self.job)[self.phase]


_DENOISE = replace(JOB, width=416, height=352, num_frames=17)
CASES: Mapping[str, Case] = {
    "text encoder": Case(phase="encode text"),
    "transformer, fp32": Case(phase="denoise", job=_DENOISE),
    "transformer, bf16": Case(phase="denoise", job=replace(_DENOISE, dtype="bfloat16")),
    "transformer, fp32, batch of 2": Case(
        phase="denoise", job=replace(_DENOISE, num_frames=9, batch=2)
    ),
    "encoder 2.1": Case(phase="encode given"),
    "decoder 2.1": Case(phase="decode"),
    "decoder 2.1, tiles": Case(
        phase="decode", job=replace(JOB, width=352, height=208, num_frames=5), tile=128
    ),
    "encoder 2.2": Case(phase="encode given", vae=VAE_22, job=replace(JOB, width=320, height=256)),
    "decoder 2.2": Case(phase="decode", vae=VAE_22),
}
# The same code on next to nothing: what is resident then is the process itself.
_NOTHING = Case(
    phase="",
    job=replace(JOB, width=32, height=32, num_frames=5),
    transformer=replace(TRANSFORMER, num_layers=1, hidden_size=64, num_heads=1, ffn_dim=64),
    text=replace(TEXT, vocab_size=64, num_layers=1, hidden_size=64, num_heads=1, ffn_dim=64),
    vae=replace(VAE_21, encoder_dim=16, decoder_dim=16),
)


def build(make: Callable[[], nn.Module], device: str, dtype: torch.dtype) -> Any:
    """A network of small random weights, each in memory once."""
    with torch.device("meta"):
        network = make()
    network = network.to(dtype).to_empty(device=device)
    for parameter in network.parameters():
        parameter.uniform_(-0.02, 0.02)
    return network.eval()


def _encode_text(case: Case, device: str) -> None:
    encoder = build(lambda: TextEncoder(case.text), device, getattr(torch, case.job.dtype))
    length = case.transformer.text_len
    ids = torch.randint(case.text.vocab_size, (1, length), device=device)
    encoder(ids, torch.ones_like(ids))


def _denoise(case: Case, device: str) -> None:
    job, config = case.job, case.transformer
    dtype = getattr(torch, job.dtype)
    dit = build(lambda: DiT(config), device, dtype)
    size = job.latent_size(case.shapes.autoencoder)
    context = torch.zeros(job.batch, config.text_len, config.text_dim, device=device)
    caches = [dit.prepare_context(context) for _ in range(job.contexts // job.batch)]
    latents = torch.randn(job.batch, config.in_channels, *size, device=device)
    timesteps = torch.full((job.batch,), 500.0, device=device)
    velocities = [dit(latents, timesteps, cache) for cache in caches]
    assert all(velocity.isfinite().all() for velocity in velocities)


def _encode_given(case: Case, device: str) -> None:
    vae, job = build(lambda: VAE(case.vae), device, torch.float32), case.job
    vae.encode(torch.zeros(1, 3, job.given_frames, job.height, job.width, device=device))


def _decode(case: Case, device: str) -> None:
    dtype = torch.float32 if device == "cpu" else getattr(torch, case.job.dtype)
    vae = build(lambda: VAE(case.vae), device, dtype)
    size = case.job.latent_size(case.shapes.autoencoder)
    latents = torch.randn(1, case.vae.z_dim, *size, device=device, dtype=dtype)
    if case.tile is None:
        chunks = vae.decode_stream(latents)
    else:
        chunks = decode_stream_tiled(vae, latents, case.tile)
    for chunk in chunks:
        frames = ((chunk[0].float() / 2 + 0.5) * 255).round().to(torch.uint8)
        del chunk, frames


PHASES: Mapping[str, Callable[[Case, str], None]] = {
    "encode text": _encode_text,
    "encode given": _encode_given,
    "denoise": _denoise,
    "decode": _decode,
}


def run_case(case: Case, device: str) -> dict[str, float]:
    """Run it in this process: the peak in bytes, and seconds."""
    return_large_blocks()
    torch.manual_seed(0)
    began = time.perf_counter()
    with torch.no_grad():
        PHASES[case.phase](case, device)
    peak = peak_memory() if device == "cpu" else torch.cuda.max_memory_allocated()
    assert peak is not None, "this platform does not say how much memory a process had"
    return {"peak": peak, "seconds": time.perf_counter() - began}


def measure(name: str, device: str) -> dict[str, float]:
    """Run a case, or a phase of `CASES` on nothing, in a process of its own."""
    words = [sys.executable, "-m", "sora_cli.bench.memory", "--child", name, "--device", device]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def report(names: list[str], device: str) -> float:
    """Write the table; the largest relative error of a prediction."""
    phases = dict.fromkeys(CASES[name].phase for name in names)
    base = {phase: measure(phase, device)["peak"] if device == "cpu" else 0 for phase in phases}
    say = sys.stdout.write
    say(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}\n\n")
    say("| phase | the process itself, MB | predicted, with it | measured | ratio | s |\n")
    say("|-|-|-|-|-|-|\n")
    worst = 0.0
    for name in names:
        itself, found = base[CASES[name].phase], measure(name, device)
        predicted = itself + CASES[name].predicted()
        ratio = predicted / found["peak"]
        worst = max(worst, abs(ratio - 1))
        megabytes = (f"{n / 1e6:.0f}" for n in (itself, predicted, found["peak"]))
        say(f"| {name} | {' | '.join(megabytes)} | {ratio:.3f} | {found['seconds']:.1f} |\n")
        sys.stdout.flush()
    say(f"\nlargest error: {worst:.1%}\n")
    return worst


def main(argv: list[str] | None = None) -> int:
    """Parse and run; 1 where a prediction is off by more than `--within`."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.bench.memory", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--within", type=float, default=0.15, help="the error that is allowed")
    parser.add_argument("--child", default=None, help="measure this one, in this process")
    arguments = parser.parse_args(argv)
    if code := refusal(arguments.device):
        return code
    if arguments.child is None:
        return int(report(arguments.cases, arguments.device) > arguments.within)
    name = arguments.child
    case = replace(_NOTHING, phase=name) if name in PHASES else CASES[name]
    sys.stdout.write(json.dumps(run_case(case, arguments.device)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
