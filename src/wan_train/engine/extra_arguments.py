"""Parse arguments for the training script as its own parser does, and turn them into settings."""

from __future__ import annotations

import difflib
import math
import re
import shlex
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_train.base.home import expanded
from wan_train.base.text import one_line
from wan_train.engine.capabilities import Capabilities, Option, Script
from wan_train.recipe.effective import Layer
from wan_train.recipe.model import Origin, Source, Value
from wan_train.recipe.terms import Expert
from wan_train.recipe.values import ATTENTION_KEYS, FIELDS, read_settings, shared_only

OWN_OPTIONS = frozenset({
    "task", "dit", "vae", "t5", "dataset_config", "output_dir", "output_name", "min_timestep", "max_timestep",
    "save_state", "resume", "logging_dir", "max_train_epochs", "max_train_steps", "save_every_n_epochs",
    "save_every_n_steps", "save_last_n_epochs", "save_last_n_epochs_state", "save_last_n_steps",
    "save_last_n_steps_state", "save_state_on_train_end", "sample_prompts", "sample_every_n_epochs",
    "sample_every_n_steps", "sample_at_first", "help",
})  # fmt: skip
"""Options reserved for wan-train: its scheduling, records and resume depend on them."""

_REFUSED: Mapping[str, str] = {
    "huggingface_token": "would be visible to every user of this box: set the environment variable HF_TOKEN instead",
    "wandb_api_key": "would be visible to every user of this box: set the environment variable WANDB_API_KEY instead",
    # It calls torch.load(True) at d0a1930 and safetensors' load_file(True) at v0.3.4.
    "dim_from_weights": "fails in every trainer version: use --rank with the rank of the LoRA",
}
_INSTEAD: Mapping[str, str] = {
    "task": "--task",
    "max_train_epochs": "--epochs",
    "max_train_steps": "--epochs",
    "save_every_n_epochs": "--save-every",
    "sample_prompts": "--sample-prompts",
    "sample_every_n_epochs": "--sample-every",
    "output_name": "--title",
    "dataset_config": "--dataset",
    "resume": "`wan-train resume`",
    "dit": "the recipe's [high] and [low]",
    "min_timestep": "the recipe's [high] and [low]",
    "max_timestep": "the recipe's [high] and [low]",
    "vae": "the recipe's [models]",
    "t5": "the recipe's [models]",
}
FILES = frozenset({"base_weights", "clip", "dit_high_noise", "log_tracker_config"})
_NUMBER_LIKE = re.compile(r"-(\d|\.\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOptions:
    """Options of one trainer's training script that settings may name. Implements `recipe.values.Options`."""

    capabilities: Capabilities

    @property
    def names(self) -> Collection[str]:
        own = {*OWN_OPTIONS, *_REFUSED, *FIELDS, *ATTENTION_KEYS, "config_file"}
        return [name for option in self.capabilities.options[Script.TRAIN] if (name := option[2:]) not in own]

    @property
    def files(self) -> Collection[str]:
        return FILES

    def read(self, name: str, value: object) -> tuple[Value | None, str | None]:
        return _read(self.option(name), value)

    def refusal(self, name: str) -> str | None:
        if name in OWN_OPTIONS:
            instead = f": use {_INSTEAD[name]}" if name in _INSTEAD else ""
            return f"cannot be given to the trainer, since wan-train's own records and resume depend on it{instead}"
        return _REFUSED.get(name)

    def layers(self, words: Sequence[str], *, folder: Path, source: Source) -> tuple[list[Layer], list[str]]:
        """Settings of a `--config_file` in `words`, then of the other words, which take precedence.

        The file is read here, not by the trainer, so that a later edit cannot change half of a run.
        """
        given, problems = parse(words, self.capabilities)
        config = given.pop("config_file", None)
        layers = [self._config(str(config), folder, problems)] if config is not None else []
        layers.append(Layer(source=source, values=self._settings(given, folder, "--{}".format, problems)))
        return [layer for layer in layers if layer.values], problems

    def of_expert(self, pairs: Sequence[str], expert: Expert, *, folder: Path) -> tuple[list[Layer], list[str]]:
        """Settings of `--high KEY=VALUE` or `--low KEY=VALUE`: any key of [training] or any option."""
        flag = f"--{expert.value}"
        given: dict[str, object] = {}
        problems: list[str] = []
        for pair in pairs:
            name, equals, text = pair.partition("=")
            name = name.strip().removeprefix("--")
            value, problem = from_text(name, text.strip(), self.capabilities)
            if not equals:
                problem = "must be written KEY=VALUE"
            problem = problem or shared_only(name)
            if problem is not None:
                problems.append(f"{flag} {one_line(name)} {problem}")
            else:
                given[name] = value
        values, more = read_settings(given, options=self, folder=folder, called=f"{flag} {{}}".format)
        source = Source(origin=Origin.FLAG, text=flag)
        return [Layer(source=source, values=values, expert=expert)] if values else [], problems + more

    def _config(self, name: str, folder: Path, problems: list[str]) -> Layer:
        """The settings that the trainer's read_config_from_file would read from a file (both versions)."""
        path = config_path(name, folder)
        source = Source(origin=Origin.CONFIG_FILE, text=f"config file {path}")
        given: dict[str, object] = {}
        try:
            # Later keys win. Tables are flattened, whatever their names.
            for key, value in tomllib.loads(path.read_text(encoding="utf-8")).items():
                given.update(value if isinstance(value, dict) else {key: value})
        except (OSError, ValueError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            problems.append(f"--config_file {one_line(str(path))} cannot be read: {why}")
        return Layer(source=source, values=self._settings(given, folder, f"{path.name}: {{}}".format, problems))

    def _settings(
        self, given: Mapping[str, object], folder: Path, called: Callable[[str], str], problems: list[str]
    ) -> dict[str, Any]:
        """Settings from arguments or a config file, without those that `refusal` rejects; adds to `problems`."""
        refused = {name: why for name in given if (why := self.refusal(name)) is not None}
        problems += [f"{one_line(called(name))} {why}" for name, why in refused.items()]
        rest = {name: value for name, value in given.items() if name not in refused}
        values, more = read_settings(rest, options=self, folder=folder, called=called)
        problems += more
        return values

    def option(self, name: str) -> Option:
        return self.capabilities.options[Script.TRAIN][f"--{name}"]


def parse(words: Sequence[str], capabilities: Capabilities) -> tuple[dict[str, Value], list[str]]:
    """Values by option name without dashes, as the training script's argparse reads them, and all problems.

    Like argparse: `--name=value`, unambiguous abbreviations, negative numbers; the last of a repeated option wins.
    """
    options = capabilities.options[Script.TRAIN]
    values: dict[str, Value] = {}
    problems: list[str] = []
    for option, texts in _grouped(words, options, problems):
        value, problem = _from_texts(option, texts)
        if problem is not None:
            problems.append(f"{option.name} {problem}")
        elif value is not None:
            values[option.name.removeprefix("--")] = value
    return values, problems


def from_text(name: str, text: str, capabilities: Capabilities) -> tuple[Value | None, str | None]:
    """The value of `NAME=TEXT` for a setting or option. Lists are split as in a shell; flags are true or false."""
    option = capabilities.options[Script.TRAIN].get(f"--{name}") or _SETTINGS.get(name)
    if option is None:
        return text, None  # `read_settings` refuses the name
    if not option.takes_value:
        if text.lower() in {"true", "false"}:
            return text.lower() == "true", None
        return None, f"must be true or false, not {one_line(text)!r}"
    if option.many:
        try:
            return _from_texts(option, shlex.split(text))
        except ValueError as error:
            return None, f"cannot be split into words: {error}"
    return _from_texts(option, [text])


_SETTINGS = {
    name: Option(name=f"--{name}", takes_value=True, many=False, kind=kind)
    for name, kind in (("num_cpu_threads_per_process", "int"), ("until", "str"))
}
"""Settings of Training that belong to accelerate or wan-train, not to the script."""


def config_path(name: str, folder: Path) -> Path:
    """The file that the trainer would read for `--config_file NAME` when started in `folder`."""
    return folder / expanded(name if name.endswith(".toml") else f"{name}.toml")


def _grouped(
    words: Sequence[str], options: Mapping[str, Option], problems: list[str]
) -> Iterator[tuple[Option, list[str]]]:
    """Each option with its values."""
    option: Option | None = None
    texts: list[str] = []
    skipping = False
    for word in words:
        if not word.startswith("-") or _NUMBER_LIKE.match(word):
            if skipping:
                continue
            if option is None or not (option.many or (option.takes_value and not texts)):
                problems.append(f"{one_line(word)!r} is a value without an option before it")
            else:
                texts.append(word)
            continue
        if option is not None:
            yield option, texts
        name, has_value, value = word.partition("=")
        option, texts = _find(name, options, problems), []
        skipping = option is None
        if option is not None and has_value:
            if option.takes_value:
                yield option, [value]
            else:
                problems.append(f"{option.name} takes no value")
            option = None
    if option is not None:
        yield option, texts


def _find(name: str, options: Mapping[str, Option], problems: list[str]) -> Option | None:
    if name in options:
        return options[name]
    if not name.startswith("--"):
        problems.append(f"{one_line(name)!r} is a value without an option before it")
        return None
    begun = [each for each in options if each.startswith(name)] if len(name) > len("--") else []
    match begun:
        case [one]:
            return options[one]
        case []:
            close = difflib.get_close_matches(name, options, n=1)
            problems.append(f"unknown option {one_line(name)}" + (f" (did you mean {close[0]}?)" if close else ""))
        case _:
            problems.append(f"{one_line(name)} is ambiguous: it matches {', '.join(begun)}")
    return None


def _from_texts(option: Option, texts: Sequence[str]) -> tuple[Value | None, str | None]:
    if not option.takes_value:
        return True, None
    if not option.many and not texts:
        return None, "needs a value"
    found = []
    for text in texts:
        value, problem = _number(option.kind, text)
        if problem is not None:
            return None, problem
        found.append(value)
    return _read(option, tuple(found) if option.many else found[0])


def _number(kind: str, text: str) -> tuple[int | float | str, str | None]:
    try:
        match kind.lstrip("_"):
            case "int":
                return int(text), None
            case "float":
                return float(text), None
            case "int_or_float":
                # Source: int_or_float in both versions; `10%` is a share of all steps.
                if text.endswith("%"):
                    return float(text[:-1]) / 100, None
                number = float(text)
                return (int(text) if number >= 1 and number.is_integer() else number), None
            case _:
                return text, None
    except ValueError:
        return text, f"must be {_KINDS[kind.lstrip('_')]}, not {one_line(text)!r}"


_KINDS = {"int": "a whole number", "float": "a number", "int_or_float": "a number of steps or a fraction of all steps"}


def _read(option: Option, value: object) -> tuple[Value | None, str | None]:
    """A plain value as an option's value, or its problem."""
    if not option.takes_value:
        return (value, None) if isinstance(value, bool) else (None, f"must be true or false, not {_shown(value)}")
    if not option.many:
        return _scalar(option, value)
    if not isinstance(value, list | tuple):
        return None, f"must be a list, not {_shown(value)}"
    found: list[int | float | str] = []
    for each in value:
        read, problem = _scalar(option, each)
        if problem is not None or read is None:
            return None, problem
        found.append(read)
    return tuple(found), None


def _scalar(option: Option, value: object) -> tuple[int | float | str | None, str | None]:
    if option.choices and str(value) not in option.choices:
        return None, f"must be one of {', '.join(option.choices)}, not {_shown(value)}"
    match option.kind.lstrip("_"), value:
        case _, bool():
            pass
        case "int", int():
            return value, None
        case "float" | "int_or_float", int() | float() if abs(value) < math.inf:
            return value, None
        case "any", int() | float() | str() if not isinstance(value, float) or abs(value) < math.inf:
            return value, None
        case "int" | "float" | "int_or_float" as kind, _:
            return None, f"must be {_KINDS[kind]}, not {_shown(value)}"
        case _, str() if option.many and value.startswith("-") and not _NUMBER_LIKE.match(value):
            return None, f"cannot be {_shown(value)}: the trainer would read it as an option"
        case _, str():
            return value, None
        case _:
            pass
    return None, f"must be text, not {_shown(value)}"


def _shown(value: object) -> str:
    return one_line(repr(value))
