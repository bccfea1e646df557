"""Read settings from plain values of any source: check names, types and ranges, and make files absolute."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from wan_train.base.home import expanded
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
"""The trainer's options for attention, which is one setting here."""

FIELDS = {field.name: field for field in fields(Training) if field.name not in {"attention", "options"}}
"""The settings of Training that are read under their own name."""

RANGES: Mapping[str, tuple[float, float]] = {
    name: field.metadata["range"] for name, field in FIELDS.items() if "range" in field.metadata
}


class Options(Protocol):
    """The trainer options besides the settings of Training, by names without dashes."""

    @property
    def names(self) -> Collection[str]: ...

    @property
    def files(self) -> Collection[str]:
        """The options whose values are files."""

    def read(self, name: str, value: object) -> tuple[Value | None, str | None]:
        """The value as the trainer takes it, or its problem."""

    def refusal(self, name: str) -> str | None:
        """Why a trainer option may not be given, or None."""

    def layers(self, words: Sequence[str], *, folder: Path, source: Source) -> tuple[list[Layer], list[str]]:
        """The settings in arguments for the training script, and their problems."""


def read_settings(
    given: Mapping[str, object], *, options: Options | None, folder: Path, called: Callable[[str], str]
) -> tuple[dict[str, Any], list[str]]:
    """Values by setting (`attention`, the fields of Training, options), and every problem.

    A relative file is resolved against `folder`; `called` is how a problem names a key.
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
            read, problem = _field(key, value)
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
            is_file = _has(key, "is_file") or (options is not None and key in options.files)
            values[key] = _absolute(read, folder) if is_file else read
    return values, problems


def shared_only(name: str) -> str | None:
    """Why a setting cannot be given for one expert alone; None if it can."""
    return "applies to both experts; set it for both" if _has(name, "is_shared") else None


def unknown(key: str, known: Collection[str], called: Callable[[str], str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"unknown key {one_line(called(key))}" + (f" (did you mean {called(close[0])}?)" if close else "")


def _named_attention(given: Mapping[str, object]) -> set[Attention]:
    named = str(given.get("attention"))
    return {Attention(named)} if named in set(Attention) else set()


def _field(key: str, value: object) -> tuple[Any, str | None]:
    """The value of a field of Training, or what is wrong with it."""
    own = FIELDS[key].metadata.get("read")
    if own is not None:
        read: tuple[Any, str | None] = own(value)
        return read
    typed, problem = _typed(value, str(FIELDS[key].type))
    return typed, problem or _range_problem(key, typed) or _word_problem(key, typed)


def _typed(value: object, kind: str) -> tuple[Any, str | None]:
    """The value if it fits the annotation of a Training field, else its problem."""
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
    return None, f"must be {names.get(kind.removesuffix(' | None'), 'a list of strings')}, not {one_line(repr(value))}"


def _range_problem(name: str, value: object) -> str | None:
    if name not in RANGES or not isinstance(value, int | float):
        return None
    low, high = RANGES[name]
    return None if low <= value <= high else f"must be from {low:g} to {high:g}, not {value}"


def _word_problem(name: str, value: object) -> str | None:
    words = FIELDS[name].metadata.get("words")
    if words is None or value in words:
        return None
    return f"must be one of {', '.join(words)}, not {one_line(repr(value))}"


def _has(name: str, what: str) -> bool:
    return name in FIELDS and what in FIELDS[name].metadata


def _absolute(value: object, folder: Path) -> object:
    if isinstance(value, tuple):
        return tuple(_absolute(each, folder) for each in value)
    return str(folder / expanded(value)) if isinstance(value, str) else value
