"""Reports the progress of a provision on a redrawn screen or as lines; the log gets all lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from wan_train.cli.output import Sink
from wan_train.cli.signals import Signals
from wan_train.provision.status_table import StatusTable
from wan_train.provision.workspace import LockedWorkspace
from wan_train.views.provision import Heading, Screen

_DRAW_SECONDS = 0.25


@dataclass(slots=True, kw_only=True)
class Reporter:
    """Reports from one thread: its `tick` prints, checks the signals and sets `ended`."""

    table: StatusTable
    heading: Heading
    sink: Sink
    workspace: LockedWorkspace
    signals: Signals
    ended: threading.Event
    _drawn: float = 0.0
    _width: int = 0
    _is_gone: bool = False
    _has_screen: bool = field(init=False)
    _screen: Screen = field(init=False)

    def __post_init__(self) -> None:
        # Checked once: later the screen replaces stdout, or the terminal is gone.
        self._has_screen = self.sink.can_draw
        self._screen = Screen(
            self.sink.console, self.heading, is_drawn=self._has_screen, ascii_only=self.sink.ascii_only
        )

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Own the screen, if any, until the end; then also print the last lines of the steps."""
        self._screen.start()
        try:
            yield
        finally:
            with suppress(OSError):  # the terminal may be gone
                self._screen.stop()
        self._print_messages()

    def tick(self) -> None:
        if self.signals.any and not self.ended.is_set():
            self.ended.set()
            self._line("provision", "stopping; completed work is kept", at=time.time())
        self._print_messages()
        self._draw()
        for title, line in self._screen.heartbeats(time.monotonic()):
            self._line(title, line, at=time.time())

    def _print_messages(self) -> None:
        for message in self.table.take_messages():
            self._line(message.title, message.text, at=message.at)

    def _line(self, title: str, text: str, *, at: float) -> None:
        self.workspace.log(f"{title}: {text}", at=at)
        if self._has_screen:
            return
        for line in f"{title}: {text}".split("\n"):
            self.sink.step(line)

    def _draw(self) -> None:
        width = self.sink.console.width
        try:
            if width < self._width and self._has_screen and not self._is_gone:
                self.sink.console.clear()  # the terminal rewrapped the output to an unknown height
            self._width = width
            self._screen.show(self.table.rows(), ending=self.ended.is_set())
            now = time.monotonic()
            if self._has_screen and not (self._is_gone or self.signals.hung_up) and now - self._drawn >= _DRAW_SECONDS:
                self._drawn = now
                self._screen.draw()
        except OSError:
            # The terminal was closed. HUP, unless ignored, ends the work in order.
            self._is_gone = True
            with suppress(OSError):
                self._screen.stop()
