"""Whole launches against a made-up world: a market, SkyPilot and boxes that fail, and a conductor that is killed."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_train.base.errors import BadInputError
from wan_train.base.locks import is_locked
from wan_train.base.units import GB
from wan_train.box.vast import VastError
from wan_train.launch.conduct import Conductor
from wan_train.launch.engine import EngineDownError, EngineError
from wan_train.launch.hands import Hands
from wan_train.launch.market import Listed, Power
from wan_train.launch.model import (
    Address,
    Box,
    BoxState,
    GpuWant,
    Halt,
    Job,
    JobState,
    Launch,
    Offer,
    Part,
    Wants,
    Work,
)
from wan_train.launch.places import LaunchDirectory, all_launches, box_name, find, launch_of, new
from wan_train.launch.reap import end_strays, strays, unattended
from wan_train.launch.remote import Training, WrongBoxError
from wan_train.launch.shipment import Shipment
from wan_train.launch.ssh import RemoteError, UnreachableError
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import StepKind
from wan_train.run.speeds import Key, Speed, read_speeds

EPOCHS = 40
EPOCH_SECONDS = 60.0
INTERVAL = 600.0
SHIPMENT = Shipment(root=PurePosixPath("/x"), folders={}, texts={}, bytes=0, stamp="")


@dataclass
class FakeClock:
    time: float = 1_000_000.0
    """Real time, which the boxes know."""
    shown: float = 0.0
    """What the laptop's clock shows beyond it."""

    def now(self) -> float:
        return self.time + self.shown

    def monotonic(self) -> float:
        return self.time

    def pause(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class FakeBox:
    id: str
    label: str
    machine: str = ""
    power: Power = Power.RUNNING
    runs: dict[str, tuple[float, int]] = field(default_factory=dict)
    """When each run began here, and with how many epochs done."""
    stopped: dict[str, int] = field(default_factory=dict)
    """The epochs of each run whose processes ended here."""
    marker: str = ""


@dataclass
class World:
    """Everything outside of the laptop. `trouble` is in percent of all that is asked."""

    clock: FakeClock
    seed: int = 0
    spot: bool = False
    wakes: bool = True
    """A stopped box can be started again: nobody else has its card."""
    trouble: int = 0
    boxes: dict[str, FakeBox] = field(default_factory=dict)
    ordered: int = 0
    began: dict[str, int] = field(default_factory=dict)
    """How often a job began from its first epoch."""
    twice: list[str] = field(default_factory=list)
    """Runs that began on a box while another one trained them."""
    reached: dict[str, int] = field(default_factory=dict)
    """The epochs that a run had when its box was lost."""
    sick: dict[tuple[str, str], Exception] = field(default_factory=dict)
    """By machine and step, what goes wrong there every time."""
    silent: set[str] = field(default_factory=set)
    """Machines whose boxes train on and do not answer."""
    undying: bool = False
    """An end is answered well, and the list still has the box."""
    credit: float | None = None
    since: float | None = None
    """When the rent of every box began, by the list."""
    dear: tuple[str, float] = ("", 0.0)
    """A machine that the landlord charges more for than it offered."""
    measured: tuple[Speed, ...] = ()
    """In the file of speeds of every box."""
    repeated: list[int] = field(default_factory=list)
    """Epochs that were trained again, for each loss."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def fails(self) -> bool:
        return self.chance.randrange(100) < self.trouble

    def try_step(self, machine: str, step: str) -> None:
        if (machine, step) in self.sick:
            raise self.sick[machine, step]

    def labelled(self, name: str) -> list[FakeBox]:
        return [box for box in self.boxes.values() if box.label == f"{name}-head"]

    # The market.
    def offers(self, wants: Wants) -> tuple[Offer, ...]:
        if self.fails():
            raise VastError("429")
        return tuple(
            Offer(
                id=str(n),
                machine=f"m{n}",
                gpu="RTX 5090",
                gpus=1,
                gpu_bytes=32 * 10**9,
                per_hour=1.0 + n / 100,
                bid=1.0 if wants.spot or self.spot else None,
            )
            for n in range(60)
        )

    def listed(self) -> tuple[Listed, ...]:
        return tuple(
            Listed(
                id=box.id,
                label=box.label,
                power=box.power,
                said=box.power.value,
                gpu="",
                gpus=1,
                per_hour=self.dear[1] if box.machine == self.dear[0] else 1.0,
                since=self.since,
            )
            for box in self.boxes.values()
        )

    def end(self, name: str) -> None:
        if self.undying:
            return
        for box in [*self.labelled(name), *(box for box in self.boxes.values() if box.label == name)]:
            self.lose(box)
            self.boxes.pop(box.id, None)

    def cut_off(self, box: FakeBox) -> None:
        """Its processes end; its disk stays, with the epochs that were saved."""
        now = self.clock.time
        for run, (began, epochs) in box.runs.items():
            box.stopped[run] = min(EPOCHS, epochs + int((now - began) / EPOCH_SECONDS))
        box.runs.clear()

    def lose(self, box: FakeBox) -> None:
        self.reached |= box.stopped
        box.stopped.clear()
        for run, (began, epochs) in box.runs.items():
            self.reached[run] = min(EPOCHS, epochs + int((self.clock.time - began) / EPOCH_SECONDS))
        box.runs.clear()

    # SkyPilot.
    def rent(self, name: str, offer: Offer, wants: Wants) -> Address:  # noqa: ARG002  the protocol
        if any(box.machine == offer.machine and box.label != f"{name}-head" for box in self.boxes.values()):
            raise EngineError("Vast did not rent it: the offer is gone")
        self.try_step(offer.machine, "rent")
        if not self.labelled(name):
            self.ordered += 1
            self.boxes[str(self.ordered)] = FakeBox(id=str(self.ordered), label=f"{name}-head", machine=offer.machine)
        self.try_step(offer.machine, "come up")
        if self.fails():
            raise EngineError("Ray did not start")
        return Address(name=name, host="h", port=1, user="root", key=Path("/k"))

    def down(self, name: str) -> None:
        if self.fails():
            raise EngineError("the server was killed")
        self.end(name)


@dataclass
class FakeMarket:
    world: World

    def offers(self, wants: Wants) -> tuple[Offer, ...]:
        return self.world.offers(wants)

    def boxes(self) -> tuple[Listed, ...]:
        if self.world.fails():
            raise VastError("500")
        return self.world.listed()

    def start(self, name: str) -> None:
        if self.world.fails():
            raise VastError("no such machine")
        for box in self.world.labelled(name):
            if self.world.wakes:
                box.power = Power.RUNNING

    def destroy(self, name: str) -> None:
        if self.world.fails():
            raise VastError("still lists it")
        self.world.end(name)
        if self.world.labelled(name):
            raise VastError("Vast still lists it")

    def credit(self) -> float | None:
        return self.world.credit


class Deaf(FakeMarket):
    """One that does not answer."""

    def boxes(self) -> tuple[Listed, ...]:
        raise VastError("Vast answered with status 500")


@dataclass
class FakeRemote:
    world: World

    def box(self, address: Address) -> FakeBox:
        found = self.world.labelled(address.name)
        if self.world.fails() and found and self.world.chance.randrange(4) == 0:
            found[0].power = Power.DOWN
            self.world.cut_off(found[0])
        is_silent = bool(found) and found[0].machine in self.world.silent
        if not found or is_silent or found[0].power is Power.DOWN or self.world.fails():
            raise UnreachableError("no answer")
        return found[0]

    def check(self, address: Address, offer: Offer, wants: Wants) -> int:  # noqa: ARG002  the protocol
        self.world.try_step(self.box(address).machine, "check")
        if self.world.fails():
            raise WrongBoxError("two GPUs")
        return 0

    def provision(self, address: Address, tasks: object) -> bool:  # noqa: ARG002  the protocol
        self.world.try_step(self.box(address).machine, "provision")
        return self.world.chance.randrange(3) == 0

    def send(self, address: Address, shipment: Shipment) -> None:  # noqa: ARG002  the protocol
        self.world.try_step(self.box(address).machine, "send")

    def begin(self, box: FakeBox, run: str, epochs: int) -> None:
        # Noted, because the conductor outlives whatever a step raises.
        self.world.twice += [run for other in self.world.boxes.values() if run in other.runs]
        box.stopped.pop(run, None)
        if run in self.world.reached:
            self.world.repeated.append(self.world.reached.pop(run) - epochs)
        box.runs[run] = (self.world.clock.time, epochs)

    def start(self, address: Address, job: Job, shipment: Shipment, wants: Wants) -> str:  # noqa: ARG002  the protocol
        box = self.box(address)
        run = f"run-{job.name}"
        if box.marker != run:
            self.begin(box, run, 0)
            box.marker = run
            self.world.began[job.name] = self.world.began.get(job.name, 0) + 1
        if self.world.fails():
            raise UnreachableError("the answer was lost")
        return run

    def resume(self, address: Address, home: Path, wants: Wants) -> str:  # noqa: ARG002  the protocol
        box = self.box(address)
        if home.name not in box.runs:
            here = box.stopped.get(home.name)
            self.begin(box, home.name, int((home / "epochs").read_text()) if here is None else here)
        return home.name

    def epochs(self, box: FakeBox, run: str) -> int:
        if run in box.stopped:
            return box.stopped[run]
        if run not in box.runs:
            raise RemoteError("the run is not on the box")
        began, epochs = box.runs[run]
        return min(EPOCHS, epochs + int((self.world.clock.time - began) / EPOCH_SECONDS))

    def look(self, address: Address, run_id: str) -> Training:
        box = self.box(address)
        done = self.epochs(box, run_id)
        alive = "running" if run_id in box.runs else "lost"
        return Training(
            run_id=run_id,
            state="finished" if done == EPOCHS else alive,
            exit_code=0 if done == EPOCHS else None,
            epoch=done,
        )

    def fetch(self, address: Address, run_id: str, home: Path) -> int:
        box = self.box(address)
        done = self.epochs(box, run_id)
        self.world.try_step(box.machine, "fetch")
        home.mkdir(exist_ok=True)
        (home / "plan.json").touch()
        (home / "epochs").write_text(str(done))
        return GB

    def speeds(self, address: Address) -> tuple[Speed, ...]:
        self.box(address)
        return self.world.measured

    def bring(self, address: Address, run_id: str, home: Path) -> int:
        box = self.box(address)
        self.world.try_step(box.machine, "bring")
        came = self.fetch(address, run_id, home)
        (home / "result").write_text(str(self.epochs(box, run_id)))
        return came


@dataclass
class Laptop:
    """The program that carries a launch out; steps end when chance has it, and it can be killed."""

    world: World
    directory: LaunchDirectory
    deferred: bool = False
    steps: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.boot()

    def boot(self) -> None:
        self.steps.clear()
        hands = Hands(
            market=FakeMarket(self.world),
            engine=self.world,
            remote=FakeRemote(self.world),
            runs=self.directory.runs,
            clock=self.world.clock,
            pause=self.world.clock.pause,
            shipment=lambda _: SHIPMENT,
        )
        self.conductor = Conductor(
            directory=self.directory,
            hands=hands,
            clock=self.world.clock,
            start=self.steps.append if self.deferred else lambda step: step(),
        )

    def killed(self) -> None:
        """Steps under way are cut off: some had done their work and nobody heard of it."""
        for step in self.steps:
            if self.world.chance.randrange(2):
                step()
        self.boot()

    def train_for(self, seconds: float) -> None:
        """Let the launch go on until so long after its beginning."""
        while self.world.clock.time < 1_000_000 + seconds:
            self.run(rounds=1)

    def goes_down(self) -> None:
        """The one box is stopped."""
        [box] = self.world.boxes.values()
        self.world.cut_off(box)
        box.power = Power.DOWN

    def run(self, *, rounds: int = 6_000, kill_every: int = 0) -> Launch:
        for number in range(rounds):
            self.conductor.turn()
            if self.conductor.is_over:
                return self.conductor.launch
            for step in [step for step in self.steps if self.world.chance.randrange(3) == 0]:
                self.steps.remove(step)
                step()
            self.world.clock.time += 15.0
            if kill_every and number % kill_every == kill_every - 1:
                self.killed()
        return self.conductor.launch


def launched(runs: Path, jobs: int, *, named: str = "job", **wants: object) -> LaunchDirectory:
    directory = new(runs)
    made = tuple(
        Job(name=f"{named}{n}", title=f"{named}{n}", dataset=Path("/d"), dataset_stamp="", options=())
        for n in range(jobs)
    )
    terms = replace(Wants(max_hours=1000, fetch_seconds=INTERVAL), **wants)  # type: ignore[arg-type]  # fields of Wants
    directory.write(Launch(id=directory.path.name, created=1_000_000.0, wants=terms, jobs=made))
    return directory


class TestCalm:
    def test_three_jobs_on_two_boxes_come_home_and_the_list_is_empty(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 3, boxes=2))
        launch = laptop.run()
        assert laptop.world.twice == []
        assert [job.state for job in launch.jobs] == [JobState.DONE] * 3
        assert laptop.world.ordered == 2
        assert laptop.world.boxes == {}
        assert (tmp_path / "run-job0/result").read_text() == str(EPOCHS)
        assert laptop.directory.read() == launch

    def test_an_outbid_training_goes_on_from_its_newest_state(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock(), spot=True), launched(tmp_path, 1))
        laptop.train_for(1_200)
        laptop.goes_down()
        launch = laptop.run()
        assert launch.jobs[0].state is JobState.DONE
        assert launch.jobs[0].boxes == 2
        assert laptop.world.began == {"job0": 1}
        assert launch.boxes[0].because == "outbid"
        [repeated] = laptop.world.repeated
        assert 0 < repeated * EPOCH_SECONDS <= INTERVAL

    def test_a_box_costs_money_from_when_the_landlord_says(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock(), since=1_000_020.0), launched(tmp_path, 1))
        [box] = laptop.run().boxes
        assert box.began == 1_000_020

    def test_what_a_box_trains_is_held_here_until_it_is_done(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        laptop.train_for(1_800)
        home = laptop.conductor.launch.jobs[0].home
        assert home is not None
        assert is_locked(RunDirectory(home).lock)
        assert laptop.run().jobs[0].state is JobState.DONE
        assert not is_locked(RunDirectory(home).lock)

    def test_results_on_a_box_that_stopped_itself_come_home(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        laptop.train_for(1_200)
        laptop.world.clock.time += 5 * 3600
        laptop.goes_down()
        launch = laptop.run()
        assert (launch.jobs[0].state, launch.jobs[0].boxes) == (JobState.DONE, 1)
        assert laptop.world.repeated == []
        assert laptop.world.boxes == {}

    def test_they_come_home_after_the_hours_of_the_box_too(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1, max_hours=4))
        laptop.train_for(1_200)
        laptop.world.clock.time += 5 * 3600
        laptop.goes_down()
        launch = laptop.run()
        assert launch.halted_because == "4 hours are over"
        assert launch.jobs[0].state is JobState.DONE

    def test_a_stopped_training_goes_on_on_its_own_box(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        laptop.train_for(1_200)
        laptop.goes_down()
        launch = laptop.run()
        assert (launch.jobs[0].state, launch.jobs[0].boxes) == (JobState.DONE, 1)
        assert laptop.world.repeated == []

    def test_a_box_that_does_not_start_again_is_given_up(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock(), wakes=False), launched(tmp_path, 1))
        laptop.train_for(1_200)
        laptop.goes_down()
        launch = laptop.run()
        assert (launch.jobs[0].state, launch.jobs[0].boxes) == (JobState.DONE, 2)
        assert launch.boxes[0].because == "it did not run again within 20 minutes"
        assert laptop.world.boxes == {}
        assert not launch.avoided

    def test_a_laptop_that_slept_for_hours_gives_no_box_up(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        laptop.run(rounds=40)
        laptop.world.clock.time += 5 * 3600
        launch = laptop.run()
        assert (launch.jobs[0].state, launch.jobs[0].boxes) == (JobState.DONE, 1)

    def test_a_clock_that_is_set_back_gives_no_box_up(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        laptop.run(rounds=40)
        laptop.world.clock.shown -= 3 * 3600
        assert laptop.run().jobs[0].boxes == 1

    @pytest.mark.parametrize(("halt", "saved"), [(Halt.SAVE, True), (Halt.NOW, False)])
    def test_stopped_by_a_person(self, tmp_path: Path, halt: Halt, saved: bool) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 2, boxes=1))
        laptop.run(rounds=30)
        laptop.directory.ask(halt)
        launch = laptop.run()
        assert [job.state for job in launch.jobs] == [JobState.STOPPED] * 2
        assert laptop.world.boxes == {}
        newest = int((tmp_path / "run-job0/epochs").read_text()) if (tmp_path / "run-job0/epochs").exists() else 0
        assert (newest > 0) is saved

    def test_a_box_that_costs_more_than_its_offer_is_destroyed_and_avoided(self, tmp_path: Path) -> None:
        world = World(FakeClock(), dear=("m0", 1.5))
        launch = Laptop(world, launched(tmp_path, 1)).run()
        assert launch.boxes[0].because == "it costs $1.50 an hour, and $1.00 were offered"
        assert launch.avoided == {"m0"}
        assert [box.offer.machine for box in launch.boxes] == ["m0", "m1"]
        assert launch.jobs[0].state is JobState.DONE

    def test_what_a_box_measured_is_known_to_the_next_launch(self, tmp_path: Path) -> None:
        world = World(FakeClock())
        own, other, future = (
            Speed(
                at=at,
                key=Key(kind=StepKind.TRAIN, trainer="musubi d0a1930", card=card),
                sizes="960x960",
                cost=1.0,
                units=9,
                per_unit=2.0,
            )
            for at, card in (
                (1_000_100.0, "NVIDIA GeForce RTX 5090"),
                (1_000_100.0, "NVIDIA H200"),
                (9e9, "NVIDIA GeForce RTX 5090"),
            )
        )
        world.measured = (own, other, future)
        Laptop(world, launched(tmp_path, 2)).run()
        assert read_speeds(tmp_path) == (own,)

    def test_one_program_at_a_time(self, tmp_path: Path) -> None:
        directory = launched(tmp_path, 1)
        with directory.held():
            assert directory.is_held
            with pytest.raises(BlockingIOError), directory.held():
                pass
        assert not directory.is_held

    def test_a_box_that_came_back_is_swept_away(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        launch = laptop.run()
        again = FakeBox(id="99", label=f"{launch.boxes[0].name}-head")
        other = FakeBox(id="98", label="somebody else's")
        laptop.world.boxes = {"99": again, "98": other}
        laptop.conductor.sweep()
        assert list(laptop.world.boxes) == ["98"]


class TestForgotten:
    def test_a_box_whose_launch_says_gone_is_ended_and_others_are_left(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        launch = laptop.run()
        labels = [f"{launch.boxes[0].name}-head", "wt-0123abcd-001-head", "somebody else's"]
        laptop.world.boxes = {str(n): FakeBox(id=str(n), label=label) for n, label in enumerate(labels)}
        with laptop.directory.held():
            assert [each.is_ours for each in end_strays(FakeMarket(laptop.world), tmp_path)] == [False]
        assert len(laptop.world.boxes) == 3
        found = end_strays(FakeMarket(laptop.world), tmp_path)
        assert [(each.box.label, each.is_ours) for each in found] == [(labels[0], True), (labels[1], False)]
        assert [box.label for box in laptop.world.boxes.values()] == labels[1:]

    def test_a_box_of_a_launch_that_is_not_over_is_its_own_business(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        laptop.run(rounds=20)
        assert laptop.world.boxes
        assert strays(laptop.world.listed(), tmp_path) == ()
        assert unattended(tmp_path) == (laptop.directory,)
        with laptop.directory.held():
            assert unattended(tmp_path) == ()
        laptop.run()
        assert unattended(tmp_path) == ()

    def test_a_damaged_record_ends_nothing(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        laptop.run(rounds=20)
        laptop.directory.record.write_text("{")
        assert [each.is_ours for each in end_strays(FakeMarket(laptop.world), tmp_path)] == [False]
        assert laptop.world.boxes


def until(laptop: Laptop, state: BoxState | JobState) -> None:
    """Carry a launch out until its box or its job is there."""
    for _ in range(2_000):
        launch = laptop.conductor.launch
        found = [launch.jobs[0].state, *(box.state for box in launch.boxes[:1])]
        if state in found:
            return
        laptop.run(rounds=1)
    raise AssertionError(f"never {state}: {laptop.conductor.launch}")


class TestFaults:
    @pytest.mark.parametrize(
        ("step", "error"),
        [
            ("rent", EngineError("Vast did not rent it: the offer is gone")),
            ("come up", EngineError("it did not run in time")),
            ("come up", EngineError("ssh never opened")),
            ("check", WrongBoxError("its GPU is NVIDIA GeForce RTX 4090, and RTX 5090 was rented")),
            ("provision", WrongBoxError("it could not be prepared: No space left on device")),
            ("provision", WrongBoxError("it could not be prepared: look at the network")),
            ("provision", WrongBoxError("it could not be prepared: the driver is too old")),
            ("send", WrongBoxError("the box is not ready")),
        ],
    )
    def test_a_wrong_or_sick_box_is_destroyed_and_another_does_the_job(
        self, tmp_path: Path, step: str, error: Exception
    ) -> None:
        world = World(FakeClock(), sick={("m0", step): error})
        launch = Laptop(world, launched(tmp_path, 1)).run()
        assert [box.offer.machine for box in launch.boxes] == ["m0", "m1"]
        assert launch.boxes[0].because == str(error)
        assert launch.avoided == {"m0"}
        assert launch.jobs[0].state is JobState.DONE
        assert world.boxes == {}

    def test_a_box_that_never_answers_is_given_up(self, tmp_path: Path) -> None:
        world = World(FakeClock(), silent={"m0"})
        launch = Laptop(world, launched(tmp_path, 1)).run()
        assert [box.offer.machine for box in launch.boxes] == ["m0", "m1"]
        assert launch.jobs[0].state is JobState.DONE

    def test_five_bad_boxes_in_a_row_end_the_launch(self, tmp_path: Path) -> None:
        world = World(FakeClock(), sick={(f"m{n}", "check"): WrongBoxError("two GPUs") for n in range(60)})
        launch = Laptop(world, launched(tmp_path, 1)).run()
        assert launch.halted_because == "5 boxes in a row were not usable, the last: two GPUs"
        assert launch.gave_up
        assert (len(launch.boxes), world.boxes) == (5, {})

    def test_offers_that_others_take_first_end_no_launch_too_soon(self, tmp_path: Path) -> None:
        gone = EngineError("Vast did not rent it: the offer is gone")
        world = World(FakeClock(), sick={(f"m{n}", "rent"): gone for n in range(12)})
        launch = Laptop(world, launched(tmp_path, 1)).run()
        assert (launch.jobs[0].state, len(launch.boxes)) == (JobState.DONE, 13)
        world.sick = {(f"m{n}", "rent"): gone for n in range(60)}
        launch = Laptop(world, launched(tmp_path, 1)).run()
        assert launch.halted_because == (
            "20 offers in a row could not be rented, the last: Vast did not rent it: the offer is gone"
        )

    def test_a_list_that_cannot_be_had_blames_no_box(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        until(laptop, BoxState.RENTING)
        laptop.conductor.hands.market = Deaf(laptop.world)
        until(laptop, JobState.TRAINING)
        laptop.conductor.hands.market = FakeMarket(laptop.world)
        launch = laptop.run()
        assert (launch.jobs[0].state, launch.jobs[0].boxes, len(launch.boxes)) == (JobState.DONE, 1, 1)

    @pytest.mark.parametrize(
        "state",
        [BoxState.CHECKING, BoxState.PROVISIONING, JobState.SENDING, JobState.TRAINING, JobState.FETCHING],
    )
    def test_outbid_in_any_state_the_job_is_done_elsewhere(self, tmp_path: Path, state: BoxState | JobState) -> None:
        world = World(FakeClock(), sick={("m0", "bring"): UnreachableError("the copy broke")})
        laptop = Laptop(world, launched(tmp_path, 1, spot=True))
        until(laptop, state)
        [box] = laptop.world.boxes.values()
        box.power = Power.DOWN
        laptop.world.lose(box)
        launch = laptop.run()
        assert launch.jobs[0].state is JobState.DONE
        assert launch.boxes[0].because in {"outbid", "it has not answered for ten minutes: no answer"}
        assert [box.because for box in launch.boxes[1:]] == ["no job is left for it"]
        assert (tmp_path / "run-job0/result").read_text() == str(EPOCHS)
        assert (laptop.world.twice, laptop.world.boxes) == ([], {})

    def test_a_box_that_answers_again_after_it_was_given_up_trains_beside_no_other(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        until(laptop, JobState.TRAINING)
        world = laptop.world
        world.silent, world.undying = {"m0"}, True
        laptop.run(rounds=100)
        assert laptop.conductor.launch.boxes[0].state is BoxState.DESTROYING
        world.silent = set()
        launch = laptop.run(rounds=200)
        assert launch.boxes[0].state is BoxState.DESTROYING
        assert launch.jobs[0].state is JobState.WAITING
        assert [box for box in world.boxes.values() if box.machine != "m0" and box.runs] == []
        world.undying = False
        assert laptop.run().jobs[0].state is JobState.DONE
        assert (world.twice, world.boxes) == ([], {})

    @pytest.mark.parametrize("seed", [1, 2])
    @pytest.mark.parametrize(
        "state",
        [
            BoxState.RENTING,
            BoxState.CHECKING,
            BoxState.PROVISIONING,
            JobState.SENDING,
            JobState.TRAINING,
            JobState.FETCHING,
            BoxState.DESTROYING,
        ],
    )
    def test_killed_in_any_state_it_goes_on_with_the_same_box(
        self, tmp_path: Path, state: BoxState | JobState, seed: int
    ) -> None:
        laptop = Laptop(World(FakeClock(), seed=seed), launched(tmp_path, 1), deferred=True)
        until(laptop, state)
        laptop.killed()
        launch = laptop.run()
        assert (launch.jobs[0].state, launch.jobs[0].boxes) == (JobState.DONE, 1)
        assert laptop.world.ordered == 1
        assert (laptop.world.twice, laptop.world.boxes) == ([], {})

    def test_a_landlord_that_hangs_holds_no_training_up(self, tmp_path: Path) -> None:
        world = World(FakeClock())
        laptop = Laptop(world, launched(tmp_path, 1))
        until(laptop, JobState.TRAINING)
        never: list[Callable[[], None]] = []

        laptop.conductor.start = lambda step: never.append(step) if "_look" in step.__qualname__ else step()
        launch = laptop.run()
        assert (launch.jobs[0].state, len(launch.boxes)) == (JobState.DONE, 1)
        assert len(never) == 1

    def test_a_list_that_was_asked_for_before_a_box_was_rented_says_nothing_of_it(self, tmp_path: Path) -> None:
        world = World(FakeClock())
        laptop = Laptop(world, launched(tmp_path, 2, boxes=2))
        while [box.state for box in laptop.conductor.launch.boxes[1:]] != [BoxState.RENTING]:
            laptop.run(rounds=1)
        late: list[Callable[[], None]] = []
        laptop.conductor.start = late.append
        laptop.conductor._listed = float("-inf")
        laptop.conductor._look(world.clock.now())
        laptop.conductor.start = lambda step: step()
        laptop.run(rounds=1)
        before = dict(world.boxes)
        world.boxes = {name: box for name, box in before.items() if box.machine == "m0"}
        late.pop()()
        world.boxes = before
        launch = laptop.run()
        assert [job.state for job in launch.jobs] == [JobState.DONE] * 2
        assert [box.because for box in launch.boxes] == ["no job is left for it"] * 2

    def test_skypilot_that_dies_while_it_rents_rents_no_second_box(self, tmp_path: Path) -> None:
        world = World(FakeClock(), sick={("m0", "come up"): EngineDownError("SkyPilot's driver has ended")})
        laptop = Laptop(world, launched(tmp_path, 1))
        until(laptop, BoxState.RENTING)
        laptop.run(rounds=2)
        world.sick.clear()
        launch = laptop.run()
        assert (launch.jobs[0].state, launch.jobs[0].boxes, world.ordered) == (JobState.DONE, 1, 1)
        assert launch.avoided == frozenset()

    def test_an_upload_that_breaks_is_tried_again(self, tmp_path: Path) -> None:
        world = World(FakeClock(), sick={("m0", "send"): UnreachableError("the copy broke")})
        laptop = Laptop(world, launched(tmp_path, 1))
        until(laptop, JobState.SENDING)
        laptop.run(rounds=3)
        world.sick.clear()
        launch = laptop.run()
        assert (launch.jobs[0].state, launch.jobs[0].boxes) == (JobState.DONE, 1)

    def test_a_full_disk_at_home_costs_no_box_and_no_work(self, tmp_path: Path) -> None:
        world = World(FakeClock())
        laptop = Laptop(world, launched(tmp_path, 1))
        until(laptop, JobState.TRAINING)
        world.sick["m0", "fetch"] = OSError(errno.ENOSPC, "No space left on device", "/runs")
        laptop.run(rounds=200)
        world.sick.clear()
        launch = laptop.run()
        assert (launch.jobs[0].state, launch.jobs[0].boxes) == (JobState.DONE, 1)

    def test_a_record_that_cannot_be_written_begins_nothing_new_and_ends_boxes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 2))
        until(laptop, JobState.TRAINING)
        directory = laptop.directory.path
        with monkeypatch.context() as full:
            full.setattr(LaunchDirectory, "write", _full)
            laptop.directory.ask(Halt.NOW)
            laptop.run(rounds=20)
            assert (laptop.world.ordered, laptop.world.boxes) == (1, {})
        launch = laptop.run()
        assert launch.is_over
        assert LaunchDirectory(directory).read() == launch

    def test_a_dataset_edited_meanwhile_fails_its_job_alone(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 2))

        def shipment(job: Job) -> Shipment:
            if job.name == "job0":
                raise BadInputError("/d was changed after it was checked")
            return SHIPMENT

        laptop.conductor.hands.shipment = shipment
        launch = laptop.run()
        assert [job.state for job in launch.jobs] == [JobState.FAILED, JobState.DONE]
        assert launch.jobs[0].problem == "/d was changed after it was checked"
        assert (laptop.world.ordered, laptop.world.boxes) == (1, {})

    def test_two_launches_at_once_leave_each_others_boxes_alone(self, tmp_path: Path) -> None:
        world = World(FakeClock())
        both = [Laptop(world, launched(tmp_path, 2, named=name)) for name in ("cat", "dog")]
        for _ in range(3_000):
            for laptop in both:
                if not laptop.conductor.is_over:
                    laptop.run(rounds=1)
                    laptop.conductor.sweep()
        for laptop in both:
            launch = laptop.conductor.launch
            assert [job.state for job in launch.jobs] == [JobState.DONE] * 2
            assert {box.because for box in launch.boxes} <= {
                "no job is left for it",
                "Vast did not rent it: the offer is gone",
            }
        assert (world.twice, world.boxes) == ([], {})

    def test_before_the_credit_is_used_up_the_newest_comes_home(self, tmp_path: Path) -> None:
        world = World(FakeClock(), credit=5.0)
        laptop = Laptop(world, launched(tmp_path, 1))
        until(laptop, JobState.TRAINING)
        laptop.run(rounds=50)
        world.credit = 0.05
        launch = laptop.run()
        assert launch.halted_because == "the account has only $0.05 left"
        assert launch.jobs[0].state is JobState.STOPPED
        assert int((tmp_path / "run-job0/epochs").read_text()) > 10
        assert world.boxes == {}

    def test_without_credit_nothing_is_rented_until_there_is_some(self, tmp_path: Path) -> None:
        world = World(FakeClock(), credit=0.0)
        laptop = Laptop(world, launched(tmp_path, 1))
        assert laptop.run(rounds=50).boxes == ()
        world.credit = 9.0
        assert laptop.run().jobs[0].state is JobState.DONE


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@settings(max_examples=25, deadline=None)
@given(st.integers(0), st.integers(1, 3), st.integers(1, 3), st.integers(0, 12), st.sampled_from([0, 7, 40, 150]))
def test_whatever_happens_no_box_is_left_and_no_work_is_lost(  # noqa: PLR0917  what hypothesis draws
    tmp_path_factory: pytest.TempPathFactory, seed: int, jobs: int, boxes: int, trouble: int, kill_every: int
) -> None:
    runs = tmp_path_factory.mktemp("runs")
    world = World(FakeClock(), seed=seed, trouble=trouble, spot=seed % 2 == 0, wakes=seed % 3 > 0)
    laptop = Laptop(world, launched(runs, jobs, boxes=boxes), deferred=True)
    launch = laptop.run(kill_every=kill_every)
    assert laptop.conductor.is_over
    assert world.twice == []
    world.trouble = 0
    laptop.conductor.sweep()
    assert world.boxes == {}
    assert all(box.state is BoxState.GONE for box in launch.boxes)
    for job in launch.jobs:
        assert job.state in {JobState.DONE, JobState.STOPPED, JobState.FAILED}
        if not trouble:
            assert job.state is JobState.DONE
        if job.state is JobState.DONE:
            assert (runs / f"run-{job.name}/result").read_text() == str(EPOCHS)


class TestPlaces:
    def test_a_record_is_read_back_as_it_was_written(self, tmp_path: Path) -> None:
        directory = new(tmp_path)
        work = Work(
            trainer="musubi d0a1930",
            parts=(Part(settings="network_dim=16", batches=3, epochs=100),),
            batch_cost=1.5,
            items=3,
            download_bytes=69,
        )
        job = Job(
            name="cats",
            title="cäts \ud800",
            dataset=Path("/d"),
            dataset_stamp="s",
            options=("--epochs", "5"),
            recipe=Path("/r"),
            work=work,
            state=JobState.TRAINING,
            home=tmp_path / "run",
            exit_code=4,
        )
        address = Address(name="wt-1", host="h", port=2, user="root", key=Path("/k"))
        offer = Offer(id="1", machine="m", gpu="RTX 5090", gpus=1, gpu_bytes=1, per_hour=0.5, bid=0.4, driver="570")
        box = Box(name="wt-1", offer=offer, state=BoxState.READY, began=1.5, address=address, job="cats", fetched=2.0)
        wants = Wants(gpus=(GpuWant(name="RTX5090"),), max_hours=6, budget=3.0, least_driver=(525, 60))
        launch = Launch(id="0123abcd", created=1.0, wants=wants, jobs=(job,), boxes=(box,), credit=2.5, halt=Halt.SAVE)
        directory.write(launch)
        assert directory.read() == launch

    def test_a_label_names_its_launch_and_others_none(self) -> None:
        assert launch_of(f"{box_name('0123abcd', 7)}-ab12-head") == "0123abcd"
        assert launch_of(box_name("0123abcd", 1234)) == "0123abcd"
        for label in ("", "wt-", "wt-0123abcd", "mine", "wt-0123abcd-x", "wt-0123abcd-001x", "swt-0123abcd-001"):
            assert launch_of(label) is None

    def test_the_newest_is_found_without_a_name(self, tmp_path: Path) -> None:
        first = launched(tmp_path, 1)
        assert find(tmp_path, None) == first
        assert find(tmp_path, first.path.name[:6]) == first
        assert all_launches(tmp_path / "nowhere") == []
        new(tmp_path)  # one that was killed before its record
        assert find(tmp_path, None) == first
