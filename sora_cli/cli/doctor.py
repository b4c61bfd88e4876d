"""What `sora doctor` finds: facts a person can check, and the problems among them."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from sora_cli.errors import OutputError
from sora_cli.media.ffmpeg import executable
from sora_cli.runtime import memory, paths
from sora_cli.runtime.device import choose_device, device_memory
from sora_cli.runtime.preferences import default_model
from sora_cli.weights import store

_PACKAGES = ("sora-cli", "torch", "transformers", "tokenizers", "numpy", "pillow", "typer")


def examine(device: str | None = None, dtype: str | None = None) -> dict[str, Any]:
    """Look at the machine. Memory and disk are in bytes, None where the platform does not say.

    Raises:
        DeviceError, UsageError: the device or dtype asked for cannot be had.
    """
    plan = choose_device(device, dtype)
    video_memory = device_memory(plan.device)
    ffmpeg = _ffmpeg()
    problems = [] if ffmpeg["path"] else ["no ffmpeg: pip install --force-reinstall imageio-ffmpeg"]
    installed = list(store.installed_names())
    if "tiny" not in installed:
        problems.append("the embedded model is missing: pip install --force-reinstall sora-cli")
    return {
        "device": plan.device_name,
        "dtype": plan.dtype_name,
        "reason": plan.reason,
        "memory": {
            "total": memory.total_memory(),
            "available": memory.available_memory(),
            "device_total": video_memory[1] if video_memory else None,
            "device_free": video_memory[0] if video_memory else None,
        },
        "disk": {
            "free_here": _free(Path.cwd()),
            "free_in_cache": _free(paths.cache_dir()),
            "free_in_hub_cache": _free(paths.hub_cache_dir()),
        },
        "ffmpeg": ffmpeg,
        "folders": {
            "config": str(paths.config_dir()),
            "cache": str(paths.cache_dir()),
            "state": str(paths.state_dir()),
            "hub_cache": str(paths.hub_cache_dir()),
        },
        "versions": _versions(),
        "models": installed,
        "default_model": default_model(),
        "problems": problems,
    }


def readable(report: dict[str, Any]) -> dict[str, Any]:
    """The report with its sizes as a person reads them."""
    sized = {
        group: {
            name: None if count is None else f"{count / 2**30:.1f} GiB"
            for name, count in report[group].items()
        }
        for group in ("memory", "disk")
    }
    return {**report, **sized}


def _ffmpeg() -> dict[str, str | None]:
    try:
        path = executable()
        first = subprocess.run([path, "-version"], capture_output=True, text=True, check=True)
    except (OutputError, OSError, subprocess.CalledProcessError):
        return {"path": None, "version": None}
    # "ffmpeg version 7.0.2-static https://…"
    words = first.stdout.split()
    return {"path": path, "version": words[2] if len(words) > 2 else None}


def _versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {**found, "platform": platform.platform()}


def _free(folder: Path) -> int | None:
    """Free bytes where this folder is, or would be."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return None if existing is None else shutil.disk_usage(existing).free
