"""The only place that builds, places and frees a network.

A network's life is one `with` block: its checkpoint is recognised, the network built on the meta
device, the shapes compared, and then one tensor after another read, dequantised, changed by LoRAs,
cast to the chosen dtype and assigned. No second copy of the weights exists at any time.

A part is a folder (in diffusers', transformers' or the original layout) or one file. Where the
folder of a whole model is given, its subfolder of the right name is taken.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from sora_cli.errors import WeightsError
from sora_cli.models import fused
from sora_cli.models.compiled import compile_blocks
from sora_cli.models.dit import DiT, DiTConfig
from sora_cli.models.fp8 import multiply_in_fp8
from sora_cli.models.image_encoder import ImageEncoder, ImageEncoderConfig
from sora_cli.models.text_encoder import TextEncoder, TextEncoderConfig, Tokenizer
from sora_cli.models.vae import VAE, VAEConfig
from sora_cli.runtime.offload import streamed
from sora_cli.runtime.paths import cache_dir
from sora_cli.weights import keymaps_clip
from sora_cli.weights.build import Storage, build_on_meta, check_filled, compare, fill
from sora_cli.weights.layouts import WHAT, Kind, Layout, recognise
from sora_cli.weights.lora import LoraReport
from sora_cli.weights.lora_arguments import Lora
from sora_cli.weights.quantize import Dequantiser, is_quantised
from sora_cli.weights.spiece import parse_spiece, read_spiece
from sora_cli.weights.tensors import Device, TensorSource, open_tensors

if TYPE_CHECKING:
    from sora_cli.runtime.plan import Placement

N = TypeVar("N", bound=nn.Module)

# Where a model's tokenizer lies below its folder: diffusers' place, and the original's.
TOKENIZER_FOLDERS = ("tokenizer", "google/umt5-xxl")


@contextmanager
def dit(
    part: Path,
    *,
    device: Device,
    dtype: torch.dtype,
    loras: Sequence[Lora] = (),
    storage: Storage = "dtype",
    place: Placement | None = None,
    fp8_matmul: Literal["ffn"] | None = None,
    compile: bool = False,
    observer: Callable[[LoraReport], None] = lambda report: None,
) -> Iterator[DiT]:
    """The diffusion transformer.

    Args:
        part: a folder or a file, in any layout.
        device: where it computes.
        dtype: of its parameters, whatever the checkpoint's.
        loras: merged into the weights, in this order.
        storage: "fp8" keeps the blocks' linear weights in 8 bits, and widens them at use.
        place: which blocks stay on the device, the others streaming through it; None: all.
        fp8_matmul: "ffn": the feed-forward layers multiply in 8 bits.
        compile: its blocks are compiled when they first run, where all stay on the device.
        observer: told what the LoRAs changed.

    Raises:
        WeightsError: files missing, damaged, or of another network; a LoRA that does not fit.
        UsageError: no such LoRA, or GGUF without its package.
    """
    part = _subfolder(part, "transformer")
    with _checkpoint(part, "transformer") as (source, layout):
        config = cast("DiTConfig", layout.config)
        network = build_on_meta(lambda: DiT(config), part)
        _compare(network, source, layout)
        resident = place.blocks_resident if place is not None else None

        def device_of(name: str) -> Device:
            return "cpu" if resident is not None and _block(name) >= resident else device

        report = fill(
            network, source, layout.names, device_of=device_of, dtype=dtype, loras=loras,
            storage=storage,
        )  # fmt: skip
    if report is not None:
        observer(report)
    if fp8_matmul == "ffn":
        multiply_in_fp8(network)
    with _resident(network, device), streamed(network, device) as stream:
        if compile and stream is None:
            compile_blocks(network, cache_dir() / "compiled")
        elif compile:
            fused.note("not compiled: some blocks pass through the device")
        yield network


@contextmanager
def vae(part: Path, *, device: Device, dtype: torch.dtype) -> Iterator[VAE]:
    """The video autoencoder, on CPU and CUDA with its channels last; errors as `dit`."""
    part = _subfolder(part, "vae")
    with _checkpoint(part, "vae") as (source, layout):
        config = cast("VAEConfig", layout.config)
        network = build_on_meta(lambda: VAE(config), part)
        _compare(network, source, layout)
        fill(network, source, layout.names, device_of=lambda name: device, dtype=dtype)
    if torch.device(device).type != "mps":  # whose convolutions want their channels first
        network.to_channels_last()
    with _resident(network, device):
        yield network


@contextmanager
def text_encoder(
    part: Path, *, device: Device, dtype: torch.dtype, storage: Storage = "dtype"
) -> Iterator[TextEncoder]:
    """The umT5 text encoder; arguments and errors as `dit`."""
    part = _subfolder(part, "text_encoder")
    with _checkpoint(part, "text_encoder") as (source, layout):
        config = cast("TextEncoderConfig", layout.config)
        network = build_on_meta(lambda: TextEncoder(config), part)
        _compare(network, source, layout)
        fill(
            network, source, layout.names, device_of=lambda name: device, dtype=dtype,
            storage=storage,
        )  # fmt: skip
    with _resident(network, device):
        yield network


@contextmanager
def image_encoder(part: Path, *, device: Device, dtype: torch.dtype) -> Iterator[ImageEncoder]:
    """CLIP's vision transformer, with the preprocessing of the folder it is in; errors as `dit`.

    Wan2.1's own file brings the preprocessing of Wan2.1's own code.
    """
    part = _subfolder(part, "image_encoder")
    with _checkpoint(part, "image_encoder") as (source, layout):
        config = cast("ImageEncoderConfig", layout.config)
        preprocessing = keymaps_clip.read_preprocessing(part)
        network = build_on_meta(lambda: ImageEncoder(config, preprocessing), part)
        state: dict[str, Tensor] = {}
        try:
            for name in source.tensors:
                # Most of what is in these files may be a text model: only shapes are read of it.
                alike = torch.empty(source.tensors[name].shape, device="meta")
                if keymaps_clip.image_encoder_tensors(name, alike, config.num_layers):
                    tensor = source.read(name, device=device, dtype=dtype)
                    state |= keymaps_clip.image_encoder_tensors(name, tensor, config.num_layers)
        except (KeyError, ValueError) as error:
            raise WeightsError(
                f"{part} is not whole: {error.args[0]}", hint="download it again"
            ) from error
        compare(network, {name: tuple(t.shape) for name, t in state.items()}, part)
        network.load_state_dict(state, strict=True, assign=True)
        del state
    with _resident(network, device):
        yield network


def tokenizer(part: Path) -> Tokenizer:
    """The tokenizer that belongs to the text encoder.

    Args:
        part: a folder with `tokenizer.json` or `spiece.model`, one of these files, the folder of
            a model, or a text encoder's file that carries a tokenizer (as ComfyUI's do).

    Raises:
        WeightsError: none there, or damaged.
    """
    folders = [part, *(part / name for name in TOKENIZER_FOLDERS)]
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_folder(folder)
        if (folder / "spiece.model").is_file():
            return read_spiece(folder / "spiece.model")
    if part.is_file():
        if part.name == "tokenizer.json":
            return Tokenizer.from_folder(part.parent)
        if part.suffix == ".model":
            return read_spiece(part)
        with closing(open_tensors(part)) as source:
            if "spiece_model" in source.tensors:
                content = source.read("spiece_model").flatten().view(torch.uint8)
                return parse_spiece(content.numpy().tobytes(), str(part))
        raise WeightsError(
            f"{part} carries no tokenizer",
            hint="put the tokenizer.json of google/umt5-xxl into a folder tokenizer/ beside it",
        )
    place = next((folder for folder in folders if folder.is_dir() and folder != part), part)
    raise WeightsError(
        f"cannot read the tokenizer {place / 'tokenizer.json'}: it is missing",
        hint="download the whole folder again",
    )


def latent_channels(part: Path) -> int:
    """Channels of the latents that an autoencoder gives; errors as `dit`."""
    with _checkpoint(_subfolder(part, "vae"), "vae") as (_, layout):
        return cast("VAEConfig", layout.config).z_dim


def _block(name: str) -> int:
    """The number of the block that a parameter belongs to; −1 outside the blocks."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else -1


def _subfolder(folder: Path, name: str) -> Path:
    """The subfolder of this name, where the folder of a whole model is given."""
    return folder / name if (folder / name).is_dir() else folder


@contextmanager
def _checkpoint(part: Path, kind: Kind) -> Iterator[tuple[TensorSource, Layout]]:
    """The tensors of a part, dequantised as they are read, and what they are."""
    with closing(open_tensors(part)) as opened:
        source: TensorSource = Dequantiser(opened) if is_quantised(opened) else opened
        layout = recognise(source)
        if layout.kind != kind:
            raise WeightsError(
                f"{part} is {WHAT[layout.kind]}, not {WHAT[kind]}",
                hint="sora weights import says what a file is",
            )
        yield source, layout


def _compare(network: nn.Module, source: TensorSource, layout: Layout) -> None:
    shapes = {ours: source.tensors[name].shape for name, ours in layout.names.items()}
    compare(network, shapes, source.part)


@contextmanager
def _resident(network: nn.Module, device: Device) -> Iterator[None]:
    """Ready for inference within the block; freed after it."""
    check_filled(network)
    network.requires_grad_(False).eval()
    try:
        yield
    finally:
        network.to("meta")  # frees every parameter, whoever still holds the network
        if torch.device(device).type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
