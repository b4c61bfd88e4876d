"""Folders of runs that never came to anything, or of which only pieces are left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sora_cli.cli.main import main
from sora_cli.runs import folders

PIECES = {
    "before a byte": [folders.LOCK],
    "before its recipe": [folders.LOCK, folders.STATUS, f".{folders.RECIPE}.part"],
    "in the middle of its removal": [folders.LOCK, "latents-0-0002.safetensors"],
}


@pytest.mark.parametrize("away", [folders.expire, lambda: main(["runs", "clean"])])
@pytest.mark.parametrize("names", PIECES.values(), ids=PIECES.keys())
def test_what_was_killed_before_it_began_is_no_run(
    here: Path, names: list[str], away: Callable[[], object]
) -> None:
    """Without a recipe nothing can be made: not shown, and gone once it is surely nobody's."""
    young, old = (
        folders.runs_dir() / name for name in ("20260101-000000-aaaa", "20260101-000000-bbbb")
    )
    past = time.time() - folders.BEGINNING - 1
    for folder in (young, old):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("{}" if name == folders.STATUS else "")
            if folder is old:
                os.utime(folder / name, (past, past))
    os.utime(old, (past, past))
    assert folders.stored() == []
    away()
    assert young.is_dir() and not old.exists()


def test_a_run_whose_recipe_is_damaged_is_shown(here: Path) -> None:
    """It cannot be resumed, but what it holds is for its owner to remove."""
    folder = folders.runs_dir() / "20260101-000000-cccc"
    folder.mkdir(parents=True)
    (folder / folders.RECIPE).write_text('{"schema": 1, "ver')
    os.utime(folder / folders.RECIPE, (time.time() - 3600,) * 2)
    folders.expire()
    assert [(run.id, run.state) for run in folders.stored()] == [(folder.name, "unreadable")]
