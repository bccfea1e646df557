"""A preview request: what to draw, how (`--fast` draws with Lightning in four steps), and from which run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.files import sha256_of
from wan_train.base.text import one_line
from wan_train.engine import lightning
from wan_train.engine.tensors import BrokenFileError
from wan_train.engine.trainer import Trainer
from wan_train.preview.model import (
    Lora,
    Solver,
)
from wan_train.recipe.terms import Expert, Task
from wan_train.run.directory import RunDirectory
from wan_train.run.picks import Epochs
from wan_train.run.plan import Plan
from wan_train.run.state import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewRequest:
    """What the user requested. None means automatic. `pairs` and `files` add rows to those of `epochs`."""

    prompts: Path | None
    """None: the prompts that the run drew last, or those given for its end."""
    epochs: tuple[int, ...] | None = None
    pairs: tuple[Epochs, ...] = ()
    files: Mapping[Expert, Path] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    frames: int | None = None
    steps: int | None = None
    seed: int | None = None
    strength: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How all cells are drawn if not in the trainer's default way. `merged` LoRAs apply to every row."""

    solver: Solver = Solver.UNIPC
    uses_guidance: bool = True
    steps: int | None = None
    shift: float | None = None
    merged: Mapping[Expert, Lora] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The run to draw, in its current state."""

    run: RunDirectory
    plan: Plan
    state: RunState


def fast_style(task: Task, trainer: Trainer, *, say: Callable[[str], None] = lambda _: None) -> Style:
    """Raise BadInputError for the rehearsal, and NotReadyError if Lightning is missing, damaged or not writable."""
    if not trainer.is_real:
        raise BadInputError(
            "--fast draws with Lightning, which fits Wan 2.2 alone", hint="Leave --fast out for a rehearsal."
        )
    files = lightning.installed(task, trainer.root)
    say("Checking Lightning …")
    merged: dict[Expert, Lora] = {}
    for expert, file in files.items():
        try:
            path = lightning.converted(file)
        except BrokenFileError as error:
            raise NotReadyError(error.message, hint=error.hint or lightning.VERIFY) from error
        except OSError as error:
            raise NotReadyError(
                f"{one_line(str(file.parent))} cannot be written: {error.strerror}",
                hint="Free some disk space: wan-train clean",
            ) from error
        merged[expert] = Lora(path=path, sha256=sha256_of(path))
    return Style(
        solver=Solver.VANILLA, uses_guidance=False, steps=lightning.STEPS, shift=lightning.SHIFT, merged=merged
    )
