"""The models that have a name: `weights_manifest.toml`, read into rows.

The file stands at the root of the repository, where people edit it; a built wheel carries it
inside the package.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from sora_cli.errors import UsageError, WeightsError
from sora_cli.models.specs import FAMILIES, ModelSpec

Source = Literal["embedded", "folder"]

_PACKAGE = Path(__file__).resolve().parents[1]
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestRow:
    """One model that has a name.

    Attributes:
        spec: its numbers: the family's row, with what the manifest says otherwise.
        source: where its weights come from.
        note: what to do when they are not here.
    """

    spec: ModelSpec
    source: Source
    note: str | None

    @property
    def name(self) -> str:
        """The name that `--model` takes."""
        return self.spec.name

    def folder(self) -> Path | None:
        """The folder with the weights, None when they are not on this machine."""
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
        hint="install again: pip install --force-reinstall sora-cli",
    )


@lru_cache(maxsize=1)
def rows() -> tuple[ManifestRow, ...]:
    """Every row, in the manifest's order."""
    return read_manifest(manifest_path())


def read_manifest(path: Path) -> tuple[ManifestRow, ...]:
    """Read a manifest file.

    Raises:
        WeightsError: another schema than this version of the program reads, an unknown family or
            an unknown key; the message names it.
    """
    with path.open("rb") as file:
        try:
            content = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise WeightsError(f"{path} is not valid TOML: {error}") from error
    if content.get("schema") != _SCHEMA:
        found = content.get("schema")
        raise WeightsError(f"{path} has schema {found}, this program reads {_SCHEMA}")
    return tuple(_row(table, path) for table in content["model"])


def find(name: str) -> ManifestRow:
    """The row with this name.

    Raises:
        UsageError: no model has it; the hint names the nearest.
    """
    for row in rows():
        if row.name == name:
            return row
    near = difflib.get_close_matches(name, [row.name for row in rows()], n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    hint = f"{guess}sora weights list shows the names; -m FOLDER takes a diffusers folder"
    raise UsageError(f"unknown model {name!r}", hint=hint)


def _row(table: dict[str, Any], path: Path) -> ManifestRow:
    values = dict(table)
    source, note = values.pop("source"), values.pop("note", None)
    family = values["family"]
    if family not in FAMILIES:
        raise WeightsError(f"{path}: {values['name']} has the unknown family {family!r}")
    unknown = set(values) - set(ModelSpec.__dataclass_fields__)
    if unknown:
        raise WeightsError(f"{path}: {values['name']} has the unknown key {min(unknown)!r}")
    values = {key: tuple(item) if isinstance(item, list) else item for key, item in values.items()}
    return ManifestRow(spec=replace(FAMILIES[family], **values), source=source, note=note)
