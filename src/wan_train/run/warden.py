"""A small process around each trainer: it outlives every supervisor, ends the whole tree, and records the exit.

Run by path, `python -I -S warden.py EXIT_RECORD GRACE_SECONDS DIRECTORY -- ARGV...`, with only the standard library, to
stay small. `accelerate launch` forwards no signal and hides exit codes, and a dead supervisor cannot see how its
trainer ended. The warden adopts orphans (PR_SET_CHILD_SUBREAPER), so no process of the tree escapes it. It keeps
inherited lock descriptors open, so a GPU stays leased until the last process on it is gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time

_PR_SET_CHILD_SUBREAPER = 36
_LINGER_SECONDS = 3.0
"""Data-loader workers end by themselves shortly after their trainer."""
_LOOK_SECONDS = 0.05


class _Shutdown:
    """The handler of TERM and INT. Once `requested`, the tree is being ended."""

    requested = False

    def __call__(self, _signal: int, _frame: object) -> None:
        self.requested = True


def main(argv: list[str]) -> int:
    record, grace, directory, _, *command = argv
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    shutdown = _Shutdown()
    signal.signal(signal.SIGTERM, shutdown)
    signal.signal(signal.SIGINT, shutdown)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # A wake-up pipe, so that a signal that arrives just before the wait is not missed.
    reader, writer = os.pipe()
    for descriptor in (reader, writer):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    try:
        os.chdir(directory)
        child = _start(command)
    except OSError as error:
        # As a shell does: a message in the log, and exit code 127.
        sys.stderr.write(f"{error.strerror}: {error.filename or command[0]}\n")
        _write(record, {"kind": "exited", "code": 127})
        return 0
    outcome = _watch(child, float(grace), shutdown, reader)
    _write(record, outcome)
    return 0


def _start(command: list[str]) -> int:
    """The trainer as a child with its own process group and default signals."""
    defaults = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE]
    return os.posix_spawnp(command[0], command, os.environ, setpgroup=0, setsigdef=defaults, setsigmask=[])


def _watch(child: int, grace: float, shutdown: _Shutdown, wakeup: int) -> dict[str, object]:
    outcome: dict[str, object] | None = None
    asked_at: float | None = None
    ended_at: float | None = None
    while True:
        for pid, status in _reap():
            if pid == child:
                outcome, ended_at = _outcome(status), time.monotonic()
        alive = _descendants()
        if outcome is not None and not alive:
            return outcome
        now = time.monotonic()
        lingering = ended_at is not None and now - ended_at > _LINGER_SECONDS
        if (shutdown.requested or lingering) and asked_at is None:
            asked_at = now
            _signal_all(alive, signal.SIGTERM)
        elif asked_at is not None and now - asked_at > grace:
            _signal_all(alive, signal.SIGKILL)
        _wait(wakeup, _LOOK_SECONDS if asked_at is not None or ended_at is not None else None)


def _wait(wakeup: int, seconds: float | None) -> None:
    import select

    select.select([wakeup], [], [], seconds)
    try:
        while os.read(wakeup, 512):
            pass
    except BlockingIOError:
        pass


def _reap() -> list[tuple[int, int]]:
    reaped: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return reaped
        if pid == 0:
            return reaped
        reaped.append((pid, status))


def _descendants() -> list[int]:
    """Return all live processes below this one, in any process group or session."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  see below
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123  pathlib would double this process's memory
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state not in {"Z", "X"}:
            parents.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    below = [os.getpid()]
    while below:
        below = [child for pid in below for child in parents.get(pid, [])]
        found += below
    return found


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
            if number is signal.SIGTERM:
                os.kill(pid, signal.SIGCONT)  # a stopped process would never see the TERM
        except ProcessLookupError:
            continue


def _outcome(status: int) -> dict[str, object]:
    code = os.waitstatus_to_exitcode(status)
    return {"kind": "exited", "code": code} if code >= 0 else {"kind": "signaled", "signal": -code}


def _write(record: str, outcome: dict[str, object]) -> None:
    """Write the record atomically. A full disk loses it, and the supervisor judges by other evidence."""
    temporary = f"{record}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.write(descriptor, json.dumps({"ended": time.time(), "exit": outcome}).encode())
    os.fsync(descriptor)
    os.close(descriptor)
    os.rename(temporary, record)  # noqa: PTH104  see `_descendants`


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
