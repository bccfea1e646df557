"""The duties of a run after its training: uploads, messages, the end of the box. Written once, before it starts.

The guardian of the box finds runs with duties in the lease directory, where each has one small file.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.base import codec, locks
from wan_train.base.clock import Moment
from wan_train.base.files import write_whole
from wan_train.run.directory import RunDirectory

DEFAULT_GRACE_SECONDS = 300.0
_FOLDER = "duties"
_SUFFIX = ".run"


class Then(StrEnum):
    """What happens to the box when the last run on it is over."""

    NOTHING = "nothing"
    COMMAND = "command"
    """A command from the user ends the box."""
    STOP = "stop"
    DESTROY = "destroy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Duties:
    """The requested duties. They hold no secrets: targets are as typed, message addresses are in the settings."""

    began: Moment
    """The start of the run, from which `max_hours` count. A resume by the user is a new start."""
    uploads: tuple[str, ...] = ()
    upload_extras: tuple[str, ...] = ()
    """What is uploaded in addition to the results: `samples`, `dataset`."""
    notify: bool = False
    """Whether messages are sent; the addresses are in the settings."""
    then: Then = Then.NOTHING
    command: tuple[str, ...] = ()
    """The argv of `Then.COMMAND`."""
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    max_hours: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done after the training."""
        return not self.uploads and not self.notify and self.then is Then.NOTHING and self.max_hours is None


def write_duties(run: RunDirectory, duties: Duties) -> None:
    write_whole(run.duties, codec.to_json(duties, indent=1) + "\n")


def read_duties(run: RunDirectory) -> Duties | None:
    """Return the duties, None for a run without any. Raises CorruptRecordError."""
    try:
        return codec.from_json(run.duties.read_bytes(), Duties, where=str(run.duties))
    except FileNotFoundError:
        return None


def register(lease_dir: Path, run: RunDirectory) -> None:
    """List a run with duties where the guardian looks; raises NotReadyError and OSError."""
    folder = lease_dir / _FOLDER
    locks.prepare(lease_dir)
    locks.prepare(folder)
    path = run.path.absolute()
    write_whole(_entry(folder, path), f"{path}\n".encode(errors="surrogateescape"), mode=0o644)


def registered(lease_dir: Path) -> list[RunDirectory]:
    """Return the listed runs, oldest first. Files of other users are skipped: they could name any directory."""
    found = []
    with suppress(FileNotFoundError):
        for entry in (lease_dir / _FOLDER).iterdir():
            path = _named(entry) if entry.suffix == _SUFFIX else None
            if path is not None:
                found.append(RunDirectory(path))
    return sorted(found, key=lambda run: run.run_id)


def is_registered(lease_dir: Path, run: RunDirectory) -> bool:
    """Whether a run is on the list: its duties are not done yet."""
    return _entry(lease_dir / _FOLDER, run.path.absolute()).is_file()


def unregister(lease_dir: Path, run: RunDirectory) -> None:
    """Take a run off the list: its duties are done."""
    _entry(lease_dir / _FOLDER, run.path.absolute()).unlink(missing_ok=True)


def _entry(folder: Path, path: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return folder / f"{locks.safe_name(path.name)}-{digest}{_SUFFIX}"


def _named(entry: Path) -> Path | None:
    try:
        descriptor = os.open(entry, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            return None
        text = os.read(descriptor, 8192)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    path = Path(os.fsdecode(text.removesuffix(b"\n")))
    return path if path.is_absolute() else None
