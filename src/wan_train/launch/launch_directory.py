"""Files of a launch on this computer: its record, its lock, the request to stop it."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from wan_train.base import codec, locks
from wan_train.base.errors import BadInputError
from wan_train.base.files import write_whole
from wan_train.base.text import one_line
from wan_train.launch.model import Halt, Launch

PREFIX = "wt"
_ID = re.compile(r"[0-9a-f]{8}")
_FOLDER = "launches"
_TRIES, _TRY_SECONDS = 20, 0.01


@dataclass(frozen=True, slots=True)
class LaunchDirectory:
    """The records of one launch, in a folder of the directory of runs."""

    path: Path

    @property
    def record(self) -> Path:
        """The launch's record, written before anything is done."""
        return self.path / "launch.json"

    @property
    def request(self) -> Path:
        """How it is to end, written by `launch stop`."""
        return self.path / "stop"

    @property
    def log(self) -> Path:
        return self.path / "launch.log"

    @property
    def engine_log(self) -> Path:
        return self.path / "skypilot.log"

    @property
    def scratch(self) -> Path:
        """Host keys, ssh keys of boxes, files being sent."""
        return self.path / "scratch"

    @property
    def runs(self) -> Path:
        """The directory of runs, to which its jobs' runs come home."""
        return self.path.parent.parent

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the launch: one program at a time carries it out. Raises BlockingIOError.

        `is_held` takes the lock for a moment, so try a few times.
        """
        with ExitStack() as stack:
            for left in reversed(range(_TRIES)):
                try:
                    stack.enter_context(locks.held(self._lock))
                    break
                except BlockingIOError:
                    if not left:
                        raise
                    time.sleep(_TRY_SECONDS)
            yield

    @property
    def _lock(self) -> Path:
        return self.path / "lock"

    @property
    def is_held(self) -> bool:
        """Whether a program carries it out now."""
        try:
            with locks.held(self._lock):
                return False
        except BlockingIOError:
            return True
        except OSError:
            return False

    def read(self) -> Launch:
        """Raises CorruptRecordError and FileNotFoundError."""
        return codec.from_json(self.record.read_bytes(), Launch, where=str(self.record))

    def write(self, launch: Launch) -> None:
        write_whole(self.record, codec.to_json(launch) + "\n")

    def requested(self) -> Halt | None:
        """How the launch was asked to end; None if it was not, NOW for an unreadable request."""
        try:
            text = self.request.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return Halt.NOW
        return Halt.SAVE if text == Halt.SAVE else Halt.NOW

    def ask(self, halt: Halt) -> None:
        """Ask the program that carries it out to end it."""
        write_whole(self.request, halt.value)


def box_name(launch_id: str, number: int) -> str:
    """Return the name of a box. A launch's names share a prefix, and no name with a dash after it begins another."""
    return f"{PREFIX}-{launch_id}-{number:03d}"


def launch_of(label: str) -> str | None:
    """The ID of the launch that rented a listed box; None for any other box."""
    match = re.match(rf"{PREFIX}-({_ID.pattern})-\d{{3,}}(?:-|$)", label)
    return match[1] if match else None


def directory_of(runs: Path, launch_id: str) -> LaunchDirectory:
    return LaunchDirectory(runs / _FOLDER / launch_id)


def new(runs: Path) -> LaunchDirectory:
    """A folder for a new launch; raises OSError."""
    folder = runs / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            made = LaunchDirectory(folder / secrets.token_hex(4))
            made.path.mkdir(mode=0o700)
            made.scratch.mkdir(mode=0o700)
            return made


def all_launches(runs: Path) -> list[LaunchDirectory]:
    """Every launch with a record, newest first."""
    found = []
    with suppress(OSError):
        for path in (runs / _FOLDER).iterdir():
            directory = LaunchDirectory(path)
            with suppress(OSError):
                found.append((directory.record.stat().st_mtime, directory))
    return [directory for _, directory in sorted(found, key=lambda each: each[0], reverse=True)]


def launch_that_trains(runs: Path, home: Path) -> str | None:
    """The ID of a launch with an unfinished job whose run comes home to this directory; None without one."""
    for directory in all_launches(runs):
        launch: Launch | None = codec.read(directory.record, Launch)
        if launch is not None and any(job.home == home and not job.state.is_end for job in launch.jobs):
            return launch.id
    return None


def find(runs: Path, name: str | None) -> LaunchDirectory:
    """The launch whose ID begins with `name`; the newest if `name` is None. Raises BadInputError."""
    known = all_launches(runs)
    if not known:
        raise BadInputError(f"no launch in {runs}", hint="Start one: `wan-train launch DATASET`")
    if name is None:
        return known[0]
    match [each for each in known if each.path.name.startswith(name)] if name else []:
        case [one]:
            return one
        case []:
            raise BadInputError(f"no launch begins with {one_line(name)!r}", hint=_known(known))
        case several:
            raise BadInputError(f"{one_line(name)!r} matches {len(several)} launches", hint=_known(several))


def _known(launches: list[LaunchDirectory]) -> str:
    return f"Use the full ID: {', '.join(each.path.name for each in launches[:10])}"
