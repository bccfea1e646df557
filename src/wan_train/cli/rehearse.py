"""`wan-train rehearse`: the same pipeline on the embedded tiny trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wan_train.base.errors import NotReadyError
from wan_train.base.settings import Settings
from wan_train.cli.defaults import REHEARSAL_EPOCHS, REHEARSAL_RESOLUTION, REHEARSAL_TITLE
from wan_train.cli.options import ExpertsWord, TaskWord
from wan_train.cli.output import Sink
from wan_train.cli.request import Given
from wan_train.cli.train import train
from wan_train.engine import trainer as trainers
from wan_train.recipe.terms import Attention, EngineKind


def rehearse(
    settings: Settings,
    sink: Sink,
    *,
    dataset: str | None,
    title: str | None,
    author: str | None,
    epochs: int | None,
    resolution: str | None,
    samples: Mapping[str, Any],
    passthrough: tuple[str, ...],
    detach: bool,
) -> int:
    """A run of the rehearsal engine; without a dataset it draws its own eight captioned pictures.

    `samples` are the training settings of the samples, by their recipe names.
    """
    given = Given(
        title=title or REHEARSAL_TITLE,
        author=author,
        dataset=dataset if dataset is not None else str(_drawn_samples(settings)),
        task=TaskWord.T2V,
        experts=ExpertsWord.BOTH,
        recipe=None,
        engine=EngineKind.REHEARSAL,
        changes={"max_train_epochs": epochs or REHEARSAL_EPOCHS, **samples},
        resolution=resolution or REHEARSAL_RESOLUTION,
        batch_size=None,
        repeats=None,
        attention=Attention.AUTO,
        blocks_to_swap="auto",
        passthrough=passthrough,
    )
    return train(given, settings, sink, yes=True, dry_run=False, detach=detach)


def _drawn_samples(settings: Settings) -> Path:
    """A folder with the drawn pictures, made once."""
    trainer = trainers.find(EngineKind.REHEARSAL, settings)
    folder = settings.runs / "rehearsal-pictures"
    if (folder / "dataset.toml").is_file():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotReadyError(
            f"the pictures cannot be drawn into {folder}: {error.strerror}", hint="Choose another --runs-dir."
        ) from error
    trainers.draw_pictures(trainer, folder)
    return folder
