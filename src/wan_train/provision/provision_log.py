"""Everything a provision said, with the time of each line: for whoever asks afterwards what happened in the night."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.errors import NotReadyError
from wan_train.base.text import redact, visible

NAME = "provision.log"
_MOST_BYTES = 2_000_000
"""A log larger than this is put aside as `provision.log.1` when the next provision begins."""


@dataclass(slots=True)
class ProvisionLog:
    """An open log. A disk that fills up on the way does not end a provision: only the log misses lines then."""

    path: Path
    _descriptor: int

    def write(self, text: str, *, at: float | None = None) -> None:
        """One line for each of the text's, `at` seconds since 1970 (now); secrets are hidden."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
        lines = "".join(f"{stamp}  {visible(line)}\n" for line in redact(text).split("\n"))
        try:
            os.write(self._descriptor, lines.encode(errors="backslashreplace"))
        except OSError:
            return


@contextmanager
def opened(folder: Path) -> Iterator[ProvisionLog]:
    """The log in `folder`, appended to; raises NotReadyError. To be opened by the holder of the lock only."""
    path = folder / NAME
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if path.exists() and path.stat().st_size > _MOST_BYTES:
            path.replace(path.with_name(f"{NAME}.1"))
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise NotReadyError(
            f"the log {path} cannot be written: {(error.strerror or str(error)).lower()}",
            hint="Look at the owner and the permissions of its folder, and at the disk.",
        ) from error
    try:
        yield ProvisionLog(path, descriptor)
    finally:
        os.close(descriptor)
