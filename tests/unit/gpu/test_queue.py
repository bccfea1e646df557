"""Tickets across real processes: who comes first."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from lease_children import HOLDS_A_TICKET, OTHER, UUID, python, room_ticket, said, take

from wan_train.gpu.leases import LeaseRoom


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
        served, begun = tmp_path / "served", tmp_path / "begun"
        run = """
            import sys, time
            from pathlib import Path
            from wan_train.gpu.leases import LeaseHolder, LeaseRoom
            room, uuid, order = LeaseRoom(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
            ticket = room.ticket(order, f"run-{order}")
            ticket.want([uuid])
            print("in line", flush=True)
            while not Path(sys.argv[5]).exists():  # one that looked before all were in line could be first by its look
                time.sleep(0.005)
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
            runs = [python(run, room.directory, UUID, order, served, begun) for order in (3, 1, 4, 2)]
            children = [entered.__enter__() for entered in runs]
            try:
                for child in children:
                    said(child)
                begun.touch()
                first.release()
                for child in children:
                    assert child.wait() == 0
            finally:
                for entered in runs:
                    entered.__exit__(None, None, None)
        assert served.read_text().split() == ["1", "2", "3", "4"]
