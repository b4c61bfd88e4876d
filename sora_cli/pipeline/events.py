"""What long work tells whoever watches: plain values, no terminal, no torch.

The pipeline reports; the CLI draws a bar, prints JSON lines or stays silent. Library code calls
an `Observer` and never prints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One piece of news from a running job.

    phase: what is being done, in one word ("load", "expand", "encode", "denoise", "decode",
        "write").
    step, total: `step` of `total` is finished; total 0 means that nobody knows how many.
    skipped: of these steps, those that were not computed (`pipeline.shortcuts`).
    message: one sentence for a person (a note, a reason), or None.
    """

    phase: str
    step: int = 0
    total: int = 0
    skipped: int = 0
    message: str | None = None

    @property
    def finished(self) -> bool:
        """True for the last event of a phase of known length."""
        return 0 < self.total <= self.step


Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer of a caller that wants no news."""
