"""`wan-train clean`: what it offers, and what it must never touch."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from support.runs import OUT_OF_MEMORY, T0, events_of, make_plan
from support.trainers import ScriptedBox
from wan_train.base.errors import WanTrainError
from wan_train.base.settings import Settings
from wan_train.provision.clean import Junk, Kind, find_junk, remove
from wan_train.recipe.model import changed
from wan_train.recipe.terms import EngineKind
from wan_train.run.directory import RunDirectory, all_runs
from wan_train.run.events import Event, Exited, Journal, RetryScheduled, RunResumed, StateSaved, StepExited, StepStarted
from wan_train.run.state import JobState

DONE = dict.fromkeys(("cache-latents", "cache-text", "train-high", "train-low"), JobState.SUCCEEDED)
FAILED = {**DONE, "train-high": JobState.FAILED, "train-low": JobState.FAILED}
NOW = T0 + 100 * 86_400


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return Settings(workspace=tmp_path / "box", runs_dir=tmp_path / "runs")


Make = Callable[..., RunDirectory]


@pytest.fixture
def make(settings: Settings) -> Make:
    def make_run(
        name: str,
        jobs: dict[str, JobState] = DONE,
        *,
        exit_code: int | None = 0,
        engine: EngineKind = EngineKind.MUSUBI,
        history: Sequence[Event] | None = None,
    ) -> RunDirectory:
        run = RunDirectory(settings.runs / name)
        run.path.mkdir(parents=True)
        plan = make_plan(run_dir=run.path, engine=engine)
        run.write_plan(plan)
        journal = Journal(run.events)
        for event in events_of(plan, jobs, exit_code=exit_code) if history is None else history:
            journal.append(event)
        journal.close()
        (run.path / "result.safetensors").write_bytes(bytes(5000))
        return run

    return make_run


def found(settings: Settings, *named: RunDirectory, older_than: float | None = None) -> list[Junk]:
    return find_junk(settings, named=named, older_than=older_than, now=NOW)


def offered(settings: Settings, *named: RunDirectory, older_than: float | None = None) -> set[tuple[Kind, str]]:
    return {(junk.kind, junk.path.name) for junk in found(settings, *named, older_than=older_than)}


def test_without_names_rehearsals_are_offered_and_other_runs_are_not(settings: Settings, make: Make) -> None:
    make("finished")
    make("failed", FAILED, exit_code=4)
    make("rehearsed", engine=EngineKind.REHEARSAL)
    make("running", {"cache-latents": JobState.RUNNING}, exit_code=None)
    make("rehearsing", {"cache-latents": JobState.RUNNING}, exit_code=None, engine=EngineKind.REHEARSAL)
    assert offered(settings) == {(Kind.REHEARSAL, "rehearsed")}


def test_old_runs_are_offered_where_no_lora_came_out(settings: Settings, make: Make) -> None:
    make("finished")
    make("failed", FAILED, exit_code=4)
    make("partly", {**DONE, "train-low": JobState.FAILED}, exit_code=5)
    make("running", {"cache-latents": JobState.RUNNING}, exit_code=None)
    assert offered(settings, older_than=90 * 86_400) == {(Kind.RUN, "failed")}
    assert offered(settings, older_than=101 * 86_400) == set()


def test_a_named_run_goes_whole_and_its_neighbour_stays(settings: Settings, make: Make) -> None:
    run, other = make("finished"), make("finished-too")
    (junk,) = found(settings, run)
    assert (junk.kind, junk.loras) == (Kind.RUN, 2)
    assert junk.bytes >= 5000
    remove(junk, settings)
    assert all_runs(settings.runs) == [other]
    assert [path.name for path in settings.runs.iterdir()] == ["finished-too"]


def test_a_run_that_is_not_over_is_refused_by_name(settings: Settings, make: Make) -> None:
    run = make("running", {"cache-latents": JobState.RUNNING}, exit_code=None)
    with pytest.raises(WanTrainError, match="not finished"):
        found(settings, run)


def test_a_run_whose_files_a_live_one_uses_is_refused(settings: Settings, make: Make) -> None:
    run = make("base")
    other = make("on-top", {"cache-latents": JobState.RUNNING}, exit_code=None)
    plan = other.read_plan()
    spec = plan.recipe.experts[-1]
    spec = replace(spec, training=changed(spec.training, {"network_weights": str(run.path / "result.safetensors")}))
    other.write_plan(replace(plan, recipe=replace(plan.recipe, experts=(*plan.recipe.experts[:-1], spec))))
    with pytest.raises(WanTrainError, match="uses files"):
        found(settings, run)


def test_a_run_that_began_again_since_is_left_alone(settings: Settings, make: Make) -> None:
    run = make("finished")
    (junk,) = found(settings, run)
    with run.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(WanTrainError, match="running again"):
            remove(junk, settings)
    journal = Journal(run.events)
    journal.append(RunResumed(at=NOW))
    journal.close()
    with pytest.raises(WanTrainError, match="not finished any more"):
        remove(junk, settings)
    assert (run.path / "result.safetensors").exists()


def test_of_a_finished_run_the_states_of_earlier_attempts_may_go(settings: Settings, make: Make) -> None:
    plan = make_plan()
    produced = next(step.produces for step in plan.steps if step.id == "train-high")
    begun, *rest = [event for event in events_of(plan, DONE, exit_code=0) if getattr(event, "step", "") == "train-high"]
    assert isinstance(begun, StepStarted)

    def failed(attempt: int, epoch: int) -> list[Event]:
        """An attempt that saved a state and then failed; another follows."""
        name = {"step": "train-high", "attempt": attempt}
        return [
            replace(begun, attempt=attempt),
            StateSaved(at=begun.at, path="x", epoch=epoch, **name),
            StepExited(at=begun.at, exit=Exited(code=1), **name),
            RetryScheduled(at=begun.at, not_before=begun.at, diagnosis=OUT_OF_MEMORY, why="again", **name),
        ]

    third = [replace(event, attempt=3) if hasattr(event, "attempt") else event for event in (begun, *rest)]
    history: list[Event] = []
    for event in events_of(plan, DONE, exit_code=0):
        if getattr(event, "step", "") != "train-high":
            history.append(event)
        elif isinstance(event, StepStarted):
            history += [*failed(1, 4), *failed(2, 8), *third]
    run = make("finished", history=history)
    for attempt in (1, 2, 3):
        state = run.attempt("train-high", attempt).output / f"{produced}-000004-state"
        state.mkdir(parents=True)
        (state / "optimizer.bin").write_bytes(bytes(9000))
        (state.parent / "other.log").write_text("x")
    outside = settings.runs.parent / "outside"
    outside.mkdir()
    (run.attempt("train-high", 1).output / f"{produced}-000008-state").symlink_to(outside)
    junk = found(settings)
    assert [each.path for each in junk] == [run.attempt("train-high", 1).output / f"{produced}-000004-state"]
    remove(junk[0], settings)
    assert not junk[0].path.exists()
    assert outside.is_dir()
    assert (junk[0].path.parent / "other.log").exists()
    assert run.attempt("train-high", 2).output.joinpath(f"{produced}-000004-state").is_dir()


def test_nothing_outside_the_runs_goes(settings: Settings, make: Make, tmp_path: Path) -> None:
    run = make("rehearsed", engine=EngineKind.REHEARSAL)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (run.path / "link").symlink_to(outside)
    elsewhere = tmp_path / "elsewhere"
    run.path.rename(elsewhere)
    (settings.runs / "rehearsed").symlink_to(elsewhere)
    assert offered(settings) == set()
    for named in (RunDirectory(settings.runs / "rehearsed"), RunDirectory(elsewhere)):
        with pytest.raises(WanTrainError, match="not removed"):
            found(settings, named)
    (settings.runs / "rehearsed").unlink()
    elsewhere.rename(run.path)
    (junk,) = found(settings)
    remove(junk, settings)
    assert not run.path.exists()
    assert (outside / "precious").exists()


def test_a_removal_that_was_killed_is_finished_by_the_next(settings: Settings, make: Make) -> None:
    make("finished").path.rename(settings.runs / ".removing-finished")
    assert all_runs(settings.runs) == []
    (junk,) = found(settings)
    assert junk.kind is Kind.HALF
    remove(junk, settings)
    assert list(settings.runs.iterdir()) == []


def test_records_that_cannot_be_read_keep_a_run(settings: Settings, make: Make) -> None:
    run = make("rehearsed", engine=EngineKind.REHEARSAL)
    run.plan.write_text("{")
    assert offered(settings) == set()
    with pytest.raises(WanTrainError, match="cannot be read"):
        found(settings, run)


def test_parts_of_downloads_are_offered_and_go(settings: Settings) -> None:
    part = settings.trainer_dir / "models/vae/.cache/huggingface/download/x.abc.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(5000))
    aside = settings.trainer_dir / "models/vae/wan_2.1_vae.safetensors.bad"
    aside.write_text("the user's")
    (junk,) = found(settings)
    assert junk.kind is Kind.DOWNLOAD
    remove(junk, settings)
    assert not part.exists()
    assert aside.exists()


def test_at_the_command_line(scripted_box: ScriptedBox) -> None:
    assert scripted_box.train().returncode == 0
    run = scripted_box.run()
    (record,) = [json.loads(scripted_box.run_cli("clean", run.name, "--dry-run", "--json").stdout)]
    assert [(item["kind"], item["path"], item["removed"]) for item in record["items"]] == [("run", str(run), False)]
    refused = scripted_box.run_cli("clean", run.name)
    assert refused.returncode == 2
    assert "2 finished LoRAs" in refused.stdout
    assert "--yes" in refused.stderr
    assert run.is_dir()
    assert "nothing to remove" in scripted_box.run_cli("clean", "--yes").stdout
    done = scripted_box.run_cli("clean", run.name, "--yes")
    assert done.returncode == 0
    assert "freed" in done.stdout
    assert scripted_box.run_directories() == []
    assert scripted_box.dataset.is_dir()
