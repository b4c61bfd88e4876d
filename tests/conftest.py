"""What every test may ask for."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

# Golden values depend on the order of additions, so on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# As `sora` sets it: threads that spin where they wait take ten times as long on busy cores.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

if importlib.util.find_spec("triton") is not None:
    # Whether its functions are interpreted is settled when Triton is first imported, which some
    # tests' libraries do by the way.
    os.environ["TRITON_INTERPRET"] = "1"
    import sora_cli.models.kernels  # noqa: F401

    del os.environ["TRITON_INTERPRET"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-golden", action="store_true", help="rewrite the golden files (make golden)"
    )


@pytest.fixture
def write_golden(request: pytest.FixtureRequest) -> bool:
    """True under `make golden`: write the golden file instead of comparing with it."""
    return bool(request.config.getoption("--write-golden"))


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's settings and caches out of the tests, and the tests out of them."""
    for variable, folder in (
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_STATE_HOME", "state"),
    ):
        monkeypatch.setenv(variable, str(tmp_path / "xdg" / folder))
    for variable in ("SORA_MODEL", "SORA_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "xdg"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
