"""Ctrl-C that comes while a view looks at its run: where a person can be asked, it stops nothing by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.runs import make_plan, make_view
from wan_train.base import settings
from wan_train.cli import watch
from wan_train.cli.output import Sink
from wan_train.cli.signals import Signals
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Event
from wan_train.views.model import RunReader, RunView


class SecondLook(Exception):  # noqa: N818  it is an answer, not an error
    """The view looks on without a question."""


class CtrlCDuringTheLook(RunReader):
    """Reads the run, and while it does, the person presses Ctrl-C; the next look ends the test."""

    signals: Signals
    place: Path
    looks = 0

    def refresh(self) -> tuple[RunView, list[Event]]:
        self.looks += 1
        if self.looks > 1:
            raise SecondLook
        self.signals.interrupted = True
        return make_view(make_plan(run_dir=self.place), []), []


class Asked(Exception):  # noqa: N818  it is an answer, not an error
    """The question was reached."""


@pytest.mark.parametrize("screen", [True, False])
def test_it_is_asked_about_at_a_screen_and_stops_where_nobody_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, screen: bool
) -> None:
    def ask(*_: object) -> bool:
        raise Asked

    monkeypatch.setattr(watch, "_answer_interrupt", ask)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write_plan(make_plan(run_dir=run.path))
    signals = Signals()
    reader = CtrlCDuringTheLook(run)
    reader.signals, reader.place = signals, run.path
    watcher = watch._Watcher(
        run=run,
        settings=settings.resolve(flags={}, environ={}),
        sink=Sink(),
        owner=True,
        signals=signals,
        reader=reader,
    )
    with pytest.raises(Asked if screen else SecondLook):
        watcher.follow_screen() if screen else watcher.follow_lines()
    assert run.stop_request.exists() is not screen
