"""Whole launches against a made-up world: in calm, forgotten, and whatever chance brings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.launch_world import (
    EPOCH_SECONDS,
    EPOCHS,
    INTERVAL,
    Deaf,
    FakeBox,
    FakeClock,
    FakeMarket,
    Laptop,
    World,
    launched,
    until,
)
from wan_train.base.locks import is_locked
from wan_train.launch.controller import carry_out
from wan_train.launch.launch_directory import all_launches, box_name, find, launch_of, new
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
from wan_train.launch.reap import end_strays, strays, unattended
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import StepKind
from wan_train.run.speeds import Key, Speed, read_speeds


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

    def test_a_long_copy_that_breaks_says_that_the_box_answered(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1), deferred=True)
        until(laptop, JobState.TRAINING)
        while not laptop.steps:
            laptop.controller.turn()
            laptop.world.clock.time += 15.0
        laptop.world.clock.time += 3_000.0
        laptop.controller._round = laptop.world.clock.time  # it was awake all the time
        laptop.world.trouble = 100
        laptop.steps.pop()()
        laptop.world.trouble = 0
        laptop.controller.turn()
        assert [box.state for box in laptop.controller.launch.boxes] == [BoxState.READY]

    def test_a_box_costs_money_from_when_the_provider_says(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock(), since=1_000_020.0), launched(tmp_path, 1))
        [box] = laptop.run().boxes
        assert box.began == 1_000_020

    def test_the_cost_of_every_box_begins_so(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock(), spot=True), launched(tmp_path, 1))
        laptop.train_for(1_200)
        laptop.goes_down()
        while len(laptop.controller.launch.boxes) == 1:
            laptop.run(rounds=1)
        laptop.world.since = laptop.controller.launch.boxes[1].began + 10
        assert laptop.run().boxes[1].began == laptop.world.since

    def test_what_a_box_trains_is_held_here_until_it_is_done(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        laptop.train_for(1_800)
        home = laptop.controller.launch.jobs[0].home
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
        assert launch.halted_because == "the limit of 4 hours is reached"
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
        assert launch.boxes[0].because == "it costs $1.50 an hour, but $1.00 was offered"
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
        laptop.controller.sweep()
        assert list(laptop.world.boxes) == ["98"]

    def test_the_end_says_whether_the_list_could_be_checked(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        launch = laptop.run()
        runner, clock = laptop.controller.runner, laptop.world.clock
        assert carry_out(laptop.directory, runner, clock, lambda _: None) == (launch, True)
        runner.market = Deaf(laptop.world)
        assert carry_out(laptop.directory, runner, clock, lambda _: None) == (launch, False)


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
        assert list(unattended(tmp_path)) == [laptop.directory]
        with laptop.directory.held():
            assert not unattended(tmp_path)
        laptop.run()
        assert not unattended(tmp_path)

    def test_a_damaged_record_ends_nothing(self, tmp_path: Path) -> None:
        laptop = Laptop(World(FakeClock()), launched(tmp_path, 1))
        laptop.run(rounds=20)
        laptop.directory.record.write_text("{")
        assert [each.is_ours for each in end_strays(FakeMarket(laptop.world), tmp_path)] == [False]
        assert laptop.world.boxes


@settings(max_examples=25)
@given(st.integers(0), st.integers(1, 3), st.integers(1, 3), st.integers(0, 12), st.sampled_from([0, 7, 40, 150]))
def test_whatever_happens_no_box_is_left_and_no_work_is_lost(  # noqa: PLR0917  what hypothesis draws
    tmp_path_factory: pytest.TempPathFactory, seed: int, jobs: int, boxes: int, trouble: int, kill_every: int
) -> None:
    runs = tmp_path_factory.mktemp("runs")
    world = World(FakeClock(), seed=seed, trouble=trouble, spot=seed % 2 == 0, wakes=seed % 3 > 0)
    laptop = Laptop(world, launched(runs, jobs, boxes=boxes), deferred=True)
    launch = laptop.run(kill_every=kill_every)
    assert laptop.controller.is_over
    assert world.twice == []
    world.trouble = 0
    laptop.controller.sweep()
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
