"""A stand-in for `sora_cli.app`: remembers what it was asked and makes what it is told to.

The command line's own behaviour (streams, exit codes, options) is tested without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sora_cli.pipeline.events import Event
from sora_cli.pipeline.request import Request


@dataclass
class StubResult:
    """As much of a result as the commands look at."""

    path: Path

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "prompt": "ein roter Ball für dich"}


@dataclass
class StubExpansion:
    prompt: str
    expanded_prompt: str
    notes: list[str]


@dataclass
class StubApp:
    """`before` runs inside each verb, before the result: the place to raise."""

    before: Callable[[], None] = lambda: None
    calls: list[tuple[str, Request, dict[str, Any]]] = field(default_factory=list)

    @property
    def request(self) -> Request:
        return self.calls[-1][1]

    @property
    def arguments(self) -> dict[str, Any]:
        return self.calls[-1][2]

    def _make(self, verb: str, request: Request, arguments: dict[str, Any]) -> Iterator[StubResult]:
        self.calls.append((verb, request, arguments))
        observe = arguments["observer"]
        observe(Event(phase="load", message="size 130x75 becomes 128x80"))
        for step in range(3):
            observe(Event(phase="denoise", step=step + 1, total=3))
        self.before()
        for index in range(arguments["target"].count):
            yield StubResult(Path(f"ball-{index}.mp4"))

    def generate(self, request: Request, **arguments: Any) -> Iterator[StubResult]:
        return self._make("generate", request, arguments)

    def image(self, request: Request, **arguments: Any) -> Iterator[StubResult]:
        return self._make("image", request, arguments)

    def animate(self, image: Path, request: Request, **arguments: Any) -> Iterator[StubResult]:
        return self._make("animate", request, {"image": image, **arguments})

    def info(self, path: Path) -> dict[str, Any]:
        return {"schema": 1, "size": [160, 96], "timings": {"denoise": 1.5}, "expand": None}

    def expand(self, prompt: str, model: str, seed: int | None) -> StubExpansion:
        return StubExpansion(prompt, prompt + ", in long", ["said in full"])
