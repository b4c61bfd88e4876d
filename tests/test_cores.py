"""Threads where control groups ration time, as containers and batch systems do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sora_cli.runtime import cores


def groups(folder: Path, lines: str, files: dict[str, str]) -> tuple[Path, Path]:
    """`/proc/self/cgroup` and `/sys/fs/cgroup` as a machine would have them."""
    for name, text in files.items():
        path = folder / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "cgroup").write_text(lines)
    return folder / "cgroup", folder / "mount"


@pytest.mark.parametrize(
    ("lines", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        # The tightest of a group and its parents holds.
        ("0::/a/b\n", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1.0),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "150000 100000"}, 1.5),
        # Seen from inside, the path may be one that only the host has.
        ("0::/docker/1f2e\n", {"cpu.max": "300000 100000"}, 3.0),
        (
            "4:memory:/\n3:cpu,cpuacct:/job\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "200000\n",
             "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"},
            2.0,
        ),
        (
            "1:cpu:/\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        ("0::/\n", {"cpu.max": "100000 0\n"}, None),
        ("5:cpuset:/\nnot a line", {"cpuset/cpu.max": "100000 100000"}, None),
    ],
)  # fmt: skip
def test_the_quota_of_both_versions(
    lines: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert cores.cpu_quota(*groups(tmp_path, lines, files)) == quota


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cores.cpu_quota(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "threads"), [(None, None), (0.5, 1), (2.9, 2), (3.0, 3), (4.0, None), (64.0, None)]
)
def test_threads_are_whole_cores_and_fewer_than_there_are(
    quota: float | None, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert cores.thread_limit() == threads


@pytest.mark.parametrize(("asked", "threads"), [(None, "1"), ("7", "7")])
def test_what_the_user_asks_for_wins(asked: str | None, threads: str) -> None:
    """In a process of its own, as `sora` starts: the variable is read when torch is imported."""
    code = (
        "import os, sys\n"
        "from sora_cli.cli import main\n"
        "from sora_cli.runtime import cores\n"
        "cores.thread_limit = lambda: 1\n"
        "sys.argv = ['sora', '--version']\n"
        "try: main.run()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['OMP_NUM_THREADS'])\n"
    )
    env = {name: value for name, value in os.environ.items() if name != cores.VARIABLE}
    if asked is not None:
        env[cores.VARIABLE] = asked
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == threads
