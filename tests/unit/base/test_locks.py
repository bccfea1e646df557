"""A lock file of our own: held by one, free after its holder, never a link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wan_train.base.errors import NotReadyError
from wan_train.base.locks import held, open_or_create, prepare


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


@pytest.mark.parametrize(("trap", "why"), [("link", "a symbolic link"), ("pipe", "not a plain file")])
def test_a_trap_in_place_of_a_lock_file_is_named_with_a_command_that_helps(tmp_path: Path, trap: str, why: str) -> None:
    path = tmp_path / "caches of cats.lock"
    if trap == "link":
        path.symlink_to(tmp_path / "target")
    else:
        os.mkfifo(path)
    with pytest.raises(NotReadyError) as caught:
        open_or_create(path)
    assert caught.value.message == f"the lock file {path} cannot be used: it is {why}"
    assert caught.value.hint is not None
    assert f"`sudo mv '{path}' '{path}'.old`" in caught.value.hint
    assert "directory" not in caught.value.hint


def test_a_file_in_place_of_the_shared_directory_is_named_with_commands_that_help(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    path.write_text("")
    with pytest.raises(NotReadyError) as caught:
        prepare(path)
    assert caught.value.message == f"the lock directory {path} cannot be used: it is not a directory"
    assert (caught.value.hint or "").splitlines() == [
        f"Move it away: `sudo mv {path} {path}.old`",
        f"Share it with all users: `sudo install -d -m 1777 {path}`",
    ]
