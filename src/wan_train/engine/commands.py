"""The exact command lines of the trainer: the seed guide's flags, plus additions that each carry a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote

from wan_train.engine.capabilities import Script
from wan_train.engine.trainer import Trainer
from wan_train.printable import redact
from wan_train.recipe.model import ExpertSpec, Recipe, Training, format_number
from wan_train.recipe.terms import Attention, Task
from wan_train.recipe.values import ATTENTION_KEYS

DEVICE_VARIABLE = "CUDA_VISIBLE_DEVICES"

STATES_KEPT = 2
"""Complete states that stay on disk: the newest may be the one being written when the power goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """One thing a command has beyond the guide's own, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program to run: argument list, working directory, additions to the environment."""

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)
    additions: tuple[Addition, ...] = ()

    def shell(self) -> str:
        """The command as a person could paste it into a shell: quoted, secrets hidden."""
        words = [f"{name}={quote(value)}" for name, value in sorted(self.env.items())]
        return redact(" ".join([*words, *(quote(word) for word in self.argv)]))

    def with_env(self, **env: str) -> Command:
        return replace(self, env={**self.env, **env})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPaths:
    """Model files of one run, absolute."""

    vae: Path
    t5: Path
    dit: Mapping[str, Path]
    """By the value of Expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """Everything one training command depends on."""

    trainer: Trainer
    recipe: Recipe
    spec: ExpertSpec
    models: ModelPaths
    dataset_config: Path
    accelerate_config: Path
    attempt_dir: Path
    output_name: str
    author: str
    state_every_epochs: int
    keep_all_checkpoints: bool = False
    resume_from: Path | None = None
    stop_at_step: int | None = None
    """The step at which a resumed attempt is complete and must save, whatever the cadence of states."""


ACCELERATE_CONFIG = """\
# Written by wan-train, so that a configuration of your own cannot redirect this run to other GPUs or to torchrun.
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: 'NO'
downcast_bf16: 'no'
enable_cpu_affinity: false
gpu_ids: all
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
num_machines: 1
num_processes: 1
rdzv_backend: static
same_network: true
use_cpu: false
"""

_OWN_OPTIONS = (
    "--task", "--dit", "--vae", "--t5", "--dataset_config", "--output_dir", "--output_name", "--min_timestep",
    "--max_timestep", "--save_state", "--resume", "--logging_dir", "--max_train_epochs", "--max_train_steps",
    "--save_every_n_epochs", "--save_every_n_steps", "--save_last_n_epochs", "--save_last_n_epochs_state",
    "--save_last_n_steps", "--save_last_n_steps_state", "--save_state_on_train_end", "--sample_prompts",
    "--sample_every_n_epochs", "--sample_every_n_steps", "--sample_at_first",
)  # fmt: skip
"""Options that wan-train must own: its scheduling, records and resume rest on them."""


def owned(words: Sequence[str]) -> list[str]:
    """Those of the passed-through words that would take an option out of wan-train's hands."""
    return [word for word in words if word.partition("=")[0] in _OWN_OPTIONS]


def precision(recipe: Recipe) -> str:
    """The mixed precision the trainer runs with: what is passed through counts more than the setting."""
    return passed_through(recipe.passthrough, "--mixed_precision") or recipe.training.mixed_precision


def passed_through(words: Sequence[str], option: str) -> str | None:
    """The value that the passed-through words give to an option, None when they do not: the trainer takes the last."""
    value = None
    for index, word in enumerate(words):
        name, given, text = word.partition("=")
        if name == option:
            value = text if given else "".join(words[index + 1 : index + 2])
    return value


def cache_latents(
    trainer: Trainer, recipe: Recipe, models: ModelPaths, dataset_config: Path, *, workers: int, env: Mapping[str, str]
) -> Command:
    """Encode every picture with the VAE. Image-to-video training needs the first frame too (`--i2v`)."""
    words = _pairs(("dataset_config", dataset_config), ("vae", models.vae))
    if recipe.task is Task.I2V:
        words += ["--i2v"]
    return _plain(trainer, Script.CACHE_LATENTS, words, workers=workers, env=env)


def cache_text(
    trainer: Trainer, models: ModelPaths, dataset_config: Path, *, workers: int, env: Mapping[str, str]
) -> Command:
    """Encode every caption with T5."""
    words = _pairs(("dataset_config", dataset_config), ("t5", models.t5))
    return _plain(trainer, Script.CACHE_TEXT, words, workers=workers, env=env)


def train(job: TrainingJob, *, env: Mapping[str, str]) -> Command:
    """Train one expert. With `resume_from` the trainer continues that state's optimizer, learning rate and RNG."""
    additions = list(_additions(job))
    argv = [
        str(job.trainer.python), "-m", "accelerate.commands.launch",
        *_pairs(("config_file", job.accelerate_config)),
        *_pairs(("num_cpu_threads_per_process", job.recipe.training.num_cpu_threads_per_process)),
        job.trainer.scripts[Script.TRAIN],
        *_seed_options(job),
        *(word for addition in additions for word in addition[0]),
        *job.recipe.passthrough,
    ]  # fmt: skip
    listed = [
        Addition(
            what=f"--config_file {job.accelerate_config.name}",
            reason="a user's own accelerate configuration can move the job to other GPUs or turn it into torchrun",
        ),
        *(Addition(what=" ".join(words), reason=reason) for words, reason in additions),
        *_changes(job),
        *(
            Addition(what=" ".join(job.recipe.passthrough), reason="given after `--` or in the recipe")
            for _ in job.recipe.passthrough[:1]
        ),
    ]
    return Command(
        argv=tuple(argv),
        cwd=str(job.trainer.root),
        env={**_common_env(job.trainer), **env},
        additions=tuple(listed),
    )


def _seed_options(job: TrainingJob) -> list[str]:
    """The guide's training options, in the guide's order."""
    training, models = job.recipe.training, job.models
    words = _pairs(
        ("task", job.recipe.task),
        ("dit", models.dit[job.spec.expert]),
        ("vae", models.vae),
        ("t5", models.t5),
        ("dataset_config", job.dataset_config),
    )
    words += _attention_options(training)
    words += _pairs(("mixed_precision", training.mixed_precision))
    words += ["--fp8_base"] if training.fp8_base else []
    words += _pairs(("optimizer_type", training.optimizer_type), ("learning_rate", training.learning_rate))
    words += ["--gradient_checkpointing"] if training.gradient_checkpointing else []
    words += _pairs(
        ("gradient_accumulation_steps", training.gradient_accumulation_steps),
        ("max_data_loader_n_workers", training.max_data_loader_n_workers),
        ("network_module", training.network_module),
        ("network_dim", training.network_dim),
        ("network_alpha", training.network_alpha),
        ("network_weights", training.network_weights),
        ("timestep_sampling", training.timestep_sampling),
        ("discrete_flow_shift", training.discrete_flow_shift),
        ("max_train_epochs", training.max_train_epochs),
        ("save_every_n_epochs", job.state_every_epochs),
        ("seed", training.seed),
    )
    if training.optimizer_args:
        words += ["--optimizer_args", *training.optimizer_args]
    words += _pairs(
        ("max_grad_norm", training.max_grad_norm),
        ("lr_scheduler", training.lr_scheduler),
        ("lr_scheduler_power", training.lr_scheduler_power),
        ("lr_scheduler_min_lr_ratio", training.lr_scheduler_min_lr_ratio),
        ("lr_warmup_steps", training.lr_warmup_steps),
        ("output_dir", job.attempt_dir / "output"),
        ("output_name", job.output_name),
        ("metadata_title", job.output_name),
        ("metadata_author", job.author),
    )
    words += ["--preserve_distribution_shape"] if training.preserve_distribution_shape else []
    return words + _pairs(("min_timestep", job.spec.min_timestep), ("max_timestep", job.spec.max_timestep))


def _attention_options(training: Training) -> list[str]:
    assert training.attention is not Attention.AUTO, "a recipe fitted to its machine"  # noqa: S101  an invariant
    return [f"--{name}" for name, implementation in ATTENTION_KEYS.items() if implementation is training.attention]


def _additions(job: TrainingJob) -> Iterable[tuple[list[str], str]]:
    """Options that the guide's command lacks, with the reason for each; only what this version knows."""
    training, capabilities = job.recipe.training, job.trainer.capabilities
    if training.blocks_to_swap:
        yield (
            _pairs(("blocks_to_swap", training.blocks_to_swap)),
            "parts of the DiT wait in RAM, so that the rest fits this GPU's memory",
        )
    yield ["--save_state"], "a state holds optimizer, learning rate and RNG: without one a crash loses the whole run"
    yield (
        _pairs(("save_last_n_epochs_state", STATES_KEPT)),
        f"the last {STATES_KEPT} states stay on disk, older ones are removed",
    )
    if not job.keep_all_checkpoints:
        yield (
            _pairs(("save_last_n_epochs", STATES_KEPT)),
            "intermediate LoRAs are removed with their states; those you asked for are kept apart",
        )
    yield _pairs(("logging_dir", job.attempt_dir / "logs")), "loss and learning rate of every step (TensorBoard)"
    if capabilities.saves_float32 and training.mixed_precision != "no":
        yield (
            _pairs(("save_precision", training.mixed_precision)),
            "this version saves float32 LoRAs of twice the size otherwise",
        )
    yield from _samples(job)
    if job.resume_from is not None:
        yield (
            _pairs(("resume", job.resume_from)),
            "continue from the newest complete state; the trainer counts from zero again, so it is stopped in time",
        )
    if job.stop_at_step is not None:
        yield _pairs(("save_every_n_steps", job.stop_at_step)), "the last missing step, where the LoRA is complete"


def _samples(job: TrainingJob) -> Iterable[tuple[list[str], str]]:
    training = job.recipe.training
    if training.sample_prompts is None or not training.sample_every_n_epochs:
        return
    yield (
        _pairs(("sample_prompts", training.sample_prompts), ("sample_every_n_epochs", training.sample_every_n_epochs)),
        "the samples you asked for: the training waits while they are made",
    )
    if training.sample_at_first and job.resume_from is None:
        yield ["--sample_at_first"], "samples before the first step, to compare the others with"


def _changes(job: TrainingJob) -> Iterable[Addition]:
    training = job.recipe.training
    if job.state_every_epochs != training.save_every_n_epochs:
        yield Addition(
            what=f"--save_every_n_epochs {job.state_every_epochs} instead of {training.save_every_n_epochs}",
            reason="with 100 of 100 nothing is saved before the end; wan-train keeps the LoRAs of the recipe's cadence",
        )
    yield Addition(
        what=f"--output_dir {job.attempt_dir / 'output'}", reason="every attempt writes into a directory of its own"
    )
    yield Addition(
        what=f"--dataset_config {job.dataset_config}",
        reason="your dataset.toml as it was when the run was made: an edit meanwhile must not change half of a run",
    )


def _plain(trainer: Trainer, script: Script, words: Sequence[str], *, workers: int, env: Mapping[str, str]) -> Command:
    additions = [
        Addition(
            what=" ".join(_pairs(("num_workers", workers))),
            reason="this container's CPUs; the script counts the host's otherwise",
        ),
        Addition(
            what="--skip_existing", reason="wan-train removed exactly the caches that are out of date: others stay"
        ),
        Addition(what="--keep_cache", reason="wan-train removes caches of pictures that are gone, and says which"),
    ]
    return Command(
        argv=(
            str(trainer.python),
            trainer.scripts[script],
            *words,
            *(word for addition in additions for word in addition.what.split()),
        ),
        cwd=str(trainer.root),
        env={**_common_env(trainer), **env},
        additions=tuple(additions),
    )


def _common_env(trainer: Trainer) -> dict[str, str]:
    return {
        # Lines reach the log when they are printed: a killed process loses nothing.
        "PYTHONUNBUFFERED": "1",
        # The trainer prints Japanese, which ends it with an error where the locale is not UTF-8.
        "PYTHONIOENCODING": "utf-8",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **trainer.env,
    }


def _pairs(*pairs: tuple[str, object]) -> list[str]:
    """`--name value` for each pair that has a value; `--name=-value` where the value looks like an option."""
    words: list[str] = []
    for name, value in pairs:
        if value is None:
            continue
        text = format_number(value) if isinstance(value, int | float) else str(value)
        words += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return words
