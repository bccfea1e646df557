"""Leases and tickets across real processes: who may hold a GPU, for how long, and who comes first."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from wan_train.errors import NotReadyError
from wan_train.gpu.leases import Lease, LeaseHolder, LeaseRoom

UUID = "GPU-3f2a0000-1111-2222-3333-444455556666"
OTHER = "GPU-99990000-1111-2222-3333-444455556666"
ME = LeaseHolder(pid=os.getpid(), run_id="run-a", step="train-high", since=1_700_000_000.5)


@pytest.fixture
def room(tmp_path: Path) -> LeaseRoom:
    return LeaseRoom(tmp_path / "leases")


@contextmanager
def python(program: str, *words: object, pass_fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A real child with pipes; killed at the end of the block if it is still there."""
    with subprocess.Popen(
        [sys.executable, "-c", dedent(program), *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def take(room: LeaseRoom, uuid: str = UUID) -> Lease:
    lease = room.try_take(uuid, ME)
    assert lease is not None, "a free GPU was not given"
    return lease


HOLDS_A_LEASE = """
    import sys
    from pathlib import Path
    from wan_train.gpu.leases import LeaseHolder, LeaseRoom
    holder = LeaseHolder(pid=1, run_id="child", step="s", since=1.0)
    lease = LeaseRoom(Path(sys.argv[1])).try_take(sys.argv[2], holder)
    print(lease is not None, flush=True)
    sys.stdin.readline()
"""

WAITS = "print('ready', flush=True); sys.stdin.readline()\n"

HOLDS_A_TICKET = """
    import sys
    from pathlib import Path
    from wan_train.gpu.leases import LeaseRoom
    ticket = LeaseRoom(Path(sys.argv[1])).ticket(int(sys.argv[2]), sys.argv[3])
    ticket.want(sys.argv[4:])
    print("in line", flush=True)
    sys.stdin.readline()
"""


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
            import os, sys, time
            from pathlib import Path
            from wan_train.gpu.leases import LeaseHolder, LeaseRoom
            room, inside = LeaseRoom(Path(sys.argv[1])), Path(sys.argv[3])
            print("ready", flush=True)
            sys.stdin.readline()
            won = 0
            while won < 5:
                lease = room.try_take(sys.argv[2], LeaseHolder(pid=os.getpid()))
                if lease is None:
                    time.sleep(0.001)
                    continue
                inside.mkdir()    # fails if anybody else is in
                held = room.holder(sys.argv[2])
                assert held is not None and held.pid == os.getpid(), held
                inside.rmdir()
                lease.release()
                won += 1
            print("won", won, flush=True)
        """
        racers = [python(racer, room.directory, UUID, tmp_path / "inside") for _ in range(24)]
        children = [racer.__enter__() for racer in racers]
        try:
            assert Counter(map(said, children)) == {"ready": 24}
            for child in children:
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()
            assert Counter(map(said, children)) == {"won 5": 24}
        finally:
            for entered in racers:
                entered.__exit__(None, None, None)

    def test_at_the_very_first_moment_one_of_many_wins(self, tmp_path: Path) -> None:
        program = HOLDS_A_LEASE.replace(
            "    lease =", "    print('ready', flush=True); sys.stdin.readline()\n    lease ="
        )
        for attempt in range(3):
            racers = [python(program, tmp_path / str(attempt), UUID) for _ in range(8)]
            children = [racer.__enter__() for racer in racers]
            try:
                assert Counter(map(said, children)) == {"ready": 8}
                for child in children:
                    assert child.stdin is not None
                    child.stdin.write("\n")
                    child.stdin.flush()
                assert Counter(map(said, children)) == {"True": 1, "False": 7}
            finally:
                for entered in racers:
                    entered.__exit__(None, None, None)

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


class TestTickets:
    def test_the_older_ticket_goes_first(self, room: LeaseRoom) -> None:
        mine = room.ticket(20, "mine")
        mine.want([UUID])
        assert room.first_in_line(UUID, mine)
        with python(HOLDS_A_TICKET, room.directory, 10, "older", UUID) as older:
            said(older)
            assert not room.first_in_line(UUID, mine)
            assert room.first_in_line(OTHER, mine)
            with python(HOLDS_A_TICKET, room.directory, 30, "younger", OTHER) as younger:
                said(younger)
                assert room.first_in_line(OTHER, mine)
            older.kill()
            older.wait()
            assert room.first_in_line(UUID, mine)
        mine.close()

    def test_a_ticket_that_rests_lets_others_pass_until_it_asks_again(self, room: LeaseRoom) -> None:
        older, mine = room.ticket(1, "older"), room.ticket(2, "mine")
        assert room.first_in_line(UUID, mine)
        older.want([OTHER, UUID])
        assert not room.first_in_line(UUID, mine)
        older.rest()
        assert room.first_in_line(UUID, mine)
        older.want([OTHER])
        assert room.first_in_line(UUID, mine)
        assert not room.first_in_line(OTHER, mine)
        older.want([])
        assert room.first_in_line(OTHER, mine)
        older.close()
        mine.close()

    def test_close_takes_the_own_file_away(self, room: LeaseRoom) -> None:
        older, mine = room.ticket(1, "older"), room.ticket(2, "mine")
        older.want([UUID])
        older.close()
        older.close()
        assert room.first_in_line(UUID, mine)
        assert [path.name for path in (room.directory / "queue").iterdir()] == [f"{2:020d}-mine.ticket"]
        with pytest.raises(ValueError, match="closed"):
            older.want([UUID])
        mine.close()

    def test_order_is_by_number_and_then_by_run(self, room: LeaseRoom) -> None:
        tickets = [room.ticket(9, "z"), room.ticket(10, "a"), room.ticket(10, "b"), room.ticket(10**19, "0")]
        for ticket in tickets:
            ticket.want([UUID])
        served = []
        while tickets:
            first = [ticket for ticket in reversed(tickets) if room.first_in_line(UUID, ticket)]
            assert len(first) == 1
            served.append(first[0].name.lstrip("0"))
            first[0].close()
            tickets.remove(first[0])
        assert served == ["9-z", "10-a", "10-b", "10000000000000000000-0"]

    def test_a_restarted_run_is_back_in_its_old_place(self, room: LeaseRoom) -> None:
        mine = room.ticket(2, "mine")
        mine.want([UUID])
        with python(HOLDS_A_TICKET, room.directory, 1, "older", UUID) as older:
            said(older)
            older.kill()
            older.wait()
        assert room.first_in_line(UUID, mine)
        with room_ticket(room, 1, "older"):
            assert not room.first_in_line(UUID, mine)
        mine.close()

    def test_dead_tickets_of_past_days_are_swept_and_only_those(self, room: LeaseRoom) -> None:
        queue = room.directory / "queue"
        mine = room.ticket(100, "mine")
        live = room.ticket(1, "live")
        live.want([OTHER])
        room.ticket(2, "resting")
        room.ticket(3, "dead")
        two_days_ago = time.time() - 2 * 24 * 3600
        for name in ("live", "dead"):
            os.utime(next(queue.glob(f"*-{name}.ticket")), (two_days_ago, two_days_ago))
        assert room.first_in_line(UUID, mine)
        left = sorted(path.name.split("-")[1] for path in queue.iterdir())
        assert left == ["live.ticket", "mine.ticket", "resting.ticket"]
        live.close()
        mine.close()

    def test_a_ticket_swept_while_it_rested_asks_again_in_its_place(self, room: LeaseRoom) -> None:
        older, mine = room.ticket(1, "older"), room.ticket(2, "mine")
        older.path.unlink()
        older.want([UUID])
        assert not room.first_in_line(UUID, mine)
        older.close()
        assert room.first_in_line(UUID, mine)
        mine.close()

    def test_strange_files_in_the_queue_stop_nobody(self, room: LeaseRoom, tmp_path: Path) -> None:
        mine = room.ticket(5, "mine")
        queue = room.directory / "queue"
        (queue / "notes.txt").write_text("hello")
        (queue / f"{1:020d}-dir.ticket").mkdir()
        (queue / f"{2:020d}-link.ticket").symlink_to(tmp_path / "nowhere")
        os.mkfifo(queue / f"{3:020d}-pipe.ticket")
        assert room.first_in_line(UUID, mine)
        mine.close()

    @pytest.mark.parametrize("run_id", ["../../x", "a/b", "", "x" * 400, "line\nbreak"])
    def test_any_run_id_stays_inside_the_queue(self, room: LeaseRoom, run_id: str) -> None:
        older, mine = room.ticket(1, run_id), room.ticket(2, "mine")
        older.want([UUID])
        assert not room.first_in_line(UUID, mine)
        assert older.path.parent == room.directory / "queue"
        older.close()
        mine.close()

    @pytest.mark.parametrize("order", [-1, 10**20])
    def test_an_order_that_would_sort_wrongly_is_refused(self, room: LeaseRoom, order: int) -> None:
        with pytest.raises(ValueError, match="digits"):
            room.ticket(order, "run")

    def test_in_line_and_lease_together_serve_processes_in_order(self, room: LeaseRoom, tmp_path: Path) -> None:
        served = tmp_path / "served"
        run = """
            import sys, time
            from pathlib import Path
            from wan_train.gpu.leases import LeaseHolder, LeaseRoom
            room, uuid, order = LeaseRoom(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
            ticket = room.ticket(order, f"run-{order}")
            ticket.want([uuid])
            print("in line", flush=True)
            while True:
                if room.first_in_line(uuid, ticket):
                    if lease := room.try_take(uuid, LeaseHolder(run_id=str(order))):
                        break
                time.sleep(0.005)
            ticket.close()
            with Path(sys.argv[4]).open("a") as file:
                file.write(f"{order}\\n")
            lease.release()
        """
        with take(room) as first:
            runs = [python(run, room.directory, UUID, order, served) for order in (3, 1, 4, 2)]
            children = [entered.__enter__() for entered in runs]
            try:
                for child in children:
                    said(child)
                first.release()
                for child in children:
                    assert child.wait() == 0
            finally:
                for entered in runs:
                    entered.__exit__(None, None, None)
        assert served.read_text().split() == ["1", "2", "3", "4"]


@contextmanager
def room_ticket(room: LeaseRoom, order: int, run_id: str) -> Iterator[None]:
    ticket = room.ticket(order, run_id)
    ticket.want([UUID])
    yield
    ticket.close()


@contextmanager
def as_nobody_meets(mode: int) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A root-owned directory of `mode`, and another user's process that tries to take a lease there."""
    import tempfile  # noqa: PLC0415 - pytest's own folders are closed to other users

    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        Path(top).chmod(0o755)
        directory = Path(top) / "leases"
        directory.mkdir()
        directory.chmod(mode)
        program = """
            import os, sys
            from pathlib import Path
            from wan_train.errors import NotReadyError
            from wan_train.gpu.leases import LeaseHolder, LeaseRoom
            os.setgid(65534); os.setuid(65534)
            try:
                room = LeaseRoom(Path(sys.argv[1]))
                lease = room.try_take(sys.argv[2], LeaseHolder(run_id="nobody"))
                print("taken" if lease else "held", flush=True)
            except NotReadyError as error:
                print(json.dumps(error.message), flush=True)
            sys.stdin.readline()
        """
        with python("import json\n" + dedent(program), directory, UUID) as child:
            yield directory, child


def until(holds: object) -> None:
    assert callable(holds)
    while not holds():
        time.sleep(0.01)
