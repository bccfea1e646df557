"""Samples made during training: check, plan and copy their inputs into the run, and list those made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.files import copy_whole, write_whole
from wan_train.base.text import one_line
from wan_train.engine.failures import Cause
from wan_train.engine.sample_files import SampleFile, SampleKind, sample_files
from wan_train.engine.sample_prompts import SamplePrompt, read_prompts, to_trainer
from wan_train.recipe.model import Recipe, changed
from wan_train.recipe.terms import Expert
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Setting
from wan_train.run.plan import Plan, Sampling, Step
from wan_train.run.state import Attempt, Job, RunState

_EVERY = "sample_every_n_epochs"
WITHOUT: Mapping[str, Setting] = {_EVERY: 0}
"""The settings change that turns off an attempt's samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture or clip of one prompt. `epoch` counts over all attempts; 0 is before the first step.

    `prompt` is the user's text and untrusted: show it through `printable`. Width and height are pixels.
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
    """Return every sample of the final training, ordered by expert (plan order), epoch and prompt.

    Reads directories and a few bytes of each file. Left out: incomplete files, and samples of epochs that a later
    attempt trained again from an older state.
    """
    return tuple(
        sample
        for step in plan.steps
        if step.expert is not None and (job := state.jobs.get(step.id)) is not None
        for sample in sorted(_of_step(run, plan, step, step.expert, job), key=lambda s: (s.epoch, s.prompt_index))
    )


def sample_every(plan: Plan, attempt: Attempt) -> int:
    """Return the epochs between an attempt's samples, 0 if it makes none."""
    every = plan.samples.every_epochs if plan.samples is not None else 0
    return int(attempt.changes.get(_EVERY, every))


def given_up(job: Job) -> Attempt | None:
    """Return the attempt whose samples failed, if any. Later attempts make none; its diagnosis says why."""
    return next((a for a in job.attempts if a.diagnosis is not None and a.diagnosis.cause is Cause.SAMPLING), None)


def _of_step(run: RunDirectory, plan: Plan, step: Step, expert: Expert, job: Job) -> Iterator[Sample]:
    prompts = plan.samples.prompts if plan.samples is not None else ()
    seen: set[tuple[int, int]] = set()
    for position, attempt in enumerate(job.attempts):
        # Epochs after the one a later attempt resumed from do not count.
        limits = [later.epochs_before for later in job.attempts[position + 1 :]]
        last = min([*limits, attempt.wanted_epochs(plan, step)])
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


ROUNDS = 10
"""Default number of sample rounds in a training: few, because they take the user's time."""


def read_sample_prompts(recipe: Recipe) -> tuple[SamplePrompt, ...]:
    """Return the prompts of the recipe's prompt file, if any; raises BadInputError with every problem."""
    # Both experts have the same sample settings.
    training = recipe.experts[0].training
    every, epochs = training.sample_every_n_epochs, min(spec.training.max_train_epochs for spec in recipe.experts)
    if training.sample_prompts is None:
        if every is not None or training.sample_at_first:
            raise BadInputError(
                "samples are requested, but there are no prompts",
                hint="Add `--sample-prompts FILE`, with one prompt per line.",
            )
        return ()
    if every is not None and every > epochs:
        raise BadInputError(
            f"samples every {every} epochs would never be made: there are {epochs} epochs",
            hint=f"Use --sample-every {epochs} or less.",
        )
    return read_prompts(Path(training.sample_prompts), recipe.task, seed=training.seed)


def plan_samples(
    recipe: Recipe, prompts: Sequence[SamplePrompt], run: RunDirectory, *, ends: Mapping[str, int]
) -> tuple[Recipe, Sampling | None]:
    """Return the recipe with the run's own copies in place of the user's files, and the samples to make.

    `ends` has the last epochs of experts that end early, by the value of Expert.
    """
    training = recipe.experts[0].training
    if training.sample_prompts is None:
        return recipe, None
    if any(spec.training.mixed_precision == "no" for spec in recipe.experts):
        raise BadInputError(
            "samples need a mixed precision of fp16 or bf16: with `no` the trainer fails at the first one",
            hint="Leave out --sample-prompts, or train with a DiT in fp16 or bf16.",
        )
    trained = min(ends.get(spec.expert.value, spec.training.max_train_epochs) for spec in recipe.experts)
    every = training.sample_every_n_epochs or max(1, trained // ROUNDS)
    samples = Sampling(
        prompts=tuple(_with_copy(prompt, partial(run.sample_picture, number)) for number, prompt in enumerate(prompts)),
        every_epochs=every,
        at_first=training.sample_at_first,
        source=Path(training.sample_prompts),
    )
    changes = {"sample_prompts": str(run.sample_prompts), "sample_every_n_epochs": every}
    experts = tuple(replace(spec, training=changed(spec.training, changes)) for spec in recipe.experts)
    return replace(recipe, experts=experts), samples


def write_samples(run: RunDirectory, samples: Sampling, prompts: Sequence[SamplePrompt]) -> None:
    """Copy pictures and prompts into the run, so that later changes to the user's files have no effect.

    Raises NotReadyError when a picture cannot be copied.
    """
    _copy_pictures(samples.prompts, prompts)
    write_whole(run.sample_prompts, to_trainer(samples.prompts))


def write_preview(run: RunDirectory, prompts: Sequence[SamplePrompt]) -> None:
    """Do the same for the prompts of the preview, drawn at the end."""
    own = tuple(_with_copy(prompt, partial(run.preview_picture, number)) for number, prompt in enumerate(prompts))
    _copy_pictures(own, prompts)
    write_whole(run.preview_prompts, to_trainer(own))


def _copy_pictures(copies: Sequence[SamplePrompt], prompts: Sequence[SamplePrompt]) -> None:
    for own, asked in zip(copies, prompts, strict=True):
        if own.image_path is None or asked.image_path is None:
            continue
        try:
            own.image_path.parent.mkdir(mode=0o700, exist_ok=True)
            copy_whole(asked.image_path, own.image_path)
        except OSError as error:
            raise NotReadyError(
                f"{one_line(str(asked.image_path))} cannot be copied into the run: {error.strerror or error}",
                hint="Check that the picture is readable and the disk has free space, then start again.",
            ) from error


def _with_copy(prompt: SamplePrompt, place: Callable[[str], Path]) -> SamplePrompt:
    if prompt.image_path is None:
        return prompt
    return replace(prompt, image_path=place(suffix_of_copy(prompt.image_path)))


def suffix_of_copy(picture: Path) -> str:
    """Return the suffix for a picture's copy. The trainer looks at the content, so an unusual one is dropped."""
    suffix = picture.suffix.lower()
    return suffix if suffix.isascii() and suffix[1:].isalnum() else ""
