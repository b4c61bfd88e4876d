"""The abilities that the report card knows, in its order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sora_cli.eval import (
    binding,
    camera,
    captioner,
    exchanged,
    failures,
    files,
    happenings,
    lasting,
    physics,
    plausibility,
    rows,
    sizes,
    verbs,
)
from sora_cli.eval.report import Row
from sora_cli.eval.rows import Exam

ABILITIES: dict[str, Callable[[Exam], list[Row]]] = {
    "compression": rows.compression,
    "prompt fidelity": rows.prompt_fidelity,
    "terse prompts": sizes.terse,
    **{name: partial(binding.rows, ability=name) for name in binding.QUESTIONS},
    "exchanged words": exchanged.rows,
    "sizes": sizes.sizes,
    "physics": lambda exam: [*physics.physics(exam), *happenings.happenings(exam, "physics")],
    "plausibility": plausibility.plausibility,
    "permanence": lambda exam: [
        *lasting.permanence(exam),
        *happenings.happenings(exam, "permanence"),
    ],
    "interaction": partial(happenings.happenings, ability="interaction"),
    "digital world": partial(happenings.happenings, ability="digital world"),
    "3D consistency": camera.consistency,
    "animate": rows.animate,
    "extend": partial(verbs.joins, verb="extend"),
    "loop": partial(verbs.joins, verb="loop"),
    "connect": partial(verbs.joins, verb="connect"),
    "files": files.untouched,
    "one minute": verbs.one_minute,
    "edit": verbs.edit,
    "captioner": captioner.rows,
    "failures": failures.failures,
}
