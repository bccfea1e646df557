"""Ten thousand items at once: what Python does for each of them that nobody needs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Inside, Python does not look for garbage in cycles; as a decorator for a whole call.

    Values of many items hold no cycles, and going through all of them again and again takes a quarter of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
