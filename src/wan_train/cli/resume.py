"""`wan-train resume`: go on where a run was left, whatever ended it."""

from __future__ import annotations

from dataclasses import replace

from wan_train.base.errors import BadInputError, ExitCode, WanTrainError
from wan_train.base.settings import Settings
from wan_train.cli.output import Sink
from wan_train.cli.request import read_gpus, usable_gpus
from wan_train.cli.train import detached
from wan_train.cli.watch import watch
from wan_train.run.control import start_supervisor
from wan_train.run.directory import RunDirectory, all_runs, find
from wan_train.run.disk import check_disk_to_resume
from wan_train.run.plan import Devices, StepKind
from wan_train.run.state import JobState
from wan_train.views.json_records import result_json
from wan_train.views.model import RunReader, RunView


def resume(
    settings: Settings, sink: Sink, name: str | None, *, epochs: int | None, gpus: str | None, detach: bool
) -> int:
    """Go on with one run and watch it. A run that is alive is only watched."""
    run = find(settings.runs, name)
    view, _ = RunReader(run).refresh()
    _check_epochs(view, epochs)
    chosen = _gpus(view, settings, gpus) if gpus is not None else None
    if not view.state.is_over and view.has_supervisor:
        sink.note(f"{run.run_id} is running already.")
    elif _is_done(view) and epochs is None:
        sink.note(f"{run.run_id} is finished: nothing is missing.")
        sink.note(f"Train it longer with: wan-train resume {run.run_id} --epochs N")
        if sink.as_json:
            sink.data(result_json(view))
        return ExitCode.DONE
    else:
        if view.state.is_over:
            check_disk_to_resume(run, view.plan, _trainings_left(view, longer=epochs is not None))
        # A stop that was under way when its supervisor died is taken back: this was asked for later.
        again = view.state.is_over or view.state.is_stopping
        start_supervisor(run, settings, resume=again, epochs=epochs, gpus=chosen)
    if detach:
        return detached(run, sink)
    return watch(run, settings, sink, owner=True)


def resume_all(settings: Settings, sink: Sink) -> int:
    """Give every unfinished run whose supervisor is gone a new one; for the start of a machine.

    Runs that ended, by failing or by somebody's stop, stay as they are. One that cannot go on keeps no other from it.
    """
    code = ExitCode.DONE
    for run in all_runs(settings.runs):
        try:
            view, _ = RunReader(run).refresh()
            if view.state.is_over or view.has_supervisor:
                continue
            start_supervisor(run, settings)
        except WanTrainError as error:
            sink.note(f"{run.run_id} cannot go on:")
            sink.error(error)
            code = error.exit_code
        else:
            _say(run, sink)
    return code


def check_nothing_for_one(name: str | None, *, epochs: int | None, gpus: str | None) -> None:
    """Raises BadInputError when something that only one run can be told stands beside `--all`."""
    given = {"a run's name": name, "--epochs": epochs, "--gpus": gpus}
    found = [word for word, value in given.items() if value is not None]
    if found:
        raise BadInputError(
            f"--all goes on with every unfinished run as it is, so {' and '.join(found)} cannot be given with it",
            hint="Name one run: `wan-train runs` lists them.",
        )


def _say(run: RunDirectory, sink: Sink) -> None:
    if sink.as_json:
        sink.data({"event": "resumed", "run_id": run.run_id})
    else:
        sink.line(f"{run.run_id} goes on; `wan-train attach {run.run_id}` shows it")


def _trainings_left(view: RunView, *, longer: bool) -> int:
    """Trainings that will go on: those without a result, or all of them when the run is made longer."""
    jobs = [view.state.jobs[step.id] for step in view.plan.steps if step.kind is StepKind.TRAIN]
    return sum(longer or job.state is not JobState.SUCCEEDED for job in jobs)


def _is_done(view: RunView) -> bool:
    return all(job.state is JobState.SUCCEEDED for job in view.state.jobs.values())


def _gpus(view: RunView, settings: Settings, gpus: str) -> tuple[str, ...]:
    """UUIDs of the GPUs that were named for a run that is not alive."""
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
    devices = view.plan.devices
    usable = usable_gpus(devices, read_gpus(devices, settings), replace(settings, gpus=gpus))
    return tuple(gpu.uuid for gpu in usable)


def _check_epochs(view: RunView, epochs: int | None) -> None:
    total = view.state.epochs or view.plan.epochs
    if epochs is None:
        return
    if not view.state.is_over:
        raise BadInputError(
            f"{view.run.run_id} is not over, so its {total} epochs cannot be changed now",
            hint=f"Stop it first: wan-train stop {view.run.run_id}",
        )
    if epochs <= total:
        raise BadInputError(
            f"--epochs {epochs} is not more than the {total} epochs of {view.run.run_id}",
            hint="A run can be trained longer, not shorter.",
        )
