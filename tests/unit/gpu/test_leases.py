"""Leases across real processes: who may hold a GPU, and for how long."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lease_children import HOLDS_A_LEASE, ME, OTHER, UUID, python, race, said, take, until

from wan_train.gpu.leases import LeaseHolder, LeaseRoom


class TestLease:
    def test_a_held_gpu_is_not_given_again_and_the_other_is(self, room: LeaseRoom) -> None:
        lease = take(room)
        assert room.try_take(UUID, ME) is None
        other = room.try_take(OTHER, ME)
        assert other is not None
        lease.release()
        lease.release()
        again = room.try_take(UUID, ME)
        assert again is not None
        again.release()
        other.release()

    def test_who_holds_it_can_be_asked_by_anybody(self, room: LeaseRoom) -> None:
        assert room.holder(UUID) is None
        with python(HOLDS_A_LEASE, room.directory, UUID) as child:
            assert said(child) == "True"
            assert room.holder(UUID) == LeaseHolder(pid=1, run_id="child", step="s", since=1.0)
            assert room.holder(OTHER) is None
        assert room.holder(UUID) is None

    def test_the_holder_may_change_what_it_says(self, room: LeaseRoom) -> None:
        with take(room) as lease:
            assert room.holder(UUID) == ME
            shorter = LeaseHolder(pid=2, run_id="r", step=None, since=3)
            lease.rewrite(shorter)
            assert room.holder(UUID) == shorter
        assert room.holder(UUID) is None

    @pytest.mark.parametrize(
        ("text", "holder"),
        [
            ("", LeaseHolder()),
            ('{"pid": 12', LeaseHolder()),
            ('{"pid": 12}', LeaseHolder()),  # no newline: torn
            ("[]\n", LeaseHolder()),
            ("[" * 9000 + "\n", LeaseHolder()),
            ("x" * 100_000 + "\n", LeaseHolder()),
            ('{"pid": true, "run_id": 7, "step": [], "since": 1, "more": 1}\n', LeaseHolder()),
            ('{"pid": 12, "run_id": "r"}\nrest of an older text', LeaseHolder(pid=12, run_id="r")),
        ],
    )  # fmt: skip
    def test_text_that_is_torn_or_strange_still_says_held(
        self, room: LeaseRoom, text: str, holder: LeaseHolder
    ) -> None:
        with take(room):
            (file,) = room.directory.glob("*.lease")
            file.write_text(text)
            assert room.holder(UUID) == holder

    def test_it_dies_with_sigkill(self, room: LeaseRoom) -> None:
        with python(HOLDS_A_LEASE, room.directory, UUID) as child:
            assert said(child) == "True"
            assert room.try_take(UUID, ME) is None
            child.kill()
            child.wait()
            with take(room):
                assert room.holder(UUID) == ME

    def test_it_outlives_its_taker_in_a_child_that_inherited_it(self, room: LeaseRoom) -> None:
        lease = take(room)
        with python("input()", pass_fds=(lease.fileno(),)) as trainer:
            lease.release()
            assert room.try_take(UUID, ME) is None
            assert room.holder(UUID) == ME
            trainer.kill()
            trainer.wait()
            assert room.holder(UUID) is None
        with pytest.raises(ValueError, match="released"):
            lease.fileno()

    def test_it_outlives_a_killed_supervisor_whose_trainer_lives(self, room: LeaseRoom) -> None:
        supervisor = """
            import subprocess, sys
            from pathlib import Path
            from wan_train.gpu.leases import LeaseHolder, LeaseRoom
            lease = LeaseRoom(Path(sys.argv[1])).try_take(sys.argv[2], LeaseHolder(run_id="dead"))
            fds = (lease.fileno(),)
            trainer = subprocess.Popen(["sleep", "100"], pass_fds=fds, stdout=subprocess.DEVNULL)
            print(trainer.pid, flush=True)
            sys.stdin.readline()
        """
        with python(supervisor, room.directory, UUID) as child:
            trainer = int(said(child))
            child.kill()
            child.wait()
            held = room.holder(UUID)
            assert held is not None
            assert held.run_id == "dead"
            assert room.try_take(UUID, ME) is None
            os.kill(trainer, 9)
            until(lambda: room.holder(UUID) is None)

    def test_a_child_that_was_not_given_it_does_not_keep_it(self, room: LeaseRoom) -> None:
        lease = take(room)
        with python("input()"):
            lease.release()
            assert room.holder(UUID) is None

    def test_asking_never_gets_in_the_way_of_taking(self, room: LeaseRoom) -> None:
        # What LeaseRoom.holder does, at such length that every other attempt to take meets it.
        slow_asker = """
            import fcntl, os, sys
            descriptor = os.open(sys.argv[1], os.O_RDWR)
            print("asking", flush=True)
            while True:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                for _ in range(2000): pass
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                for _ in range(2000): pass
        """
        take(room).release()
        with python(slow_asker, next(room.directory.glob("*.lease"))) as asker:
            said(asker)
            for _ in range(100):
                (take(room)).release()

    def test_of_many_processes_exactly_one_holds_it_at_any_time(self, room: LeaseRoom, tmp_path: Path) -> None:
        racer = """
            room, inside = LeaseRoom(Path(sys.argv[1])), Path(sys.argv[3])
            def race():
                for _ in range(5):
                    while (lease := room.try_take(sys.argv[2], LeaseHolder(pid=os.getpid()))) is None:
                        time.sleep(0.001)
                    inside.mkdir()    # fails if anybody else is in
                    held = room.holder(sys.argv[2])
                    assert held is not None and held.pid == os.getpid(), held
                    inside.rmdir()
                    lease.release()
                return "won"
        """
        assert race(racer, 24, room.directory, UUID, tmp_path / "inside") == {"won": 24}

    def test_at_the_very_first_moment_one_of_many_wins(self, tmp_path: Path) -> None:
        racer = """
            def race():
                global lease
                lease = LeaseRoom(Path(sys.argv[1])).try_take(sys.argv[2], LeaseHolder(pid=1))
                return str(lease is not None)
        """
        for attempt in range(3):
            assert race(racer, 8, tmp_path / str(attempt), UUID) == {"True": 1, "False": 7}

    def test_a_lock_file_that_a_cleaner_removed_is_made_again(self, room: LeaseRoom) -> None:
        take(room).release()
        next(room.directory.glob("*.lease")).unlink()
        with take(room):
            assert room.holder(UUID) == ME

    @pytest.mark.parametrize("uuid", ["../../x", "a/b", "", ".", "..", "x" * 500, "GPU\n1", "é", "cpu-slot-0"])
    def test_any_uuid_stays_inside_the_directory(self, room: LeaseRoom, uuid: str) -> None:
        with take(room, uuid):
            assert room.holder(uuid) == ME
            assert [path.suffix for path in room.directory.iterdir()] == [".lease"]
            assert sorted(path.name for path in room.directory.parent.iterdir()) == ["leases"]

    def test_uuids_that_look_alike_on_disk_stay_two(self, room: LeaseRoom) -> None:
        with take(room, "a/b"), take(room, "a_b"):
            assert len(list(room.directory.iterdir())) == 2

    def test_a_full_disk_costs_the_text_and_not_the_lease(self, room: LeaseRoom) -> None:
        take(room).release()
        program = """
            import resource, signal, sys
            from pathlib import Path
            from wan_train.gpu.leases import LeaseHolder, LeaseRoom
            # A limit of no bytes stands in for a full disk.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
            lease = LeaseRoom(Path(sys.argv[1])).try_take(sys.argv[2], LeaseHolder(run_id="full"))
            print(lease is not None, flush=True)
            sys.stdin.readline()
        """
        with python(program, room.directory, UUID) as child:
            assert said(child) == "True"
            assert room.holder(UUID) is not None
