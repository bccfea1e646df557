"""The commands about existing runs. They read records and work after any crash."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wan_train.base import units
from wan_train.base.errors import BadInputError, ExitCode, WanTrainError
from wan_train.base.settings import Settings
from wan_train.base.text import one_line, redact, visible
from wan_train.cli import options, questions
from wan_train.cli.call import Call
from wan_train.cli.duty_options import changes_duties, check_before, duties_of, hand_over
from wan_train.cli.extend import later_ends
from wan_train.cli.output import Result, Sink
from wan_train.cli.price import PriceQuestion, budget_of, require_price
from wan_train.cli.request import usable_gpus
from wan_train.cli.train import detached
from wan_train.cli.watch import watch
from wan_train.engine.log_parser import last_words
from wan_train.launch.launch_directory import launch_that_trains
from wan_train.run.control import StopRequest, request_stop, start_supervisor
from wan_train.run.directory import RunDirectory, all_runs, find
from wan_train.run.disk import check_disk_to_resume
from wan_train.run.duties import Then, read_duties, write_duties
from wan_train.run.events import StopMode
from wan_train.run.plan import Devices, StepKind
from wan_train.run.state import JobState
from wan_train.views import run_status as facts
from wan_train.views.box_end import box_end_texts, box_question
from wan_train.views.json_records import result_json, run_json, status_json
from wan_train.views.model import RunReader, RunView, view_of

_FOLLOW_SECONDS = 0.25
_MOST_BYTES = 10_000_000
_MOST_SECONDS = 1e8
"""About three years, which `time.sleep` still accepts."""


def attach(call: Call) -> Result:
    """Watch a run, finished or not; returns its exit code, or TIMEOUT_EXIT."""
    timeout = call.get(options.TIMEOUT)
    if timeout is not None and not 0 <= timeout < _MOST_SECONDS:  # also refuses nan
        raise BadInputError(
            f"--timeout {timeout:g} is not a time to wait",
            hint=f"Use seconds: 0 to look once, at most {_MOST_SECONDS:g}.",
        )
    run = find(call.settings.runs, call.get(options.RUN))
    _require_here(run, call.settings)
    return watch(run, call.settings, call.sink, owner=False, timeout=timeout)


def status(call: Call) -> Result:
    view = view_of(find(call.settings.runs, call.get(options.RUN)), curves=True, lease_dir=call.settings.lease_dir)

    def text(sink: Sink) -> None:
        from wan_train.views.dashboard import run_lines
        from wan_train.views.result import status_lines

        launch = launch_that_trains(call.settings.runs, view.run.path)
        if launch is not None:
            sink.line("These are the results so far. The run trains on a rented box:")
            sink.line(f"  wan-train launch attach {launch}")
        sink.show(run_lines(view, time.time()))
        sink.show(status_lines(view))

    return Result(data=lambda: status_json(view, time.time()), text=text)


def runs(call: Call) -> Result:
    folder = call.settings.runs
    views = [view_of(run, lease_dir=call.settings.lease_dir) for run in all_runs(folder)]
    now = time.time()

    def text(sink: Sink) -> None:
        from wan_train.views.result import runs_lines

        if views:
            sink.show(runs_lines(views, now))
        else:
            sink.note(f"There are no runs in {folder}. Start one with: wan-train")

    return Result(
        data=lambda: {"event": "runs", "runs_dir": str(folder), "runs": [run_json(view, now) for view in views]},
        text=text,
    )


def logs(call: Call) -> Result:
    """Print the log of a step's newest attempt: no redraws of progress bars, control characters escaped."""
    sink, run = call.sink, find(call.settings.runs, call.get(options.RUN))
    view = view_of(run)
    shown = _log(view, call.get(options.STEP))
    path = shown.path(view)
    sink.note(f"== {path}")
    follower = _LogText(path, offset=max(0, path.stat().st_size - _MOST_BYTES))

    def show(lines: Sequence[str]) -> None:
        for line in lines:
            sink.render(
                Result(
                    data=lambda line=line: shown.line_json(run.run_id, line),  # type: ignore[misc]  # bound in the loop
                    text=lambda sink, line=line: sink.text(line),  # type: ignore[misc]  # the same
                )
            )

    show(follower.new_lines())
    if call[options.FOLLOW]:
        reader = RunReader(run)
        over = False
        while not over:
            time.sleep(_FOLLOW_SECONDS)
            over = reader.refresh()[0].state.is_over  # checked before the log is read, so that no output is missed
            show(follower.new_lines())
    show(follower.last_line())
    return Result()


def stop(call: Call) -> Result:
    sink, now = call.sink, call[options.NOW]
    run = find(call.settings.runs, call.get(options.RUN))
    view = view_of(run)
    if view.state.is_over:
        sink.note(f"{run.run_id} is over already.")
        return Result(data=lambda: result_json(view))
    _require_here(run, call.settings)
    mode = StopMode.NOW if now else StopMode.AFTER_STATE
    request_stop(run, StopRequest(mode=mode, signal=signal.SIGTERM))
    if not view.has_supervisor:
        start_supervisor(run, call.settings)  # the new supervisor ends trainers that outlived the old one
    due = None if now else facts.next_states_in(view, time.time())
    waits = not now and any(job.state.has_process for job in view.state.jobs.values())
    _ask_about_the_box(view, sink)
    sink.note(f"{run.run_id} stops {f'after the next checkpoint, {_due(due)}' if waits else 'now'}.")
    for job in view.state.jobs.values():
        if mode is StopMode.AFTER_STATE and (unusable := facts.unusable_state(job)) is not None:
            where = visible(unusable.path)
            sink.note(f"{job.step}: the last checkpoint is not usable: {one_line(unusable.why)} in {where}")
            sink.note(f"It trains until the next usable one. Stop at once: wan-train stop --now {run.run_id}")
    about = {"run_id": run.run_id, "run_dir": str(run.path), "mode": mode.value}
    return Result(data=lambda: {"event": "stopping", **about, "next_checkpoint_seconds": due})


def _require_here(run: RunDirectory, settings: Settings) -> None:
    """Raise BadInputError for a run on a rented box: it must not train here too; this directory only gets results."""
    launch = launch_that_trains(settings.runs, run.path)
    if launch is not None:
        raise BadInputError(
            f"{run.run_id} is trained on a rented box, by launch {launch}",
            hint=f"Watch it: `wan-train launch attach {launch}`\nEnd it: `wan-train launch stop {launch}`",
        )


def _ask_about_the_box(view: RunView, sink: Sink) -> None:
    """Ask whether the run's box should still end: stopping by hand ends it too, unless the person declines."""
    duties = view.duties
    if duties is None or duties.then is Then.NOTHING or not sink.can_ask:
        return
    if not questions.confirm(box_question(duties.then)):
        write_duties(view.run, replace(duties, then=Then.NOTHING, command=(), max_hours=None))
        sink.note("The box stays on, and costs money.")


def resume(call: Call) -> Result:
    """Resume and watch one run, or resume all runs without a supervisor. A running one is only watched."""
    if call[options.ALL_RUNS]:
        return _resume_all(call)
    run = find(call.settings.runs, call.get(options.RUN))
    _require_here(run, call.settings)
    epochs, gpus = call.get(options.LONGER_TOTAL), call.get(options.OTHER_GPUS)
    budget, question = budget_of(call), PriceQuestion(call.settings)
    until = call.get(options.LATER_END)
    view = view_of(run)
    epochs, ends = later_ends(view, epochs, until)
    is_longer = epochs is not None or bool(ends)
    is_done = _is_done(view) and not is_longer
    # A finished run already had its ending; only a new --then requests another.
    goes_on = not view.state.is_over or (is_done and call.get(options.THEN) is None)
    duties = duties_of(call, read_duties(run), goes_on=goes_on)
    _check_budget(view, budget, question)
    chosen = _gpus(view, call.settings, gpus) if gpus is not None else None
    is_running = not view.state.is_over and view.has_supervisor
    starts = not is_running and not is_done
    if starts and view.state.is_over:
        uses = chosen or view.state.gpu_uuids or view.plan.gpu_uuids
        check_disk_to_resume(run, view.plan, _trainings_left(view, longer=is_longer), gpus=len(uses))
    if changes_duties(call):
        check_before(duties, call)
    if starts or changes_duties(call):
        hand_over(run, duties, call.settings)
    if starts:
        # Cancel a stop that was pending when the supervisor died: this command is newer.
        must_restart = view.state.is_over or view.state.is_stopping
        start_supervisor(run, call.settings, resume=must_restart, epochs=epochs, ends=ends, gpus=chosen, budget=budget)
    elif is_running:
        call.sink.note(f"{run.run_id} is running already.")
    else:
        return _nothing_missing(view, call)
    return detached(run) if call[options.DETACH] else watch(run, call.settings, call.sink, owner=True)


def _nothing_missing(view: RunView, call: Call) -> Result:
    """Return the result for a finished run; its duties may have changed."""
    run_id = view.run.run_id
    call.sink.note(f"{run_id} is finished; there is nothing to resume.")
    if changes_duties(call):
        view = view_of(view.run, lease_dir=call.settings.lease_dir)
        for text, _ in box_end_texts(view):
            call.sink.note(text)
    more = "--until all" if facts.ended_early(view) else "--epochs N"
    call.sink.note(f"Train it longer with: wan-train resume {run_id} {more}")
    return Result(data=lambda: result_json(view))


def _resume_all(call: Call) -> Result:
    """Start a supervisor for every unfinished run without one, for a machine's start-up.

    Failed and stopped runs stay as they are. A run that cannot be resumed does not affect others.
    """
    given = {
        "a run's name": call.get(options.RUN),
        "--epochs": call.get(options.LONGER_TOTAL),
        "--until": call.get(options.LATER_END),
        "--gpus": call.get(options.OTHER_GPUS),
        "--budget": call.get(options.BUDGET),
        "--upload": call.all(options.OTHER_UPLOAD) or None,
        "--upload-with": call.get(options.UPLOAD_WITH),
        "--then": call.get(options.THEN),
        "--max-hours": call.get(options.MAX_HOURS),
        "--grace": call.get(options.GRACE),
        "--notify": call.all(options.NOTIFY) or None,
    }
    found = [word for word, value in given.items() if value is not None]
    if found:
        raise BadInputError(
            f"--all resumes every unfinished run as it is, so {' and '.join(found)} cannot be given with it",
            hint="Name one run: `wan-train runs` lists them.",
        )
    code = ExitCode.DONE
    for run in all_runs(call.settings.runs):
        try:
            view = view_of(run)
            if view.state.is_over or view.has_supervisor or launch_that_trains(call.settings.runs, run.path):
                continue
            start_supervisor(run, call.settings)
        except WanTrainError as error:
            call.sink.note(f"{run.run_id} cannot be resumed:")
            call.sink.error(error)
            code = error.exit_code
        else:
            call.sink.render(_resumed(run.run_id))
    return Result(exit_code=code)


def _resumed(run_id: str) -> Result:
    return Result(
        data=lambda: {"event": "resumed", "run_id": run_id},
        text=lambda sink: sink.line(f"{run_id} is resumed. Watch it with: wan-train attach {run_id}"),
    )


def _trainings_left(view: RunView, *, longer: bool) -> int:
    """Count the trainings to resume: those without a result, or all if the run is made longer."""
    jobs = [view.state.jobs[step.id] for step in view.plan.steps if step.kind is StepKind.TRAIN]
    return sum(longer or job.state is not JobState.SUCCEEDED for job in jobs)


def _is_done(view: RunView) -> bool:
    return all(job.state is JobState.SUCCEEDED for job in view.state.jobs.values())


def _gpus(view: RunView, settings: Settings, gpus: str) -> tuple[str, ...]:
    """Return the UUIDs of the named GPUs; raises BadInputError for a running run, or one on the CPU."""
    if view.has_supervisor and not view.state.is_over:
        raise BadInputError(
            f"{view.run.run_id} is running, so its GPUs cannot be changed now",
            hint=f"Stop it first: wan-train stop {view.run.run_id}",
        )
    if view.plan.devices is Devices.CPU_SLOTS:
        raise BadInputError(
            f"{view.run.run_id} trains on this machine's CPU, so no GPUs can be named for it",
            hint="Leave --gpus out.",
        )
    return tuple(gpu.uuid for gpu in usable_gpus(view.plan.devices, replace(settings, gpus=gpus)))


def _check_budget(view: RunView, budget: float | None, question: PriceQuestion) -> None:
    """Raise BadInputError if the new or earlier budget is spent, or cannot be changed or enforced."""
    name, meter = view.run.run_id, view.state.meter
    if budget is not None and not view.state.is_over:
        raise BadInputError(
            f"{name} is not over, so its budget cannot be changed now",
            hint=f"Stop it first: wan-train stop {name}",
        )
    wanted = budget if budget is not None else view.state.budget
    if wanted is None or not view.state.is_over:
        return
    if meter.per_hour is None:
        require_price(wanted, question.answer())
    if meter.dollars >= wanted or (budget is None and view.state.budget_reached is not None):
        raise BadInputError(
            f"{name} has spent {units.dollars(meter.dollars)} of its budget of {units.dollars(wanted)}",
            hint=f"Give it more in all: wan-train resume {name} --budget {max(1.0, 2 * meter.dollars):.2f}",
        )


def _due(seconds: float | None) -> str:
    return "at an unknown time" if seconds is None else f"in about {units.duration(seconds)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    """The step and attempt whose log is shown."""

    step: str
    attempt: int

    def path(self, view: RunView) -> Path:
        return view.run.attempt(self.step, self.attempt).log

    def line_json(self, run_id: str, text: str) -> dict[str, Any]:
        return {"event": "log", "run_id": run_id, "step": self.step, "attempt": self.attempt, "text": redact(text)}


def _log(view: RunView, step: str | None) -> _Log:
    started = [(job.attempt.started, job) for job in view.state.jobs.values() if job.attempt is not None]
    if step is not None:
        if step not in view.state.jobs:
            raise BadInputError(
                f"{view.run.run_id} has no step {step}", hint=f"Its steps: {', '.join(view.state.jobs)}."
            )
        started = [(at, job) for at, job in started if job.step == step]
    if not started:
        raise BadInputError(
            f"nothing of {step or view.run.run_id} has started yet, so there is no log",
            hint=f"See what it waits for: `wan-train status {view.run.run_id}`.",
        )
    # Running steps first, then the newest.
    _, job = max(started, key=lambda pair: (pair[1].state.has_process, pair[0]))
    assert job.attempt is not None, "filtered above"
    return _Log(step=job.step, attempt=job.attempt.number)


@dataclass(slots=True)
class _LogText:
    """The lines of a growing log for people: only the last state of redrawn bars, no empty lines."""

    path: Path
    offset: int
    _rest: str = ""

    def new_lines(self) -> list[str]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        self.offset += len(data)
        *whole, self._rest = (self._rest + data.decode("utf-8", errors="replace")).split("\n")
        return last_words("\n".join(whole), count=len(whole))

    def last_line(self) -> list[str]:
        """Return the unfinished last line, such as a progress bar."""
        return last_words(self._rest, count=1)
