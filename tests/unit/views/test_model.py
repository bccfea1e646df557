from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from support.runs import events_of, make_plan
from views.scenes import CACHED, FAILED, RUNS
from wan_train.base.clock import SystemClock, moment
from wan_train.base.errors import BadInputError
from wan_train.base.files import write_whole
from wan_train.base.host import myself
from wan_train.run.box_ending import Ending, Phase, ask_to_keep, first_process, write_ending
from wan_train.run.directory import RunDirectory
from wan_train.run.duties import Duties, Then, write_duties
from wan_train.run.events import Journal, StepStarted, SupervisorStarted
from wan_train.run.state import JobState
from wan_train.views.model import RunReader


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "20251122-120000-mylora")
    run.path.mkdir()
    run.write_plan(make_plan(run_dir=run.path))
    return run


def test_a_run_that_has_not_begun(run: RunDirectory) -> None:
    view, events = RunReader(run).refresh()
    assert events == []
    assert view.supervisor_alive
    assert view.live is None
    assert {job.state for job in view.state.jobs.values()} == {JobState.WAITING}


@pytest.mark.parametrize("phase", [Phase.ASKED, Phase.CANCELLED])
def test_what_became_of_the_box_before_is_not_said_of_a_run_that_was_given_another_ending(
    run: RunDirectory, tmp_path: Path, phase: Phase
) -> None:
    decided = moment(SystemClock())
    ending = Ending(
        then=Then.STOP,
        runs=(run.run_id,),
        because="the last run is over",
        decided=decided,
        grace_seconds=0,
        due=0,
        phase=phase,
        life=first_process(),
    )
    write_ending(tmp_path, ending)
    write_duties(run, Duties(began=replace(decided, uptime=decided.uptime - 60), then=Then.STOP))
    assert RunReader(run, lease_dir=tmp_path).refresh()[0].ending == ending
    write_duties(run, Duties(began=replace(decided, uptime=decided.uptime + 60), then=Then.STOP))
    assert RunReader(run, lease_dir=tmp_path).refresh()[0].ending is None


def test_an_ending_that_a_person_just_cancelled_is_shown_as_cancelled(run: RunDirectory, tmp_path: Path) -> None:
    ending = Ending(
        then=Then.STOP,
        runs=(run.run_id,),
        because="the last run is over",
        decided=moment(SystemClock()),
        grace_seconds=300,
        due=0,
        life=first_process(),
    )
    write_ending(tmp_path, ending)
    ask_to_keep(tmp_path, ending, by="`wan-train status`")
    shown = RunReader(run, lease_dir=tmp_path).refresh()[0].ending
    assert shown is not None
    assert (shown.phase, shown.cancelled_by) == (Phase.CANCELLED, "`wan-train status`")


def test_each_look_gives_only_what_is_new(run: RunDirectory) -> None:
    reader = RunReader(run)
    history = events_of(make_plan(run_dir=run.path), {"cache-latents": RUNS, "cache-text": RUNS})
    journal = Journal(run.events)
    for event in history:
        journal.append(event)
        view, new = reader.refresh()
        assert new == [event]
    assert reader.refresh()[1] == []
    assert view.state.jobs["cache-text"].state is JobState.RUNNING
    journal.close()


def test_whether_the_supervisor_lives(run: RunDirectory) -> None:
    reader = RunReader(run)
    journal = Journal(run.events)
    journal.append(SupervisorStarted(at=1.0, identity=replace(myself(), start_time=1)))
    assert not reader.refresh()[0].supervisor_alive
    journal.append(SupervisorStarted(at=2.0, identity=myself()))
    assert reader.refresh()[0].supervisor_alive
    journal.close()


def test_a_program_that_outlives_its_supervisor_is_seen(run: RunDirectory) -> None:
    reader = RunReader(run)
    journal = Journal(run.events)
    for event in events_of(make_plan(run_dir=run.path), {**CACHED, "train-high": RUNS, "train-low": RUNS}):
        lives = isinstance(event, StepStarted) and event.step == "train-low"
        journal.append(replace(event, identity=myself()) if lives else event)
    journal.append(SupervisorStarted(at=1.0, identity=replace(myself(), start_time=1)))
    assert reader.refresh()[0].orphans == {"train-low"}
    journal.append(SupervisorStarted(at=2.0, identity=myself()))
    assert reader.refresh()[0].orphans == frozenset()  # its supervisor looks after it
    journal.close()


def test_last_words_of_a_failed_step_are_safe_to_print(run: RunDirectory) -> None:
    journal = Journal(run.events)
    for event in events_of(make_plan(run_dir=run.path), {**CACHED, "train-high": FAILED, "train-low": RUNS}):
        journal.append(event)
    journal.close()
    for step in ("train-high", "train-low"):
        log = run.attempt(step, 1).log
        log.parent.mkdir(parents=True)
        bar = "steps:  1%| | 1/100\rsteps:  2%| | 2/100\n"
        write_whole(log, bar + "".join(f"line {n}\n" for n in range(20)) + "token hf_" + "a" * 30 + " \x1b[2Jend\n")
    tails = RunReader(run).refresh()[0].tails
    assert set(tails) == {"train-high"}
    assert len(tails["train-high"]) == 8
    assert tails["train-high"][-1] == "token [hidden] \\x1b[2Jend"


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is not a run"):
        RunReader(RunDirectory(tmp_path))


def test_text_and_json_need_no_rendering_library() -> None:
    code = (
        "import sys; import wan_train.views.json_records, wan_train.views.event_lines, wan_train.views.summary;"
        "sys.exit('rich' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_curves_are_read_where_they_are_asked_for(run: RunDirectory) -> None:
    journal = Journal(run.events)
    for event in events_of(make_plan(run_dir=run.path), {**CACHED, "train-high": RUNS}):
        journal.append(event)
    journal.close()
    log = run.attempt("train-high", 1).log
    log.parent.mkdir(parents=True)
    write_whole(log, "steps:   1%|  | 1/100 [00:01<00:04,  3.93it/s, avr_loss=0.5]\rsteps:   2%|")
    assert RunReader(run).refresh()[0].losses == {}
    found = RunReader(run, curves=True).refresh()[0].losses
    assert {step: (losses.step, losses.average) for step, losses in found.items()} == {"train-high": (1, 0.5)}
