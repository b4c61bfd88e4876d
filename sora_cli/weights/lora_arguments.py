"""Which LoRAs the user asked for, how strongly, and for which expert of a model that has two.

Pure functions of strings and paths: the files themselves are read by `weights/lora`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from sora_cli.errors import UsageError

Expert = Literal["both", "high", "low"]

OPTION = "--lora"
_EXPERTS = ("both", "high", "low")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_HINT = "sora generate … --lora style.safetensors 0.8"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """A LoRA file, its strength (1 = as trained) and the expert that it changes.

    `str()` of it is what `parse_lora` reads.
    """

    path: Path
    scale: float = 1.0
    expert: Expert = "both"

    def __str__(self) -> str:
        path = str(self.path)
        named = self.expert != "both" or path.startswith(tuple(f"{e}:" for e in _EXPERTS))
        scaled = self.scale != 1 or _split_scale(path)[1] is not None
        return (f"{self.expert}:" if named else "") + path + (f"={self.scale!r}" if scaled else "")


def parse_lora(text: str) -> Lora:
    """Read one value of `--lora`: `[high:|low:]PATH[=SCALE]`.

    Raises:
        UsageError: no path, or a scale that is no finite number.
    """
    expert, colon, rest = text.partition(":")
    if not colon or expert not in _EXPERTS:
        expert, rest = "both", text
    path, scale = _split_scale(rest)
    if not path.strip() or "\0" in path:
        raise UsageError(f"{OPTION} {text!r} names no file", hint=_HINT)
    if scale is not None and not math.isfinite(scale):
        raise UsageError(f"the scale of {OPTION} {text} is no finite number", hint=_HINT)
    return Lora(
        path=Path(path).expanduser(),
        scale=1.0 if scale is None else scale,
        expert=cast("Expert", expert),
    )


def fold_lora_arguments(arguments: Sequence[str]) -> list[str]:
    """Join `--lora PATH SCALE` to `--lora PATH=SCALE`, which an option parser can read.

    A parser of options with a fixed number of values cannot make the second one optional. What
    follows a LoRA's path and is a number is its scale; anything else is left where it stands, and
    so is everything after `--`.
    """
    folded: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        folded.append(word)
        if word == "--":
            return folded + rest
        if word == OPTION and rest:
            folded.append(rest.pop(0))
        elif not word.startswith(f"{OPTION}="):
            continue
        if rest and _NUMBER.fullmatch(rest[0]) and _split_scale(folded[-1])[1] is None:
            folded[-1] += f"={rest.pop(0)}"
    return folded


def assign_experts(loras: Sequence[Lora]) -> tuple[Lora, ...]:
    """Of two files that differ only in saying high or low, give each to its expert.

    For models with two experts. A name alone decides nothing: without its counterpart, or with an
    expert already named, a LoRA stays as it is.
    """
    paths = {str(lora.path).lower() for lora in loras if lora.expert == "both"}
    pairs = {(path, path.replace("high", "low")) for path in paths}
    pairs = {(high, low) for high, low in pairs if high != low and low in paths}
    highs, lows = ({pair[side] for pair in pairs} for side in (0, 1))

    def assigned(lora: Lora) -> Lora:
        path = str(lora.path).lower()
        # A name in both, as in x, of high-high, low-high and low-low, is no pair's.
        if lora.expert != "both" or (path in highs) == (path in lows):
            return lora
        return replace(lora, expert="high" if path in highs else "low")

    return tuple(assigned(lora) for lora in loras)


def for_expert(loras: Sequence[Lora], expert: Literal["high", "low"] | None) -> tuple[Lora, ...]:
    """The LoRAs that change one transformer.

    Args:
        loras: all that were asked for.
        expert: which one it is; None where the model has only one.

    Raises:
        UsageError: a LoRA is for one of two experts, and the model has one transformer.
    """
    if expert is not None:
        return tuple(lora for lora in loras if lora.expert in ("both", expert))
    for lora in loras:
        if lora.expert != "both":
            raise UsageError(
                f"{lora.path.name} is for the {lora.expert}-noise expert, and this model has one "
                "transformer",
                hint=f"leave {lora.expert}: out, or choose a model with two, as wan2.2-t2v-a14b",
            )
    return tuple(loras)


def _split_scale(text: str) -> tuple[str, float | None]:
    path, equals, tail = text.rpartition("=")
    if equals and (_NUMBER.fullmatch(tail) or tail.lower() in ("nan", "inf", "-inf")):
        return path, float(tail)
    return text, None
