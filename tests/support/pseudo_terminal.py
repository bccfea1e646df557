"""A forked `wan-train` at a pseudo-terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

from pexpect.fdpexpect import fdspawn

from support import forkserver

_CLOSING_SECONDS = 1.0
_PATIENCE_SECONDS = 60


class ForkedAtTerminal(fdspawn):
    """A forked `wan-train` at a pseudo-terminal, with the part of `pexpect.spawn` that tests use."""

    def __init__(
        self, words: list[str], *, env: dict[str, str], cwd: Path, dimensions: tuple[int, int], **how: Any
    ) -> None:
        terminal, its_end = os.openpty()
        super().__init__(terminal, **how)
        self.exitstatus: int | None = None
        self.signalstatus: int | None = None
        self.setwinsize(*dimensions)
        self._program = forkserver.start_at_terminal(words, env=env, cwd=cwd, terminal=its_end)
        os.close(its_end)

    def setwinsize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.child_fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self, *, force: bool = True) -> None:
        """Close the terminal, so that the program gets SIGHUP. With `force`, kill the program."""
        if not self.closed:
            super().close()
        if force:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._program.wait(_CLOSING_SECONDS)
            self._program.kill()
        code = self._program.wait(_PATIENCE_SECONDS)
        self.exitstatus, self.signalstatus = (code, None) if code >= 0 else (None, -code)
