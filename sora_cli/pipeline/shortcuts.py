"""Steps that cost less and are not quite the same: guidance left out, velocities used again.

Never a default; what each costs is in docs/reference/shortcuts.md. Both work on what goes into a
step and what comes out of it, so they know nothing of the network, its tiles, its experts or its
branches. What is decided depends on the step's number and on the state alone: a run that is taken
up again decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Interval = tuple[float, float]
WHOLE: Interval = (0.0, 1.0)
# Of the steps, at least; there the large forms are decided, and velocities change fastest.
WARM_UP = 0.15


def guided_steps(interval: Interval, total: int) -> range:
    """The steps that are guided, as diffusers' guiders count them: from start·total to end·total.

    Guidance in a part of the noise levels: Kynkäänniemi et al., arXiv 2404.07724.
    """
    start, end = interval
    return range(round(start * total), round(end * total))


@dataclass(frozen=True, kw_only=True, slots=True)
class Computed:
    """The last step that was computed, for those after it.

    velocity: what came out of it, guided, [B, C, T, H, W].
    slope: change of the velocity by noise level since the computed step before; None where that one
        says nothing of this one.
    sigma: its noise level.
    skipped: steps so far that were not computed.
    """

    velocity: Tensor
    slope: Tensor | None = None
    sigma: float
    skipped: int = 0

    def to(self, device: torch.device | str) -> Computed:
        """The same on another device."""
        slope = None if self.slope is None else self.slope.to(device)
        return replace(self, velocity=self.velocity.to(device), slope=slope)


# (how to compute a step's velocity, the last computed step, the step's number) → its velocity, and
# the last computed step from then on.
Velocity = Callable[[Callable[[], Tensor], Computed | None, int], tuple[Tensor, Computed | None]]


def every_step(
    compute: Callable[[], Tensor], last: Computed | None, step: int
) -> tuple[Tensor, Computed | None]:
    """No shortcut: every step is computed."""
    return compute(), last


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCache:
    """Draws the velocity's line on, instead of computing it, while it is nearly straight.

    A step is computed where the velocity is predicted to have changed by `threshold` or more since
    the last computed one: EasyCache's question (arXiv 2507.02860). Else it is what the last two
    computed ones lead to, v + (σ' - σ)·slope: TaylorSeer's answer, of first order (arXiv
    2503.06923). It is the guided velocity that is kept: guidance is linear, so that is the same as
    keeping both of its halves.

    threshold: of the change, relative to the velocity.
    sigmas: noise levels of the steps.
    made: [..., T, H or 1, W or 1], 0 where latents are given: velocities mean nothing there.
    always: steps that are computed in any case.
    fresh: those of them before which everything was another: the model, or how it is guided.
    """

    threshold: float
    sigmas: tuple[float, ...]
    made: Tensor
    always: frozenset[int]
    fresh: frozenset[int]

    def __call__(
        self, compute: Callable[[], Tensor], last: Computed | None, step: int
    ) -> tuple[Tensor, Computed | None]:
        """A step's velocity, and the last computed step from then on."""
        sigma = self.sigmas[step]
        if last is not None and last.slope is not None and step not in self.always:
            change = (sigma - last.sigma) * last.slope
            if self._size(change) < self.threshold * self._size(last.velocity):
                return last.velocity + change, replace(last, skipped=last.skipped + 1)
        found = Computed(velocity=compute(), sigma=sigma)
        if last is not None:
            found = replace(found, skipped=last.skipped)
            if step not in self.fresh:
                slope = (found.velocity - last.velocity) / (sigma - last.sigma)
                found = replace(found, slope=slope)
        return found.velocity, found

    def _size(self, velocity: Tensor) -> float:
        """Of what is made of it."""
        return float(torch.linalg.vector_norm(velocity * self.made))


def step_cache(
    threshold: float, sigmas: tuple[float, ...], made: Tensor, changes: frozenset[int]
) -> StepCache:
    """The cache of a run.

    changes: steps before which the model or its guidance changes.
    """
    total = len(sigmas) - 1
    warm_up = range(max(2, math.ceil(WARM_UP * total)))
    fresh = changes | {0}
    return StepCache(
        threshold=threshold, sigmas=sigmas, made=made, always=fresh | {*warm_up, total - 1},
        fresh=fresh,
    )  # fmt: skip
