"""Command lines of the three programs, with musubi-tuner's option names, defaults and log.

Options that only matter to a 14B model (memory, compilation, uploads) are accepted and have no effect. The
trainer lists those it was given in one log line. An unknown option ends the program with exit code 2, as in
argparse.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

_RANK = "[RANK 0] "

NO_EFFECT_FLAGS = (
    "async_upload",
    "block_swap_h2d_only",
    "compile",
    "compile_fullgraph",
    "cuda_allow_tf32",
    "cuda_cudnn_benchmark",
    "ddp_gradient_as_bucket_view",
    "ddp_static_graph",
    "disable_numpy_memmap",
    "dynamo_dynamic",
    "dynamo_fullgraph",
    "force_v2_1_time_embedding",
    "fp8_base",
    "fp8_scaled",
    "fp8_t5",
    "gradient_checkpointing",
    "gradient_checkpointing_cpu_offload",
    "img_in_txt_in_offloading",
    "log_config",
    "offload_inactive_dit",
    "persistent_data_loader_workers",
    "resume_from_huggingface",
    "save_state_to_huggingface",
    "split_attn",
    "use_pinned_memory_for_block_swap",
    "vae_cache_cpu",
)
NO_EFFECT_VALUES = (
    "blocks_to_swap",
    "block_swap_ring_size",
    "clip",
    "compile_backend",
    "compile_cache_size_limit",
    "compile_dynamic",
    "compile_mode",
    "ddp_timeout",
    "dynamo_backend",
    "dynamo_mode",
    "huggingface_path_in_repo",
    "huggingface_repo_id",
    "huggingface_repo_type",
    "huggingface_repo_visibility",
    "huggingface_token",
    "log_tracker_config",
    "lr_decay_steps",
    "lr_scheduler_timescale",
    "lr_scheduler_type",
    "max_data_loader_n_workers",
    "metadata_arch",
    "metadata_reso",
    "num_timestep_buckets",
    "sample_every_n_steps",
    "scale_weight_norms",
    "vae_dtype",
    "wandb_api_key",
    "wandb_run_name",
)
# Parsed with the trainer's types, which wan-train reads from this parser. None of SCHEDULES has a lowest rate.
NO_EFFECT_TYPED = ("lr_scheduler_min_lr_ratio", "network_args")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
ATTENTION_FLAGS = ("sdpa", "xformers", "flash_attn", "flash3")
# Not logged, because every command has them.
_UNREMARKABLE = frozenset({"max_data_loader_n_workers", "gradient_checkpointing", "persistent_data_loader_workers"})


def int_or_float(value: str) -> int | float:
    """A number of steps, or, below one, a share of all steps.

    Raises:
        argparse.ArgumentTypeError: not a number.
    """
    try:
        return int(value)
    except ValueError:
        try:
            return float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value} is not an int or float") from None


def latents_parser() -> argparse.ArgumentParser:
    """Options of `wan_cache_latents.py`."""
    parser = _caching_parser("Cache latents of a dataset with the rehearsal's tiny encoder.")
    parser.add_argument("--vae", help="named in the log; the tiny encoder needs no file")
    parser.add_argument("--vae_dtype")
    parser.add_argument("--vae_cache_cpu", action="store_true")
    parser.add_argument("--clip")
    parser.add_argument("--i2v", action="store_true", help="also cache the latent of the first frame")
    parser.add_argument("--disable_cudnn_backend", action="store_true")
    return parser


def text_parser() -> argparse.ArgumentParser:
    """Options of `wan_cache_text_encoder_outputs.py`."""
    parser = _caching_parser("Cache text-encoder outputs of a dataset with the rehearsal's tiny text encoder.")
    parser.add_argument("--t5", required=True, help="named in the log; the tiny text encoder needs no file")
    parser.add_argument("--fp8_t5", action="store_true")
    return parser


def _caching_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dataset_config", required=True)
    parser.add_argument("--device")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--num_workers", type=int)
    parser.add_argument("--skip_existing", action="store_true")
    parser.add_argument("--keep_cache", action="store_true")
    return parser


def training_parser() -> argparse.ArgumentParser:
    """Options of `wan_train_network.py`."""
    parser = argparse.ArgumentParser(description="Train LoRA adapters of the rehearsal's tiny DiT.")
    add = parser.add_argument
    add("--config_file", help="TOML file with options; the command line wins")
    add(
        "--task",
        default="t2v-14B",
        choices=["t2v-A14B", "i2v-A14B", "t2v-14B", "i2v-14B", "t2v-1.3B", "t2i-14B"],
    )
    for name in (
        "dit",
        "vae",
        "t5",
        "dataset_config",
        "output_dir",
        "output_name",
        "resume",
        "network_weights",
    ):
        add(f"--{name}")
    for name in ATTENTION_FLAGS:
        add(f"--{name}", action="store_true")
    add("--mixed_precision", default="no", choices=["no", "fp16", "bf16"])
    add("--save_precision", choices=["float", "fp32", "fp16", "bf16"])
    add("--seed", type=int)

    add("--network_module")
    add("--network_dim", type=int)
    add("--network_alpha", type=float, default=1)
    add("--network_dropout", type=float)
    add("--network_args", nargs="*")

    add("--optimizer_type", default="", type=str.lower, choices=["adamw", "adamw8bit"])
    add("--optimizer_args", nargs="*")
    add("--learning_rate", type=float, default=2.0e-6)
    add("--max_grad_norm", type=float, default=1.0)
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--lr_scheduler", default="constant", choices=SCHEDULES)
    add("--lr_scheduler_args", nargs="*")
    add("--lr_scheduler_num_cycles", type=int, default=1)
    add("--lr_scheduler_power", type=float, default=1)
    add("--lr_scheduler_min_lr_ratio", type=float)
    add("--lr_warmup_steps", type=int_or_float, default=0)

    add("--timestep_sampling", default="sigma", choices=["sigma", "uniform", "sigmoid", "shift"])
    add("--weighting_scheme", default="none", choices=["none"])
    add("--discrete_flow_shift", type=float, default=1.0)
    add("--sigmoid_scale", type=float, default=1.0)
    add("--min_timestep", type=int)
    add("--max_timestep", type=int)
    add("--preserve_distribution_shape", action="store_true")
    for name, default in (
        ("logit_mean", 0.0),
        ("logit_std", 1.0),
        ("mode_scale", 1.29),
        ("guidance_scale", 1.0),
    ):
        add(f"--{name}", type=float, default=default)

    add("--max_train_steps", type=int, default=1600)
    add("--max_train_epochs", type=int)
    for name in (
        "save_every_n_epochs",
        "save_every_n_steps",
        "save_last_n_epochs",
        "save_last_n_epochs_state",
    ):
        add(f"--{name}", type=int)
    for name in ("save_last_n_steps", "save_last_n_steps_state"):
        add(f"--{name}", type=int)
    for name in ("save_state", "save_state_on_train_end", "no_metadata"):
        add(f"--{name}", action="store_true")

    add("--sample_prompts")
    add("--sample_every_n_epochs", type=int)
    add("--sample_at_first", action="store_true")

    add("--logging_dir")
    add("--log_with", choices=["tensorboard", "wandb", "all"])
    add("--log_prefix")
    add("--log_tracker_name")
    add("--training_comment")
    for name in ("title", "author", "description", "license", "tags"):
        add(f"--metadata_{name}")

    for name in NO_EFFECT_FLAGS:
        add(f"--{name}", action="store_true")
    for name in NO_EFFECT_VALUES:
        add(f"--{name}")
    return parser


def parse_training(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the training options. The command line overrides `--config_file`.

    Sections of the TOML file only group options. Exits with 1 when the file is missing, with 2 on an
    unknown option.
    """
    parser = training_parser()
    args = parser.parse_args(argv)
    if not args.config_file:
        return args
    name = args.config_file if args.config_file.endswith(".toml") else f"{args.config_file}.toml"
    path = Path(name)
    if not path.is_file():
        logger.error("%s not found.", name)
        sys.exit(1)
    logger.info("Loading settings from %s...", name)
    flat: dict[str, object] = {}
    for key, value in tomllib.loads(path.read_text(encoding="utf-8")).items():
        flat |= value if isinstance(value, dict) else {key: value}
    unknown = sorted(set(flat) - set(vars(args)))
    if unknown:
        parser.error(f"unrecognized options in {name}: {', '.join(unknown)}")
    return parser.parse_args(argv, namespace=argparse.Namespace(**flat))


def without_effect(args: argparse.Namespace) -> list[str]:
    """The given options that have no effect here, by their names on the command line."""
    names = [name for name in (*NO_EFFECT_FLAGS, *NO_EFFECT_VALUES, *NO_EFFECT_TYPED) if getattr(args, name)]
    if args.log_with not in (None, "tensorboard"):
        names.append("log_with")
    return [f"--{name}" for name in names if name not in _UNREMARKABLE]


def start_logging() -> None:
    """Log INFO and above to stderr as `LEVEL:logger:message`, including the libraries."""
    handler = logging.StreamHandler()
    handler.addFilter(_without_rank)
    logging.basicConfig(level=logging.INFO, handlers=[handler], format=logging.BASIC_FORMAT)


def _without_rank(record: logging.LogRecord) -> bool:
    # Newer versions of accelerate log the rank of the process; the version that musubi-tuner pins does not.
    if isinstance(record.msg, str):
        record.msg = record.msg.removeprefix(_RANK)
    return True
