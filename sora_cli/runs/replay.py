"""Making a file again from its recipe, and saying what differs.

A recipe may come from a stranger: it is data. No path is taken from it: inputs are looked for
beside the file, or among those that the user names, and known by their hash; a model is taken by
its name only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from sora_cli.errors import UsageError
from sora_cli.runs.calls import REFERENCE, Call, fingerprint, same_device

if TYPE_CHECKING:
    import numpy as np

    from sora_cli.jobs.job import Result

# Recipe field → what it is called in a request. Sizes and lengths come from the clip itself where
# a verb works on one.
_SETTINGS = {
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "guidance_scale_2": "guidance_scale_2",
    "step_cache": "step_cache",
    "sampler": "sampler",
    "seed": "seed",
}
_TEXTS = {"negative_prompt", "sampler", "prompt", "model"}
# Fields that say what was made and on what; the others are measurements, or follow from these.
_COMPARED = (
    "model", "weights", "version", "device", "dtype", "memory_plan", "seed", "size", "num_frames",
    "fps", "prompt", "expanded_prompt", "negative_prompt", "steps", "guidance_scale",
    "guidance_scale_2", "guidance_scale_onward", "given_sigma_onward", "shift", "sampler",
    "sigma_grid", "loras", "crf", "verb", "quantization", "guidance_interval", "step_cache",
    "skipped_steps", "fp8_matmul", "canvas", "compiled", "torch", "threads", "label", "prompted",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How a replay came out.

    fields: what differs in the recipes, (then, now). identical: every frame is the same, bit for
    bit. psnr: over all frames that both have, in dB; None where they are identical, or cannot be
    compared, which `reason` then says.
    """

    fields: Mapping[str, tuple[Any, Any]]
    identical: bool
    psnr: float | None = None
    reason: str | None = None

    def say(self) -> list[str]:
        """One line for each thing that differs, and one about the frames."""
        lines = [f"{name}: {_shown(a)}, now {_shown(b)}" for name, (a, b) in self.fields.items()]
        if self.fields.get("latents", (None, 0))[1] is None:
            lines.append("the latents beside the clip are gone: its frames were encoded again")
        if self.identical:
            lines.append("every frame is the same, bit for bit")
        elif self.psnr is not None:
            lines.append(f"the frames differ: PSNR {self.psnr:.1f} dB")
        else:
            lines.append(f"the frames cannot be compared: {self.reason}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        fields = {name: {"then": a, "now": b} for name, (a, b) in self.fields.items()}
        frames = {"identical": self.identical, "psnr": self.psnr, "reason": self.reason}
        return {"differs": fields, "frames": frames}


def call_of(
    recipe: Mapping[str, Any], file: Path, *, given: Sequence[Path] = (), **overrides: Any
) -> Call:
    """The call that made a file, with other settings where `overrides` (of a request) has them.

    Args:
        file: whose recipe it is; its inputs are looked for beside it.
        given: inputs that are not, known by what they hold.

    Raises:
        UsageError: the recipe lacks what is needed, or an input is not found.
    """
    from sora_cli.runs.calls import from_json, to_json

    verb = recipe.get("verb", "generate")
    arguments = recipe.get("arguments", {})
    if not isinstance(verb, str) or not isinstance(arguments, dict):
        raise _unreadable(file)
    if "parents" in recipe and not arguments:
        raise UsageError(
            f"the recipe in {file.name} does not say how {verb} was called",
            hint=f"sora {verb} --help",
        )
    named: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, dict) and "sha256" in value:
            named[name] = _input(name, value, file, given)
            continue
        try:
            known = from_json(value)
        except ValueError as error:
            raise _unreadable(file) from error
        if isinstance(known, Path):
            raise _unreadable(file)
        named[name] = known
    request = {
        **_request(recipe, verb, file, overrides.get("model")),
        "references": _references(recipe, file, given),
        **{k: v for k, v in overrides.items() if v is not None},
    }
    loras = recipe.get("loras")
    if loras and "loras" not in request:
        named_there = loras if isinstance(loras, list) else [loras]
        raise UsageError(
            f"{file.name} was made with LoRAs: {', '.join(map(str, named_there))[:200]}",
            hint="name them: --lora PATH",
        )
    content = {name: to_json(value) for name, value in request.items()}
    try:
        asked = from_json({"request": content})
    except ValueError as error:
        raise _unreadable(file) from error
    return Call(verb=verb, arguments={**named, "request": asked})


def _request(recipe: Mapping[str, Any], verb: str, file: Path, model: str | None) -> dict[str, Any]:
    """A request's fields from a recipe's, each of the kind that it has to be.

    model: that the user names; then the recipe's is not looked at.
    """
    found: dict[str, Any] = {"needs_prompt": False}
    for name, field in {"prompt": "prompt", "model": "model", **_SETTINGS}.items():
        value = recipe.get(name)
        if value is None:
            continue
        kinds = str if name in _TEXTS else int if name in ("seed", "steps") else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise _unreadable(file)
        found[field] = value
    found["expand"] = recipe.get("expanded_prompt") is not None
    if recipe.get("prompted") is False:
        found.pop("prompt", None)  # found in what it was made from, and so it will be again
    if recipe.get("quantization") == "fp8":
        found["quantization"] = "fp8"
    match recipe.get("guidance_interval"):
        case [int() | float() as start, int() | float() as end]:
            found["guidance_interval"] = (start, end)
        case None:
            pass
        case _:
            raise _unreadable(file)
    if recipe.get("compiled") is True:
        found["compile"] = True
    device = same_device(recipe)
    if recipe.get("fp8_matmul") == "ffn" and device:
        found["fp8_matmul"] = "ffn"  # another device may have no such matmuls
    found["model"] = _known_model(found.get("model", "tiny")) if model is None else model
    found |= _levels(recipe, found["model"], file)
    return found | _shape(recipe, verb, file) | device


def _shape(recipe: Mapping[str, Any], verb: str, file: Path) -> dict[str, Any]:
    """Size, rate and length: of the canvas where the file's own are those of a clip."""
    arguments = recipe.get("arguments")
    from_nothing = isinstance(arguments, dict) and arguments.get("clip") is None
    whole = verb in ("generate", "image", "animate") or (verb == "loop" and from_nothing)
    match recipe.get("size"), recipe.get("num_frames"), recipe.get("fps"), recipe.get("canvas"):
        case [int(width), int(height)], int(frames), int(fps) | float(fps), _ if whole:
            found = {"width": width, "height": height, "fps": fps}
            return found if verb in ("image", "loop") else {**found, "num_frames": frames}
        case [int(width), int(height)], _, _, _ if verb == "upscale":
            return {"width": width, "height": height}
        case _, _, _, {"size": [int(width), int(height)], "fps": int(fps) | float(fps)}:
            return {"width": width, "height": height, "fps": fps}
        case _ if whole:
            raise _unreadable(file)
    return {}  # of a version that did not say: the model's own for such a clip


def _known_model(name: str) -> str:
    """The model's name. Raises UsageError where it is none on this machine: it may be a path."""
    from sora_cli.weights import manifest, records

    if any(row.name == name for row in manifest.rows()) or records.read(name) is not None:
        return name
    raise UsageError(
        f"the recipe's model {name[:80]!r} is no name that is known here",
        hint="say which folder or file it is: -m PATH",
    )


def _levels(recipe: Mapping[str, Any], model: str, file: Path) -> dict[str, Any]:
    """Shift and grid where they are not the model's: asked for, they replace a few-step model's."""
    from sora_cli.weights import store

    spec, found = store.locate(model).spec, {}
    for name, kinds in (("shift", (int, float)), ("sigma_grid", (str,))):
        value = recipe.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise _unreadable(file)
        if value not in (None, getattr(spec, name)):
            found[name] = value
    return found


def _references(recipe: Mapping[str, Any], file: Path, given: Sequence[Path]) -> tuple[str, ...]:
    """The pictures of how things look, in their order."""
    inputs = recipe.get("inputs")
    named = inputs.items() if isinstance(inputs, dict) else ()
    return tuple(
        str(_input(name, known, file, given))
        for name, known in named
        if name.startswith(REFERENCE) and isinstance(known, dict) and "sha256" in known
    )


def _input(name: str, known: Mapping[str, Any], file: Path, given: Sequence[Path]) -> Path | None:
    """The file that an argument was: one that is given, or one beside the file, by its hash.

    None for latents that are gone: the frames that they stand for can be encoded again.
    """
    said = str(known.get("name", ""))
    bare = PureWindowsPath(PurePosixPath(said).name).name  # a name, whatever a stranger wrote
    beside = [file.parent / bare] if bare not in ("", ".", "..") else []
    for path in (*given, *beside):
        try:
            if fingerprint(path) == known["sha256"]:
                return path
        except OSError:
            continue
    if name == "latents":
        return None
    raise UsageError(
        f"the {name} that {file.name} was made from ({bare or 'unnamed'}) is not there, or has "
        "changed",
        hint=f"say where it is: sora replay {file} --input PATH",
    )


def _unreadable(file: Path) -> UsageError:
    return UsageError(f"the recipe in {file.name} cannot be used", hint=f"sora info {file}")


def free_name(file: Path) -> Path:
    """A name for the replay, beside nothing that is there: `clip-replay.mp4`, `clip-replay-2.mp4`.

    In the current folder.
    """
    names = (f"{file.stem}-replay{f'-{i}' if i > 1 else ''}{file.suffix}" for i in count(1))
    return next(path for name in names if not (path := Path(name)).exists())


def replay(
    file: Path,
    *,
    output: str | Path | None = None,
    force: bool = False,
    given: Sequence[Path] = (),
    marks: Mapping[str, Any] | None = None,
    observer: Callable[[Any], None] = lambda event: None,
    **overrides: Any,
) -> Iterator[tuple[Result, Comparison]]:
    """Make a file again; yields the result, and how it differs. See `call_of`.

    marks: `sign`, `sign_certificate`, `sign_key` and `label` of the target; where a switch is
        missing, it is as the recipe says (`jobs.provenance.as_before`).
    """
    from sora_cli.jobs import provenance
    from sora_cli.jobs.job import Target
    from sora_cli.media import recipe

    then = recipe.read(file)
    call = call_of(then, file, given=given, **overrides)
    crf, plan = then.get("crf"), then.get("memory_plan")
    target = Target(
        output=free_name(file) if output is None else output,
        crf=crf if isinstance(crf, int) and 0 <= crf <= 51 else Target().crf,
        **provenance.as_before(then, marks or {}, observer),
        memory_plan=plan if isinstance(plan, str) else None,
        force=force,
        call=call,
    )
    try:
        results = call.start(target=target, observer=observer)
    except ValueError as error:
        raise _unreadable(file) from error
    for result in results:
        assert result.path is not None
        yield result, compare(then, result.recipe, file, Path(result.path))


def compare(then: Mapping[str, Any], now: Mapping[str, Any], file: Path, other: Path) -> Comparison:
    """What differs between two files and their recipes."""
    fields = {
        **_unlike(then.get("arguments"), now.get("arguments")),
        **_unlike(then.get("inputs"), now.get("inputs")),
        **_unlike(*({name: of.get(name) for name in _COMPARED} for of in (then, now))),
    }
    if (before := _parents(then)) != (after := _parents(now)):
        fields["parents"] = (before, after)
    try:
        identical, psnr = compare_frames(file, other)
    except UsageError as error:
        return Comparison(fields=fields, identical=False, reason=error.message)
    return Comparison(fields=fields, identical=identical, psnr=psnr)


def _unlike(then: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """What two tables have under the same name, where it differs; a file is what it holds."""
    one, two = (value if isinstance(value, dict) else {} for value in (then, now))
    names = dict.fromkeys((*one, *two))
    pairs = {name: (one.get(name), two.get(name)) for name in names}
    return {name: (a, b) for name, (a, b) in pairs.items() if _held(a) != _held(b)}


def _held(value: Any) -> Any:
    return value["sha256"] if isinstance(value, dict) and "sha256" in value else value


def _parents(recipe: Mapping[str, Any]) -> list[str]:
    """What a file was made from: names and hashes."""
    from sora_cli.media.recipe import parents_of

    return [f"{parent.get('path')} {parent['sha256']}" for parent in parents_of(dict(recipe))]


def compare_frames(first: Path, second: Path) -> tuple[bool, float | None]:
    """Whether two files show the same frames, and if not, their PSNR in dB.

    Raises:
        UsageError: one of them cannot be read, or they differ in size or length.
    """
    import numpy as np

    from sora_cli.media.reader import open_clip

    one, two = open_clip(first), open_clip(second)
    if (one.width, one.height) != (two.width, two.height):
        raise UsageError(f"{one.width}x{one.height} and {two.width}x{two.height}")
    if one.num_frames != two.num_frames:
        raise UsageError(f"{one.num_frames} frames and {two.num_frames}")
    squares, values = 0.0, 0
    for a, b in zip_longest(_frames(one.frames()), _frames(two.frames())):
        squares += float(np.square(a.astype(np.int32) - b.astype(np.int32)).sum())
        values += a.size
    if squares == 0:
        return True, None
    return False, 10 * math.log10(255**2 * values / squares)


def _frames(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for chunk in chunks:
        yield from chunk


def _shown(value: Any) -> str:
    match value:
        case None:
            return "none"
        case {"name": str(name), "sha256": str(sha256)}:
            return f"{name[:40]} ({sha256[:8]}…)"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
