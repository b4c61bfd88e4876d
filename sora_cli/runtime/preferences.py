"""What the user set once for every command: `config.toml` and the environment.

The order, first found wins: the flag on the command line, the environment variable, `config.toml`
in `paths.config_dir()`, the built-in value.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from sora_cli.errors import UsageError
from sora_cli.runtime.paths import config_dir

EMBEDDED_MODEL = "tiny"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preferences:
    """The keys that `config.toml` may have. Every key is optional."""

    model: str | None = None


def load_preferences(path: Path | None = None) -> Preferences:
    """Read `config.toml`; an absent file means no preferences.

    Raises:
        UsageError: the file is not TOML, has an unknown key, or a value of the wrong type.
    """
    path = config_dir() / "config.toml" if path is None else path
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return Preferences()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint=f"mend or remove {path}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}", hint=f"mend {path}") from error
    return _checked(values, path)


def default_model(environ: Mapping[str, str] | None = None) -> str:
    """The model of a command without `--model`: SORA_MODEL, then `config.toml`, then tiny.

    Raises:
        UsageError: `config.toml` cannot be used (see `load_preferences`).
    """
    environ = os.environ if environ is None else environ
    return environ.get("SORA_MODEL") or load_preferences().model or EMBEDDED_MODEL


def _checked(values: dict[str, object], path: Path) -> Preferences:
    known = [field.name for field in fields(Preferences)]
    for key, value in values.items():
        if key not in known:
            raise UsageError(
                f"unknown key {key!r} in {path}", hint=f"known keys: {', '.join(known)}"
            )
        if not isinstance(value, str) or not value:
            raise UsageError(
                f"{key} in {path} must be a text, not {value!r}", hint=f'write {key} = "tiny"'
            )
    model = values.get("model")
    return Preferences(model=model if isinstance(model, str) else None)
