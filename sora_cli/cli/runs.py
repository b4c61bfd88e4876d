"""`sora resume`, and `sora runs`: what is unfinished, what is known of it, and away with it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_cli.cli import options
from sora_cli.cli.groups import Running, with_groups

if TYPE_CHECKING:
    from sora_cli.runs.folders import Stored

app = typer.Typer(
    help="Show and remove unfinished work.", rich_markup_mode=None, no_args_is_help=True
)

RunName = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="A name of `sora runs list`, or the beginning of one."),
]


@with_groups
def resume(
    context: typer.Context,
    *,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="A name of `sora runs list`. [default: the newest unfinished one]"
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="Another place than was said first."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Go on although version or weights have changed, and overwrite an existing "
            "output.",
        ),
    ] = False,
    running: Running,
) -> None:
    """Finish what was stopped: by Ctrl-C, an error, a crash, a power cut.

    The result is the same, bit for bit, as if it had never stopped. Prints the path of each file
    on stdout and nothing else.
    """
    from sora_cli.runs.folders import find
    from sora_cli.runs.resume import resume as go_on

    out = options.output_of(context, running)
    found = find(run)
    target = options.target_of(output, out, count=len(found.recipe.get("seeds", ())))
    if target is None and found.recipe.get("outputs") == ["-"]:
        target = options.target_of("-", out, count=1)
    for result in go_on(found.id, output=target, force=force, observer=out.observe):
        if result.path != "-":
            out.result(str(result.path), result.to_json())


@app.command("list")
def list_runs(context: typer.Context, as_json: options.AsJson = False) -> None:
    """List the runs that lie on this machine, the newest last."""
    from sora_cli.runs.folders import stored

    out = options.output_of(context)
    out.configure(as_json=as_json)
    runs = stored()
    if not runs and not as_json:
        out.note("there are no runs: nothing is unfinished")
        return
    rows = [["RUN", "STATE", "AGE", "SIZE", "VERB", "STEP", "PROMPT"]]
    for run in runs:
        facts = _facts(run)
        step = f"{facts['step']}/{facts['total']}" if facts["total"] else "-"
        age, size = _age(time.time() - run.updated), f"{run.size / 1e6:.1f} MB"
        prompt = facts["prompt"] if len(facts["prompt"]) <= 40 else f"{facts['prompt'][:39]}…"
        rows.append([run.id, run.state, age, size, facts["verb"], step, prompt])
    out.table(rows, {"runs": [_facts(run) for run in runs]})


@app.command("show")
def show_run(context: typer.Context, run: RunName = None, as_json: options.AsJson = False) -> None:
    """Show what is known of a run: how far it is, what it was asked, its log."""
    from sora_cli.runs.folders import LOG, find, stored

    out = options.output_of(context)
    out.configure(as_json=as_json)
    runs = stored()
    found = find(run) if run is not None or not runs else runs[-1]
    try:
        text = (found.folder / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    shown = {
        **_facts(found),
        "call": found.recipe.get("arguments"),
        "inputs": found.recipe.get("inputs"),
        "facts": found.recipe.get("facts"),
    }
    out.facts(
        {**shown, "log": text.splitlines()},
        readable={**shown, "log": "".join(f"\n  {line}" for line in text.splitlines()[-20:])},
    )


@app.command("clean")
def clean_runs(
    context: typer.Context,
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Names of `sora runs list`. [default: all]"),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Remove runs that nobody works on: the ones named, or all."""
    from sora_cli.runs.folders import clean, find, remains, stored

    out = options.output_of(context)
    out.configure(as_json=as_json)
    if not runs:
        clean(remains())
    chosen = [find(name) for name in runs] if runs else stored()
    gone = clean(chosen)
    for run in chosen:
        if run not in gone:
            out.note(f"{run.id} is still at work and stays")
    size = sum(run.size for run in gone)
    said = f"{len(gone)} run{'' if len(gone) == 1 else 's'} removed, {size / 1e6:.1f} MB"
    out.result(said, {"removed": [run.id for run in gone], "bytes": size})


def _facts(run: Stored) -> dict[str, Any]:
    """A run for people and programs."""
    status, recipe = run.status, run.recipe
    request = _inside(recipe.get("arguments"), "request", "request")
    outputs, error = recipe.get("outputs"), _inside(status.get("error"))
    return {
        "run": run.id,
        "state": run.state,
        "verb": str(recipe.get("verb", "-")),
        "prompt": str(request.get("prompt", "")),
        "outputs": [str(path) for path in outputs] if isinstance(outputs, list) else [],
        "made": list(_inside(status.get("made")).values()),
        "phase": status.get("phase"),
        "canvas": status.get("canvas"),
        "step": status.get("step") or 0,
        "total": status.get("total") or 0,
        "error": error.get("message"),
        "folder": str(Path(run.folder)),
        "bytes": run.size,
        "created": run.created,
        "updated": run.updated,
    }


def _inside(content: object, *keys: str) -> dict[str, Any]:
    """An object in a file that may hold anything; empty where there is none."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
