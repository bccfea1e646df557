"""`wan-train upload`: send a run's finished files, verify them, and show where they are."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from typing import Any

from wan_train.base.clock import SystemClock
from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.huggingface import HUB_ENV
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.cli import options
from wan_train.cli.call import Call
from wan_train.cli.output import Result, Sink
from wan_train.run.directory import RunDirectory, find
from wan_train.run.duties import read_duties
from wan_train.upload.content import Extra
from wan_train.upload.destinations import SCHEMES, RcloneTarget, Target, parse_all
from wan_train.upload.status import statuses
from wan_train.upload.store import StoreError
from wan_train.upload.uploader import Uploader, store_of
from wan_train.views.json_records import upload_json
from wan_train.views.uploads import download_command, upload_text

_NICE = 19


def upload(call: Call) -> Result:
    """Send everything that is ready and not yet verified; succeeds when all of it is verified."""
    name, words = call.get(options.UPLOAD_RUN), list(call.all(options.UPLOAD_TARGETS))
    if name is not None and name.startswith(SCHEMES):  # the run may be left out
        words, name = [name, *words], None
    run = find(call.settings.runs, name)
    duties = read_duties(run)
    targets = parse_all(words or (duties.uploads if duties is not None else ()))
    if not targets:
        raise BadInputError(
            f"{run.run_id} has no targets to upload to",
            hint=f"Name one: `wan-train upload {run.run_id} hf:USER/REPO`",
        )
    asked = call.get(options.BY_HAND_WITH)
    extras = extras_of(asked) if asked is not None else (duties.upload_extras if duties is not None else ())
    os.environ.update(HUB_ENV)
    _give_way()
    uploader = Uploader(
        run=run,
        extras=extras,
        stores=lambda target, lock: store_of(target, call.settings, run_id=run.run_id, lock=lock),
        clock=SystemClock(),
        sleep=time.sleep,
        say=call.sink.step,
    )
    uploader.upload(targets)
    return _result(run, targets, extras, uploader)


def targets_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the targets in recorded form, each once; raises BadInputError."""
    return tuple(str(target) for target in parse_all(texts))


def check_targets(texts: Sequence[str], settings: Settings, sink: Sink) -> None:
    """Write a small file to each target and remove it; raises NotReadyError with all problems.

    A hub that is down is only noted: the box costs money already, and uploads are retried during the training.
    """
    os.environ.update(HUB_ENV)
    problems = []
    for target in parse_all(texts):
        try:
            store_of(target, settings).check()
        except StoreError as error:
            if error.final or isinstance(target, RcloneTarget):
                problems.append(error)
            else:
                sink.note(f"{target} cannot be checked now: {error.reason}. It is tried again during the training.")
        else:
            sink.note(f"{target} can be written to.")
    if problems:
        raise _together(problems, before="nothing was started: ")


def extras_of(text: str) -> tuple[str, ...]:
    """Parse what to upload on request, such as `samples,dataset`; raises BadInputError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in set(Extra):
            raise BadInputError(
                f"{one_line(word)!r} is nothing that can be uploaded on request", hint=f"Use {', '.join(Extra)}."
            )
    return tuple(dict.fromkeys(words))


def _result(run: RunDirectory, targets: Sequence[Target], extras: Sequence[str], uploader: Uploader) -> Result:
    found = statuses(run, [str(target) for target in targets], extras)
    about = {"event": "upload", "run_id": run.run_id, "run_dir": str(run.path)}

    def data() -> dict[str, Any]:
        return {**about, "uploads": [upload_json(each) for each in found]}

    def text(sink: Sink) -> None:
        for each in found:
            if str(each.target) not in uploader.problems:
                sink.line(upload_text(each))
        commands = [command for each in found if (command := download_command(each)) is not None]
        if commands:
            sink.line("Download (on your own computer):")
            for command in commands:
                sink.line(f"    {command}")

    return Result(data=data, text=text, error=_error(uploader))


def _error(uploader: Uploader) -> NotReadyError | None:
    if not uploader.problems:
        return None
    again = shlex.join(["wan-train", "upload", uploader.run.run_id, *uploader.problems])
    return _together(
        list(uploader.problems.values()), then=f"Then repeat it; what is there is not sent again: `{again}`"
    )


def _together(problems: Sequence[StoreError], *, before: str = "", then: str | None = None) -> NotReadyError:
    hints = dict.fromkeys([*(problem.hint for problem in problems if problem.hint), *([then] if then else [])])
    left = "\n".join(problem.message for problem in problems)
    return NotReadyError(f"{before}{left}", hint="\n".join(hints) or None)


def _give_way() -> None:
    """Lower our CPU and disk priority: a training on this box comes first."""
    import psutil

    try:
        me = psutil.Process()
        me.nice(_NICE)
        me.ionice(psutil.IOPRIO_CLASS_IDLE)
    except (psutil.Error, OSError, ValueError):
        return  # a container may forbid it
