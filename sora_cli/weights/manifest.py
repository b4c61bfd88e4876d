"""What has a name: `weights_manifest.toml`, read into rows of models, LoRAs and language models.

The file stands at the root of the repository, where people edit it; a built wheel carries it
inside the package.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from sora_cli.errors import UsageError, WeightsError
from sora_cli.models.specs import FAMILIES, ModelSpec

Source = Literal["embedded", "folder", "hub"]
Kind = Literal["model", "lora", "language_model"]

# Settings that a diffusers folder has beside its networks, and that this program can do without.
OPTIONAL = ("scheduler", "image_processor", "index")
SINGLE_FILES = (".safetensors", ".gguf", ".pth")  # what one network's weights come in
_PACKAGE = Path(__file__).resolve().parents[1]
_SCHEMA = 1
_REINSTALL = "install again: pip install --force-reinstall sora-cli"
_PART_KEYS = {"repository", "path", "files", "bytes"}
# What is needed of a folder with weights: never a pickle, never a picture of the model card.
_FOLDER_FILES = ("*.json", "*.safetensors")
_OTHER_FILES = {"tokenizer": ("*",), "scheduler": ("*.json",), "image_processor": ("*.json",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSource:
    """Where one part of a model comes from.

    Attributes:
        name: `transformer`, `vae`, `text_encoder` …; for a LoRA `both`, `high` or `low`.
        repository: the hub's name of it, `owner/name`.
        path: the folder or the single file in the repository; empty for its root.
        patterns: which of the repository's files are needed; `*` stays within one folder.
        size: bytes as the publisher says them, None where that is not known.
    """

    name: str
    repository: str
    path: str
    patterns: tuple[str, ...]
    size: int | None = None

    def wants(self, file: str) -> bool:
        """Whether a file of the repository is needed."""
        return any(
            file.count("/") == pattern.count("/") and fnmatchcase(file, pattern)
            for pattern in self.patterns
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestRow:
    """One thing that has a name.

    Attributes:
        source: where its weights come from.
        parts: what is pulled, for a row of the hub.
        family: a model's family, None for LoRAs and language models.
        overrides: fields of `ModelSpec` that hold instead of the family's, or, for a LoRA, instead
            of those of the model it is put on.
        native: the sizes (width, height) it was trained at.
        memory: device memory, in GB, of the smallest machine it is meant for.
        base: the names of the models a LoRA is made for.
        sees: whether a language model reads pictures.
        note: what stands between the user and a first video.
    """

    name: str
    kind: Kind = "model"
    description: str
    licence: str
    source: Source = "hub"
    family: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[PartSource, ...] = ()
    native: tuple[tuple[int, int], ...] = ()
    memory: float | None = None
    base: tuple[str, ...] = ()
    sees: bool = False
    note: str | None = None

    @property
    def spec(self) -> ModelSpec:
        """A model's numbers: the family's row, with what the manifest says otherwise."""
        assert self.family is not None, f"{self.name} is a {self.kind}, it has no family"
        return replace(
            FAMILIES[self.family],
            name=self.name,
            description=self.description,
            licence=self.licence,
            **self.overrides,
        )

    def put_on(self, spec: ModelSpec) -> ModelSpec:
        """A model's numbers with this LoRA on it: its steps, guidance and noise levels."""
        return replace(spec, **self.overrides)

    @property
    def size(self) -> int | None:
        """Bytes to pull as the publishers say them, None where they do not say all."""
        sizes = [p.size for p in self.parts if p.name not in ("tokenizer", *OPTIONAL)]
        return None if not sizes or None in sizes else sum(size for size in sizes if size)

    def folder(self) -> Path | None:
        """The folder of a model in the package, None for any other, or when it is damaged."""
        if self.source != "embedded":
            return None
        folder = _PACKAGE / "assets" / self.name
        return folder if (folder / "model_index.json").is_file() else None


def manifest_path() -> Path:
    """The manifest: inside the package when installed, at the root in a checkout.

    Raises:
        WeightsError: it is in neither place, so the installation is damaged.
    """
    for folder in (_PACKAGE, _PACKAGE.parent):
        path = folder / "weights_manifest.toml"
        if path.is_file():
            return path
    raise WeightsError(
        f"weights_manifest.toml is missing from {_PACKAGE}",
        hint=_REINSTALL,
    )


@lru_cache(maxsize=1)
def rows() -> tuple[ManifestRow, ...]:
    """Every row, in the manifest's order."""
    return read_manifest(manifest_path())


def read_manifest(path: Path) -> tuple[ManifestRow, ...]:
    """Read a manifest file.

    Raises:
        WeightsError: another schema than this version of the program reads, an unknown family,
            part or key; the message names it.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path} is not valid TOML: {said}", hint=_REINSTALL) from error
    if content.get("schema") != _SCHEMA:
        found = content.get("schema")
        raise WeightsError(
            f"{path} has schema {found!r:.40}, this program reads {_SCHEMA}", hint=_REINSTALL
        )
    shared = content.get("parts", {})
    try:
        return tuple(_row(table, shared) for table in content["model"])
    except ValueError as error:
        raise WeightsError(f"{path}: {error}", hint=_REINSTALL) from error
    except (KeyError, TypeError, AttributeError) as error:  # another kind of value than is meant
        raise WeightsError(f"{path} cannot be used: {error!r:.200}", hint=_REINSTALL) from error


def find(name: str) -> ManifestRow:
    """The row with this name.

    Raises:
        UsageError: nothing has it; the hint names the nearest.
    """
    for row in rows():
        if row.name == name:
            return row
    near = difflib.get_close_matches(name, [row.name for row in rows()], n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    hint = f"{guess}sora weights list shows the names; -m also takes a folder or a file"
    raise UsageError(f"unknown model {name!r}", hint=hint)


def _row(table: dict[str, Any], shared: Mapping[str, Any]) -> ManifestRow:
    values = {key: _frozen(item) for key, item in table.items()}
    name, family = values.get("name", "a model without a name"), values.get("family")
    if family is not None and family not in FAMILIES:
        raise ValueError(f"{name} has the unknown family {family!r}")
    kind = values.get("kind", "model")
    if kind not in get_args(Kind) or (kind == "model") != (family is not None):
        raise ValueError(f"{name} is a {kind!r} of the family {family!r}")
    repository, parts = values.pop("repository", None), values.pop("parts", {})
    if repository is not None and family is None:
        raise ValueError(f"{name} has a repository, but no family that says what is in it")
    own = {f.name for f in fields(ManifestRow)} - {"overrides", "parts"}
    overrides = {key: values.pop(key) for key in [*values] if key not in own}
    unknown = set(overrides) - set(ModelSpec.__dataclass_fields__)
    if unknown:
        raise ValueError(f"{name} has the unknown key {min(unknown)!r}")
    if family is not None:  # `tiny` in a test, or a row that leaves them to its family
        values.setdefault("description", FAMILIES[family].description)
        values.setdefault("licence", FAMILIES[family].licence)
    row = ManifestRow(**values, overrides=overrides)
    tables = {} if repository is None else _diffusers_parts(repository, row)
    for part, item in parts.items():
        if isinstance(item, str):
            if item not in shared:
                raise ValueError(f"{name} has the unknown part {item!r}")
            tables[part] = shared[item]
        else:
            tables[part] = {**tables.get(part, {}), **item}
    return replace(row, parts=tuple(_part(name, part, item) for part, item in tables.items()))


def _diffusers_parts(repository: str, row: ManifestRow) -> dict[str, dict[str, Any]]:
    """The folders that the row's family needs of a repository in the diffusers layout."""
    spec = row.spec
    names = ["transformer", *(["transformer_2"] if spec.boundary is not None else []), "vae"]
    names += ["text_encoder", "tokenizer", "scheduler"]
    names += ["image_encoder", "image_processor"] if spec.image_encoder else []
    tables: dict[str, dict[str, Any]] = {
        name: {"repository": repository, "path": name} for name in names
    }
    return {**tables, "index": {"repository": repository, "path": "model_index.json"}}


def _part(row: str, name: str, table: Mapping[str, Any]) -> PartSource:
    unknown = set(table) - _PART_KEYS
    if unknown:
        raise ValueError(f"{row} has the unknown key {min(unknown)!r} in {name}")
    if "repository" not in table:
        raise ValueError(f"{row} does not say where its {name} comes from")
    path = table.get("path", "")
    if Path(path).suffix in (*SINGLE_FILES, ".json"):
        patterns: tuple[str, ...] = (path,)
    else:
        wanted = table.get("files", _OTHER_FILES.get(name, _FOLDER_FILES))
        patterns = tuple(f"{path}/{pattern}" if path else pattern for pattern in wanted)
    return PartSource(
        name=name, repository=table["repository"], path=path, patterns=patterns,
        size=table.get("bytes"),
    )  # fmt: skip


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
