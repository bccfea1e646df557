"""All runs as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from wan_train.base.text import visible
from wan_train.views.json_records import status_json
from wan_train.views.model import RunView
from wan_train.views.run_status import is_rehearsal


def runs_lines(views: Sequence[RunView], now: float) -> Table:
    """One line for each run: id, state, when it began, what came out."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for heading in ("RUN", "STATE", "STARTED", "EXPERTS", "RESULTS"):
        table.add_column(heading, no_wrap=heading != "RESULTS", overflow="ellipsis")
    for view in views:
        results = [job for job in view.state.jobs.values() if job.result is not None]
        experts = ", ".join(spec.expert.value for spec in view.plan.recipe.experts)
        table.add_row(
            Text(visible(view.run.run_id)),
            Text(str(status_json(view, now)["state"])),
            Text(time.strftime("%Y-%m-%d %H:%M", time.localtime(view.plan.created))),
            Text(experts),
            Text(f"{'rehearsal, ' if is_rehearsal(view) else ''}{_came_out(len(results))}"),
        )
    return table


def _came_out(results: int) -> str:
    return f"{results} LoRA{'s' if results != 1 else ''}" if results else "none"
