"""The live view of a run as a pure function of its records."""

from __future__ import annotations

from rich.console import Group
from rich.text import Text

from wan_train.views.model import RunView


def render(
    view: RunView, now: float, width: int, *, height: int | None = None, ascii_only: bool = False
) -> Group:
    """The screen at `now` (seconds since 1970) in at most `width` columns, and `height` lines if given."""
    del now, height, ascii_only
    lines = [f"{job.step}  {job.state}" for job in view.state.jobs.values()]
    return Group(*(Text(line[:width]) for line in lines))
