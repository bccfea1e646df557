"""A GPU probe that plays a script, for tests of code that uses readings."""

from __future__ import annotations

from collections.abc import Iterable

from wan_train.gpu.model import GpuReading, GpuUnavailableError


class ScriptedProbe:
    """Returns one reading, or raises one error, for each read. The last one repeats."""

    def __init__(self, readings: Iterable[GpuReading | GpuUnavailableError]) -> None:
        self._readings = list(readings)
        if not self._readings:
            raise ValueError("a script needs at least one reading")
        self._reads = 0

    def read(self) -> GpuReading:
        step = self._readings[min(self._reads, len(self._readings) - 1)]
        self._reads += 1
        if isinstance(step, GpuUnavailableError):
            raise step
        return step

    def close(self) -> None:
        """Do nothing."""
