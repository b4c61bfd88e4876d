"""What a checkpoint is: which network, in whose names, of what numbers; from its tensors alone.

File names say nothing here: they are chosen by whoever uploaded the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sora_cli.errors import WeightsError
from sora_cli.models.dit import DiTConfig
from sora_cli.models.image_encoder import ImageEncoderConfig
from sora_cli.models.text_encoder import TextEncoderConfig
from sora_cli.models.vae import VAEConfig
from sora_cli.weights import configs, keymaps, keymaps_clip, keymaps_text, keymaps_vae
from sora_cli.weights.store import read_json, say_config_error
from sora_cli.weights.tensors import TensorSource

Kind = Literal["transformer", "vae", "text_encoder", "image_encoder", "lora"]
Naming = Literal["original", "diffusers", "transformers", "gguf"]
NetworkConfig = DiTConfig | VAEConfig | TextEncoderConfig | ImageEncoderConfig

WHAT: Mapping[Kind, str] = {
    "transformer": "a diffusion transformer",
    "vae": "a video autoencoder",
    "text_encoder": "a text encoder",
    "image_encoder": "an image encoder",
    "lora": "a LoRA",
}

# A checkpoint is the first of these all of whose names it has.
SIGNS: tuple[tuple[Kind, Naming, tuple[str, ...]], ...] = (
    ("transformer", "original", ("head.modulation", "patch_embedding.weight")),
    ("transformer", "diffusers", ("scale_shift_table", "patch_embedding.weight")),
    ("vae", "original", ("conv2.weight", "decoder.head.2.weight")),
    ("vae", "diffusers", ("post_quant_conv.weight", "decoder.conv_out.weight")),
    ("text_encoder", "original", ("blocks.0.pos_embedding.embedding.weight",)),
    ("text_encoder", "transformers", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("text_encoder", "gguf", ("token_embd.weight", "enc.blk.0.attn_q.weight")),
    ("image_encoder", "transformers", ("vision_model.embeddings.class_embedding",)),
    ("image_encoder", "transformers", ("embeddings.class_embedding",)),  # since transformers 5
    ("image_encoder", "original", ("visual.cls_embedding",)),
)
LORA_ENDS = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".diff", ".diff_b")
# Tensors that are no network's: a marker of fp8 files, a tokenizer that ComfyUI's umT5 carries.
ASIDE = ("scaled_fp8", "spiece_model")
Renaming = Callable[[list[str]], Mapping[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What a checkpoint was recognised as.

    Attributes:
        kind: which network, or a LoRA.
        naming: whose module names.
        family: the family of models/specs that such a transformer belongs to, None where it fits
            none. 14B text to video is `wan2.1-t2v`, though an expert of A14B looks the same.
        config: the network's numbers; None for a LoRA.
        names: the checkpoint's names → ours, 8-bit companions included; what is no part of the
            network is left out. An image encoder's are as they came: see `keymaps_clip`.
    """

    kind: Kind
    naming: Naming
    family: str | None = None
    config: NetworkConfig | None = None
    names: Mapping[str, str]


def recognise(source: TensorSource) -> Layout:
    """Tell a checkpoint by the names and shapes of its tensors.

    A folder's `config.json` adds what shapes cannot show (see `configs`).

    Raises:
        WeightsError: no network that this program knows, tensors that do not make one, or a
            config.json that is needed and not there, or unusable.
    """
    kind, naming = _kind(source)
    if kind == "lora":
        return Layout(kind=kind, naming=naming, names={name: name for name in source.tensors})
    names = _original_names(source, kind, naming)
    shapes = {ours: source.tensors[theirs].shape for theirs, ours in names.items()}
    path, said = _config_json(source.part)
    read: Mapping[Kind, Callable[..., NetworkConfig]] = {
        "transformer": configs.dit_config,
        "vae": configs.vae_config,
        "text_encoder": configs.text_encoder_config,
        "image_encoder": keymaps_clip.image_encoder_config,
    }
    try:
        config = read[kind](shapes, said)
    except (configs.UnfitShapesError, KeyError) as error:
        missing = " is missing" if isinstance(error, KeyError) else ""
        raise WeightsError(
            f"{source.part} is not whole: {error.args[0]}{missing}", hint="download it again"
        ) from error
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        what = f"{path} cannot be used" if path else f"{source.part} cannot be used as it is"
        raise WeightsError(
            f"{what}: {say_config_error(error)}", hint="download the whole folder again"
        ) from error
    family = _family(config) if isinstance(config, DiTConfig) else None
    return Layout(kind=kind, naming=naming, family=family, config=config, names=names)


def _kind(source: TensorSource) -> tuple[Kind, Naming]:
    for kind, naming, signs in SIGNS:
        if all(sign in source.tensors for sign in signs):
            return kind, naming
    if any(name.endswith(LORA_ENDS) for name in source.tensors):
        return "lora", "original"
    some = ", ".join(sorted(source.tensors)[:3])
    raise WeightsError(
        f"{source.part} is no network that this program knows: it has {some[:200]} …",
        hint="sora weights list shows what can run",
    )


def _original_names(source: TensorSource, kind: Kind, naming: Naming) -> Mapping[str, str]:
    names = [name for name in source.tensors if name not in ASIDE]
    renamings: Mapping[tuple[Kind, Naming], Renaming] = {
        ("transformer", "diffusers"): lambda names: keymaps.rename(names, keymaps.DIT_DIFFUSERS),
        ("vae", "diffusers"): keymaps_vae.rename_vae,
        ("text_encoder", "transformers"): keymaps_text.from_transformers,
        ("text_encoder", "gguf"): keymaps_text.from_gguf,
    }
    rename = renamings.get((kind, naming), lambda names: {name: name for name in names})
    try:
        return rename(names)
    except KeyError as error:
        raise WeightsError(
            f"{source.part} is no {kind.replace('_', ' ')} as {naming} names it: {error.args[0]}",
            hint="download it again",
        ) from error


def _config_json(part: Path) -> tuple[Path | None, Mapping[str, Any]]:
    """A folder's config.json; beside a single file there may be another network's."""
    path = part / "config.json"
    if part.is_dir() and path.is_file():
        return path, read_json(path)
    return None, {}


def _family(config: DiTConfig) -> str | None:
    """The family of a transformer: its branches and how many channels it takes tell it."""
    given = config.in_channels > config.out_channels
    if config.vace_layers:
        return "wan2.1-vace"
    if config.image_dim is not None:
        return "wan2.1-i2v" if config.pos_embed_len is None else "wan2.1-flf2v"
    if config.out_channels == len(configs.WAN22_MEAN):
        return "wan2.2-ti2v"
    return "wan2.2-i2v-a14b" if given else "wan2.1-t2v"
