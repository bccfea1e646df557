"""One provision at a time in a workspace."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from wan_train.errors import NotReadyError

_NAME = ".wan-train-provision.lock"
_ORPHANS_SECONDS = 20.0
"""How long programs of a provision that was killed may take to notice."""
_LOOK_SECONDS = 0.1


@contextmanager
def held(workspace: Path) -> Iterator[int]:
    """Hold the workspace's lock; gives its descriptor, which children inherit so that orphans keep it.

    Raises:
        NotReadyError: another provision is at work there, or the workspace cannot be written.
    """
    path = workspace / _NAME
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise NotReadyError(
            f"the workspace {workspace} cannot be written: {(error.strerror or str(error)).lower()}",
            hint="Run as the user who owns it, or choose another: `--workspace DIR`.",
        ) from error
    try:
        _take(descriptor, workspace)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        os.ftruncate(descriptor, len(f"{os.getpid()}\n"))
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, workspace: Path) -> None:
    deadline = time.monotonic() + _ORPHANS_SECONDS
    while not _try(descriptor, workspace):
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        if _lives(holder) or time.monotonic() > deadline:
            raise NotReadyError(
                f"another `wan-train provision` is at work in {workspace}: process {holder or 'unknown'} or its child",
                hint="Wait for it to end; what it has done by then is kept.",
            )
        time.sleep(_LOOK_SECONDS)


def _try(descriptor: int, workspace: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NotReadyError(f"the file system of {workspace} cannot lock files: {error}") from error
    return True


def _lives(holder: str) -> bool:
    """Whether the process that took the lock is there; its orphans, which inherited it, end by themselves."""
    if not holder.isdecimal():
        return True
    try:
        return psutil.Process(int(holder)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
