"""One line to the network for several servers: what one of them sends, the others wait for."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Link:
    """`rate` in bytes a second for everything together."""

    rate: float
    _free: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def carry(self, count: int) -> None:
        """Come back when these bytes have gone through."""
        with self._lock:
            self._free = max(self._free, time.monotonic()) + count / self.rate
            free = self._free
        time.sleep(max(0.0, free - time.monotonic()))
