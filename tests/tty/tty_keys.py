"""A person at a terminal: keys in, screen out."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable

import pexpect
import pyte

from support import forkserver
from support.pseudo_terminal import ForkedAtTerminal
from support.trainers import PROGRAM, ScriptedBox

ENTER, TAB, DOWN, CTRL_C, CTRL_D, CTRL_U = "\r", "\t", "\x1b[B", "\x03", "\x04", "\x15"
PATIENCE_SECONDS = 60
_ROWS = 40
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]|\x1b\][^\x07]*\x07")


class Terminal:
    """`wan-train` in a pseudo-terminal of its own."""

    def __init__(
        self, box: ScriptedBox, words: list[str], columns: int, env: dict[str, str], program: str = str(PROGRAM)
    ) -> None:
        self.screen = _Recorder(columns)
        whole = box.env(**{"TERM": "xterm-256color", "LANG": "C.UTF-8", **env})
        how = {"encoding": "utf-8", "codec_errors": "replace", "timeout": PATIENCE_SECONDS}
        self.child: pexpect.spawn | ForkedAtTerminal
        if program == str(PROGRAM) and forkserver.suits(whole):
            self.child = ForkedAtTerminal(words, env=whole, cwd=box.root, dimensions=(_ROWS, columns), **how)
        else:
            self.child = pexpect.spawn(program, words, env=whole, cwd=str(box.root), dimensions=(_ROWS, columns), **how)
        self.child.logfile_read = self.screen

    def sees(self, words: str) -> None:
        """Wait for these words; escape sequences may stand between them, as a redrawn prompt has them."""
        gap = r"(?:\x1b\[[0-9;?]*[A-Za-z]|\s)+"
        self.child.expect(gap.join(re.escape(word) for word in words.split()))

    def resize(self, rows: int, columns: int) -> None:
        """As a person drags the corner of the window."""
        self.screen.drawn.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def shows(self, condition: Callable[[list[str]], object]) -> list[str]:
        """Wait until the lines on the screen are as wanted; the lines."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition(lines := [line.rstrip() for line in self.screen.drawn.display]):
            if time.monotonic() > deadline:
                raise TimeoutError("\n".join(["never shown as wanted; now:", *lines]))
            with contextlib.suppress(pexpect.TIMEOUT):
                self.child.expect(".+", timeout=0.2)
        return lines

    def types(self, text: str) -> None:
        self.child.send(text)

    def answers(self, question: str, answer: str = "") -> None:
        """Wait for a question; type the answer in place of its default, if there is one; Enter."""
        self.sees(question)
        self.types(answer + ENTER)

    def ends(self) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus if self.child.exitstatus is not None else -(self.child.signalstatus or 0)

    @property
    def raw(self) -> str:
        """Everything that reached the terminal."""
        return self.screen.text

    @property
    def text(self) -> str:
        """The same without escape sequences."""
        return _ESCAPES.sub("", self.screen.text).replace("\r", "")


class _Recorder:
    def __init__(self, columns: int) -> None:
        self.text = ""
        self.drawn = pyte.Screen(columns, _ROWS)
        self._stream = pyte.Stream(self.drawn)

    def write(self, text: str) -> None:
        self.text += text
        self._stream.feed(text)

    def flush(self) -> None:
        """Nothing is held back."""


Start = Callable[..., Terminal]
"""`start("attach", columns=60, TERM="dumb")` runs `wan-train attach` at a terminal."""
