"""What follows from the records of uploads: what is there, when to try again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wan_train.upload.transfers import Began, Failed, Record, TargetState, Verified, fold_all

TARGET = "hf:me/cat"


def verified(name: str, *, size: int = 1, at: float = 0.0, sha256: str = "aa") -> Verified:
    return Verified(at=at, target=TARGET, name=name, where=name, bytes=size, mtime_ns=7, sha256=sha256)


def failed(at: float, *, final: bool = False, pause: float = 30.0) -> Failed:
    return Failed(at=at, target=TARGET, reason="no", hint=None, final=final, not_before=at + pause)


def began(**files: str) -> Began:
    return Began(at=0.0, target=TARGET, files=files, blobs=("b1",), bytes=1)


def state(*records: Record) -> TargetState:
    return fold_all(records)[TARGET]


def test_a_file_is_there_as_long_as_it_is_the_same() -> None:
    known = state(verified("a", size=1))
    assert known.has("a", 1, 7)
    assert not known.has("a", 2, 7)
    assert not known.has("a", 1, 8)
    assert not known.has("b", 1, 7)


def test_sending_ends_when_everything_that_was_begun_is_verified() -> None:
    assert state(began(a="aa", b="bb"), verified("a")).began is not None
    assert state(began(a="aa", b="bb"), verified("a"), verified("b", sha256="bb")).began is None
    assert state(began(a="aa"), failed(1)).began is None
    assert state(began(a="aa"), failed(1)).ours == {"aa", "b1"}


def test_pauses_grow_to_a_quarter_of_an_hour_and_end_with_a_success() -> None:
    records: list[Record] = []
    pauses = []
    for number in range(8):
        pauses.append((fold_all(records).get(TARGET) or TargetState()).pause_after(None, final=False))
        records.append(failed(number))
    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900]
    assert state(*records, verified("a")).pause_after(None, final=False) == 30
    assert state(*records).pause_after(5000, final=False) == 3600, "a target's own pause has an end"
    assert TargetState().pause_after(None, final=True) == 900


@given(st.floats(0, 1e9), st.floats(0, 1e6), st.floats(-1e6, 1e6))
def test_a_clock_that_was_set_back_does_not_keep_an_upload_waiting(at: float, pause: float, later: float) -> None:
    known = state(failed(at, pause=pause))
    assert known.may_try(at + later) == (later >= pause or at + later < at or at + later >= at + pause)
    assert known.may_try(at - 1e7)
