"""Tells how a provision goes on while it works: a screen that is redrawn, or lines; and the log gets all lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wan_train.cli.output import Sink
from wan_train.cli.signals import Signals
from wan_train.provision.provision_log import ProvisionLog
from wan_train.provision.status_table import Board
from wan_train.views.provision import Heading, render
from wan_train.views.provision_text import Heartbeat

if TYPE_CHECKING:
    from rich.live import Live

_DRAW_SECONDS = 0.25


@dataclass(slots=True, kw_only=True)
class Teller:
    """Its `tick` is called by the one thread that prints, which also sees the signals and sets `ended`."""

    board: Board
    heading: Heading
    sink: Sink
    log: ProvisionLog
    signals: Signals
    ended: threading.Event
    _heartbeat: Heartbeat = field(default_factory=Heartbeat)
    _display: Live | None = None
    _drawn: float = 0.0
    _width: int = 0
    _ascii_only: bool = field(init=False)
    _on_screen: bool = field(init=False)

    def __post_init__(self) -> None:
        # Asked once: later the display stands in the place of stdout, or the terminal is gone.
        self._ascii_only = self.sink.ascii_only
        self._on_screen = self.sink.is_screen and not self.sink.as_json and not self.sink.quiet

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Own the screen, where there is one, until the end; then the last words of the steps are said too."""
        if self._on_screen:
            from rich.live import Live

            display = Live(console=self.sink.console, auto_refresh=False, transient=True)
            display.start()
            self._display = display
            try:
                yield
            finally:
                self._display = None
                with suppress(OSError):  # the terminal may be gone, and what stands on it with it
                    display.stop()
        else:
            yield
        self._say()

    def tick(self) -> None:
        if self.signals.any and not self.ended.is_set():
            self.ended.set()
            self._line("provision", "ending what is at work; what is complete is kept", at=time.time())
        self._say()
        now = time.monotonic()
        for title, line in self._heartbeat.due(self.board.rows(), now):
            self._line(title, line, at=time.time())
        if self._display is not None and not self.signals.hung_up and now - self._drawn >= _DRAW_SECONDS:
            self._drawn = now
            self._draw(self._display)

    def _say(self) -> None:
        for said in self.board.take_said():
            self._line(said.title, said.text, at=said.at)

    def _line(self, title: str, text: str, *, at: float) -> None:
        self.log.write(f"{title}: {text}", at=at)
        if self._on_screen:
            return
        say = self.sink.note if self.sink.as_json else self.sink.line
        first, *more = text.split("\n")
        say(f"{title}: {first}")
        for line in more:
            say(line)

    def _draw(self, display: Live) -> None:
        width, height = self.sink.console.size
        screen = render(
            self.board.rows(),
            time.monotonic(),
            width,
            heading=self.heading,
            height=height,
            ascii_only=self._ascii_only,
            ending=self.ended.is_set(),
        )
        try:
            if width < self._width:
                self.sink.console.clear()  # the terminal has wrapped what was drawn, nobody knows over how many lines
            self._width = width
            display.update(screen, refresh=True)
        except OSError:
            # A closed terminal. The signal that tells so, if it is not ignored, ends the work in order.
            self._display = None
            with suppress(OSError):
                display.stop()
