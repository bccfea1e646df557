"""The user's home directory, also where there is none: a container started with an unknown user id."""

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
"""Where `getpass.getuser` looks before the password file; torch asks it for the name of its cache."""


def ensure(environ: MutableMapping[str, str]) -> None:
    """Give this process and its children a home directory and a user name, where the box has none.

    Docker sets HOME=/ for a user id without an entry in the password file, other tools set nothing. A home directory
    that exists is kept even where it is read-only: models may be cached in it.
    Raises NotReadyError when no directory of this user's own can be made.
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
    """`~` and `~name` as a shell reads them; raises BadInputError for a user that does not exist."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        name = Path(text).parts[0]
        raise BadInputError(
            f"{one_line(str(text))!r}: {one_line(name)!r} has no home directory", hint="Write the whole path."
        ) from None


def expanded(text: str | Path) -> Path:
    """The same, with `~name` of a user that does not exist left as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path.expanduser raises for `~name` of nobody


def own_temporary(below: Path | None = None) -> Path:
    """A directory that only this user may enter, the same at every call; `below` is the system's temporary directory.

    Raises NotReadyError.
    """
    hint = "Set it: `export HOME=DIR`, with a directory you may write to."
    try:
        path = (below or Path(tempfile.gettempdir())) / f"wan-train-{os.getuid()}"
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise NotReadyError(f"no writable home directory, and no temporary one: {error.strerror}", hint=hint) from error
    # Anybody may write to /tmp: a link or a directory of somebody else's could send our files elsewhere.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise NotReadyError(f"no writable home directory, and {path} belongs to another user", hint=hint)
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
