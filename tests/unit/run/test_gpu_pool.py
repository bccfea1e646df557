"""The GPUs of one run: readings, leases in a real lease room, whose turn it is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from support.gpu import ScriptedProbe
from support.runs import GIB, T0, make_gpus, make_plan
from wan_train.gpu.leases import LeaseHolder, LeaseRoom
from wan_train.gpu.model import GpuReading, GpuUnavailableError, LostGpu
from wan_train.run.gpu_pool import GpuPool
from wan_train.run.plan import Devices


class HandClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return T0 + self.time

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def room(tmp_path: Path) -> LeaseRoom:
    return LeaseRoom(tmp_path / "leases")


IDLE = GpuReading(gpus=make_gpus())
FIRST_BUSY = GpuReading(gpus=make_gpus(used=(20,)))
UNAVAILABLE = GpuUnavailableError("The NVIDIA driver does not answer.")


def pool(
    room: LeaseRoom, *readings: GpuReading | GpuUnavailableError, clock: HandClock | None = None, age: int = 0
) -> GpuPool:
    plan = replace(make_plan(), created=T0 + age, run_id=f"run-{age}")
    return GpuPool(plan, ScriptedProbe(readings or [IDLE]), room, clock or HandClock())


def test_a_gpu_is_free_after_two_quiet_looks(room: LeaseRoom) -> None:
    at = pool(room)
    assert [view.free for view in at.look(wanting=True)] == [False, False]
    assert [view.free for view in at.look(wanting=True)] == [True, True]
    at.close()


def test_memory_in_use_is_a_reason(room: LeaseRoom) -> None:
    at = pool(room, FIRST_BUSY)
    at.look(wanting=True)
    busy, idle = at.look(wanting=True)
    assert (busy.free, idle.free) == (False, True)
    assert busy.busy_because is not None
    assert "20.0 of 32.0 GiB" in busy.busy_because
    at.close()


def test_a_claimed_gpu_is_judged_anew(room: LeaseRoom) -> None:
    at = pool(room)
    at.look(wanting=True)
    at.look(wanting=True)
    assert at.claim("GPU-0")
    first = at.look(wanting=True)[0]
    assert (first.claimed, first.free) == (True, False)
    second = at.look(wanting=True)[0]
    assert (second.claimed, second.free) == (True, True)
    at.close()


def test_a_gpu_that_somebody_else_holds(room: LeaseRoom) -> None:
    holder = LeaseHolder(pid=os.getpid(), run_id="other-run", step="train-high", since=T0)
    lease = room.try_take("GPU-0", holder)
    assert lease is not None
    at = pool(room)
    at.look(wanting=True)
    taken, free = at.look(wanting=True)
    assert (taken.free, free.free) == (False, True)
    assert taken.busy_because == "GPU 0 is in use by run other-run"
    assert (taken.taken_by, free.taken_by) == ("run other-run", None)
    assert not at.claim("GPU-0")
    lease.release()
    assert at.claim("GPU-0")
    at.close()


def test_releasing_and_closing_give_leases_back(room: LeaseRoom) -> None:
    at = pool(room)
    assert at.claim("GPU-0")
    assert at.claim("GPU-1")
    at.release("GPU-0")
    at.release("GPU-0")
    assert room.holder("GPU-0") is None
    assert room.holder("GPU-1") is not None
    at.close()
    assert room.holder("GPU-1") is None


def test_what_a_trainer_inherits_tells_who_it_is(room: LeaseRoom) -> None:
    at = pool(room)
    at.claim("GPU-1")
    (descriptor,) = at.inherit("GPU-1", "train-low")
    os.fstat(descriptor)
    holder = room.holder("GPU-1")
    assert holder is not None
    assert (holder.run_id, holder.step) == ("run-0", "train-low")
    at.close()


def test_the_older_run_is_first_in_line_while_it_wants_a_gpu(room: LeaseRoom) -> None:
    older, younger = pool(room, age=0), pool(room, age=60)
    older.look(wanting=True)
    assert [view.first_in_line for view in younger.look(wanting=True)] == [False, False]
    assert [view.first_in_line for view in older.look(wanting=True)] == [True, True]
    older.look(wanting=False)
    assert [view.first_in_line for view in younger.look(wanting=True)] == [True, True]
    older.look(wanting=True)
    younger.claim("GPU-0")
    assert [view.first_in_line for view in younger.look(wanting=True)] == [True, False]
    older.close()
    assert [view.first_in_line for view in younger.look(wanting=True)] == [True, True]
    younger.close()


def test_only_gpus_of_the_plan(room: LeaseRoom) -> None:
    at = pool(room, GpuReading(gpus=make_gpus(count=4)))
    assert [view.uuid for view in at.look(wanting=True)] == ["GPU-0", "GPU-1"]
    at.close()


def test_a_driver_that_does_not_answer_is_asked_more_and_more_seldom(room: LeaseRoom) -> None:
    clock = HandClock()
    probe = ScriptedProbe([UNAVAILABLE])
    at = GpuPool(make_plan(), probe, room, clock)
    reads = []
    for _ in range(600):
        assert at.look(wanting=True) == ()
        reads.append(probe._reads)
        clock.time += 1
    assert at.problem == "The NVIDIA driver does not answer."
    assert reads[0] == 1
    assert 10 <= reads[-1] <= 20
    at.close()


def test_a_driver_that_answers_again(room: LeaseRoom) -> None:
    clock = HandClock()
    at = pool(room, IDLE, IDLE, UNAVAILABLE, IDLE, clock=clock)
    at.look(wanting=True)
    assert at.look(wanting=True)[0].free
    assert at.look(wanting=True) == ()
    clock.time += 100
    view = at.look(wanting=True)[0]
    assert (view.free, at.problem) == (False, None)
    assert at.look(wanting=True)[0].free
    at.close()


def test_a_lost_gpu_is_a_problem_to_be_shown(room: LeaseRoom) -> None:
    lost = LostGpu(index=1, uuid="GPU-1", reason="it fell off the bus")
    at = pool(room, GpuReading(gpus=make_gpus(count=1), lost=(lost,)))
    assert [view.uuid for view in at.look(wanting=True)] == ["GPU-0"]
    assert at.problem is not None
    assert "fell off the bus" in at.problem
    at.close()


def test_labels(room: LeaseRoom) -> None:
    at = pool(room)
    at.look(wanting=True)
    assert (at.label("GPU-1"), at.label("GPU-9"), at.label(None)) == ("GPU 1", None, None)
    at.close()
    slots = replace(make_plan(), devices=Devices.CPU_SLOTS, gpu_uuids=("cpu-slot-0",))
    at = GpuPool(slots, ScriptedProbe([GpuReading(gpus=make_gpus(devices=Devices.CPU_SLOTS))]), room, HandClock())
    assert at.look(wanting=True)[0].label == "CPU slot 0"
    at.close()


def test_memory_is_counted_in_the_units_of_the_cards() -> None:
    assert make_gpus(used=(20,))[0].used_bytes == 20 * GIB
