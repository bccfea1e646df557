"""What a LoRA file says about itself: musubi-tuner's keys, and that it is only a rehearsal."""

from __future__ import annotations

import argparse
import json
import secrets
import time
from pathlib import Path
from typing import Any

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


def of_training(
    args: argparse.Namespace,
    *,
    optimizer: str,
    datasets: list[dict[str, Any]],
    num_items: int,
    num_batches: int,
    num_epochs: int,
) -> dict[str, str]:
    """What is the same in every checkpoint of one training."""
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


def of_checkpoint(args: argparse.Namespace, training: dict[str, str], *, steps: int, epoch: int) -> dict[str, str]:
    """The metadata of one checkpoint; `--no_metadata` leaves the minimum and the rehearsal mark."""
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
