"""Tiles: every place is covered, one tile is the model itself, and overlaps agree."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sora_cli.pipeline.tiles import cut, tiled


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    tall=st.integers(1, 12),
    wide=st.integers(1, 12),
    multiple=st.sampled_from([1, 2]),
)
def test_tiles_cover_the_plane_and_stay_inside(
    height: int, width: int, tall: int, wide: int, multiple: int
) -> None:
    sizes = [side * multiple for side in (height, width, tall, wide)]
    tiling = cut(sizes[0], sizes[1], (sizes[2], sizes[3]), multiple)
    for starts, size, length in (
        (tiling.tops, tiling.height, sizes[0]),
        (tiling.lefts, tiling.width, sizes[1]),
    ):
        covered = {place for start in starts for place in range(start, start + size)}
        assert covered == set(range(length))
        assert all(start % multiple == 0 for start in starts)
        assert all(b - a <= size for a, b in zip(starts, starts[1:], strict=False))


def local(latents: Tensor, timesteps: Tensor, *_: object) -> Tensor:
    """A model that looks at each place alone."""
    return torch.tanh(3 * latents) + timesteps.view(-1, 1, 1, 1, 1)


def test_a_model_that_looks_at_each_place_alone_is_unchanged_by_tiles() -> None:
    latents, time = torch.randn(2, 3, 2, 13, 21), torch.tensor([0.5, 2.0])
    whole = local(latents, time)
    for tile in ((13, 21), (4, 6), (5, 21), (1, 1)):
        made = tiled(local, cut(13, 21, tile))(latents, time, None)
        torch.testing.assert_close(made, whole, atol=2e-6, rtol=0)


def test_what_tiles_disagree_on_changes_smoothly() -> None:
    """Each tile answers with its own number; no two neighbours differ by a tile's whole step."""

    def numbered(part: Tensor, *_: object) -> Tensor:
        numbered.count += 1  # type: ignore[attr-defined]
        return torch.full_like(part, float(numbered.count))  # type: ignore[attr-defined]

    numbered.count = 0  # type: ignore[attr-defined]
    tiling = cut(8, 32, (8, 8))
    made = tiled(numbered, tiling)(torch.zeros(1, 1, 1, 8, 32), torch.zeros(1), None)
    steps = made[0, 0, 0].diff(dim=1).abs()
    assert made.max() == len(tiling.lefts) and steps.max() < 0.6
