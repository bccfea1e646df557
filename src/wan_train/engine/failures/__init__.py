"""Why a trainer process failed, read from the end of its log by `diagnosis`.

The exception that ended the program counts first, then the words of a death without one, and only then patterns
anywhere. What an earlier line says, a library's warning or a traceback that something caught, never wins over it.
Every command knows causes; the tables are loaded by those that read a log.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Why an attempt ended without success. Whether another attempt can help follows from it: `run/retry.py`."""

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
    """What is known of a failure. `evidence` is the text it rests on, up to a few lines.

    `retry_after`: seconds that a server asked to wait before another attempt.
    """

    cause: Cause
    meaning: str
    advice: str
    evidence: str | None = None
    retry_after: float | None = None
