"""`wan-train clean`: show what can be removed and its size, ask, remove."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from wan_train.base import units
from wan_train.base.errors import BadInputError, NotReadyError, WanTrainError
from wan_train.base.units import count
from wan_train.cli import options, questions
from wan_train.cli.call import Call
from wan_train.cli.output import Result
from wan_train.provision.clean import Junk, Kind, find_junk, remove
from wan_train.run.directory import find

_A_DAY = 86_400
_ABOUT = {
    Kind.STATE: "old state",
    Kind.REHEARSAL: "rehearsal",
    Kind.RUN: "run",
    Kind.HALF: "half removed",
    Kind.DOWNLOAD: "download",
}


def clean(call: Call) -> Result:
    """Show what can be removed, ask, and remove it."""
    sink, found = call.sink, _found(call)
    for junk in found:
        sink.line(_line(junk))
    total = units.file_size(sum(junk.bytes for junk in found))
    if not found or call[options.DRY_CLEAN]:
        return _result(
            found, [], [], f"{total} can be freed." if found else "There is nothing to remove.", dry_run=True
        )
    if not call[options.YES]:
        sink.require_person("nothing was removed", "Add --yes to remove it, or --dry-run to see it only.")
        if not questions.confirm(f"Remove all of this ({total}){_warning(found)}?", default=False):
            sink.line("Nothing was removed.")
            return Result()
    removed: list[Junk] = []
    failures: list[str] = []
    for junk in found:
        try:
            remove(junk, call.settings)
        except WanTrainError as error:
            failures.append(error.message)
        except OSError as error:
            failures.append(f"{junk.path}: {error.strerror}")
        else:
            removed.append(junk)
    freed = units.file_size(sum(junk.bytes for junk in removed))
    result = _result(found, removed, failures, f"{freed} freed.", dry_run=False)
    if failures:
        sink.render(result)
        raise NotReadyError(
            "\n".join(["not everything was removed:", *failures]), hint="See the rest: `wan-train clean`."
        )
    return result


def _found(call: Call) -> list[Junk]:
    names, older_than, runs = call.all(options.RUNS_TO_REMOVE), call.get(options.OLDER_THAN), call.settings.runs
    if older_than is not None and not 0 <= older_than < math.inf:
        raise BadInputError(
            f"--older-than {older_than:g} is not a number of days", hint="For a week: `--older-than 7`."
        )
    if names and older_than is not None:
        raise BadInputError("--older-than and run names cannot be given together", hint="Give one of them.")
    named = list(dict.fromkeys(find(runs, name) for name in names))
    seconds = None if older_than is None else older_than * _A_DAY
    return find_junk(call.settings, named=named, older_than=seconds, now=time.time())


def _result(
    found: Sequence[Junk], removed: Sequence[Junk], failures: Sequence[str], outcome: str, *, dry_run: bool
) -> Result:
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
    data = {"event": "clean", "dry_run": dry_run, "items": items, "bytes": freed, "failures": list(failures)}
    return Result(data=lambda: data, text=lambda sink: sink.line(outcome))


def _line(junk: Junk) -> str:
    also = f" with {count(junk.loras, 'finished LoRA')}" if junk.loras else ""
    return f"{units.file_size(junk.bytes):>9}  {_ABOUT[junk.kind]}{also}  {junk.path}"


def _warning(found: Sequence[Junk]) -> str:
    loras = sum(junk.loras for junk in found)
    return f", including {count(loras, 'finished LoRA')}" if loras else ""
