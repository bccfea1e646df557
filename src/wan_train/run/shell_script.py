"""Write a plan as a shell script that runs without wan-train, beside the files that its commands read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote

from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.text import one_line
from wan_train.engine.commands import DEVICE_VARIABLE, one_option_a_line, standalone
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Devices, Plan
from wan_train.run.planner import Request, make_plan, write_inputs
from wan_train.run.step_commands import command_of


def files_of(script: Path) -> Path:
    """Return the folder of a script's files: `train-files` beside `train.sh`."""
    return script.with_name(f"{script.stem}-files")


def write_script(request: Request, script: Path, *, created: float, say: Callable[[str], None]) -> Plan:
    """Write `script` and the folder of its files; return its plan. Nothing that exists is touched.

    Raises BadInputError if a name is taken or a training ends early, NotReadyError if nothing can be written.
    """
    files = files_of(script)
    for taken in (script, files):
        if taken.is_symlink() or taken.exists():
            raise BadInputError(f"{one_line(str(taken))} already exists", hint="Give --script another name.")
    run = RunDirectory(files)
    plan = make_plan(request, run, created=created, say=say)
    if plan.ends:
        raise BadInputError(
            "a script cannot end a training before its schedule does",
            hint="Leave --until out of the script, or train with wan-train itself.",
        )
    try:
        files.mkdir(mode=0o700)
        try:
            write_inputs(run, plan, request)
            _write_new(script, script_text(plan))
        except BaseException:
            shutil.rmtree(files, ignore_errors=True)  # ours: it did not exist before
            raise
    except OSError as error:
        raise NotReadyError(
            f"{one_line(str(script))} cannot be written: {error.strerror}",
            hint="Choose a folder that you can write to.",
        ) from error
    return plan


def _write_new(script: Path, text: str) -> None:
    descriptor = os.open(script, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  a descriptor has no path
            file.write(text)
    except BaseException:
        script.unlink(missing_ok=True)  # ours: it did not exist before
        raise


def script_text(plan: Plan) -> str:
    """The script: one step after the other, on one GPU."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    title, author = one_line(plan.answers.title), one_line(plan.answers.author)
    yield "#!/bin/sh"
    yield f"# Trains {title} by {author} without wan-train: one step after the other, on one GPU."
    yield "# A crash loses the step. To resume from checkpoints, train with wan-train instead."
    yield "set -eu"
    yield ""
    match plan.devices:
        case Devices.NVML:
            yield f"# The GPU to use, unless {DEVICE_VARIABLE} names another."
            yield f"gpu={quote(plan.gpu_uuids[0])}"
            yield f'{DEVICE_VARIABLE}="${{{DEVICE_VARIABLE}-$gpu}}"'
        case Devices.CPU_SLOTS:
            yield "# The rehearsal runs on the CPU."
            yield f"{DEVICE_VARIABLE}=''"
    yield f"export {DEVICE_VARIABLE}"
    yield " ".join(["mkdir -p", *(quote(str(Path(folder))) for folder in plan.dataset.cached_items)])
    for number, step in enumerate(plan.steps, start=1):
        command = standalone(command_of(plan, step))
        yield from ("", f"# {number}. {step.id}", f"cd {quote(command.cwd)}", one_option_a_line(command))
    made = [
        RunDirectory(plan.run_dir).attempt(step.id, 1).output / f"{step.produces}.safetensors"
        for step in plan.steps
        if step.produces is not None
    ]
    yield ""
    yield f"printf '%s\\n' Done: {' '.join(quote(str(path)) for path in made)}"
