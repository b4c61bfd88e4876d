"""Write trained networks as the embedded model: a diffusers folder, the layout everybody reads.

`python -m sora_cli.train.export RUN TARGET` puts the parts that the recipes wrote under RUN
together in TARGET, with the model index, the checksums and the weights' provenance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor

from sora_cli.models.dit import DiT
from sora_cli.models.text_encoder import TextEncoder
from sora_cli.models.vae import VAE
from sora_cli.train.loop import commit, load_checkpoint
from sora_cli.weights import keymaps
from sora_cli.weights.keymaps_vae import rename_parameter, vae_config_to_diffusers, vae_original
from sora_cli.weights.store import SUMS

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "language_model", "captioner")
PROVENANCE = "provenance.json"
START = "start.json"  # in a transformer's run: the counters of the weights it began from
MAX_SHARD = "14MB"  # a repository keeps every version of a file
INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.42.1",
    "_name_or_path": "tiny",
    "boundary_ratio": None,
    "expand_timesteps": True,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def write_part(folder: Path, config: dict[str, Any], state: dict[str, Tensor], name: str) -> None:
    """Write `config.json` and half-precision safetensors, in shards where they are large."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {k: v.detach().cpu().to(torch.float16).contiguous() for k, v in state.items()}
    pattern = name + "{suffix}.safetensors"
    save_torch_state_dict(tensors, folder, filename_pattern=pattern, max_shard_size=MAX_SHARD)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes them for the owner alone


def save_vae(folder: Path, vae: VAE) -> None:
    """`vae/` as diffusers' AutoencoderKLWan reads it."""
    table = vae_original(vae.config)
    state = {rename_parameter(k, table): v for k, v in vae.state_dict().items()}
    write_part(folder, vae_config_to_diffusers(vae.config), state, "diffusion_pytorch_model")


def save_dit(folder: Path, dit: DiT) -> None:
    """`transformer/` as diffusers' WanTransformer3DModel reads it."""
    names = keymaps.rename(dit.state_dict(), keymaps.inverse(keymaps.DIT_DIFFUSERS))
    state = {names[k]: v for k, v in dit.state_dict().items()}
    write_part(
        folder, keymaps.dit_config_to_diffusers(dit.config), state, "diffusion_pytorch_model"
    )


def save_text_encoder(folder: Path, encoder: TextEncoder) -> None:
    """`text_encoder/` as transformers' UMT5EncoderModel reads it."""
    names = keymaps.rename(encoder.state_dict(), keymaps.inverse(keymaps.UMT5_HF))
    state = {names[k]: v for k, v in encoder.state_dict().items()}
    write_part(folder, keymaps.text_encoder_config_to_hf(encoder.config), state, "model")


def assemble(run: Path, target: Path, shift: float) -> None:
    """Copy the parts under `run` into `target` and write what makes them one model."""
    target.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if (run / part).is_dir():
            shutil.rmtree(target / part, ignore_errors=True)
            shutil.copytree(run / part, target / part)
    (target / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.42.1",
        "num_train_timesteps": 1000,
        "shift": shift,
    }
    (target / "scheduler").mkdir(exist_ok=True)
    (target / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(scheduler, indent=2) + "\n"
    )
    text = json.dumps(provenance(run, target), indent=2) + "\n"
    (target / PROVENANCE).write_text(text)
    write_sums(target)


def provenance(run: Path, target: Path) -> dict[str, Any]:
    """Where the weights come from: the code's commit, the machine, and each recipe's counters.

    Those of the parts of `target` that `run` does not bring stay as they are.
    """
    rows: dict[str, Any] = {
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "recipes": "docs/guides/training.md, seed 0",
        "runs": _kept_runs(run, target),
    }
    for folder in sorted(run.glob("*-run")):
        state = load_checkpoint(folder / "checkpoint.pt")
        if state is not None:
            part = rows["runs"][folder.name.removesuffix("-run")] = state["run"]
            if (folder / START).is_file():
                part["started_from"] = json.loads((folder / START).read_text())
    log, weights = run / "transformer-run" / "log.jsonl", parameters(run / "transformer")
    if log.is_file() and "transformer" in rows["runs"]:
        flops = 6 * weights * tokens_seen(log)
        rows["runs"]["transformer"] |= {
            "parameters": weights,
            "flops": float(f"{flops:.3g}"),  # 6 · parameters · tokens, attention left out
            "flops_per_second": float(f"{flops / rows['runs']['transformer']['seconds']:.3g}"),
        }
    return rows


def _kept_runs(run: Path, target: Path) -> dict[str, Any]:
    file = target / PROVENANCE
    before = json.loads(file.read_text())["runs"] if file.is_file() else {}
    return {
        name: row
        for name, row in before.items()
        if not (run / name.removesuffix("_decoder")).is_dir()
    }


def remember_start(model: Path, run: Path) -> None:
    """Keep in a part's run folder what its starting weights had been trained on."""
    file, part = model / PROVENANCE, run.name.removesuffix("-run")
    before = json.loads(file.read_text())["runs"].get(part, {}) if file.is_file() else {}
    (run / START).write_text(json.dumps(before) + "\n")


def parameters(part: Path) -> int:
    """How many numbers the weights of a part are."""
    return sum(t.numel() for file in part.glob("*.safetensors") for t in load_file(file).values())


def tokens_seen(log: Path) -> float:
    """Tokens that a transformer's run was trained on, by its log."""
    total, before = 0.0, 0
    for line in log.read_text().splitlines():
        row = json.loads(line)
        total += 1000 * row["ktokens"] * max(row["steps"] - before, 0)
        before = row["steps"]
    return total


def machine() -> str:
    """Processor, cores and torch of this machine, for figures that depend on them."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        rows = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = rows[0].partition(": ")[2] if rows else name
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


def write_sums(target: Path) -> None:
    """SHA256SUMS over every file of the model, checked whenever it is loaded."""
    about = (SUMS, PROVENANCE)  # of the weights, not part of them
    files = sorted(p for p in target.rglob("*") if p.is_file() and p.name not in about)
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(target).as_posix()}\n"
        for p in files
    ]
    (target / SUMS).write_text("".join(lines))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder with transformer/, vae/, text_encoder/, …")
    parser.add_argument("target", type=Path, help="sora_cli/assets/tiny")
    parser.add_argument("--shift", type=float, default=3.0, help="of the noise levels")
    arguments = parser.parse_args()
    assemble(arguments.run, arguments.target, arguments.shift)


if __name__ == "__main__":
    main()
