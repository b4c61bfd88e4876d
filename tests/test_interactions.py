"""Interactions: the physics is exact, and each measure is right on true renders and falls when a
clip is spoiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sora_cli.eval import happenings, interaction, track
from sora_cli.eval.report import BARS
from sora_cli.eval.survey import of_family
from sora_cli.eval.truth import Prompt
from sora_cli.train.bodies import Owner
from sora_cli.train.events import (
    GRAVITY,
    Bites,
    Breaking,
    Collision,
    Leg,
    Trail,
    Wall,
    flight,
    leg_at,
)
from sora_cli.train.families import WIDE
from sora_cli.train.physics import contact_distance, hidden_frames, mass, share_left, stripe
from sora_cli.train.render import render, render_objects
from sora_cli.train.things import BUILDS, extent
from sora_cli.train.words import Caption
from sora_cli.train.world import Scene, position

SIZE = {"width": 112, "height": 64, "num_frames": 17}
Masks = dict[Owner, Tensor]


def drawn(name: str, count: int = 40) -> list[Scene]:
    """Scenes of a family, without rendering them."""
    return of_family(name, count, WIDE, "development", **SIZE)


@pytest.fixture(scope="module")
def seen() -> Callable[[str], tuple[Scene, Tensor, Masks]]:
    """The first scene of a family with its frames [T, H, W, 3] and masks, rendered once."""
    kept: dict[str, tuple[Scene, Tensor, Masks]] = {}

    def get(name: str) -> tuple[Scene, Tensor, Masks]:
        if name not in kept:
            scene = drawn(name, 1)[0]
            kept[name] = scene, render([scene])[0][0], render_objects(scene)
        return kept[name]

    return get


# ---------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("turn", [0.0, 0.7, -1.3])
def test_legs_are_the_integrals_of_their_velocities(turn: float) -> None:
    leg = Leg(time=0.4, start=(1, 2, 3), velocity=(0.8, 1.5, -0.6), acceleration=-5, turn=turn)
    step = 1e-4
    for time in (0.5, 1.3, 2.0):
        before, after = leg.at(time - step), leg.at(time + step)
        speed = [(b - a) / (2 * step) for a, b in zip(before, after, strict=True)]
        assert speed == pytest.approx(leg.velocity_at(time), abs=1e-6)
        assert math.hypot(speed[0], speed[2]) == pytest.approx(leg.speed)
    assert leg.at(0.4) == (1, 2, 3)


def test_a_throw_is_a_parabola_that_ends_on_the_floor() -> None:
    air, lies = flight((0.0, 0.5, 0.0), (1.0, 3.0, 0.2), 0.25)
    assert lies.start[1] == 0 and air.at(lies.time) == pytest.approx(lies.start)
    assert air.acceleration == -GRAVITY
    top = max(air.at(0.25 + n * 0.01)[1] for n in range(200))
    assert top == pytest.approx(0.5 + 3.0**2 / (2 * GRAVITY), abs=1e-3)
    for scene in drawn("thrown"):
        thing = scene.things[0]
        assert position(thing, 0)[1] == position(thing, scene.duration)[1] == 0
        assert max(position(thing, f / 8)[1] for f in range(17)) > 0.15


def test_collisions_keep_momentum_and_part_as_restitution_says() -> None:
    for scene in drawn("collision"):
        event = scene.event
        assert isinstance(event, Collision)
        (m, n), (v, w), (after_v, after_w) = event.masses, event.before, event.after
        assert m * after_v + n * after_w == pytest.approx(event.momentum)
        assert after_w - after_v == pytest.approx(event.restitution * (v - w))
        energy = m * v * v + n * w * w - m * after_v**2 - n * after_w**2
        assert energy == pytest.approx(
            m * n / (m + n) * (1 - event.restitution**2) * (v - w) ** 2, abs=1e-9
        )
        assert event.masses == tuple(mass(thing) for thing in scene.things)


def test_things_touch_when_they_collide_and_never_overlap() -> None:
    for scene in drawn("collision"):
        event, (one, two) = scene.event, scene.things
        assert isinstance(event, Collision)
        gap = contact_distance(one, two)
        for time in (0.0, event.time / 2, event.time, (event.time + scene.duration) / 2):
            apart = abs(position(one, time)[0] - position(two, time)[0])
            assert apart >= gap - 1e-9
        assert abs(position(one, event.time)[0] - position(two, event.time)[0]) == pytest.approx(
            gap
        )


def test_balls_of_two_sizes_touch_above_the_floor() -> None:
    scene = drawn("collision")[0]
    small, large = (replace(scene.things[0], kind="ball", size=s) for s in ("small", "large"))
    r, s = 0.55 * small.scale, 0.55 * large.scale
    assert math.hypot(contact_distance(small, large), s - r) == pytest.approx(r + s)


def test_pieces_hold_all_the_matter_and_their_momenta_cancel() -> None:
    for scene in drawn("broken"):
        event, thing = scene.event, scene.things[0]
        assert isinstance(event, Breaking)
        matter = sum((2 * piece.half) ** 3 for piece in event.pieces)
        assert matter == pytest.approx(mass(thing))
        for axis in (0, 2):
            assert sum(p.legs[0].velocity[axis] for p in event.pieces) == pytest.approx(0, abs=1e-9)
        for piece in event.pieces:
            assert leg_at(piece.legs, 99.0).at(99.0)[1] == piece.half  # on the floor, for ever
        assert 0 < event.time < event.settled < scene.duration


def test_bites_leave_less_and_less() -> None:
    for scene in drawn("eaten", 6):
        event, body = scene.event, BUILDS[scene.things[0].kind][0]
        assert isinstance(event, Bites)
        times = (0.0, *event.times)
        left = [share_left(event, body.half, time, body.shape) for time in times]
        assert left[0] == 1 and left == sorted(left, reverse=True) and len(set(left)) == len(left)
        assert event.times[-1] < scene.duration and left[-1] > 0.1


def test_a_stripe_is_as_long_as_the_way() -> None:
    for scene in drawn("trail"):
        assert isinstance(scene.event, Trail)
        wide = scene.event.half_width
        for time in (0.3, 1.1, scene.duration):
            legs = scene.things[0].legs
            ends = [leg.time for leg in legs[1:]] + [math.inf]
            way = sum(
                leg.speed * max(0.0, min(time, end) - leg.time)
                for leg, end in zip(legs, ends, strict=True)
            )
            pieces = stripe(scene, time)
            # Chords are a little shorter than their arcs, and overlap so that their corners meet.
            painted = 2 * sum(half for _, half, _ in pieces)
            assert 0.97 * way <= painted <= way + len(pieces) * wide * 1.2
        x, _, z = position(scene.things[0], scene.duration)
        end, half, _ = stripe(scene, scene.duration)[-1]
        assert math.hypot(end[0] - x, end[2] - z) <= half + 0.02


def test_a_wall_hides_the_thing_for_some_frames_and_shows_it_on_both_sides() -> None:
    for scene in drawn("behind"):
        hidden = hidden_frames(scene)
        assert isinstance(scene.event, Wall)
        assert len(hidden) >= 2 and hidden == list(range(hidden[0], hidden[-1] + 1))
        assert hidden[0] > 2 and hidden[-1] < scene.num_frames - 3
        x, _, z = position(scene.things[0], 0.0)
        half = max(extent(scene.things[0].kind)) * scene.things[0].scale
        assert scene.event.center[2] + scene.event.half[2] < z  # the wall is nearer
        assert abs(x) < scene.half_width * (6 + z) / 6 + half


# ---------------------------------------------------------------------- measures, true and spoiled


def test_what_is_hidden_is_hidden_in_the_render(seen: Callable) -> None:
    scene, _, masks = seen("behind")
    hidden = interaction.hidden_in(masks["thing", 0])
    assert set(hidden_frames(scene)) <= set(hidden)


def test_reappearing_is_measured(seen: Callable) -> None:
    _, _, masks = seen("behind")
    true = masks["thing", 0]
    hidden = interaction.hidden_in(true)
    assert interaction.reappears(true, true) and interaction.exit_error(true, true) == 0
    assert interaction.stays_hidden(true, hidden) == 1
    gone = true.clone()
    gone[hidden[-1] + 1 :] = False
    assert not interaction.reappears(gone, true)
    left = len(true) - hidden[-1] - 1  # frames, in the first of which little of it is seen
    assert left - 2 <= interaction.exit_error(gone, true) <= left
    late = torch.cat(
        (true[: hidden[-1] + 1], true[hidden[-1] : hidden[-1] + 1], true[hidden[-1] :])
    )
    assert interaction.exit_error(late[: len(true)], true) == 2
    through = true.clone()
    through[hidden] = true[0]
    assert interaction.stays_hidden(through, hidden) == 0
    large = true.clone()
    large[hidden[-1] + 1 :, 20:60, 20:90] = True
    assert not interaction.reappears(large, true)
    held = true.clone()
    held[hidden[0] :] = true[hidden[0] - 2]  # it stays where it was
    assert not interaction.reappears(held, true)


def test_trails_that_fade_are_measured(seen: Callable) -> None:
    scene, frames, masks = seen("trail")
    thing, paint = masks["thing", 0], masks["trail", 0]
    look = interaction.object_look(scene, frames, paint)
    for painted in (paint, interaction.seen(look, frames)):
        assert interaction.trail_persistence(painted, thing, paint[-1]) > 0.97
    assert interaction.trail_match(paint, paint, thing) == 1
    assert interaction.trail_match(interaction.seen(look, frames), paint, thing) > 0.4
    # From the middle on the ground is clean again, but for what is painted anew.
    middle = len(frames) // 2
    spoiled = frames.clone()
    early = paint[middle] & ~thing[middle:].any(0)
    spoiled[middle:, early] = frames[0, early]
    found = interaction.seen(look, spoiled)
    assert interaction.trail_persistence(found, thing, paint[-1]) < 0.75
    assert interaction.trail_match(found, paint, thing) < 0.75 * interaction.trail_match(
        interaction.seen(look, frames), paint, thing
    )


def test_bites_that_grow_back_are_measured(seen: Callable) -> None:
    scene, frames, masks = seen("eaten")
    count = len(scene.event.times)
    for skin in (masks["thing", 0], interaction.skin_seen(scene, frames, frames, masks)):
        assert interaction.never_grows(skin) == 1
        assert interaction.bites_seen(skin) == count
    healed = frames.clone()
    healed[-3:] = frames[0]
    skin = interaction.skin_seen(scene, healed, frames, masks)
    assert interaction.never_grows(skin) < 1
    still = frames[:1].expand_as(frames)
    assert interaction.bites_seen(interaction.skin_seen(scene, still, frames, masks)) == 0


def test_pieces_that_vanish_or_melt_are_measured(seen: Callable) -> None:
    scene, frames, masks = seen("broken")
    count, first = len(scene.event.pieces), math.ceil(scene.event.settled * scene.fps)
    pieces = [masks["piece", n] for n in range(count)]
    whole = torch.stack(pieces).any(0)
    assert interaction.pieces_stay(whole, first, count) == 1
    look = interaction.object_look(scene, frames, render([scene])[1][0])
    assert interaction.pieces_stay(interaction.seen(look, frames), first, count) > 0.5
    fewer = torch.stack(pieces[1:]).any(0)
    assert interaction.pieces_stay(fewer, first, count) == 0
    molten = whole.clone()
    molten[-1, 30:40] = True
    assert interaction.pieces_stay(molten, first, count) < 1


def test_momentum_that_is_not_kept_is_measured(seen: Callable) -> None:
    scene, _, masks = seen("collision")
    event = scene.event
    pair = (masks["thing", 0], masks["thing", 1])
    places = interaction.lane_places(scene, pair)
    assert interaction.momentum_error(scene, event, places) < 0.08
    assert interaction.restitution_error(scene, event, places) < 0.12
    # The first goes on as if nothing had been there.
    spoiled = places.clone()
    times = torch.arange(len(places)) / scene.fps
    late = times > event.time
    start = scene.things[0].legs[0].start[0]
    spoiled[late, 0] = start + event.before[0] * times[late]
    assert interaction.momentum_error(scene, event, spoiled) > 0.2
    # Both stop dead.
    spoiled = places.clone()
    spoiled[late] = places[late][:1].nan_to_num()
    assert interaction.momentum_error(scene, event, spoiled) > 0.2


def test_things_are_told_apart_by_their_looks_as_well_as_by_their_masks(seen: Callable) -> None:
    scene, frames, masks = seen("collision")
    pair = [masks["thing", number] for number in range(2)]
    looks = [interaction.object_look(scene, frames, mask) for mask in pair]
    found = interaction.seen_apart(looks, frames)
    for mask, mine in zip(pair, found, strict=True):
        assert track.overlap(mine, mask) > 0.7
    places = interaction.lane_places(scene, (found[0], found[1]))
    assert interaction.momentum_error(scene, scene.event, places) < 0.1


@pytest.mark.parametrize("question", happenings.QUESTIONS, ids=lambda q: q.family)
def test_every_question_is_right_on_the_truth_and_wrong_where_nothing_happens(
    question: happenings.Question, seen: Callable
) -> None:
    """Each figure has its bar, and to hold the last given frame is worse in one of them."""
    if question.family == "game" or question.size is not None:  # asked without masks
        size = SIZE
        if question.size is not None:
            size = dict(zip(("width", "height", "num_frames", "fps"), question.size, strict=True))
        scene = of_family(question.family, 1, question.mixture, "development", **size)[0]
        frames, masks = render([scene])[0][0], {}
    else:
        scene, frames, masks = seen(question.family)
    prompt = Prompt(scene=scene, caption=Caption(text="", named=frozenset()), seed=0)
    one = happenings.Happening(prompt=prompt, frames=frames, masks=masks)
    held = frames.clone()
    held[question.given :] = frames[question.given - 1]
    true, still = question.measure(one, frames), question.measure(one, held)
    assert all((question.ability, name) in BARS for name in true)
    smaller = {name: BARS[question.ability, name].smaller_is_better for name in true}
    assert any(
        still[name] > true[name] if smaller[name] else still[name] < true[name] for name in true
    )
