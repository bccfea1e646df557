"""The records of a run's uploads (`uploads.jsonl`): what was sent, verified or refused, and the resulting states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from wan_train.base import codec
from wan_train.base.clock import backoff
from wan_train.base.files import append_lines
from wan_train.run.directory import RunDirectory

_FIRST_PAUSE_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 900.0
_LONGEST_WAIT_SECONDS = 3600.0
"""The longest pause that a target may ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """These files are about to be sent to a target. What arrives there is therefore ours.

    `files` maps names to sha256. `blobs` are git's digests of the same files: the hub has those of small files.
    """

    at: float
    target: str
    files: Mapping[str, str]
    blobs: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The target's own checksum confirms this file. `where` is its path there.

    `bytes` and `mtime_ns` are those of the local file before it was read. If they differ, the file has changed since.
    """

    at: float
    target: str
    name: str
    where: str
    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A target did not accept the files. If `final`, a retry alone cannot help. `not_before` is the time to retry."""

    at: float
    target: str
    reason: str
    hint: str | None
    final: bool
    not_before: float


Record = Began | Verified | Failed
codec.register_union(Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetState:
    """The state of one target. `verified` has the newest record by name. `ours` are the digests of everything sent."""

    verified: Mapping[str, Verified] = field(default_factory=dict)
    ours: frozenset[str] = frozenset()
    began: Began | None = None
    """What is being sent, or was when the uploader was killed. None once all of it was verified, or failed."""
    failed: Failed | None = None
    """The newest failure. None once something was verified after it."""
    failures: int = 0
    """Consecutive failures."""

    def has(self, name: str, size: int, mtime_ns: int) -> bool:
        """Whether the target has the current version of the file."""
        known = self.verified.get(name)
        return known is not None and (known.bytes, known.mtime_ns) == (size, mtime_ns)

    def may_try(self, now: float) -> bool:
        """Whether the pause after a failure is over. A failure from the future means that the clock was set back."""
        return self.failed is None or now >= self.failed.not_before or now < self.failed.at

    def pause_after(self, asked: float | None, *, final: bool) -> float:
        """Return the seconds until the next try after one more failure. `asked` is the pause the target asks for."""
        if final:
            return _LONGEST_PAUSE_SECONDS
        grown = backoff(self.failures + 1, first=_FIRST_PAUSE_SECONDS, longest=_LONGEST_PAUSE_SECONDS)
        return max(grown, min(asked or 0.0, _LONGEST_WAIT_SECONDS))


def fold(states: Mapping[str, TargetState], record: Record) -> dict[str, TargetState]:
    """Return the states by target after one more record."""
    state = states.get(record.target, TargetState())
    return {**states, record.target: _fold_target(state, record)}


def _fold_target(state: TargetState, record: Record) -> TargetState:
    match record:
        case Began():
            return replace(state, began=record, ours=state.ours | {*record.files.values(), *record.blobs})
        case Verified():
            verified = {**state.verified, record.name: record}
            began = state.began
            if began is not None and all(
                name in verified and verified[name].sha256 == digest for name, digest in began.files.items()
            ):
                began = None
            return replace(state, verified=verified, began=began, failed=None, failures=0)
        case Failed():
            return replace(state, began=None, failed=record, failures=state.failures + 1)


def fold_all(records: Iterable[Record]) -> dict[str, TargetState]:
    states: dict[str, TargetState] = {}
    for record in records:
        states = fold(states, record)
    return states


def append(run: RunDirectory, record: Record) -> None:
    append_lines(run.uploads, codec.to_json(record, Record))


def read_states(run: RunDirectory) -> dict[str, TargetState]:
    """Return the states by target. Skip unreadable lines (a crash, a newer version): their files are sent again."""
    return fold_all(codec.read_lines(run.uploads, Record))
