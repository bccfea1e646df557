"""Why a trainer process failed. `diagnosis` finds the cause at the end of the log.

The exception that ended the program counts first, then text about a signal, then patterns anywhere. An earlier library
warning or caught traceback never overrides them. Every command imports `Cause`, but only those that read a log load
the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Why an attempt ended without success. `run/retry.py` decides from it whether a retry can help."""

    OUT_OF_MEMORY = "out_of_memory"
    HOST_OUT_OF_MEMORY = "host_out_of_memory"
    SAMPLING = "sampling"
    NAN_LOSS = "nan_loss"
    NO_PROGRESS = "no_progress"
    DISK_FULL = "disk_full"
    NO_ACCESS = "no_access"
    STORAGE = "storage"
    PROCESS_LIMIT = "process_limit"
    FILE_LIMIT = "file_limit"
    NO_GPU = "no_gpu"
    DRIVER = "driver"
    CUDA_ERROR = "cuda_error"
    ENVIRONMENT = "environment"
    SETTING = "setting"
    BAD_INPUT = "bad_input"
    MISSING_FILE = "missing_file"
    HUB = "hub"
    HUB_REFUSED = "hub_refused"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"
    LOST = "lost"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What is known about a failure. `evidence`: the log text that shows it, up to a few lines.

    `retry_after`: seconds that a server asked to wait before a retry.
    """

    cause: Cause
    meaning: str
    advice: str
    evidence: str | None = None
    retry_after: float | None = None
