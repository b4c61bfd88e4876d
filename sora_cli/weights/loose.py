"""Files and folders that are no diffusers folder: single files, and Wan's original layout.

What a file holds is told by its tensors (weights/layouts), never by its name. A name counts in one
place: of the two experts of A14B, which are of the same shapes, one is called high and one low.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sora_cli.errors import UsageError, WeightsError
from sora_cli.models.dit import DiTConfig
from sora_cli.models.specs import FAMILIES, ModelSpec
from sora_cli.models.text_encoder import TextEncoderConfig
from sora_cli.models.vae import VAEConfig
from sora_cli.weights import layouts
from sora_cli.weights.manifest import SINGLE_FILES
from sora_cli.weights.tensors import open_tensors

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
# `high` is the diffusers layout's `transformer`.
_EXPERTS = {"high": "transformer", "low": "transformer_2"}
_NEEDED = ("vae", "text_encoder", "tokenizer", "image_encoder")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One part of a model, and what its tensors say it is."""

    path: Path
    kind: layouts.Kind
    family: str | None = None
    config: layouts.NetworkConfig | None = None


def look(path: Path) -> Found:
    """Recognise one part: a single file, or a folder of shards.

    Raises:
        WeightsError: damaged, or nothing that this program knows.
    """
    source = open_tensors(path)
    try:
        layout = layouts.recognise(source)
    finally:
        source.close()
    return Found(path=path, kind=layout.kind, family=layout.family, config=layout.config)


def parts_in(path: Path) -> dict[str, Path]:
    """The parts that a file is, or a folder in Wan's original layout holds.

    Returns:
        part name → path. A LoRA is `both`; of two experts, `transformer` is the high-noise one.

    Raises:
        UsageError: nothing with weights, or several files for one part.
        WeightsError: a damaged file.
    """
    if path.is_file():
        kind = look(path).kind
        return {"both" if kind == "lora" else kind: path}
    found: dict[layouts.Kind, list[Path]] = {}
    for candidate in _candidates(path):
        found.setdefault(look(candidate).kind, []).append(candidate)
    if not found:
        raise UsageError(
            f"{path} has no model_index.json and no weights that can be read",
            hint="name a diffusers folder, Wan's original folder, or a .safetensors, .pth or "
            ".gguf file",
        )
    parts = _told_apart(path, found)
    tokenizer = _tokenizer_in(path)
    return parts if tokenizer is None else {**parts, "tokenizer": tokenizer}


def _candidates(folder: Path) -> list[Path]:
    """What may be a part: single files and folders of shards, here and one level below."""
    found: list[Path] = []
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        files = [path for path in sorted(place.iterdir()) if path.suffix in SINGLE_FILES]
        described = (place / "config.json").is_file() or any(place.glob("*.safetensors.index.json"))
        if described and any(path.suffix == ".safetensors" for path in files):
            found.append(place)
            files = [path for path in files if path.suffix != ".safetensors"]
        found += files
    return found


def _told_apart(folder: Path, found: Mapping[layouts.Kind, list[Path]]) -> dict[str, Path]:
    """One path for each part."""
    parts: dict[str, Path] = {}
    for kind, paths in found.items():
        if len(paths) == 1:
            parts["both" if kind == "lora" else kind] = paths[0]
            continue
        named = {word: path for word in _EXPERTS for path in paths if word in _name(folder, path)}
        if len(paths) != 2 or len(set(named.values())) != 2 or kind not in ("transformer", "lora"):
            names = ", ".join(sorted(path.name for path in paths))
            raise UsageError(
                f"{folder} has {len(paths)} of a kind, {layouts.WHAT[kind]}: {names}",
                hint="name one of the files, and the others with --vae and --text-encoder",
            )
        parts |= {
            (_EXPERTS[word] if kind == "transformer" else word): p for word, p in named.items()
        }
    return parts


def _name(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder)).lower()


def _tokenizer_in(folder: Path) -> Path | None:
    """The nearest folder with a tokenizer: `tokenizer/`, or `google/umt5-xxl/` of the original."""
    for place in ("tokenizer", "google/umt5-xxl", "."):
        if any((folder / place / name).is_file() for name in TOKENIZER_FILES):
            return folder / place
    return None


def complete(
    model: str, parts: dict[str, Path], installed: Iterable[Mapping[str, Path]]
) -> tuple[ModelSpec, dict[str, Path]]:
    """The numbers of a model of loose parts, with companions from models that are installed.

    Args:
        model: its name.
        parts: what the user named; a transformer among them.
        installed: the parts of what is on this machine, in the order of preference.

    Raises:
        UsageError: no transformer, or a companion that is nowhere; the message names it.
        WeightsError: parts that are not of one model.
    """
    if "transformer" not in parts:
        held = " and ".join(part.replace("_", " ") for part in parts)
        raise UsageError(
            f"{model} is no model alone: it holds {held.replace('both', 'a LoRA')}",
            hint="-m takes a transformer; --vae, --text-encoder and --lora the others",
        )
    transformer = look(parts["transformer"])
    dit = transformer.config
    if not isinstance(dit, DiTConfig) or transformer.family is None:
        raise UsageError(f"{parts['transformer']} is of no family that this program runs")
    spec = _spec(model, transformer.family, two="transformer_2" in parts)
    whole = dict(parts)
    for part in _NEEDED:
        if part not in whole and (part != "image_encoder" or spec.image_encoder):
            path = _companion(part, dit, whole, installed)
            if path is None:
                raise _missing(parts, part, spec)
            whole[part] = path
    return _with_networks(spec, dit, whole), whole


def _spec(model: str, family: str, *, two: bool) -> ModelSpec:
    # A lone expert's shapes are those of Wan 2.1 text to video; with its twin it is A14B.
    if two and family == "wan2.1-t2v":
        family = "wan2.2-t2v-a14b"
    spec = replace(FAMILIES[family], name=model)
    return spec if two else replace(spec, boundary=None, guidance_scale_2=None)


def _companion(
    part: str, dit: DiTConfig, parts: Mapping[str, Path], installed: Iterable[Mapping[str, Path]]
) -> Path | None:
    """The first installed part that fits: beside the text encoder, then in what is installed."""
    encoder = parts.get("text_encoder")
    if part == "tokenizer" and encoder is not None:
        beside = _tokenizer_in(encoder.parent) or _own_tokenizer(encoder)
        if beside is not None:
            return beside
    for others in installed:
        if part in others and (part == "tokenizer" or _fits(part, dit, others[part])):
            return others[part]
    return None


def _own_tokenizer(encoder: Path) -> Path | None:
    """The file itself, where it carries the model of its tokenizer as a tensor (ComfyUI's do)."""
    source = open_tensors(encoder)
    try:
        return encoder if "spiece_model" in source.tensors else None
    finally:
        source.close()


def _fits(part: str, dit: DiTConfig, path: Path) -> bool:
    try:
        found = look(path)
    except WeightsError:
        return False
    return found.kind == part and _mismatch(dit, found) is None


def _mismatch(dit: DiTConfig, found: Found) -> str | None:
    """Why a part cannot be of one model with a transformer, None where it can."""
    config = found.config
    if isinstance(config, VAEConfig) and config.z_dim != dit.out_channels:
        return f"has {config.z_dim} latent channels, the transformer {dit.out_channels}"
    if isinstance(config, TextEncoderConfig) and config.hidden_size != dit.text_dim:
        return f"gives text {config.hidden_size} wide, the transformer takes {dit.text_dim}"
    return None


def _missing(parts: Mapping[str, Path], part: str, spec: ModelSpec) -> UsageError:
    from sora_cli.weights import manifest

    names = [row.name for row in manifest.rows() if row.family == spec.family]
    smallest = next((name for name in names if name.endswith(("-fp8", "-fp16"))), None)
    option = {"vae": "--vae FILE", "text_encoder": "--text-encoder FILE"}.get(part)
    pull = f"sora weights pull {smallest or names[0]}" if names else None
    return UsageError(
        f"{parts['transformer'].name} is a transformer alone, and no {part.replace('_', ' ')} for "
        "it is installed",
        hint=", or: ".join(way for way in (option, pull) if way is not None),
    )


def check_parts(parts: Mapping[str, Path]) -> None:
    """See that the autoencoder and the text encoder are of one model with the transformer.

    Raises:
        WeightsError: they are not.
    """
    dit = look(parts["transformer"]).config
    assert isinstance(dit, DiTConfig)
    for part in ("vae", "text_encoder"):
        found = look(parts[part])
        wrong = _mismatch(dit, found) if found.kind == part else f"is {layouts.WHAT[found.kind]}"
        if wrong is not None:
            raise WeightsError(
                f"{found.path} {wrong}: the parts are not of one model",
                hint="--vae and --text-encoder name the ones that belong to it",
            )


def _with_networks(spec: ModelSpec, dit: DiTConfig, parts: Mapping[str, Path]) -> ModelSpec:
    """The family's row with the strides and widths that the networks themselves have."""
    check_parts(parts)
    vae = look(parts["vae"]).config
    assert isinstance(vae, VAEConfig)
    return replace(
        spec,
        vae_scale_factors=vae.scale_factors,
        size_multiple=vae.scale_factors[1] * dit.patch_size[1],
        text_len=dit.text_len,
    )
