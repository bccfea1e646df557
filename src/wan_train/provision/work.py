"""The tools of a running step: programs, pauses, its log, and the status table.

Programs are argv lists, get their own process group, write to the step's log, and never outlive a Ctrl-C.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wan_train.base import process
from wan_train.base.errors import NotReadyError
from wan_train.base.text import one_line, redact
from wan_train.provision.status_table import StatusTable
from wan_train.provision.workspace import open_log

_TAIL_LINES = 6
_TAIL_BYTES = 8192


class StalledError(NotReadyError):
    """A program showed no sign of life for too long and was ended."""


class EndedError(NotReadyError):
    """The user is ending the provision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One running step. `lock` is the descriptor of the workspace's lock, which programs inherit."""

    step: str
    table: StatusTable
    log: Path
    lock: int
    ended: threading.Event

    def say(self, line: str) -> None:
        """Report what is being done now, in one line."""
        self.table.change(self.step, lambda row: replace(row, detail=line), message=line)

    def remark(self, line: str) -> None:
        """Report a line that the user should still see at the end."""
        self.table.change(self.step, lambda row: replace(row, remarks=(*row.remarks, line)), message=line)

    def progress(self, done: int, total: int) -> None:
        """Report the bytes on disk and in total."""
        self.table.change(self.step, lambda row: replace(row, done=done, total=total))

    def fetched(self, count: int) -> None:
        """Add bytes that were downloaded."""
        self.table.change(self.step, lambda row: replace(row, fetched=row.fetched + count))

    def look(self) -> None:
        """Raise EndedError if the user is ending the provision. Call it in every wait and long loop."""
        if self.ended.is_set():
            raise EndedError("stopped before it was done")

    def pause(self, seconds: float) -> None:
        self.ended.wait(seconds)
        self.look()

    def run_twice(self, pause_seconds: float, do: Callable[[], None]) -> None:
        """Run a network operation; if it fails, pause and retry it once. The second failure is raised."""
        try:
            do()
        except EndedError:
            raise
        except NotReadyError as error:
            self.say(f"{error.message.splitlines()[0].rstrip(':')}; retry in {pause_seconds:.0f} s")
            self.pause(pause_seconds)
            do()

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        what: str,
        hint: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        alive: Callable[[], bool] | None = None,
        check: bool = True,
    ) -> tuple[int, str]:
        """Run a program to its end; return its exit code and last lines of output.

        `env` is added to our environment. `alive` is called five times a second; False ends the program. `stdin` is for
        what must not be in an argv: signed addresses, tokens. `check=False` is for exit codes that have a meaning.

        Raises:
            NotReadyError: it could not be started, or it failed; the message has its last lines of output.
            StalledError: `alive` returned False.
            EndedError: the user ended the provision.
        """

        def watch() -> None:
            self.look()
            if alive is not None and not alive():
                raise StalledError(f"{what}: no progress for too long")

        with open_log(self.log) as log:
            begun = os.fstat(log).st_size
            try:
                done = process.run(
                    argv,
                    seconds=None,
                    cwd=cwd,
                    env={"GIT_TERMINAL_PROMPT": "0", "PIP_NO_INPUT": "1", **(env or {})},
                    stdin=stdin,
                    log=log,
                    pass_fds=(self.lock,),
                    watch=watch,
                )
            finally:
                self._clean(begun)
        if done.code is None:
            raise NotReadyError(f"{what}: {done.trouble}", hint=hint)
        tail = self._tail(begun)
        if check and not done.succeeded:
            raise NotReadyError(f"{what} failed:{tail}", hint=hint or f"The whole output is in {self.log}.")
        return done.code, tail

    def _clean(self, begun: int) -> None:
        """Remove secrets from the log since `begun`: the address of an index or a proxy may contain a password."""
        with self.log.open("r+b") as file:
            file.seek(begun)
            said = file.read()
            cleaned = redact(said.decode(errors="surrogateescape")).encode(errors="surrogateescape")
            if cleaned != said:
                file.seek(begun)
                file.write(cleaned)
                file.truncate()

    def _tail(self, begun: int) -> str:
        with self.log.open("rb") as file:
            file.seek(max(begun, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return "".join(f"\n  {one_line(line)}" for line in lines[-_TAIL_LINES:]) or " no output"
