"""Why a trainer process failed, read from the end of its log by `diagnosing`.

The exception that ended the program counts first, then the words of a death without one, and only then patterns
anywhere. What an earlier line says, a library's warning or a traceback that something caught, never wins over it.
Every command knows causes; the tables are loaded by those that read a log.
"""

from __future__ import annotations

from wan_train.engine.failures.model import Cause, Diagnosis

__all__ = ["Cause", "Diagnosis"]
