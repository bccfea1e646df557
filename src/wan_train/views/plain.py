"""One line per event, for terminals without colour, logs and CI."""

from __future__ import annotations

import time

from wan_train.run.events import Event
from wan_train.views.model import RunView


def describe(event: Event, view: RunView) -> str | None:
    """What happened on one line, local time first; None for what nobody needs to read."""
    del view
    return f"{time.strftime('%H:%M:%S', time.localtime(event.at))}  {type(event).__name__}"
