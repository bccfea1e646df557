"""The user's home directory, or a substitute in a container that runs as an unknown user ID."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.files import can_be_written
from wan_train.base.text import one_line

_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
"""Variables that `getpass.getuser` reads before the password file; torch calls it to name its cache."""


def ensure(environ: MutableMapping[str, str]) -> None:
    """Give this process and its children a home directory and a user name if the box has none.

    Docker sets HOME=/ for a user ID without an entry in the password file; other tools set nothing. An existing home
    directory is kept even if it is read-only: models may be cached in it.
    Raises NotReadyError if no private directory can be created.
    """
    try:
        known = pwd.getpwuid(os.getuid())
    except KeyError:
        known = None
        if not any(environ.get(name) for name in _NAMES):
            environ["USER"] = f"uid-{os.getuid()}"
    home = environ.get("HOME") or (known.pw_dir if known is not None else "")
    if not home or not _is_usable(Path(home)):
        environ["HOME"] = str(own_temporary())


def expand(text: str | Path) -> Path:
    """Expand `~` and `~name` like a shell; raises BadInputError for an unknown user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        name = Path(text).parts[0]
        raise BadInputError(
            f"{one_line(str(text))!r}: {one_line(name)!r} has no home directory", hint="Write the whole path."
        ) from None


def expanded(text: str | Path) -> Path:
    """Expand `~` and `~name` like a shell; leaves `~name` of an unknown user as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path.expanduser raises for an unknown user


def own_temporary(below: Path | None = None) -> Path:
    """Return a private directory of this user, the same at every call; raises NotReadyError.

    `below` replaces the system's temporary directory.
    """
    hint = "Set it: `export HOME=DIR`, with a directory you may write to."
    try:
        path = (below or Path(tempfile.gettempdir())) / f"wan-train-{os.getuid()}"
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise NotReadyError(f"no writable home directory, and no temporary one: {error.strerror}", hint=hint) from error
    # Anyone can write to /tmp: another user's link or directory could redirect our files.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise NotReadyError(f"no writable home directory, and {path} is not private to this user", hint=hint)
    return path


def _is_usable(home: Path) -> bool:
    if not home.is_absolute():
        return False
    if home == home.parent:
        return os.access(home, os.W_OK)
    try:
        return (home.is_dir() and os.access(home, os.X_OK)) or can_be_written(home)
    except OSError:
        return False
