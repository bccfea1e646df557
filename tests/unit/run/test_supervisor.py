"""What the supervisor makes of trainers that fail, and of people who stop them: commands, results and exit codes."""

from __future__ import annotations

import math
import os
import resource
import signal
from pathlib import Path

import pytest
from supervisor_world import BATCHES, EPOCHS, SAVE_EVERY, Process, Script, Trainer, World, dies, hangs, trains
from trainer_files import safetensors

from support.runs import make_gpus
from wan_train.engine.failures import Cause
from wan_train.engine.tensors import first_non_finite, read_header
from wan_train.gpu.model import GpuReading, LostGpu
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory
from wan_train.run.events import (
    Exited,
    Lost,
    ResultPlaced,
    RetryScheduled,
    Signaled,
    StateSaved,
    StepExited,
    StepFailed,
    StepSkipped,
    StepStopped,
    StepStopping,
    StepSucceeded,
    StopMode,
)

BOTH = (Expert.HIGH, Expert.LOW)
HIGH, LOW = "train-high", "train-low"
KILLED = Signaled(signal=signal.SIGKILL)
TRACEBACK = "\nTraceback (most recent call last):\n"
OOM = f"{TRACEBACK}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.17 GiB.\n"
HOST_OOM = f"{TRACEBACK}MemoryError\n"
DISK_FULL = f"{TRACEBACK}OSError: [Errno 28] No space left on device: 'output/T.safetensors'\n"
BUG = f"{TRACEBACK}RuntimeError: a scripted failure\n"


def fails(says: str, after: int = 0, **more: int) -> Script:
    return trains(until=after, says=says, **more)  # type: ignore[arg-type]  # only numbers are passed


def causes(world: World, step: str = HIGH) -> list[Cause]:
    return [event.diagnosis.cause for event in world.events(RetryScheduled) if event.step == step]


def test_two_experts_train_side_by_side_after_both_cachings(tmp_path: Path) -> None:
    world = World(root=tmp_path, experts=BOTH)
    assert world.play() == 0
    assert [process.step for process in world.processes] == ["cache-latents", "cache-text", HIGH, LOW]
    assert {process.gpu for process in world.processes[2:]} == {"GPU-0", "GPU-1"}
    assert len(world.loras()) == 2
    for event in world.events(ResultPlaced):
        assert Path(event.path).stat().st_size == event.bytes
        assert event.epochs == EPOCHS
    for step in (HIGH, LOW):
        saved = [event.epoch for event in world.events(StateSaved) if event.step == step]
        assert saved == list(range(SAVE_EVERY, EPOCHS, SAVE_EVERY)), "every state is recorded, once"
    # The newest state stays, so that the training can be extended; all others went.
    for process in world.processes[2:]:
        (state,) = process.directory.output.glob("*-state")
        assert state.name == f"{process.options['output_name']}-state"


def test_out_of_memory_at_once_takes_one_memory_step_after_the_other(tmp_path: Path) -> None:
    world = World(root=tmp_path, scripts={HIGH: [fails(OOM), fails(OOM), trains()]})
    assert world.play() == 0
    swapped = [int(process.options.get("blocks_to_swap", 0)) for process in world.attempts()]
    assert swapped == sorted(set(swapped))
    assert swapped[1:] == [event.changes["blocks_to_swap"] for event in world.events(RetryScheduled)]
    assert causes(world) == [Cause.OUT_OF_MEMORY] * 2


def test_out_of_memory_whatever_is_done_ends_with_every_step_tried(tmp_path: Path) -> None:
    world = World(root=tmp_path, scripts={HIGH: [fails(OOM)]})
    assert world.play() == 4
    (failed,) = world.events(StepFailed)
    assert failed.diagnosis.cause is Cause.OUT_OF_MEMORY
    assert world.attempts()[-1].options["blocks_to_swap"] == "36"
    settings = [{k: v for k, v in each.options.items() if "dir" not in k} for each in world.attempts()]
    assert all(settings.count(each) == 1 for each in settings), "no attempt is a repetition of another"


def test_out_of_memory_late_is_tried_once_as_it_was_and_from_its_state(tmp_path: Path) -> None:
    late = fails(OOM, after=4, batches=40)
    world = World(root=tmp_path, scripts={HIGH: [late, fails(OOM, batches=40), trains(batches=40)]})
    assert world.play() == 0
    first, second, third = world.begun()
    retries = world.events(RetryScheduled)
    assert [retry.changes.get("blocks_to_swap", 0) > 0 for retry in retries] == [False, True]
    assert (first.epochs_before, second.epochs_before, third.epochs_before) == (0, 4, 4)


@pytest.mark.parametrize("steps", [99, 100])
def test_late_is_after_a_hundred_steps(tmp_path: Path, steps: int) -> None:
    world = World(root=tmp_path, scripts={HIGH: [fails(OOM, after=1, batches=steps), trains()]})
    assert world.play() == 0
    (retry,) = world.events(RetryScheduled)
    assert bool(retry.changes) is (steps < 100)


def test_a_trainer_that_is_killed_is_resumed_from_its_newest_state(tmp_path: Path) -> None:
    world = World(root=tmp_path, scripts={HIGH: [trains(until=5, then=KILLED), trains()]})
    assert world.play() == 0
    first, second = world.begun()
    assert (first.epochs_before, second.epochs_before) == (0, 4)
    assert first.resumed_from is None
    assert Path(second.resumed_from or "").name.endswith("-000004-state")
    missing = (EPOCHS - 4) * BATCHES
    assert world.attempts()[1].options["save_every_n_steps"] == str(missing)
    (lora,) = world.loras().values()
    metadata = read_header(lora).metadata
    assert (metadata["in_all"], metadata["ss_epoch"], metadata["ss_steps"]) == ("8", "8", str(EPOCHS * BATCHES))
    (retry,) = world.events(RetryScheduled)
    assert retry.not_before - retry.at == 10


def test_kills_without_progress_end_it_and_a_saved_state_starts_the_count_anew(tmp_path: Path) -> None:
    never = World(root=tmp_path / "never", scripts={HIGH: [trains(until=0, then=KILLED)]})
    assert never.play() == 4
    assert len(never.attempts()) == 1 + 3
    pauses = [event.not_before - event.at for event in never.events(RetryScheduled)]
    assert pauses == [10, 30, 60]
    at_once, later = trains(until=0, then=KILLED), trains(until=3, then=KILLED)
    some = World(root=tmp_path / "some", scripts={HIGH: [*[at_once] * 3, later, *[at_once] * 3, trains()]})
    assert some.play() == 0
    assert len(some.attempts()) == 8


def test_an_end_that_nobody_saw_is_no_failure(tmp_path: Path) -> None:
    lost = trains(until=0, then=Lost(reason="the machine was restarted"))
    world = World(root=tmp_path, scripts={HIGH: [*[lost] * 6, trains()]})
    assert world.play() == 0
    assert {event.not_before - event.at for event in world.events(RetryScheduled)} == {0}


def test_numbers_that_are_not_finite_end_it_and_keep_the_newest_good_lora(tmp_path: Path) -> None:
    world = World(root=tmp_path, scripts={HIGH: [trains(spoiled=5)]})
    assert world.play() == 6
    assert len(world.attempts()) == 1, "the same numbers would come again"
    assert [event.diagnosis.cause for event in world.events(StepStopping) if event.diagnosis] == [Cause.NAN_LOSS]
    (kept,) = world.loras().values()
    assert kept.stem.endswith("-000004")
    assert first_non_finite(kept, read_header(kept)) is None
    (failed,) = world.events(StepFailed)
    assert "kept" in failed.diagnosis.advice


def test_one_expert_that_diverges_leaves_the_other_its_result(tmp_path: Path) -> None:
    world = World(root=tmp_path, experts=BOTH, scripts={LOW: [trains(spoiled=1)]})
    assert world.play() == 6
    assert len([name for name in world.loras() if "HighNoise" in name]) == 1


def test_ram_that_is_not_enough_for_two_trains_the_experts_in_turn(tmp_path: Path) -> None:
    world = World(root=tmp_path, experts=BOTH, scripts={HIGH: [fails(HOST_OOM), trains()]})
    assert world.play() == 0
    assert causes(world) == [Cause.HOST_OUT_OF_MEMORY]
    (second,) = (event for event in world.begun() if event.attempt == 2)
    (other,) = (event for event in world.events(StepExited) if event.step == LOW)
    assert second.at >= other.at


def test_a_gpu_that_is_lost_costs_the_attempt_and_the_other_gpu_is_used(tmp_path: Path) -> None:
    world = World(root=tmp_path)

    def falls_off() -> None:
        (running,) = (process for process in world.processes if process.exit is None)
        lost = LostGpu(index=int(running.gpu[-1]), uuid=running.gpu, reason="it has fallen off the bus")
        world.reading = GpuReading(gpus=tuple(g for g in make_gpus() if g.uuid != running.gpu), lost=(lost,))

    world.at[25] = falls_off
    assert world.play() == 0
    first, second = world.begun()
    assert first.gpu_uuid != second.gpu_uuid
    assert causes(world) == [Cause.CUDA_ERROR]
    assert second.epochs_before > 0


def test_a_gpu_that_somebody_took_after_a_failure_is_waited_for(tmp_path: Path) -> None:
    world = World(root=tmp_path, gpus=1, scripts={HIGH: [fails(BUG), trains()]})
    idle = world.reading
    times = []

    def changes(reading: GpuReading) -> None:
        times.append(world.time)
        world.reading = reading

    world.at[12] = lambda: changes(GpuReading(gpus=make_gpus(count=1, used=(20,))))
    world.at[60] = lambda: changes(idle)
    assert world.play() == 0
    first, second = world.begun()
    assert first.at < times[0] < times[1] < second.at


@pytest.mark.parametrize(("says", "cause"), [(DISK_FULL, Cause.DISK_FULL)])
def test_what_only_a_person_can_change_is_not_tried_again(tmp_path: Path, says: str, cause: Cause) -> None:
    world = World(root=tmp_path, scripts={HIGH: [fails(says, after=3)]})
    assert world.play() == 4
    assert [event.diagnosis.cause for event in world.events(StepFailed)] == [cause]
    assert len(world.attempts()) == 1
    # The person made room: it goes on where it was.
    world.scripts[HIGH] = [trains()]
    assert world.play(resume=True) == 0
    assert [event.epochs_before for event in world.begun()] == [0, SAVE_EVERY]


@pytest.mark.parametrize(
    ("scripts", "code", "loras"),
    [
        ({HIGH: [fails(BUG)]}, 5, 1),
        ({LOW: [fails(BUG)]}, 5, 1),
        ({HIGH: [fails(BUG)], LOW: [fails(BUG)]}, 4, 0),
        ({HIGH: [fails(BUG), trains()]}, 0, 2),
    ],
    ids=["high fails", "low fails", "both fail", "the second attempt is good"],
)
def test_exit_code_of_two_experts(tmp_path: Path, scripts: dict[str, list[Script]], code: int, loras: int) -> None:
    world = World(root=tmp_path, experts=BOTH, scripts=dict(scripts))
    assert world.play() == code
    assert len(world.loras()) == loras
    assert len(world.events(StepFailed)) == 2 - loras
    assert len(world.events(StepSucceeded)) == 2 + loras


def test_without_its_caches_nothing_is_trained(tmp_path: Path) -> None:
    world = World(root=tmp_path, experts=BOTH, caching=dies(BUG))
    assert world.play() == 4
    assert {event.step for event in world.events(StepSkipped)} == {HIGH, LOW}
    assert world.attempts(HIGH) == world.attempts(LOW) == []


def _remove(final: Path) -> None:
    final.unlink()


def _cut(final: Path) -> None:
    os.truncate(final, final.stat().st_size - 1)


def _spoil(final: Path) -> None:
    final.write_bytes(safetensors({}, math.inf))


@pytest.mark.parametrize(("leaves", "code"), [(_remove, 4), (_cut, 4), (_spoil, 6)])
def test_an_exit_code_of_0_proves_nothing(tmp_path: Path, leaves: object, code: int) -> None:
    world = World(root=tmp_path, epochs=1, scripts={HIGH: [trains(leaves=leaves)]})  # type: ignore[arg-type]  # see above
    assert world.play() == code
    assert not world.loras()
    assert not [event for event in world.events(StepSucceeded) if event.step == HIGH]


def test_a_good_lora_after_a_bad_exit_code_is_no_result(tmp_path: Path) -> None:
    def work(process: Process) -> Trainer:
        yield from trains()(process)
        return Exited(code=1)

    world = World(root=tmp_path, scripts={HIGH: [work, fails(BUG)]})
    assert world.play() == 4
    assert not world.loras()


@pytest.mark.parametrize("after", [0, 3])
def test_a_trainer_that_hangs_is_ended_with_evidence_and_tried_again(tmp_path: Path, after: int) -> None:
    world = World(root=tmp_path, scripts={HIGH: [hangs(after=after), trains()]})
    begun = world.time
    assert world.play() == 0
    assert causes(world) == [Cause.NO_PROGRESS]
    assert (world.attempts()[0].directory.path / "stall.txt").exists()
    # Patience is longer while the models load: four times the 60 s of this world.
    assert world.time - begun > 60 * (1 if after else 4)


def test_a_hang_that_comes_again_is_given_up(tmp_path: Path) -> None:
    world = World(root=tmp_path, scripts={HIGH: [hangs(after=1)]})
    assert world.play() == 4
    assert len(world.attempts()) == 1 + 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_now_ends_every_trainer_and_starts_none(tmp_path: Path, number: int, code: int) -> None:
    world = World(root=tmp_path, experts=BOTH)
    world.at[45] = lambda: world.stop(StopMode.NOW, number)
    assert world.play() == code
    assert {event.step for event in world.events(StepStopped)} == {HIGH, LOW}
    assert all(process.exit == Signaled(signal=signal.SIGTERM) for process in world.processes[2:])
    assert not world.loras()
    assert world.play(resume=True) == 0
    assert len(world.loras()) == 2
    assert [event.epochs_before for step in (HIGH, LOW) for event in world.begun(step)] == [0, 2 * SAVE_EVERY] * 2


def test_stopping_after_the_next_state_loses_no_epoch(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    world.at[12] = lambda: world.stop(StopMode.AFTER_STATE)
    assert world.play() == 130
    assert world.play(resume=True) == 0
    assert [event.epochs_before for event in world.begun()] == [0, SAVE_EVERY]


def test_a_stop_while_a_retry_is_waited_for_starts_no_trainer(tmp_path: Path) -> None:
    world = World(root=tmp_path, scripts={HIGH: [trains(until=0, then=KILLED)]})
    world.at[14] = lambda: world.stop(StopMode.NOW)
    assert world.play() == 130
    attempts = len(world.attempts())
    assert attempts == 1
    assert [event.step for event in world.events(StepStopped)] == [HIGH]


def test_a_finished_training_can_be_made_longer(tmp_path: Path) -> None:
    world = World(root=tmp_path)
    assert world.play() == 0
    assert world.play(resume=True, epochs=EPOCHS + 3) == 0
    assert world.play(resume=True, epochs=EPOCHS + 4) == 0
    assert [event.epochs_before for event in world.begun()] == [0, EPOCHS, EPOCHS + 3]
    totals = {name[-7:]: read_header(path).metadata["ss_epoch"] for name, path in world.loras().items()}
    assert totals == {"-000008": "8", "-000011": "11", "_mylora": "12"}


def test_failures_before_a_resume_are_forgiven(tmp_path: Path) -> None:
    world = World(root=tmp_path, scripts={HIGH: [trains(until=0, then=KILLED)]})
    assert world.play() == 4
    assert world.play(resume=True) == 4
    assert len(world.attempts()) == 2 * (1 + 3)


def test_a_state_whose_numbers_are_not_finite_is_not_resumed_from(tmp_path: Path) -> None:
    world = World(root=tmp_path, scripts={HIGH: [trains(until=5, then=KILLED), trains()]})

    def spoil() -> None:
        for state in world.attempts()[0].directory.output.glob("*-000004-state") if world.attempts() else ():
            (state / "model.safetensors").write_bytes(safetensors({}, math.nan))

    world.at = dict.fromkeys(range(40, 80), spoil)
    assert world.play() == 0
    assert world.begun()[1].epochs_before == SAVE_EVERY


def test_one_gpu_trains_one_expert_after_the_other(tmp_path: Path) -> None:
    world = World(root=tmp_path, gpus=1, experts=BOTH)
    assert world.play() == 0
    first, second = (process for process in world.processes if process.step in {HIGH, LOW})
    assert first.gpu == second.gpu == "GPU-0"
    (end,) = (event.at for event in world.events(StepExited) if event.step == first.step)
    (begin,) = (event.at for event in world.begun(second.step))
    assert end <= begin


def test_of_what_the_trainer_saved_the_newest_two_stay(tmp_path: Path) -> None:
    world = World(root=tmp_path, epochs=12)
    assert world.play() == 0
    (process,) = world.attempts()
    name = process.options["output_name"]
    left = {path.stem.removeprefix(name) for path in process.directory.output.glob("*.safetensors")}
    assert left == {"-000008", "-000010", ""}


def test_an_attempt_without_a_record_is_ended_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    """A supervisor may be killed between launching a trainer and recording it."""
    world = World(root=tmp_path)
    unknown = RunDirectory(world.plan.run_dir).attempt(HIGH, 1).path
    unknown.mkdir(parents=True)
    assert world.play() == 0
    assert world.abandoned == [unknown]
    assert [process.number for process in world.attempts()] == [2]


def test_recorded_attempts_are_not_abandoned(tmp_path: Path) -> None:
    world = World(root=tmp_path, scripts={HIGH: [trains(until=3, then=KILLED), trains()]})
    world.at[20] = lambda: world.stop(StopMode.NOW)
    assert world.play() == 130
    assert world.play(resume=True) == 0
    assert world.abandoned == []


def test_a_secret_that_cannot_be_hidden_is_reported_and_costs_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log is larger than any file may be from now on, so it cannot even be overwritten."""
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def work(process: Process) -> Trainer:
        ended = yield from trains()(process)
        process.say(f"{'x ' * 300_000}\nMY_PASSWORD=abcdef\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, old_limit[1]))
        return ended

    world = World(root=tmp_path, scripts={HIGH: [work]})
    try:
        assert world.play() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
    (process,) = world.attempts()
    assert f"cannot hide the secrets in {process.directory.log}" in capsys.readouterr().out
