"""Prepares a preview: makes and checks every choice before a GPU is leased, and reports all problems at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from wan_train.base import codec
from wan_train.base.errors import BadInputError, NotReadyError, WanTrainError
from wan_train.base.files import copy_whole, sha256_of, write_whole
from wan_train.base.text import one_line, slug
from wan_train.engine import generate
from wan_train.engine.commands import ModelPaths
from wan_train.engine.lightning import VERIFY
from wan_train.engine.sample_prompts import SamplePrompt, read_prompts, to_trainer
from wan_train.engine.trainer import Trainer
from wan_train.preview import loras
from wan_train.preview.model import (
    BASE,
    Lora,
    Precision,
    Preview,
    PreviewDirectory,
    Prompt,
    Row,
    drawn,
    previews_of,
)
from wan_train.preview.request import PreviewRequest, Source, Style
from wan_train.preview.rows import CheckedLoras, left_out_notes, make_rows
from wan_train.recipe.load import shipped
from wan_train.recipe.terms import Expert, Task
from wan_train.run.directory import RunDirectory
from wan_train.run.disk import require_room
from wan_train.run.picks import Epochs
from wan_train.run.plan import Plan
from wan_train.run.planner import check_models, find_models
from wan_train.run.samples import suffix_of_copy

SIZE = (832, 480)
STEPS = 20
PREVIEW_DEFAULTS: Mapping[str, int] = {
    "width": SIZE[0],
    "height": SIZE[1],
    "frame_count": 1,
    "sample_steps": STEPS,
}
"""Defaults for a prompt without options, by the keys of `read_prompts`."""
_MOST_CELLS = 400
_BYTES_PER_PIXEL = 4
"""A generous estimate for a PNG and the latents of its cell."""
_DIGEST = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPreview:
    """A preview that can be drawn. `notes` are sentences for the user."""

    run: RunDirectory
    directory: PreviewDirectory
    preview: Preview
    models: ModelPaths | None
    """None for the rehearsal, whose model has no file."""
    sources: Mapping[Path, Path]
    """Start pictures to copy, by the path of the run's own copy."""
    prompts: tuple[SamplePrompt, ...]
    """The prompts as written for a later call without a prompt file."""
    notes: tuple[str, ...] = ()


def prepare(
    source: Source,
    request: PreviewRequest,
    trainer: Trainer,
    *,
    smallest_card: int,
    now: float,
    style: Style | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> PreparedPreview:
    """Check everything and choose the rows. Raise BadInputError or NotReadyError, naming every problem.

    `smallest_card` is the memory of the smallest GPU that may draw, in bytes. `say` is called before slow steps.
    """
    style = style or Style()
    plan = source.plan
    task = plan.recipe.task
    request = _continued(source.run, request)
    stem, asked_prompts = _read(source.run, request, task, seed=plan.recipe.experts[0].training.seed, steps=style.steps)
    models = _models(plan, trainer) if trainer.is_real else None
    say("Checking the LoRAs …")
    model = loras.Model(
        task=task,
        is_real=trainer.is_real,
        shapes={} if models is None else {Expert(name): loras.shapes_of(path) for name, path in models.dit.items()},
    )
    _check_merged(style.merged, model)
    with ExitStack() as opened:
        checked = CheckedLoras(model, opened)
        drawn_rows, left_out, notes = make_rows(source, request, checked, say)
    fp8 = trainer.is_real and generate.needs_fp8(smallest_card)
    preview = Preview(
        name="",
        run_id=plan.run_id,
        created=now,
        task=task,
        trainer=trainer.commit or trainer.version,
        models=_fingerprints(models),
        precision=Precision.FP8_SCALED if fp8 else Precision.AS_STORED,
        prompts=(),
        rows=drawn_rows,
        strength=request.strength,
        solver=style.solver,
        uses_guidance=style.uses_guidance,
        merged=style.merged,
        left_out=left_out,
    )
    prompts, sources, written = [], {}, []
    for each in asked_prompts:
        prompt, own = _prompt(each, task, style), each
        if each.image_path is not None:
            copy = source.run.path / "preview" / "pictures" / f"{prompt.image_sha256}{suffix_of_copy(each.image_path)}"
            sources[copy] = each.image_path
            prompt, own = replace(prompt, image=copy), replace(each, image_path=copy)
        prompts.append(prompt)
        written.append(own)
    preview = replace(preview, prompts=tuple(prompts))
    preview = replace(preview, name=_name(source.run, stem, preview))
    count = len(preview.rows) * len(preview.prompts)
    if count > _MOST_CELLS:
        raise BadInputError(
            f"{len(preview.rows)} rows and {len(preview.prompts)} prompts are {count} pictures; {_MOST_CELLS} at most",
            hint="Use fewer prompts, or name epochs, as in --epochs 20,60.",
        )
    directory = PreviewDirectory(source.run.path / "preview" / preview.name)
    _check_disk(directory.path, preview)
    preview = _with_earlier(directory, preview)
    return PreparedPreview(
        run=source.run,
        directory=directory,
        preview=preview,
        models=models,
        sources=sources,
        prompts=tuple(written),
        notes=(*notes, *(left_out_notes(left_out))),
    )


def refreshed(ready: PreparedPreview) -> PreparedPreview:
    """Return the preview with the rows that other calls drew since it was prepared."""
    return replace(ready, preview=_with_earlier(ready.directory, ready.preview))


def write_inputs(ready: PreparedPreview) -> None:
    """Copy the prompts and start pictures into the run, so that later changes to the user's files have no effect.

    Raise OSError.
    """
    for copy, picture in ready.sources.items():
        if not copy.is_file():
            copy.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            copy_whole(picture, copy)
    ready.directory.write(ready.preview)
    write_whole(ready.directory.prompts, to_trainer(ready.prompts))


def _read(
    run: RunDirectory, request: PreviewRequest, task: Task, *, seed: int, steps: int | None
) -> tuple[str, tuple[SamplePrompt, ...]]:
    """Return a name for the prompts, and the prompts. The request's options override those of the run's own prompts."""
    width, height = request.size or (None, None)
    said = {
        "width": width,
        "height": height,
        "frame_count": request.frames,
        "sample_steps": steps if request.steps is None else request.steps,
        "seed": request.seed,
    }
    given = {name: value for name, value in said.items() if value is not None}
    seed = seed if request.seed is None else request.seed
    if request.prompts is not None:
        defaults = {**PREVIEW_DEFAULTS, **{name: value for name, value in given.items() if name != "seed"}}
        return request.prompts.stem, read_prompts(request.prompts, task, seed=seed, defaults=defaults)
    stem, path = _own_prompts(run)
    return stem, read_prompts(path, task, seed=seed, defaults=PREVIEW_DEFAULTS, overrides=given)


def _continued(run: RunDirectory, request: PreviewRequest) -> PreviewRequest:
    """Return an empty request with the rows and strength of the newest preview, if that is unfinished."""
    if request != PreviewRequest(prompts=None):
        return request
    for directory in reversed(previews_of(run.path)):
        try:
            preview = directory.read()
        except codec.CorruptRecordError:
            continue
        if len(drawn(directory, preview)) == len(list(preview.places())):
            return request
        files = next((row.loras for row in reversed(preview.rows) if row.name != BASE and not row.epochs), {})
        return replace(
            request,
            epochs=tuple(row.epochs[0] for row in preview.rows if len(row.epochs) == 1) or None,
            pairs=tuple(Epochs.parse(row.name) for row in preview.rows if len(row.epochs) > 1),
            files={expert: lora.path for expert, lora in files.items()},
            strength=preview.strength,
        )
    return request


def _own_prompts(run: RunDirectory) -> tuple[str, Path]:
    """Return the name and file of the run's last drawn prompts, or of those given for its end. Raise BadInputError."""
    for directory in reversed(previews_of(run.path)):
        if directory.prompts.is_file():
            return directory.path.name.rpartition("-")[0] or "prompts", directory.prompts
    if run.preview_prompts.is_file():
        return "prompts", run.preview_prompts
    raise BadInputError(
        f"{run.run_id} has no prompts to draw yet",
        hint="Write a file with one prompt a line, such as `a red fox in the snow`.\n"
        f"Then: wan-train preview {run.run_id} --prompts FILE",
    )


def _prompt(read: SamplePrompt, task: Task, style: Style) -> Prompt:
    defaults = generate.defaults_of(task)
    # The trainer's own prompt-line option sets only the low-noise expert's guidance.
    guidance = defaults.guidance if read.cfg_scale is None else dict.fromkeys(Expert, read.cfg_scale)
    return Prompt(
        text=read.prompt,
        negative=read.negative_prompt,
        width=read.width,
        height=read.height,
        frames=read.frame_count,
        steps=read.sample_steps,
        seed=read.seed,
        guidance=guidance,
        shift=read.discrete_flow_shift or style.shift or defaults.shift,
        image_sha256=None if read.image_path is None else sha256_of(read.image_path),
    )


def _models(plan: Plan, trainer: Trainer) -> ModelPaths:
    """Return the model files of both experts, even if only one was trained. Raise NotReadyError."""
    trained = {spec.expert for spec in plan.recipe.experts}
    others = tuple(spec for spec in shipped(plan.recipe.task).experts if spec.expert not in trained)
    recipe = replace(plan.recipe, experts=(*plan.recipe.experts, *others))
    models = find_models(recipe, trainer.root)
    check_models(models)
    return models


def _check_merged(merged: Mapping[Expert, Lora], model: loras.Model) -> None:
    """Raise NotReadyError for flawed merged LoRAs: the user did not choose them, so the box is at fault."""
    problems = [
        f"{one_line(str(lora.path))} {flaw}"
        for expert, lora in merged.items()
        for flaw in loras.flaws(lora.path, expert, model)
    ]
    if problems:
        raise NotReadyError(problems[0], hint=VERIFY)


def _fingerprints(models: ModelPaths | None) -> Mapping[str, str]:
    if models is None:
        return {}
    files = {"vae": models.vae, "t5": models.t5, **models.dit}
    return {role: loras.fingerprint(path) for role, path in files.items()}


def _name(run: RunDirectory, stem: str, preview: Preview) -> str:
    """Return a name that depends on the columns and how they are drawn, not on the rows or the prompt file's name."""
    columns = replace(preview, rows=(), left_out=(), created=0.0, name="", run_id="")
    data = codec.to_data(columns)
    for prompt in data["prompts"]:
        prompt.pop("image")
    for lora in data["merged"].values():
        lora.pop("path")
    digest = hashlib.sha256(codec.dumps(data).encode()).hexdigest()[:_DIGEST]
    earlier = (directory.path.name for directory in previews_of(run.path))
    return next((name for name in earlier if name.endswith(f"-{digest}")), f"{slug(stem)}-{digest}")


def _with_earlier(directory: PreviewDirectory, preview: Preview) -> Preview:
    """Return the preview with the rows that earlier calls finished, so that one sheet shows them all."""
    try:
        earlier = directory.read()
    except WanTrainError:
        return preview
    cells, names = drawn(directory, earlier), {row.name for row in preview.rows}
    numbers = range(len(preview.prompts))
    kept = [
        row for row in earlier.rows if row.name not in names and all((row.name, number) in cells for number in numbers)
    ]
    ordered = sorted((*preview.rows, *kept), key=_place)
    return replace(preview, rows=tuple(ordered), created=earlier.created, model_negative=earlier.model_negative)


def _place(row: Row) -> tuple[int, list[int], str]:
    """Sort key: base, epochs, pairs, files."""
    kind = 0 if row.name == BASE else len(row.epochs) or 3
    return kind, list(row.epochs), row.name


def _check_disk(path: Path, preview: Preview) -> None:
    need = len(preview.rows) * sum(
        prompt.width * prompt.height * prompt.frames * _BYTES_PER_PIXEL for prompt in preview.prompts
    )
    require_room(path, need, "these pictures need up to", hint="Remove old runs: wan-train clean")


def drawn_places(ready: PreparedPreview) -> frozenset[tuple[str, int]]:
    """Return row name and prompt of every cell already drawn, here or in another preview of the run."""
    others, have = known_cells(ready), drawn(ready.directory, ready.preview)
    return frozenset(
        (row.name, number)
        for row, number in ready.preview.places()
        if (row.name, number) in have or ready.preview.key(row, number) in others
    )


def known_cells(ready: PreparedPreview) -> Mapping[str, tuple[PreviewDirectory, tuple[str, ...]]]:
    """Return cells of the run's other previews by key, with directory and files. They need not be drawn again."""
    wanted = {ready.preview.key(row, number) for row, number in ready.preview.places()}
    return {
        key: (directory, cell.files)
        for directory in previews_of(ready.run.path)
        if directory != ready.directory
        for key, cell in directory.read_cells().items()
        if key in wanted
    }
