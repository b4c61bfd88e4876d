"""Where things live on this machine, by each platform's own conventions.

Linux follows the XDG base directory specification (relative values are ignored, as it says);
macOS uses ~/Library; Windows uses %APPDATA% and %LOCALAPPDATA%. Nothing here creates a folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def config_dir(*, platform: str = sys.platform, environ: Mapping[str, str] | None = None) -> Path:
    """The folder of `config.toml`."""
    environ = os.environ if environ is None else environ
    if platform == "win32":
        return _windows("APPDATA", "Roaming", environ) / "sora"
    if platform == "darwin":
        return _home(environ) / "Library" / "Application Support" / "sora"
    return _xdg("XDG_CONFIG_HOME", ".config", environ) / "sora"


def cache_dir(*, platform: str = sys.platform, environ: Mapping[str, str] | None = None) -> Path:
    """The folder of what can be made again: prompt expansions and text embeddings."""
    environ = os.environ if environ is None else environ
    if platform == "win32":
        return _windows("LOCALAPPDATA", "Local", environ) / "sora" / "cache"
    if platform == "darwin":
        return _home(environ) / "Library" / "Caches" / "sora"
    return _xdg("XDG_CACHE_HOME", ".cache", environ) / "sora"


def state_dir(*, platform: str = sys.platform, environ: Mapping[str, str] | None = None) -> Path:
    """The folder of what should outlive a program but is not settings: the runs."""
    environ = os.environ if environ is None else environ
    if platform == "win32":
        return _windows("LOCALAPPDATA", "Local", environ) / "sora" / "state"
    if platform == "darwin":
        return _home(environ) / "Library" / "Application Support" / "sora"
    return _xdg("XDG_STATE_HOME", ".local/state", environ) / "sora"


def hub_cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The Hugging Face hub's cache, found as `huggingface_hub` finds it, without importing it."""
    environ = os.environ if environ is None else environ
    if explicit := environ.get("HF_HUB_CACHE"):
        return Path(explicit).expanduser()
    if home := environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache = environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else _home(environ) / ".cache") / "huggingface" / "hub"


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home())


def _xdg(variable: str, fallback: str, environ: Mapping[str, str]) -> Path:
    value = environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else _home(environ) / fallback


def _windows(variable: str, folder: str, environ: Mapping[str, str]) -> Path:
    value = environ.get(variable)
    return Path(value) if value else Path.home() / "AppData" / folder
