"""Where a model's weights lie, what they are, and whether they are whole.

A model is a name in the manifest or a folder in the diffusers layout. Reading the folder's small
JSON files is enough to know what it can do; nothing here opens a tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sora_cli.errors import UsageError, WeightsError
from sora_cli.models.specs import FAMILIES, ModelSpec, SamplerName
from sora_cli.weights import manifest

SUMS = "SHA256SUMS"  # as `sha256sum` writes it; the embedded model carries one
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
# diffusers' scheduler → our sampler; with any other, the family's own is the default.
SAMPLERS: Mapping[str, SamplerName] = MappingProxyType(
    {"UniPCMultistepScheduler": "unipc", "FlowMatchEulerDiscreteScheduler": "euler"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """A model on this machine: its numbers and the diffusers folder that holds it."""

    spec: ModelSpec
    folder: Path

    @property
    def language_model(self) -> Path | None:
        """The folder of its caption LLM, where it has one of its own."""
        folder = self.folder / "language_model"
        return folder if (folder / "config.json").is_file() else None


def locate(model: str) -> Installed:
    """Find a model by its manifest name or its folder.

    Raises:
        UsageError: no such name or folder, or a folder of another kind.
        WeightsError: a known model whose weights are not here.
    """
    folder = Path(model).expanduser()
    if all(row.name != model for row in manifest.rows()):  # ./tiny is a folder, tiny a name
        if (folder / "model_index.json").is_file():
            return _from_folder(folder)
        if folder.exists():
            what = "is a file" if folder.is_file() else "has no model_index.json"
            raise UsageError(
                f"{model} {what}; a model is a name or a folder in the diffusers layout",
                hint="sora weights list shows the names",
            )
    row = manifest.find(model)
    where = row.folder()
    if where is None:
        raise WeightsError(
            f"the weights of {model} are not on this machine"
            + (f": {row.note}" if row.note else ""),
            hint="download the folder from its publisher, then: sora generate … -m FOLDER",
        )
    return Installed(spec=row.spec, folder=where)


def _from_folder(folder: Path) -> Installed:
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind != "WanPipeline" or index.get("transformer_2", [None, None])[1] is not None:
        two = " with two experts" if kind == "WanPipeline" else ""
        raise UsageError(
            f"{folder} holds a {kind}{two}; this version runs WanPipeline with one transformer",
            hint="sora weights list shows what can run",
        )
    for part in PARTS:
        if not (folder / part).is_dir():
            raise WeightsError(f"{folder} has no {part}/", hint="download the whole folder again")
    if index.get("_name_or_path") in {row.name for row in manifest.rows()}:
        spec = manifest.find(index["_name_or_path"]).spec
    else:
        family = "wan2.2-ti2v" if index.get("expand_timesteps") else "wan2.1-t2v"
        spec = replace(FAMILIES[family], name=folder.name)
    return Installed(spec=_with_configs(spec, folder), folder=folder)


def _with_configs(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The family's row with what the folder's own configs say."""
    transformer = read_json(folder / "transformer" / "config.json")
    vae = read_json(folder / "vae" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    try:
        space = (vae.get("patch_size") or 1) * 2 ** (len(vae["dim_mult"]) - 1)
        time = 2 ** sum(vae["temperal_downsample"])
        multiple = space * transformer["patch_size"][1]
        shift = float(scheduler.get("flow_shift") or scheduler.get("shift") or spec.shift)
        if not 0 < shift < math.inf:
            raise ValueError(f"the scheduler's shift is {shift}")
        _check_widths(folder, transformer, vae)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise WeightsError(
            f"a config.json in {folder} cannot be used: {say_config_error(error)}",
            hint="download the whole folder again",
        ) from error
    return replace(
        spec,
        vae_scale_factors=(time, space, space),
        size_multiple=multiple,
        text_len=transformer.get("text_len", spec.text_len),
        shift=shift,
        sampler=SAMPLERS.get(str(scheduler.get("_class_name")), spec.sampler),
    )


def _check_widths(folder: Path, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Refuse parts that cannot be of one model: what one gives is what the next takes."""
    text_encoder = read_json(folder / "text_encoder" / "config.json")
    out_channels = transformer.get("out_channels") or transformer["in_channels"]
    for taken, given, what in (
        (transformer["in_channels"], vae["z_dim"], "latent channels, vae/ gives"),
        (out_channels, vae["z_dim"], "latent channels out, vae/ takes"),
        (transformer["text_dim"], text_encoder["d_model"], "wide text, text_encoder/ gives"),
    ):
        if taken != given:
            raise WeightsError(
                f"the parts of {folder} are not of one model: transformer/ has {taken} {what} "
                f"{given}",
                hint="this version runs Wan text to video (and TI2V) folders, as published",
            )


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
        raise WeightsError(f"{path} is missing", hint="download the whole folder again") from error
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read: {error}", hint="download the whole folder again"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is not a JSON object", hint="download the whole folder again")
    return content


def weight_files(folder: Path) -> list[Path]:
    """Every safetensors file of a model folder, in a fixed order."""
    return sorted(folder.glob("*/*.safetensors"))


def identity(installed: Installed) -> str:
    """A hash that names the weights: of their checksums, or of their headers where there are none.

    Headers (names, dtypes, shapes, offsets) and sizes tell models apart without reading gigabytes.
    """
    folder, digest = installed.folder, hashlib.sha256()
    sums = folder / SUMS
    if sums.is_file():
        digest.update(sums.read_bytes())
        return f"sha256:{digest.hexdigest()}"
    for path in weight_files(folder):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, 1 << 26))
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + header)
    return f"headers:{digest.hexdigest()}"


def verify(installed: Installed) -> int:
    """Check every file against the folder's SHA256SUMS; returns how many were checked.

    Raises:
        WeightsError: a file that is missing or differs, by name.
    """
    sums = installed.folder / SUMS
    if not sums.is_file():
        return 0
    lines = sums.read_text(encoding="utf-8").splitlines()
    for line in lines:
        expected, name = line.split(maxsplit=1)
        path = installed.folder / name
        if not path.is_file():
            raise WeightsError(f"{path} is missing", hint=_reinstall(installed))
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise WeightsError(
                f"{path} is damaged: its SHA-256 is not the published one",
                hint=_reinstall(installed),
            )
    return len(lines)


def _reinstall(installed: Installed) -> str:
    if installed.spec.family == "tiny":
        return "install again: pip install --force-reinstall sora-cli"
    return "download the file again"


def size_on_disk(installed: Installed) -> int:
    """Bytes of all weight files."""
    return sum(path.stat().st_size for path in weight_files(installed.folder))


def denoising_flops(installed: Installed, tokens: int) -> int:
    """Floating-point operations of one forward pass for one prompt.

    Matrix products only: 4 projections of self- and of cross-attention, attention itself, and the
    feed-forward, as counted in docs/concepts/pipeline.md.
    """
    config = read_json(installed.folder / "transformer" / "config.json")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    text, ffn = installed.spec.text_len, config["ffn_dim"]
    self_attention = 8 * tokens * width**2 + 4 * tokens**2 * width
    cross_attention = 4 * (tokens + text) * width**2 + 4 * tokens * text * width
    layer = self_attention + cross_attention + 4 * tokens * width * ffn
    return math.prod((config["num_layers"], layer))
