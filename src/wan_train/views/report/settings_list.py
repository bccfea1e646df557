"""Every setting of a run with where its value came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from wan_train.recipe.effective import PLACES, effective
from wan_train.recipe.model import Origin
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
    """In the order of a recipe file: what is trained, then every setting, of each expert where they differ."""
    return tuple(_rows(plan))


def _rows(plan: Plan) -> Iterator[SettingRow]:
    recipe = plan.recipe
    # A recipe file of one's own names each training setting that it does not take from a shipped one.
    is_file = any(source.origin is Origin.RECIPE for spec in recipe.experts for source in spec.sources.values())
    whose = f"recipe {recipe.name}"
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
            source, reason = (SettingSource.RECIPE, whose) if own else (SettingSource.DEFAULT, default)
        yield SettingRow(name=row.label, value=value, source=source, reason=reason)


_SOURCES = {
    Origin.RECIPE: SettingSource.RECIPE,
    Origin.FLAG: SettingSource.FLAG,
    Origin.CONFIG_FILE: SettingSource.FLAG,
    Origin.WORDS: SettingSource.FLAG,
    Origin.MACHINE: SettingSource.MACHINE,
}
