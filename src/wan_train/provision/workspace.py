"""A workspace in use: one provision at a time, and the log of everything that it said."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from wan_train.base import codec, process_identity
from wan_train.base.errors import NotReadyError
from wan_train.base.process_identity import ProcessIdentity
from wan_train.base.text import one_line, redact, visible

_LOCK_NAME = ".wan-train-provision.lock"
_MOST_BYTES = 4096
_NOTICE_SECONDS, _TERM_SECONDS, _KILL_SECONDS = 5.0, 15.0, 20.0
"""When programs of a provision that was killed should have noticed by themselves; when TERM and when KILL should have
ended them, each counted from the first look.
"""
_LOOK_SECONDS = 0.1
LOG_NAME = "provision.log"
_LOG_BYTES = 2_000_000
"""A log larger than this is put aside as `provision.log.1` when the next provision begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who took the lock, and when in seconds since 1970."""

    process: ProcessIdentity
    since: float

    def __str__(self) -> str:
        minutes = max(0.0, time.time() - self.since) / 60
        return f"process {self.process.pid}, since {time.strftime('%H:%M:%S', time.localtime(self.since))}, " + (
            f"{minutes:.0f} min ago" if minutes >= 1 else "just now"
        )


@contextmanager
def held(workspace: Path) -> Iterator[int]:
    """Hold the workspace's lock; gives its descriptor, which children inherit so that orphans keep it.

    Raises:
        NotReadyError: another provision is at work there, or the workspace cannot be written.
    """
    path = workspace / _LOCK_NAME
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
        holder = codec.to_json(Holder(process=process_identity.myself(), since=time.time())).encode()
        os.pwrite(descriptor, holder, 0)
        os.ftruncate(descriptor, len(holder))
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, workspace: Path) -> None:
    began = time.monotonic()
    while not _try(descriptor, workspace):
        holder = _holder(descriptor)
        waited = time.monotonic() - began
        if holder is None or holder.process.is_alive() or waited > _KILL_SECONDS:
            raise _taken(descriptor, workspace)
        if waited > _NOTICE_SECONDS:
            # Nobody will use what they make: the steps that they belong to are done anew or gone on with.
            _signal(_inheritors(descriptor), signal.SIGKILL if waited > _TERM_SECONDS else signal.SIGTERM)
        time.sleep(_LOOK_SECONDS)


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):  # ended by itself, or another user's
            process.send_signal(number)


def _try(descriptor: int, workspace: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NotReadyError(
            f"the file system of {workspace} cannot lock files: {error}",
            hint="Choose a workspace on a local disk: `--workspace DIR`.",
        ) from error
    return True


def _taken(descriptor: int, workspace: Path) -> NotReadyError:
    """Who holds the lock, in words: the provision itself, or what one that is gone has left running."""
    holder = _holder(descriptor)
    if holder is not None and holder.process.is_alive():
        return NotReadyError(
            f"another `wan-train provision` is running in {workspace}: {holder}",
            hint=f"Wait for it to end. Follow it: `tail -f {workspace}/wan-train-provision/provision.log`.",
        )
    left = _inheritors(descriptor)
    if not left:
        return NotReadyError(
            f"another `wan-train provision` is running in {workspace}: {holder or 'an unknown process'}; "
            "it cannot be seen from here",
            hint="Is the workspace shared with another box or container? Wait for the provision there to end.",
        )
    names = ", ".join(f"process {process.pid} ({_name(process)})" for process in left)
    return NotReadyError(
        f"the last `wan-train provision` in {workspace} died ({holder or 'an unknown process'}), "
        f"but programs it started are still running: {names}",
        hint=f"End them with `kill {' '.join(str(process.pid) for process in left)}`, then run it again; "
        "what is complete is kept.",
    )


def _holder(descriptor: int) -> Holder | None:
    try:
        return codec.from_json(os.pread(descriptor, _MOST_BYTES, 0).decode(), Holder, where=_LOCK_NAME)
    except (UnicodeDecodeError, codec.CorruptRecordError):
        return None


def _inheritors(descriptor: int) -> list[psutil.Process]:
    """Processes that hold the lock because their provision did, as far as this user may look.

    One that only waits for it has the same file open, but the kernel counts the lock at an inherited descriptor alone.
    """
    wanted = os.fstat(descriptor)
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with suppress(OSError):  # ended, or another user's
            for opened in Path(f"/proc/{process.pid}/fd").iterdir():
                with suppress(OSError):  # closed while we look
                    told = Path(f"/proc/{process.pid}/fdinfo/{opened.name}")
                    if os.path.samestat(opened.stat(), wanted) and "FLOCK" in told.read_text(encoding="ascii"):
                        found.append(process)
                        break
    return found


def _name(process: psutil.Process) -> str:
    try:
        return one_line(" ".join(process.cmdline()) or process.name(), 60)
    except psutil.Error:
        return "ended just now"


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
def open_log(folder: Path) -> Iterator[ProvisionLog]:
    """The log in `folder`, appended to; raises NotReadyError. To be opened by the holder of the lock only."""
    path = folder / LOG_NAME
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if path.exists() and path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_name(f"{LOG_NAME}.1"))
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
