"""The directory that everybody on the box shares for leases: whose it is, and who may use it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from lease_children import ME, UUID, as_nobody_meets, said, take

from wan_train.base.errors import NotReadyError
from wan_train.gpu.leases import LeaseHolder, LeaseRoom


class TestDirectory:
    def test_it_and_its_files_are_for_every_user_whatever_the_umask(self, tmp_path: Path) -> None:
        room = LeaseRoom(tmp_path / "deep" / "leases")
        before = os.umask(0o077)
        try:
            with take(room):
                room.ticket(1, "run").close()
                ticket = room.ticket(2, "run")
        finally:
            os.umask(before)
        modes = {path.name.split(".")[-1]: stat.S_IMODE(path.stat().st_mode) for path in room.directory.rglob("*")}
        assert stat.S_IMODE(room.directory.stat().st_mode) == 0o1777
        assert modes == {"lease": 0o666, "queue": 0o1777, "ticket": 0o666}
        ticket.close()

    def test_a_file_in_its_place_is_one_clear_error(self, tmp_path: Path) -> None:
        (tmp_path / "leases").write_text("")
        with pytest.raises(NotReadyError, match="not a directory") as caught:
            LeaseRoom(tmp_path / "leases").try_take(UUID, ME)
        assert "install -d -m 1777" in (caught.value.hint or "")

    def test_a_link_in_its_place_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "leases").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(NotReadyError, match="not a directory"):
            LeaseRoom(tmp_path / "leases").try_take(UUID, ME)
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_a_file_for_a_parent_is_one_clear_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(NotReadyError):
            LeaseRoom(tmp_path / "file" / "leases").try_take(UUID, ME)

    def test_our_own_open_directory_gets_its_sticky_bit(self, room: LeaseRoom) -> None:
        room.directory.mkdir()
        room.directory.chmod(0o777)
        take(room).release()
        assert stat.S_IMODE(room.directory.stat().st_mode) == 0o1777

    def test_a_private_directory_of_ours_is_left_private(self, room: LeaseRoom) -> None:
        room.directory.mkdir(mode=0o700)
        take(room).release()
        assert stat.S_IMODE(room.directory.stat().st_mode) == 0o700

    @pytest.mark.parametrize("trap", ["link", "dangling link", "pipe", "directory"])
    def test_a_trap_in_place_of_a_lock_file_is_refused(self, room: LeaseRoom, tmp_path: Path, trap: str) -> None:
        take(room).release()
        file = next(room.directory.glob("*.lease"))
        file.unlink()
        victim = tmp_path / "victim"
        match trap:
            case "link":
                victim.write_text("precious")
                file.symlink_to(victim)
            case "dangling link":
                file.symlink_to(victim)
            case "pipe":
                os.mkfifo(file)
            case _:
                file.mkdir()
        with pytest.raises(NotReadyError):
            room.try_take(UUID, ME)
        with pytest.raises(NotReadyError):
            room.holder(UUID)
        if trap == "link":
            assert victim.read_text() == "precious"
        else:
            assert not victim.exists()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
    @pytest.mark.parametrize(("mode", "words"), [(0o755, "no permission"), (0o777, "sticky bit")])
    def test_another_users_directory_that_cannot_be_used_or_trusted(self, mode: int, words: str) -> None:
        with as_nobody_meets(mode) as (directory, child):
            assert words in said(child)
            assert list(directory.iterdir()) == []

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
    def test_two_users_share_one_lease(self) -> None:
        with as_nobody_meets(0o1777) as (directory, child):
            assert said(child) == "taken"
            room = LeaseRoom(directory)
            assert room.try_take(UUID, ME) is None
            assert room.holder(UUID) == LeaseHolder(run_id="nobody")
            child.kill()
            child.wait()
            with take(room):
                assert room.holder(UUID) == ME
