"""The container's share of the machine, from files as the kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wan_train.run.machine import cpus

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
