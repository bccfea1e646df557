"""`wan-train doctor`: is this box ready to train, and what will hurt later."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from wan_train.base.errors import ExitCode
from wan_train.base.settings import Settings
from wan_train.cli.output import Sink
from wan_train.provision.doctor import Doctor
from wan_train.provision.provision import choose_engine
from wan_train.views.doctor import doctor_json, doctor_lines


def doctor(settings: Settings, sink: Sink, *, task: str, engine: str | None, words: Sequence[str]) -> int:
    """Look, tell, change nothing; NOT_READY when anything is an error. `words` are the flags that were given."""
    asked = Doctor(settings=settings, task=task, engine=choose_engine(engine, settings), words=words)
    # An environment that was made by hand has to import torch, which takes a minute from a cold disk.
    waiting = sink.is_terminal and not sink.as_json
    with sink.console.status("checking this box …") if waiting else nullcontext():
        found = asked.examine()
    if sink.as_json:
        sink.data(doctor_json(found))
    else:
        from wan_train.views.lines import Screenful

        sink.show(Screenful(lambda width: doctor_lines(found, width)))
    return ExitCode.DONE if found.is_ready else ExitCode.NOT_READY
