"""`wan-train report`: the story of a run as a page and as data, beside its records."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wan_train.base import codec
from wan_train.base.errors import BadInputError, ExitCode, NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.settings import Settings
from wan_train.base.text import visible
from wan_train.cli.html_files import is_ours
from wan_train.cli.output import Sink
from wan_train.run.directory import RunDirectory, find
from wan_train.views.report.page import GENERATOR, page
from wan_train.views.report.read_records import read_story
from wan_train.views.report.report_json import report_json

_OURS = b'{"event": "report"'
"""How every report.json begins."""


def report(settings: Settings, sink: Sink, name: str | None) -> int:
    """Write report.html and report.json into the run's directory, of a run that goes on too; say where they are."""
    run = find(settings.runs, name)
    _check_free(run)
    with _one_at_a_time(run):
        story = read_story(run, time.time())
        data = report_json(story)
        # The data comes last: it tells when its page was made.
        for path, content in ((run.report_page, page(story)), (run.report_data, codec.dumps(data) + "\n")):
            _write(path, content)
    if sink.as_json:
        sink.data(data)
    else:
        sink.line(str(run.report_page))
        if not story.is_final:
            sink.note("The run is not over, so this is not its last word.")
        sink.note("It is one file that opens in any browser, also on another computer.")
    return ExitCode.DONE


@contextmanager
def _one_at_a_time(run: RunDirectory) -> Iterator[None]:
    """Who reads later writes later: a report begun while the run went on must not come after that of its end."""
    descriptor = os.open(run.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks on directories
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, content: str) -> None:
    try:
        write_whole(path, content.encode("utf-8"))
    except OSError as error:
        raise NotReadyError(
            f"{visible(str(path))} cannot be written: {error.strerror}",
            hint="Free some space (`wan-train runs` lists old runs), then say it again.",
        ) from error


def _check_free(run: RunDirectory) -> None:
    """Raises BadInputError where a file that is no report of ours has a report's name."""
    for path, ours in ((run.report_page, _is_page), (run.report_data, _is_data)):
        try:
            is_foreign = path.exists() and not ours(path)
        except OSError as error:
            raise BadInputError(
                f"{visible(str(path))} cannot be used: {error.strerror}", hint="Move it away, then say it again."
            ) from None
        if is_foreign:
            raise BadInputError(
                f"{visible(str(path))} was not made by `wan-train report`, so it was left alone",
                hint="Move it away, then say it again.",
            )


def _is_page(path: Path) -> bool:
    return is_ours(path, GENERATOR)


def _is_data(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_OURS)) == _OURS
