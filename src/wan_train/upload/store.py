"""The protocol of an upload target, its payloads and its errors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wan_train.base.errors import NotReadyError
from wan_train.base.files import stamp
from wan_train.base.units import MIB
from wan_train.upload.content import Item

_CHUNK = MIB


class StoreError(NotReadyError):
    """A target refused. `reason` is the message without the target. If `final`, a retry alone cannot help.

    `retry_after` is the pause that the target asks for, in seconds.
    """

    def __init__(
        self, target: object, reason: str, *, hint: str | None, final: bool = True, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{target}: {reason}", hint=hint)
        self.reason = reason
        self.final = final
        self.retry_after = retry_after


class ChangedError(Exception):
    """A file was changed or removed while it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A file with its digests; `blob` is git's. `mtime_ns` and `size` are from before the file was read."""

    name: str
    source: Path | bytes
    size: int
    mtime_ns: int
    sha256: str
    blob: str

    def check(self) -> None:
        """Raise ChangedError if the file has changed since it was read."""
        if isinstance(self.source, Path) and stamp(self.source) != (self.size, self.mtime_ns):
            raise ChangedError(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A payload that the target's own checksum confirms, and its path there."""

    payload: Payload
    where: str


class Store(Protocol):
    """One target."""

    def check(self) -> None:
        """Write a small file and remove it. Raise StoreError."""

    def put(self, payloads: Sequence[Payload], ours: frozenset[str]) -> Iterator[Stored]:
        """Send what is missing and yield each payload once it is verified. May be repeated after any kill.

        `ours` holds digests of everything this run ever sent there. Other files with the same names are never
        replaced. Raise StoreError or ChangedError.
        """


def payload_of(item: Item) -> Payload:
    """Read a file for its digests. Raise ChangedError."""
    before = stamp(item.path)
    if before is None:
        raise ChangedError(item.name)
    try:
        with item.path.open("rb") as file:
            sha256, blob = _digests(iter(lambda: file.read(_CHUNK), b""), before[0])
    except OSError:
        raise ChangedError(item.name) from None
    if stamp(item.path) != before:
        raise ChangedError(item.name)
    return Payload(name=item.name, source=item.path, size=before[0], mtime_ns=before[1], sha256=sha256, blob=blob)


def payload_of_bytes(name: str, content: bytes) -> Payload:
    """Return the payload of a file that is made only for the target."""
    sha256, blob = _digests([content], len(content))
    return Payload(name=name, source=content, size=len(content), mtime_ns=0, sha256=sha256, blob=blob)


def _digests(chunks: Iterable[bytes], size: int) -> tuple[str, str]:
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for chunk in chunks:
        sha256.update(chunk)
        blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()
