"""`sora weights`: the models that have a name, and where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_cli.cli import options

if TYPE_CHECKING:
    from sora_cli.weights.manifest import ManifestRow

app = typer.Typer(
    help="Show the models and where their weights are.",
    rich_markup_mode=None,
)


@app.command("list")
def list_models(context: typer.Context, as_json: options.AsJson = False) -> None:
    """List the models by name: what each is, its licence, and whether it is installed."""
    out = options.output_of(context)
    out.configure(as_json=as_json)
    from sora_cli.weights.manifest import rows

    table = [["NAME", "INSTALLED", "SIZE", "LENGTH", "LICENCE", "WHAT"]]
    for row in rows():
        spec = row.spec
        table.append(
            [
                row.name,
                "no" if row.folder() is None else "yes",
                f"{spec.width}x{spec.height}",
                f"{spec.num_frames / spec.fps:.1f}s",
                spec.licence,
                spec.description,
            ]
        )
    out.table(table, {"models": [_content(row) for row in rows()]})
    for row in rows():
        if row.folder() is None and row.note:
            out.note(f"{row.name}: {row.note}")


@app.command()
def path(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `sora weights list`.")],
    as_json: options.AsJson = False,
) -> None:
    """Print the folder with a model's weights."""
    out = options.output_of(context)
    out.configure(as_json=as_json)
    from sora_cli.weights.store import locate

    folder = locate(name).folder
    out.result(str(folder), {"name": name, "path": str(folder)})


def _content(row: ManifestRow) -> dict[str, Any]:
    spec, folder = row.spec, row.folder()
    return {
        "name": row.name,
        "description": spec.description,
        "licence": spec.licence,
        "installed": folder is not None,
        "path": None if folder is None else str(folder),
        "size": [spec.width, spec.height],
        "num_frames": spec.num_frames,
        "fps": spec.fps,
        "note": row.note,
    }
