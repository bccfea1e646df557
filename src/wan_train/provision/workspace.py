"""A workspace in use: the lock for one provision at a time, and the log of its output."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from wan_train.base import codec, locks
from wan_train.base.errors import NotReadyError
from wan_train.base.host import ProcessIdentity, myself
from wan_train.base.text import one_line, redact, visible

LOG_NAME: Final = "provision.log"
_LOG_BYTES: Final = 2_000_000
"""The next provision renames a larger log to `provision.log.1`."""
_LOCK_NAME: Final = ".wan-train-provision.lock"
_KILL_SECONDS: Final = 10.0
_LONGEST_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who took the lock, and when in seconds since 1970."""

    process: ProcessIdentity
    since: float

    def __str__(self) -> str:
        minutes = max(0.0, time.time() - self.since) / 60
        ago = f"{minutes:.0f} min ago" if minutes >= 1 else "just now"
        return f"process {self.process.pid}, since {time.strftime('%H:%M:%S', time.localtime(self.since))}, {ago}"


@contextmanager
def locked(workspace: Path) -> Iterator[int]:
    """Hold the workspace's lock; yields its descriptor, which children inherit so that orphans keep it.

    Programs left by a killed provision are ended first: their results would not be used.

    Raises:
        NotReadyError: another provision is running there, or the workspace cannot be written.
    """
    path = workspace / _LOCK_NAME
    began = time.monotonic()
    with ExitStack() as stack:
        while True:
            try:
                workspace.mkdir(parents=True, exist_ok=True)
                descriptor = stack.enter_context(locks.held(path))
                break
            except BlockingIOError:
                waited = time.monotonic() - began
                holder = codec.read(path, Holder)
                if holder is None or holder.process.is_alive() or waited > _LONGEST_SECONDS:
                    raise _taken(path, workspace, holder) from None
                for process in _inheritors(path):
                    with suppress(psutil.Error):  # ended by itself, or another user's
                        process.send_signal(signal.SIGKILL if waited > _KILL_SECONDS else signal.SIGTERM)
                time.sleep(_LOOK_SECONDS)
            except OSError as error:
                raise NotReadyError(
                    f"the workspace {workspace} cannot be used: {(error.strerror or str(error)).lower()}",
                    hint="Run as the user who owns it, or choose another on a local disk: `--workspace DIR`.",
                ) from error
        text = codec.to_json(Holder(process=myself(), since=time.time())).encode()
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
        yield descriptor


def _taken(path: Path, workspace: Path, holder: Holder | None) -> NotReadyError:
    """The error that names the lock's holder: a provision, or programs that a dead one left running."""
    running = f"another `wan-train provision` is running in {workspace}: {holder or 'an unknown process'}"
    if holder is not None and holder.process.is_alive():
        log = f"{workspace}/wan-train-provision/{LOG_NAME}"
        return NotReadyError(running, hint=f"Wait for it to end. Follow it: `tail -f {log}`.")
    left = _inheritors(path)
    if not left:
        return NotReadyError(
            f"{running}; it cannot be seen from here",
            hint="Is the workspace shared with another box or container? Wait for the provision there to end.",
        )
    names = ", ".join(f"process {process.pid} ({_name(process)})" for process in left)
    return NotReadyError(
        f"the last `wan-train provision` in {workspace} died ({holder or 'an unknown process'}), "
        f"but programs it started are still running: {names}",
        hint=f"End them with `kill {' '.join(str(process.pid) for process in left)}`, then run it again.",
    )


def _inheritors(path: Path) -> list[psutil.Process]:
    """Processes that inherited the lock from their provision, as far as this user can see.

    A process that only waits has the same file open, but the kernel lists the lock only at inherited descriptors.
    """
    wanted = path.stat()
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with suppress(OSError):  # ended, or another user's
            for opened in Path(f"/proc/{process.pid}/fd").iterdir():
                with suppress(OSError):  # closed while we look
                    info = Path(f"/proc/{process.pid}/fdinfo/{opened.name}")
                    if os.path.samestat(opened.stat(), wanted) and "FLOCK" in info.read_text(encoding="ascii"):
                        found.append(process)
                        break
    return found


def _name(process: psutil.Process) -> str:
    try:
        return one_line(" ".join(process.cmdline()) or process.name(), 60)
    except psutil.Error:
        return "ended just now"


@dataclass(frozen=True, slots=True)
class LockedWorkspace:
    """A workspace that no other provision uses: the descriptors of its lock and its log.

    A disk that fills up does not end a provision; only the log misses lines.
    """

    lock: int
    _log: int

    def log(self, text: str, *, at: float | None = None) -> None:
        """Log each line of the text, dated `at` seconds since 1970 (default: now); secrets are hidden."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
        lines = "".join(f"{stamp}  {visible(line)}\n" for line in redact(text).split("\n"))
        with suppress(OSError):
            os.write(self._log, lines.encode(errors="backslashreplace"))


@contextmanager
def open_log(path: Path, *, rotate: bool = False) -> Iterator[int]:
    """Open a log to append to, readable only by its owner. `rotate` sets a large one aside. Raises NotReadyError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if rotate and path.exists() and path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise NotReadyError(
            f"the log {path} cannot be written: {(error.strerror or str(error)).lower()}",
            hint="Check the owner and the permissions of its folder, and the disk.",
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
