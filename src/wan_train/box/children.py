"""Programs that provision starts: argv lists, own process group, output to the log, never outliving a Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from wan_train.errors import NotReadyError
from wan_train.printable import one_line

Say = Callable[[str], None]
"""Tells one line of progress."""

_LOOK_SECONDS = 0.5
_HEARTBEAT_SECONDS = 30.0
_TAIL_LINES = 6
_TAIL_BYTES = 8192


class StalledError(NotReadyError):
    """A child showed no sign of life for too long and was ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """How children are started. `log` gets their output; `lock` is the descriptor they inherit."""

    log: Path
    say: Say
    lock: int

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        what: str,
        hint: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        alive: Callable[[], bool] | None = None,
    ) -> None:
        """Run to the end; `env` adds to ours, `alive` is asked twice a second and may end it by False.

        Raises:
            NotReadyError: it could not be started or failed, with the last lines it said.
            StalledError: `alive` said False.
        """
        with _append(self.log) as output:
            begun = os.fstat(output).st_size
            try:
                child = subprocess.Popen(
                    [str(word) for word in argv],
                    cwd=cwd,
                    env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "PIP_NO_INPUT": "1", **(env or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=(self.lock,),
                )
            except OSError as error:
                raise NotReadyError(f"{what}: {argv[0]} cannot be started: {error}", hint=hint) from error
            try:
                self._wait(child, what, alive)
            finally:
                _end(child)
        if child.returncode != 0:
            raise NotReadyError(
                f"{what} failed:{self._tail(begun)}", hint=hint or f"The whole output is in {self.log}."
            )

    def _wait(self, child: subprocess.Popen[bytes], what: str, alive: Callable[[], bool] | None) -> None:
        begun = told = time.monotonic()
        while True:
            with suppress(subprocess.TimeoutExpired):
                child.wait(_LOOK_SECONDS)
                return
            now = time.monotonic()
            if alive is not None:
                if not alive():
                    raise StalledError(f"{what}: no progress for too long")
            elif now - told >= _HEARTBEAT_SECONDS:
                told = now
                self.say(f"  … {what}: {now - begun:.0f} s so far")

    def _tail(self, begun: int) -> str:
        with self.log.open("rb") as file:
            file.seek(max(begun, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return "".join(f"\n  {one_line(line)}" for line in lines[-_TAIL_LINES:]) or " it said nothing"


@contextmanager
def _append(path: Path) -> Iterator[int]:
    """The log, opened for a child to append to; only its owner may read it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise NotReadyError(f"the log {path} cannot be written: {error}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leave nothing of the child's group behind, however we come here."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
