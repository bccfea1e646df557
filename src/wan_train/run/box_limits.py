"""Limits of this box that a failure ran into, with their values."""

from __future__ import annotations

import resource
from dataclasses import replace

from wan_train.base.host import process_limit
from wan_train.engine.failures import Cause, Diagnosis


def with_limits(diagnosis: Diagnosis) -> Diagnosis:
    """The diagnosis with the limit's value on this box, where it is of one."""
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
