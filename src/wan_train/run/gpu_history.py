"""What the GPUs of a run did over time: a file of samples that stays small however long the run is."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.base import codec
from wan_train.base.files import write_whole

EVERY_SECONDS = 10.0
"""Between two samples of a GPU. What happens between them is not seen: a peak of memory may be higher."""

MOST_LINES = 8000
"""Two GPUs for eleven hours. A file with more is thinned to half of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU at one moment (seconds since 1970), while `steps` of the run were on it.

    Memory in bytes, of all processes; utilisation in percent, temperature in degrees Celsius.
    """

    at: float
    uuid: str
    label: str
    name: str
    used_bytes: int
    total_bytes: int
    utilization: int | None = None
    temperature: int | None = None
    power_watts: float | None = None
    steps: tuple[str, ...] = ()
    driver: str | None = None


class GpuHistory:
    """Appends samples. Nothing depends on them, so nothing is flushed and a damaged line is passed over later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: int | None = None

    def append(self, samples: Sequence[GpuSample]) -> None:
        """Write samples of one moment; raises OSError."""
        if self._lines is None:
            self._lines = len(read_gpu_history(self._path))
        lines = b"".join(codec.to_json(sample).encode() + b"\n" for sample in samples)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            # A full disk or a crash may have left half a line: only that one is to be lost.
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                lines = b"\n" + lines
            file.write(lines)
        self._lines += len(samples)
        if self._lines > MOST_LINES:
            kept = thinned(read_gpu_history(self._path), MOST_LINES // 2)
            write_whole(self._path, "".join(codec.to_json(sample) + "\n" for sample in kept), durable=False)
            self._lines = len(kept)


def read_gpu_history(path: Path) -> tuple[GpuSample, ...]:
    """All samples in order of time; what is damaged is left out, and a file that is not there holds none."""
    try:
        text = path.read_bytes()
    except OSError:
        return ()
    return tuple(sorted(_samples(text.splitlines(), str(path)), key=lambda sample: sample.at))


def _samples(lines: Iterable[bytes], where: str) -> Iterable[GpuSample]:
    for line in lines:
        try:
            sample: GpuSample = codec.from_json(line, GpuSample, where=where)
        except (codec.CorruptRecordError, OverflowError):  # OverflowError: infinity as a whole number
            continue
        if math.isfinite(sample.at) and (sample.power_watts is None or math.isfinite(sample.power_watts)):
            yield sample


def thinned(samples: Sequence[GpuSample], most: int) -> tuple[GpuSample, ...]:
    """At most about `most` samples over the same time: of neighbours the one with the most memory in use stays."""
    by_gpu: dict[str, list[GpuSample]] = defaultdict(list)
    for sample in samples:
        by_gpu[sample.uuid].append(sample)
    if not by_gpu:
        return ()
    begin = min(sample.at for sample in samples)
    slots = max(1, most // len(by_gpu))
    width = (max(sample.at for sample in samples) - begin) / slots or 1.0
    kept: list[GpuSample] = []
    for found in by_gpu.values():
        fullest: dict[int, GpuSample] = {}
        for sample in found:
            slot = min(slots - 1, int((sample.at - begin) / width))
            if slot not in fullest or sample.used_bytes > fullest[slot].used_bytes:
                fullest[slot] = sample
        kept += fullest.values()
    return tuple(sorted(kept, key=lambda sample: sample.at))
