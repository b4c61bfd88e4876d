"""The grid game and Kang et al.'s preset: their rules, their pictures, and the measures on both."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sora_cli.eval import grid, kang
from sora_cli.eval.survey import of_family
from sora_cli.train.dataset import BUCKETS
from sora_cli.train.events import Collision, Discs, Game, Leg, leg_at
from sora_cli.train.families import KANG, WIDE
from sora_cli.train.grid_game import MOVES, State, after, cell_pixels, coins_at, free, legal, states
from sora_cli.train.kang import FPS, FRAMES, GRAVITY, OUTSIDE_RADII, OUTSIDE_SPEEDS, RADII, SPEEDS
from sora_cli.train.render import render
from sora_cli.train.world import OUTSIDE, Scene, draw_scene

CLIP = {"width": 112, "height": 80, "num_frames": 25}


def games(count: int, split: str = "development") -> list[tuple[Scene, Game]]:
    """Games with their boards."""
    scenes = of_family("game", count, WIDE, split, **CLIP)
    return [(scene, scene.event) for scene in scenes if isinstance(scene.event, Game)]


def balls(kind: str, count: int, split: str = "training") -> list[tuple[Scene, Discs]]:
    """Scenes of the preset, at its own size and pace."""
    mixture = tuple(family for family in KANG if family.name == kind)
    scenes = [
        draw_scene(0, index, width=128, height=128, num_frames=FRAMES, fps=FPS, split=split,
                   mixture=mixture)
        for index in range(count)
    ]  # fmt: skip
    return [(scene, scene.event) for scene in scenes if isinstance(scene.event, Discs)]


def filmed(scene: Scene) -> Tensor:
    """Its frames [T, H, W, 3]."""
    return render([scene])[0][0]


# ---------------------------------------------------------------------- the game's rules


def test_states_follow_the_rules() -> None:
    moved = blocked = collected = 0
    for _, game in games(300):
        found = states(game)
        assert len(found) == len(game.actions) + 1 == 7
        for before, then, action in zip(found[:-1], found[1:], game.actions, strict=True):
            step = MOVES[action]
            wanted = (before.player[0] + step[0], before.player[1] + step[1])
            assert then.player == (wanted if free(game, wanted) else before.player)
            assert then.coins == before.coins - {then.player}
            assert legal(game, before, then) and free(game, then.player)
            moved += then.player != before.player
            blocked += then.player == before.player
            collected += then.coins != before.coins
    assert moved > 9 * blocked > 0 and collected > 20


def test_jumps_and_coins_from_nowhere_are_not_legal() -> None:
    game = Game(
        columns=4, rows=3, walls=frozenset({(1, 0)}), coins=frozenset({(2, 2)}), player=(0, 0),
        color="red", board="dark", actions=("down",), period=4,
    )  # fmt: skip
    start = states(game)[0]
    assert legal(game, start, replace(start, player=(0, 1))) and legal(game, start, start)
    assert not legal(game, start, replace(start, player=(0, 2)))  # too far
    assert not legal(game, start, replace(start, player=(1, 0)))  # into the wall
    assert not legal(game, start, replace(start, coins=frozenset()))  # a coin gone by itself
    assert not legal(game, start, replace(start, coins=game.coins | {(3, 1)}))
    assert after(game, State(player=(2, 1), coins=game.coins), "down").coins == frozenset()


def test_boards_fit_their_frames() -> None:
    for width, height in ((64, 64), (160, 96), (96, 160), (192, 192), (480, 272)):
        assert 4 <= min(width, height) // cell_pixels(width, height) <= 8
        scene = of_family("game", 1, WIDE, "training", width=width, height=height, num_frames=1)[0]
        assert filmed(scene).shape == (1, height, width, 3)


def test_coins_go_when_the_player_is_there() -> None:
    for _, game in games(60):
        for number, state in enumerate(states(game)):
            assert coins_at(game, number * game.period) == state.coins


# ---------------------------------------------------------------------- the game's measures


def test_true_games_are_legal_and_obey() -> None:
    for scene, game in games(6):
        frames = filmed(scene)
        assert grid.legal_share(scene, game, frames) == 1
        assert grid.obeyed_share(scene, game, frames) == 1
        assert grid.reached(scene, game, frames)


def test_games_softened_as_an_autoencoder_does_are_still_read() -> None:
    for scene, game in games(3):
        frames = filmed(scene)
        planes = frames.permute(0, 3, 1, 2).float()
        soft = torch.nn.functional.avg_pool2d(planes, 3, 1, 1, count_include_pad=False)
        noise = 6 * torch.randn(soft.shape, generator=torch.Generator().manual_seed(0))
        soft = (soft + noise).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
        assert grid.legal_share(scene, game, soft) == 1
        assert grid.obeyed_share(scene, game, soft) == 1


def test_other_actions_are_legal_but_not_obeyed() -> None:
    for scene, game in games(3):
        other = replace(game, actions=tuple(reversed(game.actions)) + ("left",))
        other = replace(other, actions=other.actions[-len(game.actions) :])
        if states(other) == states(game):
            continue
        frames = filmed(replace(scene, event=other))
        assert grid.legal_share(scene, game, frames) == 1
        assert grid.obeyed_share(scene, game, frames) < 1


def test_spoiled_games_are_illegal() -> None:
    scene, game = games(1)[0]
    frames = filmed(scene)
    side = cell_pixels(scene.width, scene.height)
    jumped = filmed(replace(scene, event=replace(game, actions=game.actions[::-1])))
    mixed = torch.cat((frames[:12], jumped[12:]))
    smeared = frames.clone()
    smeared[13:] = frames[13:].float().mean((1, 2), keepdim=True).to(torch.uint8)
    doubled = frames.clone()
    x, y = (side * part for part in states(game)[2].player)
    left, top = grid.corner(scene, game)
    cell = frames[8, top + y : top + y + side, left + x : left + x + side]
    free_cell = next(
        (a, b) for a in range(game.columns) for b in range(game.rows)
        if free(game, (a, b)) and all((a, b) not in (s.player, *s.coins) for s in states(game))
    )  # fmt: skip
    a, b = left + side * free_cell[0], top + side * free_cell[1]
    doubled[8:, b : b + side, a : a + side] = cell
    for spoiled in (mixed, smeared, doubled):
        assert grid.legal_share(scene, game, spoiled) < 1
    still = frames[:1].expand_as(frames)
    assert grid.legal_share(scene, game, still) == 1 and grid.obeyed_share(scene, game, still) == 0


# ---------------------------------------------------------------------- Kang et al.


def test_the_preset_is_theirs() -> None:
    for kind in RADII:
        for scene, event in balls(kind, 60):
            assert (scene.duration, event.side) == (3.2, 10.0)
            for disc in event.discs:
                assert RADII[kind][0] <= disc.radius <= RADII[kind][1]
                assert SPEEDS[0] <= abs(disc.legs[0].velocity[0]) <= SPEEDS[1]
                assert disc.legs[0].acceleration == (-GRAVITY if kind == "parabola" else 0)
                x, y, _ = disc.legs[0].start
                assert disc.radius <= x + 1e-9 and disc.radius <= y <= 10 - disc.radius
                assert x <= 10 - disc.radius + 1e-9
        for _, event in balls(kind, 60, OUTSIDE):
            for disc in event.discs:
                assert any(low <= disc.radius <= high for low, high in OUTSIDE_RADII)
                speed = abs(disc.legs[0].velocity[0])
                assert any(low <= speed <= high for low, high in OUTSIDE_SPEEDS)


@pytest.mark.parametrize("fps", [8.0, FPS])
def test_there_are_scenes_of_every_trained_length(fps: float) -> None:
    """In a picture two balls have no time to meet: looking for such a scene never ended."""
    for num_frames in sorted({bucket.num_frames for bucket in BUCKETS}):
        scenes = [
            draw_scene(0, n, width=64, height=64, num_frames=num_frames, fps=fps, mixture=KANG)
            for n in range(20)
        ]
        kinds = {scene.family for scene in scenes}
        assert kinds == (set(RADII) if num_frames >= 25 else set(RADII) - {"collision"})


def test_balls_meet_without_loss() -> None:
    for _, event in balls("collision", 60):
        one, two = event.discs
        assert event.time is not None and event.time >= 0.8
        gap = leg_at(two.legs, event.time).at(event.time)[0] - leg_at(one.legs, 0).at(event.time)[0]
        assert gap == pytest.approx(one.radius + two.radius)
        speeds = [[leg.velocity[0] for leg in disc.legs] for disc in event.discs]
        masses = [disc.radius**2 for disc in event.discs]
        for power in (1, 2):  # momentum and energy
            before, then = (
                sum(m * v[k] ** power for m, v in zip(masses, speeds, strict=True))
                for k in range(2)
            )
            assert before == pytest.approx(then)
        blow = Collision(time=0, masses=(masses[0], masses[1]),
                         before=(speeds[0][0], speeds[1][0]), restitution=1.0)  # fmt: skip
        assert blow.after == pytest.approx((speeds[0][1], speeds[1][1]))


@pytest.mark.parametrize("kind", list(RADII))
def test_velocities_are_read_from_frames_and_wrong_ones_are_seen(kind: str) -> None:
    errors = []
    for scene, event in balls(kind, 2):
        frames = filmed(scene)
        errors.append(kang.velocity_error(scene, event, frames))
        still = frames.clone()
        still[3:] = frames[2]
        assert kang.velocity_error(scene, event, still) > 0.2
        gone = frames.clone()
        gone[3:] = frames.amax()
        assert kang.velocity_error(scene, event, gone) > 0.2
        slow = replace(
            event,
            discs=tuple(
                replace(d, legs=tuple(_slower(leg) for leg in d.legs)) for d in event.discs
            ),
        )
        assert kang.velocity_error(scene, event, filmed(replace(scene, event=slow))) > 0.04
    assert sum(errors) / len(errors) < 0.0099  # their own floor


def _slower(leg: Leg) -> Leg:
    """At nine tenths of its speed."""
    x, y, z = leg.velocity
    return replace(leg, velocity=(0.9 * x, y, z))


def test_balls_are_seen_where_they_are() -> None:
    for scene, event in balls("collision", 2):
        true, seen = kang.true_places(scene, event), kang.places_in(scene, event, filmed(scene))
        inside = kang.whole(scene, event)
        assert inside[0].all() and float((true - seen).abs()[inside].max()) < 0.03
        assert not math.isnan(float(seen[0].sum()))
