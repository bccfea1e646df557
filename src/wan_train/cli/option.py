"""One option or argument of the commands: its type, its default as text, its choices."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from enum import StrEnum
from functools import cache, partial
from keyword import iskeyword
from typing import Any, Generic, TypeVar

from wan_train.base.settings import Settings, environment_name, shipped_configs
from wan_train.recipe.terms import Task

T = TypeVar("T")


class Group(StrEnum):
    """Headings in `--help`."""

    WHAT = "What to train"
    RENT = "What to rent"
    HOW = "How to train"
    CLIPS = "Clips"
    AFTER = "After the training"
    WHERE = "Where"
    OUTPUT = "Running"


class TaskChoice(StrEnum):
    """`--task` of commands that train."""

    T2V = Task.T2V.word
    I2V = Task.I2V.word

    @property
    def task(self) -> Task:
        return next(task for task in Task if task.word == self)


class ModelsChoice(StrEnum):
    """`--task` of commands about the box."""

    T2V = Task.T2V.word
    I2V = Task.I2V.word
    BOTH = "both"

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(task for task in Task if self in {ModelsChoice.BOTH, task.word})


class ExpertsChoice(StrEnum):
    """`--experts`."""

    BOTH = "both"
    HIGH = "high"
    LOW = "low"


class NotifyAction(StrEnum):
    """What `notify` does."""

    SHOW = "show"
    TEST = "test"


class VersionChoice(StrEnum):
    """`--engine` of `dataset check`: the trainer version that will read the dataset."""

    GUIDE = "guide"
    NEWEST = "v0.3.4"


@dataclass(frozen=True, slots=True)
class Option(Generic[T]):
    """One option or argument. Commands with another help or default have a variant with the same name."""

    kind: type[T]
    """The type of one value; `bool` makes an option without a value."""
    word: str
    """As typed, such as `--dry-run` or `--yes -y`; for an argument its name, such as `path`."""
    commands: str
    """The commands that have it, separated by commas."""
    help: str
    _: KW_ONLY
    more: str = ""
    """Markdown that docs/flags.md adds to the help."""
    metavar: str | None = None
    group: Group | None = None
    default: T | None = None
    shown: str | Callable[[], str] | None = None
    """The default as text, if other code decides it."""
    is_setting: bool = False
    recipe_key: str | None = None
    """The field of `Training` that it sets; the field's range applies."""
    is_required: bool = False
    is_repeatable: bool = False
    completion: Callable[..., list[str]] | None = None

    @property
    def is_argument(self) -> bool:
        return not self.word.startswith("-")

    @property
    def flags(self) -> list[str]:
        """The flags for Typer; empty for an argument."""
        return [] if self.is_argument else self.word.split()

    @property
    def flag(self) -> str:
        return self.word.partition(" ")[0].partition("/")[0]

    @property
    def name(self) -> str:
        """The Python parameter; keywords such as `with` get an underscore."""
        name = self.flag.removeprefix("--").replace("-", "_")
        return f"{name}_" if iskeyword(name) else name

    @property
    def variable(self) -> str | None:
        has_one = (
            self.is_setting or self.group in {Group.WHAT, Group.HOW, Group.AFTER} or self.flag in {"--yes", "--json"}
        )
        return environment_name(self.name) if has_one else None

    @property
    def default_text(self) -> str | None:
        """The default for `--help`; None if there is none or it cannot be read."""
        try:
            if isinstance(self.shown, str):
                return self.shown
            if self.shown is not None:
                return self.shown()
            if self.default is None and self.recipe_key is not None:
                return _of_recipe(self.recipe_key)
        except (OSError, ValueError, KeyError):  # a broken installation must still show its help
            return None
        return None if self.default is None else str(self.default)


def of_setting(name: str, commands: str, *, metavar: str | None = None, shown: str | None = None) -> Option[str]:
    """Return an option that overrides a setting, with the setting's help and default."""
    about = next(field for field in fields(Settings) if field.name == name)
    return Option(
        str,
        f"--{name.replace('_', '-')}",
        commands,
        about.metadata["about"],
        more=about.metadata["more"],
        metavar=metavar,
        group=Group.WHERE,
        shown=shown or about.metadata["unset"] or str(about.default),
        is_setting=True,
    )


@cache
def _shipped(name: str) -> Mapping[str, Any]:
    # Keep numbers as written: 3e-4, not 0.0003.
    return tomllib.loads((shipped_configs() / name).read_text(encoding="utf-8"), parse_float=str)


def _of_recipe(key: str) -> str:
    value = _shipped("recipes/t2v-a14b.toml")["training"][key]
    match key:
        case "fp8_base":
            return "--fp8" if value else "--no-fp8"
        case "save_every_n_epochs" if value >= _shipped("recipes/t2v-a14b.toml")["training"]["max_train_epochs"]:
            return "only at the end"
        case _:
            return str(value)


def of_dataset(key: str, text: str = "{}") -> str:
    """Return a value of the shipped dataset.toml; its second dataset has the keys for clips."""
    general, (pictures, clips) = _shipped("dataset.toml")["general"], _shipped("dataset.toml")["datasets"]
    value = ({**clips, **pictures} | general)[key]
    match key:
        case "resolution":
            value = "x".join(map(str, value))
        case "target_frames":
            value = ",".join(map(str, value))
        case _:
            pass
    return text.format(value)


def in_new_file(key: str) -> Callable[[], str]:
    return partial(of_dataset, key, "{} in a new one")
