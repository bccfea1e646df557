"""A launch as a history of random events: what must hold at every moment, and at the end."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_train.base.units import GB
from wan_train.launch.model import Address, BoxState, Halt, Job, JobState, Launch, Offer, Wants, Work
from wan_train.launch.transitions import Action, Do, Done, Failed, Fault, Found, Lost, actions, after, settled

ADDRESS = Address(name="wt-1", host="127.0.0.1", port=22, user="root", key=Path("/key"))
INTERVAL = 600.0


def launch_of(jobs: int, boxes: int, *, budget: float | None = None, max_hours: float = 12.0) -> Launch:
    wants = Wants(boxes=boxes, budget=budget, max_hours=max_hours, fetch_seconds=INTERVAL)
    made = tuple(
        Job(name=f"job{n}", title=f"job{n}", dataset=Path("/data"), dataset_stamp="", options=(), work=WORK)
        for n in range(jobs)
    )
    return Launch(id="l", created=0.0, wants=wants, jobs=made)


WORK = Work(
    trainer="musubi", parts=(), batch_cost=None, items=1, download_bytes=69 * GB, dataset_bytes=GB, result_bytes=5 * GB
)
STATE_BYTES = GB
"""What comes home each time."""


def offer(number: int, per_gb: float = 0.0) -> Offer:
    return Offer(
        id=str(number),
        machine=f"m{number % 7}",
        gpu="RTX 5090",
        gpus=1,
        gpu_bytes=32 * 10**9,
        per_hour=1.0,
        per_gb_down=per_gb,
        per_gb_up=per_gb,
        disk_per_hour=0.05,
    )


class World:
    """LoopbackVast and boxes, as an outcome for each action; chance decides by `seed`, `trouble` is in percent."""

    def __init__(self, seed: int, trouble: int, per_gb: float = 0.0) -> None:
        self.per_gb = per_gb
        self.chance = random.Random(seed)
        self.trouble = trouble
        self.rented = 0
        self.trained: dict[str, int] = {}
        self.alive: set[str] = set()
        self.training_on: dict[str, set[str]] = {}

    def goes_wrong(self) -> bool:
        return self.chance.randrange(100) < self.trouble

    def outcome(self, action: Action) -> Done | Failed | Found | Lost:  # noqa: C901, PLR0912  one answer for each step
        if action.do is Do.SEARCH:
            if self.goes_wrong():
                return Found(name="", why="no offer")
            self.rented += 1
            return Found(name=f"box{self.rented}", offer=offer(self.rented, self.per_gb))
        assert action.box is not None
        if action.do is Do.DESTROY:
            if self.goes_wrong():
                return Failed(action=action, why="the API is down")
            self.alive.discard(action.box)
            for boxes in self.training_on.values():
                boxes.discard(action.box)
            return Done(action=action)
        self.alive.add(action.box)
        if self.goes_wrong():
            kind = self.chance.choice(["passing", "box", "here", "lost"])
            if kind == "lost":
                return Lost(box=action.box, why="outbid")
            return Failed(action=action, why="broken", fault=Fault(kind))
        if action.do is Do.RENT:
            return Done(action=action, address=ADDRESS)
        if action.do is Do.PROVISION:
            return Done(action=action, received=69 * GB)
        if action.job is not None:
            if action.do is Do.SEND:
                self.training_on.setdefault(action.job, set()).add(action.box)
                # What is looked at in the end: nobody trains the same job twice at once.
                assert len(self.training_on[action.job]) == 1
            if action.do is Do.WATCH:
                self.trained[action.job] = self.trained.get(action.job, 0) + 1
                if self.trained[action.job] > 20:
                    return Done(action=action, exit_code=0)
            if action.do is Do.BRING:
                self.training_on[action.job].discard(action.box)
            if action.do in {Do.FETCH, Do.BRING}:
                return Done(action=action, sent=STATE_BYTES)
        return Done(action=action)


def play(launch: Launch, world: World, *, steps: int = 4_000, halt_at: int | None = None) -> tuple[Launch, float]:
    now = 0.0
    for step in range(steps):
        if halt_at is not None and step == halt_at and launch.halt is None:
            launch = replace(launch, halt=Halt.NOW, halted_because="stopped")
        launch = settled(launch, now)
        holders = [box.job for box in launch.living if box.job is not None]
        assert len(holders) == len(set(holders)), "two living boxes have one job"
        assert sum(box.state is not BoxState.DESTROYING for box in launch.living) <= launch.wants.boxes
        if launch.is_over:
            return launch, now
        for action in list(actions(launch, now)):
            launch = after(launch, world.outcome(action), now)
        now += 30.0
    return launch, now


@settings(max_examples=60)
@given(st.integers(0), st.integers(1, 4), st.integers(1, 3), st.integers(0, 30))
def test_every_box_ends_and_no_job_is_on_two(seed: int, jobs: int, boxes: int, trouble: int) -> None:
    world = World(seed, trouble)
    launch, _ = play(launch_of(jobs, boxes, max_hours=1000), world)
    assert launch.is_over
    assert world.alive == set()
    assert all(box.state is BoxState.GONE for box in launch.boxes)


@settings(max_examples=40)
@given(st.integers(0), st.integers(1, 3), st.integers(1, 3), st.integers(0, 200))
def test_stopped_at_any_moment_leaves_no_box(seed: int, jobs: int, boxes: int, halt_at: int) -> None:
    world = World(seed, 10)
    launch, _ = play(launch_of(jobs, boxes, max_hours=1000), world, halt_at=halt_at)
    assert launch.is_over
    assert world.alive == set()


@settings(max_examples=40)
@given(
    st.integers(0), st.integers(1, 4), st.integers(1, 3), st.floats(0.3, 9.0), st.integers(0, 20), st.floats(0, 0.05)
)
def test_a_budget_is_not_exceeded_by_more_than_an_interval(  # noqa: PLR0917  what hypothesis draws
    seed: int, jobs: int, boxes: int, budget: float, trouble: int, per_gb: float
) -> None:
    launch, now = play(launch_of(jobs, boxes, budget=budget, max_hours=1000), World(seed, trouble, per_gb))
    assert launch.is_over
    at_home = STATE_BYTES / GB * per_gb
    assert launch.spent(now) <= budget + boxes * (INTERVAL / 3600 + at_home)


def test_a_box_whose_downloads_alone_cost_the_budget_is_not_rented() -> None:
    launch, _ = play(launch_of(1, 1, budget=1.0), World(0, 0, per_gb=0.02))
    assert launch.boxes == ()
    assert launch.halted_because == "$1.00 is left of the budget, too little for a box and its downloads"


def test_what_a_box_costs_is_its_rent_and_its_traffic_and_once_stopped_its_disk() -> None:
    launch = settled(launch_of(1, 1), 0.0)
    launch = after(launch, Found(name="a", offer=offer(1, 0.02)), 0.0)
    for do in (Do.RENT, Do.CHECK):
        launch = after(launch, Done(action=Action(do, "a"), address=ADDRESS), 1.0)
    launch = after(launch, Done(action=Action(Do.PROVISION, "a"), received=69 * GB), 1.0)
    assert launch.spent(3600.0) == pytest.approx(1.0 + 69 * 0.02)
    launch = after(launch, Lost(box="a", why="outbid", stopped=True), 3600.0)
    assert launch.spent(7200.0) == pytest.approx(1.05 + 69 * 0.02)
    assert launch.box("a").traffic == pytest.approx(1.38)


def test_without_trouble_each_job_has_one_box_and_is_done() -> None:
    launch, _ = play(launch_of(3, 2), World(0, 0))
    assert [job.state for job in launch.jobs] == [JobState.DONE] * 3
    assert len(launch.boxes) == 2


def test_a_box_that_stopped_itself_while_nobody_looked_is_paid_until_its_own_limit() -> None:
    launch = replace(ready_and_training(), wants=Wants(max_hours=6))
    for can_wake in (False, True):
        lost = after(launch, Lost(box="a", why="stopped", stopped=True, can_wake=can_wake), 30 * 3600.0)
        # Six hours, and one and a half that its guardian may take after them; the rest of 30 hours for its disk.
        assert lost.spent(30 * 3600.0) == pytest.approx(7.5 + 22.5 * 0.05, abs=0.001)
    assert lost.box("a").state is BoxState.WAKING
    assert lost.spent(31 * 3600.0) == pytest.approx(8.5 + 22.5 * 0.05, abs=0.001)


def test_a_silent_box_is_given_up_after_ten_minutes_and_its_job_waits_for_its_end() -> None:
    launch = settled(launch_of(1, 1), 0.0)
    launch = after(launch, Found(name="a", offer=offer(1)), 0.0)
    for do in (Do.RENT, Do.CHECK, Do.PROVISION):
        launch = after(launch, Done(action=Action(do, "a"), address=ADDRESS), 1.0)
    launch = after(settled(launch, 2.0), Done(action=Action(Do.SEND, "a", "job0")), 3.0)
    launch = settled(launch, 700.0)
    assert launch.box("a").state is BoxState.DESTROYING
    assert launch.job("job0").state is JobState.WAITING
    launch = after(launch, Found(name="b", offer=offer(2)), 700.0)
    for do in (Do.RENT, Do.CHECK, Do.PROVISION):
        launch = after(launch, Done(action=Action(do, "b"), address=ADDRESS), 701.0)
    launch = settled(launch, 702.0)
    assert launch.box("b").job is None
    launch = settled(after(launch, Done(action=Action(Do.DESTROY, "a")), 710.0), 711.0)
    assert launch.box("b").job == "job0"
    assert launch.job("job0").state is JobState.SENDING


def ready_and_training(now: float = 3.0) -> Launch:
    launch = settled(launch_of(1, 1), 0.0)
    launch = after(launch, Found(name="a", offer=offer(1)), 0.0)
    for do in (Do.RENT, Do.CHECK, Do.PROVISION):
        launch = after(launch, Done(action=Action(do, "a"), address=ADDRESS), 1.0)
    return after(settled(launch, 2.0), Done(action=Action(Do.SEND, "a", "job0")), now)


def test_a_fetch_that_meets_the_end_of_the_training_brings_the_results() -> None:
    launch = after(ready_and_training(), Done(action=Action(Do.FETCH, "a", "job0"), exit_code=0), 10.0)
    assert launch.job("job0").state is JobState.FETCHING
    assert [action.do for action in actions(settled(launch, 11.0), 11.0)] == [Do.BRING]


def test_a_copy_that_takes_hours_is_no_silence() -> None:
    launch = ready_and_training()
    assert settled(launch, 20_000.0, busy={"a"}).box("a").state is BoxState.READY
    assert settled(launch, 20_000.0).box("a").state is BoxState.DESTROYING


def test_a_full_disk_at_home_costs_no_box_and_no_result() -> None:
    launch = after(ready_and_training(), Done(action=Action(Do.WATCH, "a", "job0"), exit_code=0), 10.0)
    for number in range(50):
        now = 20.0 + 300 * number
        full = Failed(action=Action(Do.BRING, "a", "job0"), why="disk full", fault=Fault.HERE, answered=True)
        launch = settled(after(launch, full, now), now)
    assert launch.box("a").state is BoxState.READY
    assert launch.job("job0").state is JobState.FETCHING
    # A launch that is to end waits no longer for it.
    launch = settled(replace(launch, halt=Halt.SAVE), 20_000.0)
    launch = after(launch, full, 20_000.0)
    assert launch.box("a").state is BoxState.DESTROYING


def test_results_that_never_arrive_whole_are_trained_again_elsewhere() -> None:
    launch = after(ready_and_training(), Done(action=Action(Do.WATCH, "a", "job0"), exit_code=0), 10.0)
    wrong = Failed(action=Action(Do.BRING, "a", "job0"), why="did not arrive whole", answered=True)
    tries = 0
    while launch.box("a").state is BoxState.READY:
        launch, tries = after(launch, wrong, 10.0), tries + 1
    assert tries == 20
    assert launch.job("job0").state is JobState.WAITING


def test_a_finished_training_on_a_silent_box_is_lost_after_ten_minutes() -> None:
    launch = after(ready_and_training(), Done(action=Action(Do.WATCH, "a", "job0"), exit_code=0), 10.0)
    silent = Failed(action=Action(Do.BRING, "a", "job0"), why="no answer")
    launch = settled(after(launch, silent, 500.0), 500.0)
    assert launch.box("a").state is BoxState.READY
    assert settled(launch, 611.0).box("a").state is BoxState.DESTROYING


def test_a_step_that_fails_late_does_not_delay_the_end_of_its_box() -> None:
    launch = settled(launch_of(1, 1), 0.0)
    launch = after(launch, Found(name="a", offer=offer(1)), 0.0)
    for do in (Do.RENT, Do.CHECK):
        launch = after(launch, Done(action=Action(do, "a"), address=ADDRESS), 1.0)
    launch = settled(replace(launch, halt=Halt.NOW, halted_because="stopped"), 2.0)
    launch = after(launch, Failed(action=Action(Do.PROVISION, "a"), why="the box is given up"), 3.0)
    assert list(actions(launch, 3.0)) == [Action(Do.DESTROY, "a")]
    launch = after(launch, Failed(action=Action(Do.DESTROY, "a"), why="the API is down"), 4.0)
    assert (list(actions(launch, 4.0)), list(actions(launch, 9.0))) == ([], [Action(Do.DESTROY, "a")])


def test_models_of_both_tasks_are_paid_once_on_each_box() -> None:
    both = launch_of(1, 1)
    launch = settled(replace(both, wants=replace(both.wants, tasks=("t2v", "i2v"))), 0.0)
    launch = after(launch, Found(name="a", offer=offer(1, 0.02)), 0.0)
    for do in (Do.RENT, Do.CHECK):
        launch = after(launch, Done(action=Action(do, "a"), address=ADDRESS), 0.0)
    launch = after(launch, Failed(action=Action(Do.PROVISION, "a"), why="broken", fault=Fault.BOX), 0.0)
    assert launch.spent(0.0) == pytest.approx(126.05 * 0.02)
