"""A run's duties from the options: uploads, messages, ending the box."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import replace
from typing import Any

from wan_train.base.clock import SystemClock, moment
from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.box.vast import RefusedKeyError, UnknownBoxError, Vast, VastError
from wan_train.cli import options
from wan_train.cli.call import Call
from wan_train.cli.notify import keep_addresses
from wan_train.cli.option import Option
from wan_train.cli.upload import check_targets, extras_of, targets_of
from wan_train.notify.targets import read_targets
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Duties, Then, register, write_duties
from wan_train.run.guardian_process import ensure_guardian

_RUN = "run:"
_MOST_HOURS = 24.0 * 365
_MOST_GRACE_MINUTES = 24.0 * 60
_INSTEAD_OF_VAST = "If that one is refused too: `--then nothing` leaves the box on, and you end it at cloud.vast.ai."
_INSTEAD = "Elsewhere, end the box with your own command: `--then 'run:sudo poweroff'`"


def duties_of(call: Call, before: Duties | None = None, *, goes_on: bool = False) -> Duties:
    """Return the duties from the options, on top of the run's earlier ones; raises BadInputError.

    `before` are the duties of a resumed run; they stay unless given again. The time of `--max-hours` restarts, except
    for a run that `goes_on` without a new `--max-hours`.
    """
    began = moment(SystemClock())
    duties = before or Duties(began=began)
    then, grace, hours = call.get(options.THEN), call.get(options.GRACE), call.get(options.MAX_HOURS)
    if not goes_on or hours is not None:
        duties = replace(duties, began=began)
    duties = replace(duties, uploads=_uploads(call, duties))
    extras = call.get(options.UPLOAD_WITH)
    if extras is not None:
        duties = replace(duties, upload_extras=extras_of(extras))
    if then is not None:
        ending, command = _ending(then)
        duties = replace(duties, then=ending, command=command)
        if ending is Then.NOTHING:  # without an ending its time limit is void
            duties = replace(duties, max_hours=None)
    if grace is not None:
        duties = replace(duties, grace_seconds=_within("--grace", grace, _MOST_GRACE_MINUTES, "minutes") * 60)
    if hours is not None:
        duties = replace(duties, max_hours=_within("--max-hours", hours, _MOST_HOURS, "hours", least=1 / 60))
    duties = replace(duties, notify=bool(read_targets(call.settings.notify)))
    _check(duties, call.settings)
    return duties


def check_before(duties: Duties, call: Call) -> None:
    """Check the provider and upload targets that a run needs at its end; raises NotReadyError."""
    if duties.then in {Then.STOP, Then.DESTROY}:
        _check_provider(duties.then, call)
    if duties.uploads:
        check_targets(duties.uploads, call.settings, call.sink)


def changes_duties(call: Call) -> bool:
    """Whether the options of a resume set any duties."""
    others: tuple[Option[Any], ...] = (options.UPLOAD_WITH, options.THEN, options.MAX_HOURS, options.GRACE)
    given = (*call.all(options.OTHER_UPLOAD), *call.all(options.NOTIFY))
    return bool(given) or any(call.get(each) is not None for each in others)


def hand_over(run: RunDirectory, duties: Duties, settings: Settings) -> None:
    """Record a run's duties before it starts, and ensure a live guardian; raises OSError and NotReadyError."""
    keep_addresses(settings)
    if duties.is_empty and not run.duties.exists():
        return
    write_duties(run, duties)
    register(settings.lease_dir, run)
    ensure_guardian(settings)


def _uploads(call: Call, duties: Duties) -> tuple[str, ...]:
    if options.OTHER_UPLOAD not in call.options:
        return targets_of(call.settings.upload)
    given = tuple(call.all(options.OTHER_UPLOAD))
    return () if given == ("none",) else targets_of(given) or duties.uploads


def _ending(text: str) -> tuple[Then, tuple[str, ...]]:
    words = [then.value for then in Then if then is not Then.COMMAND]
    if text in words:
        return Then(text), ()
    hint = f"Use one of {', '.join(words)}, or 'run:COMMAND'."
    if not text.startswith(_RUN):
        raise BadInputError(f"--then {one_line(text)!r} is not an ending", hint=hint)
    try:
        command = tuple(shlex.split(text.removeprefix(_RUN)))
    except ValueError as error:
        raise BadInputError(f"--then {one_line(text)!r}: {str(error).lower()}", hint=hint) from None
    if not command:
        raise BadInputError("--then run: names no command", hint=hint)
    if shutil.which(command[0]) is None:
        raise BadInputError(
            f"--then: there is no program {one_line(command[0])!r}",
            hint="The command is run without a shell. Give a program of this box, or its whole path.",
        )
    return Then.COMMAND, command


def _check(duties: Duties, settings: Settings) -> None:
    """Raise BadInputError for duties that cannot be fulfilled."""
    if duties.max_hours is not None and duties.then is Then.NOTHING:
        raise BadInputError("--max-hours needs an ending", hint="Add `--then stop`, or `--then 'run:COMMAND'`.")
    if duties.then is Then.DESTROY and not duties.uploads:
        raise BadInputError(
            "--then destroy needs an upload: the results would be gone with the box",
            hint="Add `--upload TARGET`, or use `--then stop`, which keeps the disk.",
        )
    if duties.then in {Then.STOP, Then.DESTROY} and Vast.of_this_box(os.environ, settings.vast_url) is None:
        raise BadInputError(
            f"--then {duties.then} works on Vast only, and this box has no CONTAINER_ID and CONTAINER_API_KEY",
            hint=f"On Vast, give them to this shell: `source /etc/environment`\n{_INSTEAD}\n"
            "To leave the box on: `--then nothing`",
        )


def _check_provider(then: Then, call: Call) -> None:
    """Raise NotReadyError if Vast would refuse. If Vast is down, only note it: it may be back when the run is over."""
    vast = Vast.of_this_box(os.environ, call.settings.vast_url)
    if vast is None:
        return  # already refused by `_check`
    try:
        vast.check()
    except (RefusedKeyError, UnknownBoxError) as error:
        raise NotReadyError(
            f"nothing was started: --then {then} would fail: {error}",
            hint=f"`source /etc/environment` gives this shell the box's own key.\n{_INSTEAD_OF_VAST}",
        ) from None
    except VastError as error:
        call.sink.note(f"--then {then} cannot be checked now: {error}. It is tried all the same when the run is over.")


def _within(flag: str, value: float, most: float, unit: str, *, least: float = 0.0) -> float:
    if not least <= value <= most:  # also refuses nan
        raise BadInputError(f"{flag} {value:g} is out of range", hint=f"Use {unit}, {least:.2g} to {most:,.0f}.")
    return value
