"""What a process may use: cores, not hardware threads, and no more of them, nor of memory, than its cgroup has."""

from __future__ import annotations

from pathlib import Path

import pytest

from outpace.ops import machine as limits


def machine(root: Path, siblings: dict[int, str], cgroup: str = "", files: dict[str, str] | None = None) -> int:
    """Return the cores found on a made-up machine: each CPU's siblings, /proc/self/cgroup, files under /sys."""
    system, process = root / "sys", root / "proc"
    for cpu, names in siblings.items():
        topology = system / f"devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(names + "\n")
    process.mkdir()
    (process / "cgroup").write_text(cgroup)
    for name, text in (files or {}).items():
        (system / name).parent.mkdir(parents=True, exist_ok=True)
        (system / name).write_text(text)
    return limits.physical_cores(system, process)


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    monkeypatch.setattr(limits, "_allowed_cpus", lambda: {0, 1, 2, 3})
    return {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}


def test_hardware_threads_of_one_core_count_once(tmp_path: Path, four_cpus: dict[int, str]) -> None:
    assert machine(tmp_path, four_cpus) == 2


def test_cpus_without_a_known_topology_count_each(tmp_path: Path, four_cpus: dict[int, str]) -> None:
    assert machine(tmp_path, {}) == 4


def test_only_cpus_that_the_process_may_use_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_allowed_cpus", lambda: {1})
    assert machine(tmp_path, {0: "0", 1: "1"}) == 1


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 4), ("150000 100000", 2), ("20000 100000", 1)])
def test_a_quota_of_a_cgroup_limits_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr("outpace.ops.machine._allowed_cpus", lambda: {0, 1, 2, 3})
    assert machine(tmp_path, {}, "0::/job/step\n", {"fs/cgroup/job/step/cpu.max": quota}) == cores


def test_the_quota_of_an_outer_cgroup_limits_them_too(tmp_path: Path, four_cpus: dict[int, str]) -> None:
    files = {"fs/cgroup/job/cpu.max": "100000 100000", "fs/cgroup/job/step/cpu.max": "max 100000"}
    assert machine(tmp_path, four_cpus, "0::/job/step\n", files) == 1


def test_a_quota_of_the_older_kind_of_cgroup_limits_them(tmp_path: Path, four_cpus: dict[int, str]) -> None:
    files = {"fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000\n", "fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n"}
    assert machine(tmp_path, four_cpus, "7:memory:/other\n4:cpu,cpuacct:/box\n", files) == 1


MEMORY = 64 << 30  # of the made-up machine


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("", {}, MEMORY),
        ("0::/job/step\n", {}, MEMORY),
        ("0::/job/step\n", {"fs/cgroup/job/step/memory.max": "max\n"}, MEMORY),
        ("0::/job/step\n", {"fs/cgroup/job/step/memory.max": f"{5 << 30}\n"}, 5 << 30),
        (
            "0::/job/step\n",
            {"fs/cgroup/job/memory.max": f"{3 << 30}\n", "fs/cgroup/job/step/memory.max": "max"},
            3 << 30,
        ),
        ("5:memory:/box\n4:cpu:/\n", {"fs/cgroup/memory/box/memory.limit_in_bytes": f"{2 << 30}\n"}, 2 << 30),
        ("5:memory:/box\n", {"fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, MEMORY),
        ("4:cpu:/box\n", {"fs/cgroup/cpu/box/memory.limit_in_bytes": "1\n"}, MEMORY),
    ],
)
def test_memory_is_what_machine_and_cgroup_both_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": MEMORY // 4096}.__getitem__)
    machine(tmp_path, {}, cgroup, files)
    assert limits.memory_bytes(tmp_path / "sys", tmp_path / "proc") == expected


def test_memory_that_is_free_is_what_the_system_and_each_cgroup_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda system, process: MEMORY)
    process, group = tmp_path / "proc" / "self", tmp_path / "sys" / "fs" / "cgroup" / "box"
    process.mkdir(parents=True)
    group.mkdir(parents=True)
    left = lambda: limits.available_bytes(tmp_path / "sys", process)  # noqa: E731
    assert left() == MEMORY
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   3000 kB\n")
    assert left() == 3000 * 1024
    (process / "cgroup").write_text("0::/box\n")
    (group / "memory.max").write_text("2000000\n")
    (group / "memory.current").write_text("1500000\n")
    (group / "memory.stat").write_text("anon 900000\nfile 600000\n")
    assert left() == 1_100_000
    (group / "memory.current").write_text("9000000\n")
    assert left() == 0
