"""`wan-train doctor`: is this box ready to train, and which problems are likely."""

from __future__ import annotations

from contextlib import nullcontext

from wan_train.base.errors import ExitCode
from wan_train.cli import options
from wan_train.cli.call import Call
from wan_train.cli.option import ModelsChoice
from wan_train.cli.output import Result
from wan_train.provision.doctor import Doctor
from wan_train.provision.provision import choose_engine
from wan_train.views.doctor import doctor_json, doctor_lines
from wan_train.views.lines import Screenful


def doctor(call: Call) -> Result:
    task, engine = call[options.MODELS_TASK], call.get(options.INSTALLED_VERSION)
    given = {
        "--task": None if task is ModelsChoice.T2V else task.value,
        "--engine": engine,
        "--workspace": call.get(options.WORKSPACE),
    }
    words = [word for flag, value in given.items() if value is not None for word in (flag, value)]
    examination = Doctor(
        settings=call.settings, tasks=task.tasks, engine=choose_engine(engine, call.settings), words=words
    )
    # A hand-made environment must import torch, which takes a minute from a cold disk.
    with call.sink.console.status("checking this box …") if call.sink.can_ask else nullcontext():
        report = examination.examine()
    return Result(
        data=lambda: doctor_json(report),
        text=lambda sink: sink.show(Screenful(lambda width: doctor_lines(report, width))),
        exit_code=ExitCode.DONE if report.is_ready else ExitCode.NOT_READY,
    )
