"""What is counted as there of a file that is half fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from wan_train.provision.part import Part

MIB = 1024 * 1024
SIZE = 9 * MIB + 100


@pytest.fixture
def part(tmp_path: Path) -> Part:
    return Part(folder=tmp_path, size=SIZE)


def test_nothing_is_there_at_first(part: Part) -> None:
    assert part.done() == 0
    assert not part.is_whole()


def test_a_part_without_a_record_counts_as_long_as_it_is(part: Part) -> None:
    part.path.write_bytes(bytes(3 * MIB + 5))
    assert part.done() == 3 * MIB + 5
    part.path.write_bytes(bytes(SIZE))
    assert part.is_whole()


def test_a_record_made_for_many_connections_counts_whole_pieces_and_survives_the_way_back(part: Part) -> None:
    part.path.write_bytes(bytes(3 * MIB + 5))
    part.for_ranges()
    assert part.done() == 3 * MIB
    part.for_appending()
    assert part.path.stat().st_size == 3 * MIB
    assert not part.control.exists()
    assert part.done() == 3 * MIB


def test_a_whole_part_stays_whole_with_a_record(part: Part) -> None:
    part.path.write_bytes(bytes(SIZE))
    part.for_ranges()
    assert part.is_whole()


def test_length_alone_proves_nothing_once_there_is_a_record(part: Part) -> None:
    part.for_ranges()
    part.path.write_bytes(bytes(SIZE))  # as after a write at the very end
    assert part.done() == 0
    assert not part.is_whole()


@pytest.mark.parametrize("keep", [0, 1, 9, 20, 35, 39])
def test_a_torn_record_says_that_nothing_is_there(part: Part, keep: int) -> None:
    part.path.write_bytes(bytes(SIZE))
    part.for_ranges()
    part.control.write_bytes(part.control.read_bytes()[:keep])
    assert part.done() == 0
    part.for_appending()
    assert part.path.stat().st_size == 0


def test_a_record_of_another_size_says_that_nothing_is_there(part: Part) -> None:
    part.path.write_bytes(bytes(SIZE))
    Part(folder=part.folder, size=SIZE).for_ranges()
    assert Part(folder=part.folder, size=SIZE + 1).done() == 0


def test_a_record_whose_part_is_gone_says_that_nothing_is_there(part: Part) -> None:
    part.path.write_bytes(bytes(SIZE))
    part.for_ranges()
    part.path.unlink()
    assert part.done() == 0
    part.for_appending()
    assert part.done() == 0


def test_more_bytes_than_there_are_is_no_beginning(part: Part) -> None:
    part.path.write_bytes(bytes(SIZE + 1))
    assert not part.is_whole()
    part.for_appending()
    assert part.done() == 0
