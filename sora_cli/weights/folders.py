"""Folders in the diffusers layout: what kind of model one is, from its small JSON files alone.

`model_index.json` says which pipeline, the parts' configs what they are made of. No tensor is
opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sora_cli.errors import UsageError, WeightsError
from sora_cli.models.specs import FAMILIES, ModelSpec, SamplerName
from sora_cli.weights import manifest

INDEX = "model_index.json"
AGAIN = "download the whole folder again"
NEEDED = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
POSSIBLE = (*NEEDED, "transformer_2", "image_encoder", "image_processor")
# diffusers' scheduler → our sampler; with any other, the family's own is the default.
SAMPLERS: Mapping[str, SamplerName] = MappingProxyType(
    {"UniPCMultistepScheduler": "unipc", "FlowMatchEulerDiscreteScheduler": "euler"}
)


def parts_of(folder: Path) -> dict[str, Path]:
    """The parts that a folder has, by name."""
    parts = {name: folder / name for name in POSSIBLE if (folder / name).is_dir()}
    for name in ("language_model", "captioner"):
        if (folder / name / "config.json").is_file():
            parts[name] = folder / name
    return parts


def read_folder(folder: Path) -> tuple[ModelSpec, dict[str, Path]]:
    """A folder's numbers and its parts.

    Raises:
        UsageError: a pipeline of another kind.
        WeightsError: parts are missing, unusable, or not of one model.
    """
    index = read_json(folder / INDEX)
    for part in (*NEEDED, *(name for name in ("transformer_2",) if _has(index, name))):
        if not (folder / part).is_dir():
            raise WeightsError(f"{folder} has no {part}/", hint=AGAIN)
    transformer = read_json(folder / "transformer" / "config.json")
    spec = _family(folder, index, transformer)
    parts = parts_of(folder)
    if spec.image_encoder and "image_encoder" not in parts:
        raise WeightsError(f"{folder} has no image_encoder/", hint=AGAIN)
    return _with_configs(spec, folder, transformer), parts


def _family(folder: Path, index: Mapping[str, Any], transformer: Mapping[str, Any]) -> ModelSpec:
    """The family's row for a pipeline; of its published models by their own names."""
    kind = index.get("_class_name")
    if index.get("_name_or_path") in [row.name for row in manifest.rows() if row.family]:
        return manifest.find(index["_name_or_path"]).spec
    two = _has(index, "transformer_2")
    if kind == "WanVACEPipeline":
        family = "wan2.1-vace"
    elif kind in ("WanPipeline", "WanImageToVideoPipeline") and index.get("expand_timesteps"):
        family = "wan2.2-ti2v"
    elif kind == "WanPipeline":
        family = "wan2.2-t2v-a14b" if two else "wan2.1-t2v"
    elif kind == "WanImageToVideoPipeline" and not transformer.get("image_dim"):
        family = "wan2.2-i2v-a14b"
    elif kind == "WanImageToVideoPipeline":
        family = "wan2.1-flf2v" if transformer.get("pos_embed_seq_len") else "wan2.1-i2v"
    else:
        raise UsageError(
            f"{folder} holds a {kind}; this version runs WanPipeline, WanImageToVideoPipeline and "
            "WanVACEPipeline",
            hint="sora weights list shows what can run",
        )
    spec = replace(FAMILIES[family], name=folder.resolve().name)
    if not two:
        return replace(spec, boundary=None, guidance_scale_2=None)
    return replace(spec, boundary=_boundary(folder, index, spec))


def _boundary(folder: Path, index: Mapping[str, Any], spec: ModelSpec) -> float:
    boundary = index.get("boundary_ratio", spec.boundary)
    if not isinstance(boundary, int | float) or not 0 <= boundary <= 1:
        raise WeightsError(
            f"{folder / INDEX} cannot be used: boundary_ratio is {boundary!r}", hint=AGAIN
        )
    return float(boundary)


def _with_configs(spec: ModelSpec, folder: Path, transformer: Mapping[str, Any]) -> ModelSpec:
    """The family's row with what the folder's own configs say."""
    vae = read_json(folder / "vae" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    try:
        space = (vae.get("patch_size") or 1) * 2 ** (len(vae["dim_mult"]) - 1)
        time = _time_factor(vae)
        multiple = space * transformer["patch_size"][1]
        shift = float(scheduler.get("flow_shift") or scheduler.get("shift") or spec.shift)
        if not 0 < shift < math.inf:
            raise ValueError(f"the scheduler's shift is {shift}")
        _check_widths(folder, spec, transformer, vae)
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise WeightsError(
            f"a config.json in {folder} cannot be used: {say_config_error(error)}", hint=AGAIN
        ) from error
    return replace(
        spec,
        vae_scale_factors=(time, space, space),
        size_multiple=multiple,
        text_len=transformer.get("text_len", spec.text_len),
        shift=shift,
        sampler=SAMPLERS.get(str(scheduler.get("_class_name")), spec.sampler),
    )


def _time_factor(vae: Mapping[str, Any]) -> int:
    """How many frames a latent frame stands for: twice as many for each level that halves them."""
    halved = vae["temperal_downsample"]
    if not all(isinstance(level, bool) for level in halved):
        raise ValueError(f"temperal_downsample is {halved!r:.60}, not a list of true and false")
    return int(2 ** sum(halved))


def _check_widths(
    folder: Path, spec: ModelSpec, transformer: Mapping[str, Any], vae: Mapping[str, Any]
) -> None:
    """Refuse parts that cannot be of one model: what one gives is what the next takes."""
    text_encoder = read_json(folder / "text_encoder" / "config.json")
    out_channels = transformer.get("out_channels") or transformer["in_channels"]
    latent = vae["z_dim"]
    # Mask and given latents come in as channels of their own: one mask channel a frame.
    taken = latent
    if spec.conditioning == "channels":
        taken += latent + _time_factor(vae)
    for found, given, what in (
        (transformer["in_channels"], taken, "latent channels, vae/ gives"),
        (out_channels, latent, "latent channels out, vae/ takes"),
        (transformer["text_dim"], text_encoder["d_model"], "wide text, text_encoder/ gives"),
    ):
        if found != given:
            raise WeightsError(
                f"the parts of {folder} are not of one model: transformer/ has {found} {what} "
                f"{given}",
                hint="this version runs Wan folders as published",
            )


def _has(index: Mapping[str, Any], part: str) -> bool:
    """Whether a pipeline has an optional part; diffusers writes [null, null] for none."""
    entry = index.get(part)
    return isinstance(entry, list) and len(entry) > 1 and entry[1] is not None


def say_config_error(error: Exception) -> str:
    """What a config lacks (KeyError) or has wrong, in a few words."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object of a model folder.

    Raises:
        WeightsError: missing, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing", hint=AGAIN) from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}", hint=AGAIN) from error
    except RecursionError as error:
        raise WeightsError(f"{path} cannot be read: nested too deep", hint=AGAIN) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is not a JSON object", hint=AGAIN)
    return content
