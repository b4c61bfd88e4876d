"""The only place that builds, places and frees a network.

A network's life is one `with` block: built on the meta device, its tensors read from safetensors,
renamed to the original names, cast to the chosen dtype, assigned strictly, checked for leftovers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sora_cli.errors import WeightsError
from sora_cli.models.dit import DiT
from sora_cli.models.text_encoder import TextEncoder, Tokenizer
from sora_cli.models.vae import VAE
from sora_cli.weights import keymaps, keymaps_vae
from sora_cli.weights.store import read_json, say_config_error

C = TypeVar("C")
N = TypeVar("N", bound=nn.Module)


@contextmanager
def dit(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> Iterator[DiT]:
    """The diffusion transformer of a diffusers folder.

    Raises:
        WeightsError: files missing, damaged, or of another network than their config says.
    """
    config = _config(folder / "transformer" / "config.json", keymaps.dit_config_from_diffusers)

    def rename(names: list[str]) -> Mapping[str, str]:
        return keymaps.rename(names, keymaps.DIT_DIFFUSERS)

    with _network(lambda: DiT(config), folder / "transformer", rename, device, dtype) as network:
        yield network


@contextmanager
def vae(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> Iterator[VAE]:
    """The video autoencoder of a diffusers folder; errors as `dit`."""
    config = _config(folder / "vae" / "config.json", keymaps_vae.vae_config_from_diffusers)

    def rename(names: list[str]) -> Mapping[str, str]:
        table = keymaps_vae.vae_diffusers(config)
        return {name: keymaps_vae.rename_parameter(name, table) for name in names}

    with _network(lambda: VAE(config), folder / "vae", rename, device, dtype) as network:
        yield network


@contextmanager
def text_encoder(
    folder: Path, *, device: torch.device | str, dtype: torch.dtype
) -> Iterator[TextEncoder]:
    """The umT5 text encoder of a diffusers folder; errors as `dit`."""
    config = _config(folder / "text_encoder" / "config.json", keymaps.text_encoder_config_from_hf)

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


def _config(path: Path, read: Callable[[dict[str, Any]], C]) -> C:
    """What `read` makes of a JSON file; its complaints become a WeightsError."""
    try:
        return read(read_json(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{path} cannot be used: {say_config_error(error)}",
            hint="download the whole folder again",
        ) from error


class _Unset(TorchFunctionMode):
    """Leaves parameters as they were allocated: their values come from a file.

    More than saved work: drawing normal numbers on the meta device imports torch's compiler, which
    takes a second.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.normal_ or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def _network(
    build: Callable[[], N],
    folder: Path,
    rename: Callable[[list[str]], Mapping[str, str]],
    device: torch.device | str,
    dtype: torch.dtype,
) -> Iterator[N]:
    foreign = _read(folder, device, dtype)
    try:
        with torch.device("meta"), _Unset():
            network = build()
        names = rename(list(foreign))
        state = {ours: foreign[theirs] for theirs, ours in names.items()}
        del foreign
        _compare({n: tuple(t.shape) for n, t in network.state_dict().items()}, state)
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError, RuntimeError) as error:
        # The builders' own complaints about numbers that make no network are among these.
        reason = str(error.args[0] if error.args else error).splitlines()[0][:300]
        raise WeightsError(
            f"the weights in {folder} are not those of its config.json: {reason}",
            hint="download the whole folder again",
        ) from error
    network.load_state_dict(state, strict=True, assign=True)
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


def _compare(wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> None:
    """Raises ValueError with the first parameter that is missing, strange or of another shape."""
    for name in (*wanted, *state):
        if name not in state:
            raise ValueError(f"{name} is missing")
        if name not in wanted:
            raise ValueError(f"{name} is one too many")
        found = tuple(state[name].shape)
        if found != wanted[name]:
            sizes = ("×".join(map(str, shape)) for shape in (found, wanted[name]))
            raise ValueError("{} is {}, the config says {}".format(name, *sizes))


def _read(folder: Path, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files, in the chosen dtype, on the device."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is None:
        files = sorted(folder.glob("*.safetensors"))
    else:
        shards = _config(index, lambda content: set(content["weight_map"].values()))
        files = [folder / name for name in sorted(shards)]
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
    return _config(folder / "vae" / "config.json", keymaps_vae.vae_config_from_diffusers).z_dim
