"""LoRA files and state folders on disk: names, metadata, order of writing, and which old ones are deleted.

As in musubi-tuner, nothing is written atomically. Readers must check that a file is complete.
"""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

logger = logging.getLogger(__name__)

MARK = "REHEARSAL: tiny stand-in model, not for use"
_MINIMUM = (
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)
_FROM_OPTIONS = (
    "output_name",
    "learning_rate",
    "gradient_checkpointing",
    "gradient_accumulation_steps",
    "max_train_steps",
    "lr_warmup_steps",
    "lr_scheduler",
    "network_module",
    "network_dim",
    "network_alpha",
    "network_dropout",
    "mixed_precision",
    "seed",
    "training_comment",
    "max_grad_norm",
    "fp8_base",
    "weighting_scheme",
    "logit_mean",
    "logit_std",
    "mode_scale",
    "guidance_scale",
    "timestep_sampling",
    "sigmoid_scale",
    "discrete_flow_shift",
)


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
        """Save if `--save_every_n_steps` requires it; `epoch` counts finished epochs."""
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
        """Save if `--save_every_n_epochs` requires it. `finish` saves the last epoch instead."""
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
        """Save the last state, if requested, and then the finished LoRA."""
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
    """The epoch whose files are deleted after `epoch` is saved; None while there are at most `keep`."""
    number = None if keep is None else epoch - every * keep
    return number if number is not None and number > 0 else None


def _old_step(step: int, keep: int | None, every: int) -> int | None:
    """The step whose files are deleted after `step` is saved; `keep` counts steps, not checkpoints."""
    if keep is None:
        return None
    number = step - keep - 1
    number -= number % every
    return number if number > 0 else None


def training_metadata(
    args: argparse.Namespace,
    *,
    optimizer: str,
    datasets: list[dict[str, Any]],
    num_items: int,
    num_batches: int,
    num_epochs: int,
) -> dict[str, str]:
    """The metadata that all checkpoints of one training share."""
    values: dict[str, object] = {f"ss_{name}": getattr(args, name) for name in _FROM_OPTIONS}
    values |= {
        "ss_ss_session_id": secrets.randbelow(2**32),
        "ss_training_started_at": time.time(),
        "ss_num_train_items": num_items,
        "ss_num_batches_per_epoch": num_batches,
        "ss_num_epochs": num_epochs,
        "ss_base_model_version": "wan",
        "ss_optimizer": optimizer,
        "ss_full_fp16": False,
        "ss_full_bf16": False,
        "ss_datasets": json.dumps(datasets),
        "ss_rehearsal": MARK,
    }
    if args.network_args:
        values["ss_network_args"] = json.dumps(dict(pair.split("=", 1) for pair in args.network_args))
    for key, path in (("ss_sd_model_name", args.dit), ("ss_vae_name", args.vae)):
        if path is not None:
            values[key] = Path(path).name
    return {key: str(value) for key, value in values.items()}


def checkpoint_metadata(
    args: argparse.Namespace, training: dict[str, str], *, steps: int, epoch: int
) -> dict[str, str]:
    """The metadata of one checkpoint; `--no_metadata` keeps only the minimum and the rehearsal mark."""
    now = time.time()
    if args.no_metadata:
        kept = {key: value for key, value in training.items() if key in (*_MINIMUM, "ss_rehearsal")}
    else:
        kept = training | {
            "ss_training_finished_at": str(now),
            "ss_steps": str(steps),
            "ss_epoch": str(epoch),
        }
    title = args.output_name if args.metadata_title is None else args.metadata_title
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": "wan2.1/lora",
        "implementation": "https://github.com/Wan-Video/Wan2.1",
        "title": title if "REHEARSAL" in title else f"REHEARSAL {title}",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now)),
        "resolution": "1280x720",
        "author": args.metadata_author,
        "description": args.metadata_description,
        "license": args.metadata_license,
        "tags": args.metadata_tags,
    }
    if args.min_timestep is not None or args.max_timestep is not None:
        spec["timestep_range"] = f"{args.min_timestep or 0},{1000 if args.max_timestep is None else args.max_timestep}"
    return kept | {f"modelspec.{key}": value for key, value in spec.items() if value is not None}
