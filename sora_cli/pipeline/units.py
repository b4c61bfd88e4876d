"""Sizes and times as people write them, and as they are said to people. No torch here."""

from __future__ import annotations

import re

from sora_cli.errors import UsageError

_SECONDS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_NUMBER = r"\d+(?:\.\d*)?|\.\d+"


def parse_size(text: str) -> tuple[int, int]:
    """`832x480` → (width, height) in pixels."""
    match = re.fullmatch(r"(\d{1,9})\s*[xX×]\s*(\d{1,9})", text.strip())
    if match is None:
        raise UsageError(
            f"cannot read the size {text!r}", hint="write WIDTHxHEIGHT in pixels: --size 832x480"
        )
    return int(match[1]), int(match[2])


def parse_duration(text: str) -> float:
    """`5s`, `500ms`, `1m`, `1h`, `1m30s` or a plain `2.5` (seconds) → seconds."""
    compact = text.strip().lower()
    part = rf"({_NUMBER})\s*(ms|sec|s|min|m|h)"
    if re.fullmatch(rf"-?(?:{_NUMBER})", compact):
        return float(compact)
    if re.fullmatch(rf"-?(?:{part}\s*)+", compact) is None:
        raise UsageError(
            f"cannot read the duration {text!r}",
            hint="write a number and s, ms, m or h: --duration 5s",
        )
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in re.findall(part, compact))
    return -seconds if compact.startswith("-") else seconds


def parse_aspect(text: str) -> float:
    """`16:9` → width / height."""
    match = re.fullmatch(rf"({_NUMBER})\s*[:/]\s*({_NUMBER})", text.strip())
    width, height = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if height == 0 or not 0.01 <= width / height <= 100:
        raise UsageError(
            f"cannot use the aspect {text!r}",
            hint="write WIDTH:HEIGHT, from 1:100 to 100:1: --aspect 16:9",
        )
    return width / height


def parse_interval(text: str) -> tuple[float, float]:
    """`0:0.5` → its two ends."""
    match = re.fullmatch(rf"({_NUMBER})\s*:\s*({_NUMBER})", text.strip())
    if match is None:
        raise UsageError(
            f"cannot read the interval {text!r}",
            hint="write START:END as parts of the steps, from 0 to 1: --guidance-interval 0:0.5",
        )
    return float(match[1]), float(match[2])


def parse_resolution(text: str) -> int:
    """`480p` → the short side, 480 pixels."""
    match = re.fullmatch(r"(\d{1,9})[pP]", text.strip())
    if match is None or int(match[1]) == 0:
        raise UsageError(
            f"cannot read the resolution {text!r}",
            hint="write the short side in pixels and a p: --resolution 480p",
        )
    return int(match[1])


def say_duration(seconds: float) -> str:
    """Seconds as people write them: 5.04s, 2m2s, 1000h."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    return f"{seconds / 3600:.4g}h"
