"""How cost grows with duration, size and steps: `python -m sora_cli.bench.growth`.

The embedded model makes videos of growing duration (joined from chunks), size and number of steps,
and its decoder decodes ever more latents as a stream; each point is a process of its own, so that
memory is known to be its own. What grows evenly shows *marginal* costs (of one more frame, of one
more step) that stay the same from one point to the next.

Seconds are the process's own (user and system), which other work on the machine disturbs least,
starting up included; the wall clock stands beside them. `--folder docs` writes the page, its
figures and its picture; an axis that was not measured keeps the figures that are there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

PROMPT = "a red ball bounces on the snow at sunset"
SMALL = "96x64"  # 6 × 4 latents a frame: what is fixed costs little
FRAMES = 25  # what tiny makes at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One thing that grows, the rest being fixed.

    unit: of its values, as the axis of the plot says. values: ascending. fixed: words for people.
    """

    unit: str
    values: tuple[int, ...]
    fixed: str


AXES: Mapping[str, Axis] = {
    "duration": Axis(
        unit="frames", values=(25, 97, 193, 385), fixed=f"{SMALL}, 2 steps, whole command"
    ),
    "decode": Axis(
        unit="frames", values=(25, 97, 193, 385), fixed=f"{SMALL}, decoder alone, streamed"
    ),
    "size": Axis(
        unit="pixels", values=(64 * 64, 96 * 96, 128 * 128, 192 * 192),
        fixed=f"square, {FRAMES} frames, 2 steps, whole command",
    ),
    "steps": Axis(
        unit="steps", values=(2, 8, 16, 32), fixed=f"{SMALL}, {FRAMES} frames, whole command"
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """What one value of an axis cost: seconds of the processor and of the clock, peak bytes.

    late_to_early: of the decoder, the seconds a frame in the last quarter over the first.
    """

    value: int
    cpu_s: float
    wall_s: float
    peak_bytes: int
    late_to_early: float | None = None


def words_of(axis: str, value: int) -> list[str]:
    """The command line of a point of the axes that take a whole command."""
    size, frames, steps = SMALL, FRAMES, 2
    if axis == "duration":
        frames = value
    elif axis == "size":
        side = round(value**0.5)
        size = f"{side}x{side}"
    else:
        steps = value
    made = ["generate", PROMPT, "--model", "tiny", "--seed", "1", "--no-expand", "--quiet"]
    made += ["--size", size, "--num-frames", str(frames), "--steps", str(steps)]
    return [*made, "-o", "growth.mp4", "--force", "--json"]


def measure(axis: str, value: int, folder: Path) -> Point:
    """One point, in a process of its own.

    Raises:
        RuntimeError: the process failed.
    """
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}
    words = ["sora_cli.bench.growth", "--decode", str(value)]
    if axis != "decode":
        words = ["sora_cli", *words_of(axis, value)]
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env={**os.environ, **own},
        capture_output=True, text=True,
    )  # fmt: skip
    wall, after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise RuntimeError(f"{axis} {value}: {done.stderr.strip()}")
    told = json.loads(done.stdout)
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return Point(
        value=value, cpu_s=told.get("cpu_s", cpu), wall_s=told.get("wall_s", wall),
        peak_bytes=told["peak_memory"], late_to_early=told.get("late_to_early"),
    )  # fmt: skip


def decode(frames: int) -> dict[str, float | int | None]:
    """Decode random latents of so many frames as a stream, in this process."""
    import torch

    from sora_cli.runtime.memory import peak_memory
    from sora_cli.weights import load, store

    scale_t, tall, wide = store.locate("tiny").spec.vae_scale_factors
    width, height = (int(side) for side in SMALL.split("x"))
    with load.vae(store.locate("tiny").parts["vae"], device="cpu", dtype=torch.float32) as vae:
        shape = (1, vae.config.z_dim, (frames - 1) // scale_t + 1, height // tall, width // wide)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        at_once = vae.config.decoded_at_once(*latents.shape[3:])
        for _ in vae.decode_stream(latents[:, :, :3]):
            pass  # warmed
        marks, wall = [time.process_time()], time.perf_counter()
        count = 0
        for chunk in vae.decode_stream(latents):
            count += chunk.shape[2]
            marks.append(time.process_time())
    assert count == frames, f"{frames} is no length of tiny's"
    # Several latent frames are decoded in one call, whose first chunk has all of its seconds.
    calls = marks[::at_once]
    each = [after - before for before, after in zip(calls, calls[1:], strict=False)]
    part = max(1, len(each) // 4)
    return {
        "cpu_s": marks[-1] - marks[0],
        "wall_s": time.perf_counter() - wall,
        "peak_memory": peak_memory(),
        "late_to_early": median(each[-part:]) / median(each[:part]) if len(each) > 1 else None,
    }


def grow(minutes: float, axes: Sequence[str]) -> dict[str, list[Point]]:
    """Every axis as far up as the time allows, the least value of each first."""
    until = time.monotonic() + minutes * 60
    found: dict[str, list[Point]] = {name: [] for name in axes}
    with tempfile.TemporaryDirectory() as folder:
        if any(name != "decode" for name in axes):
            measure("steps", 2, Path(folder))  # fills the page cache, and what is remembered
        for index in range(max(len(AXES[name].values) for name in axes)):
            for name in axes:
                axis, points = AXES[name], found[name]
                if index >= len(axis.values) or len(points) < index:
                    continue
                value = axis.values[index]
                wanted = 1.5 * points[-1].wall_s * value / points[-1].value if points else 0.0
                # Two points of each there are always: of one nothing can be said.
                if index < 2 or time.monotonic() + wanted < until:
                    points.append(measure(name, value, Path(folder)))
    return found


def marginal(points: Sequence[Point]) -> list[float]:
    """Seconds for one more unit between each point and the next."""
    pairs = zip(points, points[1:], strict=False)
    return [(after.cpu_s - before.cpu_s) / (after.value - before.value) for before, after in pairs]


def report(found: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """The figures as JSON holds them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": _processor(), "cores": cores},
        "axes": {
            name: {
                "unit": AXES[name].unit,
                "fixed": AXES[name].fixed,
                "points": [asdict(point) for point in points],
                "marginal_s": marginal(points),
                "memory_ratio": points[-1].peak_bytes / points[0].peak_bytes,
            }
            for name, points in found.items()
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def page(figures: Mapping[str, Any], command: str) -> Iterator[str]:
    """The lines of the page about them."""
    yield "# How cost grows\n"
    machine = figures["machine"]
    yield f"Written by `{command}`, {figures['date']}, {machine['processor']},"
    yield f"{machine['cores']} core(s), one process a point, seed 1; the figures are in"
    yield "[growth.json](growth.json). Seconds are the process's own on the processor, starting up"
    yield "included; *one more* is what the last frame, pixel or step cost in milliseconds, between"
    yield "a point and the one before: it stays the same where cost grows evenly.\n"
    yield "![seconds and memory against duration, size and steps](../pictures/growth.png)"
    for name, axis in figures["axes"].items():
        yield f"\n## {name.capitalize()}\n\n{axis['fixed']}\n"
        yield f"| {axis['unit']} | seconds | one more, ms | wall clock, s | peak memory, MB |"
        yield "|---|---|---|---|---|"
        more = ["", *(f"{1000 * seconds:.3g}" for seconds in axis["marginal_s"])]
        for point, one in zip(axis["points"], more, strict=True):
            cost = f"{point['cpu_s']:.2f} | {one} | {point['wall_s']:.1f}"
            yield f"| {point['value']} | {cost} | {point['peak_bytes'] / 1e6:.0f} |"
        yield f"\nMemory at the last point: {axis['memory_ratio']:.2f} × that at the first."
        late = axis["points"][-1]["late_to_early"]
        if late is not None:
            yield f"A frame of the last quarter of the longest takes {late:.2f} × one of the first."


def main(argv: list[str] | None = None) -> None:
    """Command line; prints the figures as JSON, and writes the page where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m sora_cli.bench.growth", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="what does not fit is left out")
    parser.add_argument("--axis", choices=list(AXES), action="append", help="only these")
    parser.add_argument("--folder", type=Path, default=None, help="docs: write the page there")
    parser.add_argument("--decode", type=int, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.decode is not None:
        print(json.dumps(decode(arguments.decode)))  # noqa: T201
        return
    figures = report(grow(arguments.minutes, arguments.axis or list(AXES)))
    if arguments.folder is not None:
        command = "python -m sora_cli.bench.growth --folder docs"
        write(figures, arguments.folder, command)
    print(json.dumps(figures, indent=2))  # noqa: T201


def write(figures: Mapping[str, Any], folder: Path, command: str) -> None:
    """The page, its figures and its picture into a folder of documentation."""
    from sora_cli.bench.plots import draw

    for name in ("reference", "pictures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    file = folder / "reference" / "growth.json"
    before = json.loads(file.read_text(encoding="utf-8"))["axes"] if file.exists() else {}
    axes = {**before, **figures["axes"]}
    figures = {**figures, "axes": {name: axes[name] for name in AXES if name in axes}}
    file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    lines = "\n".join(page(figures, command)) + "\n"
    (folder / "reference" / "growth.md").write_text(lines, encoding="utf-8")
    draw(figures["axes"], folder / "pictures" / "growth.png")


if __name__ == "__main__":
    main()
