"""LoRA files and state folders on disk: names, order of writing, and which old ones go.

Nothing is written atomically, because musubi-tuner does not either: whoever reads these files has to
judge them.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """Saves checkpoints and states of one training. `save_lora` writes a file for (path, steps, epoch)."""

    args: argparse.Namespace
    accelerator: Accelerator
    save_lora: Callable[[Path, int, int], None]

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)

    def after_step(self, step: int, epoch: int) -> None:
        """Save when `--save_every_n_steps` says so; `epoch` counts finished epochs."""
        every = self.args.save_every_n_steps
        if every is None or step % every:
            return
        self._checkpoint(f"{self.args.output_name}-step{step:08d}", step, epoch)
        keep = self.args.save_last_n_steps
        if self.args.save_state:
            self._state(f"{self.args.output_name}-step{step:08d}-state", f"saving state at step {step}")
            self._drop_state(_old_step(step, self.args.save_last_n_steps_state or keep, every), "step{:08d}")
        self._drop_checkpoint(_old_step(step, keep, every), "step{:08d}")

    def after_epoch(self, epoch: int, *, steps: int, epochs: int) -> None:
        """Save when `--save_every_n_epochs` says so; the last epoch is saved by `finish` instead."""
        every = self.args.save_every_n_epochs
        if every is None or epoch % every or epoch >= epochs:
            return
        self._checkpoint(f"{self.args.output_name}-{epoch:06d}", steps, epoch)
        keep = self.args.save_last_n_epochs
        self._drop_checkpoint(_old_epoch(epoch, keep, every), "{:06d}")
        if self.args.save_state:
            self._state(f"{self.args.output_name}-{epoch:06d}-state", f"saving state at epoch {epoch}")
            self._drop_state(_old_epoch(epoch, self.args.save_last_n_epochs_state or keep, every), "{:06d}")

    def finish(self, *, steps: int, epochs: int) -> None:
        """The last state, when one is asked for, and then the finished LoRA."""
        if self.args.save_state or self.args.save_state_on_train_end:
            self._state(f"{self.args.output_name}-state", "saving last state.")
        self._checkpoint(self.args.output_name, steps, epochs)
        logger.info("model saved.")

    def _checkpoint(self, name: str, steps: int, epoch: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.safetensors"
        self.accelerator.print(f"\nsaving checkpoint: {path}")
        self.save_lora(path, steps, epoch)

    def _state(self, name: str, said: str) -> None:
        logger.info("")
        logger.info("%s", said)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.save_state(str(self.folder / name))

    def _drop_checkpoint(self, number: int | None, suffix: str) -> None:
        if number is None:
            return
        path = self.folder / f"{self.args.output_name}-{suffix.format(number)}.safetensors"
        if path.exists():
            self.accelerator.print(f"removing old checkpoint: {path}")
            path.unlink()

    def _drop_state(self, number: int | None, suffix: str) -> None:
        if number is None:
            return
        path = self.folder / f"{self.args.output_name}-{suffix.format(number)}-state"
        if path.exists():
            logger.info("removing old state: %s", path)
            shutil.rmtree(path)


def _old_epoch(epoch: int, keep: int | None, every: int) -> int | None:
    """The epoch whose files go after `epoch` is saved, none while there are not more than `keep`."""
    number = None if keep is None else epoch - every * keep
    return number if number is not None and number > 0 else None


def _old_step(step: int, keep: int | None, every: int) -> int | None:
    """The step whose files go after `step` is saved; `keep` counts steps, not checkpoints."""
    if keep is None:
        return None
    number = step - keep - 1
    number -= number % every
    return number if number > 0 else None
