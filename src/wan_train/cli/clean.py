"""`wan-train clean`: show what can be removed and its size, ask, remove."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from wan_train.base.errors import BadInputError, ExitCode, NotReadyError, WanTrainError
from wan_train.base.settings import Settings
from wan_train.cli import questions
from wan_train.cli.output import Sink
from wan_train.provision.clean import Junk, Kind, find_junk, remove
from wan_train.run.directory import find
from wan_train.views import formatting

_A_DAY = 86_400
_ABOUT = {
    Kind.STATE: "old state",
    Kind.REHEARSAL: "rehearsal",
    Kind.RUN: "run",
    Kind.HALF: "half removed",
    Kind.DOWNLOAD: "download",
}


def clean(
    settings: Settings, sink: Sink, *, names: Sequence[str], older_than: float | None, yes: bool, dry_run: bool
) -> int:
    """Show what may go, ask, and remove it; the exit code."""
    found = _found(settings, names, older_than)
    for junk in found:
        sink.line(_line(junk))
    total = sum(junk.bytes for junk in found)
    if not found or dry_run:
        sink.line(f"{formatting.file_size(total)} can be freed." if found else "There is nothing to remove.")
        return _report(sink, found, [], [], dry_run=True)
    if not yes and not _agreed(found, total, sink):
        sink.line("Nothing was removed.")
        return ExitCode.DONE
    removed: list[Junk] = []
    failures: list[str] = []
    for junk in found:
        try:
            remove(junk, settings)
        except WanTrainError as error:
            failures.append(error.message)
        except OSError as error:
            failures.append(f"{junk.path}: {error.strerror}")
        else:
            removed.append(junk)
    sink.line(f"{formatting.file_size(sum(junk.bytes for junk in removed))} freed.")
    code = _report(sink, found, removed, failures, dry_run=False)
    if failures:
        raise NotReadyError(
            "\n".join(["not everything was removed:", *failures]), hint="See the rest: `wan-train clean`."
        )
    return code


def _found(settings: Settings, names: Sequence[str], older_than: float | None) -> list[Junk]:
    if older_than is not None and not 0 <= older_than < math.inf:
        raise BadInputError(
            f"--older-than {older_than:g} is not a number of days", hint="For a week: `--older-than 7`."
        )
    if names and older_than is not None:
        raise BadInputError("--older-than chooses runs, and runs were named", hint="Give one of them.")
    named = list(dict.fromkeys(find(settings.runs, name) for name in names))
    seconds = None if older_than is None else older_than * _A_DAY
    return find_junk(settings, named=named, older_than=seconds, now=time.time())


def _agreed(found: Sequence[Junk], total: int, sink: Sink) -> bool:
    if not sink.is_terminal or sink.as_json:
        raise BadInputError(
            "nothing was removed: there is no terminal to ask at, and --yes was not given",
            hint="Add --yes to remove it, or --dry-run to see it only.",
        )
    return questions.confirm(f"Remove all of this ({formatting.file_size(total)}){_warning(found)}?", default=False)


def _report(
    sink: Sink, found: Sequence[Junk], removed: Sequence[Junk], failures: Sequence[str], *, dry_run: bool
) -> int:
    if sink.as_json:
        items = [
            {
                "kind": junk.kind.value,
                "path": str(junk.path),
                "bytes": junk.bytes,
                "run_id": junk.run.run_id if junk.run is not None else None,
                "removed": junk in removed,
            }
            for junk in found
        ]
        freed = sum(junk.bytes for junk in removed)
        sink.data({"event": "clean", "dry_run": dry_run, "items": items, "bytes": freed, "failures": list(failures)})
    return ExitCode.DONE


def _line(junk: Junk) -> str:
    also = f" with {formatting.count(junk.loras, 'finished LoRA')}" if junk.loras else ""
    return f"{formatting.file_size(junk.bytes):>9}  {_ABOUT[junk.kind]}{also}  {junk.path}"


def _warning(found: Sequence[Junk]) -> str:
    loras = sum(junk.loras for junk in found)
    return f", {formatting.count(loras, 'finished LoRA')} among it" if loras else ""
