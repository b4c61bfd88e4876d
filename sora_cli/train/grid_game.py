"""The digital world: a small grid game seen from above, driven by the prompt.

A player, walls, coins. Each action takes `period` frames: one cell, unless a wall or the board's
edge is in the way. A coin goes when the player comes. The truth is a `State` for each action;
cells are as large as the video autoencoder's, so that a cell is a latent.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sora_cli.train.events import Game
from sora_cli.train.things import COLORS
from sora_cli.train.world import OUTSIDE, Scene

Cell = tuple[int, int]  # column, row from the upper left

MOVES: dict[str, Cell] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
PERIOD = 4  # frames an action takes: the autoencoder's temporal stride
BOARDS: dict[str, tuple[tuple[float, float, float], ...]] = {  # cells, every other cell, walls
    "light": ((0.86, 0.86, 0.84), (0.80, 0.80, 0.79), (0.38, 0.40, 0.44)),
    "dark": ((0.13, 0.14, 0.18), (0.17, 0.18, 0.22), (0.52, 0.54, 0.58)),
    "sandy": ((0.83, 0.72, 0.47), (0.79, 0.68, 0.43), (0.45, 0.28, 0.15)),
}
COIN = (0.98, 0.80, 0.10)
PLAYERS = ("red", "green", "cyan", "blue", "purple")  # coins are yellow, boards pale or dark
HELD_OUT_GAMES = (("red", "dark"), ("blue", "light"), ("green", "sandy"))


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Where the player is, and the coins that are left."""

    player: Cell
    coins: frozenset[Cell]


def cell_pixels(width: int, height: int) -> int:
    """The side of a cell: a sixth of the frame's shorter side, in whole sixteens."""
    return max(16, min(width, height) // 6 // 16 * 16)


def free(game: Game, cell: Cell) -> bool:
    """Whether the player may be there."""
    inside = 0 <= cell[0] < game.columns and 0 <= cell[1] < game.rows
    return inside and cell not in game.walls


def after(game: Game, state: State, action: str) -> State:
    """One action: a step, or none where something is in the way; a coin that is reached goes."""
    step = MOVES[action]
    cell = (state.player[0] + step[0], state.player[1] + step[1])
    if not free(game, cell):
        return state
    return State(player=cell, coins=state.coins - {cell})


def states(game: Game) -> list[State]:
    """The state before the first action and after each."""
    found = [State(player=game.player, coins=game.coins)]
    for action in game.actions:
        found.append(after(game, found[-1], action))
    return found


def legal(game: Game, before: State, then: State) -> bool:
    """Whether some action, or none, leads from one state to the next."""
    return then == before or any(then == after(game, before, action) for action in MOVES)


def player_at(game: Game, frame: int) -> tuple[float, float]:
    """The player's column and row at a frame: on its way until the last of an action's frames."""
    rows = states(game)
    done, rest = divmod(frame, game.period)
    if done >= len(game.actions):
        return rows[-1].player
    share = min(1.0, rest / (game.period - 1))
    (x, y), (u, v) = rows[done].player, rows[done + 1].player
    return x + share * (u - x), y + share * (v - y)


def coins_at(game: Game, frame: int) -> frozenset[Cell]:
    """The coins that are left at a frame: one goes when the player is wholly there."""
    done, rest = divmod(frame, game.period)
    return states(game)[min(len(game.actions), done + (rest == game.period - 1))].coins


def runs(actions: Iterable[str]) -> list[tuple[str, int]]:
    """Actions in a row that are alike, as (action, how many)."""
    found: list[tuple[str, int]] = []
    for action in actions:
        if found and found[-1][0] == action:
            found[-1] = (action, found[-1][1] + 1)
        else:
            found.append((action, 1))
    return found


def _draw_actions(rng: random.Random, game: Game, count: int) -> tuple[str, ...]:
    """Mostly legal moves in runs of one to three; now and then into a wall."""
    actions: list[str] = []
    state = State(player=game.player, coins=game.coins)
    while len(actions) < count:
        able = [a for a in MOVES if after(game, state, a) != state]
        back = {"left": "right", "right": "left", "up": "down", "down": "up"}
        fresh = [a for a in able if not actions or a not in (actions[-1], back[actions[-1]])]
        action = rng.choice(fresh or able or list(MOVES))
        if rng.random() < 0.06:
            action = rng.choice(tuple(MOVES))
        for _ in range(min(rng.choice((1, 1, 2, 2, 3)), count - len(actions))):
            then = after(game, state, action)
            if then == state and actions and rng.random() < 0.8:
                break
            actions.append(action)
            state = then
    return tuple(actions)


def draw_game(rng: random.Random, scene: Scene, split: str) -> Scene:
    """A board as large as the frame allows; out of distribution with more walls and coins."""
    side = cell_pixels(scene.width, scene.height)
    columns, rows = scene.width // side, scene.height // side
    cells = [(x, y) for x in range(columns) for y in range(rows)]
    share = rng.uniform(0.30, 0.36) if split == OUTSIDE else rng.uniform(0.10, 0.24)
    few = rng.randint(5, 6) if split == OUTSIDE else rng.randint(1, 4)
    color, board = _draw_look(rng, split)
    empty = Game(
        columns=columns, rows=rows, walls=frozenset(), coins=frozenset(), player=(0, 0),
        color=color, board=board, actions=(), period=PERIOD,
    )  # fmt: skip
    while True:  # until the player can go somewhere
        chosen = rng.sample(cells, k=round(share * len(cells)) + few + 1)
        player, coins, walls = chosen[0], chosen[1 : few + 1], chosen[few + 1 :]
        game = replace(empty, player=player, coins=frozenset(coins), walls=frozenset(walls))
        state = State(player=player, coins=game.coins)
        if sum(after(game, state, a) != state for a in MOVES) >= 2:
            break
    game = replace(game, actions=_draw_actions(rng, game, (scene.num_frames - 1) // PERIOD))
    return replace(scene, event=game)


def _draw_look(rng: random.Random, split: str) -> tuple[str, str]:
    if split == "held-out":
        return rng.choice(HELD_OUT_GAMES)
    while True:
        look = rng.choice(PLAYERS), rng.choice(tuple(BOARDS))
        if look not in HELD_OUT_GAMES:
            return look


assert set(PLAYERS) < set(COLORS)
