"""Parity figures: printed for people (`pytest -s`), held to their tolerance for the machine."""

from __future__ import annotations

from torch import Tensor


def within(tolerance: float, what: str, ours: Tensor | float, theirs: Tensor | float = 0.0) -> None:
    """Print the largest difference, then assert that it is within the tolerance."""
    difference = ours - theirs
    largest = float(difference.abs().max()) if isinstance(difference, Tensor) else abs(difference)
    print(f"parity: {what}: {largest:.1e}, allowed {tolerance:.0e}")  # noqa: T201
    assert largest <= tolerance
