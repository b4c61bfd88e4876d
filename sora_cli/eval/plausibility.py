"""Plausibility: is what cannot happen harder to denoise than what can? (LikePhys, arXiv 2510.11512)

Pairs of a true clip and its impossible twin, of the same scene, under the same prompt, noise and
noise levels. The model is asked for nothing but its velocities, so nothing is generated. T frames
of H×W pixels, uint8 [T, H, W, 3]; latents [C, T', H', W'].
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sora_cli.eval.clips import encode
from sora_cli.eval.joins import Bench
from sora_cli.eval.physics import moves_alone
from sora_cli.eval.report import TWINS, Row
from sora_cli.eval.rows import Exam
from sora_cli.eval.truth import Prompt
from sora_cli.eval.verbs import bench_of
from sora_cli.pipeline.canvas import noise
from sora_cli.pipeline.generate import read_texts
from sora_cli.pipeline.networks import Networks
from sora_cli.pipeline.request import Settings
from sora_cli.train.render import render
from sora_cli.train.world import (
    COLORS,
    THINGS,
    Scene,
    Thing,
    bounce_height,
    is_held_out,
    position,
    yaw,
)
from sora_cli.weights import load

SIGMAS = (0.3, 0.5, 0.7, 0.85)  # noise levels over which a clip's loss is averaged
BESIDE = 0.55  # of the half width: how far a thing jumps, or its double stands

Moment = tuple[Thing, ...]  # the things of one frame, where they are
Twin = Callable[[Scene, random.Random], list[Moment]]


def at(thing: Thing, time: float) -> Thing:
    """The thing standing still where it is at `time` (s)."""
    return replace(
        thing, start=position(thing, time), yaw=yaw(thing, time), motion="still", spin=0.0,
        velocity=(0.0, 0.0, 0.0),
    )  # fmt: skip


def moments(scene: Scene) -> list[Moment]:
    """What happens, frame by frame."""
    times = [frame / scene.fps for frame in range(scene.num_frames)]
    return [tuple(at(thing, time) for thing in scene.things) for time in times]


def staged(scene: Scene, wanted: Sequence[Moment], batch: int = 5) -> Tensor:
    """The frames [T, H, W, 3] of things placed by hand before a camera that stands still."""
    assert scene.camera == "static"
    single = [replace(scene, things=moment, num_frames=1) for moment in wanted]
    parts = [render(single[i : i + batch])[0][:, 0] for i in range(0, len(single), batch)]
    return torch.cat(parts)


# ---------------------------------------------------------------------- what cannot happen


def _from_the_middle(change: Callable[[Moment], Moment], scene: Scene) -> list[Moment]:
    true = moments(scene)
    middle = len(true) // 2
    return [*true[:middle], *(change(moment) for moment in true[middle:])]


def _moved(thing: Thing, right: float) -> Thing:
    x, y, z = thing.start
    return replace(thing, start=(x + right, y, z))


def _aside(scene: Scene, moment: Moment) -> float:
    """A distance (m) to the side on which there is more room."""
    return BESIDE * scene.half_width * (-1 if moment[0].start[0] > 0 else 1)


def _reversed(scene: Scene, rng: random.Random) -> list[Moment]:
    return moments(scene)[::-1]


def _upward(scene: Scene, rng: random.Random) -> list[Moment]:
    """Falls up: the same flight under a ceiling as high as it was dropped from."""
    thing = scene.things[0]
    found: list[Moment] = []
    for frame in range(scene.num_frames):
        time = frame / scene.fps
        x, _, z = position(thing, time)
        height = thing.start[1] - bounce_height(thing.start[1], thing.restitution, time)
        found.append((replace(at(thing, time), start=(x, height, z)),))
    return found


def _jumps(scene: Scene, rng: random.Random) -> list[Moment]:
    right = _aside(scene, moments(scene)[scene.num_frames // 2])
    return _from_the_middle(lambda m: (_moved(m[0], right),), scene)


def _recoloured(scene: Scene, rng: random.Random) -> list[Moment]:
    kind, color = scene.things[0].kind, scene.things[0].color
    other = rng.choice([c for c in COLORS if c != color and not is_held_out(kind, c)])
    return _from_the_middle(lambda m: (replace(m[0], color=other),), scene)


def _reshaped(scene: Scene, rng: random.Random) -> list[Moment]:
    kind, color = scene.things[0].kind, scene.things[0].color
    other = rng.choice([k for k in THINGS if k != kind and not is_held_out(k, color)])
    return _from_the_middle(lambda m: (replace(m[0], kind=other),), scene)


def _vanishes(scene: Scene, rng: random.Random) -> list[Moment]:
    return _from_the_middle(lambda m: (replace(m[0], start=(0.0, 0.0, -80.0)),), scene)


def _doubles(scene: Scene, rng: random.Random) -> list[Moment]:
    right = _aside(scene, moments(scene)[scene.num_frames // 2])
    return _from_the_middle(lambda m: (m[0], _moved(m[0], right)), scene)


def _drops(scene: Scene) -> bool:
    return scene.things[0].motion in ("bounces", "falls")


_ANY: dict[str, Twin] = {
    "jumps aside": _jumps,
    "another colour": _recoloured,
    "another shape": _reshaped,
    "vanishes": _vanishes,
    "doubles": _doubles,
}
_DROPPED: dict[str, Twin] = {"time reversed": _reversed, "falls up": _upward}
ALL: dict[str, Twin] = {**_DROPPED, **_ANY}
assert tuple(ALL) == TWINS, "a bar for each kind"


def twins(scene: Scene) -> dict[str, list[Moment]]:
    """The impossible twins of a scene by kind, always the same."""
    kinds = ALL if _drops(scene) else _ANY
    return {
        kind: make(scene, random.Random(f"twin/{kind}/{scene.seed}/{scene.index}"))
        for kind, make in kinds.items()
    }


# ---------------------------------------------------------------------- losses


@torch.no_grad()
def losses(
    networks: Networks, settings: Settings, texts: Sequence[str], latents: Sequence[Tensor],
    seed: int, sigmas: Sequence[float],
) -> list[float]:  # fmt: skip
    """Mean squared velocity error of each clip's latents [C, T, H, W] under its text.

    One text may be all clips', and one clip all texts'. All get the same noise, another one at each
    noise level; the error is averaged over the levels.
    """
    device, count = networks.model.device, max(len(texts), len(latents))
    exact = replace(settings, guidance_scale=1.0)
    contexts = torch.cat([read_texts(networks, text, exact).context for text in texts])
    clean = torch.stack(list(latents)).to(device).expand(count, -1, -1, -1, -1)  # [N, C, T, H, W]
    total = torch.zeros(count, device=device)
    with networks.transformer() as dit:
        prepared = dit.prepare_context(contexts.to(device).expand(count, -1, -1))
        for number, sigma in enumerate(sigmas):
            drawn = noise(tuple(clean.shape[1:]), 1000 * seed + number).to(device)  # type: ignore[arg-type]
            timesteps = torch.full((count,), 1000 * sigma, device=device)
            velocity = dit((1 - sigma) * clean + sigma * drawn, timesteps, prepared)
            total += (velocity.float() - (drawn - clean)).square().mean((1, 2, 3, 4))
    return (total / len(sigmas)).tolist()


def scene_losses(exam: Exam, bench: Bench, prompt: Prompt) -> dict[str, np.ndarray]:
    """ "losses": of the true clip, then of its twins in the order of `twins`."""
    ways = (moments(prompt.scene), *twins(prompt.scene).values())
    clips = [staged(prompt.scene, way) for way in ways]
    part, device = exam.studio.model.parts["vae"], exam.studio.device
    with load.vae(part, device=device, dtype=torch.float32) as vae:
        latents = encode(vae, torch.stack(clips))
    text = [prompt.caption.text]
    found = losses(bench.networks, bench.settings, text, latents, prompt.seed, SIGMAS)
    return {"losses": np.array(found)}


def plausibility(exam: Exam) -> list[Row]:
    """The share of pairs in which the impossible clip has the higher loss; chance is 50 %."""
    asked = exam.prompts("dense", cap="pair", only=moves_alone)
    right: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    with bench_of(exam) as bench:
        for prompt in asked:
            build = partial(scene_losses, exam, bench, prompt)
            found = bench.made(f"losses {SIGMAS}", [prompt], build)
            if found is None:
                break
            true, *others = found["losses"].tolist()
            for kind, loss in zip(twins(prompt.scene), others, strict=True):
                right[kind] += loss > true
                pairs[kind] += 1
    shares = [(kind, right[kind], pairs[kind]) for kind in ALL if pairs[kind]]
    if shares:
        shares.insert(0, ("all", sum(right.values()), sum(pairs.values())))
    return [
        Row(
            ability="plausibility", measure=f"impossible is harder: {kind}, % of pairs",
            value=100 * count / number, baselines={"chance": 50.0}, samples=number,
            split=exam.split,
        )
        for kind, count, number in shares
    ]  # fmt: skip
