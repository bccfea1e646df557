"""Who may change a cache folder, and who keeps others from it by training from it."""

from __future__ import annotations

import os
from pathlib import Path

from wan_train.caching.locks import Access, CacheLock


def lock(root: Path, run_id: str, *folders: str) -> CacheLock:
    return CacheLock(root / "leases", run_id, [root / folder for folder in folders])


def test_one_changes_at_a_time_whatever_the_folder_is_called(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    one, other = lock(tmp_path, "one", "cache", "link"), lock(tmp_path, "other", "more", "link")
    assert one.take(Access.CHANGE)
    assert not other.take(Access.CHANGE)
    assert not other.take(Access.READ)
    assert other.access is None
    one.release()
    assert other.take(Access.CHANGE)
    assert not one.take(Access.READ)


def test_readers_share_and_keep_away_whoever_would_change(tmp_path: Path) -> None:
    one, other, third = (lock(tmp_path, name, "cache") for name in ("one-ü\n", "other", "third"))
    assert one.take(Access.READ)
    assert other.take(Access.READ)
    assert not third.take(Access.CHANGE)
    assert third.other_runs() == ("one-ü", "other")
    one.release()
    assert not third.take(Access.CHANGE)
    other.release()
    assert third.take(Access.CHANGE)
    assert one.other_runs() == ("third",)
    assert len(list((tmp_path / "leases").iterdir())) == 1


def test_trainers_that_outlive_their_supervisor_keep_it(tmp_path: Path) -> None:
    one, other = lock(tmp_path, "one", "cache"), lock(tmp_path, "other", "cache")
    assert one.take(Access.READ)
    kept = os.dup(*one.inherit())  # as a child has it
    one.release()
    assert not other.take(Access.CHANGE)
    os.close(kept)
    assert other.take(Access.CHANGE)
