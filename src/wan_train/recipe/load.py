"""Recipes read from TOML and changed by flags, validated with the path of every wrong key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from wan_train.errors import BadInputError
from wan_train.printable import one_line
from wan_train.recipe.model import ExpertSpec, Recipe, Training
from wan_train.recipe.terms import Expert, Task
from wan_train.recipe.values import ATTENTION_KEYS, FIELDS, read_settings, unknown
from wan_train.settings import shipped_configs

_HINT = "Compare it with a shipped one, or with the recipe.toml of a run."
_TOP_KEYS = ("name", "task", "models", "high", "low", "training", "passthrough")


def shipped_recipe(task: Task) -> Path:
    match task:
        case Task.T2V:
            return shipped_configs() / "recipes" / "t2v-a14b.toml"
        case Task.I2V:
            return shipped_configs() / "recipes" / "i2v-a14b.toml"


def load(path: Path, *, inherited: bool = False) -> Recipe:
    """Read a recipe file; raises BadInputError that lists every problem with its key path.

    `inherited=True` for a shipped recipe: its values count as defaults, not as somebody's choice, so that the
    adaptation to the GPU may change them.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BadInputError(
            f"there is no recipe file {path}",
            hint="Leave --recipe out to take the shipped one; each run directory has its own recipe.toml.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no TOML, endless numbers
        raise BadInputError(f"the recipe {path} cannot be read: {error}", hint=_HINT) from error
    problems: list[str] = []
    recipe = _read(data, problems, chosen="" if inherited else f"recipe {path.name}")
    if problems or recipe is None:
        listing = "\n".join(f"  {p}" for p in problems)
        raise BadInputError(f"the recipe {path} cannot be used:\n{listing}", hint=_HINT)
    return _with_prompts_beside(recipe, path)


def override(
    recipe: Recipe, changes: Mapping[str, Any], *, source: str, names: Mapping[str, str] | None = None
) -> Recipe:
    """The recipe with some training settings replaced; None leaves a setting alone.

    Raises BadInputError, which calls a setting by its entry in `names` where it has one.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    called = names or {}
    given, problems = read_settings(given, options=None, folder=Path.cwd(), called=lambda name: called.get(name, name))
    if problems:
        raise BadInputError("; ".join(problems), hint="`wan-train train --help` explains every flag.")
    return replace(
        recipe,
        training=replace(recipe.training, **given),
        chosen={**recipe.chosen, **dict.fromkeys(given, source)},
    )


def select(recipe: Recipe, experts: tuple[Expert, ...]) -> Recipe:
    return replace(recipe, experts=tuple(spec for spec in recipe.experts if spec.expert in experts))


def to_toml(recipe: Recipe) -> str:
    """The recipe as a file that `--recipe` accepts, recording exactly what was trained."""
    import tomlkit  # noqa: PLC0415  40 ms that `--help` does not need

    document = tomlkit.document()
    document.add(tomlkit.comment("Written by wan-train: the recipe of this run, after adaptation to its GPU."))
    document["name"] = recipe.name
    document["task"] = recipe.task.value
    if recipe.passthrough:
        document["passthrough"] = list(recipe.passthrough)
    document["models"] = {"t5": recipe.t5, "vae": recipe.vae}
    for spec in recipe.experts:
        document[spec.expert.value] = {
            "dit": spec.dit,
            "min_timestep": spec.min_timestep,
            "max_timestep": spec.max_timestep,
        }
    table = tomlkit.table()
    for f in fields(Training):
        value = getattr(recipe.training, f.name)
        if f.name == "attention":
            key = next((k for k, v in ATTENTION_KEYS.items() if v is value), None)
            table[key or "attention"] = value.value if key is None else True
        elif value is not None and f.name != "options":
            table[f.name] = list(value) if isinstance(value, tuple) else value
    document["training"] = table
    return tomlkit.dumps(document)


def _read(data: Mapping[str, Any], problems: list[str], *, chosen: str) -> Recipe | None:
    problems += _unknown(data, _TOP_KEYS, "")
    task = _task(data.get("task"), problems)
    models = _table(data, "models", problems)
    problems += _unknown(models, ("t5", "vae"), "models.")
    experts = tuple(
        spec for expert in Expert if expert.value in data and (spec := _expert(data, expert, problems)) is not None
    )
    if not any(expert.value in data for expert in Expert):
        problems.append("neither [high] nor [low] is given: there is nothing to train")
    training = _training(_table(data, "training", problems), problems)
    passthrough = data.get("passthrough", [])
    if not (isinstance(passthrough, list) and all(isinstance(word, str) for word in passthrough)):
        problems.append("passthrough must be a list of strings")
        passthrough = []
    t5, vae = (_string(models, key, f"models.{key}", problems) for key in ("t5", "vae"))
    problems += _boundary_problems(experts)
    if problems or task is None or training is None:
        return None
    names = [_training_name(key) for key in data.get("training", {})] if chosen else []
    return Recipe(
        name=str(data.get("name", "custom")),
        task=task,
        experts=experts,
        training=training,
        t5=t5,
        vae=vae,
        passthrough=tuple(passthrough),
        chosen=dict.fromkeys(names, chosen),
    )


def _with_prompts_beside(recipe: Recipe, path: Path) -> Recipe:
    """A recipe and its sample prompts travel together: a relative path counts from the recipe's own directory."""
    prompts = recipe.training.sample_prompts
    if prompts is None:
        return recipe
    return replace(recipe, training=replace(recipe.training, sample_prompts=str(path.absolute().parent / prompts)))


def _task(value: object, problems: list[str]) -> Task | None:
    try:
        return Task(str(value))
    except ValueError:
        problems.append(f"task must be one of {', '.join(Task)}, not {one_line(str(value))!r}")
        return None


def _expert(data: Mapping[str, Any], expert: Expert, problems: list[str]) -> ExpertSpec | None:
    table = _table(data, expert.value, problems)
    problems += _unknown(table, ("dit", "min_timestep", "max_timestep"), f"{expert.value}.")
    dit = _string(table, "dit", f"{expert.value}.dit", problems)
    limits: list[int] = []
    for key in ("min_timestep", "max_timestep"):
        value = table.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1000:  # noqa: PLR2004  the timestep scale
            problems.append(f"{expert.value}.{key} must be a whole number from 0 to 1000")
        else:
            limits.append(value)
    match limits:
        case [low, high] if low < high:
            return ExpertSpec(expert=expert, dit=dit, min_timestep=low, max_timestep=high)
        case [_, _]:
            problems.append(f"{expert.value}.min_timestep must be below {expert.value}.max_timestep")
        case _:
            pass  # reported above
    return None


def _boundary_problems(experts: tuple[ExpertSpec, ...]) -> list[str]:
    """Two experts must share the timesteps between them: no gap that nobody learns, no overlap learnt twice."""
    by_expert = {spec.expert: spec for spec in experts}
    if len(by_expert) < len(Expert):
        return []
    high, low = by_expert[Expert.HIGH], by_expert[Expert.LOW]
    if low.max_timestep == high.min_timestep:
        return []
    return [f"low.max_timestep ({low.max_timestep}) must equal high.min_timestep ({high.min_timestep})"]


def _training(table: Mapping[str, Any], problems: list[str]) -> Training | None:
    before = len(problems)
    values, found = read_settings(table, options=None, folder=Path(), called="training.{}".format)
    problems += found
    if "attention" not in values:
        problems.append(f"training: exactly one of {', '.join(ATTENTION_KEYS)} must be true")
    problems += [
        f"training.{name} is missing" for name, f in FIELDS.items() if f.default is MISSING and name not in table
    ]
    return Training(**values) if len(problems) == before else None


def _unknown(table: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> list[str]:
    return [unknown(key, known, f"{prefix}{{}}".format) for key in table if key not in known]


def _table(data: Mapping[str, Any], key: str, problems: list[str]) -> Mapping[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        problems.append(f"{key} must be a table")
        return {}
    return value


def _string(table: Mapping[str, Any], key: str, where: str, problems: list[str]) -> str:
    value = table.get(key)
    if isinstance(value, str) and value:
        return value
    problems.append(f"{where} must be the name of a model or a path")
    return ""


def _training_name(key: str) -> str:
    return "attention" if key in ATTENTION_KEYS else key
