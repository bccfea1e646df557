"""Each fault of a launch as a history against a made-up world: what becomes of the box, the job and the money."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from support.launch_world import (
    EPOCHS,
    SHIPMENT,
    Deaf,
    FakeClock,
    FakeMarket,
    Laptop,
    World,
    launched,
    until,
)
from wan_train.base.errors import BadInputError
from wan_train.launch.engine import EngineDownError, EngineError
from wan_train.launch.launch_directory import LaunchDirectory
from wan_train.launch.market import Power
from wan_train.launch.model import (
    BoxState,
    Halt,
    Job,
    JobState,
)
from wan_train.launch.remote import WrongBoxError
from wan_train.launch.shipment import Shipment
from wan_train.launch.ssh import UnreachableError


class TestFaults:
    @pytest.mark.parametrize(
        ("step", "error"),
        [
            ("rent", EngineError("Vast did not rent it: the offer is gone")),
            ("come up", EngineError("it did not run in time")),
            ("come up", EngineError("ssh never opened")),
            ("check", WrongBoxError("its GPU is NVIDIA GeForce RTX 4090, but RTX 5090 was rented")),
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
        laptop.controller.runner.market = Deaf(laptop.world)
        until(laptop, JobState.TRAINING)
        laptop.controller.runner.market = FakeMarket(laptop.world)
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
        assert laptop.controller.launch.boxes[0].state is BoxState.DESTROYING
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

    def test_a_provider_that_hangs_holds_no_training_up(self, tmp_path: Path) -> None:
        world = World(FakeClock())
        laptop = Laptop(world, launched(tmp_path, 1))
        until(laptop, JobState.TRAINING)
        never: list[Callable[[], None]] = []

        laptop.controller.start = lambda step: never.append(step) if "_look" in step.__qualname__ else step()
        launch = laptop.run()
        assert (launch.jobs[0].state, len(launch.boxes)) == (JobState.DONE, 1)
        assert len(never) == 1

    def test_a_list_that_was_asked_for_before_a_box_was_rented_says_nothing_of_it(self, tmp_path: Path) -> None:
        world = World(FakeClock())
        laptop = Laptop(world, launched(tmp_path, 2, boxes=2))
        while [box.state for box in laptop.controller.launch.boxes[1:]] != [BoxState.RENTING]:
            laptop.run(rounds=1)
        late: list[Callable[[], None]] = []
        laptop.controller.start = late.append
        laptop.controller._listed = float("-inf")
        laptop.controller._look(world.clock.now())
        laptop.controller.start = lambda step: step()
        laptop.run(rounds=1)
        before = dict(world.boxes)
        world.boxes = {name: box for name, box in before.items() if box.machine == "m0"}
        late.pop()()
        world.boxes = before
        launch = laptop.run()
        assert [job.state for job in launch.jobs] == [JobState.DONE] * 2
        assert [box.because for box in launch.boxes] == ["no job is left for it"] * 2

    def test_a_list_that_lacks_a_box_once_ends_no_training(self, tmp_path: Path) -> None:
        world = World(FakeClock())
        laptop = Laptop(world, launched(tmp_path, 1))
        until(laptop, JobState.TRAINING)
        whole, lists = world.listed, iter([(), world.listed(), (), world.listed()])
        world.listed = lambda: next(lists, None) or whole()  # type: ignore[method-assign]  # a provider that forgets
        launch = laptop.run()
        assert (launch.jobs[0].state, len(launch.boxes), world.boxes) == (JobState.DONE, 1, {})

    def test_a_later_run_on_a_box_has_the_hours_that_are_left_of_it(self, tmp_path: Path) -> None:
        world = World(FakeClock())
        Laptop(world, launched(tmp_path, 2, max_hours=6)).run()
        first, second = world.hours
        assert 5.5 < first < 6
        assert first - second == pytest.approx(EPOCHS * 60 / 3600, abs=0.1)

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

        laptop.controller.runner.shipment = shipment
        launch = laptop.run()
        assert [job.state for job in launch.jobs] == [JobState.FAILED, JobState.DONE]
        assert launch.jobs[0].problem == "/d was changed after it was checked"
        assert (laptop.world.ordered, laptop.world.boxes) == (1, {})

    def test_two_launches_at_once_leave_each_others_boxes_alone(self, tmp_path: Path) -> None:
        world = World(FakeClock())
        both = [Laptop(world, launched(tmp_path, 2, named=name)) for name in ("cat", "dog")]
        for _ in range(3_000):
            for laptop in both:
                if not laptop.controller.is_over:
                    laptop.run(rounds=1)
                    laptop.controller.sweep()
        for laptop in both:
            launch = laptop.controller.launch
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
        assert laptop.controller.runner.searching == "the account has $0.00, but an hour of the best offer costs $1.00"
        world.credit = 9.0
        assert laptop.run().jobs[0].state is JobState.DONE


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
