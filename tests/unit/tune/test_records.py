"""The file of measurements: what was kept is read again, whatever happened to the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unit.tune.test_search import row, space
from wan_train.base.errors import NotReadyError
from wan_train.tune import records


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "wan-train"


def test_a_line_that_a_full_disk_cut_short_costs_only_itself() -> None:
    first = row("", space(0).guide)
    records.keep(first)
    with records.file().open("ab") as file:
        file.write(b'{"at": 1.0, "bas')
    second = replace(first, lever="compile", at=2.0)
    records.keep(second)
    assert records.read() == (first, second)


def test_a_file_that_cannot_be_written_is_named(home: Path) -> None:
    home.mkdir()
    (home / "tune").touch()
    with pytest.raises(NotReadyError, match="cannot be kept") as caught:
        records.keep(row("", space(0).guide))
    assert str(records.file()) in caught.value.message
    assert records.read() == ()


def test_only_measurements_of_the_same_card_and_software_count() -> None:
    mine = row("", space(0).guide)
    other = replace(mine, basis=replace(mine.basis, driver="580"))
    records.keep(mine)
    records.keep(other)
    assert records.of(mine.basis) == (mine,)
    assert records.of(None) == ()
