"""The real supervisor on real files, in a world where time is moved by hand and a trainer is a few lines of Python."""

from __future__ import annotations

import json
import signal
import zipfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from trainer_files import options_of, write_lora, write_state

from support.runs import SUPERVISOR, T0, make_gpus, make_plan
from wan_train.base import settings as settings_module
from wan_train.base.host import ProcessIdentity
from wan_train.engine.commands import Command
from wan_train.gpu.leases import LeaseRoom
from wan_train.gpu.model import GpuReading
from wan_train.recipe.terms import Expert
from wan_train.run.control import StopRequest, request_stop
from wan_train.run.directory import AttemptDirectory, RunDirectory
from wan_train.run.events import Event, Exit, Exited, Signaled, StepStarted, StopMode, read_events
from wan_train.run.launcher import Ended
from wan_train.run.plan import Plan
from wan_train.run.supervisor import Supervisor

BATCHES = 3
EPOCHS = 8
SAVE_EVERY = 2
MOST_TICKS = 3000

T = TypeVar("T", bound=Event)
Trainer = Generator[None, None, Exit]
"""One act between two yields; it returns how its process ends."""


@dataclass(slots=True, kw_only=True)
class Process:
    """One attempt that was launched, alive while `exit` is None."""

    step: str
    number: int
    gpu: str
    options: dict[str, str]
    directory: AttemptDirectory
    work: Trainer | None = None
    asked: bool = False
    exit: Exit | None = None

    def say(self, text: str) -> None:
        with self.directory.log.open("a", encoding="utf-8") as log:
            log.write(text)


Script = Callable[[Process], Trainer]


def trains(
    *,
    until: int | None = None,
    then: Exit | None = None,
    says: str = "",
    batches: int = BATCHES,
    spoiled: int | None = None,
    leaves: Callable[[Path], None] | None = None,
) -> Script:
    """A trainer that ends well, or after `until` epochs of its own with the text `says` and the end `then`.

    From epoch `spoiled` on its LoRAs hold no numbers. `leaves` changes the finished LoRA.
    """

    def work(process: Process) -> Trainer:
        options, output = process.options, process.directory.output
        epochs, every = int(options["max_train_epochs"]), int(options["save_every_n_epochs"])
        at_step, name = int(options.get("save_every_n_steps", 0)), options["output_name"]
        steps = done = 0
        if "resume" in options:
            with zipfile.ZipFile(Path(options["resume"]) / "scheduler.bin") as archive:
                steps, done = json.loads(archive.read("data"))
        total = epochs * batches
        process.say(f"\n  total optimization steps / steps: {total}\n")
        for epoch in range(1, epochs + 1):
            if until is not None and epoch > until:
                process.say(says)
                return then or Exited(code=1)
            value = float("nan") if spoiled is not None and epoch >= spoiled else 1.0
            process.say(f"\nepoch {epoch}/{epochs}\n")
            for batch in range(1, batches + 1):
                local, steps = (epoch - 1) * batches + batch, steps + 1
                process.say(f"\rsteps:  29%|## | {local}/{total} [00:01<00:04,  3.93it/s, avr_loss=0.1]")
                done += batch == batches
                yield
                if at_step and local % at_step == 0:
                    yield from write_lora(output / f"{name}-step{local:08d}.safetensors", epoch, local, done)
                    yield from write_state(output / f"{name}-step{local:08d}-state", steps, done)
            if epoch % every == 0 and epoch < epochs:
                path = output / f"{name}-{epoch:06d}.safetensors"
                yield from write_lora(path, epoch, epoch * batches, done, value=value)
                yield from write_state(output / f"{name}-{epoch:06d}-state", steps, done)
        final = output / f"{name}.safetensors"
        yield from write_lora(final, epochs, total, done, value=float("nan") if spoiled is not None else 1.0)
        yield from write_state(output / f"{name}-state", steps, done)
        if leaves is not None:
            leaves(final)
        return Exited(code=0)

    return work


def dies(says: str) -> Script:
    """Ends at once with this text and exit code 1."""

    def work(process: Process) -> Trainer:
        process.say(says)
        return Exited(code=1)
        yield  # a generator, like the others

    return work


def hangs(*, after: int = 0) -> Script:
    """Makes so many steps, then lives and does nothing."""

    def work(process: Process) -> Trainer:
        process.say("\n  total optimization steps / steps: 24\n")
        for step in range(1, after + 1):
            process.say(f"\rsteps:  29%|## | {step}/24 [00:01<00:04,  3.93it/s, avr_loss=0.1]")
            yield
        while True:
            yield

    return work


def _caches(process: Process) -> Trainer:
    del process
    return Exited(code=0)
    yield  # a generator, like the others


@dataclass(slots=True, kw_only=True)
class World:
    """One run. `scripts` say by step what its attempts do, one after the other; the last one repeats."""

    root: Path
    experts: tuple[Expert, ...] = (Expert.HIGH,)
    scripts: dict[str, Sequence[Script]] = field(default_factory=dict)
    caching: Script = _caches
    gpus: int = 2
    epochs: int = EPOCHS
    at: dict[int, Callable[[], None]] = field(default_factory=dict)
    """What happens from outside before a round of the supervisor, by its number."""
    price: float | None = None
    """Dollars an hour."""
    time: float = T0
    processes: list[Process] = field(default_factory=list)
    abandoned: list[Path] = field(default_factory=list)
    """Attempts without a record, whose processes were ended."""
    reading: GpuReading = field(init=False)
    plan: Plan = field(init=False)
    supervisor: Supervisor = field(init=False)

    def __post_init__(self) -> None:
        self.reading = GpuReading(gpus=make_gpus(count=self.gpus))
        plan = make_plan(
            experts=self.experts,
            epochs=self.epochs,
            run_dir=self.root / "runs" / "one",
            state_every_epochs=SAVE_EVERY,
            gpu_uuids=tuple(gpu.uuid for gpu in self.reading.gpus),
        )
        self.plan = replace(plan, dataset=replace(plan.dataset, cached_items={}, batches_per_epoch=BATCHES))
        self.plan.run_dir.mkdir(parents=True)

    # The clock, the driver and the launcher.

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def read(self) -> GpuReading:
        return self.reading

    def close(self) -> None:
        """No driver to give back."""

    def start(self, command: Command, attempt: AttemptDirectory, inherit: Sequence[int]) -> ProcessIdentity:
        del inherit
        gpu = command.env["CUDA_VISIBLE_DEVICES"]
        assert not any(
            process.exit is None and process.gpu == gpu for process in self.processes if self._trains(process)
        )
        attempt.output.mkdir(parents=True)
        attempt.log.touch()
        process = Process(
            step=attempt.path.parent.name,
            number=int(attempt.path.name),
            gpu=gpu,
            options=options_of(command.argv),
            directory=attempt,
        )
        scripts = self.scripts.get(process.step, [trains()])
        script = scripts[min(process.number, len(scripts)) - 1] if self._trains(process) else self.caching
        process.work = script(process)
        self.processes.append(process)
        return replace(SUPERVISOR, pid=10_000 + len(self.processes))

    def ended(self, identity: ProcessIdentity, attempt: AttemptDirectory) -> Ended | None:
        process = self.processes[identity.pid - 10_001]
        assert process.directory.path == attempt.path
        self._act(process)
        return None if process.exit is None else Ended(exit=process.exit, at=self.time)

    def terminate(self, identity: ProcessIdentity) -> None:
        self.processes[identity.pid - 10_001].asked = True

    def abandon(self, attempt: AttemptDirectory) -> None:
        self.abandoned.append(attempt.path)

    def _act(self, process: Process) -> None:
        if process.exit is not None or process.work is None:
            return
        if process.asked:
            process.exit = Signaled(signal=signal.SIGTERM)
            return
        try:
            next(process.work)
        except StopIteration as end:
            process.exit = end.value

    def _trains(self, process: Process) -> bool:
        return process.step.startswith("train-")

    # The run.

    def play(self, *, resume: bool = False, epochs: int | None = None, budget: float | None = None) -> int:
        """Supervise until the run is over; its exit code."""
        environ = {"WAN_TRAIN_STALL_SECONDS": "60", "WAN_TRAIN_PAUSE_SECONDS": "10"}
        if self.price is not None:
            environ["WAN_TRAIN_PRICE"] = str(self.price)
        self.supervisor = Supervisor(
            run=RunDirectory(self.plan.run_dir),
            plan=self.plan,
            clock=self,
            launcher=self,
            probe=self,
            room=LeaseRoom(self.root / "leases"),
            settings=settings_module.resolve(flags={}, environ=environ),
        )
        try:
            self.supervisor.begin(resume=resume, epochs=epochs, budget=budget)
            for tick in range(1, MOST_TICKS):
                self.at.pop(tick, lambda: None)()
                pause = self.supervisor.tick()
                if pause is None:
                    break
                self.time += pause
        finally:
            self.supervisor.close()
        assert self.supervisor.exit_code is not None, "it waits for ever"
        assert all(process.exit is not None for process in self.processes), "a trainer outlives its run"
        return int(self.supervisor.exit_code)

    def stop(self, mode: StopMode, number: int = signal.SIGINT) -> None:
        request_stop(RunDirectory(self.plan.run_dir), StopRequest(mode=mode, signal=number))

    def events(self, kind: type[T]) -> list[T]:
        return [event for event in read_events(RunDirectory(self.plan.run_dir).events) if isinstance(event, kind)]

    def attempts(self, step: str = "train-high") -> list[Process]:
        return [process for process in self.processes if process.step == step]

    def begun(self, step: str = "train-high") -> list[StepStarted]:
        return [event for event in self.events(StepStarted) if event.step == step]

    def loras(self) -> dict[str, Path]:
        """The LoRAs among the results, by the part of their name after the title."""
        return {path.stem: path for path in self.plan.run_dir.glob("*.safetensors")}
