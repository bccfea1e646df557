"""The guardian with a clock moved by hand and a provider that obeys or does not; its records are real files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from support.runs import T0, events_of, make_plan
from wan_train.base import codec
from wan_train.base.clock import moment
from wan_train.base.host import ProcessIdentity, myself
from wan_train.base.locks import held
from wan_train.gpu.leases import LeaseHolder, LeaseRoom
from wan_train.guardian.guardian import Guardian
from wan_train.guardian.program import REPLACED, care
from wan_train.run.box_ending import Ending, Phase, ask_to_keep, read_ending
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Duties, Then, is_registered, register, registered, write_duties
from wan_train.run.events import Event, Journal, RunResumed, StopMode, SupervisorStarted
from wan_train.run.plan import Plan
from wan_train.upload.status import Uploaded

FIRST = ProcessIdentity(pid=1, start_time=7, boot_id="a")


@dataclass(slots=True)
class HandClock:
    at: float = 1_800_000_000.0
    uptime: float = 100.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.uptime

    def pass_by(self, seconds: float) -> None:
        self.at += seconds
        self.uptime += seconds


@dataclass(slots=True)
class FakeEffects:
    """Does what it is told at once; `says` is the provider's answer to each order, the last one for ever."""

    says: list[str] = field(default_factory=lambda: [""])
    restarted: list[str] = field(default_factory=list)
    stopped: list[tuple[str, StopMode]] = field(default_factory=list)
    uploaded: list[str] = field(default_factory=list)
    orders: list[Then] = field(default_factory=list)
    _answer: str | None = None

    def restart(self, run: RunDirectory) -> str | None:
        self.restarted.append(run.run_id)
        return None

    def stop(self, run: RunDirectory, mode: StopMode) -> None:
        self.stopped.append((run.run_id, mode))

    def upload(self, run: RunDirectory) -> None:
        self.uploaded.append(run.run_id)

    def is_uploading(self, run: RunDirectory) -> bool:  # noqa: ARG002  the protocol's
        return False

    def end(self, ending: Ending) -> None:
        self.orders.append(ending.then)
        self._answer = self.says.pop(0) if len(self.says) > 1 else self.says[0]

    @property
    def is_acting(self) -> bool:
        return self._answer is not None

    def answer(self) -> str | None:
        said, self._answer = self._answer, None
        return said

    def by_hand(self, then: Then) -> str | None:
        return f"vastai {then} instance 7"


@dataclass(slots=True)
class FakeUploads:
    known: dict[str, Uploaded] = field(default_factory=dict)

    def look(  # the protocol's
        self,
        run: RunDirectory,
        duties: Duties,  # noqa: ARG002
        now: float,  # noqa: ARG002
        *,
        fresh: bool,  # noqa: ARG002
    ) -> Uploaded:
        return self.known.get(run.run_id, Uploaded())


class World:
    """A box: a lease directory, runs, and one guardian after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leases = folder / "leases"
        self.clock = HandClock()
        self.effects = FakeEffects()
        self.uploads = FakeUploads()
        self.life = FIRST
        self.guardian = self.another()

    def another(self) -> Guardian:
        """A guardian in place of one that was killed, or on a box that came back."""
        self.guardian = Guardian(
            lease_dir=self.leases,
            clock=self.clock,
            effects=self.effects,
            uploads=self.uploads,
            notifier=None,
            first_process=self.life,
        )
        return self.guardian

    def run(self, name: str, then: Then = Then.STOP, *, ends: bool = True, is_listed: bool = True) -> RunDirectory:
        """A run with duties; one that does not end has a supervisor: this process."""
        run = RunDirectory(self.folder / "runs" / name)
        run.path.mkdir(parents=True)
        plan = replace(make_plan(), run_dir=run.path)
        run.plan.write_text(codec.to_json(plan))
        self.record(run, plan, ends=ends)
        began = replace(moment(self.clock), at=T0)  # before its last event
        duties = Duties(began=began, then=then, grace_seconds=60.0)
        if then is Then.COMMAND:
            duties = replace(duties, command=("poweroff",))
        write_duties(run, duties)
        if is_listed:
            register(self.leases, run)
        return run

    def record(self, run: RunDirectory, plan: Plan, *, ends: bool) -> None:
        started: list[Event] = [SupervisorStarted(at=self.clock.at, identity=myself())]
        events = events_of(plan, {}, exit_code=0) if ends else started
        run.events.write_text("".join(codec.to_json(event, Event) + "\n" for event in events))

    def rounds(self, seconds: float) -> float | None:
        """Let time pass, a round every two seconds; what the last round said."""
        pause: float | None = None
        for _ in range(max(1, round(seconds / 2))):
            pause = self.guardian.tick()
            self.clock.pass_by(2.0)
        return pause

    @property
    def ending(self) -> Ending | None:
        return read_ending(self.leases)

    @property
    def phase(self) -> Phase | None:
        return self.ending.phase if self.ending is not None else None


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_box_is_stopped_after_its_grace(world: World) -> None:
    world.run("cat")
    world.rounds(58)
    assert world.phase is Phase.COUNTDOWN
    assert world.effects.orders == []
    world.rounds(8)
    assert world.phase is Phase.ASKED
    assert world.effects.orders == [Then.STOP]


def test_a_run_that_works_is_waited_for(world: World) -> None:
    world.run("cat")
    world.run("dog", ends=False)
    world.rounds(600)
    assert world.ending is None


def test_whoever_holds_a_gpu_is_waited_for(world: World) -> None:
    world.run("cat")
    lease = LeaseRoom(world.leases).try_take("GPU-1", LeaseHolder(run_id="of somebody else"))
    assert lease is not None
    with lease:
        world.rounds(600)
        assert world.ending is None
    world.rounds(10)
    assert world.phase is Phase.COUNTDOWN


def test_a_person_keeps_the_box_on_and_the_guardian_ends(world: World) -> None:
    world.run("cat")
    world.rounds(10)
    assert world.ending is not None
    ask_to_keep(world.leases, world.ending, by="`wan-train status`")
    assert world.rounds(10) is None, "nothing is owed to any run"
    assert world.phase is Phase.CANCELLED
    assert world.effects.orders == []
    assert registered(world.leases) == []


def test_a_request_about_an_earlier_countdown_does_not_count(world: World) -> None:
    world.run("cat")
    world.rounds(10)
    assert world.ending is not None
    earlier = replace(world.ending, decided=replace(world.ending.decided, uptime=1.0))
    ask_to_keep(world.leases, earlier, by="`wan-train status`")
    world.rounds(80)
    assert world.phase is Phase.ASKED


@pytest.mark.parametrize("killed_after", [1, 30, 58])
def test_another_guardian_goes_on_with_the_countdown(world: World, killed_after: float) -> None:
    world.run("cat")
    world.rounds(killed_after)
    world.another()
    world.rounds(70 - killed_after)
    assert world.effects.orders == [Then.STOP]


def test_a_guardian_killed_after_its_order_gives_it_again(world: World) -> None:
    world.run("cat")
    while not world.effects.orders:
        world.rounds(2)
    world.effects.answer()  # the answer died with it
    world.another()
    world.rounds(20)
    assert world.effects.orders == [Then.STOP, Then.STOP]
    assert world.phase is Phase.ASKED


def test_a_box_that_came_back_after_its_stop_stays_on(world: World) -> None:
    run = world.run("cat")
    world.rounds(70)
    assert world.phase is Phase.ASKED
    world.life = replace(FIRST, start_time=9)
    world.another().take_up(run.path.parent)
    assert world.rounds(600) is None
    assert world.effects.orders == [Then.STOP]


def test_a_stopped_box_that_lost_its_temporary_files_stays_on(world: World) -> None:
    run = world.run("cat")
    world.rounds(70)
    shutil.rmtree(world.leases)
    world.life = replace(FIRST, start_time=9)
    world.another().take_up(run.path.parent)
    assert world.rounds(600) is None
    assert world.effects.orders == [Then.STOP]


def test_a_reboot_before_the_order_begins_the_countdown_anew(world: World) -> None:
    run = world.run("cat", is_listed=False)
    world.guardian.take_up(run.path.parent)
    world.rounds(40)
    assert world.phase is Phase.COUNTDOWN
    world.life = replace(FIRST, start_time=9)
    world.another().take_up(run.path.parent)
    world.rounds(40)
    assert world.effects.orders == []
    world.rounds(40)
    assert world.effects.orders == [Then.STOP]


def test_a_provider_that_is_down_is_asked_until_it_obeys(world: World) -> None:
    world.effects.says = ["Vast cannot be reached", "Vast cannot be reached", ""]
    world.run("cat")
    world.rounds(66)
    assert world.ending is not None
    assert world.ending.problem == "Vast cannot be reached"
    assert world.ending.by_hand == "vastai stop instance 7"
    world.rounds(60)
    assert world.phase is Phase.ASKED
    assert world.effects.orders == [Then.STOP] * 3


def test_a_clock_that_is_set_changes_nothing(world: World) -> None:
    world.run("cat")
    world.rounds(20)
    world.clock.at -= 86_400
    world.rounds(36)
    assert world.phase is Phase.COUNTDOWN
    world.clock.at += 10 * 86_400
    world.rounds(10)
    assert world.effects.orders == [Then.STOP]


def test_a_dead_supervisor_is_replaced_within_a_minute(world: World) -> None:
    run = world.run("cat", ends=False)
    gone = SupervisorStarted(at=1.0, identity=replace(myself(), start_time=1))
    run.events.write_text(codec.to_json(gone, Event) + "\n")
    world.rounds(60)
    assert world.effects.restarted[0] == "cat"


def test_results_of_other_runs_keep_a_box_from_being_destroyed(world: World) -> None:
    run = world.run("cat", Then.DESTROY)
    write_duties(run, Duties(began=moment(world.clock), then=Then.DESTROY, uploads=("hf:a/b",), grace_seconds=60))
    other = world.run("dog", Then.NOTHING, is_listed=False)
    other.duties.unlink()
    (other.path / "WAN2.2-LowNoise_dog.safetensors").touch()
    world.rounds(120)
    assert world.effects.orders == [Then.STOP]
    assert world.ending is not None
    assert "dog has results that were not uploaded" in world.ending.because


def test_a_box_is_destroyed_when_all_is_safe(world: World) -> None:
    run = world.run("cat")
    write_duties(run, Duties(began=moment(world.clock), then=Then.DESTROY, uploads=("hf:a/b",), grace_seconds=60))
    world.uploads.known["cat"] = Uploaded(pending=True, due=True, unverified=("hf:a/b lacks 1 file",))
    world.rounds(100)
    assert world.effects.orders == []
    assert world.effects.uploaded
    world.uploads.known["cat"] = Uploaded()
    world.rounds(70)
    assert world.effects.orders == [Then.DESTROY]


def test_records_that_cannot_be_read_keep_no_box_running(world: World) -> None:
    run = world.run("cat")
    run.plan.write_text("{torn")
    write_duties(run, Duties(began=moment(world.clock), then=Then.DESTROY, uploads=("hf:a/b",), grace_seconds=60))
    world.rounds(70)
    assert world.effects.orders == [Then.STOP]


def test_a_run_with_a_damaged_journal_is_waited_for_while_its_supervisor_lives(world: World) -> None:
    run = world.run("cat", Then.DESTROY, ends=False)
    with run.events.open("a") as journal:
        journal.write("no record\n")
    with held(run.lock):
        world.rounds(600)
        assert world.ending is None
    world.rounds(10)
    assert world.ending is not None
    assert world.ending.then is Then.STOP, "nobody knows what its records say"
    assert world.effects.restarted == []


def test_a_run_that_was_removed_is_forgotten(world: World) -> None:
    run = world.run("cat", ends=False)
    world.rounds(2)
    run.plan.unlink()
    assert world.rounds(4) is None
    assert registered(world.leases) == []


def loop(path: Path) -> None:
    """Replace a file by a link to itself, so that reading it fails with an OSError."""
    path.unlink()
    path.symlink_to(path.name)


def test_a_run_whose_duties_cannot_be_read_for_a_moment_is_not_let_go(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run = world.run("cat")
    duties = run.duties.read_bytes()
    loop(run.duties)
    assert world.rounds(600) is not None
    assert is_registered(world.leases, run)
    assert capsys.readouterr().out.count("duties.json") == 1
    run.duties.unlink()
    run.duties.write_bytes(duties)
    world.rounds(70)
    assert world.effects.orders == [Then.STOP]


def test_results_of_a_run_whose_duties_cannot_be_read_keep_a_box_from_being_destroyed(world: World) -> None:
    run = world.run("cat", Then.DESTROY)
    write_duties(run, Duties(began=moment(world.clock), then=Then.DESTROY, uploads=("hf:a/b",), grace_seconds=60))
    other = world.run("dog")
    loop(other.duties)
    (other.path / "WAN2.2-LowNoise_dog.safetensors").touch()
    world.rounds(120)
    assert world.effects.orders == [Then.STOP]


def test_a_removed_run_whose_duties_could_not_be_read_is_forgotten(world: World) -> None:
    run = world.run("cat")
    loop(run.duties)
    world.rounds(4)
    shutil.rmtree(run.path)
    assert world.rounds(4) is None
    assert registered(world.leases) == []


@pytest.mark.parametrize("text", [None, "{torn"])
def test_a_run_without_readable_duties_is_let_go_and_damage_is_logged(
    world: World, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = world.run("cat")
    if text is None:
        run.duties.unlink()
    else:
        run.duties.write_text(text)
    assert world.rounds(4) is None
    assert registered(world.leases) == []
    assert capsys.readouterr().out.count("duties.json") == (text is not None)


def test_what_a_guardian_did_is_remembered_if_its_record_cannot_be_read_for_a_moment(world: World) -> None:
    run = world.run("cat")
    world.rounds(70)
    record = run.guard.read_bytes()
    loop(run.guard)
    shutil.rmtree(world.leases)
    world.life = replace(FIRST, start_time=9)
    world.another().take_up(run.path.parent)
    world.rounds(10)
    run.guard.unlink(missing_ok=True)
    run.guard.write_bytes(record)
    assert world.rounds(600) is None
    assert world.effects.orders == [Then.STOP], "a box that was started again stays on"


def test_a_record_that_can_never_be_read_keeps_no_box_running(world: World) -> None:
    run = world.run("cat", is_listed=False)
    run.guard.symlink_to(run.guard.name)
    register(world.leases, run)
    world.rounds(140)
    assert world.effects.orders == [Then.STOP]


def test_a_run_whose_journal_cannot_be_read_for_a_moment_is_still_watched(world: World) -> None:
    run = world.run("cat", ends=False)
    world.rounds(4)
    events = run.events.read_bytes()
    loop(run.events)
    world.rounds(30)
    assert world.ending is None
    run.events.unlink()
    run.events.write_bytes(events)
    world.rounds(600)
    assert world.ending is None
    loop(run.events)
    world.rounds(130)
    assert world.effects.orders == [Then.STOP], "a journal that stays unreadable keeps no box running"


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_keeps_no_box_running(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run("cat")
    write: Callable[..., None] = full_disk
    monkeypatch.setattr("wan_train.guardian.guardian.write_ending", write)
    monkeypatch.setattr("wan_train.guardian.run_tracker.write_whole", write)
    world.rounds(70)
    assert world.effects.orders[0] is Then.STOP


def test_a_finished_run_that_is_about_to_be_resumed_is_not_let_go(world: World) -> None:
    run = world.run("cat", Then.NOTHING, is_listed=False)
    write_duties(run, Duties(began=moment(world.clock), then=Then.NOTHING, uploads=("hf:me/cat",)))
    register(world.leases, run)
    assert world.rounds(4) is not None, "its supervisor is not there yet"
    journal = Journal(run.events)
    journal.append(RunResumed(at=world.clock.at))
    journal.append(SupervisorStarted(at=world.clock.at, identity=myself()))
    journal.close()
    assert world.rounds(120) is not None
    assert is_registered(world.leases, run)


class TestUpgrade:
    def test_a_replaced_program_ends_so_that_the_new_one_starts(self) -> None:
        rounds: list[float] = []
        code = care(lambda: 2.0, is_replaced=lambda: len(rounds) == 3, pause=rounds.append)
        assert (code, rounds) == (REPLACED, [2.0, 2.0, 2.0])

    def test_without_an_upgrade_it_ends_with_its_duties(self) -> None:
        left = iter([2.0, None])
        assert care(lambda: next(left), is_replaced=lambda: False, pause=lambda _: None) == 0

    def test_a_round_that_fails_is_repeated_and_said_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        answers: Iterator[float | None] = iter([2.0, None])
        fail = iter([True, True, False, False])

        def tick() -> float | None:
            if next(fail):
                raise RuntimeError("a bug")
            return next(answers)

        paused: list[float] = []
        assert care(tick, is_replaced=lambda: False, pause=paused.append) == 0
        assert len(paused) == 3
        assert capsys.readouterr().out.count("RuntimeError: a bug") == 1
