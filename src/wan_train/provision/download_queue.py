"""One at a time, in a fixed order, out of steps that otherwise run at once: the line to the network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_LOOK_SECONDS = 0.2

Hear = Callable[[str, str | None], None]
"""Told (step, the step before it in line) while one waits, (step, None) when its turn has come."""


class Lane:
    """The order is known before the first comes, so that a late first is waited for."""

    def __init__(self, order: Sequence[str]) -> None:
        self._order = list(order)
        self._changed = threading.Condition()
        self._hear: Hear | None = None

    def listen(self, hear: Hear) -> None:
        self._hear = hear

    @contextmanager
    def turn(self, step: str, look: Callable[[], None]) -> Iterator[None]:
        """Wait until all before `step` have left; leave at the end. `look` is called while waiting and may raise."""
        told: str | None = None
        with self._changed:
            while step in self._order and self._order[0] != step:
                before = self._order[self._order.index(step) - 1]
                if before != told:
                    told = before
                    self._tell(step, before)
                self._changed.wait(_LOOK_SECONDS)
                look()
        if told is not None:
            self._tell(step, None)
        try:
            yield
        finally:
            self.leave(step)

    def leave(self, step: str) -> None:
        """This one needs no turn, or none any more."""
        with self._changed:
            if step in self._order:
                self._order.remove(step)
            self._changed.notify_all()

    def _tell(self, step: str, before: str | None) -> None:
        if self._hear is not None:
            self._hear(step, before)
