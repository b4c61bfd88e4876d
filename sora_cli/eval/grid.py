"""The grid game, read back from frames: are its transitions legal, are the prompt's actions obeyed?

Each cell is compared with what it can be (floor, wall, coin, player) by the mean colours of its
quarters, which an autoencoder that blurs keeps; the board is known. Frames are uint8 [T, H, W, 3].
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from sora_cli.train.events import Game
from sora_cli.train.flat import corner, flat_frames
from sora_cli.train.grid_game import State, after, cell_pixels, legal, states
from sora_cli.train.world import Scene

TRUST = 0.7  # of the way from one look to the nearest other: farther off a cell is unreadable
Board = dict[tuple[int, int], str]  # what each cell shows; `?` where it looks like nothing known


def looks(scene: Scene, game: Game) -> dict[str, Tensor]:
    """Pictures of a cell, without its edges: `floor` (both shades), `wall`, `coin`, `player`."""
    side = cell_pixels(scene.width, scene.height)
    shown = replace(
        game, columns=5, rows=1, walls=frozenset({(2, 0)}), coins=frozenset({(3, 0)}),
        player=(4, 0), actions=(),
    )  # fmt: skip
    picture = flat_frames(
        replace(scene, event=shown, width=5 * side, height=side, num_frames=1),
        torch.device("cpu"),
    )[0][0]
    cells = [_quarters(cell) for cell in picture.float().split(side, 1)]
    names = ("floor", "floor too", "wall", "coin", "player")
    return dict(zip(names, cells, strict=True))


def _quarters(cell: Tensor) -> Tensor:
    """The mean colours [2, 2, 3] of a cell [side, side, 3] without its edges, which may be mixed
    with its neighbours.
    """
    edge = len(cell) // 6
    inner = cell[edge:-edge, edge:-edge].permute(2, 0, 1)
    return functional.adaptive_avg_pool2d(inner, 2).permute(1, 2, 0)


def board_in(scene: Scene, game: Game, frame: Tensor) -> Board:
    """What every cell of a frame [H, W, 3] shows: floor, wall, coin, player, or `?`."""
    side, (left, top) = cell_pixels(scene.width, scene.height), corner(scene, game)
    known = looks(scene, game)
    names = [name.removesuffix(" too") for name in known]
    stack = torch.stack(list(known.values()))  # [5, inner, inner, 3]
    apart = (stack[:, None] - stack[None]).square().mean((2, 3, 4)).sqrt()
    apart[:2, :2] = torch.inf  # both shades are floor
    nearest = apart.masked_fill(torch.eye(5, dtype=torch.bool), torch.inf).amin(1)
    found: Board = {}
    for column in range(game.columns):
        for row in range(game.rows):
            x, y = left + column * side, top + row * side
            cell = _quarters(frame[y : y + side, x : x + side].float().cpu())
            distance = (stack - cell).square().mean((1, 2, 3)).sqrt()
            best = int(distance.argmin())
            sure = bool(distance[best] < TRUST * nearest[best])
            found[column, row] = names[best] if sure else "?"
    return found


def state_in(board: Board) -> State | None:
    """The state a board shows; None without exactly one player."""
    players = [cell for cell, shows in board.items() if shows == "player"]
    coins = frozenset(cell for cell, shows in board.items() if shows == "coin")
    return State(player=players[0], coins=coins) if len(players) == 1 else None


def boards_in(scene: Scene, game: Game, frames: Tensor) -> list[Board]:
    """The boards at the end of each action, and before the first."""
    wanted = range(0, len(game.actions) * game.period + 1, game.period)
    return [board_in(scene, game, frames[number]) for number in wanted]


def legal_share(scene: Scene, game: Game, frames: Tensor) -> float:
    """Share of the actions' steps that some rule of the game allows.

    There is one player, who goes one cell or none and not into walls; a coin goes only where the
    player comes, and none comes; the walls stay; every cell can be read.
    """
    boards = boards_in(scene, game, frames)
    good = 0
    for before, then in zip(boards[:-1], boards[1:], strict=True):
        one, two = state_in(before), state_in(then)
        walls = [{c for c, shows in b.items() if shows == "wall"} for b in (before, then)]
        readable = "?" not in (*before.values(), *then.values())
        good += (
            readable
            and one is not None
            and two is not None
            and walls[0] == walls[1] == set(game.walls)
            and legal(game, one, two)
        )
    return good / max(1, len(boards) - 1)


def obeyed_share(scene: Scene, game: Game, frames: Tensor) -> float:
    """Share of the actions that take the player from where it was to where they should.

    An action that something blocks counts only where the player moves all the same.
    """
    seen = [state_in(board) for board in boards_in(scene, game, frames)]
    counted = good = 0
    for action, one, two in zip(game.actions, seen[:-1], seen[1:], strict=True):
        wanted = None if one is None else after(game, one, action).player
        stays = one is not None and two is not None and one.player == two.player
        if stays and one is not None and wanted == one.player:
            continue
        counted += 1
        good += two is not None and wanted == two.player
    return good / max(1, counted)


def reached(scene: Scene, game: Game, frames: Tensor) -> bool:
    """Whether the clip ends in the state to which the actions lead."""
    return state_in(boards_in(scene, game, frames)[-1]) == states(game)[-1]
