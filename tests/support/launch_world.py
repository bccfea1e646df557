"""A simulated world for whole launches: a market, SkyPilot and boxes that fail, and a laptop that is killed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from wan_train.base.units import GB
from wan_train.box.vast import VastError
from wan_train.launch.action_runner import ActionRunner
from wan_train.launch.controller import Controller
from wan_train.launch.engine import EngineError
from wan_train.launch.launch_directory import LaunchDirectory, new
from wan_train.launch.market import Listed, Power
from wan_train.launch.model import (
    Address,
    BoxState,
    Job,
    JobState,
    Launch,
    Offer,
    Wants,
)
from wan_train.launch.remote import Training, WrongBoxError
from wan_train.launch.shipment import Shipment
from wan_train.launch.ssh import RemoteError, UnreachableError
from wan_train.run.speeds import Speed

EPOCHS = 40
EPOCH_SECONDS = 60.0
INTERVAL = 600.0
SHIPMENT = Shipment(root=PurePosixPath("/x"), folders={}, texts={}, bytes=0, stamp="")


@dataclass
class FakeClock:
    time: float = 1_000_000.0
    """Real time, as the boxes see it."""
    shown: float = 0.0
    """Seconds by which the laptop's clock is ahead of it."""

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
    """Everything outside the laptop. `trouble` is the percentage of requests that fail."""

    clock: FakeClock
    seed: int = 0
    spot: bool = False
    wakes: bool = True
    """A stopped box can be started again: no other user has its card."""
    trouble: int = 0
    boxes: dict[str, FakeBox] = field(default_factory=dict)
    ordered: int = 0
    began: dict[str, int] = field(default_factory=dict)
    """How often a job began from its first epoch."""
    hours: list[float] = field(default_factory=list)
    """Hours after which each run's box ends itself."""
    twice: list[str] = field(default_factory=list)
    """Runs that began on a box while another box trained them."""
    reached: dict[str, int] = field(default_factory=dict)
    """The epochs that a run had when its box was lost."""
    sick: dict[tuple[str, str], Exception] = field(default_factory=dict)
    """Errors by machine and step, raised there every time."""
    silent: set[str] = field(default_factory=set)
    """Machines whose boxes keep training but do not answer."""
    undying: bool = False
    """Ending a box reports success, but the list still has it."""
    credit: float | None = None
    since: float | None = None
    """When every box's rent began, by the list."""
    dear: tuple[str, float] = ("", 0.0)
    """A machine for which the provider charges this price, more than it offered."""
    measured: tuple[Speed, ...] = ()
    """Measurements in every box's file of speeds."""
    repeated: list[int] = field(default_factory=list)
    """Epochs that were trained again, one number for each loss."""

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
        """End the box's processes. Its disk stays, with the saved epochs."""
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
    """A market that does not answer."""

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
        # Recorded instead of raised, because the controller survives whatever a step raises.
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
            self.world.hours.append(wants.max_hours)
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
    """The program that carries out a launch. Its steps end at random times, and it can be killed."""

    world: World
    directory: LaunchDirectory
    deferred: bool = False
    steps: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.boot()

    def boot(self) -> None:
        self.steps.clear()
        runner = ActionRunner(
            market=FakeMarket(self.world),
            engine=self.world,
            remote=FakeRemote(self.world),
            runs=self.directory.runs,
            clock=self.world.clock,
            pause=self.world.clock.pause,
            shipment=lambda _: SHIPMENT,
        )
        self.controller = Controller(
            directory=self.directory,
            runner=runner,
            clock=self.world.clock,
            start=self.steps.append if self.deferred else lambda step: step(),
        )

    def killed(self) -> None:
        """Cut off steps under way. Some had done their work, which was never recorded."""
        for step in self.steps:
            if self.world.chance.randrange(2):
                step()
        self.boot()

    def train_for(self, seconds: float) -> None:
        """Continue the launch until this long after its beginning."""
        while self.world.clock.time < 1_000_000 + seconds:
            self.run(rounds=1)

    def goes_down(self) -> None:
        """Stop the only box."""
        [box] = self.world.boxes.values()
        self.world.cut_off(box)
        box.power = Power.DOWN

    def run(self, *, rounds: int = 6_000, kill_every: int = 0) -> Launch:
        for number in range(rounds):
            self.controller.turn()
            if self.controller.is_over:
                return self.controller.launch
            for step in [step for step in self.steps if self.world.chance.randrange(3) == 0]:
                self.steps.remove(step)
                step()
            self.world.clock.time += 15.0
            if kill_every and number % kill_every == kill_every - 1:
                self.killed()
        return self.controller.launch


def launched(runs: Path, jobs: int, *, named: str = "job", **wants: object) -> LaunchDirectory:
    directory = new(runs)
    made = tuple(
        Job(name=f"{named}{n}", title=f"{named}{n}", dataset=Path("/d"), dataset_stamp="", options=())
        for n in range(jobs)
    )
    terms = replace(Wants(max_hours=1000, fetch_seconds=INTERVAL), **wants)  # type: ignore[arg-type]  # fields of Wants
    directory.write(Launch(id=directory.path.name, created=1_000_000.0, wants=terms, jobs=made))
    return directory


def until(laptop: Laptop, state: BoxState | JobState) -> None:
    """Carry out a launch until its first box or job is in this state."""
    for _ in range(2_000):
        launch = laptop.controller.launch
        found = [launch.jobs[0].state, *(box.state for box in launch.boxes[:1])]
        if state in found:
            return
        laptop.run(rounds=1)
    raise AssertionError(f"never {state}: {laptop.controller.launch}")
