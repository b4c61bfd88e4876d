"""The other side of the comparison: diffusers and transformers on the same files.

diffusers is not needed to run anything else, so it is imported here, when it is asked for.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

VERSION = "0.42.1"  # that the comparison is made with
MISSING = f"diffusers is not installed: pip install diffusers=={VERSION}"


def available() -> bool:
    """Whether diffusers is there."""
    return importlib.util.find_spec("diffusers") is not None


def loader_missing() -> str | None:
    """Why `loaded` cannot be used: it needs accelerate to load in another dtype than fp32."""
    if not available():
        return MISSING
    there = importlib.util.find_spec("accelerate") is not None
    return None if there else "diffusers cannot load it without accelerate: pip install accelerate"


def _diffusers() -> Any:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()  # of keys in our configs that it has none for
    return diffusers


def transformer(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """`WanTransformer3DModel` with the folder's weights, as `from_pretrained(dtype=…)` gives it.

    That refuses to work without the package accelerate; the modules that it keeps in fp32 whatever
    the dtype (time embedding, modulation, norms) are kept in fp32 here too.
    """
    kind = _diffusers().WanTransformer3DModel
    network = _fill(kind, folder, device, dtype, keep=tuple(kind._keep_in_fp32_modules))
    config: Any = network.config
    # Its table is no parameter and not in the file.
    sizes = config.attention_head_dim, config.patch_size, config.rope_max_seq_len
    network.rope = type(network.rope)(*sizes).to(device)
    return network.eval()


def vae(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """`AutoencoderKLWan` with the folder's weights."""
    return _fill(_diffusers().AutoencoderKLWan, folder, device, dtype).eval()


def text_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """`UMT5EncoderModel` with the folder's weights."""
    from transformers import UMT5EncoderModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return UMT5EncoderModel.from_pretrained(folder, dtype=dtype).to(device).eval()


def pipeline(folder: Path, device: torch.device, dtype: torch.dtype, vae_dtype: torch.dtype) -> Any:
    """`WanPipeline` of the folder's parts, one timestep for all frames."""
    from transformers import PreTrainedTokenizerFast

    diffusers = _diffusers()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    _straight(scheduler)
    made = diffusers.WanPipeline(
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        text_encoder=text_encoder(folder / "text_encoder", device, dtype),
        vae=vae(folder / "vae", device, vae_dtype),
        transformer=transformer(folder / "transformer", device, dtype),
        scheduler=scheduler,
        expand_timesteps=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def opened(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """`WanPipeline` as its users open it; put together from its parts where accelerate is missing.

    Its autoencoder is fp32, as diffusers' pages say.
    """
    if loader_missing():
        return pipeline(folder, device, dtype, torch.float32)
    diffusers = _diffusers()
    vae = diffusers.AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    made = diffusers.WanPipeline.from_pretrained(folder, vae=vae, torch_dtype=dtype).to(device)
    made.set_progress_bar_config(disable=True)
    return made


def _straight(scheduler: Any) -> None:
    """Left alone, diffusers' Euler scheduler shifts its smallest noise level twice."""
    own = scheduler.set_timesteps

    def set_timesteps(num_inference_steps: int, device: Any = None) -> None:
        levels = torch.linspace(1, 0.001, num_inference_steps + 1, dtype=torch.float64)[:-1]
        own(sigmas=levels.numpy(), device=device)

    scheduler.set_timesteps = set_timesteps


def loaded(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A transformer through `from_pretrained` onto the device: what its users wait for."""
    kind = _diffusers().WanTransformer3DModel
    return kind.from_pretrained(folder, dtype=dtype).to(device)


def compile_blocks(network: Any) -> None:
    """diffusers' regional compilation, in place."""
    network.compile_repeated_blocks(fullgraph=True)


def _fill(
    kind: Any, folder: Path, device: torch.device, dtype: torch.dtype, keep: tuple[str, ...] = ()
) -> nn.Module:
    """A network built without values, and given the file's."""
    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        network: nn.Module = kind.from_config(config)
    state = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file, device=str(device)).items():
            wide = any(part in keep for part in name.split("."))
            # A copy: what the library reads is a view of the file, aligned to nothing.
            state[name] = tensor.to(torch.float32 if wide else dtype, copy=True)
    network.load_state_dict(state, strict=True, assign=True)
    return network.requires_grad_(False)
