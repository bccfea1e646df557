"""Who may change a cache folder, and who keeps others from it by training from it."""

from __future__ import annotations

import os
from pathlib import Path

from wan_train.base.clock import SystemClock
from wan_train.caching.locks import CacheLocks
from wan_train.gpu.leases import LeaseRoom


def locks(root: Path, run_id: str, *folders: str) -> CacheLocks:
    return CacheLocks(LeaseRoom(root / "leases"), run_id, SystemClock(), [root / folder for folder in folders])


def test_one_writes_at_a_time_whatever_the_folder_is_called(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    one, other = locks(tmp_path, "one", "cache"), locks(tmp_path, "other", "more", "link")
    assert one.write("step")
    assert one.write("another step")
    assert not other.write("step")
    one.done_writing()
    assert other.write("step")
    assert not one.write("step")


def test_readers_are_known_to_others_and_not_to_themselves(tmp_path: Path) -> None:
    one, other = locks(tmp_path, "one-ü", "cache"), locks(tmp_path, "other", "cache", "more")
    assert one.write("step")
    one.read("step")
    one.done_writing()
    assert one.is_reading
    assert one.other_readers() == ()
    assert other.other_readers() == ("one-ü",)
    assert other.write("step")
    other.read("step")
    assert one.other_readers() == ("other",)
    one.done_reading()
    assert other.other_readers() == ()


def test_a_run_that_is_over_leaves_no_reading_lock_behind(tmp_path: Path) -> None:
    one = locks(tmp_path, "one", "cache")
    assert one.write("step")
    one.read("step")
    one.close(is_over=True)
    assert not list((tmp_path / "leases").glob("caches-read*"))


def test_trainers_that_outlive_their_supervisor_keep_it(tmp_path: Path) -> None:
    one, other = locks(tmp_path, "one", "cache"), locks(tmp_path, "other", "cache")
    assert one.write("step")
    one.read("step")
    kept = os.dup(*one.inherit_reading())  # as a child has it
    one.close(is_over=False)
    assert other.other_readers() == ("one",)
    os.close(kept)
    assert other.other_readers() == ()
