"""Run other programs with a deadline, an output limit and secrets redacted, or start them detached.

Argv lists only.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from wan_train.base.errors import reason_of
from wan_train.base.text import redact
from wan_train.base.units import MIB

OUTPUT_LIMIT: Final = 4 * MIB
_BLOCK: Final = 64 * 1024
_GRACE_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a program ended. `code` is negative for a signal, None if it did not start or missed its deadline."""

    code: int | None
    output: str = ""
    """The last `limit` bytes of stdout."""
    errors: str = ""
    """The last `limit` bytes of stderr."""
    trouble: str = ""
    """Why `code` is None, as a clause."""

    @property
    def succeeded(self) -> bool:
        return self.code == 0

    def tail(self, lines: int = 6) -> str:
        """Return the last lines of stderr, else of stdout, else of `trouble`; "" if all are empty."""
        text = self.errors.strip() or self.output.strip() or self.trouble
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def run(
    argv: Sequence[str | Path],
    *,
    seconds: float | None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    limit: int = OUTPUT_LIMIT,
    log: int | None = None,
    pass_fds: Sequence[int] = (),
    watch: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a program to its end, for at most `seconds`; never raises for what the program does.

    `env` is added to our environment. `stdin` is for data that must not appear in argv, such as tokens. With `log`, a
    descriptor, all output goes there and none is kept. `watch` is called five times a second and may raise to end the
    program. No process of the program's group survives this call, even if the call is interrupted.
    """
    output = subprocess.PIPE if log is None else log
    try:
        child = subprocess.Popen(
            [str(word) for word in argv],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in a path or an argument
        return Outcome(code=None, trouble=f"{argv[0]} cannot be started: {reason_of(error)}")
    tails = [_Tail(stream, limit) for stream in (child.stdout, child.stderr) if stream is not None]
    trouble = ""
    try:
        threading.Thread(target=_feed, args=(child, stdin), daemon=True).start()
        if not _ends(child, seconds, watch):
            trouble = f"no end within {seconds:g} seconds"
    finally:
        _end_group(child)
    output_text, errors = [*(tail.text() for tail in tails), "", ""][:2]
    return Outcome(code=None if trouble else child.returncode, output=output_text, errors=errors, trouble=trouble)


def start_detached(argv: Sequence[str | Path], *, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program that outlives us, in its own session; raises OSError.

    `env` is added to our environment. All output is appended to the file `log`.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        return subprocess.Popen(
            [str(word) for word in argv],
            cwd="/",
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)


def _ends(child: subprocess.Popen[bytes], seconds: float | None, watch: Callable[[], None]) -> bool:
    """Wait for the child to end; False on timeout."""
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        with suppress(subprocess.TimeoutExpired):
            child.wait(min(left, _LOOK_SECONDS))
            return True
        watch()
    return False


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End the process group that a child leads: TERM, a grace period, KILL."""
    if child.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_SECONDS)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _feed(child: subprocess.Popen[bytes], text: str | None) -> None:
    """Write `text` to a child's stdin and close it."""
    if text is None or child.stdin is None:
        return
    with suppress(BrokenPipeError), child.stdin as pipe:
        pipe.write(text.encode())


class _Tail:
    """The end of a stream's output; a thread reads it, so that the program never blocks on us."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self) -> str:
        """Return the kept output after the group's end. A process that left the group delays it by 5 s at most."""
        self._thread.join(_GRACE_SECONDS)
        return redact(bytes(self._kept).decode(errors="replace"))

    def _read(self) -> None:
        with suppress(OSError, ValueError), self._stream as stream:
            while block := stream.read1(_BLOCK):  # type: ignore[attr-defined]  # a pipe of Popen is a BufferedReader
                self._kept += block
                del self._kept[: -self._limit]
