"""Words for the training script read as its own parser reads them, and turned into settings."""

from __future__ import annotations

import difflib
import math
import re
import shlex
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.engine.capabilities import Capabilities, Option, Script
from wan_train.printable import one_line
from wan_train.recipe.model import Value
from wan_train.recipe.values import ATTENTION_KEYS, FIELDS

OWN_OPTIONS = frozenset({
    "task", "dit", "vae", "t5", "dataset_config", "output_dir", "output_name", "min_timestep", "max_timestep",
    "save_state", "resume", "logging_dir", "max_train_epochs", "max_train_steps", "save_every_n_epochs",
    "save_every_n_steps", "save_last_n_epochs", "save_last_n_epochs_state", "save_last_n_steps",
    "save_last_n_steps_state", "save_state_on_train_end", "sample_prompts", "sample_every_n_epochs",
    "sample_every_n_steps", "sample_at_first", "help",
})  # fmt: skip
"""Options that wan-train must own: its scheduling, records and resume rest on them."""

_REFUSED: Mapping[str, str] = {
    # torch.load of `True` (d0a1930), safetensors' load_file of `True` (v0.3.4)
    "dim_from_weights": "ends the trainer with an error in every version; give --rank the rank of the LoRA instead",
}
_FILES = frozenset({"base_weights", "clip", "dit_high_noise", "log_tracker_config"})
_NUMBER_LIKE = re.compile(r"-(\d|\.\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOptions:
    """The options of one trainer's training script that a setting may name: `recipe.values.Options`."""

    capabilities: Capabilities

    @property
    def names(self) -> Collection[str]:
        own = {*OWN_OPTIONS, *_REFUSED, *FIELDS, *ATTENTION_KEYS, "config_file"}
        return [name for option in self.capabilities.options[Script.TRAIN] if (name := option[2:]) not in own]

    @property
    def files(self) -> Collection[str]:
        return _FILES

    def read(self, name: str, value: object) -> tuple[Value | None, str | None]:
        return _read(self.option(name), value)

    def option(self, name: str) -> Option:
        return self.capabilities.options[Script.TRAIN][f"--{name}"]


def parse(words: Sequence[str], capabilities: Capabilities) -> tuple[dict[str, Value], list[str]]:
    """Values by option without dashes, of words as the training script's argparse takes them, and every problem.

    Known to argparse too: `--name=value`, unambiguous abbreviations, negative numbers; of a repeated option the last.
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
    """The value of `NAME=TEXT` for a setting or option: a list is split as a shell would, a flag is true or false."""
    option = capabilities.options[Script.TRAIN].get(f"--{name}") or _SETTINGS.get(name)
    if option is None:
        return text, None  # whoever reads the settings refuses the name
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
    "num_cpu_threads_per_process": Option(
        name="--num_cpu_threads_per_process", takes_value=True, many=False, kind="int"
    )
}
"""Options of Training that are accelerate's and not the script's."""


def read_config(text: str) -> dict[str, object]:
    """The keys of a `--config_file` as the trainer takes them: tables are opened, a later key counts more.

    Raises tomllib.TOMLDecodeError. Source: read_config_from_file in both versions.
    """
    found: dict[str, object] = {}
    for name, value in tomllib.loads(text).items():
        found.update(value if isinstance(value, dict) else {name: value})
    return found


def config_path(name: str, folder: Path) -> Path:
    """The file that the trainer would read for `--config_file NAME`, which it was told in `folder`."""
    return folder / Path(name if name.endswith(".toml") else f"{name}.toml").expanduser()


def refused(names: Collection[str], *, own: Collection[str] = OWN_OPTIONS) -> Iterator[str]:
    """Why options cannot be given at all, in words; `own` are those that wan-train keeps to itself."""
    for name in names:
        if name in own:
            yield f"--{name} cannot be passed to the trainer: wan-train's own records and resume depend on it"
        elif name in _REFUSED:
            yield f"--{name} {_REFUSED[name]}"


def _grouped(
    words: Sequence[str], options: Mapping[str, Option], problems: list[str]
) -> Iterator[tuple[Option, list[str]]]:
    """Each option with the words that are its values."""
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
            problems.append(f"{one_line(name)} may be any of {', '.join(begun)}")
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
                # Source: int_or_float in both versions; `10%` is a part of all steps.
                if text.endswith("%"):
                    return float(text[:-1]) / 100, None
                number = float(text)
                return (int(text) if number >= 1 and number.is_integer() else number), None
            case _:
                return text, None
    except ValueError:
        return text, f"must be {_KINDS[kind.lstrip('_')]}, not {one_line(text)!r}"


_KINDS = {"int": "a whole number", "float": "a number", "int_or_float": "a number of steps or a part of them"}


def _read(option: Option, value: object) -> tuple[Value | None, str | None]:
    """A plain value as an option's, or what is wrong with it."""
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
            return None, f"cannot take {_shown(value)}: the trainer would read an option"
        case _, str():
            return value, None
        case _:
            pass
    return None, f"must be a text, not {_shown(value)}"


def _shown(value: object) -> str:
    return one_line(repr(value))
