"""Every setting of a run with where its value came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum

from wan_train.recipe.hardware import AS_IN_RECIPE, CHOSEN
from wan_train.recipe.model import Training, format_number
from wan_train.run.plan import Plan


class SettingSource(StrEnum):
    """Who decided a value."""

    DEFAULT = "default"
    RECIPE = "recipe"
    FLAG = "flag"
    MACHINE = "machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingRow:
    """One setting by its name in a recipe; `reason` says why the machine decided it, or who else did."""

    name: str
    value: str
    source: SettingSource
    reason: str


def settings_of(plan: Plan) -> tuple[SettingRow, ...]:
    """In the order of a recipe file: what is trained, then every training setting, then words for the trainer."""
    return tuple(_rows(plan))


def _rows(plan: Plan) -> Iterator[SettingRow]:
    recipe = plan.recipe
    # A recipe file names all of its own training settings, so one that names none is the shipped one.
    is_file = any(source.startswith("recipe ") for source in recipe.chosen.values())
    base = SettingSource.RECIPE if is_file else SettingSource.DEFAULT
    whose = f"recipe {recipe.name}" if is_file else f"the shipped recipe {recipe.name}"
    yield SettingRow(name="task", value=recipe.task.value, source=base, reason=whose)
    for spec in recipe.experts:
        value = f"{spec.min_timestep} to {spec.max_timestep} on {spec.dit}"
        yield SettingRow(name=f"{spec.expert.value}-noise timesteps", value=value, source=base, reason=whose)
    fitted = {
        choice.setting: choice.reason
        for choice in plan.choices
        if choice.reason != AS_IN_RECIPE and not choice.reason.startswith(f"{CHOSEN} (")
    }
    for field in fields(Training):
        value = getattr(recipe.training, field.name)
        if value is None or (field.name.startswith("sample_") and plan.samples is None):
            continue
        chosen = recipe.chosen.get(field.name)
        if field.name in fitted:
            source, reason = SettingSource.MACHINE, fitted[field.name]
        elif chosen is not None:
            source = SettingSource.RECIPE if chosen.startswith("recipe ") else SettingSource.FLAG
            reason = chosen if source is SettingSource.RECIPE else "given when the run was started"
        elif field.name == "sample_every_n_epochs":
            source, reason = SettingSource.DEFAULT, "about a tenth of the epochs"
        else:
            source, reason = SettingSource.DEFAULT, whose
        yield SettingRow(name=field.name, value=_word(value), source=source, reason=reason)
    if recipe.passthrough:
        yield SettingRow(
            name="words for the trainer",
            value=" ".join(recipe.passthrough),
            source=SettingSource.FLAG,
            reason="given after `--` or in the recipe",
        )


def _word(value: object) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case int() | float():
            return format_number(value)
        case tuple():
            return " ".join(str(word) for word in value)
        case _:
            return str(value)
