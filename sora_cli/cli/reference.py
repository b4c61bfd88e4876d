"""docs/reference/cli.md, written from the commands' own help: `make docs`.

A test compares the file with what this makes, so the two cannot drift apart.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sora_cli.errors import ExitCode

_WIDTH = 96

_HEAD = """# Commands

Written from `--help` by `make docs`; do not edit by hand.

stdout carries the result and nothing else: one path a line, or with `--json` one object a line.
Progress, notes, errors and hints go to stderr.

| exit code | meaning |
|---|---|
"""

_MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILURE: "failed: cannot write, no space, an encoder that died, an unexpected error",
    ExitCode.USAGE: "bad usage or bad input: unknown model, existing output, unknown suffix, …",
    ExitCode.WEIGHTS: "weights that are not here, are damaged, or do not match their hash",
    ExitCode.DEVICE: "a device that is not here, or not enough memory",
    ExitCode.SIGINT: "interrupted (Ctrl-C)",
    ExitCode.SIGTERM: "terminated",
}


def render() -> str:
    """The whole page as Markdown."""
    import typer.main

    from sora_cli.cli.commands import app

    parts = [_HEAD.rstrip("\n")]
    parts += [f"\n| {int(code)} | {_MEANINGS[code]} |" for code in ExitCode]
    for path, text in _helps(typer.main.get_command(app), "sora", None):
        parts.append(f"\n\n## {path}\n\n```text\n{text.rstrip()}\n```")
    return "".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page to the path that is the only argument."""
    (path,) = sys.argv[1:] if argv is None else argv
    Path(path).write_text(render(), encoding="utf-8")


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    # Typer's vendored command classes have no public name, hence Any.
    context = command.context_class(
        command, info_name=name, parent=parent, terminal_width=_WIDTH, max_content_width=_WIDTH
    )
    yield context.command_path, command.get_help(context)
    for child, subcommand in getattr(command, "commands", {}).items():
        yield from _helps(subcommand, child, context)


if __name__ == "__main__":
    main()
