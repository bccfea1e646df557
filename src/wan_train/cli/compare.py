"""`wan-train compare`: two or more runs side by side, at the terminal, as a page, as JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence

from wan_train.base.errors import BadInputError, ExitCode
from wan_train.base.settings import Settings
from wan_train.cli import html_files
from wan_train.cli.output import Sink
from wan_train.run.directory import find
from wan_train.views.report.comparing import compare_json, compared_lines
from wan_train.views.report.comparison_page import GENERATOR, comparison_page
from wan_train.views.report.read_records import read_story


def compare(settings: Settings, sink: Sink, names: Sequence[str], *, html: str | None, yes: bool) -> int:
    """Show what differs between runs and what came of it. Raises BadInputError for fewer than two different runs."""
    verb = "compare --html"
    target = None if html is None else html_files.target_of(html, sink, yes=yes, generator=GENERATOR, verb=verb)
    runs = {run.path: run for run in (find(settings.runs, name) for name in names)}
    if len(runs) < 2:  # noqa: PLR2004  a comparison
        raise BadInputError(
            f"{len(runs)} run is named, and comparing takes two", hint="List the runs there are: `wan-train runs`."
        )
    now = time.time()
    stories = [read_story(run, now, with_pictures=False) for run in runs.values()]
    if target is not None:
        html_files.write_page(target, comparison_page(stories))
    if sink.as_json:
        sink.data(compare_json(stories))
    else:
        sink.show(compared_lines(stories))
    if target is not None:
        sink.note(f"The page is {target}.")
    return ExitCode.DONE
