"""Samples while it trains: what was asked for checked, planned, and copied into the run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.files import sync_file, write_whole
from wan_train.base.text import one_line
from wan_train.engine.prompts import SamplePrompt, read_prompts, to_trainer
from wan_train.recipe.model import Recipe, changed
from wan_train.run.directory import RunDirectory
from wan_train.run.plan import Sampling

ROUNDS = 10
"""How often samples are made in a training when nobody says: their cost is the user's, so seldom."""


def read(recipe: Recipe) -> tuple[SamplePrompt, ...]:
    """The prompts that the recipe names, none when it names none; raises BadInputError with every problem."""
    # The settings of samples hold for both experts.
    training = recipe.experts[0].training
    every, epochs = training.sample_every_n_epochs, min(spec.training.max_train_epochs for spec in recipe.experts)
    if training.sample_prompts is None:
        if every is not None or training.sample_at_first:
            raise BadInputError(
                "samples are asked for, but there are no prompts to make them of",
                hint="Name a file with one prompt a line: `--sample-prompts FILE`",
            )
        return ()
    if every is not None and every > epochs:
        raise BadInputError(
            f"samples every {every} epochs would never be made: there are {epochs} epochs",
            hint=f"Give --sample-every a number up to {epochs}.",
        )
    return read_prompts(Path(training.sample_prompts), recipe.task, seed=training.seed)


def planned(recipe: Recipe, prompts: Sequence[SamplePrompt], run: RunDirectory) -> tuple[Recipe, Sampling | None]:
    """The recipe with the run's own copies in place of the user's files, and what is to be made of them."""
    training = recipe.experts[0].training
    if training.sample_prompts is None:
        return recipe, None
    if any(spec.training.mixed_precision == "no" for spec in recipe.experts):
        raise BadInputError(
            "samples need a mixed precision of fp16 or bf16: with `no` the trainer fails at the first one",
            hint="Leave --sample-prompts away, or train with a DiT in fp16 or bf16.",
        )
    every = training.sample_every_n_epochs or max(1, min(s.training.max_train_epochs for s in recipe.experts) // ROUNDS)
    samples = Sampling(
        prompts=tuple(_in_run(run, number, prompt) for number, prompt in enumerate(prompts)),
        every_epochs=every,
        at_first=training.sample_at_first,
        source=Path(training.sample_prompts),
    )
    changes = {"sample_prompts": str(run.sample_prompts), "sample_every_n_epochs": every}
    experts = tuple(replace(spec, training=changed(spec.training, changes)) for spec in recipe.experts)
    return replace(recipe, experts=experts), samples


def write(run: RunDirectory, samples: Sampling, prompts: Sequence[SamplePrompt]) -> None:
    """Copy pictures and prompts into the run, so that later changes of the user's files change nothing.

    Raises NotReadyError when a picture cannot be copied.
    """
    for own, asked in zip(samples.prompts, prompts, strict=True):
        if own.image_path is None or asked.image_path is None:
            continue
        try:
            own.image_path.parent.mkdir(mode=0o700, exist_ok=True)
            shutil.copyfile(asked.image_path, own.image_path)
            sync_file(own.image_path)
        except OSError as error:
            raise NotReadyError(
                f"{one_line(str(asked.image_path))} cannot be copied into the run: {error.strerror or error}",
                hint="See that the picture can be read and the disk has room, then start again.",
            ) from error
    write_whole(run.sample_prompts, to_trainer(samples.prompts))


def _in_run(run: RunDirectory, number: int, prompt: SamplePrompt) -> SamplePrompt:
    if prompt.image_path is None:
        return prompt
    suffix = prompt.image_path.suffix.lower()
    # The trainer looks at the content; an odd suffix is not worth a name in the run.
    suffix = suffix if suffix.isascii() and suffix[1:].isalnum() else ""
    return replace(prompt, image_path=run.sample_picture(number, suffix))
