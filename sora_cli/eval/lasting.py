"""Permanence: what is there at the start of a clip is there at its end, and is the same.

The clips are those of "prompt fidelity"; the judge reads their first and their last second apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sora_cli.eval.judge import Judge, Reading, read
from sora_cli.eval.report import Row
from sora_cli.eval.rows import Exam

SECOND = 9  # frames that are read at each end
_COUNT = "as many things at the end as at the start, %"
_SAME = "the same things at the end as at the start, %"


def things_in(reading: Reading) -> tuple[tuple[str, str], ...]:
    """Kind and colour of each thing, from left to right."""
    slots = range(int(reading.values["count"]))
    return tuple((reading.values[f"kind{n}"], reading.values[f"color{n}"]) for n in slots)


def lasting(starts: Sequence[Reading], ends: Sequence[Reading]) -> dict[str, float]:
    """% of the clips with as many things, and with the same ones, at both ends."""
    pairs = [(things_in(a), things_in(b)) for a, b in zip(starts, ends, strict=True)]
    return {
        _COUNT: 100 * sum(len(a) == len(b) for a, b in pairs) / len(pairs),
        _SAME: 100 * sum(a == b for a, b in pairs) / len(pairs),
    }


def _read_ends(judge: Judge, clips: Tensor) -> dict[str, float]:
    return lasting(read(judge, clips[:, :SECOND]), read(judge, clips[:, -SECOND:]))


def permanence(exam: Exam) -> list[Row]:
    """Things counted and named at both ends of what dense prompts made."""
    asked, clips = exam.dense()
    if not asked:
        return []
    frames, rebuilt = exam.truth()[0][: len(asked)], exam.truth_reconstructed()[: len(asked)]
    value, floor, vae_floor = (_read_ends(exam.judge, way) for way in (clips, frames, rebuilt))
    return [
        Row(
            ability="permanence", measure=measure, value=value[measure], floor=floor[measure],
            baselines={"VAE floor": vae_floor[measure]}, samples=len(asked), split=exam.split,
        )
        for measure in (_COUNT, _SAME)
    ]  # fmt: skip
