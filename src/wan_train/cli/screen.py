"""The terminal during a live view: alternate screen and single keys, restored afterwards."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from wan_train.views.lines import Line, to_rich

if TYPE_CHECKING:
    from rich.console import Console

# Alternate screen, no cursor, no wrapping: a line must not become two when the window shrinks.
_TAKE = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_GIVE_BACK = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
_CLEAR = "\x1b[2J"


class TerminalGoneError(Exception):
    """The terminal was closed."""


class Screen:
    """Takes over the terminal; restores it at the end, when suspended (Ctrl-Z) and after any error.

    A background job neither takes the terminal nor draws.
    """

    def __init__(self, console: Console, *, ascii_only: bool) -> None:
        self._console = console
        self._ascii_only = ascii_only
        self._keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._modes: list[Any] | None = None
        self._shown: list[Line] = []
        self._size = (0, 0)
        self._suspended = False
        self._before: Any = signal.SIG_DFL

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGTSTP)
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, self._note_suspend)
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()
        signal.signal(signal.SIGTSTP, self._before)

    @property
    def size(self) -> tuple[int, int]:
        """Current columns and rows."""
        return self._console.size

    def paint(self, lines: Sequence[Line]) -> None:
        """Show exactly these lines; only changed ones are sent. Raises TerminalGoneError."""
        if not self._take():
            return
        size = self.size
        out = []
        if size != self._size:
            self._size, self._shown = size, []
            out.append(_CLEAR)
        lines = list(lines)[: size[1]]
        for row in range(max(len(lines), len(self._shown))):
            new = lines[row] if row < len(lines) else Line()
            if row >= len(self._shown) or new != self._shown[row]:
                out.append(f"\x1b[{row + 1};1H\x1b[2K{self._drawn(new)}")
        self._shown = lines
        if out:
            self._write("".join(out))

    def keys(self, seconds: float) -> str:
        """Return input within `seconds`, at once when it comes. Suspends on Ctrl-Z. Raises TerminalGoneError."""
        self._suspend_if_asked()
        typed = b""
        if self._modes is None or self._keyboard is None:
            time.sleep(seconds)
        elif select.select([self._keyboard], [], [], seconds)[0]:
            with suppress(OSError):
                typed = os.read(self._keyboard, 1024)
            if not typed:
                raise TerminalGoneError
        self._suspend_if_asked()
        return typed.decode(errors="replace")

    def _take(self) -> bool:
        """Take the terminal if possible; whether we may draw on it."""
        if self._modes is not None or self._keyboard is None:
            return self._keyboard is not None
        if not _in_foreground(self._keyboard):
            return False
        try:
            self._modes = termios.tcgetattr(self._keyboard)
            tty.setcbreak(self._keyboard, termios.TCSADRAIN)
        except termios.error as error:
            raise TerminalGoneError from error
        self._size = (0, 0)
        self._write(_TAKE)
        return True

    def _give_back(self) -> None:
        if self._modes is None or self._keyboard is None:
            return
        modes, self._modes = self._modes, None
        with suppress(TerminalGoneError):
            self._write(_GIVE_BACK)
        with suppress(termios.error):
            termios.tcsetattr(self._keyboard, termios.TCSADRAIN, modes)

    def _note_suspend(self, _number: int, _frame: FrameType | None) -> None:
        self._suspended = True

    def _suspend_if_asked(self) -> None:
        if not self._suspended:
            return
        self._suspended = False
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # The process is suspended here; the next redraw takes the terminal again.
        signal.signal(signal.SIGTSTP, self._note_suspend)

    def _drawn(self, one: Line) -> str:
        with self._console.capture() as captured:
            self._console.print(to_rich(one, self._size[0], ascii_only=self._ascii_only), end="")
        return captured.get().rstrip("\n")

    def _write(self, text: str) -> None:
        try:
            self._console.file.write(text)
            self._console.file.flush()
        except OSError as error:
            raise TerminalGoneError from error


def _in_foreground(terminal: int) -> bool:
    """Whether this process may use its terminal; true without job control."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return True
