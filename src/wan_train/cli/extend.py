"""`wan-train resume --epochs` and `--until`: train a run's experts longer."""

from __future__ import annotations

from collections.abc import Mapping

from wan_train.base.errors import BadInputError
from wan_train.recipe.until import read
from wan_train.run.end_epochs import NoSuchEndError, end_of
from wan_train.run.plan import Step
from wan_train.run.state import JobState
from wan_train.views import run_status as facts
from wan_train.views.model import RunView


def later_ends(view: RunView, epochs: int | None, until: str | None) -> tuple[int | None, Mapping[str, int]]:
    """Return a larger total for the schedules, or by step the later end epoch within the current schedule.

    Raises BadInputError if nothing would train longer.
    """
    if epochs is None and until is None:
        return None, {}
    if epochs is not None and until is not None:
        raise BadInputError(
            "--epochs and --until cannot be given together",
            hint="--epochs trains to a larger total, --until to a later end of the same schedule.",
        )
    run_id, given = view.run.run_id, f"--epochs {epochs}" if epochs is not None else f"--until {until}"
    if not view.state.is_over:
        raise BadInputError(
            f"{run_id} is not over, so {given} cannot be given now", hint=f"Stop it first: wan-train stop {run_id}"
        )
    return _larger_total(view, epochs) if epochs is not None else (None, _later_ends(view, str(until)))


def _larger_total(view: RunView, epochs: int) -> tuple[int | None, Mapping[str, int]]:
    run_id, total = view.run.run_id, view.state.total_epochs(view.plan)
    schedules = {step.id: view.state.schedule_epochs(view.plan, step) for step in _trainings(view)}
    if epochs <= total:
        raise BadInputError(
            f"--epochs {epochs} is not more than the {total} epochs of {run_id}",
            hint="A run can be trained longer, not shorter.",
        )
    if epochs > max(schedules.values()):
        return epochs, {}
    if all(epochs == each for each in schedules.values()):
        return None, schedules
    raise BadInputError(
        f"--epochs {epochs} is not more than the {max(schedules.values())} epochs of the learning rate of {run_id}",
        hint=f"Train on under the same learning rate: wan-train resume {run_id} --until {epochs}",
    )


def _later_ends(view: RunView, text: str) -> Mapping[str, int]:
    until, problem = read(text)
    if until is None:
        raise BadInputError(f"--until {problem}", hint="Name an epoch, or train the rest with --until all.")
    ends, problems, grows = {}, [], False
    for step in _trainings(view):
        assert step.expert is not None, "a training"
        total, job = view.state.schedule_epochs(view.plan, step), view.state.jobs[step.id]
        try:
            end = end_of(
                until,
                view.plan.training(step.expert),
                total=total,
                steps_per_epoch=facts.steps_per_epoch(view, step),
                capabilities=view.plan.trainer.capabilities,
            )
        except NoSuchEndError as error:
            problems.append(f"{step.id}: --until {until}: {error}")
            continue
        done = _epochs_done(view, step)
        if job.state is JobState.SUCCEEDED:
            # A finished training that already has as many epochs stays as it is.
            ends[step.id] = max(end, done)
            grows = grows or end > done
        elif end <= done:
            problems.append(f"{step.id}: its checkpoint already has {done} epochs, and --until {until} ends at {end}")
        else:
            ends[step.id] = end
            grows = True
    if not problems and not grows:
        raise BadInputError(
            f"every training of {view.run.run_id} already has the epochs of --until {until}",
            hint=_instead(view),
        )
    if problems:
        listing = "".join(f"\n  {each}" for each in problems)
        raise BadInputError(f"{view.run.run_id} cannot be trained to that end:{listing}", hint=_instead(view))
    return ends


def _instead(view: RunView) -> str:
    """Return a hint on how to train the run longer; it cannot be made shorter."""
    run_id = view.run.run_id
    if any(_epochs_done(view, step) < view.state.schedule_epochs(view.plan, step) for step in _trainings(view)):
        return f"Train all epochs of its schedule: wan-train resume {run_id} --until all"
    longer_total = 2 * view.state.total_epochs(view.plan)
    return f"Train longer, with a longer schedule: wan-train resume {run_id} --epochs {longer_total}"


def _trainings(view: RunView) -> list[Step]:
    return [step for step in view.plan.steps if step.expert is not None]


def _epochs_done(view: RunView, step: Step) -> int:
    """Return the epochs of the finished LoRA, or of the checkpoint to resume from."""
    job = view.state.jobs[step.id]
    if job.state is JobState.SUCCEEDED:
        return (job.result.epochs if job.result is not None else None) or view.state.total_epochs(view.plan, step)
    saved = facts.newest_state(job)
    return saved.epoch if saved is not None else 0
