"""A call of a verb as data: what a run and a recipe keep of it, and how it is made again.

JSON in and out; nothing in it is evaluated, and only functions of `app` that are marked with
`recorded` can be called.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

if TYPE_CHECKING:
    from sora_cli.jobs.job import Result
    from sora_cli.pipeline.request import Request

P = ParamSpec("P")
R = TypeVar("R")

VERBS: dict[str, Callable[..., Any]] = {}
REFERENCE, LORA = "reference ", "lora "  # what the request's own files are called among inputs
_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of a verb, without where its result goes and who watches.

    arguments: by name; `request` is one of them, the others are paths, numbers, texts, None, or
        tuples of these. Paths are absolute.
    """

    verb: str
    arguments: Mapping[str, Any]

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.arguments["request"]

    @property
    def inputs(self) -> dict[str, Path]:
        """The files and folders that the call reads besides the model, by argument."""
        from sora_cli.weights.lora_arguments import parse_lora
        from sora_cli.weights.store import lora_files

        given = {k: value for k, value in self.arguments.items() if isinstance(value, Path)}
        looks = enumerate(self.request.references, start=1)
        given |= {f"{REFERENCE}{i}": Path(text) for i, text in looks}
        if self.verb == "storyboard":
            given |= named_in(given["file"])
        files = lora_files([parse_lora(text) for text in self.request.loras])
        return given | {f"{LORA}{i}": lora.path for i, lora in enumerate(files, start=1)}

    def asking(self, **changes: Any) -> Call:
        """The same call with other fields of its request."""
        request = replace(self.request, **changes)
        return replace(self, arguments={**self.arguments, "request": request})

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        arguments = {name: to_json(value) for name, value in self.arguments.items()}
        return {"verb": self.verb, "arguments": arguments}

    @classmethod
    def from_json(cls, content: Any) -> Call:
        """What `to_json` gave.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(content, dict) or not isinstance(content.get("verb"), str):
            raise ValueError("no call of a verb")
        arguments = content.get("arguments")
        if not isinstance(arguments, dict) or "request" not in arguments:
            raise ValueError("a call without a request")
        return cls(verb=content["verb"], arguments={k: from_json(v) for k, v in arguments.items()})

    def start(self, **how: Any) -> Iterator[Result]:
        """Make the call, with a target and an observer.

        Raises:
            ValueError: there is no such verb, or it takes other arguments.
        """
        from sora_cli import app  # its verbs are in VERBS once it is imported

        verb = VERBS.get(self.verb)
        if verb is None or not hasattr(app, self.verb):
            raise ValueError(f"{self.verb} is no verb")
        try:
            inspect.signature(verb).bind(**self.arguments, **how)
        except TypeError as error:
            raise ValueError(f"{self.verb} takes other arguments: {error}") from error
        kinds = get_type_hints(verb)
        for name, value in self.arguments.items():
            if not _is_a(value, kinds[name]):
                raise ValueError(f"{name} of {self.verb} is something else: {value!r:.60}")
        return verb(**self.arguments, **how)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is what a verb's parameter says: JSON has its own idea of kinds."""
    choices, of = get_args(kind), get_origin(kind)
    if of is Literal:
        return isinstance(value, str) and value in choices
    if of is tuple:
        fits = isinstance(value, tuple) and len(value) == len(choices)
        return fits and all(map(_is_a, value, choices))
    if choices:  # a union
        return any(_is_a(value, choice) for choice in choices)
    if kind is float:
        return type(value) in (int, float) and abs(value) < 1e15  # not true of nan either
    return isinstance(value, kind)


def named_in(storyboard: Path) -> dict[str, Path]:
    """The pictures and clips that a storyboard names, each by its shot; none of one that is bad."""
    from sora_cli.errors import UsageError
    from sora_cli.pipeline.storyboard import read

    try:
        shots = read(storyboard).shots
    except UsageError:
        return {}  # said when it is made
    return {f"{shot.where}: {path.name}": path for shot in shots for path in shot.files}


def recorded(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a verb of `app`: its target learns of the call (`Target.call`)."""
    signature = inspect.signature(function)

    @wraps(function)
    def verb(*positional: P.args, **named: P.kwargs) -> R:
        from sora_cli.jobs.job import Target

        bound = signature.bind(*positional, **named)
        bound.apply_defaults()
        target = bound.arguments["target"] or Target()
        if target.call is None:
            own = ("target", "observer")
            arguments = {k: absolute(v) for k, v in bound.arguments.items() if k not in own}
            call = Call(verb=function.__name__, arguments=arguments)
            target = replace(target, call=call)
        bound.arguments["target"] = target
        return function(*bound.args, **bound.kwargs)

    VERBS[function.__name__] = verb
    return verb


def absolute(value: Any) -> Any:
    """The same value with paths that mean the same in every folder."""
    from sora_cli.pipeline.request import Request

    if isinstance(value, Path):
        return Path(os.path.abspath(value.expanduser()))
    if isinstance(value, tuple | list):
        return tuple(absolute(part) for part in value)
    if not isinstance(value, Request):
        return value
    return replace(
        value,
        model=_absolute_model(value.model),
        loras=tuple(_absolute_lora(text) for text in value.loras),
        references=tuple(os.path.abspath(os.path.expanduser(path)) for path in value.references),
        vae=absolute(value.vae),
        text_encoder=absolute(value.text_encoder),
    )


def _absolute_model(model: str | None) -> str | None:
    if model is None or not os.path.exists(os.path.expanduser(model)):
        return model
    from sora_cli.weights import manifest, records

    if any(row.name == model for row in manifest.rows()) or records.read(model) is not None:
        return model  # a name comes before a folder
    return os.path.abspath(os.path.expanduser(model))


def _absolute_lora(text: str) -> str:
    from sora_cli.errors import UsageError
    from sora_cli.weights.lora_arguments import parse_lora

    try:
        lora = parse_lora(text)
    except UsageError:
        return text  # said when it is used
    return str(replace(lora, path=absolute(lora.path))) if lora.path.exists() else text


def to_json(value: Any) -> Any:
    """A value of a call as JSON: what JSON has no form for is tagged with its kind."""
    from sora_cli.pipeline.request import Request

    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, tuple | list):
        return {"list": [to_json(part) for part in value]}
    if isinstance(value, Request):
        unset = Request()
        said = {f.name: getattr(value, f.name) for f in fields(value)}
        return {"request": {k: to_json(v) for k, v in said.items() if v != getattr(unset, k)}}
    raise TypeError(f"{type(value).__name__} is no argument of a verb")


def from_json(value: Any) -> Any:
    """What `to_json` gave. Raises ValueError for anything else."""
    from sora_cli.pipeline.request import Request

    match value:
        case None | str() | bool() | int() | float():
            return value
        case {"path": str(path)} if len(value) == 1:
            return Path(path)
        case {"list": list(parts)} if len(value) == 1:
            return tuple(from_json(part) for part in parts)
        case {"request": dict(said)} if len(value) == 1:
            try:
                return Request(**{name: from_json(part) for name, part in said.items()})
            except TypeError as error:
                raise ValueError(str(error)) from error
    raise ValueError(f"no argument of a verb: {str(value)[:60]}")


def same_device(facts: Mapping[str, Any]) -> dict[str, str]:
    """Device and dtype that were written down, where this machine has them; else nothing.

    What a machine chooses by itself may be another one in the next version.
    """
    from sora_cli.errors import DeviceError, UsageError
    from sora_cli.runtime.device import choose_device

    device, dtype = facts.get("device"), facts.get("dtype")
    if not isinstance(device, str) or not isinstance(dtype, str):
        return {}
    try:
        choose_device(device, dtype)
    except (DeviceError, UsageError):
        return {}
    return {"device": device, "dtype": dtype}


def fingerprint(path: Path) -> str:
    """A hash of what a file holds, or of a folder's names and what they hold.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    digest = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(json.dumps([file.name, file.stat().st_size]).encode())
        with file.open("rb", buffering=0) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
