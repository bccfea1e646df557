"""A lock file of our own: held by one, free after its holder, never a link."""

from __future__ import annotations

from pathlib import Path

import pytest

from wan_train.base.locks import held


def test_a_lock_is_held_by_one_and_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path), pytest.raises(BlockingIOError), held(path):
        pass
    with held(path) as descriptor:
        assert descriptor > 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"), held(tmp_path / "lock"):
        pass
    assert not target.exists()
