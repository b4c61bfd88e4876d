"""`sora weights`: what has a name, where it is, and bringing it here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_cli.cli import options
from sora_cli.cli.output import Output
from sora_cli.errors import Terminated
from sora_cli.pipeline.events import Event

if TYPE_CHECKING:
    from sora_cli.weights.manifest import ManifestRow
    from sora_cli.weights.records import Record

_MEGABYTE = 10**6
_GIGABYTE = 10**9
# An "8 GB" device reports a little less: the driver keeps some.
_NEARLY = 0.95

app = typer.Typer(
    help="Show, pull, check and remove weights.",
    rich_markup_mode=None,
)

Names = Annotated[list[str], typer.Argument(metavar="NAME…", help="Names of `sora weights list`.")]
OptionalNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME…", help="Names of `sora weights list`; without one, all."),
]


@app.command("list")
def list_models(context: typer.Context, as_json: options.AsJson = False) -> None:
    """List what has a name: what it is, its licence and size, and whether it is installed.

    NEEDS is the memory of the model's own size and length, planned: from the smallest plan to the
    fastest one, in GB; FITS says whether one of them fits this machine.
    """
    out = options.output_of(context)
    out.configure(as_json=as_json)
    from sora_cli.weights import records
    from sora_cli.weights.manifest import rows

    known = {record.name: record for record in records.read_all()}
    gpu, memory = _memory()
    found = [
        _content(row, known.get(row.name)) | _needs(row, gpu=gpu, memory=memory) for row in rows()
    ]
    named = {row.name for row in rows()}
    found += [_imported(record) for name, record in known.items() if name not in named]
    table = [
        ["NAME", "INSTALLED", "FITS", "NEEDS", "GB", "SIZE", "LENGTH", "CAN", "LICENCE", "WHAT"]
    ]
    out.table(table + [_line(content) for content in found], {"models": found})
    for row in rows():
        if row.note and row.name not in known:
            out.note(f"{row.name}: {row.note}")


@app.command()
def pull(
    context: typer.Context,
    names: Names,
    as_json: options.AsJson = False,
    progress: options.ProgressForm = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Bring models here from the hub, into its cache; goes on where an earlier pull stopped.

    Only the files that are needed. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE hold. Prints
    the folder or file with the model on stdout.
    """
    out = options.output_of(context)
    out.configure(quiet=quiet, as_json=as_json, progress=progress)
    from sora_cli.weights import manifest
    from sora_cli.weights.pull import pull as bring

    _be_quiet_about_http()
    for row in [manifest.find(name) for name in names]:
        try:
            record = bring(row, _progress(out, "pull"), out.note)
        except (KeyboardInterrupt, Terminated):
            out.note(f"what came is kept; sora weights pull {row.name} goes on from it")
            raise
        path = _place(record)
        content = {
            "name": row.name,
            "path": str(path),
            "parts": {part: str(place) for part, place in record.parts.items()},
            "bytes": record.size,
            "commits": record.commits,
        }
        out.result(str(path), content)


@app.command()
def verify(
    context: typer.Context,
    names: OptionalNames = None,
    as_json: options.AsJson = False,
    progress: options.ProgressForm = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Read every file again and compare it with the SHA-256 it came with."""
    out = options.output_of(context)
    out.configure(quiet=quiet, as_json=as_json, progress=progress)
    from sora_cli.weights import local

    count = local.verify(names or [], _progress(out, "verify"))
    out.result(f"{count} files are whole", {"files": count, "damaged": 0})


@app.command()
def path(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `sora weights list`.")],
    as_json: options.AsJson = False,
) -> None:
    """Print the folder with a model's weights, or for one of several files each of them."""
    out = options.output_of(context)
    out.configure(as_json=as_json)
    from sora_cli.weights import manifest, records, store

    row = next((row for row in manifest.rows() if row.name == name), None)
    if row is None and (record := records.read(name)) is not None:
        parts, folder = record.parts, record.imported
    elif row is not None and row.kind != "model":
        parts, folder = store.pulled(row).parts, None
    else:
        installed = store.locate(name)
        parts, folder = installed.parts, installed.folder
    shown = str(folder) if folder else "\n".join(dict.fromkeys(str(p) for p in parts.values()))
    content = {
        "name": name,
        "path": None if folder is None else str(folder),
        "parts": {part: str(place) for part, place in parts.items()},
    }
    out.result(shown, content)


@app.command()
def remove(
    context: typer.Context,
    names: Names,
    as_json: options.AsJson = False,
) -> None:
    """Forget models, and delete the files that were pulled for them and that no other one needs."""
    out = options.output_of(context)
    out.configure(as_json=as_json)
    from sora_cli.weights import local

    for name in names:
        freed = local.remove(name)
        out.result(f"{name}: {_bytes_text(freed)} freed", {"name": name, "freed": freed})


@app.command("import")
def take_in(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A folder (diffusers, original) or a weights file."),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What to call it. [default: the file's name]"),
    ] = None,
    as_json: options.AsJson = False,
    progress: options.ProgressForm = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Give a name to weights that you have; they are recognised by their tensors and stay there.

    Prints the name on stdout.
    """
    out = options.output_of(context)
    out.configure(quiet=quiet, as_json=as_json, progress=progress)
    from sora_cli.weights import local

    record = local.take_in(path, name, _progress(out, "verify"))
    held = ", ".join(sorted(part.replace("both", "lora") for part in record.parts))
    out.note(f"{record.name} is a {record.kind}: {held}")
    content = {
        "name": record.name,
        "kind": record.kind,
        "path": str(record.imported),
        "parts": {part: str(place) for part, place in record.parts.items()},
        "bytes": record.size,
    }
    out.result(record.name, content)


def _progress(out: Output, phase: str) -> Callable[[int, int], None]:
    """An observer of bytes as the pipeline's observers are: a step is a megabyte."""
    shown = -1

    def observe(done: int, total: int) -> None:
        nonlocal shown
        step = min(done, total) // _MEGABYTE
        if done >= total:
            step = -(-total // _MEGABYTE)
        if step != shown:
            shown = step
            out.observe(Event(phase=phase, step=step, total=-(-total // _MEGABYTE)))
        else:
            out.checkpoint()

    return observe


def _be_quiet_about_http() -> None:
    """The hub's library warns in its own words, addresses included; ours come as errors."""
    from huggingface_hub.utils import logging

    logging.set_verbosity(logging.CRITICAL)


def _place(record: Record) -> Path:
    """The one path that says best where a model is."""
    parts = record.parts
    first = parts.get("transformer") or parts.get("high") or next(iter(parts.values()))
    return first.parent if (first.parent / "model_index.json").is_file() else first


def _needs(row: ManifestRow, *, gpu: bool, memory: int | None) -> dict[str, Any]:
    """What a model takes for a clip of its own size and length, as the memory planner reckons."""
    from sora_cli.runtime import plan
    from sora_cli.runtime.shapes import JobShape, published

    shapes = published(row.name) if row.kind == "model" else None
    if shapes is None:
        enough = None
        if row.memory is not None and memory is not None:
            enough = memory >= _NEARLY * row.memory * _GIGABYTE
        return {"fits": enough, "memory_bytes": None, "seconds": None}
    spec = row.spec
    job = JobShape(
        width=spec.width, height=spec.height, num_frames=spec.num_frames,
        steps=spec.num_inference_steps, contexts=1 if spec.guidance_scale == 1 else 2,
        dtype="bfloat16" if gpu else "float32", device_kind="cuda" if gpu else "cpu",
        cores=os.cpu_count() or 1,
    )  # fmt: skip
    ladder = plan.plans(shapes, job)
    chosen = plan.best(ladder, memory)
    return {
        "fits": chosen is not None,
        "memory_bytes": [ladder[-1].peak_bytes, ladder[0].peak_bytes],
        "seconds": None if chosen is None else chosen.seconds,
    }


def _content(row: ManifestRow, record: Record | None) -> dict[str, Any]:
    folder = row.folder()
    whole = record is not None and record.missing is None
    spec = row.spec if row.kind == "model" else None
    place = str(_place(record)) if record is not None and whole else None
    return {
        "name": row.name,
        "kind": row.kind,
        "description": row.description,
        "licence": row.licence,
        "installed": folder is not None or whole,
        "path": place if folder is None else str(folder),
        "bytes": record.size if record is not None else _bytes_of(row, folder),
        "abilities": list(spec.abilities) if spec else [],
        "size": [spec.width, spec.height] if spec else None,
        "native": [list(size) for size in row.native],
        "num_frames": spec.num_frames if spec else None,
        "fps": spec.fps if spec else None,
        "base": list(row.base),
        "note": row.note,
    }


def _imported(record: Record) -> dict[str, Any]:
    return {
        "name": record.name,
        "kind": record.kind,
        "description": f"imported: {', '.join(sorted(record.parts))}",
        "licence": None,
        "installed": record.missing is None,
        "path": str(record.imported or _place(record)),
        "fits": None,
        "memory_bytes": None,
        "seconds": None,
        "bytes": record.size,
        "abilities": [],
        "size": None,
        "native": [],
        "num_frames": None,
        "fps": None,
        "base": [],
        "note": None,
    }


def _bytes_of(row: ManifestRow, folder: Path | None) -> int | None:
    if folder is None:
        return row.size
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


_HEAD = ["NAME", "INSTALLED", "FITS", "NEEDS", "GB", "SIZE", "LENGTH", "CAN", "LICENCE", "WHAT"]


def _line(content: dict[str, Any]) -> list[str]:
    """A row of the table that people read."""
    size, length = content["size"], "-"
    if content["fps"]:
        length = f"{content['num_frames'] / content['fps']:.1f}s"
    return [
        content["name"],
        "yes" if content["installed"] else "no",
        {None: "-", True: "yes", False: "no"}[content["fits"]],
        "–".join(f"{bytes_ / _GIGABYTE:.0f}" for bytes_ in content["memory_bytes"] or ()) or "-",
        "-" if content["bytes"] is None else f"{content['bytes'] / _GIGABYTE:.1f}",
        f"{size[0]}x{size[1]}" if size else "-",
        length,
        ",".join(content["abilities"]) or content["kind"].replace("_", " "),
        content["licence"] or "-",
        content["description"],
    ]


def _memory() -> tuple[bool, int | None]:
    """Whether models run on a GPU, and the bytes of its memory, or else of the machine's."""
    from sora_cli.runtime import memory

    if _may_have_gpu():
        from sora_cli.runtime.device import choose_device, device_memory

        found = device_memory(choose_device().device)
        if found is not None:
            return True, found[1]
    return False, memory.total_memory()


def _may_have_gpu() -> bool:
    """Whether a driver is there; importing torch to hear that there is none takes seconds."""
    import shutil

    drivers = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
    return shutil.which("nvidia-smi") is not None or any(path.exists() for path in drivers)


def _bytes_text(count: int) -> str:
    if count < _GIGABYTE:
        return f"{count / _MEGABYTE:.1f} MB"
    return f"{count / _GIGABYTE:.1f} GB"
