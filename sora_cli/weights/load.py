"""The only place that builds, places and frees a network.

A network's life is one `with` block: built on the meta device, its tensors read from safetensors,
renamed to the original names, cast to the chosen dtype, assigned strictly, checked for leftovers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sora_cli.errors import WeightsError
from sora_cli.models.dit import DiT
from sora_cli.models.text_encoder import TextEncoder, Tokenizer
from sora_cli.models.vae import VAE
from sora_cli.weights import keymaps, keymaps_vae
from sora_cli.weights.store import read_json

N = TypeVar("N", bound=nn.Module)


@contextmanager
def dit(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> Iterator[DiT]:
    """The diffusion transformer of a diffusers folder.

    Raises:
        WeightsError: files missing, damaged, or of another network than their config says.
    """
    config = keymaps.dit_config_from_diffusers(read_json(folder / "transformer" / "config.json"))

    def rename(names: list[str]) -> Mapping[str, str]:
        return keymaps.rename(names, keymaps.DIT_DIFFUSERS)

    with _network(lambda: DiT(config), folder / "transformer", rename, device, dtype) as network:
        yield network


@contextmanager
def vae(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> Iterator[VAE]:
    """The video autoencoder of a diffusers folder; errors as `dit`."""
    config = keymaps_vae.vae_config_from_diffusers(read_json(folder / "vae" / "config.json"))
    table = keymaps_vae.vae_diffusers(config)

    def rename(names: list[str]) -> Mapping[str, str]:
        return {name: keymaps_vae.rename_parameter(name, table) for name in names}

    with _network(lambda: VAE(config), folder / "vae", rename, device, dtype) as network:
        yield network


@contextmanager
def text_encoder(
    folder: Path, *, device: torch.device | str, dtype: torch.dtype
) -> Iterator[TextEncoder]:
    """The umT5 text encoder of a diffusers folder; errors as `dit`."""
    config = keymaps.text_encoder_config_from_hf(read_json(folder / "text_encoder" / "config.json"))

    def rename(names: list[str]) -> Mapping[str, str]:
        # transformers 5 saves the embedding once, under either of two tied names.
        kept = [
            n for n in names if n != "encoder.embed_tokens.weight" or "shared.weight" not in names
        ]
        return keymaps.rename(kept, keymaps.UMT5_HF)

    with _network(
        lambda: TextEncoder(config), folder / "text_encoder", rename, device, dtype
    ) as network:
        yield network


def tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that belongs to the text encoder."""
    try:
        return Tokenizer.from_folder(folder / "tokenizer")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / 'tokenizer'} cannot be read: {error}") from error


@contextmanager
def _network(
    build: Callable[[], N],
    folder: Path,
    rename: Callable[[list[str]], Mapping[str, str]],
    device: torch.device | str,
    dtype: torch.dtype,
) -> Iterator[N]:
    with torch.device("meta"):
        network = build()
    foreign = _read(folder, device, dtype)
    try:
        names = rename(list(foreign))
        state = {ours: foreign[theirs] for theirs, ours in names.items()}
        del foreign
        network.load_state_dict(state, strict=True, assign=True)
    except (KeyError, RuntimeError) as error:
        lines = " ".join(str(error).splitlines()[:3])[:300] or repr(error)
        raise WeightsError(
            f"the weights in {folder} are not those of its config.json: {lines}",
            hint="download the whole folder again",
        ) from error
    del state
    left = [n for n, t in (*network.named_parameters(), *network.named_buffers()) if t.is_meta]
    assert not left, f"never loaded: {left}"
    network.requires_grad_(False).eval()
    try:
        yield network
    finally:
        network.to("meta")
        gc.collect()
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()


def _read(folder: Path, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files, in the chosen dtype, on the device."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is None:
        files = sorted(folder.glob("*.safetensors"))
    else:
        files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    if not files:
        raise WeightsError(f"no safetensors in {folder}", hint="download the whole folder again")
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for name in file.keys():  # noqa: SIM118 (a file is no mapping)
                    tensors[name] = file.get_tensor(name).to(dtype)
        except FileNotFoundError as error:
            raise WeightsError(
                f"{path} is missing", hint="download the whole folder again"
            ) from error
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path} is damaged or not a safetensors file: {error}",
                hint="download the file again, or install again for the embedded model",
            ) from error
    return tensors


def latent_channels(folder: Path) -> int:
    """Channels of the latents that a folder's autoencoder gives."""
    return int(read_json(folder / "vae" / "config.json")["z_dim"])
