"""The samples of a run: pictures and clips of its prompts, with the epochs of the whole training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from wan_train.engine.failures import Cause
from wan_train.engine.samples import SampleFile, SampleKind, sample_files
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Setting
from wan_train.run.plan import Plan, Step
from wan_train.run.state import Attempt, Job, RunState

_EVERY = "sample_every_n_epochs"
WITHOUT: Mapping[str, Setting] = {_EVERY: 0}
"""The change of settings with which an attempt makes no samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture or clip of one prompt. `epoch` counts over all attempts; 0 is before the first step.

    `prompt` is the text as the user wrote it: hostile, show it through `printable`. Width and height are pixels.
    """

    step: str
    expert: Expert
    attempt: int
    epoch: int
    prompt_index: int
    prompt: str
    seed: int | None
    path: Path
    kind: SampleKind
    width: int | None = None
    height: int | None = None


def samples_of(run: RunDirectory, plan: Plan, state: RunState) -> tuple[Sample, ...]:
    """Every sample that belongs to what was trained in the end: by expert in plan order, epoch, prompt.

    Reads directories and a few bytes of each file. Left out: files not written to their end, and samples of epochs
    that a later attempt made anew, since it went on from an older state.
    """
    return tuple(
        sample
        for step in plan.steps
        if step.expert is not None and (job := state.jobs.get(step.id)) is not None
        for sample in sorted(_of_step(run, plan, step, step.expert, job), key=lambda s: (s.epoch, s.prompt_index))
    )


def sample_every(plan: Plan, attempt: Attempt) -> int:
    """Epochs of an attempt between its samples, 0 for one that makes none."""
    every = plan.samples.every_epochs if plan.samples is not None else 0
    return int(attempt.changes.get(_EVERY, every))


def given_up(job: Job) -> Attempt | None:
    """The attempt whose samples failed, so that the later ones make none; its diagnosis says why."""
    return next((a for a in job.attempts if a.diagnosis is not None and a.diagnosis.cause is Cause.SAMPLING), None)


def _of_step(run: RunDirectory, plan: Plan, step: Step, expert: Expert, job: Job) -> Iterator[Sample]:
    prompts = plan.samples.prompts if plan.samples is not None else ()
    seen: set[tuple[int, int]] = set()
    for position, attempt in enumerate(job.attempts):
        # What a later attempt went on from is the last of this one that counts.
        limits = [later.epochs_before for later in job.attempts[position + 1 :]]
        last = min([*limits, attempt.total_epochs or plan.epochs_of(expert)])
        for file in sample_files(run.attempt(step.id, attempt.number).output, step.produces or ""):
            epoch = attempt.epochs_before + file.epoch
            place = (epoch, file.prompt_index)
            if epoch > last or place in seen or file.prompt_index >= len(prompts):
                continue
            seen.add(place)
            prompt = prompts[file.prompt_index]
            width, height = file.size or (prompt.width, prompt.height)
            yield Sample(
                step=step.id,
                expert=expert,
                attempt=attempt.number,
                epoch=epoch,
                prompt_index=file.prompt_index,
                prompt=prompt.prompt,
                seed=_seed(file, prompt.seed),
                path=file.path,
                kind=file.kind,
                width=width,
                height=height,
            )


def _seed(file: SampleFile, asked: int) -> int:
    return asked if file.seed is None else file.seed
