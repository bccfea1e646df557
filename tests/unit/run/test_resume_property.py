"""Any training that is interrupted in any way ends as if nothing had happened.

The real supervisor on real files; its launcher runs trainers that write what musubi-tuner writes, in pieces, and dies
with them or without them at any moment.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainer_files import options_of, write_lora, write_state

from support.runs import SUPERVISOR, T0, make_plan
from wan_train.base import settings as settings_module
from wan_train.base.host import ProcessIdentity
from wan_train.engine.commands import Command
from wan_train.engine.tensors import read_header
from wan_train.gpu.leases import LeaseRoom
from wan_train.gpu.probe import CpuSlots
from wan_train.recipe.terms import EngineKind, Expert
from wan_train.run import attempts
from wan_train.run.directory import AttemptDirectory, RunDirectory
from wan_train.run.events import Exit, Exited, Lost, Signaled
from wan_train.run.launcher import Ended
from wan_train.run.plan import Plan, StepKind
from wan_train.run.speeds import Speed, key_of, remember
from wan_train.run.state import JobState
from wan_train.run.supervisor import Supervisor

STEP = "train-high"
DAY = 86_400
MOST_TICKS = 30_000


class SupervisorKilledError(Exception):
    """The supervisor dies here, whatever it was about to do."""


@dataclass(slots=True, kw_only=True)
class Process:
    """A trainer or caching program; what it does next is in `work`."""

    attempt: Path
    work: Iterator[None]
    exit: Exit | None = None
    asked: bool = False


@dataclass(slots=True, kw_only=True)
class Interrupted:
    """One training and what befalls it. `kills` are at counts of the trainers' acts, `deaths` of looks at the clock."""

    root: Path
    total: int
    keep: int | None
    batches: int
    interval: int
    pace: int
    kills: Sequence[int] = ()
    losses: Sequence[int] = ()
    deaths: Sequence[int] = ()
    jumps: Sequence[tuple[int, int]] = ()
    """At which looks somebody sets the wall clock, and by how many seconds."""
    acts: int = 0
    looks: int = 0
    time: float = T0
    trained: list[int] = field(default_factory=list)
    intervals: list[int] = field(default_factory=list)
    processes: dict[int, Process] = field(default_factory=dict)
    killed: int = 0

    # The clock.

    def now(self) -> float:
        self.looks += 1
        if self.looks in self.deaths:
            raise SupervisorKilledError
        return self.wall

    @property
    def wall(self) -> float:
        return self.time + sum(seconds for look, seconds in self.jumps if look <= self.looks)

    def monotonic(self) -> float:
        return self.time

    # The launcher.

    def start(self, command: Command, attempt: AttemptDirectory, inherit: Sequence[int]) -> ProcessIdentity:
        del inherit
        step = attempt.path.parent
        assert not any(p.attempt.parent == step and p.exit is None for p in self.processes.values()), "a second one"
        attempt.output.mkdir(parents=True)
        attempt.log.touch()
        pid = 10_000 + len(self.processes)
        work = self._train(options_of(command.argv), attempt) if step.name == STEP else iter(())
        self.processes[pid] = Process(attempt=attempt.path, work=work)
        return replace(SUPERVISOR, pid=pid)

    def ended(self, identity: ProcessIdentity, attempt: AttemptDirectory) -> Ended | None:
        process = self.processes[identity.pid]
        assert process.attempt == attempt.path
        for _ in range(self.pace):
            self._act(process)
        return None if process.exit is None else Ended(exit=process.exit, at=self.wall)

    def terminate(self, identity: ProcessIdentity) -> None:
        self.processes[identity.pid].asked = True

    def abandon(self, attempt: AttemptDirectory) -> None:
        for process in self.processes.values():
            if process.attempt == attempt.path and process.exit is None:
                process.exit = Signaled(signal=9)
                self.killed += 1

    def _act(self, process: Process) -> None:
        if process.exit is not None:
            return
        if process.asked:
            process.exit = Signaled(signal=15)
            return
        self.acts += 1
        if self.acts in self.kills or self.acts in self.losses:
            self.killed += 1
            process.exit = Lost(reason="gone") if self.acts in self.losses else Signaled(signal=9)
        elif next(process.work, self) is self:
            process.exit = Exited(code=0)

    # The trainer.

    def _train(self, options: dict[str, str], attempt: AttemptDirectory) -> Iterator[None]:
        epochs, every = int(options["max_train_epochs"]), int(options["save_every_n_epochs"])
        at_step = int(options.get("save_every_n_steps", 0))
        name, output = options["output_name"], attempt.output
        steps = done = 0
        if "resume" in options:
            with zipfile.ZipFile(Path(options["resume"]) / "scheduler.bin") as archive:
                steps, done = json.loads(archive.read("data"))
        self.intervals.append(every)
        total = epochs * self.batches
        with attempt.log.open("a", encoding="utf-8", buffering=1) as log:
            log.write(f"\n  total optimization steps / steps: {total}\n")
            for epoch in range(1, epochs + 1):
                log.write(f"\nepoch {epoch}/{epochs}\n")
                for batch in range(1, self.batches + 1):
                    local, steps = (epoch - 1) * self.batches + batch, steps + 1
                    log.write(f"\rsteps:  29%|## | {local}/{total} [00:01<00:04,  3.93it/s, avr_loss=0.1]")
                    if batch == self.batches:
                        done += 1
                        self.trained.append(done)
                    yield
                    if at_step and local % at_step == 0:
                        yield from write_lora(output / f"{name}-step{local:08d}.safetensors", epoch, local, done)
                        yield from write_state(output / f"{name}-step{local:08d}-state", steps, done)
                if epoch % every == 0 and epoch < epochs:
                    yield from write_lora(output / f"{name}-{epoch:06d}.safetensors", epoch, epoch * self.batches, done)
                    if kept := int(options.get("save_last_n_epochs", 0)):
                        (output / f"{name}-{epoch - every * kept:06d}.safetensors").unlink(missing_ok=True)
                    yield from write_state(output / f"{name}-{epoch:06d}-state", steps, done)
                    old = epoch - every * int(options["save_last_n_epochs_state"])
                    shutil.rmtree(output / f"{name}-{old:06d}-state", ignore_errors=True)
                yield
            yield from write_state(output / f"{name}-state", steps, done)
            yield from write_lora(output / f"{name}.safetensors", epochs, total, done)

    # The run.

    def play(self) -> Plan:
        """Supervise until the training succeeded: whoever dies is started again, whatever fails is resumed."""
        seconds = attempts.STATE_EVERY_SECONDS / (self.batches * self.interval)
        plan = make_plan(
            engine=EngineKind.REHEARSAL,
            experts=(Expert.HIGH,),
            epochs=self.total,
            run_dir=self.root / "runs" / "one",
            keep_every_epochs=self.keep,
            speed_key="this box",
            batch_cost=1.0,
            state_every_epochs=attempts.state_every_epochs(
                missing=self.total, done=0, keep=self.keep, epoch_seconds=seconds * self.batches
            ),
        )
        plan = replace(plan, dataset=replace(plan.dataset, cached_items={}))
        plan.run_dir.mkdir(parents=True)
        key = key_of(plan.trainer, StepKind.TRAIN, plan.training(Expert.HIGH), card="CPU slot", at_once=1)
        speed = Speed(at=self.time, key=key, sizes=plan.speed_key, cost=1.0, units=1000, per_unit=seconds)
        remember(plan.run_dir.parent, speed)
        resume = False
        ticks = 0
        for _ in range(100):
            supervisor = self._supervisor(plan)
            try:
                supervisor.begin(resume=resume)
                while (pause := supervisor.tick()) is not None:
                    ticks += 1
                    assert ticks < MOST_TICKS, "it waits for ever"
                    self.time += max(pause, min(100.0, seconds * self.pace / 8))
            except SupervisorKilledError:
                resume = False
                continue
            finally:
                supervisor.close()
            if supervisor._state.jobs[STEP].state is JobState.SUCCEEDED:
                return plan
            resume = True
        raise AssertionError("it never ends")

    def _supervisor(self, plan: Plan) -> Supervisor:
        environ = {"WAN_TRAIN_STALL_SECONDS": "86400", "WAN_TRAIN_PAUSE_SECONDS": "1"}
        return Supervisor(
            run=RunDirectory(plan.run_dir),
            plan=plan,
            clock=self,
            launcher=self,
            probe=CpuSlots(),
            room=LeaseRoom(self.root / "leases"),
            settings=settings_module.resolve(flags={}, environ=environ),
        )


@st.composite
def interruptions(draw: st.DrawFn) -> dict[str, object]:
    total = draw(st.integers(1, 60))
    batches = draw(st.integers(1, 3))
    acts = total * (batches + 14)
    moments = st.lists(st.integers(1, acts), max_size=3)
    return {
        "total": total,
        "keep": draw(st.none() | st.integers(1, total)),
        "batches": batches,
        "interval": draw(st.integers(1, 20)),
        "pace": draw(st.sampled_from([1, 5, 30, 200])),
        "kills": draw(moments),
        "losses": draw(moments),
        "deaths": draw(st.lists(st.integers(1, 300), max_size=4)),
        "jumps": draw(st.lists(st.tuples(st.integers(1, 300), st.sampled_from([-DAY, DAY])), max_size=2)),
    }


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(interruptions())
def test_every_training_ends_with_exactly_its_epochs(story: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = Interrupted(root=Path(folder), **story)  # type: ignore[arg-type]
        plan = world.play()
        check(world, plan)


def check(world: Interrupted, plan: Plan) -> None:
    total, name = world.total, plan.step(STEP).produces
    trained = Counter(epoch for epoch in world.trained if epoch <= total)
    assert set(trained) == set(range(1, total + 1))
    assert sum(trained.values()) - total <= world.killed * max(world.intervals)
    kept = range(world.keep, total, world.keep) if world.keep else ()
    expected = {f"{name}.safetensors": total} | {f"{name}-{epoch:06d}.safetensors": epoch for epoch in kept}
    assert {path.name for path in plan.run_dir.glob("*.safetensors")} == set(expected)
    for file, epoch in expected.items():
        metadata = read_header(plan.run_dir / file).metadata
        assert metadata["in_all"] == metadata["ss_epoch"] == str(epoch)
        assert metadata["ss_steps"] == str(epoch * world.batches)


def test_the_world_itself_interrupts(tmp_path: Path) -> None:
    """A property that nothing challenges proves nothing."""
    world = Interrupted(
        root=tmp_path, total=20, keep=4, batches=2, interval=2, pace=3, kills=[40, 90], losses=[60], deaths=[70]
    )
    check(world, world.play())
    assert world.killed == 3
    assert len([p for p in world.processes.values() if p.attempt.parent.name == STEP]) == 4
    assert len(world.trained) > 20
