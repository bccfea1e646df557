"""Write the tables of flags.md from the table of options: `python docs/generate_flags.py`, or `make docs`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from wan_train.base.settings import Settings, environment_name
from wan_train.cli.option import Option
from wan_train.cli.options import TABLE, options_of
from wan_train.recipe.values import RANGES

DOCUMENT = Path(__file__).parent / "flags.md"
_HEAD = ("| Option | Variable | Default | Meaning |", "| --- | --- | --- | --- |")
COMMANDS = sorted({command for option in TABLE for command in option.commands.split(", ")})


def updated(document: str) -> str:
    """The document with updated tables of commands and settings."""
    for command in COMMANDS:
        options = [option for option in options_of(command) if not option.is_argument]
        document = _with_table(document, command, map(_row, options))
    return _with_table(document, "Settings", _settings())


def _with_table(document: str, heading: str, rows: Iterable[str]) -> str:
    table = "\n".join((*_HEAD, *rows))
    pattern = re.compile(rf"(^## {re.escape(heading)}\n(?:(?!## |\|).*\n)*)(?:\|.*\n)+", re.MULTILINE)
    if not pattern.search(document):
        raise ValueError(f"no table below the heading {heading!r}")
    return pattern.sub(lambda found: f"{found[1]}{table}\n", document)


def _row(option: Option[Any]) -> str:
    default = option.default_text or ("off" if option.kind is bool else "")
    words = " ".join(f"{flag}" for flag in option.flags).replace("/", " ").split()
    meaning = " ".join(filter(None, (option.help.replace("|", "\\|"), option.more, _range(option))))
    return _cells(", ".join(f"`{word}`" for word in words), _code(option.variable), default, meaning)


def _range(option: Option[Any]) -> str:
    bounds = RANGES.get(option.recipe_key or "", ())
    return " to ".join(f"{bound:g}" if bound < 1 else str(bound) for bound in bounds) + ("." if bounds else "")


def _settings() -> Iterator[str]:
    for field in fields(Settings):
        if field.name != "sources":
            about = field.metadata
            default = about["unset"] or str(field.default)
            meaning = " ".join(filter(None, (about["about"], about["more"])))
            yield _cells(_code(field.name), _code(environment_name(field.name)), default, meaning)


def _code(text: str | None) -> str:
    return "" if text is None else f"`{text}`"


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
