"""Records as JSON and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_train.base import codec
from wan_train.base.codec import CorruptRecordError


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    path: Path
    colours: tuple[Colour, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstKind:
    text: str
    number: float | None = None
    inner: Inner | None = None
    by_name: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondKind:
    flag: bool


Either = FirstKind | SecondKind
codec.register_union(Either)

VALUES = st.one_of(
    st.builds(
        FirstKind,
        text=st.text(),
        number=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        inner=st.none() | st.builds(Inner, path=st.just(Path("/a b/é")), colours=st.just((Colour.RED, Colour.RED))),
        by_name=st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
    ),
    st.builds(SecondKind, flag=st.booleans()),
)


@given(VALUES)
def test_there_and_back(value: FirstKind | SecondKind) -> None:
    text = codec.to_json(value, Either)
    assert codec.from_json(text, Either, where="test") == value
    assert codec.from_json(text.encode(), Either, where="test") == value
    assert "\n" not in text


def test_paths_that_are_no_text_survive() -> None:
    """Linux file names are bytes; Python keeps those that are not UTF-8 as lone surrogates."""
    value = Inner(path=Path("/data/caf\udce9"))
    assert codec.from_json(codec.to_json(value).encode(), Inner, where="test") == value


def test_kinds_are_told_by_name() -> None:
    assert json.loads(codec.to_json(SecondKind(flag=True), Either)) == {"kind": "second_kind", "flag": True}


def test_text_of_any_script_stays_readable() -> None:
    assert "夜の街" in codec.to_json(FirstKind(text="夜の街"))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        codec.to_json(FirstKind(text="", number=number))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "5",
        "{}",
        '{"flag": true}',
        '{"kind": "third_kind"}',
        '{"kind": "second_kind"}',
        '{"kind": ["second_kind"], "flag": true}',
        '{"kind": "first_kind", "text": "x", "inner": 7}',
        '{"kind": "first_kind", "text": "x", "inner": {"path": "/x", "colours": ["blue"]}}',
        b"\xff\xfe",
        "[" * 100_000,
    ],
)
def test_what_is_no_record_is_told_with_its_place(text: str | bytes) -> None:
    with pytest.raises(CorruptRecordError, match=r"events\.jsonl"):
        codec.from_json(text, Either, where="events.jsonl")


def test_keys_of_a_newer_release_are_left_aside() -> None:
    assert codec.from_json('{"kind": "second_kind", "flag": true, "new": 1}', Either, where="x") == SecondKind(
        flag=True
    )


def test_a_damaged_line_costs_no_other_record(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text('[1]\n[2\n[Infinity]\n"x"\n[3]\n')
    assert codec.read_lines(file, tuple[int, ...]) == [(1,), (3,)]
    assert codec.read_lines(tmp_path / "missing.jsonl", tuple[int, ...]) == []
