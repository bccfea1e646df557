"""Turn a request into a plan, and write the plan's run directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wan_train.base.errors import NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.host import available_ram, cpus
from wan_train.base.settings import Settings
from wan_train.caching.decide import CacheNeed
from wan_train.caching.survey import CacheInputs
from wan_train.dataset import jsonl
from wan_train.dataset.layout import DatasetSummary, summary
from wan_train.dataset.model import Inventory, MediaKind
from wan_train.dataset.resolve import NewConfig
from wan_train.dataset.scan import group
from wan_train.dataset.snapshot import snapshot_text
from wan_train.engine import settings_check, tokenizer
from wan_train.engine.caches import CacheKind
from wan_train.engine.capabilities import check_optimizer
from wan_train.engine.commands import ACCELERATE_CONFIG, ModelPaths
from wan_train.engine.sample_prompts import SamplePrompt
from wan_train.engine.tensors import BrokenFileError, read_header
from wan_train.engine.trainer import Trainer
from wan_train.gpu.choose import choose, how_to_show, why_none
from wan_train.gpu.model import Gpu, GpuReading
from wan_train.recipe import adaptation
from wan_train.recipe.adaptation import Card, Machine
from wan_train.recipe.load import to_toml
from wan_train.recipe.measured import Measurement, tuned
from wan_train.recipe.model import Answers, Recipe
from wan_train.recipe.model_files import locate
from wan_train.recipe.terms import Expert, Task
from wan_train.run.attempts import seconds_between_states, state_every_epochs
from wan_train.run.directory import RunDirectory, create
from wan_train.run.disk import check_disk, check_writable, disk_need
from wan_train.run.end_epochs import planned_ends, steps_per_epoch
from wan_train.run.plan import CACHE_KINDS, CACHING_STEPS, DatasetFacts, Devices, Plan, Step, StepKind, result_name
from wan_train.run.samples import plan_samples, write_preview, write_samples
from wan_train.run.speeds import batch_cost, expected, key_of, read_speeds, sizes_text
from wan_train.run.tuning import tuning_for


def stand_ins(recipe: Recipe) -> ModelPaths:
    """Return placeholder paths: the rehearsal trainer makes its models itself and needs no files."""
    return ModelPaths(
        vae=Path("stand-in-vae"),
        t5=Path("stand-in-t5"),
        dit={spec.expert.value: Path(f"stand-in-dit-{spec.expert.value}") for spec in recipe.experts},
    )


def find_models(recipe: Recipe, trainer_dir: Path) -> ModelPaths:
    return ModelPaths(
        vae=locate(recipe.vae, trainer_dir),
        t5=locate(recipe.t5, trainer_dir),
        dit={spec.expert.value: locate(spec.dit, trainer_dir) for spec in recipe.experts},
    )


def check_models(models: ModelPaths) -> str | None:
    """Return the DiT's element type; raises NotReadyError that names every missing or damaged model file."""
    problems = []
    dtypes: dict[str, str | None] = {}
    for path in (models.vae, models.t5, *models.dit.values()):
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.suffix == ".safetensors":
            try:
                dtypes[str(path)] = read_header(path).main_dtype()
            except BrokenFileError as error:
                problems.append(error.message)
        elif path.stat().st_size == 0:
            problems.append(f"{path} is empty")
    if problems:
        listing = "".join(f"\n  {problem}" for problem in problems)
        what = "1 model file" if len(problems) == 1 else f"{len(problems)} model files"
        raise NotReadyError(
            f"this box is not ready: {what} cannot be used:{listing}",
            hint="Run `wan-train provision` to fetch what is missing or damaged, "
            "or `wan-train rehearse` to try the pipeline without models.",
        )
    found = {dtypes.get(str(path)) for path in models.dit.values()}
    if len(found) > 1:
        raise NotReadyError(
            f"the two experts' weights differ in precision: {', '.join(sorted(map(str, found)))}",
            hint="Take both in fp16 or both in bf16; `wan-train provision` fetches a pair.",
        )
    return next(iter(found), None)


def usable_gpus(reading: GpuReading, gpus: str | None, visible: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs this run may use; raises BadInputError for an unknown one, NotReadyError if there is none."""
    chosen = choose(reading, gpus, visible)
    if not chosen:
        raise NotReadyError(
            f"there is no GPU to train on: {why_none(reading, visible)}",
            hint=f"{how_to_show(reading, visible)} `wan-train rehearse` needs no GPU.",
        )
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything a plan is made from. Each part is checked on its own. `recipe` is not adapted yet."""

    answers: Answers
    recipe: Recipe
    trainer: Trainer
    inventory: Inventory
    """The contents of the dataset and the cache folders of this run. It has no problem that stops a training."""
    dataset_to_write: NewConfig | None = None
    """The dataset.toml that starting the run creates."""
    prompts: tuple[SamplePrompt, ...]
    """The prompts of samples made during training, as in the user's file; empty for none."""
    preview_prompts: tuple[SamplePrompt, ...] = ()
    """The prompts to draw with both LoRAs at the end; empty for none."""
    notes: tuple[str, ...] = ()
    """Notes for the user about the cache folders."""
    devices: Devices
    usable: tuple[Gpu, ...]
    measurements: tuple[Measurement, ...] = ()
    """What `wan-train tune` measured on this kind of card with this software."""
    gpus_named: bool
    """Whether `--gpus` or CUDA_VISIBLE_DEVICES named the usable GPUs."""
    environ: Mapping[str, str] = field(default_factory=dict)

    def counted(self) -> DatasetSummary:
        return summary(self.inventory, image_to_video=self.recipe.task is Task.I2V)


def make_plan(
    request: Request,
    run: RunDirectory,
    *,
    created: float,
    paid_seconds: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Return the plan for a run directory, which need not exist yet. Nothing is written.

    It checks everything that can be checked without using a GPU, and raises problems with their exit code.
    `paid_seconds` is how long a budget lasts; `say` announces checks that take seconds.
    """
    trainer, inventory, counted = request.trainer, request.inventory, request.counted()
    for spec in request.recipe.experts:
        check_optimizer(spec.training.optimizer_type, trainer.capabilities)
    steps = _steps(request.recipe, counted)
    doubts = settings_check.judge(request.recipe, trainer, steps, environ=request.environ, say=say)
    models = find_models(request.recipe, trainer.root) if trainer.is_real else stand_ins(request.recipe)
    dtype = check_models(models) if trainer.is_real else None
    machine = machine_of(trainer, request.usable, dtype)
    adapted, choices = adaptation.adapt(request.recipe, machine)
    tuning = tuning_for(request.measurements, adapted, trainer, counted)
    if tuning.measurements:
        adapted, choices = adaptation.adapt(request.recipe, machine, tuning)
    check_writable([found.subset.cache_directory for found in inventory.subsets], "the cache directory", "--cache-dir")
    warnings = [*request.notes, *(found.line for found in group(inventory.problems)), *doubts]
    if trainer.is_real and not tokenizer.is_cached(request.environ):
        warnings.append("the T5 tokenizer is not in the Hugging Face cache: text caching will fetch it from the hub")
    ends = planned_ends(adapted, counted.batches_per_epoch, trainer.capabilities)
    warnings += ends.notes
    recipe, samples = plan_samples(adapted, request.prompts, run, ends=ends.epochs)
    cache_inputs = CacheInputs(config=inventory.config.path, trainer=trainer, models=models, task=recipe.task)
    caching = cache_inputs.needs(inventory)
    facts = _facts(inventory, counted, caching, warnings)
    keep = _keep_every(recipe)
    epochs = {
        spec.expert: ends.epochs.get(spec.expert.value, spec.training.max_train_epochs) for spec in recipe.experts
    }
    cost = batch_cost(counted)
    seconds_per_batch = _seconds_per_batch(run, request, recipe, cost)
    # Both experts use the same interval: the shorter one.
    state_every = min(
        state_every_epochs(
            missing=trained,
            done=0,
            keep=keep,
            epoch_seconds=(facts.batches_per_epoch or 1) * seconds_per_batch,
            seconds=seconds_between_states(paid_seconds),
        )
        for trained in epochs.values()
    )
    kept = {expert: (trained - 1) // keep for expert, trained in epochs.items()} if keep else {}
    need = disk_need(trainer.traits, recipe, _bytes_to_make(counted, caching), kept=kept)
    check_writable([run.path], "the run directory", "--runs-dir")
    check_disk(need, run.path, [Path(directory) for directory in facts.cached_items])
    cachings = tuple(Step(id=CACHING_STEPS[kind], kind=kind) for kind in CACHE_KINDS)
    trainings = (
        Step(
            id=f"train-{spec.expert.value}",
            kind=StepKind.TRAIN,
            needs=tuple(step.id for step in cachings),
            expert=spec.expert,
            produces=result_name(request.answers.title, recipe.task, spec.expert, trainer.traits),
        )
        for spec in recipe.experts
    )
    return Plan(
        run_id=run.run_id,
        created=created,
        answers=request.answers,
        recipe=recipe,
        trainer=trainer,
        models=models,
        run_dir=run.path,
        steps=(*cachings, *trainings),
        devices=request.devices,
        gpu_uuids=tuple(gpu.uuid for gpu in request.usable),
        gpus_named=request.gpus_named,
        dataset=facts,
        state_every_epochs=state_every,
        ends=ends.epochs,
        keep_every_epochs=keep,
        choices=choices,
        disk=need,
        speed_key=sizes_text(counted),
        batch_cost=cost,
        tuned=tuned(recipe.experts[0], tuning),
        stagger=_must_stagger(trainer, recipe, models),
        env=_environment(request),
        caching_workers=max(1, int(cpus()) - 1),
        samples=samples,
        preview_prompts=len(request.preview_prompts),
    )


def _steps(recipe: Recipe, counted: DatasetSummary) -> dict[Expert, int]:
    """Return the optimizer steps of each expert. Clips of unknown length count as one batch per epoch."""
    return {
        spec.expert: (steps_per_epoch(spec.training, counted.batches_per_epoch) or 1) * spec.training.max_train_epochs
        for spec in recipe.experts
    }


def _seconds_per_batch(run: RunDirectory, request: Request, recipe: Recipe, cost: float | None) -> float:
    """Return the speed measured on this box, else a first guess. If the experts differ, the slower one's."""
    speeds, card, trainer = read_speeds(run.path.parent), request.usable[0].name, request.trainer
    found = [
        expected(speeds, key_of(trainer, StepKind.TRAIN, spec.training, card=card, at_once=1), cost=cost or 0, units=1)
        for spec in recipe.experts
    ]
    known = [each.per_unit for each in found if each is not None and each.per_unit > 0]
    return max(known, default=trainer.traits.seconds_per_step)


def machine_of(trainer: Trainer, gpus: Sequence[Gpu], dit_dtype: str | None) -> Machine:
    return Machine(
        cards=tuple(
            Card(name=gpu.name, total_bytes=gpu.total_bytes, compute_capability=gpu.compute_capability) for gpu in gpus
        ),
        cpus=cpus(),
        # The rehearsal trainer accepts every choice and uses its own attention.
        has_xformers=not trainer.is_real or trainer.has_package("xformers"),
        has_flash=not trainer.is_real or trainer.has_package("flash_attn"),
        dit_dtype=dit_dtype,
    )


def _facts(
    inventory: Inventory,
    counted: DatasetSummary,
    caching: Mapping[CacheKind, CacheNeed],
    notes: Sequence[str],
) -> DatasetFacts:
    cached: dict[str, int] = {}
    for found in inventory.subsets:
        captioned = {item.path.stem for item in found.items if item.caption_path is not None}
        is_video = found.subset.kind is MediaKind.VIDEO
        # Short clips leave no cache, so for videos only one cache is expected.
        cached[str(found.subset.cache_directory)] = min(1, len(captioned)) if is_video else len(captioned)
    return DatasetFacts(
        source=inventory.config.path,
        items=counted.files,
        captions=counted.captions,
        repeats=counted.items_with_repeats,
        batches_per_epoch=counted.batches_per_epoch,
        cached_items=cached,
        caches={CACHING_STEPS[step]: caching[kind] for step, kind in CACHE_KINDS.items()},
        has_videos=any(f.subset.kind is MediaKind.VIDEO for f in inventory.subsets),
        notes=tuple(notes),
    )


def _bytes_to_make(counted: DatasetSummary, caching: Mapping[CacheKind, CacheNeed]) -> int:
    """Return the bytes of the missing caches, as if all had the same size."""
    whole = {CacheKind.LATENTS: counted.latent_bytes, CacheKind.TEXT: counted.text_bytes}
    return int(sum(whole[kind] * need.make / max(1, need.items) for kind, need in caching.items()))


def _keep_every(recipe: Recipe) -> int | None:
    """Return the epochs between the LoRAs the user asked for. The shipped recipe's own value does not count."""
    asked = [
        spec.training.save_every_n_epochs
        for spec in recipe.experts
        if "save_every_n_epochs" in spec.sources and spec.training.save_every_n_epochs < spec.training.max_train_epochs
    ]
    return asked[0] if asked else None


def _must_stagger(trainer: Trainer, recipe: Recipe, models: ModelPaths) -> bool:
    """Whether two trainers that load at the same time would fill the RAM.

    With swapped blocks, the whole file is read into RAM and cast there (both versions). Without them, it goes to the
    GPU tensor by tensor.
    """
    swaps = any(spec.training.blocks_to_swap for spec in recipe.experts)
    if not trainer.is_real or not swaps or len(models.dit) < 2:  # two experts
        return False
    return available_ram() < sum(path.stat().st_size for path in models.dit.values())


def _environment(request: Request) -> Mapping[str, str]:
    is_offline = not request.trainer.is_real or tokenizer.is_cached(request.environ)
    return tokenizer.OFFLINE_ENV if is_offline else {}


def write_run(request: Request, plan: Plan, settings: Settings) -> RunDirectory:
    """Create a run directory with everything a supervisor needs. Nothing runs yet.

    It has the name that the plan was shown with, unless another run has taken it.
    """
    run = create(settings.runs, request.answers.title, now=plan.created)
    try:
        if run.path != plan.run_dir:
            moved = make_plan(request, run, created=plan.created)
            plan = replace(moved, quote=plan.quote, state_every_epochs=plan.state_every_epochs)
        write_inputs(run, plan, request)
        write_whole(run.recipe, to_toml(plan.recipe))
        run.write_plan(plan)
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)  # ours: it is new, and not a run without its plan
        raise
    return run


def write_inputs(run: RunDirectory, plan: Plan, request: Request) -> None:
    """Write what a plan's commands read: the dataset, accelerate's settings, the samples' prompts and pictures."""
    if plan.samples is not None:
        write_samples(run, plan.samples, request.prompts)
    if request.preview_prompts:
        write_preview(run, request.preview_prompts)
    for path, text in _dataset_files(request.inventory, run).items():
        write_whole(path, text)
    write_whole(run.accelerate_config, ACCELERATE_CONFIG)


def _dataset_files(inventory: Inventory, run: RunDirectory) -> dict[Path, str]:
    """Return the run's own dataset.toml, after the lists that it names in place of the user's jsonl files."""
    files: dict[Path, str] = {}
    subsets = []
    for found in inventory.subsets:
        subset = found.subset
        if subset.jsonl is not None:
            subset = replace(subset, jsonl=run.dataset_list(subset.index))
            files[subset.source] = jsonl.text(subset.kind, found.items)
        subsets.append(subset)
    files[run.dataset_config] = snapshot_text(replace(inventory.config, datasets=tuple(subsets)))
    return files
