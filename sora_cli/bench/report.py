"""The figures as a table for people; written from the JSON alone, so that it can be written again.

Ratios come first: the wall clock of a shared machine says little, the ratio of two sides timed in
turn says much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sora_cli.bench import breakdown, goals

Result = Mapping[str, Any]
BUSY = 1.5  # a wall clock so many times the CPU's says more about others than about us
TABLE = (
    "ratio", "in CPU seconds", "workload", "dtype", "ours, s", "diffusers, s",
    "ratio to diffusers' best dtype", "share of matmul rate", "peak memory, MB (theirs)", "target",
)  # fmt: skip


def markdown(result: Result, figures: str = "speed.json") -> str:
    """The whole page; `figures`: where these lie, seen from the page."""
    pages = [
        HEAD.replace("speed.json", figures),
        _circumstances(result),
        _workloads(result),
        _goals(result),
        _breakdown(result),
        _floors(result),
        _short(result),
        _parity(result),
    ]
    pages += [_refused(result), _ceilings(result)]
    return "\n".join(page for page in pages if page)


def table(result: Result) -> str:
    """The workloads alone, for a terminal."""
    return _workloads(result)


HEAD = """# Speed beside diffusers

Written by `python -m sora_cli.bench` from [its own figures](speed.json); the command below makes
them again. *Ratio*: diffusers' time over ours, more than 1 where ours is faster; medians of rounds
in which both sides and a matrix product take turns, quartiles in brackets. *In CPU seconds*: the
same ratio of the process's own seconds, which other work on a machine disturbs less. Both sides
have the same weights, inputs, dtype and threads, are warmed, and are timed only after their results
have been found equal. *Share*: the workload's nominal FLOPs in our time, over the rate of the
square matrix product measured in the same rounds. *Peak memory*: a side's weights and what grows
beside them while it runs. Networks are loaded beforehand on both sides, and no text is remembered.
Where a workload says what is beside it, that is ours too, and stands in diffusers' place.
"""


def _circumstances(result: Result) -> str:
    machine, versions = result["machine"], result["versions"]
    cores, threads = machine["cores"], machine["threads"]
    where = f"{machine['processor']}, {cores} core{'s' * (cores != 1)} used, {threads} thread"
    where += "s" * (threads != 1)
    if machine.get("gpu"):
        where = f"{machine['gpu']}; {where}"
    packages = ("torch", "diffusers", "transformers")
    named = ", ".join(f"{name} {versions[name] or 'not installed'}" for name in packages)
    lines = [f"`{result['command']}`", "", f"{result['date']}; {where}; {named}; "]
    lines[-1] += f"this repository at {versions['commit']}."
    if result.get("scale", 1) != 1:
        lines.append(
            f"Every size times {result['scale']}: a proof that it runs, not a measurement."
        )
    commits = sorted({d["commit"] for d in result["details"]} - {versions["commit"]})
    if commits:
        lines.append(f"Some rows are of an earlier sitting, at {', '.join(commits)}.")
    stretch = max((d["stretch"] or 1 for d in result["details"]), default=1)
    if machine["device"] == "cpu" and stretch > BUSY:
        lines.append(
            f"Other work kept the machine busy: laps took up to {stretch:.0f} times the process's "
            "own seconds, so read the ratio in CPU seconds, and seconds as an upper bound."
        )
    for why in sorted({d["missing"] for d in result["details"] if d["missing"]}):
        lines.append(f"The other side is not whole: {why}.")
    return "\n".join(lines) + "\n"


def _workloads(result: Result) -> str:
    best = _best(result["workloads"])
    rows = [
        _row(row, beside, best) for row, beside in zip(result["workloads"], result["details"],
                                                       strict=True)
    ]  # fmt: skip
    return _table(TABLE, rows)


def _row(row: Result, beside: Result, best: Mapping[str, Mapping[str, Any]]) -> list[str]:
    share = row["share_of_matmul_rate"]
    target = beside["target"]
    said = "" if target is None else f"{target:g}×"
    if target is not None and row["ratio"] is not None:
        said += " met" if row["ratio"] >= target else " **missed**"
    other = best.get(row["name"])
    against = f"{other['theirs_s'] / row['ours_s']:.2f}× ({other['dtype']})" if other else ""
    mine, their = _megabytes(row["peak_memory"]), _megabytes(beside["theirs_peak_memory"])
    return [
        "" if row["ratio"] is None else f"**{row['ratio']:.2f}×**",
        "" if beside["cpu_ratio"] is None else f"{beside['cpu_ratio']:.2f}×",
        beside["what"], row["dtype"],
        _seconds(row["ours_s"], beside["ours_quartiles_s"]),
        _seconds(row["theirs_s"], beside["theirs_quartiles_s"]),
        against, "" if share is None else f"{share:.0%}", f"{mine} ({their})", said,
    ]  # fmt: skip


def _best(rows: Sequence[Result]) -> dict[str, Result]:
    """Of each workload that was timed in several dtypes, diffusers' fastest row."""
    best: dict[str, Result] = {}
    for row in rows:
        known = best.get(row["name"])
        if row["theirs_s"] is not None and (known is None or row["theirs_s"] < known["theirs_s"]):
            best[row["name"]] = row
    return best


def _breakdown(result: Result) -> str:
    """Where each side's time goes, and so what ratio is the most there can be."""
    rows = breakdown.rows(result["workloads"], result["details"])
    if not rows:
        return ""
    return f"## Where the time goes\n\n{breakdown.INTRO}\n{_table(breakdown.HEADS, rows)}"


def _goals(result: Result) -> str:
    """Every bound of the workloads beside what was measured."""
    rows = goals.goal_rows(result)
    heads = ("workload", "what", "target", "measured", "")
    return "## Targets\n\n" + _table(heads, rows) if rows else ""


def _floors(result: Result) -> str:
    """Against what the card can do, and what the planner expected."""
    rows = goals.floor_rows(result) if any(d.get("goals") for d in result["details"]) else []
    if not rows:
        return ""
    heads = ("workload", "ours", "practical floor", "share of it", "peak memory", "other ways")
    said = "".join(f"- {note}\n" for note in goals.notes(result["details"]))
    return f"## Floors and memory\n\n{FLOOR}\n{_table(heads, rows)}" + (said and "\n" + said)


FLOOR = """Practical floor: attention over the grid at the best rate of attention below, the rest at
that of the matrix product. Planned: `runtime/plan.py` for this network alone.
"""


def _short(result: Result) -> str:
    """What misses its target, and what diffusers does better."""
    lines = []
    for row, beside in zip(result["workloads"], result["details"], strict=True):
        target, ratio = beside["target"], row["ratio"]
        if ratio is None or target is None or ratio >= target:
            continue
        worse = ", slower than diffusers" if ratio < 1 else ""
        lines.append(f"- {beside['what']}, {row['dtype']}: {ratio:.2f}× of {target:g}×{worse}")
    if not lines:
        return ""
    return "## What falls short of its target\n\n" + "\n".join(lines) + "\n"


def _parity(result: Result) -> str:
    rows = [
        [d["what"], d["dtype"], f"{d['difference']:.1e}", f"{d['tolerance']:.0e}", str(d["rounds"]),
         f"{d['matmul_gflops']:,.0f}",
         f"{d['compiled_ratio']:.2f}×" if "compiled_ratio" in d else ""]
        for d in result["details"] if d["difference"] is not None
    ]  # fmt: skip
    if not rows:
        return ""
    heads = (
        "workload", "dtype", "difference", "allowed", "rounds", "matmul, GFLOP/s",
        "ratio, theirs compiled",
    )  # fmt: skip
    intro = "Relative RMS difference of the results, found before anything is timed.\n\n"
    return "## Agreement\n\n" + intro + _table(heads, rows)


def _refused(result: Result) -> str:
    lines = [f"- {why}" for why in result["refused"]]
    lines += [f"- {what}: no time was left" for what in result["left"]]
    return "## Not timed\n\n" + "\n".join(lines) + "\n" if lines else ""


def _ceilings(result: Result) -> str:
    rows = [
        [c["name"], c["dtype"], "" if c["rate"] is None else f"{c['rate']:,.1f} {c['unit']}",
         c["why"] or ""]
        for c in result["ceilings"]
    ]  # fmt: skip
    return "## Ceilings\n\n" + _table(("what", "dtype", "rate", ""), rows) if rows else ""


def _seconds(median: float | None, quartiles: Sequence[float] | None) -> str:
    if median is None or quartiles is None:
        return ""
    return f"{median:.3g} [{quartiles[0]:.3g}, {quartiles[1]:.3g}]"


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:,.0f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
