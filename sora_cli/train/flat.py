"""Pictures of the flat worlds: the grid game from above, Kang et al.'s balls from the side.

Discs and squares with soft edges one pixel wide, no light, no perspective. T frames of H×W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sora_cli.train.events import Discs, Game, Vec3, leg_at
from sora_cli.train.grid_game import BOARDS, COIN, cell_pixels, coins_at, player_at
from sora_cli.train.things import COLORS
from sora_cli.train.world import Scene

PAPER: Vec3 = (0.96, 0.96, 0.96)  # behind the balls
PLAYER_RADIUS, COIN_RADIUS = 0.42, 0.24  # of a cell
EYE: Vec3 = (0.98, 0.98, 0.98)


def flat_frames(scene: Scene, device: torch.device) -> tuple[Tensor, Tensor]:
    """uint8 frames [T, H, W, 3] and masks of what moves [T, H, W]: the player, the balls."""
    event = scene.event
    if isinstance(event, Game):
        picture, mask = _board(scene, event, device)
    else:
        assert isinstance(event, Discs)
        picture, mask = _discs(scene, event, device)
    return (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8), mask


def _disc(scene: Scene, centers: Tensor, radius: float) -> Tensor:
    """How much of each pixel a disc covers: centres [T, 2] and radius in pixels → [T, H, W]."""
    device = centers.device
    x = torch.arange(scene.width, device=device) + 0.5 - centers[:, 0, None]  # [T, W]
    y = torch.arange(scene.height, device=device) + 0.5 - centers[:, 1, None]  # [T, H]
    distance = (x[:, None, :].square() + y[:, :, None].square()).sqrt()
    return (radius + 0.5 - distance).clamp(0, 1)


def _paint(picture: Tensor, share: Tensor, color: Vec3) -> Tensor:
    """The picture [T, H, W, 3] under a colour that covers `share` [T, H, W] of each pixel."""
    own = torch.tensor(color, device=picture.device)
    return picture + share[..., None] * (own - picture)


def _discs(scene: Scene, event: Discs, device: torch.device) -> tuple[Tensor, Tensor]:
    unit = min(scene.width, scene.height) / event.side  # pixels a metre
    size = (scene.num_frames, scene.height, scene.width)
    picture = torch.tensor(PAPER, device=device).expand(*size, 3)
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    for disc in event.discs:
        times = [frame / scene.fps for frame in range(scene.num_frames)]
        places = [leg_at(disc.legs, time).at(time) for time in times]
        centers = torch.tensor([(x * unit, scene.height - y * unit) for x, y, _ in places])
        share = _disc(scene, centers.to(device), disc.radius * unit)
        picture = _paint(picture, share, COLORS[disc.color])
        mask |= share > 0.5
    return picture, mask


def corner(scene: Scene, game: Game) -> tuple[int, int]:
    """The board's upper left corner in the picture (pixels): what is left over is shared out."""
    side = cell_pixels(scene.width, scene.height)
    return (scene.width - side * game.columns) // 2, (scene.height - side * game.rows) // 2


def _board(scene: Scene, game: Game, device: torch.device) -> tuple[Tensor, Tensor]:
    side = cell_pixels(scene.width, scene.height)
    left, top = corner(scene, game)
    even, odd, wall = BOARDS[game.board]
    board = torch.tensor(wall, device=device).repeat(scene.height, scene.width, 1)
    for column in range(game.columns):
        for row in range(game.rows):
            color = wall if (column, row) in game.walls else (even, odd)[(column + row) % 2]
            x, y = left + column * side, top + row * side
            board[y : y + side, x : x + side] = torch.tensor(color, device=device)
    picture = board.expand(scene.num_frames, -1, -1, -1)

    def middle(column: float, row: float) -> tuple[float, float]:
        return left + (column + 0.5) * side, top + (row + 0.5) * side

    left_over = [coins_at(game, frame) for frame in range(scene.num_frames)]
    for coin in sorted(game.coins):
        there = torch.tensor([coin in coins for coins in left_over], device=device)
        centers = torch.tensor([middle(*coin)], device=device)
        share = _disc(scene, centers, COIN_RADIUS * side) * there[:, None, None]
        picture = _paint(picture, share, COIN)
    places = [player_at(game, frame) for frame in range(scene.num_frames)]
    centers = torch.tensor([middle(*place) for place in places], device=device)
    share = _disc(scene, centers, PLAYER_RADIUS * side)
    picture = _paint(picture, share, COLORS[game.color])
    for aside in (-0.15, 0.15):  # two eyes: it is seen at once who is the player
        eye = centers + torch.tensor((aside * side, -0.08 * side), device=device)
        picture = _paint(picture, _disc(scene, eye, 0.085 * side), EYE)
    return picture, share > 0.5
