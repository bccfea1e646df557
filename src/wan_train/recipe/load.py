"""Read recipes from TOML, report every invalid key with its path, and write recipes back."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from wan_train.base.errors import BadInputError, reason_of
from wan_train.base.settings import shipped_configs
from wan_train.base.text import one_line
from wan_train.recipe.effective import Layer, require, resolve
from wan_train.recipe.model import ExpertSpec, Origin, Recipe, Source, Training, settings_of, training_of
from wan_train.recipe.terms import Attention, Expert, Preset, Task
from wan_train.recipe.values import ATTENTION_KEYS, FIELDS, Options, read_settings, shared_only, unknown

_HINT = "Compare it with a shipped recipe, or with the recipe.toml of a run."
_TOP_KEYS = ("name", "base", "task", "models", "high", "low", "training", "passthrough")
_EXPERT_KEYS = ("dit", "min_timestep", "max_timestep", "training")


def shipped_path(name: str) -> Path:
    return shipped_configs() / "recipes" / f"{name}.toml"


def shipped_names() -> list[str]:
    return sorted(path.stem for path in (shipped_configs() / "recipes").glob("*.toml"))


_OF_TASK = {Task.T2V: "t2v-a14b", Task.I2V: "i2v-a14b"}


def shipped(task: Task) -> Recipe:
    """The shipped recipe of a task. Nobody chose its values, so the adaptation to the GPU may change them."""
    return load(shipped_path(_OF_TASK[task]), None)


def load(path: Path, options: Options | None) -> Recipe:
    """Read a recipe file; raises BadInputError with every problem and its key path.

    A key that is not a setting of Training is read as one of the trainer's `options`. Without options the file is a
    shipped one, whose values have no source.
    """
    source = None if options is None else Source(origin=Origin.RECIPE, text=f"recipe {path.name}")
    return _read(path, _toml(path), options, source)


def preset_path(preset: Preset) -> Path:
    return shipped_configs() / "presets" / f"{preset.value}.toml"


def preset_summary(preset: Preset) -> str:
    return str(_toml(preset_path(preset))["summary"])


def load_preset(preset: Preset, task: Task, options: Options) -> Recipe:
    """The shipped recipe of a task with a preset's settings; their source is the preset."""
    if preset is Preset.GUIDE:
        return shipped(task)
    own = dict(_toml(preset_path(preset)))
    del own["summary"]
    of_task = {each: own.pop(each.value.partition("-")[0], {}) for each in Task}
    own["training"] = {**own.get("training", {}), **of_task[task].get("training", {})}
    laid = {**own, "base": _OF_TASK[task], "name": preset.value}
    return _read(preset_path(preset), laid, options, Source(origin=Origin.RECIPE, text=f"preset {preset.value}"))


def _read(path: Path, own: Mapping[str, Any], options: Options | None, source: Source | None) -> Recipe:
    problems: list[str] = []
    data, own = _with_base(own, problems)
    recipe = _Reader(options, path.absolute().parent, source, problems).read(data, own)
    require(problems, f"the recipe {path} cannot be used", _HINT)
    assert recipe is not None, "only problems keep a recipe from being made"
    return recipe


def override(recipe: Recipe, changes: Mapping[str, Any], *, flag_of: Callable[[str], str] = str) -> Recipe:
    """The recipe with settings of all experts replaced by command-line options; None keeps a setting.

    Raises BadInputError, which names a setting by its option.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    values, problems = read_settings(given, options=None, folder=Path.cwd(), called=flag_of)
    if problems:
        raise BadInputError("; ".join(problems), hint="`wan-train train --help` explains every option.")
    layers = [
        Layer(source=Source(origin=Origin.FLAG, text=flag_of(name)), values={name: value})
        for name, value in values.items()
    ]
    return resolve(recipe, layers)


def to_toml(recipe: Recipe) -> str:
    """The recipe as a file that `--recipe` accepts, recording exactly what was trained."""
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment("Written by wan-train: the recipe of this run, after adaptation to its GPU."))
    document["name"] = recipe.name
    document["task"] = recipe.task.value
    document["models"] = {"t5": recipe.t5, "vae": recipe.vae}
    keys = {spec.expert: _keys(spec.training) for spec in recipe.experts}
    first = keys[recipe.experts[0].expert]
    shared = {
        key: value for key, value in first.items() if all(key in own and own[key] == value for own in keys.values())
    }
    for spec in recipe.experts:
        table: dict[str, Any] = {
            "dit": spec.dit,
            "min_timestep": spec.min_timestep,
            "max_timestep": spec.max_timestep,
        }
        own = {key: value for key, value in keys[spec.expert].items() if key not in shared}
        document[spec.expert.value] = table | ({"training": own} if own else {})
    document["training"] = shared
    return tomlkit.dumps(document)


def _keys(training: Training) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings_of(training).items():
        if name == "attention":
            key = next((key for key, implementation in ATTENTION_KEYS.items() if implementation is value), name)
            found[key] = True if key != name else str(value)
        elif value is not None:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _toml(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BadInputError(
            f"there is no recipe file {path}",
            hint="Leave --recipe out to take the shipped one; each run directory has its own recipe.toml.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, not TOML, or too long a number
        raise BadInputError(f"the recipe {path} cannot be read: {reason_of(error)}", hint=_HINT) from error


def _with_base(own: Mapping[str, Any], problems: list[str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A file's data merged over its base, and its own data alone."""
    if "base" not in own:
        return own, own
    if own["base"] not in shipped_names():
        problems.append(f"base must be one of {', '.join(shipped_names())}, not {one_line(repr(own['base']))}")
        return own, own
    merged: dict[str, Any] = dict(_toml(shipped_path(own["base"])))
    for key, value in own.items():
        under = merged.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            has_attention = key == "training" and bool({*ATTENTION_KEYS, "attention"} & value.keys())
            kept = {k: v for k, v in under.items() if not (has_attention and k == "attention")}
            merged[key] = kept | value
        else:
            merged[key] = value
    return merged, own


class _Reader:
    """The reader of one recipe; problems go to `problems`."""

    def __init__(self, options: Options | None, folder: Path, source: Source | None, problems: list[str]) -> None:
        self._options = options
        self._folder = folder
        self._source = source
        self._problems = problems

    def read(self, data: Mapping[str, Any], own: Mapping[str, Any]) -> Recipe | None:
        problems = self._problems
        problems += _unknown(data, _TOP_KEYS, "")
        task = self._task(data.get("task"))
        models = self._table(data, "models", "models")
        problems += _unknown(models, ("t5", "vae"), "models.")
        found = [expert for expert in Expert if expert.value in data]
        if not found:
            problems.append("neither [high] nor [low] is given: there is nothing to train")
        table = self._table(data, "training", "training")
        shared = self._settings(table, "training")
        words = self._words(data)
        specs, layers = [], []
        for expert in found:
            place = self._table(data, expert.value, expert.value)
            settings = self._expert_settings(place, expert)
            self._check_complete({*table, *self._table(place, "training", f"{expert.value}.training")})
            layers.append((settings, expert))
            spec = self._expert(place, expert, shared | settings)
            specs += [spec] if spec is not None else []
        if not found:
            self._check_complete(table)
        t5, vae = (self._string(models, key, f"models.{key}") for key in ("t5", "vae"))
        problems += _boundary_problems(specs)
        if problems or task is None:
            return None
        recipe = Recipe(name=str(data.get("name", "custom")), task=task, experts=tuple(specs), t5=t5, vae=vae)
        if self._source is None:
            return recipe
        chosen = {"attention" if key in ATTENTION_KEYS else key for key in own.get("training", {})}
        return resolve(
            recipe,
            [
                Layer(source=self._source, values={name: shared[name] for name in shared if name in chosen}),
                *words,
                *(Layer(source=self._source, values=values, expert=expert) for values, expert in layers),
            ],
        )

    def _words(self, data: Mapping[str, Any]) -> list[Layer]:
        words = data.get("passthrough", [])
        if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            self._problems.append("passthrough must be a list of strings")
            return []
        if self._options is None or self._source is None:
            return []
        layers, problems = self._options.layers(words, folder=self._folder, source=self._source)
        self._problems += [f"passthrough: {problem}" for problem in problems]
        return layers

    def _settings(self, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        values, problems = read_settings(
            table, options=self._options, folder=self._folder, called=f"{where}.{{}}".format
        )
        self._problems += problems
        return values

    def _expert_settings(self, place: Mapping[str, Any], expert: Expert) -> dict[str, Any]:
        where = f"{expert.value}.training"
        values = self._settings(self._table(place, "training", where), where)
        self._problems += [f"{where}.{name} {of_both}" for name in values if (of_both := shared_only(name)) is not None]
        return values

    def _check_complete(self, given: Collection[str]) -> None:
        missing = [f"training.{name} is missing" for name in _REQUIRED if name not in given]
        if not {"attention", *ATTENTION_KEYS} & set(given):
            missing.append(f"training: one of attention, {', '.join(ATTENTION_KEYS)} must be given")
        self._problems += [problem for problem in missing if problem not in self._problems]

    def _expert(self, table: Mapping[str, Any], expert: Expert, settings: Mapping[str, Any]) -> ExpertSpec | None:
        problems = self._problems
        problems += _unknown(table, _EXPERT_KEYS, f"{expert.value}.")
        dit = self._string(table, "dit", f"{expert.value}.dit")
        limits: list[int] = []
        for key in ("min_timestep", "max_timestep"):
            value = table.get(key)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1000:  # the timestep scale
                problems.append(f"{expert.value}.{key} must be a whole number from 0 to 1000")
            else:
                limits.append(value)
        match limits:
            case [low, high] if low < high:
                # A recipe with a missing or invalid setting is refused, so the stand-in is never used.
                training = training_of({"attention": Attention.AUTO} | dict.fromkeys(_REQUIRED, None) | dict(settings))
                return ExpertSpec(expert=expert, dit=dit, min_timestep=low, max_timestep=high, training=training)
            case [_, _]:
                problems.append(f"{expert.value}.min_timestep must be below {expert.value}.max_timestep")
            case _:
                pass  # reported above
        return None

    def _task(self, value: object) -> Task | None:
        try:
            return Task(str(value))
        except ValueError:
            self._problems.append(f"task must be one of {', '.join(Task)}, not {one_line(str(value))!r}")
            return None

    def _table(self, data: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
        value = data.get(key, {})
        if not isinstance(value, dict):
            self._problems += [problem for problem in [f"{where} must be a table"] if problem not in self._problems]
            return {}
        return value

    def _string(self, table: Mapping[str, Any], key: str, where: str) -> str:
        value = table.get(key)
        if isinstance(value, str) and value:
            return value
        self._problems.append(f"{where} must be the name of a model or a path")
        return ""


_REQUIRED = [name for name, field in FIELDS.items() if field.default is MISSING]


def _boundary_problems(experts: Sequence[ExpertSpec]) -> list[str]:
    """The timesteps of two experts must have no gap and no overlap."""
    by_expert = {spec.expert: spec for spec in experts}
    if len(by_expert) < len(Expert):
        return []
    high, low = by_expert[Expert.HIGH], by_expert[Expert.LOW]
    if low.max_timestep == high.min_timestep:
        return []
    return [f"low.max_timestep ({low.max_timestep}) must equal high.min_timestep ({high.min_timestep})"]


def _unknown(table: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> list[str]:
    return [unknown(key, known, f"{prefix}{{}}".format) for key in table if key not in known]
