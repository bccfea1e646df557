"""One at a time, in a fixed order, out of steps that otherwise run at once: the line to the network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_LOOK_SECONDS = 0.2


class Lane:
    """The order is known before the first comes, so that a late first is waited for."""

    def __init__(self, order: Sequence[str]) -> None:
        self._order = list(order)
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, step: str, look: Callable[[], None]) -> Iterator[None]:
        """Wait until all before `step` have left; leave at the end. `look` is called while waiting and may raise."""
        with self._changed:
            while step in self._order and self._order[0] != step:
                self._changed.wait(_LOOK_SECONDS)
                look()
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
