"""How many threads are worth running: the physical cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def physical_cores(system: Path = Path("/sys"), process: Path = Path("/proc/self")) -> int:
    """Return the cores behind the CPUs that the process may run on, at most what its cgroup's quota pays for."""
    cpus = _allowed_cpus()
    cores = {_siblings(system, cpu) for cpu in cpus}
    quota = _quota(system, process)
    return max(1, min(len(cores), math.ceil(quota) if quota is not None else len(cores)))


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(system: Path, cpu: int) -> str:
    """Return a name of the CPU's core: its hardware threads have the same one."""
    topology = system / "devices" / "system" / "cpu" / f"cpu{cpu}" / "topology"
    for name in ("core_cpus_list", "thread_siblings_list"):
        try:
            return (topology / name).read_text().strip()
        except OSError:
            continue
    return str(cpu)


def _quota(system: Path, process: Path) -> float | None:
    """Return the smallest CPU quota, in cores, of the process's cgroups (version 2, then 1); None: unlimited."""
    quotas: list[float] = []
    for line in _lines(process / "cgroup"):
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        root = system / "fs" / "cgroup" / ("" if not controllers else "cpu")
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            quotas += _version2(group) if not controllers else _version1(group)
            if group == root:
                break
    return min(quotas, default=None)


def _version2(group: Path) -> list[float]:
    """Return the quota in `cpu.max`: "max 100000" or "<microseconds> <period>"."""
    words = (_lines(group / "cpu.max") or ["max"])[0].split()
    return [] if words[0] == "max" else [int(words[0]) / int(words[1])]


def _version1(group: Path) -> list[float]:
    quota, period = _lines(group / "cpu.cfs_quota_us"), _lines(group / "cpu.cfs_period_us")
    return [int(quota[0]) / int(period[0])] if quota and period and int(quota[0]) > 0 else []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
