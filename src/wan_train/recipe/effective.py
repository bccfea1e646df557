"""The effective settings: layers over a recipe, and the settings of several recipes side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wan_train.base.errors import BadInputError
from wan_train.recipe.model import ExpertSpec, Recipe, Source, changed, format_number, settings_of
from wan_train.recipe.terms import Attention, Expert


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Settings by name from one source, for one expert or for all."""

    source: Source
    values: Mapping[str, Any]
    expert: Expert | None = None


def resolve(recipe: Recipe, layers: Iterable[Layer]) -> Recipe:
    """The recipe with every layer applied; a later layer overrides an earlier one."""
    experts = recipe.experts
    for layer in layers:
        experts = tuple(_covered(spec, layer) if layer.expert in {None, spec.expert} else spec for spec in experts)
    return replace(recipe, experts=experts)


def _covered(spec: ExpertSpec, layer: Layer) -> ExpertSpec:
    sources = {**spec.sources, **dict.fromkeys(layer.values, layer.source)}
    if layer.values.get("attention") is Attention.AUTO:
        del sources["attention"]  # left to the machine, as if it were not chosen
    return replace(spec, training=changed(spec.training, layer.values), sources=sources)


def select(recipe: Recipe, experts: tuple[Expert, ...]) -> Recipe:
    return replace(recipe, experts=tuple(spec for spec in recipe.experts if spec.expert in experts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """One setting in several recipes; None where a recipe lacks it. `expert` is None if all experts agree."""

    name: str
    expert: Expert | None
    values: tuple[str | None, ...]
    sources: tuple[Source | None, ...]

    @property
    def label(self) -> str:
        return self.name if self.expert is None else f"{self.name} ({self.expert.value})"

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def effective(recipes: Sequence[Recipe]) -> Iterator[Effective]:
    """Every setting of any of the recipes, in the order of a recipe file.

    One row if the experts of each recipe agree on value and source, else one for each expert.
    """
    specs = [{spec.expert: spec for spec in recipe.experts} for recipe in recipes]
    present = [expert for expert in Expert if any(expert in each for each in specs)]
    settings = [
        {expert: _places(recipe, spec) | settings_of(spec.training) for expert, spec in each.items()}
        for recipe, each in zip(recipes, specs, strict=True)
    ]
    names = dict.fromkeys(name for each in settings for found in each.values() for name in found)
    for name in names:
        cells = [
            {
                expert: (word_of(found.get(name)), specs[number][expert].sources.get(name))
                for expert, found in each.items()
            }
            for number, each in enumerate(settings)
        ]
        if not any(value is not None for each in cells for value, _ in each.values()):
            continue
        if all(len({(value, str(source)) for value, source in each.values()}) <= 1 for each in cells):
            shared = [next(iter(each.values()), (None, None)) for each in cells]
            yield _row(name, None, shared)
        else:
            for expert in present:
                yield _row(name, expert, [each.get(expert, (None, None)) for each in cells])


PLACES = ("task", "t5", "vae", "dit", "timesteps")
"""What a recipe has besides the settings of its trainings."""


def _places(recipe: Recipe, spec: ExpertSpec) -> dict[str, Any]:
    timesteps = f"{spec.min_timestep} to {spec.max_timestep}"
    return dict(zip(PLACES, (recipe.task, recipe.t5, recipe.vae, spec.dit, timesteps), strict=True))


def _row(name: str, expert: Expert | None, cells: Sequence[tuple[str | None, Source | None]]) -> Effective:
    return Effective(
        name=name,
        expert=expert,
        values=tuple(value for value, _ in cells),
        sources=tuple(source for _, source in cells),
    )


def word_of(value: object) -> str | None:
    """A value in words; None for no value."""
    match value:
        case None:
            return None
        case bool():
            return "on" if value else "off"
        case float() if value.is_integer():
            return str(int(value))  # 16 and 16.0 are no difference
        case int() | float():
            return format_number(value)
        case tuple():
            return " ".join(word for each in value if (word := word_of(each)) is not None)
        case _:
            return str(value)


def agreed(recipe: Recipe, what: Callable[[ExpertSpec], str]) -> list[tuple[Expert | None, str]]:
    """`what` for the experts: once, with None, if it is the same for all, else once for each."""
    said = [(spec.expert, what(spec)) for spec in recipe.experts]
    same = len({text for _, text in said}) == 1
    return [(None, said[0][1])] if same else list(said)


def require(problems: Sequence[str], what: str, hint: str) -> None:
    """Raise BadInputError with all problems, if there are any."""
    if problems:
        raise BadInputError(f"{what}:\n" + "\n".join(f"  {problem}" for problem in problems), hint=hint)
