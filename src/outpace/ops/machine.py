"""What this process may use of the machine: physical cores, threads, memory; the smaller of machine and cgroup."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from outpace.errors import integer

MAX_THREADS = 1024

T = TypeVar("T")


def check_threads(threads: int) -> int:
    """Return a number of threads that may be started; raises UsageError for any other."""
    return integer("threads", threads, 1, MAX_THREADS)


def memory_bytes(system: Path = Path("/sys"), process: Path = Path("/proc/self")) -> int:
    """Return the bytes of memory that the process may use at most."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *_over_cgroups(system, process, "memory", _memory_limit)])


def available_bytes(system: Path = Path("/sys"), process: Path = Path("/proc/self")) -> int:
    """Return the bytes of memory that the process can still take: of what it may use, those that nobody holds."""
    found = [memory_bytes(system, process), *_over_cgroups(system, process, "memory", _memory_left)]
    for line in _lines(process.parent / "meminfo"):
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            found.append(int(amount.split()[0]) * 1024)
    return max(0, min(found))


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
    """Return the smallest CPU quota, in cores, of the process's cgroups; None: unlimited."""
    return min(_over_cgroups(system, process, "cpu", _cpu_quota), default=None)


def _over_cgroups(system: Path, process: Path, controller: str, read: Callable[[Path, int], list[T]]) -> list[T]:
    """Return what `read` finds in the folders of the process's cgroups (of versions 2 and 1) and of those around."""
    found: list[T] = []
    for line in _lines(process / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = system / "fs" / "cgroup" / ("" if not controllers else controller)
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            found += read(group, 1 if controllers else 2)
            if group == root:
                break
    return found


def _cpu_quota(group: Path, version: int) -> list[float]:
    if version == 2:  # "max 100000", or "<microseconds> <period>"
        words = (_lines(group / "cpu.max") or ["max"])[0].split()
        return [] if words[0] == "max" else [int(words[0]) / int(words[1])]
    quota, period = _lines(group / "cpu.cfs_quota_us"), _lines(group / "cpu.cfs_period_us")
    return [int(quota[0]) / int(period[0])] if quota and period and int(quota[0]) > 0 else []


def _memory_limit(group: Path, version: int) -> list[int]:
    lines = _lines(group / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
    return [int(lines[0])] if lines and lines[0] != "max" else []


def _memory_left(group: Path, version: int) -> list[int]:
    """Return a limit less what is in use, without the file pages that the system takes back when it needs them."""
    limit = _memory_limit(group, version)
    used = _lines(group / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
    names = ("file",) if version == 2 else ("total_cache",)
    pages = [
        int(count) for name, _, count in (x.partition(" ") for x in _lines(group / "memory.stat")) if name in names
    ]
    return [limit[0] - int(used[0]) + sum(pages)] if limit and used else []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
