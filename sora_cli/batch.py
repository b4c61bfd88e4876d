"""Many items, one after the other: what `sora batch` reads, and what it finds made already.

An item is one line of JSON: a prompt and options by their names on the command line. Its id is a
hash of what it says (and of how many the same came before it); outputs carry it in their recipes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sora_cli.errors import UsageError
from sora_cli.media.recipe import refuse, whole
from sora_cli.runtime.plan import MemoryPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from sora_cli.pipeline.networks import Model, Networks
    from sora_cli.runs.folders import Stored

MAX_LINE = 1 << 20  # bytes; a prompt of 10,000 words has 60,000
_EXAMPLE = '{"prompt": "a red ball", "steps": 8, "output": "ball.mp4"}'


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One line.

    number: from 1, as lines with anything in them are counted. id: of its content, 16 hex digits.
    options: by their names with hyphens; `verb` is taken out. problem: why it cannot be made.
    """

    number: int
    id: str = ""
    verb: str = "generate"
    options: dict[str, Any] = field(default_factory=dict)
    problem: UsageError | None = None

    @property
    def count(self) -> int:
        """How many outputs it has."""
        counts = (self.options.get(name) for name in ("num-videos", "num-images"))
        return next((n for n in counts if type(n) is int and n > 1), 1)


def read_items(stream: BinaryIO) -> Iterator[Item]:
    """The items of a file, one at a time; a line that is none is an item with a problem."""
    seen: Counter[str] = Counter()
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        whole = len(line) <= MAX_LINE
        if not whole:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE)
        elif not line.strip():
            continue
        number += 1
        if whole:
            yield _item(number, line, seen)
        else:
            said = f"item {number} is longer than {MAX_LINE} bytes"
            yield Item(number=number, problem=UsageError(said, hint=_EXAMPLE))


def _item(number: int, line: bytes, seen: Counter[str]) -> Item:
    try:
        content = json.loads(line.decode("utf-8-sig"), parse_constant=refuse, parse_int=whole)
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        options = {key.replace("_", "-"): value for key, value in content.items()}
        verb = options.pop("verb", "generate")
        if not isinstance(verb, str):
            raise ValueError("its verb is no text")
        text = json.dumps([verb, options], sort_keys=True)
    except (ValueError, RecursionError) as error:
        said = f"item {number} cannot be read: {error or 'nested too deep'}"
        return Item(number=number, problem=UsageError(said, hint=_EXAMPLE))
    seen[text] += 1
    digest = hashlib.sha256(f"{seen[text]} {text}".encode()).hexdigest()[:16]
    return Item(number=number, id=digest, verb=verb, options=options)


def output_of(item: Item, folder: str | None) -> str:
    """Where an item's output goes: as it says, else named after its prompt and its id.

    folder: where names without one of their own go; None = the current one.

    Raises:
        UsageError: it says something that is no name, or stdout.
    """
    from sora_cli.media.output import slug

    said = item.options.get("output")
    if said is None:
        prompt = item.options.get("prompt")
        name = slug(prompt if isinstance(prompt, str) else "") or item.verb
        said = f"{name}-{item.id[:8]}{'.png' if item.verb == 'image' else '.mp4'}"
    if not isinstance(said, str) or said in ("", "-"):
        raise UsageError(
            "an item's output is a file or a folder/, not stdout", hint='"output": "clip.mp4"'
        )
    said = os.path.expanduser(said)
    return said if folder is None else os.path.join(os.path.expanduser(folder), said)


def find_made(item: Item, output: str) -> tuple[list[str], str | None]:
    """The outputs of an item that are there: files whose recipe has its id.

    Returns:
        their paths, and the name of an input that has changed since one was made (None: none has).
        One that is gone has not changed: there is nothing to make it from.
    """
    made = list(_outputs_of(item, output))
    changed = (name for _, recipe in made if (name := _changed_input(item, recipe)) is not None)
    return [path for path, _ in made], next(changed, None)


def _changed_input(item: Item, recipe: Mapping[str, Any]) -> str | None:
    """An input whose hash in a recipe is not that of the file that the item names now."""
    from sora_cli.media.recipe import parents_of
    from sora_cli.runs.calls import fingerprint

    tables = (recipe.get("arguments"), recipe.get("inputs"))
    given = [value for table in tables if isinstance(table, dict) for value in table.values()]
    known = {str(p.get("path")): p["sha256"] for p in parents_of(dict(recipe))}
    inputs = _inputs_of(item)
    # Of folders the two have different hashes; a call's own is `fingerprint`.
    known = {name: sha for name, sha in known.items() if not _is_folder(inputs.get(name))}
    known |= {
        str(v.get("name")): v["sha256"] for v in given if isinstance(v, dict) and "sha256" in v
    }
    for name, sha256 in known.items():
        path = inputs.get(name)
        try:
            if path is not None and fingerprint(path) != sha256:
                return name
        except OSError:
            continue
    return None


def _is_folder(path: Path | None) -> bool:
    return path is not None and path.is_dir()


def _inputs_of(item: Item) -> dict[str, Path]:
    """The files and folders that an item names, by their names without folders."""
    from sora_cli.runs.calls import named_in

    own = ("prompt", "negative-prompt", "output", "model")
    named = {name: value for name, value in item.options.items() if name not in own}
    paths = [
        _path_in(name, text)
        for name, value in named.items()
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str) and text and "\0" not in text
    ]
    if item.verb == "storyboard":
        paths += [path for board in [*paths] for path in named_in(board).values()]
    found = {}
    for path in paths:
        with suppress(OSError):
            if path.exists():
                found[path.name] = path
    return found


def _path_in(name: str, text: str) -> Path:
    """The path in an option's text."""
    from sora_cli.weights.lora_arguments import parse_lora

    with suppress(UsageError):
        return parse_lora(text).path if name == "lora" else Path(os.path.expanduser(text))
    return Path(text)


def _outputs_of(item: Item, output: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each output that is there and has the item's id, with its recipe."""
    from sora_cli.media import recipe

    name = Path(output)
    paths = [name]
    if item.count > 1:
        paths = sorted(name.parent.glob(f"{_escaped(name.stem)}-*{_escaped(name.suffix)}"))
    for path in paths:
        with suppress(UsageError):
            found = recipe.read(path) if os.path.lexists(path) else {}
            if found.get("item") == item.id:
                yield str(path), found


def _escaped(text: str) -> str:
    import glob

    return glob.escape(text)


def find_run(item: Item) -> Stored | None:
    """The newest run of an item that nobody works on."""
    from sora_cli.runs.folders import stored

    for run in reversed(stored()):
        options = run.recipe.get("options")
        known = options.get("item") if isinstance(options, dict) else None
        if known == item.id and run.state != "running":
            return run
    return None


class Shared:
    """Networks that outlive a job: the next one of the same model finds them loaded.

    Use as a context manager; at its end every network is gone.
    """

    def __init__(self) -> None:
        self._networks: Networks | None = None

    def __enter__(self) -> Shared:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go of every network."""
        if self._networks is not None:
            self._networks.release()
            self._networks = None

    @contextmanager
    def open(self, model: Model, observer: Callable[[Any], None]) -> Iterator[Networks]:
        """The networks of a model, for one job; those of another model are let go first."""
        from sora_cli.pipeline.networks import Networks

        if self._networks is None or _loaded(self._networks.model) != _loaded(model):
            self.release()
            self._networks = Networks(model, observer)
        self._networks.model, self._networks.observer = model, observer
        try:
            yield self._networks
        except BaseException:
            self.release()  # what failed may have left them in any state
            raise


def _loaded(model: Model) -> Model:
    """A model without what changes from job to job and leaves its networks as they are."""
    plan = model.plan
    same = MemoryPlan(
        storage=plan.storage, placement=plan.placement, text_encoder_on=plan.text_encoder_on
    )
    return replace(model, plan=same)
