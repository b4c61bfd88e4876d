"""The order in which things reach the disk: after a power cut at any moment nothing is lost.

A journal of what is synced, renamed and removed stands beside a whole run. What a cut at that
moment leaves for good is the worst of what a file system may keep: of a file, the bytes that were
synced; of a folder, the names at its last sync, less all that were removed since.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sora_cli.cli.main import main
from sora_cli.pipeline.sampler import SamplerState
from sora_cli.runs import checkpoints
from sora_cli.runtime import disk
from tests.tiny_runs import PROMPT

WORDS = ("generate", PROMPT, "--size", "64x64", "--num-frames", "5", "--no-expand", "--seed", "1")


class Journal:
    """What would be there for good. Watches the calls of `os` that say so."""

    def __init__(self, root: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.output = root.resolve(), output.resolve()
        self.bytes: dict[int, bytes] = {}  # by inode: what was synced of a file
        self.names: dict[Path, dict[str, int]] = {}  # by folder: names that are there for good
        self.events: list[str] = []
        for name, watch in (
            ("fsync", self.synced), ("replace", self.renamed), ("link", self.linked),
            ("unlink", self.removed), ("remove", self.removed),
        ):  # fmt: skip
            self._watch(monkeypatch, name, watch)

    def _watch(self, patch: pytest.MonkeyPatch, name: str, watch: Callable[..., None]) -> None:
        real = getattr(os, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            watch(*arguments, **named)
            return real(*arguments, **named)

        patch.setattr(os, name, watched)

    def synced(self, descriptor: int) -> None:
        path, facts = Path(os.readlink(f"/proc/self/fd/{descriptor}")), os.fstat(descriptor)
        if path.is_dir():
            entries = {entry.name: entry.inode() for entry in os.scandir(path)}
            self.names[path] = entries
            self.events.append(f"names of {path.name}")
        else:
            self.bytes[facts.st_ino] = path.read_bytes()

    def renamed(self, source: Any, target: Any) -> None:
        """A name may reach the disk at any time from now on: what it stands for has to be there."""
        path = Path(target).resolve()
        if path.is_relative_to(self.root) and lasting(path):
            content, inode = Path(source).read_bytes(), os.stat(source).st_ino
            assert self.bytes.get(inode) == content, f"{path.name} is renamed before it is synced"
            self.events.append(f"{path.name} in place")

    linked = renamed

    def removed(self, path: Any, **named: Any) -> None:
        """A removal may reach the disk at once: what stands in for it has to be there for good."""
        if named.get("dir_fd") is not None:
            return  # rmtree, of a run that is removed: its recipe went first
        path = Path(path).resolve()
        if not path.exists() or not path.is_relative_to(self.root):
            return
        if path.name == "recipe.json" and path.parent.parent.name == "runs":
            assert self.holds(self.output), "the run goes before its output is there for good"
            self.events.append("run removed")
        elif path.name.startswith("latents-"):
            other = [p for p in self.states(path) if self.holds(p)]
            assert other, f"{path.name} goes before another state is there for good"
            self.events.append("state removed")

    def states(self, path: Path) -> list[Path]:
        """The other states of a run."""
        folder = path.parent
        found = [*folder.glob("latents-*"), *(folder / checkpoints.CHUNKS).glob("*")]
        return [other for other in found if other != path and checkpoints.load(other) is not None]

    def holds(self, path: Path) -> bool:
        """Whether a file is there for good, its name and its bytes."""
        inode = self.names.get(path.parent, {}).get(path.name)
        return inode == path.stat().st_ino and self.bytes.get(inode) == path.read_bytes()


def lasting(path: Path) -> bool:
    """Whether something is lost if this file is not whole: states, the call, outputs."""
    kept = path.name == "recipe.json" or "latents-" in path.name or path.parent.name == "chunks"
    return kept or path.suffix in (".mkv", ".png")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state is kept, as of a slow model."""
    monkeypatch.setattr("sora_cli.runs.run.KEEP_SECONDS", 0)
    monkeypatch.setattr("sora_cli.runs.run.KEEP_SHARE", 1e9)


def test_nothing_goes_before_what_replaces_it_is_there_for_good(
    here: Path, tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synced before it is renamed; its name synced before what is older goes."""
    journal = Journal(tmp_path, here / "a.mkv", monkeypatch)
    words = [*WORDS, "--steps", "4", "--sampler", "unipc", "-o", "a.mkv"]
    assert main([*words, "--progress", "none"]) == 0
    assert journal.events.count("state removed") >= 2
    assert journal.events.count("run removed") == 1 and "recipe.json in place" in journal.events
    assert journal.events[-1] == "run removed"


def test_a_folder_of_pictures_is_there_for_good_before_its_run_goes(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, here / "frames" / "000005.png", monkeypatch)
    rename = os.replace

    def moved(source: Any, target: Any) -> None:
        """A folder takes along what was synced of it."""
        if Path(source).is_dir():
            journal.names[Path(target).resolve()] = journal.names.get(Path(source).resolve(), {})
        rename(source, target)

    monkeypatch.setattr(os, "replace", moved)
    assert main([*WORDS, "--steps", "1", "-o", "frames/", "--progress", "none"]) == 0
    assert journal.events[-1] == "run removed" and "names of here" in journal.events


def test_the_journal_sees_what_is_forgotten(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test itself: without one of the two kinds of sync it fails."""
    state = SamplerState(
        latents=torch.ones(1, 4, 1, 2, 2), step=1, corrected=None, denoised=(), seed=1
    )
    Journal(tmp_path, here / "a.mkv", monkeypatch)
    first, second, third = (here / f"latents-1-0-000{n}.safetensors" for n in (1, 2, 3))
    with pytest.raises(AssertionError, match="is renamed before it is synced"):
        disk.write_whole(first, b"1", lasting=False)
    checkpoints.save(first, state)
    checkpoints.save(second, state)
    first.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync_folder", lambda folder: None)
        checkpoints.save(third, state)
        with pytest.raises(AssertionError, match="before another state is there for good"):
            second.unlink()
