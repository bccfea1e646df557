"""A guardian's rounds, as far as messages go: real records, a real sender, a real service on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.receiver import SECRET, Manners, Receiver, receiver
from support.runs import SUPERVISOR, T0, events_of, make_plan
from wan_train.base.clock import Moment
from wan_train.base.errors import ExitCode
from wan_train.base.settings import remember
from wan_train.notify.notifier import RunNotifier
from wan_train.run.box_ending import Ending
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Duties, Then, write_duties
from wan_train.run.events import Event, Journal
from wan_train.run.state import JobState

BEGAN = Moment(at=T0, boot_id=SUPERVISOR.boot_id, uptime=100.0)
BOTH = dict.fromkeys(("cache-latents", "cache-text", "train-high", "train-low"), JobState.SUCCEEDED)


@pytest.fixture
def service() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


class Box:
    """A box with one run, its guardian's messages, and a clock that is moved by hand."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDirectory(folder / "runs/20251122-120000-mylora")
        self.run.path.mkdir(parents=True)
        self.plan = make_plan(run_dir=self.run.path)
        self.run.write_plan(self.plan)
        self.give(notify=True)
        self.now, self.said = T0, list[str]()
        self.uploads: dict[str, bool] = {}
        self.notifier = self.reborn()

    def give(self, *, notify: bool) -> None:
        write_duties(self.run, Duties(began=BEGAN, notify=notify))

    def reborn(self) -> RunNotifier:
        return RunNotifier(
            first_process=SUPERVISOR,
            uploads=lambda _: self.uploads,
            say=self.said.append,
            now=lambda: self.now,
            pause=0.01,
        )

    def record(self, *events: Event) -> None:
        journal = Journal(self.run.events)
        for event in events:
            journal.append(event)
        journal.close()
        self.now = max(event.at for event in events)

    def round(self, ending: Ending | None = None) -> bool:
        self.notifier.notify(self.run, ending)
        self.notifier.settle(30)
        return self.notifier.notify(self.run, ending)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("WAN_TRAIN_NOTIFY", raising=False)
    return Box(tmp_path)


def ended(box: Box) -> list[Event]:
    return events_of(box.plan, BOTH, exit_code=ExitCode.DONE)


def test_a_run_that_ended_is_told_once_by_any_guardian(box: Box, service: Receiver) -> None:
    remember("notify", [service.url])
    *before, last = ended(box)
    box.record(*before)
    assert not box.round()
    assert service.titles == []
    box.record(last)
    assert not box.round()
    box.notifier = box.reborn()
    assert not box.round()
    assert service.titles == ["mylora: finished in 1 h"]
    assert SECRET not in box.run.notices.read_text()


def test_an_address_that_comes_later_is_used(box: Box, service: Receiver) -> None:
    box.record(*ended(box))
    assert not box.round(), "nobody is to be told"
    remember("notify", [service.url])
    assert not box.round()
    assert len(service.titles) == 1


def test_a_run_that_was_started_without_an_address_stays_quiet(box: Box, service: Receiver) -> None:
    remember("notify", [service.url])
    box.give(notify=False)
    box.record(*ended(box))
    assert not box.round()
    assert service.titles == []


def ending_of(box: Box, *run_ids: str) -> Ending:
    return Ending(
        then=Then.STOP,
        runs=run_ids,
        because="the last run is over",
        decided=BEGAN,
        grace_seconds=300.0,
        due=box.now + 300,
        life=SUPERVISOR,
    )


def test_the_first_run_of_an_ending_tells_of_the_box(box: Box, service: Receiver) -> None:
    remember("notify", [service.url])
    box.record(*ended(box))
    assert not box.round(ending_of(box, box.run.run_id, "20251122-130000-dog"))
    assert service.titles == ["mylora: finished in 1 h", "mylora, 1 more: the box is stopped in 5 min"]
    assert not box.round(ending_of(box, "20251122-130000-dog", box.run.run_id))
    assert len(service.titles) == 2


def test_the_end_of_the_box_is_told_also_of_a_run_that_cannot_be_read(box: Box, service: Receiver) -> None:
    remember("notify", [service.url])
    box.record(*ended(box))
    box.run.plan.write_text("{")
    assert not box.round(ending_of(box, box.run.run_id))
    assert service.titles == [f"{box.run.run_id}: the box is stopped in 5 min"]


def test_a_service_that_refuses_keeps_the_message_open(box: Box, service: Receiver) -> None:
    remember("notify", [service.url])
    service.manners = Manners.REFUSES
    box.record(*ended(box))
    assert box.round()
    service.manners = Manners.TAKES
    box.round()
    assert len(service.titles) == 1


def test_records_or_addresses_that_cannot_be_used_are_said_once_and_keep_no_box_on(box: Box, tmp_path: Path) -> None:
    settings = tmp_path / "config/wan-train/settings.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'notify = ["nonsense://{SECRET}"]\n')
    box.record(*ended(box))
    assert not box.round()
    assert len(box.said) == 1
    settings.write_text(f'notify = ["json://127.0.0.1:9/{SECRET}"]\n')
    box.run.plan.write_text("{")
    box.notifier = box.reborn()
    assert not box.round()
    assert not box.round()
    assert len(box.said) == 2
    assert SECRET not in "".join(box.said)
