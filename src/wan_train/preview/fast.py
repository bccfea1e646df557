"""Drawing in four steps: Lightning's LoRAs under every row."""

from __future__ import annotations

from collections.abc import Callable

from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.files import sha256_of
from wan_train.base.text import one_line
from wan_train.engine import lightning
from wan_train.engine.tensors import BrokenFileError
from wan_train.engine.trainer import Trainer
from wan_train.preview.ask import Style
from wan_train.preview.model import Lora, Solver
from wan_train.recipe.terms import Expert, Task


def fast_style(task: Task, trainer: Trainer, *, say: Callable[[str], None] = lambda _: None) -> Style:
    """Raises BadInputError for the rehearsal, and NotReadyError where Lightning is missing, damaged or not writable."""
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
