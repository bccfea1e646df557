"""Checkpoints and states, with the real names and the real order of writing and removal."""

from __future__ import annotations

import argparse
import io
import json
import math
import shutil
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

from scripted_faults import Faults
from scripted_program import log, safetensors, say, write_in_pieces


class Position:
    """The LoRA's own progress. A resumed process continues it, but counts from 1 again."""

    def __init__(self, steps: int = 0, epochs: int = 0) -> None:
        self.steps = steps
        self.epochs = epochs


class Keeper(NamedTuple):
    """Saves for one training."""

    options: argparse.Namespace
    faults: Faults
    batches: int

    @property
    def folder(self) -> Path:
        return Path(self.options.output_dir)

    def after_epoch(self, epoch: int, position: Position) -> None:
        """Save what is due. `epoch` is this process's own count; `finish` writes the last epoch's files."""
        options = self.options
        every = options.save_every_n_epochs
        if not every or epoch % every or epoch >= options.max_train_epochs:
            return
        self._lora(f"{options.output_name}-{epoch:06d}", epoch, position)
        self._remove(epoch, options.save_last_n_epochs, "{}-{:06d}.safetensors", "removing old checkpoint")
        if options.save_state:
            self._state(f"{options.output_name}-{epoch:06d}-state", f"saving state at epoch {epoch}", position)
            kept = options.save_last_n_epochs_state or options.save_last_n_epochs
            self._remove(epoch, kept, "{}-{:06d}-state", "removing old state")

    def after_step(self, step: int, position: Position) -> None:
        """Save what is due. `step` is this process's own count. Nothing removes these files."""
        every = self.options.save_every_n_steps
        if not every or step % every:
            return
        name = f"{self.options.output_name}-step{step:08d}"
        self._lora(name, step // self.batches, position)
        if self.options.save_state:
            self._state(f"{name}-state", f"saving state at step {step}", position)

    def finish(self, position: Position) -> None:
        options = self.options
        if options.save_state or options.save_state_on_train_end:
            self._state(f"{options.output_name}-state", "saving last state.", position)
        if "no_output_file" in self.faults:
            return
        path = self._lora(options.output_name, options.max_train_epochs, position)
        if "truncated_lora" in self.faults:
            path.write_bytes(path.read_bytes()[:-100])
        log("musubi_tuner.hv_train_network", "model saved.")

    def _lora(self, name: str, epoch: int, position: Position) -> Path:
        path = self.folder / f"{name}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        say(f"\nsaving checkpoint: {path}")
        write_in_pieces(path, safetensors(self._values(position), self._metadata(epoch, position)))
        return path

    def _values(self, position: Position) -> list[float]:
        if "nan" in self.faults:
            return [1.0, math.nan] * 32
        return [math.sin(position.steps + index) for index in range(64)]

    def _metadata(self, epoch: int, position: Position) -> dict[str, str]:
        options = self.options
        return {
            "modelspec.architecture": "wan2.1/lora",
            "modelspec.author": str(options.metadata_author),
            "modelspec.title": str(options.metadata_title),
            "modelspec.timestep_range": f"{options.min_timestep},{options.max_timestep}",
            "ss_base_model_version": "wan",
            "ss_network_module": options.network_module,
            "ss_network_dim": str(options.network_dim),
            "ss_network_alpha": str(options.network_alpha),
            "ss_output_name": options.output_name,
            "ss_sd_model_name": Path(options.dit).name,
            "ss_steps": str(epoch * self.batches),
            "ss_epoch": str(epoch),
            "ss_training_finished_at": str(time.time()),
            "scripted_epochs_in_all": str(position.epochs),
        }

    def _state(self, name: str, said: str, position: Position) -> None:
        log("musubi_tuner.utils.train_utils", "")
        log("musubi_tuner.utils.train_utils", said)
        folder = self.folder / name
        log("accelerate.accelerator", f"Saving current state to {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        write_in_pieces(folder / "model.safetensors", safetensors(self._values(position), {"format": "pt"}, "F32"))
        log("accelerate.checkpointing", f"Model weights saved in {folder / 'model.safetensors'}")
        # As in the real trainer, accelerate has no scheduler to save for a schedule-free optimizer.
        is_schedule_free = (self.options.optimizer_type or "").lower().endswith("schedulefree")
        names = ["optimizer.bin", *([] if is_schedule_free else ["scheduler.bin"])]
        names += ["scaler.pt"] if self.options.mixed_precision == "fp16" else []
        for file in [*names, *([] if "half_state" in self.faults else ["random_states_0.pkl"])]:
            write_in_pieces(folder / file, _archive({"steps": position.steps, "epochs": position.epochs}))
            log("accelerate.checkpointing", f"State saved in {folder / file}")

    def _remove(self, epoch: int, kept: int | None, pattern: str, said: str) -> None:
        old = epoch - self.options.save_every_n_epochs * kept if kept else 0
        path = self.folder / pattern.format(self.options.output_name, old)
        if old > 0 and path.exists():
            say(f"{said}: {path}")
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_state(folder: Path) -> Position:
    """Return the hidden position that a state continues."""
    with zipfile.ZipFile(folder / "optimizer.bin") as archive:
        data = json.loads(archive.read("archive/data.json"))
    return Position(**data)


def _archive(data: dict[str, int]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.json", json.dumps(data))
    return buffer.getvalue()
