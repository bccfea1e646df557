"""Settings read from plain values, whoever gave them: known names, types and ranges, files made absolute."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from wan_train.base.text import one_line
from wan_train.recipe.effective import Layer
from wan_train.recipe.model import Source, Training, Value
from wan_train.recipe.terms import Attention

ATTENTION_KEYS: Mapping[str, Attention] = {
    "sdpa": Attention.SDPA,
    "xformers": Attention.XFORMERS,
    "flash_attn": Attention.FLASH,
    "flash3": Attention.FLASH3,
    "sage_attn": Attention.SAGE,
}
"""The trainer's own options for what is one setting here."""

FIELDS = {field.name: field for field in fields(Training) if field.name not in {"attention", "options"}}
"""The settings of Training that have the name of a trainer's option."""

_SHARED = ("save_every_n_epochs", "sample_prompts", "sample_every_n_epochs", "sample_at_first")

_FILES = ("network_weights", "sample_prompts")

# Ranges that no sensible run leaves; outside them the trainer fails late or trains nothing.
RANGES: Mapping[str, tuple[float, float]] = {
    "learning_rate": (1e-9, 1.0),
    "network_dim": (1, 1024),
    "network_alpha": (1e-3, 4096),
    "max_train_epochs": (1, 100_000),
    "save_every_n_epochs": (1, 100_000),
    "sample_every_n_epochs": (1, 100_000),
    "gradient_accumulation_steps": (1, 1024),
    "max_data_loader_n_workers": (0, 64),
    "num_cpu_threads_per_process": (1, 256),
    "blocks_to_swap": (0, 39),  # Wan 2.2 A14B has 40 blocks and the trainer wants one to stay
    "seed": (0, 2**32 - 1),
    "max_grad_norm": (0, 1e6),
    "discrete_flow_shift": (1e-3, 100),
    "lr_scheduler_power": (1e-3, 100),
    "lr_scheduler_min_lr_ratio": (0, 1),
    "lr_warmup_steps": (0, 10_000_000),
}

# Settings of few words, the same in every trainer version; a wrong one would only show after the caching.
_WORDS: Mapping[str, tuple[str, ...]] = {"mixed_precision": ("no", "fp16", "bf16")}


class Options(Protocol):
    """What a trainer takes beside the settings of Training, by names without dashes."""

    @property
    def names(self) -> Collection[str]: ...

    @property
    def files(self) -> Collection[str]:
        """Those whose values are files."""

    def read(self, name: str, value: object) -> tuple[Value | None, str | None]:
        """The value as the trainer takes it, or what is wrong with it."""

    def refusal(self, name: str) -> str | None:
        """Why an option that the trainer has cannot be given."""

    def layers(self, words: Sequence[str], *, folder: Path, source: Source) -> tuple[list[Layer], list[str]]:
        """The settings that words for the training script give, and what is wrong with them."""


def read_settings(
    given: Mapping[str, object], *, options: Options | None, folder: Path, called: Callable[[str], str]
) -> tuple[dict[str, Any], list[str]]:
    """Values by setting (`attention`, the fields of Training, options), and every problem.

    A relative file counts from `folder`; `called` is how a problem names a key.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    implementations = {
        implementation for key, implementation in ATTENTION_KEYS.items() if given.get(key) is True
    } | _named_attention(given)
    if len(implementations) == 1:
        values["attention"] = implementations.pop()
    elif implementations:
        problems.append(f"{called('attention')}: only one of {', '.join(ATTENTION_KEYS)} may be given")
    known = {*FIELDS, *(options.names if options is not None else ())}
    for key, value in given.items():
        read: Any
        if key == "attention":
            read, problem = None, None
            if str(value) not in set(Attention):
                problem = f"must be one of {', '.join(Attention)}, not {one_line(repr(value))}"
        elif key in ATTENTION_KEYS:
            read, problem = None, None if isinstance(value, bool) else "must be true or false"
        elif key in FIELDS:
            read, problem = _typed(value, str(FIELDS[key].type))
            problem = problem or _range_problem(key, read) or _word_problem(key, read)
        elif options is not None and key in known:
            read, problem = options.read(key, value)
        else:
            refusal = options.refusal(key) if options is not None else None
            problems.append(
                f"{called(key)} {refusal}"
                if refusal is not None
                else unknown(key, (*known, "attention", *ATTENTION_KEYS), called)
            )
            continue
        if problem is not None:
            problems.append(f"{called(key)} {problem}")
        elif read is not None:
            is_file = key in _FILES or (options is not None and key in options.files)
            values[key] = _absolute(read, folder) if is_file else read
    return values, problems


def shared_only(name: str) -> str | None:
    """Why a setting cannot be given for one expert alone, None for those that can."""
    return "holds for both experts: give it for both" if name in _SHARED else None


def unknown(key: str, known: Collection[str], called: Callable[[str], str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"unknown key {one_line(called(key))}" + (f" (did you mean {called(close[0])}?)" if close else "")


def _named_attention(given: Mapping[str, object]) -> set[Attention]:
    named = str(given.get("attention"))
    return {Attention(named)} if named in set(Attention) else set()


def _typed(value: object, kind: str) -> tuple[Any, str | None]:
    """The value if it fits the annotation of a Training field, else what is wrong with it."""
    match kind.removesuffix(" | None"), value:
        case "bool", bool():
            return value, None
        case "int", int() if not isinstance(value, bool):
            return value, None
        case "float", int() | float() if not isinstance(value, bool) and abs(value) < math.inf:
            return value, None
        case "str", str() if value:
            return value, None
        case "tuple[str, ...]", list() | tuple() if all(isinstance(word, str) for word in value):
            return tuple(value), None
        case _:
            pass
    names = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}
    return None, f"must be {names.get(kind.removesuffix(' | None'), 'a list of texts')}, not {one_line(repr(value))}"


def _range_problem(name: str, value: object) -> str | None:
    if name not in RANGES or not isinstance(value, int | float):
        return None
    low, high = RANGES[name]
    return None if low <= value <= high else f"must be from {low:g} to {high:g}, not {value}"


def _word_problem(name: str, value: object) -> str | None:
    if name not in _WORDS or value in _WORDS[name]:
        return None
    return f"must be one of {', '.join(_WORDS[name])}, not {one_line(repr(value))}"


def _absolute(value: object, folder: Path) -> object:
    if isinstance(value, tuple):
        return tuple(_absolute(each, folder) for each in value)
    if not isinstance(value, str):
        return value
    try:
        return str(folder / Path(value).expanduser())
    except RuntimeError:  # `~name` of nobody: the file will not be found, under the name that was given
        return str(folder / value)
