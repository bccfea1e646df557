"""The status of a run, the time it took, and when it will end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from support.runs import OUT_OF_MEMORY, T0, events_of, make_gpus, make_plan, make_view
from views.scenes import (
    CACHED,
    DONE,
    HIGH,
    NOW,
    RUNS,
    began,
    both_running,
    caching,
    lost,
    retry,
    saved,
    told,
    waiting,
)
from views.support import shown
from wan_train.engine.failures import Cause
from wan_train.run.directory import RunDirectory
from wan_train.run.events import (
    EpochEnded,
    Event,
    Journal,
    Lost,
    RetryScheduled,
    StepExited,
    StepStarted,
    StepStopping,
    StopMode,
    StopRequested,
    SupervisorStarted,
)
from wan_train.run.live import Live
from wan_train.run.progress import Progress
from wan_train.run.state import JobState, fold
from wan_train.views import formatting
from wan_train.views import run_status as facts
from wan_train.views.dashboard import run_lines
from wan_train.views.model import History, Pace, RunReader, RunView
from wan_train.views.result import result_text
from wan_train.views.run_status import ends_at, newest_state, steps_per_epoch


def one_gpu(progress: Progress = HIGH, *, loaded_after: float = 100.0) -> RunView:
    """High-noise on the only GPU, low-noise waiting for it."""
    plan = make_plan()
    events = [*events_of(plan, {**CACHED, "train-high": RUNS}), began("train-high", T0 + 30 + loaded_after)]
    live = Live(at=NOW, gpus=make_gpus(count=1, used=(27,)), progress={"train-high": progress})
    return told(make_view(plan, events, live=live), events)


def test_two_gpus_end_with_the_slower_expert() -> None:
    view, _ = both_running()
    assert ends_at(view, NOW) == pytest.approx(NOW + 1443 * 3.02)


def test_on_one_gpu_low_comes_after_high_with_its_own_loading() -> None:
    assert ends_at(one_gpu(), NOW) == pytest.approx(NOW + 1392 * 2.93 + 100 + 2400 * 2.93)


def test_an_idle_second_gpu_is_counted_on() -> None:
    view = one_gpu()
    assert view.live is not None
    two = replace(view, live=replace(view.live, gpus=make_gpus(used=(27,))))
    assert ends_at(two, NOW) == pytest.approx(NOW + 100 + 2400 * 2.93)


def test_before_the_first_step_the_planned_steps_count() -> None:
    view, _ = caching()
    assert steps_per_epoch(view, view.plan.step("train-high")) == 24


def test_after_the_box_ran_out_of_ram_an_idle_gpu_is_not_counted_on() -> None:
    view = one_gpu()
    assert view.live is not None
    two = replace(view, live=replace(view.live, gpus=make_gpus(used=(27,))))
    in_turn = replace(two, state=replace(two.state, one_at_a_time=True))
    assert ends_at(in_turn, NOW) == ends_at(view, NOW)


def test_the_time_since_the_last_observation_has_passed() -> None:
    assert ends_at(one_gpu(), NOW + 20) == ends_at(one_gpu(), NOW)


def test_a_resumed_attempt_that_loads_goes_by_the_speed_before() -> None:
    view, now = retry()
    per_step = (40 * 30 - 60) / (40 * 24)
    loading = 60 - (now - view.state.jobs["train-high"].attempts[-1].started)
    low = 60 + 2400 * per_step
    assert ends_at(view, now) == pytest.approx(now + loading + 60 * 24 * per_step + low)


def test_a_pause_before_the_next_attempt_is_counted() -> None:
    plan = make_plan(gpu_uuids=("GPU-0",))
    events: list[Event] = [
        *events_of(plan, {**CACHED, "train-high": RUNS, "train-low": JobState.SUCCEEDED}),
        began("train-high", T0 + 100),
        EpochEnded(at=T0 + 340, step="train-high", attempt=1, epoch=1, loss=0.1),
        saved("train-high", 1, T0 + 340),
    ]
    retried = RetryScheduled(
        at=T0 + 400,
        step="train-high",
        attempt=1,
        diagnosis=replace(OUT_OF_MEMORY, cause=Cause.CUDA_ERROR),
        not_before=T0 + 1000,
        why="",
    )
    events.append(retried)
    events.sort(key=lambda event: event.at)
    live = Live(at=T0 + 401, gpus=make_gpus(count=1))
    view = told(make_view(plan, events, live=live), events)
    assert ends_at(view, T0 + 401) == pytest.approx(T0 + 1000 + 70 + 99 * 24 * 10)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(caching()[0], id="caching"),
        pytest.param(one_gpu(Progress(stage="loading the DiT")), id="loading"),
        pytest.param(lost()[0], id="lost"),
        pytest.param(replace(waiting()[0], paces={}), id="nothing measured of the one that waits"),
        pytest.param(make_view(make_plan(), []), id="not begun"),
    ],
)
def test_an_unknown_end_is_not_shown(view: RunView) -> None:
    assert ends_at(view, NOW) is None


def test_a_run_that_stops_says_no_end() -> None:
    view, _ = both_running()
    stop = StopRequested(at=NOW, mode=StopMode.AFTER_STATE, signal=15)
    assert ends_at(replace(view, state=fold(view.state, stop)), NOW) is None


@pytest.mark.parametrize(("complete", "end"), [(True, NOW + 1443 * 3.02), (False, None)])
def test_a_trainer_that_is_being_ended_is_done_or_may_be_tried_again(*, complete: bool, end: float | None) -> None:
    view, _ = both_running()
    ending = StepStopping(at=NOW, step="train-high", attempt=1, complete=complete)
    assert ends_at(replace(view, state=fold(view.state, ending)), NOW) == end


def test_the_newest_state_is_that_of_the_most_epochs() -> None:
    view, _ = retry()
    found = newest_state(view.state.jobs["train-high"])
    assert found is not None
    assert found.epoch == 40


class TestPaces:
    """Speeds from the journal alone."""

    def fold(self, *events: Event) -> dict[str, Pace]:
        history = History()
        for event in events:
            history.add(event)
        return history.paces

    def started(self, *, at: float = 0.0, attempt: int = 1, before: int = 0) -> StepStarted:
        (found,) = [
            event
            for event in events_of(make_plan(), {"train-high": RUNS})
            if isinstance(event, StepStarted) and event.step == "train-high"
        ]
        return replace(found, at=at, attempt=attempt, epochs_before=before)

    def epoch(self, number: int, at: float) -> EpochEnded:
        return EpochEnded(at=at, step="train-high", attempt=1, epoch=number, loss=0.1)

    def test_over_the_whole_attempt(self) -> None:
        paces = self.fold(self.started(), began("train-high", 50), self.epoch(1, 98), self.epoch(2, 146))
        assert paces == {"train-high": Pace(to_load=50, per_step=2.0)}

    def test_epochs_that_a_new_supervisor_reports_all_at_once_have_no_speed(self) -> None:
        first = [self.started(), began("train-high", 900), self.epoch(1, 900), self.epoch(2, 900)]
        assert self.fold(*first)["train-high"].per_step is None
        assert self.fold(*first, self.epoch(3, 948))["train-high"].per_step == 2.0

    def test_a_resumed_attempt_keeps_the_speed_before_until_it_has_its_own(self) -> None:
        first = [self.started(), began("train-high", 50), self.epoch(1, 98)]
        again = [self.started(at=200, attempt=2, before=1), began("train-high", 230, attempt=2)]
        assert self.fold(*first, *again)["train-high"] == Pace(to_load=30, per_step=2.0)
        assert self.fold(*first, *again, self.epoch(2, 254))["train-high"] == Pace(to_load=30, per_step=1.0)


class TestNews:
    """What gets into the small list."""

    def test_the_first_supervisor_and_first_attempts_are_no_news(self) -> None:
        history = History()
        for event in events_of(make_plan(), {**CACHED, "train-high": RUNS}):
            history.add(event)
        assert list(history.recent) == []

    def test_another_supervisor_and_another_attempt_are(self) -> None:
        history = History()
        events = events_of(make_plan(), {**CACHED, "train-high": RUNS})
        first = next(event for event in events if isinstance(event, SupervisorStarted))
        again = replace(next(e for e in events if isinstance(e, StepStarted)), attempt=2)
        stopping = StepStopping(at=NOW, step="train-high", attempt=1)
        for event in (*events, replace(first, at=NOW), again, stopping, replace(stopping, diagnosis=OUT_OF_MEMORY)):
            history.add(event)
        assert [type(event) for event in history.recent] == [SupervisorStarted, StepStarted, StepStopping]


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (0, "12:00"),
        (3600 * 11, "23:00"),
        (3600 * 13, "tomorrow 01:00"),
        (86400 * 2, "24 Nov 12:00"),
    ],
)
def test_the_time_has_its_day_unless_it_is_today(later: float, said: str) -> None:
    assert formatting.moment(T0 + later, T0) == said


def test_a_gpu_that_another_run_holds_is_no_lane_for_the_end() -> None:
    plan = make_plan()
    events = [*events_of(plan, {**CACHED, "train-high": RUNS}), began("train-high", T0 + 130)]
    only = Live(at=NOW, gpus=make_gpus(count=1, used=(27,)), progress={"train-high": HIGH})
    view = told(make_view(plan, events, live=only), events)
    assert view.live is not None
    idle = replace(view, live=replace(view.live, gpus=make_gpus(used=(27,))))
    taken = replace(view, live=replace(view.live, gpus=make_gpus(used=(27,)), taken={"GPU-1": "run one"}))
    assert ends_at(idle, NOW) != ends_at(taken, NOW) == ends_at(view, NOW)


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED])
def test_a_step_has_one_state_name_while_it_runs_and_in_the_result(state: JobState) -> None:
    plan = make_plan()
    view = make_view(plan, events_of(plan, {**CACHED, "train-high": state, "train-low": state}, exit_code=4))
    name = {JobState.SUCCEEDED: "finished"}.get(state, state.value)
    for text in (shown(run_lines(view, NOW), 100), result_text(view)):
        line = next(line for line in text.splitlines() if "train-high" in line)
        assert line.lstrip("✓✗ ").split()[0] == name


SETTING = replace(OUT_OF_MEMORY, cause=Cause.SETTING)


def ended_early(jobs: Mapping[str, JobState], code: int | None) -> str:
    """The result of a run whose failed steps failed for a setting; without a code its supervisor died."""
    plan = make_plan()
    return result_text(
        make_view(plan, events_of(plan, jobs, diagnosis=SETTING, exit_code=code), supervisor_alive=False)
    )


@pytest.mark.parametrize(("low", "code"), [(JobState.STOPPED, 130), (RUNS, None)], ids=["stopped", "lost"])
def test_an_expert_that_resuming_cannot_help_does_not_hide_how_to_resume_the_other(
    low: JobState, code: int | None
) -> None:
    text = ended_early({**CACHED, "train-high": JobState.FAILED, "train-low": low}, code)
    assert "wan-train resume 20251122-120000-mylora\n" in text
    assert "cannot help" not in text


@pytest.mark.parametrize("code", [130, 4, None], ids=["stopped", "failed", "lost"])
@pytest.mark.parametrize(
    "jobs",
    [
        {"cache-latents": JobState.STOPPED, "cache-text": JobState.FAILED},
        {**CACHED, "train-high": JobState.FAILED, "train-low": DONE},
    ],
    ids=["caching", "training"],
)
def test_where_resuming_cannot_help_no_command_is_announced(jobs: Mapping[str, JobState], code: int | None) -> None:
    text = ended_early(jobs, code)
    assert "Start a new run with other settings." in text
    assert "Resume" not in text


def test_time_in_which_nothing_ran_is_not_counted_as_work(tmp_path: Path) -> None:
    """Killed with the machine after 100 s, found eight minutes later, and trained to the end in 300 s."""
    plan = make_plan(run_dir=tmp_path)
    jobs = {**CACHED, "train-high": RUNS}
    run = RunDirectory(tmp_path)
    run.write_plan(plan)
    journal = Journal(run.events)
    for event in events_of(plan, jobs):
        journal.append(event)
    view, _ = RunReader(run).refresh()
    attempt = view.state.jobs["train-high"].attempt
    assert attempt is not None
    died = attempt.started + 100
    log = view.run.attempt("train-high", 1).log
    log.parent.mkdir(parents=True)
    log.write_text("step 3\n", encoding="utf-8")
    os.utime(log, (died, died))
    found = died + 500
    journal.append(SupervisorStarted(at=found, identity=attempt.identity))
    journal.append(StepExited(at=found, step="train-high", attempt=1, exit=Lost(reason="gone")))
    journal.close()
    view, _ = RunReader(run).refresh()
    before = attempt.started - T0
    assert facts.elapsed(view, found) == pytest.approx(before + 600)
    assert facts.spent(view, view.state.jobs["train-high"], found) == pytest.approx(100)
    assert facts.worked(view, found) == pytest.approx(120), "from the first caching to the death of the machine"
    assert facts.took(view, found) == "2 min of work (10 min in all)"


def test_without_a_gap_only_one_time_is_shown() -> None:
    plan = make_plan()
    view = make_view(plan, events_of(plan, {**CACHED, "train-high": DONE, "train-low": DONE}, exit_code=0))
    assert "of work" not in result_text(view)
