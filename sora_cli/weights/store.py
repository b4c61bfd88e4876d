"""Where a model's weights lie, what they are, and whether they are whole.

A model is a name of the manifest, a name given at import, a folder in the diffusers or the original
layout, or a single file. Of a diffusers folder the small JSON files are enough to know what it can
do; of the others the names and shapes of the tensors are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.errors import UsageError, WeightsError
from sora_cli.models.specs import ModelSpec
from sora_cli.weights import folders, manifest, records
from sora_cli.weights.folders import read_json as read_json
from sora_cli.weights.folders import say_config_error as say_config_error
from sora_cli.weights.lora_arguments import Lora
from sora_cli.weights.manifest import SINGLE_FILES, ManifestRow

if TYPE_CHECKING:
    from sora_cli.runtime.shapes import NetworkShapes

SUMS = "SHA256SUMS"  # as `sha256sum` writes it; the embedded model carries one
_HEAD = 1 << 20  # bytes at either end of a file without a header that tell it from others


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """A model on this machine.

    Attributes:
        spec: its numbers.
        parts: "transformer", "transformer_2" (the low-noise expert), "vae", "text_encoder",
            "tokenizer", "image_encoder", "language_model" …: each a folder in the diffusers or
            transformers layout, or one file.
        folder: the diffusers folder, None for a set of loose files.
    """

    spec: ModelSpec
    parts: Mapping[str, Path]
    folder: Path | None

    @property
    def language_model(self) -> Path | None:
        """The folder of its caption LLM, where it has one of its own."""
        return self.parts.get("language_model")


def locate(model: str, *, vae: Path | None = None, text_encoder: Path | None = None) -> Installed:
    """Find a model by its name, its folder or its file.

    Args:
        vae, text_encoder: files or folders that take the place of the model's own, and that a
            single-file transformer needs where none is installed.

    Raises:
        UsageError: no such name, folder or file, one of another kind, or companions missing.
        WeightsError: a known model whose weights are not here, or that cannot be used.
    """
    named = {"vae": vae, "text_encoder": text_encoder}
    given = {part: path.expanduser() for part, path in named.items() if path is not None}
    for path in given.values():
        if not path.exists():
            raise UsageError(f"{path} is not there", hint="--vae FILE, --text-encoder FILE")
    if any(row.name == model for row in manifest.rows()):  # ./tiny is a folder, tiny a name
        return _with_given(_by_row(manifest.find(model)), given)
    record = records.read(model)
    if record is not None and record.imported is not None:
        return _by_path(record.imported, given, model)
    path = Path(model).expanduser()
    if not path.exists():
        manifest.find(model)
    return _by_path(path, given, path.resolve().stem if path.is_file() else path.resolve().name)


def _by_row(row: ManifestRow) -> Installed:
    if row.kind != "model":
        option = f"--lora {row.name}" if row.kind == "lora" else "--expand uses it"
        raise UsageError(f"{row.name} is no model but a {row.kind.replace('_', ' ')}", hint=option)
    folder = row.folder()
    if folder is not None:
        return Installed(spec=row.spec, parts=folders.parts_of(folder), folder=folder)
    record = pulled(row)
    transformer = record.parts["transformer"]
    index = transformer.parent / folders.INDEX
    return Installed(
        spec=row.spec,
        parts=record.parts,
        folder=transformer.parent if index.is_file() else None,
    )


def pulled(row: ManifestRow) -> records.Record:
    """The record of what was pulled for a row.

    Raises:
        WeightsError: nothing was, or a file of it is gone.
    """
    record = records.read(row.name)
    if record is None:
        note = f": {row.note}" if row.note else ""
        hint = f"sora weights pull {row.name}"
        if row.source == "embedded":
            hint = "install again: pip install --force-reinstall sora-cli"
        raise WeightsError(f"the weights of {row.name} are not on this machine{note}", hint=hint)
    if record.missing is not None:
        raise WeightsError(
            f"{record.missing} of {row.name} is gone or cut off",
            hint=f"sora weights pull {row.name}",
        )
    return record


def _with_given(installed: Installed, given: Mapping[str, Path]) -> Installed:
    """The model with other parts, where they fit it."""
    if not given:
        return installed
    from sora_cli.weights import loose

    parts = {**installed.parts, **given}
    loose.check_parts(parts)
    return replace(installed, parts=parts, folder=None)


def _by_path(path: Path, given: Mapping[str, Path], name: str) -> Installed:
    if (path / folders.INDEX).is_file():
        spec, parts = folders.read_folder(path)
        return _with_given(Installed(spec=spec, parts=parts, folder=path), given)
    if not path.exists():
        raise WeightsError(
            f"{path} of {name} is gone", hint=f"sora weights remove {name}, or put it back"
        )
    if path.is_file() and path.suffix not in SINGLE_FILES:
        raise UsageError(
            f"{path} is a file that holds no weights; a model is a name, a folder, or a "
            f"{', '.join(SINGLE_FILES)} file",
            hint="sora weights list shows the names",
        )
    from sora_cli.weights import loose

    others = [record.parts for record in records.read_all() if record.missing is None]
    spec, parts = loose.complete(name, {**loose.parts_in(path), **given}, others)
    return Installed(spec=spec, parts=parts, folder=None)


def lora_files(loras: Sequence[Lora]) -> tuple[Lora, ...]:
    """LoRAs as files: a name of the manifest, or of an import, becomes the files it stands for.

    Raises:
        WeightsError: a name whose files are not here.
    """
    files: list[Lora] = []
    for lora in loras:
        row = _lora_row(lora)
        record = pulled(row) if row is not None else records.read(str(lora.path))
        if record is None or record.kind != "lora":
            files.append(lora)
            continue
        for expert, path in record.parts.items():
            if lora.expert in ("both", expert) or expert == "both":
                each = lora.expert if expert == "both" else expert
                files.append(replace(lora, path=path, expert=each))  # type: ignore[arg-type]
    return tuple(files)


def with_loras(spec: ModelSpec, loras: Sequence[Lora]) -> ModelSpec:
    """A model's numbers with these LoRAs on it: few-step ones bring steps and noise levels.

    Raises:
        UsageError: a LoRA of the manifest on a model that it is not made for.
    """
    for lora in loras:
        row = _lora_row(lora)
        if row is None:
            continue
        families = {manifest.find(name).family for name in row.base}
        if spec.family not in families:
            raise UsageError(
                f"{row.name} is made for {' and '.join(row.base)}, not for {spec.name}",
                hint=f"-m {row.base[0]}",
            )
        spec = row.put_on(spec)
    return spec


def _lora_row(lora: Lora) -> ManifestRow | None:
    rows = (row for row in manifest.rows() if row.kind == "lora" and row.name == str(lora.path))
    return next(rows, None)


def language_model(name: str) -> Path | None:
    """The folder of a language model of the manifest, None when it is not pulled."""
    record = records.read(name)
    if record is None or record.missing is not None:
        return None
    return record.parts.get("language_model")


def installed_names() -> tuple[str, ...]:
    """Every name that can be used now: of the manifest, then of imports."""
    whole = [record.name for record in records.read_all() if record.missing is None]
    known = [r.name for r in manifest.rows() if r.folder() is not None or r.name in whole]
    return (*known, *(name for name in whole if name not in known))


def weight_files(installed: Installed) -> list[Path]:
    """Every file with weights, each once, in a fixed order."""
    files: dict[Path, None] = {}
    for _, path in sorted(installed.parts.items()):
        found = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        files |= dict.fromkeys(file for file in found if file.suffix in SINGLE_FILES)
    return list(files)


def identity(installed: Installed) -> str:
    """A hash that names the weights: of their checksums, or of their headers where there are none.

    Headers (names, dtypes, shapes, offsets) and sizes tell models apart without reading gigabytes.
    """
    digest = hashlib.sha256()
    sums = None if installed.folder is None else installed.folder / SUMS
    if sums is not None and sums.is_file():
        digest.update(sums.read_bytes())
        return f"sha256:{digest.hexdigest()}"
    record = records.read(installed.spec.name)
    if record is not None and dict(record.parts) == dict(installed.parts):
        for known in sorted(file.sha256 for file in record.files):
            digest.update(known.encode())
        return f"sha256:{digest.hexdigest()}"
    for path in weight_files(installed):
        shown = path.relative_to(installed.folder) if installed.folder else path.name
        digest.update(f"{shown} {path.stat().st_size}\n".encode() + _header(path))
    return f"headers:{digest.hexdigest()}"


def _header(path: Path) -> bytes:
    """A file's own description of its tensors."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            length = int.from_bytes(file.read(8), "little")
            return file.read(min(length, 1 << 26))
        # A .pth is an archive whose last bytes list every member with its CRC; a .gguf begins with
        # its header.
        start = file.read(_HEAD)
        file.seek(max(0, path.stat().st_size - _HEAD))
        return start + file.read()


def verify(installed: Installed) -> int:
    """Check every file against the folder's SHA256SUMS; returns how many were checked.

    Models from the hub are not read whole before each video: that their files are there is what
    `locate` checked, and `sora weights verify` reads them.

    Raises:
        WeightsError: a file that is missing or differs, by name.
    """
    folder = installed.folder
    if folder is None or not (folder / SUMS).is_file():
        return 0
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    for line in lines:
        expected, name = line.split(maxsplit=1)
        path = folder / name
        if not path.is_file():
            raise WeightsError(f"{path} is missing", hint=_reinstall(installed))
        if records.sha256_of(path) != expected:
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
    return sum(path.stat().st_size for path in weight_files(installed))


def network_shapes(installed: Installed) -> NetworkShapes:
    """The sizes of every network of a model, from its files' headers, for the memory planner.

    Raises:
        WeightsError: a damaged file, or one of another kind than its place says.
    """
    from sora_cli.runtime import shapes
    from sora_cli.weights import loose

    parts = installed.parts
    found: dict[str, Any] = {
        name: loose.look(parts[name]).config for name in ("transformer", "vae", "text_encoder")
    }
    return shapes.NetworkShapes.of(
        found["transformer"],
        found["vae"],
        found["text_encoder"],
        experts=2 if "transformer_2" in parts else 1,
        image_encoder_parameters=(shapes.CLIP_VIT_H_PARAMETERS if "image_encoder" in parts else 0),
        disk_bytes=size_on_disk(installed),
    )
