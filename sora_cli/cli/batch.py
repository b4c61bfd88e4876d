"""`sora batch`: a command line for each line of a file, with networks that stay loaded."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from sora_cli.cli import options
from sora_cli.cli.groups import Running, with_groups
from sora_cli.cli.output import Output
from sora_cli.errors import SoraError, Terminated, UsageError

if TYPE_CHECKING:
    from sora_cli.batch import Item, Shared
    from sora_cli.pipeline.events import Event

# Options of the whole batch, or of no use in one.
_NOT_OF_AN_ITEM = {"json", "progress", "quiet", "dry-run", "help"}


@with_groups
def batch(
    context: typer.Context,
    *,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE.jsonl", help="One JSON object a line; - reads them from stdin."
        ),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip what is made already, go on with what is not.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where the items' outputs go."),
    ] = None,
    model: options.Model = None,
    force: options.Force = False,
    sign: options.Sign = None,
    label: options.Label = None,
    running: Running,
) -> None:
    """Make many: each line has a prompt and options by their names here, "verb" is generate.

    Prints one JSON object for each item on stdout: its path, or its error and exit code. An item
    that fails does not stop the rest; then the exit code is 1.
    """
    from sora_cli.batch import Shared, read_items

    out = options.output_of(context, running)
    counts = dict.fromkeys(("made", "skipped", "failed"), 0)
    with _opened(file) as stream, Shared() as shared:
        asked = {"model": model, "force": force or None, "sign": sign, "label": label}
        common = {name: value for name, value in asked.items() if value is not None}
        work = _Work(out, shared, output, common, resume, force)
        try:
            for item in read_items(stream):
                kind, told = work.make(item)
                counts[kind] += 1
                out.result_line(json.dumps({"item": item.number, **told}, ensure_ascii=False))
        except (KeyboardInterrupt, Terminated):
            done = _said(counts, "none finished")
            out.note(f"{done}; to make the rest: sora batch {shlex.quote(file)} --resume")
            raise
    if counts["failed"]:
        raise SoraError(_said(counts))
    out.note(_said(counts))


def _said(counts: Mapping[str, int], nothing: str = "nothing to do") -> str:
    total, parts = sum(counts.values()), [f"{n} {kind}" for kind, n in counts.items() if n]
    return f"{total} item{'' if total == 1 else 's'}: {', '.join(parts) or nothing}"


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed", hint="sora batch items.jsonl")
        yield sys.stdin.buffer
        return
    try:
        stream = open(file, "rb")  # noqa: SIM115 (closed below; only opening is the user's)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot read {file}: {reason}", hint="sora batch items.jsonl") from error
    with stream:
        yield stream


class _ItemOutput(Output):
    """What a command writes for one item: results are collected, the rest goes to the batch's."""

    def __init__(self, outer: Output, item: Item, shared: Shared) -> None:
        super().__init__()
        self.outer, self.number = outer, item.number
        self.shared, self.item = shared, item.id
        self.results: list[Mapping[str, Any]] = []

    def configure(self, **_: Any) -> None:
        """The batch's own options hold."""

    def result(self, text: str, content: Mapping[str, Any]) -> None:
        """Keep what was made."""
        self.results.append(content)

    def note(self, message: str) -> None:
        """Say it with the item's number."""
        self.outer.note(f"item {self.number}: {message}")

    def observe(self, event: Event) -> None:
        """Pass news on."""
        if event.message is not None:
            self.note(event.message)
            self.outer.checkpoint()
        else:
            self.outer.observe(event)


class _Work:
    """Makes items, one after the other."""

    def __init__(
        self, out: Output, shared: Shared, folder: str | None, common: dict[str, Any],
        resume: bool, force: bool,
    ) -> None:  # fmt: skip
        from sora_cli import app as verbs
        from sora_cli.cli.commands import app
        from sora_cli.runs.calls import VERBS

        self.out, self.shared, self.folder, self.common = out, shared, folder, common
        self.resume, self.force = resume, force
        root: Any = typer.main.get_command(app)
        self.root = root
        assert verbs.generate.__name__ in VERBS
        self.commands = {n: c for n, c in root.commands.items() if n in VERBS}

    def make(self, item: Item) -> tuple[str, dict[str, Any]]:
        """How it went (made, skipped, failed), and what is told of it."""
        from sora_cli.cli.main import describe

        out = _ItemOutput(self.out, item, self.shared)
        try:
            skipped = self._make(item, out)
        except Exception as error:
            code, message, hint = describe(error)
            return "failed", {"error": message, "hint": hint, "exit_code": int(code)}
        paths = [str(result.get("path")) for result in out.results]
        told: dict[str, Any] = {"path": paths[0]} if len(paths) == 1 else {"paths": paths}
        return ("skipped", {**told, "skipped": True}) if skipped else ("made", told)

    def _make(self, item: Item, out: _ItemOutput) -> bool:
        """Make an item; True where it was there already."""
        from sora_cli.batch import find_made, find_run, output_of
        from sora_cli.runs.folders import clean

        if item.problem is not None:
            raise item.problem
        output = output_of(item, self.folder)
        command, words = self._words(item, output)
        run = find_run(item) if self.resume else None
        if self.resume:
            made, changed = find_made(item, output)
            if changed is not None:
                out.note(f"made again, because {changed} has changed")
                command, words = self._words(item, output, force=True)
            elif len(made) >= item.count:
                out.results += [{"path": path} for path in made]
                clean([run] if run else [])
                return True
            if (
                run is not None
                and run.unfinished
                and changed is None
                and self._gone_on(run.id, out)
            ):
                return False
            clean([run] if run else [])
        with self.root.make_context("sora", [], obj=out, resilient_parsing=True) as parent:
            context = command.make_context(item.verb, words, parent=parent)
            with context:
                command.invoke(context)
        return False

    def _gone_on(self, run: str, out: _ItemOutput) -> bool:
        """Finish a run that was stopped; False where only making the item anew will do."""
        from sora_cli.runs.resume import resume

        results = []
        try:
            for result in resume(run, force=self.force, shared=self.shared, observer=out.observe):
                results.append(result.to_json())
        except UsageError as error:
            out.note(f"made anew, because {error.message}")
            return False
        out.results += results
        return True

    def _words(self, item: Item, output: str, *, force: bool = False) -> tuple[Any, list[str]]:
        """The command of an item, and the words that it would have on the command line.

        Raises:
            UsageError: an option that the command does not have, or a value of the wrong kind.
        """
        command = self.commands.get(item.verb)
        if command is None:
            known = ", ".join(sorted(self.commands))
            raise UsageError(f"{item.verb!r} is no verb", hint=f"one of {known}")
        rest = {**self.common, **item.options, "output": output}
        rest |= {"force": True} if force else {}
        rest = {name: value for name, value in rest.items() if value is not None}
        words: list[str] = []
        arguments: list[str] = []
        for parameter in command.params:
            names = {parameter.name.replace("_", "-")} - _NOT_OF_AN_ITEM
            if parameter.param_type_name == "argument":
                given = [rest.pop(name) for name in names if name in rest]
                arguments += [_text(parameter.name, value) for value in given]
                continue
            long = {opt[2:] for opt in parameter.opts if opt.startswith("--")}
            for name in (long | names) - _NOT_OF_AN_ITEM:
                if name in rest:
                    words += _option(parameter, name, rest.pop(name))
        if rest:
            name = next(iter(rest))
            raise UsageError(f"{item.verb} has no option {name!r}", hint=f"sora {item.verb} --help")
        return command, [*words, "--", *arguments]


def _option(parameter: Any, name: str, value: Any) -> list[str]:
    """One option as words: `--name=value`, so that no value is taken for an option."""
    option = next(opt for opt in parameter.opts if opt.startswith("--"))
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{name} is true or false, not {value!r:.40}", hint=f'"{name}": true')
        negative = [opt for opt in parameter.secondary_opts if opt.startswith("--")]
        return [option] if value else negative[:1]
    if parameter.multiple:
        values = value if isinstance(value, list) else [value]
        return [f"{option}={_text(name, part)}" for part in values]
    return [f"{option}={_text(name, value)}"]


def _text(name: str, value: Any) -> str:
    """A value as typed."""
    if isinstance(value, str) and not (name == "prompt" and value == "-"):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and name != "prompt":
        return str(value)
    raise UsageError(f"{name} cannot be {value!r:.40}", hint=f'"{name}": "…"')
