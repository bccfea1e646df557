"""One name, one value and one truth for a run on every screen."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from support.runs import OUT_OF_MEMORY, T0, events_of, make_gpus, make_plan, make_view
from views.scenes import CACHED, DONE, FAILED, FREE_DISK, HIGH, NOW, RUNS, began, lost, one_failed, told
from views.support import shown
from wan_train.engine.failures import Cause
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Exited, Lost, RetryScheduled, StepExited, SupervisorStarted
from wan_train.run.journal import Journal
from wan_train.run.live import Live
from wan_train.run.scheduler import why_waiting
from wan_train.run.state import JobState
from wan_train.views import run_status as facts
from wan_train.views.dashboard import gpu_lines, render
from wan_train.views.lines import plain
from wan_train.views.model import RunReader, RunView
from wan_train.views.result import result_text, status_lines
from wan_train.views.run_status import RunStatus, ends_at, status_of

ONE = "20251122-110000-one"


def retrying(run_dir: Path) -> RunView:
    """Out of GPU memory after half an hour, and in a pause before the next attempt."""
    plan = make_plan(run_dir=run_dir)
    events = events_of(plan, {**CACHED, "train-high": RUNS})
    events += [
        StepExited(at=T0 + 1800, step="train-high", attempt=1, exit=Exited(code=1)),
        RetryScheduled(
            at=T0 + 1800,
            step="train-high",
            attempt=1,
            diagnosis=OUT_OF_MEMORY,
            not_before=T0 + 1815,
            why="out of GPU memory, next: 20 of 40 blocks wait in RAM",
            changes={"blocks_to_swap": 20},
        ),
    ]
    view = make_view(plan, events)
    waits = why_waiting(plan, view.state, plan.step("train-high"), (), T0 + 1803)
    live = Live(at=T0 + 1803, gpus=make_gpus(), waiting={"train-high": waits}, disk_free_bytes=FREE_DISK)
    return make_view(plan, events, live=live)


def test_a_retry_to_come_is_shown() -> None:
    view = retrying(make_plan().run_dir)
    assert status_of(view) is RunStatus.RETRYING
    text = " ".join(shown(render(view, T0 + 1803, 100), 100).split())
    assert "retrying train-high retrying in 12 s: out of GPU memory, next: 20 of 40 blocks wait in RAM" in text
    assert "retrying 30 min" in text


def test_a_gpu_that_another_run_holds_is_not_called_idle() -> None:
    plan = make_plan()
    live = Live(at=NOW, gpus=make_gpus(count=2), taken={"GPU-0": f"run {ONE}"})
    view = make_view(plan, events_of(plan, {}), live=live)
    first, second = plain(gpu_lines(view, 100)).splitlines()
    assert first.endswith(f"taken by run {ONE}")
    assert second.endswith("idle")


def test_a_gpu_that_another_run_holds_is_no_lane_for_the_end() -> None:
    plan = make_plan()
    events = [*events_of(plan, {**CACHED, "train-high": RUNS}), began("train-high", T0 + 130)]
    only = Live(at=NOW, gpus=make_gpus(count=1, used=(27,)), progress={"train-high": HIGH})
    view = told(make_view(plan, events, live=only), events)
    assert view.live is not None
    idle = replace(view, live=replace(view.live, gpus=make_gpus(used=(27,))))
    taken = replace(view, live=replace(view.live, gpus=make_gpus(used=(27,)), taken={"GPU-1": f"run {ONE}"}))
    assert ends_at(idle, NOW) != ends_at(taken, NOW) == ends_at(view, NOW)


def test_a_dead_supervisor_is_a_failure_with_a_way_out() -> None:
    view, now = lost()
    found = facts.dead_supervisor(view)
    assert found is not None
    assert found.cause is Cause.LOST
    assert found.meaning == "The supervisor died before the run finished"
    assert f"wan-train resume {view.run.run_id}" in found.advice
    lines = shown(render(view, now, 80), 80).splitlines()
    assert lines[0].split()[-1] == RunStatus.LOST
    assert f"wan-train resume {view.run.run_id}" in lines
    assert shown(status_lines(view), 80) == ""
    assert facts.dead_supervisor(one_failed()[0]) is None


def test_status_names_the_files_and_the_download_line() -> None:
    plan = make_plan()
    view = make_view(plan, events_of(plan, {**CACHED, "train-high": DONE, "train-low": FAILED}, exit_code=5))
    lines = shown(status_lines(view), 80, soft_wrap=True).splitlines()
    assert f"    {plan.run_dir}/WAN2.2-HighNoise_mylora.safetensors" in lines
    assert any(line.startswith("    scp -P PORT ") for line in lines)
    assert f"    wan-train resume {plan.run_id}" in lines
    assert shown(status_lines(make_view(plan, events_of(plan, {}))), 80) == ""


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED])
def test_a_step_has_one_state_name_while_it_runs_and_in_the_result(state: JobState) -> None:
    plan = make_plan()
    view = make_view(plan, events_of(plan, {**CACHED, "train-high": state, "train-low": state}, exit_code=4))
    name = {JobState.SUCCEEDED: "finished"}.get(state, state.value)
    for text in (shown(render(view, NOW, 100), 100), result_text(view)):
        line = next(line for line in text.splitlines() if "train-high" in line)
        assert line.lstrip("✓✗ ").split()[0] == name


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


def test_without_a_gap_one_time_is_told() -> None:
    plan = make_plan()
    view = make_view(plan, events_of(plan, {**CACHED, "train-high": DONE, "train-low": DONE}, exit_code=0))
    assert "of work" not in result_text(view)
