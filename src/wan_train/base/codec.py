"""Frozen dataclasses to JSON and back; the only module that knows the format of records."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, TypeVar, get_args

import cattrs
from cattrs.preconf.json import make_converter

from wan_train.base.errors import WanTrainError

T = TypeVar("T")


class CorruptRecordError(WanTrainError):
    """A record on disk cannot be read back."""


@functools.cache
def _converter() -> cattrs.Converter:
    converter = make_converter(forbid_extra_keys=False, detailed_validation=False)
    converter.register_unstructure_hook(PurePath, str)
    # Keep a recipe's `8` as `8`: commands show numbers as the recipe has them, even after a round trip.
    converter.register_structure_hook(float, lambda value, _: _number(value))
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    return converter


@functools.cache
def register_union(union: Any) -> None:
    """Mark values of a closed union of dataclasses in JSON with a `kind` key in snake case.

    The hook of a class is made for its first value. cattrs' own union strategy makes all hooks at once, which takes a
    tenth of every command's start-up time.
    """
    converter = _converter()
    classes = {tag_of(cls): cls for cls in get_args(union)}
    tags = {cls: tag for tag, cls in classes.items()}

    def structure(data: Mapping[str, Any], _: object) -> object:
        return converter.structure(data, classes[data["kind"]])

    def unstructure(value: object) -> dict[str, Any]:
        return {**converter.unstructure(value, unstructure_as=type(value)), "kind": tags[type(value)]}

    converter.register_structure_hook(union, structure)
    converter.register_unstructure_hook(union, unstructure)


def register_values(union: Any) -> None:
    """Read plain values of a union (scalars, and tuples of them) back as they were written."""

    def structure(value: object, _: object) -> object:
        if isinstance(value, list) and all(isinstance(each, int | float | str) for each in value):
            return tuple(value)
        if isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{value!r} is not a plain value")

    _converter().register_structure_hook(union, structure)
    _converter().register_unstructure_hook(union, lambda value: value)


def tag_of(cls: type[object]) -> str:
    """`StepStarted` -> `step_started`."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in cls.__name__).lstrip("_")


def to_data(value: object, kind: Any = None) -> Any:
    """Return a record as plain dicts, lists, strings and numbers; `kind` is the union of a tagged value."""
    return _converter().unstructure(value, unstructure_as=kind or type(value))


def to_json(value: object, kind: Any = None, *, indent: int | None = None) -> str:
    """One record as text that can be written as UTF-8; raises ValueError for NaN and infinity."""
    return dumps(to_data(value, kind), indent=indent)


def dumps(data: Any, *, indent: int | None = None) -> str:
    """Plain data as JSON that can be written as UTF-8; raises ValueError for NaN and infinity."""
    text = json.dumps(data, ensure_ascii=False, indent=indent, allow_nan=False)
    # File names that are not UTF-8 contain lone surrogates. They cannot be encoded, but survive as escapes.
    return text if _encodable(text) else json.dumps(data, indent=indent, allow_nan=False)


def from_json(
    text: str | bytes,
    kind: type[T] | Any,
    *,
    where: str,
    upgrade: Callable[[Any], Any] = lambda data: data,
) -> T:
    """Read one record; `upgrade` may convert its data to the newest form. Raises CorruptRecordError naming `where`."""
    try:
        read: T = from_data(upgrade(json.loads(text)), kind)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,  # infinity for an integer field
        RecursionError,
        cattrs.BaseValidationError,
        cattrs.StructureHandlerNotFoundError,
    ) as error:
        raise CorruptRecordError(
            f"{where} cannot be read: {error}",
            hint="It was damaged, or written by a newer wan-train.",
        ) from error
    return read


def read(path: Path, kind: type[T] | Any) -> T | None:
    """Return the record in a file; None if it is missing, damaged or cannot be opened."""
    with suppress(OSError, CorruptRecordError):
        found: T = from_json(path.read_bytes(), kind, where=str(path))
        return found
    return None


def read_lines(path: Path, kind: type[T] | Any) -> list[T]:
    """Return the records of a file, one a line; empty if the file is missing. Raises OSError.

    Unreadable lines are skipped: a crash or a full disk cut them short, or a newer version wrote them.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found: list[T] = []
    for line in lines:
        with suppress(CorruptRecordError):
            found.append(from_json(line, kind, where=str(path)))
    return found


def from_data(data: Any, kind: type[T] | Any) -> T:
    """Return a record from plain data; errors of cattrs and of the hooks pass through."""
    read: T = _converter().structure(data, kind)
    return read


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise TypeError(f"{value!r} is not a number")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


__all__ = [
    "CorruptRecordError",
    "dumps",
    "from_data",
    "from_json",
    "read",
    "read_lines",
    "register_union",
    "register_values",
    "tag_of",
    "to_data",
    "to_json",
]
