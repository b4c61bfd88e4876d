"""What every training recipe needs: a time box, an EMA, a checkpoint, a log counted in samples."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(kw_only=True)
class Run:
    """A time-boxed, resumable run in `folder`: its clock, counters and log."""

    folder: Path
    minutes: float
    samples: int = 0
    steps: int = 0
    seconds: float = 0.0  # trained so far, earlier sessions included
    began: float = field(default_factory=time.monotonic)
    averages: dict[str, float] = field(default_factory=dict)
    logged: float = 0.0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def elapsed(self) -> float:
        """Seconds of this run, all sessions together."""
        return self.seconds + time.monotonic() - self.began

    @property
    def progress(self) -> float:
        """0 → 1 over the time box."""
        return min(1.0, self.elapsed / (60 * self.minutes))

    def count(self, samples: int, **values: float) -> None:
        """Count one step and average its values; write a log line every ten seconds."""
        self.samples += samples
        self.steps += 1
        for name, value in values.items():
            old = self.averages.get(name, value)
            self.averages[name] = old + (value - old) * 0.02
        if self.elapsed - self.logged > 10:
            self.logged = self.elapsed
            self.log(**self.averages)

    def log(self, **values: Any) -> None:
        """Append a line to log.jsonl and show it on stderr."""
        row = {"samples": self.samples, "steps": self.steps, "seconds": round(self.elapsed, 1)}
        row |= {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        sys.stderr.write(json.dumps(row) + "\n")

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on counting."""
        return {"samples": self.samples, "steps": self.steps, "seconds": self.elapsed}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's counters."""
        self.samples, self.steps = state["samples"], state["steps"]
        self.seconds, self.began = state["seconds"], time.monotonic()
        self.logged = self.seconds


def learning_rate(progress: float, peak: float, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine to zero at the end of the time box."""
    return peak * min(1.0, (steps + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, for matrices and convolution kernels (as [out, rest]).

    Keller Jordan et al. 2024; the update is scaled to the size of AdamW's (arXiv 2502.16982), so
    one learning rate serves both. torch.optim.Muon takes no convolutions.
    """

    def __init__(self, parameters: list[nn.Parameter], momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}  # one by one they are too small
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
                    if not self.state[parameter]:
                        self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            for shape, parameters in alike.items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                moments = [self.state[p]["momentum"] for p in parameters]
                torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
                updates = torch.stack(gradients).lerp_(torch.stack(moments), group["momentum"])
                matrices = orthogonalize(updates.flatten(2)).view_as(updates)
                size = 0.2 * max(shape[0], shape[1:].numel()) ** 0.5
                torch._foreach_add_(parameters, list(matrices.unbind()), alpha=-group["lr"] * size)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest to `[N, rows, columns]` with orthonormal rows (or columns), roughly.

    Quintic Newton–Schulz, in bf16.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Ema:
    """Exponential moving average of the parameters, with a horizon that grows with the run."""

    def __init__(self, model: nn.Module, horizon: float = 0.05) -> None:
        self.model, self.horizon = model, horizon
        self.shadow = {k: v.detach().float().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Average over about the last `horizon` of all steps (never more than 2,000)."""
        weight = 1 / min(max(self.horizon * steps, 10.0), 2000.0)
        ours = list(self.shadow.values())
        theirs = [v.detach().float() for v in self.model.state_dict().values()]
        torch._foreach_lerp_(ours, theirs, weight)

    def state(self) -> dict[str, Tensor]:
        """The averaged parameters, by name."""
        return self.shadow


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training checkpoint atomically."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """A checkpoint of an earlier session, or None."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def run_recipe(
    parser: argparse.ArgumentParser, train: Callable[[argparse.Namespace], None]
) -> None:
    """Run a recipe; with `--dry-run` two steps of it, in a folder that is thrown away after."""
    parser.add_argument("--dry-run", action="store_true", help="two steps, nothing is kept")
    arguments = parser.parse_args()
    if not arguments.dry_run:
        train(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="sora-dry-run-") as folder:
        for part in ("vae", "vae-run"):  # what a decoder alone is trained on
            if (arguments.out / part).is_dir() and getattr(arguments, "decoder_only", False):
                shutil.copytree(arguments.out / part, Path(folder) / part)
        arguments.out, arguments.steps = Path(folder), 2
        train(arguments)


def commit() -> str:
    """The commit that the recipe runs at, for the weights' provenance."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = Path(__file__).parent
    result = subprocess.run(command, capture_output=True, text=True, cwd=here, check=False)
    return result.stdout.strip() or "unknown"
