"""What a result says of itself: the recipe in every file, and the forecast of a dry run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sora_cli.jobs.job import Clock, Work
    from sora_cli.pipeline.request import Settings
    from sora_cli.pipeline.seams import Journal

SCHEMA = 1


def recipe(work: Work, seed: int) -> dict[str, Any]:
    """The recipe of one output, as docs/reference/recipe.schema.json describes it."""
    from importlib.metadata import version

    import torch

    from sora_cli.weights.store import identity

    verb, settings = work.verb, work.settings
    written = [e for e in work.expansions.values() if e.source != "none"]
    return {
        **_numbers(work.settings, seed),
        "size": list(size_of(work)),
        "fps": fps_of(work),
        "expanded_prompt": " ".join(e.expanded_prompt for e in written) if written else None,
        "loras": [str(replace(lora, path=Path(lora.path.name))) for lora in work.loras],
        "device": work.device.device_name,
        "dtype": work.device.dtype_name,
        "device_reason": work.device.reason,
        "memory_plan": work.memory.name,
        "quantization": "fp8" if work.memory.storage == "fp8" else None,
        "canvas": {"size": [settings.width, settings.height], "fps": settings.fps},
        "weights": identity(work.installed),
        "version": version("sora-cli"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **verb.extra,
    }


def facts(work: Work) -> dict[str, Any]:
    """What the bits of a result depend on besides what was asked for."""
    from importlib.metadata import version

    import torch

    from sora_cli.weights.store import identity

    return {
        "version": version("sora-cli"),
        "weights": identity(work.installed),
        "torch": torch.__version__,
        "device": work.device.device_name,
        "dtype": work.device.dtype_name,
        "threads": torch.get_num_threads(),
        "memory_plan": work.memory.name,
    }


def measured(clock: Clock) -> dict[str, Any]:
    """Seconds by phase, and the most memory, so far."""
    from sora_cli.runtime.memory import peak_memory

    return {"timings": clock.timings(), "peak_memory": peak_memory()}


def _numbers(settings: Settings, seed: int) -> dict[str, Any]:
    onward = settings.guidance_scale_onward
    noised = settings.given_sigma_onward
    return {
        "schema": SCHEMA,
        "seed": seed,
        "model": settings.model,
        "size": [settings.width, settings.height],
        "num_frames": settings.num_frames,
        "fps": settings.fps,
        "duration": settings.duration,
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "guidance_scale_2": settings.guidance_scale_2,
        **({} if onward is None else {"guidance_scale_onward": onward}),
        **({"given_sigma_onward": noised} if noised else {}),
        "shift": settings.shift,
        "sampler": settings.sampler,
        "sigma_grid": settings.sigma_grid,
        **_shortcuts(settings),
    }


def _shortcuts(settings: Settings) -> dict[str, Any]:
    """Those that were taken; nothing where everything was computed in full."""
    said = {
        "guidance_interval": list(settings.guidance_interval),
        "step_cache": settings.step_cache,
        "fp8_matmul": settings.fp8_matmul,
        "compiled": settings.compile or None,
    }
    return {name: value for name, value in said.items() if value not in (None, [0.0, 1.0])}


def skipped(work: Work, clock: Clock) -> dict[str, Any]:
    """Steps of all canvases so far that step caching did not compute."""
    return {} if work.settings.step_cache is None else {"skipped_steps": clock.skipped}


def forecast(work: Work) -> dict[str, Any]:
    """What a dry run says: the settings, and what they cost."""
    from sora_cli.jobs.planning import job_shape
    from sora_cli.runtime import costs
    from sora_cli.weights import store

    settings, installed, memory = work.settings, work.installed, work.memory
    shapes = store.network_shapes(installed)
    job = job_shape(settings, installed.spec, work.device)
    return {
        **_numbers(settings, settings.seed),
        "size": list(size_of(work)),
        "fps": fps_of(work),
        "device": work.device.device_name,
        "dtype": work.device.dtype_name,
        "tokens": job.tokens(shapes),
        "denoising_flops": costs.work(shapes, job).denoise,
        "weights_bytes": store.size_on_disk(installed),
        "memory_plan": memory.name,
        "memory_bytes": memory.peak_bytes,
        "memory_by_phase": dict(memory.phase_bytes),
        "seconds": None if memory.seconds is None else round(memory.seconds, 1),
    }


def joins(journal: Journal) -> dict[str, Any]:
    """Where parts of the video meet, for its recipe; nothing for a video of one piece."""
    if not journal.seams:
        return {}
    return {"seams": [seam.to_json() for seam in journal.seams], "drift": journal.drift}


def size_of(work: Work) -> tuple[int, int]:
    """(width, height) of the file."""
    output, settings = work.verb.output, work.settings
    return (output.width, output.height) if output else (settings.width, settings.height)


def fps_of(work: Work) -> float:
    """Frames a second of the file."""
    return work.verb.output.fps if work.verb.output else work.settings.fps
