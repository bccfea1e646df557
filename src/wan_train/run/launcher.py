"""Start trainer processes, find out how they ended, and keep secrets out of their logs."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from wan_train.base import codec
from wan_train.base.files import write_parts, write_whole
from wan_train.base.host import ProcessIdentity, identify
from wan_train.base.text import redact
from wan_train.engine.commands import Command
from wan_train.run.directory import AttemptDirectory
from wan_train.run.events import Exit, Lost

MARKER = "WAN_TRAIN_ATTEMPT"
"""Environment variable that every process of an attempt inherits: the attempt's directory."""

_WARDEN = Path(__file__).with_name("warden.py")
_PROOF_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an attempt ended, and when (seconds since 1970)."""

    exit: Exit
    at: float


class Launcher(Protocol):
    """Starts attempts in directories and watches them. A later supervisor needs only the identity."""

    def start(self, command: Command, attempt: AttemptDirectory, inherit: Sequence[int]) -> ProcessIdentity:
        """Run a command as an attempt; `inherit` are lock descriptors to keep open until the attempt is over."""
        ...

    def ended(self, identity: ProcessIdentity, attempt: AttemptDirectory) -> Ended | None:
        """Return how it ended once none of its processes is left, None while one is alive."""
        ...

    def terminate(self, identity: ProcessIdentity) -> None:
        """Ask the whole tree to end: TERM, grace, KILL. Returns at once; `ended` reports when it is done."""
        ...

    def abandon(self, attempt: AttemptDirectory) -> None:
        """Kill the processes of an attempt whose launch was never recorded."""
        ...


class WardenLauncher:
    """The real launcher: each attempt runs under a warden in its own session."""

    def __init__(self, *, grace_seconds: float) -> None:
        self._grace = grace_seconds
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._asked: dict[ProcessIdentity, float] = {}

    def start(self, command: Command, attempt: AttemptDirectory, inherit: Sequence[int]) -> ProcessIdentity:
        attempt.path.mkdir(parents=True, mode=0o700, exist_ok=False)
        attempt.output.mkdir(mode=0o700)
        write_whole(attempt.command, _script(command), mode=0o700)
        warden = [sys.executable, "-I", "-S", str(_WARDEN), str(attempt.exit), str(self._grace), command.cwd, "--"]
        log = os.open(attempt.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            child = subprocess.Popen(
                [*warden, *command.argv],
                cwd="/",  # the trainer's directory may be gone; the warden reports that in the log
                env={**os.environ, **command.env, MARKER: str(attempt.path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=tuple(inherit),
            )
        finally:
            os.close(log)
        self._children[child.pid] = child
        identity = identify(child.pid)
        assert identity is not None, "an unreaped child is in /proc"
        return identity

    def ended(self, identity: ProcessIdentity, attempt: AttemptDirectory) -> Ended | None:
        child = self._children.get(identity.pid)
        if child is not None and child.poll() is None:
            self._insist(identity, attempt)
            return None
        if child is None and identity.is_alive():
            self._insist(identity, attempt)
            return None
        # The warden is gone. Usually it left a record; if it was killed, its trainer may live on without it.
        recorded = read_exit(attempt)
        if recorded is not None:
            return recorded
        survivors = marked_processes(attempt)
        if survivors:
            for survivor in survivors:
                _send(survivor, signal.SIGKILL)
            return None
        return Ended(exit=Lost(reason="its warden was killed or the machine went down"), at=time.time())

    def terminate(self, identity: ProcessIdentity) -> None:
        if identity not in self._asked and identity.is_alive():
            self._asked[identity] = time.monotonic()
            _send(identity, signal.SIGTERM)

    def abandon(self, attempt: AttemptDirectory) -> None:
        for stray in marked_processes(attempt):
            _send(stray, signal.SIGKILL)

    def _insist(self, identity: ProcessIdentity, attempt: AttemptDirectory) -> None:
        """Kill a warden that cannot finish its work (frozen or swapped out), with its whole tree."""
        asked = self._asked.get(identity)
        if asked is not None and time.monotonic() - asked > 2 * self._grace + _PROOF_SECONDS:
            for survivor in [*marked_processes(attempt), identity]:
                _send(survivor, signal.SIGKILL)


def read_exit(attempt: AttemptDirectory) -> Ended | None:
    """Return the warden's record of how the attempt ended, None if there is none (yet)."""
    try:
        text = attempt.exit.read_bytes()
        return codec.from_json(
            text, Ended, where=str(attempt.exit), upgrade=lambda data: {"exit": data["exit"], "at": data["ended"]}
        )
    except (OSError, codec.CorruptRecordError):
        return None


def marked_processes(attempt: AttemptDirectory) -> list[ProcessIdentity]:
    """Return every live process that inherited the attempt's marker, in any session or process group."""
    mark = f"{MARKER}={attempt.path}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            marked = mark in (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # another user's process, or one that just ended
            continue
        if marked and (identity := identify(int(entry.name))) is not None and identity.is_alive():
            found.append(identity)
    return found


def _send(identity: ProcessIdentity, number: signal.Signals) -> None:
    """Signal exactly this process, never another one that has reused its pid."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError:
        return
    try:
        if identity.is_alive():
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _script(command: Command) -> str:
    """Return the command as a readable, runnable script; it never contains secrets."""
    return f"#!/bin/sh\ncd {shlex.quote(command.cwd)} || exit\n{command.shell()}\n"


_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8
_PART_BYTES = 1024 * 1024
_OVERLAP = 4096


def hide_secrets(log: Path) -> None:
    """Hide secrets in the log of an attempt that is over: known token patterns, and secrets from our environment.

    The trainer writes the log directly, so that it survives every watcher. Until the attempt is over, only the mode of
    the directory protects the log. A log without secrets is left as it is. Raises OSError if one cannot be hidden.
    """
    size = found = 0
    try:
        with log.open("rb") as file:
            for part, hides in _cleaned(file):
                size += len(part)
                found += hides
            size -= file.tell()
    except FileNotFoundError:
        return
    if not found:
        return
    try:
        with log.open("rb") as file:
            write_parts(log, (part for part, _ in _cleaned(file)))
    except OSError:
        _overwrite(log, growth=max(0, size))


def _cleaned(log: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield the log without secrets, in parts, so that a large one fits into the RAM; and whether one was hidden.

    The end of a part is read again with the next one, as a secret may have several lines.
    """
    secrets = _secrets()
    overlap = max([_OVERLAP, *map(len, secrets)])
    rest = ""
    for lines in _whole_lines(log):
        text = rest + lines
        clean = redact(text)
        for value in secrets:
            clean = clean.replace(value, "[hidden]")
        yield clean[:-overlap].encode("utf-8", errors="surrogateescape"), clean != text
        rest = clean[-overlap:]
    yield rest.encode("utf-8", errors="surrogateescape"), False


def _whole_lines(log: BinaryIO) -> Iterator[str]:
    """Yield the text in parts that end with a line (a progress bar's lines end with a CR), so that no token is cut."""
    begun: list[bytes] = []
    while data := log.read(_PART_BYTES):
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if end:
            yield b"".join([*begun, data[:end]]).decode("utf-8", errors="surrogateescape")
            begun = []
        begun.append(data[end:])
    yield b"".join(begun).decode("utf-8", errors="surrogateescape")


def _overwrite(log: Path, growth: int) -> None:
    """Overwrite the log in place, for a full disk. It cannot grow, so the first `growth` bytes are left out."""
    with log.open("rb") as old, log.open("r+b") as new:
        for part, _ in _cleaned(old):
            written, skip = new.tell(), min(growth, len(part))
            growth -= skip
            room = old.tell() - written  # what is not read yet must not be overwritten
            new.write(part[max(skip, len(part) - room) :])
        new.truncate()


def _secrets() -> list[str]:
    return [v for k, v in os.environ.items() if _SECRET_NAME.search(k) and len(v) >= _SHORTEST_SECRET]
