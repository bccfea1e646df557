"""`wan-train report` and `wan-train compare`: runs as HTML pages and as data."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path

from wan_train.base import codec, locks
from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.text import visible
from wan_train.cli import html_files, options
from wan_train.cli.call import Call
from wan_train.cli.output import Result, Sink
from wan_train.run.directory import RunDirectory, find
from wan_train.views.report import comparison
from wan_train.views.report.comparison import compare_json, compared_lines, comparison_page
from wan_train.views.report.page import GENERATOR, page
from wan_train.views.report.report_data import read_report_data
from wan_train.views.report.report_json import report_json

_DATA_START = b'{"event": "report"'


def report(call: Call) -> Result:
    """Write report.html and report.json into the directory of a run, finished or not."""
    run = find(call.settings.runs, call.get(options.RUN))
    _check_replaceable(run)
    with ExitStack() as stack:
        # Read and write under one lock: a report of an unfinished run must not replace the final one.
        with suppress(OSError):  # a file system without locks
            stack.enter_context(locks.held(run.path / "report.lock", wait=True))
        found = read_report_data(run, time.time())
        data = report_json(found)
        # Write the data last: it says when the page was made.
        for path, content in ((run.report_page, page(found)), (run.report_data, codec.dumps(data) + "\n")):
            _write(path, content)

    def text(sink: Sink) -> None:
        sink.line(str(run.report_page))
        if not found.is_final:
            sink.note("The run has not finished, so this report is not final.")
        sink.note("The page is one file. It opens in any browser, also on another computer.")

    return Result(data=lambda: data, text=text)


def compare(call: Call) -> Result:
    """Show the settings and results that differ between runs. Raises BadInputError for fewer than two runs."""
    target, html = None, call.get(options.COMPARE_PAGE)
    if html is not None:
        target = html_files.target_of(
            html, call.sink, yes=call[options.YES], generator=comparison.GENERATOR, command="compare --html"
        )
    runs = {run.path: run for run in (find(call.settings.runs, name) for name in call.all(options.RUNS))}
    if len(runs) < 2:
        raise BadInputError(
            f"compare needs two different runs; {len(runs)} was named", hint="List the runs: `wan-train runs`."
        )
    now = time.time()
    reports = [read_report_data(run, now, with_pictures=False) for run in runs.values()]
    if target is not None:
        html_files.write_page(target, comparison_page(reports))
        call.sink.note(f"HTML page: {target}")
    return Result(data=lambda: compare_json(reports), text=lambda sink: sink.show(compared_lines(reports)))


def _write(path: Path, content: str) -> None:
    try:
        write_whole(path, content.encode("utf-8"))
    except OSError as error:
        raise NotReadyError(
            f"{visible(str(path))} cannot be written: {error.strerror}",
            hint="Free some disk space: `wan-train clean`\nThen rerun `wan-train report`.",
        ) from error


def _check_replaceable(run: RunDirectory) -> None:
    """Raise BadInputError if a foreign file has the name of a report."""
    for path, is_ours in ((run.report_page, _is_page), (run.report_data, _is_data)):
        hint = "Move it away, then rerun `wan-train report`."
        try:
            is_foreign = path.exists() and not is_ours(path)
        except OSError as error:
            raise BadInputError(f"{visible(str(path))} cannot be used: {error.strerror}", hint=hint) from None
        if is_foreign:
            raise BadInputError(
                f"{visible(str(path))} was not made by `wan-train report`, so it was left alone", hint=hint
            )


def _is_page(path: Path) -> bool:
    return html_files.is_ours(path, GENERATOR)


def _is_data(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_DATA_START)) == _DATA_START
