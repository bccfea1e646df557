"""The trainer's exact command lines: the seed guide's options plus additions, each with a reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote

from wan_train.base.huggingface import HUB_ENV
from wan_train.base.text import redact
from wan_train.engine.capabilities import Script
from wan_train.engine.trainer import Trainer
from wan_train.recipe.model import ExpertSpec, Origin, Recipe, Source, format_number
from wan_train.recipe.terms import Task
from wan_train.recipe.values import ATTENTION_KEYS

DEVICE_VARIABLE = "CUDA_VISIBLE_DEVICES"
_NEEDS_THE_CACHE_INDEX = frozenset({"--skip_existing", "--keep_cache"})
_OPTION = re.compile(r"--?[A-Za-z]")

STATES_KEPT = 2
"""Complete states kept on disk. A power cut may hit the newest one while it is being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """One addition to the guide's command, and its reason."""

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
    """Absolute paths of one run's model files."""

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
    """The step at which a resumed attempt is complete and must save, whatever `state_every_epochs` is."""


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


def cache_latents(
    trainer: Trainer, recipe: Recipe, models: ModelPaths, dataset_config: Path, *, workers: int, env: Mapping[str, str]
) -> Command:
    """Encode every picture with the VAE. Image-to-video training needs the first frame too (`--i2v`)."""
    words = _words(_given(dataset_config=dataset_config, vae=models.vae, i2v=recipe.task is Task.I2V))
    return _plain(trainer, Script.CACHE_LATENTS, words, workers=workers, env=env)


def cache_text(
    trainer: Trainer, models: ModelPaths, dataset_config: Path, *, workers: int, env: Mapping[str, str]
) -> Command:
    """Encode every caption with T5."""
    words = _words(_given(dataset_config=dataset_config, t5=models.t5))
    return _plain(trainer, Script.CACHE_TEXT, words, workers=workers, env=env)


def train(job: TrainingJob, *, env: Mapping[str, str]) -> Command:
    """Train one expert. With `resume_from` the trainer continues that state's optimizer, learning rate and RNG."""
    training, sources = job.spec.training, job.spec.sources
    additions = [(options, reason) for options, reason in _additions(job)]
    options = _seed_options(job)
    for added, _ in additions:
        options |= added
    options |= {name: _texts(value) for name, value in training.options.items()}
    listed = [
        Addition(
            what=f"--config_file {job.accelerate_config.name}",
            reason="a user's own accelerate configuration can move the job to other GPUs or turn it into torchrun",
        ),
        *(
            Addition(what=" ".join(_words(kept)), reason=reason)
            for added, reason in additions
            if (kept := {name: texts for name, texts in added.items() if name not in training.options})
        ),
        *_changes(job),
        *(
            Addition(what=" ".join(_words({name: options[name]})), reason=_who_set(sources.get(name)))
            for name in training.options
        ),
    ]
    return Command(
        argv=_launched(job, options),
        cwd=str(job.trainer.root),
        env={**trainer_environment(job.trainer), **env},
        additions=tuple(listed),
    )


def measure(job: TrainingJob, *, steps: int, env: Mapping[str, str]) -> Command:
    """Train for some steps to see how long they take: no checkpoints, no states, no samples.

    The trainer writes a LoRA after the last step, so request more steps than you wait for.
    """
    training = job.spec.training
    options = _seed_options(job)
    for name in ("max_train_epochs", "save_every_n_epochs"):
        del options[name]
    options |= _given(max_train_steps=steps, blocks_to_swap=training.blocks_to_swap or None)
    options |= {name: _texts(value) for name, value in training.options.items()}
    return Command(
        argv=_launched(job, options), cwd=str(job.trainer.root), env={**trainer_environment(job.trainer), **env}
    )


def _launched(job: TrainingJob, options: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    threads = job.spec.training.num_cpu_threads_per_process
    return (
        str(job.trainer.python), "-m", "accelerate.commands.launch",
        *_words({"config_file": (str(job.accelerate_config),)}),
        *_words(_given(num_cpu_threads_per_process=threads)),
        job.trainer.scripts[Script.TRAIN],
        *_words(options),
    )  # fmt: skip


def _who_set(source: Source | None) -> str:
    """The reason shown for a setting. No source: it was set after planning. A machine source already says why."""
    if source is None:
        return "set by wan-train, after the GPU ran out of memory"
    return source.text if source.origin is Origin.MACHINE else f"set by {source}"


def _seed_options(job: TrainingJob) -> dict[str, tuple[str, ...]]:
    """The guide's training options, in the guide's order."""
    training, models = job.spec.training, job.models
    attention = [name for name, word in ATTENTION_KEYS.items() if word is training.attention]
    assert attention, "a recipe fitted to its machine"
    return _given(
        task=job.recipe.task,
        dit=models.dit[job.spec.expert],
        vae=models.vae,
        t5=models.t5,
        dataset_config=job.dataset_config,
        **dict.fromkeys(attention, True),
        mixed_precision=training.mixed_precision,
        fp8_base=training.fp8_base,
        optimizer_type=training.optimizer_type,
        learning_rate=training.learning_rate,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_data_loader_n_workers=training.max_data_loader_n_workers,
        network_module=training.network_module,
        network_dim=training.network_dim,
        network_alpha=training.network_alpha,
        network_weights=training.network_weights,
        timestep_sampling=training.timestep_sampling,
        discrete_flow_shift=training.discrete_flow_shift,
        max_train_epochs=training.max_train_epochs,
        save_every_n_epochs=job.state_every_epochs,
        seed=training.seed,
        optimizer_args=training.optimizer_args or None,
        max_grad_norm=training.max_grad_norm,
        lr_scheduler=training.lr_scheduler,
        lr_scheduler_power=training.lr_scheduler_power,
        lr_scheduler_min_lr_ratio=training.lr_scheduler_min_lr_ratio,
        lr_warmup_steps=training.lr_warmup_steps,
        output_dir=job.attempt_dir / "output",
        output_name=job.output_name,
        metadata_title=job.output_name,
        metadata_author=job.author,
        preserve_distribution_shape=training.preserve_distribution_shape,
        min_timestep=job.spec.min_timestep,
        max_timestep=job.spec.max_timestep,
    )


def _additions(job: TrainingJob) -> Iterable[tuple[dict[str, tuple[str, ...]], str]]:
    """Options missing from the guide's command, each with its reason; only those that this version supports."""
    training, capabilities = job.spec.training, job.trainer.capabilities
    if training.blocks_to_swap:
        yield (
            _given(blocks_to_swap=training.blocks_to_swap),
            "part of the DiT is kept in RAM so that the rest fits in this GPU's memory",
        )
    yield (
        _given(save_state=True),
        "a state holds optimizer, learning rate and RNG: without one a crash loses the whole run",
    )
    yield (
        _given(save_last_n_epochs_state=STATES_KEPT),
        f"the last {STATES_KEPT} states stay on disk, older ones are removed",
    )
    if not job.keep_all_checkpoints:
        yield (
            _given(save_last_n_epochs=STATES_KEPT),
            "intermediate LoRAs are removed with their states; those you asked for are kept apart",
        )
    yield _given(logging_dir=job.attempt_dir / "logs"), "loss and learning rate of every step (TensorBoard)"
    if capabilities.saves_float32 and training.mixed_precision != "no":
        yield (
            _given(save_precision=training.mixed_precision),
            "otherwise this version saves float32 LoRAs of twice the size",
        )
    yield from _samples(job)
    if job.resume_from is not None:
        yield (
            _given(resume=job.resume_from),
            "continue from the newest complete state; the trainer counts from zero again, so it is stopped in time",
        )
    if job.stop_at_step is not None:
        yield _given(save_every_n_steps=job.stop_at_step), "the last missing step, where the LoRA is complete"


def _samples(job: TrainingJob) -> Iterable[tuple[dict[str, tuple[str, ...]], str]]:
    training = job.spec.training
    if training.sample_prompts is None or not training.sample_every_n_epochs:
        return
    yield (
        _given(sample_prompts=training.sample_prompts, sample_every_n_epochs=training.sample_every_n_epochs),
        "the samples you asked for: the training waits while they are made",
    )
    if training.sample_at_first and job.resume_from is None:
        yield _given(sample_at_first=True), "samples before the first step, to compare the others with"


def _changes(job: TrainingJob) -> Iterable[Addition]:
    training = job.spec.training
    if job.state_every_epochs != training.save_every_n_epochs:
        yield Addition(
            what=f"--save_every_n_epochs {job.state_every_epochs} instead of {training.save_every_n_epochs}",
            reason="states are saved more often, so that a crash loses less; LoRAs are kept at the recipe's interval",
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
            what=f"--num_workers {workers}",
            reason="this container's CPUs; by default the script counts the host's",
        ),
        Addition(
            what="--skip_existing", reason="wan-train removed exactly the caches that are out of date: others stay"
        ),
        Addition(what="--keep_cache", reason="wan-train itself removes caches of deleted pictures and lists them"),
    ]
    return Command(
        argv=(
            str(trainer.python),
            trainer.scripts[script],
            *words,
            *(word for addition in additions for word in addition.what.split()),
        ),
        cwd=str(trainer.root),
        env={**trainer_environment(trainer), **env},
        additions=tuple(additions),
    )


def trainer_environment(trainer: Trainer) -> dict[str, str]:
    """Environment variables for every program of the trainer."""
    return {
        # Unbuffered, so that a killed process loses no output.
        "PYTHONUNBUFFERED": "1",
        # The trainer prints Japanese, which raises an error if the locale is not UTF-8.
        "PYTHONIOENCODING": "utf-8",
        **HUB_ENV,
        **trainer.env,
    }


def option_words(settings: Mapping[str, object]) -> list[str]:
    """Command-line words for settings by option name, in the form of all training commands."""
    return _words(_given(**settings))


def _given(**values: object) -> dict[str, tuple[str, ...]]:
    """Options by name with the words of their values. None and False are left out."""
    return {name: _texts(value) for name, value in values.items() if value is not None and value is not False}


def _texts(value: object) -> tuple[str, ...]:
    match value:
        case True:
            return ()
        case tuple():
            return tuple(text for each in value for text in _texts(each))
        case int() | float():
            return (format_number(value),)
        case _:
            return (str(value),)


def _words(options: Mapping[str, tuple[str, ...]]) -> list[str]:
    """`--name value …` for each option; `--name=-value` where the value looks like an option."""
    words: list[str] = []
    for name, texts in options.items():
        match texts:
            case [text] if text.startswith("-"):
                words.append(f"--{name}={text}")
            case _:
                words += [f"--{name}", *texts]
    return words


def one_option_a_line(command: Command) -> str:
    """The command as shell text, one option a line. Secrets are not hidden."""
    words = [f"{name}={quote(value)}" for name, value in sorted(command.env.items())]
    words += [" ".join(quote(word) for word in group) for group in _groups(command.argv)]
    return " \\\n  ".join(words)


def _groups(argv: Sequence[str]) -> list[list[str]]:
    groups: list[list[str]] = []
    for word in argv:
        # The launched program follows accelerate's own options.
        if not groups or _OPTION.match(word) or word.endswith(".py"):
            groups.append([word])
        else:
            groups[-1].append(word)
    return groups


def standalone(command: Command) -> Command:
    """The command for use without wan-train's cache cleanup.

    As in the guide, caching then encodes everything again and deletes caches without an item.
    """
    return replace(command, argv=tuple(word for word in command.argv if word not in _NEEDS_THE_CACHE_INDEX))
