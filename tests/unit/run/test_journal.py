"""The journal of a run: what was appended is there, whatever happened to whoever appended it."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from support.runs import OUT_OF_MEMORY, T0
from wan_train.base.codec import CorruptRecordError
from wan_train.run.events import (
    Event,
    Journal,
    JournalReader,
    RunFinished,
    StepFailed,
    StepSkipped,
    StepStopped,
    read_events,
)

EVENTS: list[Event] = [
    StepStopped(at=T0, step="cache-text"),
    StepSkipped(at=T0 + 1, step="train-high", reason="夜\n\u2028 'x'"),
    StepFailed(at=T0 + 2, step="train-low", attempt=1, diagnosis=OUT_OF_MEMORY),
    RunFinished(at=T0 + 3, exit_code=4),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def append(path: Path, *events: Event) -> None:
    journal = Journal(path)
    for event in events:
        journal.append(event)
    journal.close()


def test_what_goes_in_comes_out(path: Path) -> None:
    append(path, *EVENTS)
    assert read_events(path) == EVENTS
    assert len(path.read_bytes().splitlines()) == len(EVENTS)
    assert path.stat().st_mode & 0o077 == 0


def test_a_journal_that_does_not_exist_yet_is_empty(path: Path) -> None:
    reader = JournalReader(path)
    assert list(reader.new_events()) == []
    append(path, EVENTS[0])
    assert list(reader.new_events()) == [EVENTS[0]]


def test_a_reader_gets_each_event_once(path: Path) -> None:
    reader = JournalReader(path)
    for event in EVENTS:
        append(path, event)
        assert list(reader.new_events()) == [event]
    assert list(reader.new_events()) == []


def test_a_line_that_is_being_written_is_left_for_later(path: Path) -> None:
    append(path, EVENTS[0])
    whole = path.read_bytes()
    reader = JournalReader(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert list(reader.new_events()) == []
    path.write_bytes(whole)
    assert list(reader.new_events()) == [EVENTS[0]]


@pytest.mark.parametrize("length", [1, 10, 65_535, 65_536, 65_537, 200_000])
def test_a_torn_last_line_is_cut_off_however_long(path: Path, length: int) -> None:
    append(path, *EVENTS[:2])
    with path.open("ab") as file:
        file.write(b"{" * length)
    append(path, EVENTS[2])
    assert read_events(path) == EVENTS[:3]


def test_a_torn_only_line(path: Path) -> None:
    path.write_bytes(b'{"kind": "step_st')
    append(path, EVENTS[0])
    assert read_events(path) == [EVENTS[0]]


def test_a_full_disk_leaves_no_half_line(path: Path) -> None:
    """A real refusal in the middle of a line: the kernel allows no more than so many bytes."""
    append(path, EVENTS[0])
    size = path.stat().st_size
    journal = Journal(path)
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, old_limit[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            journal.append(EVENTS[2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert path.stat().st_size == size
    journal.append(EVENTS[2])
    journal.close()
    assert read_events(path) == [EVENTS[0], EVENTS[2]]


def test_a_damaged_line_is_told_with_its_file(path: Path) -> None:
    path.write_bytes(b'{"kind": "nothing"}\n')
    with pytest.raises(CorruptRecordError, match=r"events\.jsonl"):
        read_events(path)
