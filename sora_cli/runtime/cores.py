"""How many threads a process does well to use, asked before torch is imported.

libgomp makes a thread for every core that the scheduler may use, but knows nothing of the control
groups by which containers and batch systems ration time. Two cores' worth of time on a machine of
64 is then spent by 64 threads in a thirtieth of every period, and all of them stand still for the
rest of it.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "OMP_NUM_THREADS"
GROUPS = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def thread_limit() -> int | None:
    """Threads that the control groups have time for, where that is fewer than there are cores.

    Whole cores only: threads wait for each other, so that one without a core of its own holds up
    the rest.
    """
    quota = cpu_quota()
    if quota is None:
        return None
    sees = getattr(os, "sched_getaffinity", None)
    cores = len(sees(0)) if sees else os.cpu_count() or 1
    threads = max(1, int(quota))
    return threads if threads < cores else None


def cpu_quota(groups: Path = GROUPS, mount: Path = MOUNT) -> float | None:
    """Cores' worth of time that this process may use, the least of its groups and their parents.

    None without a limit, and where there are no control groups.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    found: list[float] = []
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number != "0" and "cpu" not in names.split(","):
            continue  # version 1 has a hierarchy for each resource, version 2 one for all
        root = mount if number == "0" else mount / names
        # In a container the path may be the host's: then the mount itself is the group.
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            found += _quota(folder, unified=number == "0")
            if folder == root:
                break
    return min(found, default=None)


def _quota(folder: Path, *, unified: bool) -> list[float]:
    """The limit of one group, or nothing."""
    try:
        if unified:
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii")
                for name in ("quota", "period")
            )
        cores = int(quota) / int(period)  # "max", and -1 in version 1, are no limit
    except (OSError, ValueError, ZeroDivisionError):
        return []
    return [cores] if cores > 0 else []
