"""Folders of runs that never came to anything."""

from __future__ import annotations

import os
import time
from pathlib import Path

from sora_cli.runs import folders


def test_what_was_killed_before_it_began_is_no_run(here: Path) -> None:
    """A folder without a byte in it is not shown, and is gone once it is surely nobody's."""
    young, old = (
        folders.runs_dir() / name for name in ("20260101-000000-aaaa", "20260101-000000-bbbb")
    )
    for folder in (young, old):
        folder.mkdir(parents=True)
        (folder / folders.LOCK).touch()
    past = time.time() - folders.BEGINNING - 1
    os.utime(old / folders.LOCK, (past, past))
    os.utime(old, (past, past))
    assert folders.stored() == []
    folders.expire()
    assert young.is_dir() and not old.exists()
