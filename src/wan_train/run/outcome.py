"""Judge whether an attempt that ended succeeded: by files and log, not by the exit code alone."""

from __future__ import annotations

import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path

from wan_train.base.host import process_limit
from wan_train.engine.failures import Cause, Diagnosis
from wan_train.engine.failures.diagnosis import diagnose, died, killing_signal
from wan_train.engine.tensors import BrokenFileError, first_non_finite, read_header
from wan_train.run.directory import AttemptDirectory
from wan_train.run.events import Exit, Exited, Lost, Signaled
from wan_train.run.plan import Step, StepKind
from wan_train.run.progress import read_tail


def judge(
    step: Step, attempt: AttemptDirectory, ended: Exit, *, final_lora: Path, out_of_ram: bool
) -> Diagnosis | None:
    """Return why the attempt failed, None if the LoRA it had to leave is there, complete and finite.

    `CacheManager.conclude` judges caching, as it knows which caches were needed.
    `out_of_ram`: the kernel killed a process of this container for lack of memory while the attempt ran.
    """
    match ended:
        case Exited(code=0):
            pass
        case Exited(code=code):
            return _explain_exit(attempt, code, out_of_ram=out_of_ram)
        case Signaled() as signaled:
            return _out_of_ram() if out_of_ram and signaled.signal == signal.SIGKILL else died(signaled.name, None)
        case Lost(reason=reason):
            # Its exit was not recorded, so its files decide. The final LoRA is the last thing a trainer writes.
            if step.kind is not StepKind.TRAIN or judge_lora(final_lora) is not None:
                return Diagnosis(cause=Cause.LOST, meaning=f"the trainer is gone: {reason}", advice="It is restarted.")
    return judge_lora(final_lora) if step.kind is StepKind.TRAIN else None


def _explain_exit(attempt: AttemptDirectory, code: int, *, out_of_ram: bool) -> Diagnosis:
    tail = read_tail(attempt.log)
    killed = killing_signal(tail)
    if killed is not None and out_of_ram and killed[0] == "SIGKILL":
        return _out_of_ram()
    found = with_limits(diagnose(tail))
    return replace(found, evidence=found.evidence or f"exit code {code}")


def _out_of_ram() -> Diagnosis:
    return Diagnosis(
        cause=Cause.HOST_OUT_OF_MEMORY,
        meaning="the kernel killed the trainer because this container's RAM was full",
        advice="Rent a machine with more RAM, or train the experts one after the other.",
    )


def judge_lora(path: Path) -> Diagnosis | None:
    if not path.is_file():
        return Diagnosis(
            cause=Cause.UNKNOWN,
            meaning="the trainer ended without an error but left no LoRA",
            advice="Read the end of the log.",
            evidence=f"{path.name} is missing",
        )
    try:
        header = read_header(path)
        bad = first_non_finite(path, header)
    except BrokenFileError as error:
        return Diagnosis(
            cause=Cause.DISK_FULL if shutil.disk_usage(path.parent).free < path.stat().st_size else Cause.UNKNOWN,
            meaning="the finished LoRA is incomplete",
            advice="Check the free disk space, then start again.",
            evidence=error.message,
        )
    if bad is not None:
        return Diagnosis(
            cause=Cause.NAN_LOSS,
            meaning="the training diverged: the finished LoRA contains numbers that are not finite",
            advice="Start a new run with a lower --learning-rate.",
            evidence=f"tensor {bad}",
        )
    if not header.tensors:
        return Diagnosis(
            cause=Cause.UNKNOWN, meaning="the finished LoRA is empty", advice="Read the end of the log.", evidence=None
        )
    return None


def with_limits(diagnosis: Diagnosis) -> Diagnosis:
    """Return the diagnosis; if a limit caused it, with that limit's value on this box."""
    match diagnosis.cause:
        case Cause.PROCESS_LIMIT:
            told = _processes()
        case Cause.FILE_LIMIT:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            told = f"`ulimit -n` is {_number(soft)} here, and at most {_number(hard)}"
        case _:
            return diagnosis
    return replace(diagnosis, meaning=f"{diagnosis.meaning} ({told})")


def _processes() -> str:
    limit = process_limit()
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    user = f"`ulimit -u` is {_number(soft)} here"
    if limit is None:
        return f"{user}; the container has no limit of its own (pids.max)"
    most, now = limit
    return f"the container's limit is {most} here (pids.max), of which {now} are in use; {user}"


def _number(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
