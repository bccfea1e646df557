"""The container's share of the machine, from files as the kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wan_train.base.host import available_ram, cpus, oom_kills, process_limit

ALL = float(len(os.sched_getaffinity(0)))


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert cpus(tmp_path) == ALL


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense", "100000", "-1 100000", "100000 0", "a b"])
def test_no_limit_of_version_2(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpus(tmp_path) == ALL


@pytest.mark.parametrize(("text", "share"), [("50000 100000\n", 0.5), ("100000 100000", 1.0), ("9990000 1000", ALL)])
def test_a_limit_of_version_2(tmp_path: Path, text: str, share: float) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpus(tmp_path) == min(ALL, share)


@pytest.mark.parametrize(("quota", "share"), [("50000", 0.5), ("-1", ALL), ("0", ALL), ("x", ALL)])
def test_a_limit_of_version_1(tmp_path: Path, quota: str, share: float) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpus(tmp_path) == share


def test_the_tightest_cpu_limit_above_counts(tmp_path: Path) -> None:
    own = tmp_path / "user.slice" / "session.scope"
    own.mkdir(parents=True)
    (own / "cpu.max").write_text("max 100000\n")
    (own.parent / "cpu.max").write_text("30000 100000\n")
    assert cpus(tmp_path, member_of(tmp_path, "0::/user.slice/session.scope")) == 0.3


def test_a_cpu_limit_of_our_own_group_of_version_1(tmp_path: Path) -> None:
    own = tmp_path / "cpu" / "docker" / "abc"
    own.mkdir(parents=True)
    (own / "cpu.cfs_quota_us").write_text("40000\n")
    (own / "cpu.cfs_period_us").write_text("100000\n")
    assert cpus(tmp_path, member_of(tmp_path, "3:cpu,cpuacct:/docker/abc")) == 0.4


def test_the_least_room_for_processes_above_counts(tmp_path: Path) -> None:
    own = tmp_path / "user.slice" / "session.scope"
    own.mkdir(parents=True)
    for group, most, now in ((own, "900", "10"), (own.parent, "500", "480"), (tmp_path, "max", "1")):
        (group / "pids.max").write_text(f"{most}\n")
        (group / "pids.current").write_text(f"{now}\n")
    assert process_limit(tmp_path, member_of(tmp_path, "0::/user.slice/session.scope")) == (500, 480)


MIB = 1024**2
UNLIMITED_V1 = 9223372036854771712
"""What version 1 shows where no limit was set."""


def member_of(tmp_path: Path, line: str) -> Path:
    membership = tmp_path / "membership"
    membership.write_text(f"9:name=systemd:/\n{line}\n")
    return membership


def write_v1(group: Path, *, limit: int, used: int = 0, cached: int = 0, killed: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (group / "memory.usage_in_bytes").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"cache 1\ntotal_inactive_file {cached}\ntotal_active_file 0\n")
    (group / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {killed}\n")


def write_v2(group: Path, *, limit: str, used: int = 0, cached: int = 0, killed: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 1\nfile 77\ninactive_file {cached}\nactive_file 0\n")
    (group / "memory.events").write_text(f"low 0\nhigh 0\nmax 9\noom 3\noom_kill {killed}\noom_group_kill 0\n")


def test_ram_of_a_container_of_version_1(tmp_path: Path) -> None:
    membership = member_of(tmp_path, "4:memory:/")
    write_v1(tmp_path / "memory", limit=64 * MIB, used=50 * MIB, cached=20 * MIB)
    assert available_ram(tmp_path, membership) == 34 * MIB


def test_ram_of_a_container_of_version_2(tmp_path: Path) -> None:
    write_v2(tmp_path, limit=str(64 * MIB), used=50 * MIB, cached=20 * MIB)
    assert available_ram(tmp_path, member_of(tmp_path, "0::/")) == 34 * MIB


def test_without_a_limit_the_whole_machine_counts(tmp_path: Path) -> None:
    write_v1(tmp_path / "memory", limit=UNLIMITED_V1, used=5)
    write_v2(tmp_path, limit="max", used=5)
    assert available_ram(tmp_path, member_of(tmp_path, "4:memory:/")) > 64 * MIB


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    membership = member_of(tmp_path, "0::/user.slice/session.scope")
    write_v2(tmp_path / "user.slice", limit=str(10 * MIB), used=MIB)
    write_v2(tmp_path / "user.slice" / "session.scope", limit="max", used=MIB)
    assert available_ram(tmp_path, membership) == 9 * MIB


def test_a_container_that_is_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    write_v1(tmp_path / "memory", limit=10 * MIB, used=12 * MIB)
    assert available_ram(tmp_path, member_of(tmp_path, "4:memory:/")) == 0


def test_kills_are_counted_where_we_are(tmp_path: Path) -> None:
    membership = member_of(tmp_path, "4:memory:/jobs/mine")
    write_v1(tmp_path / "memory", limit=UNLIMITED_V1, killed=7)
    write_v1(tmp_path / "memory" / "jobs" / "mine", limit=UNLIMITED_V1, killed=2)
    assert oom_kills(tmp_path, membership) == 2


@pytest.mark.parametrize("path", ["/docker/0123abc", "/../.."])
def test_a_container_that_is_told_the_path_of_its_host(tmp_path: Path, path: str) -> None:
    write_v1(tmp_path / "memory", limit=64 * MIB, killed=7)
    membership = member_of(tmp_path, f"4:memory:{path}")
    assert oom_kills(tmp_path, membership) == 7
    assert available_ram(tmp_path, membership) == 64 * MIB
