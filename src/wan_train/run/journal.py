"""The journal of a run: events appended, flushed to disk, read back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from wan_train.base import codec
from wan_train.run.events import Event

_MEND_BYTES = 65_536


class Journal:
    """Appends events. Every append is on disk when it returns; a torn last line from a crash is cut off first."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._mend()

    def append(self, event: Event) -> None:
        line = codec.to_json(event, Event).encode() + b"\n"
        before = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, before)  # half a line would hide the next one
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def _mend(self) -> None:
        end = size = os.fstat(self._descriptor).st_size
        while end > 0:
            begin = max(0, end - _MEND_BYTES)
            newline = os.pread(self._descriptor, end - begin, begin).rfind(b"\n")
            end = begin if newline < 0 else begin + newline + 1
            if newline >= 0:
                break
        if end != size:
            os.ftruncate(self._descriptor, end)


class JournalReader:
    """Reads a journal from the start and later only what is new. Ignores a line that is still being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_events(self) -> Iterator[Event]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            yield codec.from_json(line, Event, where=str(self._path))


def read_events(path: Path) -> list[Event]:
    return list(JournalReader(path).new_events())
