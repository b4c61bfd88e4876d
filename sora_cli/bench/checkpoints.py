"""Checkpoints of random values, in diffusers' layout: what both sides of a comparison read.

Values are drawn once and repeated, scaled by what a parameter is, so that a network of several
billion parameters is written at the speed of the disk and its activations stay of order one.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.text_encoder import TextEncoder, TextEncoderConfig
from sora_cli.models.vae import VAE, VAEConfig
from sora_cli.weights import keymaps, store
from sora_cli.weights.build import build_on_meta
from sora_cli.weights.keymaps_vae import rename_parameter, vae_config_to_diffusers, vae_original
from sora_cli.weights.tensor_files import SAFETENSORS_DTYPES

Shape = tuple[int, ...]
BLOCK = 1 << 24  # random numbers that a file repeats
STRIDE = 1_000_003  # a prime: where the next tensor begins in them, so that no two are alike
TRANSFORMER_FILE = VAE_FILE = "diffusion_pytorch_model.safetensors"
TEXT_ENCODER_FILE = "model.safetensors"
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction",
    "use_flow_sigmas": True, "flow_shift": 3.0,
}  # fmt: skip
# Which library's class reads a part, as a folder's index says it.
CLASSES = {
    "scheduler": ("diffusers", "UniPCMultistepScheduler"),
    "text_encoder": ("transformers", "UMT5EncoderModel"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
    "transformer": ("diffusers", "WanTransformer3DModel"),
    "transformer_2": (None, None),
    "vae": ("diffusers", "AutoencoderKLWan"),
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def distribution(name: str, shape: Shape) -> tuple[float, float]:
    """Mean and standard deviation of a parameter, by its original name."""
    if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
        return 1.0, 0.3
    if len(shape) == 1 or name.endswith("modulation"):
        return 0.0, 0.3
    fan_in = torch.Size(shape[1:]).numel()
    if ".attn.q." in name:  # T5 keeps the 1/√K that attention lacks in this scale; its K is 64
        return 0.0, fan_in**-0.5 / 8
    return 0.0, fan_in**-0.5


def tiny_values(name: str, shape: Shape) -> tuple[float, float]:
    """One small deviation for everything: where only the bytes matter."""
    return 0.0, 0.02


def write_checkpoint(
    path: Path,
    shapes: Mapping[str, Shape],
    dtype: torch.dtype,
    values: Callable[[str, Shape], tuple[float, float]] = tiny_values,
) -> int:
    """Write a safetensors file of random values, piece by piece; returns its tensors' bytes.

    values: mean and standard deviation of each.
    """
    (name_of_dtype,) = (name for name, d in SAFETENSORS_DTYPES.items() if d == dtype)
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": name_of_dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    longest = max(torch.Size(shape).numel() for shape in shapes.values())
    block = torch.randn(min(BLOCK, 2 * longest), generator=torch.Generator().manual_seed(0))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, (name, shape) in enumerate(shapes.items()):
            mean, deviation = values(name, shape)
            left, begin = torch.Size(shape).numel(), number * STRIDE % len(block)
            while left:
                piece = block[begin : begin + left]
                raw = (piece * deviation + mean).to(dtype).view(torch.uint8)
                file.write(memoryview(raw.numpy().data))
                left, begin = left - len(piece), 0
    return end


def write_transformer(folder: Path, config: DiTConfig, dtype: torch.dtype) -> Path:
    """`folder` as diffusers' `WanTransformer3DModel` reads it."""
    network = build_on_meta(lambda: DiT(config), folder)
    names = keymaps.rename(network.state_dict(), keymaps.inverse(keymaps.DIT_DIFFUSERS))
    _write(folder, network, names, keymaps.dit_config_to_diffusers(config), dtype, TRANSFORMER_FILE)
    return folder


def write_vae(folder: Path, config: VAEConfig, dtype: torch.dtype) -> Path:
    """`folder` as diffusers' `AutoencoderKLWan` reads it."""
    network, table = build_on_meta(lambda: VAE(config), folder), vae_original(config)
    names = {name: rename_parameter(name, table) for name in network.state_dict()}
    _write(folder, network, names, vae_config_to_diffusers(config), dtype, VAE_FILE)
    return folder


def write_text_encoder(folder: Path, config: TextEncoderConfig, dtype: torch.dtype) -> Path:
    """`folder` as transformers' `UMT5EncoderModel` reads it."""
    network = build_on_meta(lambda: TextEncoder(config), folder)
    names = keymaps.rename(network.state_dict(), keymaps.inverse(keymaps.UMT5_HF))
    _write(
        folder, network, names, keymaps.text_encoder_config_to_hf(config), dtype, TEXT_ENCODER_FILE
    )
    return folder


def write_model(
    folder: Path, transformer: DiTConfig, vae: VAEConfig, text: TextEncoderConfig,
    dtype: torch.dtype, *, per_frame: bool,
) -> Path:  # fmt: skip
    """A whole model as diffusers' `WanPipeline` reads it, its autoencoder in fp32 as published.

    per_frame: the timestep is each frame's own (Wan 2.2 TI2V).
    """
    write_transformer(folder / "transformer", transformer, dtype)
    write_vae(folder / "vae", vae, torch.float32)
    write_text_encoder(folder / "text_encoder", text, dtype)
    write_tokenizer(folder / "tokenizer", text.vocab_size)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    index = {"_class_name": "WanPipeline", "expand_timesteps": per_frame, "boundary_ratio": None}
    (folder / "model_index.json").write_text(json.dumps({**index, **CLASSES}))
    return folder


def write_tokenizer(folder: Path, pieces: int) -> Path:
    """A tokenizer of random words, of the same kind as umT5's: reading so many takes its time."""
    own = store.locate("tiny").parts["tokenizer"]
    folder.mkdir(parents=True)
    shutil.copyfile(own / "tokenizer_config.json", folder / "tokenizer_config.json")
    content = json.loads((own / "tokenizer.json").read_text(encoding="utf-8"))
    draw = random.Random(0)
    words = dict.fromkeys(["<pad>", "</s>", "<unk>", "▁", *LETTERS])
    while len(words) < pieces:
        words["▁" + "".join(draw.choices(LETTERS, k=draw.randint(3, 9)))] = None
    scored = [[word, -float(number)] for number, word in enumerate(words)][:pieces]
    content["model"] = {"type": "Unigram", "unk_id": 2, "vocab": scored, "byte_fallback": False}
    content["decoder"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _write(
    folder: Path, network: nn.Module, names: Mapping[str, str], config: dict[str, Any],
    dtype: torch.dtype, file: str,
) -> None:  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    state: dict[str, Tensor] = network.state_dict()
    ours = {theirs: name for name, theirs in names.items()}
    shapes = {names[name]: tuple(tensor.shape) for name, tensor in state.items()}
    write_checkpoint(
        folder / file, shapes, dtype, lambda name, shape: distribution(ours[name], shape)
    )
