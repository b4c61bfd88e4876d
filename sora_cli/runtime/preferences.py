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
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_SWITCHES = ("sign", "label")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preferences:
    """The keys that `config.toml` may have. Every key is optional.

    sign, label: what making commands do without `--sign` and `--label`. sign_certificate, sign_key,
    trust: paths of PEM files.
    """

    model: str | None = None
    sign: bool | None = None
    label: bool | None = None
    sign_certificate: str | None = None
    sign_key: str | None = None
    trust: str | None = None


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
    # Besides its own errors: numbers of too many digits, arrays within arrays without end.
    except (ValueError, RecursionError) as error:
        said = (str(error).splitlines() or ["nested too deep"])[0]
        raise UsageError(f"{path} is not valid TOML: {said}", hint=f"mend {path}") from error
    return _checked(values, path)


def default_model(environ: Mapping[str, str] | None = None) -> str:
    """The model of a command without `--model`: SORA_MODEL, then `config.toml`, then tiny.

    Raises:
        UsageError: `config.toml` cannot be used (see `load_preferences`).
    """
    environ = os.environ if environ is None else environ
    return environ.get("SORA_MODEL") or load_preferences().model or EMBEDDED_MODEL


def preferred_path(name: str, environ: Mapping[str, str] | None = None) -> Path | None:
    """A path that no flag gave: SORA_<NAME>, then `config.toml`, then None.

    Raises:
        UsageError: `config.toml` cannot be used.
    """
    environ = os.environ if environ is None else environ
    said = environ.get(f"SORA_{name.upper()}") or getattr(load_preferences(), name)
    return Path(said).expanduser() if said else None


def preferred_switch(name: str, environ: Mapping[str, str] | None = None) -> bool:
    """A switch that no flag set: SORA_<NAME>, then `config.toml`, then off.

    Raises:
        UsageError: the variable is neither yes nor no, or `config.toml` cannot be used.
    """
    environ = os.environ if environ is None else environ
    variable = f"SORA_{name.upper()}"
    said = environ.get(variable, "").lower()
    if not said:
        return bool(getattr(load_preferences(), name))
    if said not in _YES + _NO:
        raise UsageError(f"{variable} must be 1 or 0, not {said!r:.40}", hint=f"{variable}=1")
    return said in _YES


def _checked(values: dict[str, object], path: Path) -> Preferences:
    known = [field.name for field in fields(Preferences)]
    for key, value in values.items():
        if key not in known:
            raise UsageError(
                f"unknown key {key!r} in {path}", hint=f"known keys: {', '.join(known)}"
            )
        example = "tiny" if key == "model" else f"{key}.pem"
        if key in _SWITCHES and not isinstance(value, bool):
            raise UsageError(
                f"{key} in {path} must be true or false, not {value!r}", hint=f"write {key} = true"
            )
        if key not in _SWITCHES and (not isinstance(value, str) or not value):
            raise UsageError(
                f"{key} in {path} must be a text, not {value!r}", hint=f'write {key} = "{example}"'
            )
    return Preferences(**values)  # type: ignore[arg-type]
