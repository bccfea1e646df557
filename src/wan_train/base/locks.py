"""Files locked by flock: our own (`held`), and lock files in a directory shared by several users."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import re
import shlex
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from wan_train.base.errors import NotReadyError, reason_of

_SHARED = 0o1777
_FILE_MODE = 0o666
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_MAX_TEXT = 16 * 1024
_MAX_NAME = 120
# `is_held` takes the shared lock for some microseconds; this many tries outlast it.
_TRIES = 200

# What helps against an unusable file or directory, with its name for {0}.
_MOVE_AWAY = "Move it away: `sudo mv {0} {0}.old`"
_SHARE = "Share it with all users: `sudo install -d -m 1777 {0}`"
_OPEN_TO_ALL = "Open it to all users: `sudo chmod 666 {0}`"
_ELSEWHERE = "Use a directory on a local disk, the same for all users: `export WAN_TRAIN_LEASE_DIR=DIR`"


@contextmanager
def held(path: Path, *, mode: int = 0o600, wait: bool = False, shared: bool = False) -> Iterator[int]:
    """Hold our own lock file, created if missing; yields its descriptor, which a child may inherit.

    Raises:
        BlockingIOError: another process holds it (with `shared`: holds it exclusively). Never with `wait`.
        OSError: the file cannot be opened, or its file system cannot lock files.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def prepare(directory: Path) -> None:
    """Create or check a directory that all users share (mode 1777).

    Raises:
        NotReadyError: it cannot be used, or other users could swap its files.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            directory.mkdir()
            directory.chmod(_SHARED)  # the umask limits mkdir's own mode
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise _unusable_directory(directory, "it is not a directory", _MOVE_AWAY, _SHARE)
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX:
            if found.st_uid != os.geteuid():
                why = "other users could swap its files: the sticky bit is missing"
                raise _unusable_directory(directory, why, _SHARE, _ELSEWHERE)
            directory.chmod(stat.S_IMODE(found.st_mode) | stat.S_ISVTX)
    except OSError as error:
        raise _unusable_directory(directory, _words(error), _SHARE, _ELSEWHERE) from error
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise _unusable_directory(directory, "no permission to write there", _SHARE, _ELSEWHERE)


def open_or_create(path: Path) -> int:
    """Return a descriptor of the file, created with mode 0666 regardless of the umask. Raises NotReadyError."""
    while True:
        descriptor = open_existing(path)
        if descriptor is not None:
            return descriptor
        try:
            _create(path)
        except OSError as error:
            raise _unusable_file(path, _words(error), _ELSEWHERE) from error


def open_existing(path: Path) -> int | None:
    """Return a descriptor of the file; None if it is missing. Raises NotReadyError for anything but a plain file."""
    try:
        # No O_CREAT: with it, fs.protected_regular refuses other users' files in a sticky directory.
        descriptor = os.open(path, _OPEN)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise _unusable_file(path, _words(error), _OPEN_TO_ALL) from error
    except OSError as error:
        reason = {errno.ELOOP: "it is a symbolic link", errno.EISDIR: "it is a directory"}.get(error.errno or 0)
        raise _unusable_file(path, reason or _words(error), _MOVE_AWAY if reason else _ELSEWHERE) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _unusable_file(path, "it is not a plain file", _MOVE_AWAY)
    return descriptor


def try_exclusive(descriptor: int, path: Path) -> bool:
    """Lock the file exclusively; False if another process holds it. Waits at most 0.4 seconds."""
    for _ in range(_TRIES):
        if _flock(descriptor, fcntl.LOCK_EX, path):
            return True
        if not _flock(descriptor, fcntl.LOCK_SH, path):
            return False
        # Only brief shared locks are in the way. The random pause keeps two callers from blocking each other forever.
        unlock(descriptor)
        time.sleep(random.uniform(0.0001, 0.002))  # noqa: S311 - jitter, not a secret
    return False


def try_once(descriptor: int, path: Path, *, shared: bool) -> bool:
    """Lock the file exclusively or shared; False if another process holds it."""
    return _flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, path)


def is_held(descriptor: int, path: Path) -> bool:
    """Whether another open file holds the lock exclusively."""
    if not _flock(descriptor, fcntl.LOCK_SH, path):
        return True
    unlock(descriptor)
    return False


def is_locked(path: Path) -> bool:
    """Whether a live process holds a file's lock exclusively; False if the file is missing or unusable."""
    try:
        descriptor = open_existing(path)
        if descriptor is None:
            return False
        try:
            return is_held(descriptor, path)
        finally:
            os.close(descriptor)
    except NotReadyError:
        return False


def unlock(descriptor: int) -> None:
    """Release the lock for every copy of this descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def write(descriptor: int, text: str) -> None:
    """Replace the file's text with one line, if the disk allows; updates its modification time."""
    line = (text + "\n").encode()
    with suppress(OSError):  # A full disk: the text only informs, the lock counts.
        os.pwrite(descriptor, line, 0)
        os.ftruncate(descriptor, len(line))
        os.utime(descriptor)


def read(descriptor: int) -> str:
    """Return the file's first line; empty if it is incomplete or too long."""
    with suppress(OSError):
        head, newline, _ = os.pread(descriptor, _MAX_TEXT, 0).partition(b"\n")
        if newline:
            return head.decode(errors="replace")
    return ""


def safe_name(name: str) -> str:
    """Return `name` as a file name: unchanged if plain and short, else a sanitized form with a digest."""
    likeness = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:_MAX_NAME]
    if likeness == name and name:
        return name
    return f"{likeness}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:12]}"


def _create(path: Path) -> None:
    # The mode is set before the file is linked into place, so that others can always open it.
    descriptor, made = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        os.fchmod(descriptor, _FILE_MODE)
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        os.close(descriptor)
        Path(made).unlink(missing_ok=True)


def _flock(descriptor: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _unusable_file(path, f"its file system cannot lock files ({_words(error)})", _ELSEWHERE) from error
    return True


def _unusable_directory(path: Path, reason: str, *commands: str) -> NotReadyError:
    return NotReadyError(f"the lock directory {path} cannot be used: {reason}", hint=_hint(path, commands))


def _unusable_file(path: Path, reason: str, *commands: str) -> NotReadyError:
    return NotReadyError(f"the lock file {path} cannot be used: {reason}", hint=_hint(path, commands))


def _hint(path: Path, commands: Sequence[str]) -> str:
    name = shlex.quote(str(path))
    return "\n".join(command.format(name) for command in commands)


def _words(error: OSError) -> str:
    return reason_of(error).lower()
