"""How to reproduce a run: its settings with their sources, the versions, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wan_train.base.settings import Settings
from wan_train.base.text import redact
from wan_train.recipe.effective import PLACES, effective
from wan_train.recipe.model import Origin
from wan_train.recipe.until import ALL
from wan_train.run.directory import RunDirectory
from wan_train.run.events import SupervisorStarted
from wan_train.run.plan import Plan
from wan_train.run.state import RunState
from wan_train.views.report import metrics
from wan_train.views.report.report_data import ReportData


class SettingSource(StrEnum):
    """What set a value; part of the JSON contract."""

    DEFAULT = "default"
    RECIPE = "recipe"
    FLAG = "flag"
    MACHINE = "machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingRow:
    """One setting by its name in a recipe. `reason` says why the machine set it, or what else set it."""

    name: str
    value: str
    source: SettingSource
    reason: str


def settings_of(plan: Plan) -> tuple[SettingRow, ...]:
    """The settings in the order of a recipe file; one row for each expert if the experts differ."""
    return tuple(_rows(plan))


def _rows(plan: Plan) -> Iterator[SettingRow]:
    recipe = plan.recipe
    # A recipe file or preset marks its own settings as RECIPE; values of the shipped recipe have no source.
    is_file = any(source.origin is Origin.RECIPE for spec in recipe.experts for source in spec.sources.values())
    by_recipe = f"recipe {recipe.name}"
    default = "the default" if is_file else f"the shipped recipe {recipe.name}"
    for row in effective([recipe]):
        (value,), (by,) = row.values, row.sources
        if value is None or (row.name.startswith("sample_") and plan.samples is None):
            continue
        if by is not None:
            source, reason = _SOURCES[by.origin], by.text
        elif row.name == "sample_every_n_epochs":
            source, reason = SettingSource.DEFAULT, "about a tenth of the epochs"
        else:
            own = is_file and row.name in PLACES
            source, reason = (SettingSource.RECIPE, by_recipe) if own else (SettingSource.DEFAULT, default)
        yield SettingRow(name=row.label, value=value, source=source, reason=reason)


_SOURCES = {
    Origin.RECIPE: SettingSource.RECIPE,
    Origin.FLAG: SettingSource.FLAG,
    Origin.CONFIG_FILE: SettingSource.FLAG,
    Origin.WORDS: SettingSource.FLAG,
    Origin.MACHINE: SettingSource.MACHINE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """The field names are keys of report.json. `wan_train` has the versions that supervised the run, in order."""

    wan_train: tuple[str, ...]
    trainer: str
    commit: str | None
    python: str
    packages: dict[str, str]
    drivers: tuple[str, ...]
    gpus: tuple[str, ...]


def versions(report: ReportData) -> Versions:
    trainer = report.view.plan.trainer
    seen = metrics.gpus(report.gpus)
    supervisors = (each.version for each in report.events if isinstance(each, SupervisorStarted))
    return Versions(
        wan_train=tuple(dict.fromkeys(version for version in supervisors if version is not None)),
        trainer=trainer.version,
        commit=trainer.commit,
        python=str(trainer.python),
        packages=dict(report.packages),
        drivers=tuple(dict.fromkeys(gpu.driver for gpu in seen if gpu.driver is not None)),
        gpus=tuple(dict.fromkeys(gpu.name for gpu in seen)),
    )


def rerun_command(report: ReportData) -> str:
    """The shell command that plans the same training, on one line, with secrets hidden.

    It names the run's own recipe and dataset.toml, and the folders of the trainer and of runs if not the defaults.
    """
    view = report.view
    return redact(shlex.join(["wan-train", *_words(view.plan, view.run, view.state)]))


def _words(plan: Plan, run: RunDirectory, state: RunState) -> Iterator[str]:
    epochs = state.epochs
    if not plan.trainer.is_real:
        yield from _pair("--engine", plan.trainer.kind.value)
    yield from _pair("--recipe", str(run.recipe))
    yield from _pair("--dataset", str(run.dataset_config))
    yield from _pair("--title", plan.answers.title)
    yield from _pair("--author", plan.answers.author)
    if epochs is not None:
        yield from _pair("--epochs", str(epochs))
    trained = {step: state.total_epochs(plan, step) for step in plan.steps if step.expert is not None}
    if any(plan.ends) and all(end == state.schedule_epochs(plan, step) for step, end in trained.items()):
        yield from _pair("--until", ALL)
    elif state.ends:
        for step, end in trained.items():
            yield from _pair(f"--{step.expert}", f"until={end}")
    longest = epochs or max(spec.training.max_train_epochs for spec in plan.recipe.experts)
    if plan.keep_every_epochs is None and plan.recipe.experts[0].training.save_every_n_epochs < longest:
        # The run's own recipe file is read as a user's, where the setting keeps LoRAs. This run kept none.
        yield from _pair("--save-every", str(longest))
    if plan.trainer.is_real:
        root, usual = plan.trainer.root, Settings().trainer_dir
        if root != usual:
            yield from _pair("--musubi-dir", str(root))
        if plan.trainer.python not in {root / name / "bin" / "python" for name in ("venv", ".venv")}:
            yield from _pair("--musubi-python", str(plan.trainer.python))
    if run.path.parent != Path(Settings().workspace) / "wan-train-runs":
        yield from _pair("--runs-dir", str(run.path.parent))


def _pair(flag: str, value: str) -> Iterator[str]:
    """Two arguments, or one if the value looks like an option."""
    if value.startswith("-"):
        yield f"{flag}={value}"
    else:
        yield flag
        yield value
