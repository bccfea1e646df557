"""Real processes that hold leases and tickets, and what every test of them needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

from wan_train.gpu.leases import Lease, LeaseHolder, LeaseRoom

UUID = "GPU-3f2a0000-1111-2222-3333-444455556666"
OTHER = "GPU-99990000-1111-2222-3333-444455556666"
ME = LeaseHolder(pid=os.getpid(), run_id="run-a", step="train-high", since=1_700_000_000.5)


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


RACE = """
    import os, sys, time
    from pathlib import Path
    from wan_train.gpu.leases import LeaseHolder, LeaseRoom
    {race}
    gate, opener = os.pipe()
    for _ in range({racers}):
        if os.fork() == 0:
            os.close(opener)
            os.read(gate, 1)  # its end comes to all at once
            try:
                told = race()
            except BaseException as error:
                told = repr(error)
            os.write(1, (told + "\\n").encode())
            time.sleep(600)  # keeps what it holds
    os.close(opener)
    sys.stdin.readline()
    os.killpg(0, 9)
"""


def race(program: str, racers: int, *words: object) -> Counter[str]:
    """What each of so many processes says whose `race()` begins at one moment; all hold what they got until the end."""
    text = dedent(RACE).format(race=dedent(program), racers=racers)
    argv = [sys.executable, "-c", text, *map(str, words)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as starter:
        try:
            return Counter(said(starter) for _ in range(racers))
        finally:
            os.killpg(starter.pid, signal.SIGKILL)


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
            from wan_train.base.errors import NotReadyError
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
