"""`wan-train notify`: show and test message services, and save their addresses for the guardian."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.settings import Settings, Source, environment_name, is_readable_by_others, remember
from wan_train.cli import options
from wan_train.cli.call import Call
from wan_train.cli.option import NotifyAction
from wan_train.cli.output import Result, Sink
from wan_train.notify.delivery_log import Mark
from wan_train.notify.dispatcher import send_now
from wan_train.notify.send import Message, Outcome
from wan_train.notify.targets import Target, read_targets

_SETTING = "notify"
_EXAMPLE = "wan-train notify test --notify ntfy://TOPIC"


def notify(call: Call) -> Result:
    """Show the services, or send each a test message. Raises BadInputError for an invalid address."""
    targets = read_targets(call.settings.notify)
    if call[options.NOTIFY_ACTION] is NotifyAction.TEST:
        return _test(targets)
    source = call.settings.source_of(_SETTING)
    where = _where(source)

    def text(sink: Sink) -> None:
        if not targets:
            sink.line("No messages are sent. Try a service, then give the same --notify to a training:")
            sink.line(f"  {_EXAMPLE}")
            return
        sink.line(f"Messages about every run go to ({where}):")
        for target in targets:
            sink.line(f"  {target.name}")
        sink.note("Send a test message: wan-train notify test")

    services = [{"name": target.name} for target in targets]
    return Result(data=lambda: {"event": "notify", "source": source.value, "services": services}, text=text)


def keep_addresses(settings: Settings) -> None:
    """Save the addresses of this call in the settings file, where the guardian reads them after a reboot.

    Also removes them from the environment of later child processes. Raises NotReadyError, and BadInputError for an
    invalid address.
    """
    if settings.source_of(_SETTING) in {Source.FLAG, Source.ENVIRONMENT}:
        read_targets(settings.notify)
        remember(_SETTING, settings.notify)
    os.environ.pop(environment_name(_SETTING), None)


def _test(targets: Sequence[Target]) -> Result:
    if not targets:
        raise BadInputError("no notification address is set up", hint=f"Give one: `{_EXAMPLE}`")
    body = f"This is a test from {socket.gethostname()}. Messages about trainings will arrive here."
    outcomes = send_now(Message(id="test", title="wan-train: notifications work", body=body), targets)
    by_name = {outcome.target: outcome for outcome in outcomes}
    rows = [(target.name, by_name.get(target.name)) for target in targets]
    failed = [name for name, outcome in rows if outcome is None or outcome.mark is not Mark.SENT]

    def text(sink: Sink) -> None:
        for name, outcome in rows:
            sink.line(f"{name}: {_said(outcome)}")

    services = [
        {
            "name": name,
            "sent": outcome is not None and outcome.mark is Mark.SENT,
            "reason": outcome.why if outcome is not None else "timed out",
            "seconds": outcome.seconds if outcome is not None else None,
        }
        for name, outcome in rows
    ]
    error = NotReadyError(
        f"{len(failed)} of {len(rows)} test messages did not arrive",
        hint="Check the addresses: https://github.com/caronc/apprise/wiki.",
    )
    return Result(
        data=lambda: {"event": "notify_test", "services": services}, text=text, error=error if failed else None
    )


def _said(outcome: Outcome | None) -> str:
    if outcome is None:
        return "failed: timed out"
    if outcome.mark is Mark.SENT:
        return f"sent in {outcome.seconds:.1f} s"
    return f"failed: {outcome.why}"


def _where(source: Source) -> str:
    match source:
        case Source.FILE:
            readable = "; other users can read it: chmod 600" if is_readable_by_others() else ""
            return f"settings file{readable}"
        case Source.ENVIRONMENT:
            return environment_name(_SETTING)
        case Source.FLAG | Source.DEFAULT:
            return "--notify"
