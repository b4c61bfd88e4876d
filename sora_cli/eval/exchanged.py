"""Words exchanged between two things: is a true clip harder to denoise under them?

Nothing is generated and no judge is asked: at noise levels where only words tell what goes where,
the loss of a clip under its own caption stands beside its loss under the caption of the same scene
with colours, kinds, motions or places exchanged. A model that reads a bag of words sees no
difference. Clips are uint8 [T, H, W, 3].
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from sora_cli.eval import report
from sora_cli.eval.clips import encode
from sora_cli.eval.joins import Bench
from sora_cli.eval.plausibility import losses
from sora_cli.eval.report import Bar, Row
from sora_cli.eval.rows import Exam
from sora_cli.eval.truth import Prompt
from sora_cli.eval.verbs import bench_of
from sora_cli.train.captions import dense
from sora_cli.train.render import render
from sora_cli.train.world import Scene
from sora_cli.weights import load

SIGMAS = (1.0, 0.95, 0.85)  # noise levels over which a clip's loss is averaged
WHAT = {"color": "colours", "kind": "kinds", "motion": "motions", "place": "places"}
HARDER, TIMES = "exchanged {} are harder, % of clips", "loss under exchanged {}, times the right"
report.BARS.update(
    {
        ("exchanged words", measure.format(what)): Bar(first=first, goal=goal)
        for what in WHAT.values()
        for measure, first, goal in ((HARDER, 92.0, 99.0), (TIMES, None, None))
    }
)


def two_unlike(scene: Scene) -> bool:
    """Whether two things differ in everything that is exchanged."""
    if len(scene.things) != 2:
        return False
    one, two = scene.things
    return one.color != two.color and one.kind != two.kind and one.motion != two.motion


def exchanged(scene: Scene, what: str) -> Scene:
    """The record of the scene with what is named exchanged between its things."""
    one, two = scene.things
    if what == "place":
        return replace(scene, things=(two, one))
    mine, other = getattr(one, what), getattr(two, what)
    return replace(scene, things=(replace(one, **{what: other}), replace(two, **{what: mine})))


def captions(scene: Scene) -> list[str]:
    """The scene's dense caption, then those with something exchanged, in the same wordings."""
    key = f"exchanged/{scene.seed}/{scene.index}"
    scenes = (scene, *(exchanged(scene, what) for what in WHAT))
    return [dense(one, random.Random(key)).text for one in scenes]


def _losses(exam: Exam, bench: Bench, prompt: Prompt) -> dict[str, np.ndarray]:
    """ "losses" [captions]: of the true clip, under each caption."""
    part, device = exam.studio.model.parts["vae"], exam.studio.device
    with load.vae(part, device=device, dtype=torch.float32) as vae:
        latents = encode(vae, render([prompt.scene])[0])
    texts = captions(prompt.scene)
    found = losses(bench.networks, bench.settings, texts, latents, prompt.seed, SIGMAS)
    return {"losses": np.array(found)}


def rows(exam: Exam) -> list[Row]:
    """For each exchange, in how many clips it is harder, and how much higher the mean loss is."""
    asked = exam.prompts("dense", cap="pair", only=two_unlike)
    found_losses: list[np.ndarray] = []
    with bench_of(exam) as bench:
        for prompt in asked:
            made = bench.made(
                f"exchanged {SIGMAS}", [prompt], partial(_losses, exam, bench, prompt)
            )
            if made is None:
                break
            found_losses.append(made["losses"])
    if not found_losses:
        return []
    table = np.stack(found_losses)  # [clips, captions]
    found = []
    for column, what in enumerate(WHAT.values(), 1):
        harder = 100 * float((table[:, column] > table[:, 0]).mean())
        times = float(table[:, column].mean() / table[:, 0].mean())
        for measure, value, chance in ((HARDER, harder, 50.0), (TIMES, times, 1.0)):
            found.append(
                Row(
                    ability="exchanged words", measure=measure.format(what), value=value,
                    baselines={"a bag of words": chance}, samples=len(table), split=exam.split,
                )
            )  # fmt: skip
    return found
