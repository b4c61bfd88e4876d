"""Write trained networks as the parts of a diffusers folder, the layout everybody reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sora_cli.models.vae import VAE
from sora_cli.weights.keymaps_vae import rename_parameter, vae_config_to_diffusers, vae_original


def write_part(folder: Path, config: dict[str, Any], state: dict[str, Tensor], name: str) -> None:
    """Write `config.json` and one safetensors file in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {k: v.detach().cpu().to(torch.float16).contiguous() for k, v in state.items()}
    save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})


def save_vae(folder: Path, vae: VAE) -> None:
    """`vae/` as diffusers' AutoencoderKLWan reads it."""
    table = vae_original(vae.config)
    state = {rename_parameter(k, table): v for k, v in vae.state_dict().items()}
    write_part(folder, vae_config_to_diffusers(vae.config), state, "diffusion_pytorch_model")
