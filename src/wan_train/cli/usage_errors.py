"""Typer's errors in wan-train's words, and warnings about unknown variables."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from wan_train.base.errors import BadInputError
from wan_train.base.settings import Settings, environment_name
from wan_train.base.text import one_line

_KINDS = (
    (re.compile(r"^(.+) is not a valid int"), "is not a whole number"),
    (re.compile(r"^(.+) is not a valid float"), "is not a number"),
    (re.compile(r"^(.+) is not a valid boolean"), "is neither 1 nor 0"),
)
"""Typer's words for a value of the wrong type, which begin with the quoted value, and ours."""

_WORDS = (
    (re.compile(r"^Option '(.+)' requires an argument"), r"\1 needs a value"),
    (re.compile(r"^Missing argument '(.+)'"), r"\1 is missing"),
    (re.compile(r"^Missing parameter: (\w+)"), r"\1 is missing"),
)
"""Typer's words, and ours: one term for each thing."""

_PREFIX = "WAN_TRAIN_"
_OF_SCRIPTS = frozenset({"WAN_TRAIN_SOURCE", "WAN_TRAIN_BIN", "WAN_TRAIN_ATTEMPT"})
"""Variables of scripts/ and trainers; a box that sets them passes them to all its shells."""


def usage_error(error: Exception, arguments: Sequence[str]) -> BadInputError | None:
    """Return the problem of a command line; None for any other error."""
    message = getattr(error, "format_message", None)
    if message is None:
        return None
    context: Any = getattr(error, "ctx", None)
    command = context.command_path.removesuffix(" start") if context is not None else _command(arguments)
    told = _wrong_value(error) or str(message())
    hints = [f"`{command} --help` explains its options."]
    match type(error).__name__, told:
        case "NoSuchCommand" | "UsageError", _ if told.startswith("No such command"):
            word = told.removeprefix("No such command ").partition(". Did")[0].rstrip(".")[1:-1]
            told = f"no such command: {one_line(word)}"
            known = context.command.list_commands(context) if context is not None else ()
            hints = [*_meant(word, known, command), *_dataset_hint(word), f"`{command} --help` lists the commands."]
        case "NoSuchOption", _:
            word = str(getattr(error, "option_name", ""))
            told = f"no such option: {one_line(word)}"
            known = [name for each in context.command.params for name in each.opts] if context is not None else []
            hints = [*(f"Did you mean `{name}`?" for name in closest(word, known)), *hints]
        case _, "Missing command.":
            names = " or ".join(getattr(context.command, "commands", ())) if context is not None else ""
            told, hints = f"`{command}` needs a command: {names}", [f"`{command} --help` explains them."]
        case "UsageError", _ if told.startswith("Got unexpected extra argument"):
            words = told.partition("(")[2].partition("(")[2].rstrip(")")
            told = f"unexpected arguments: {one_line(words)}"
            hints = [*(_dataset_hint(words) if command == "wan-train train" else ()), *hints]
        case _:
            pass
    for theirs, ours in _WORDS:
        told = theirs.sub(ours, told)
    return BadInputError(told.removesuffix("."), hint="\n".join(hints))


def closest(word: str, known: Iterable[str]) -> list[str]:
    """Return the one likely name, or none: a wrong suggestion is worse than a list."""
    bare = word.lstrip("-").lower()
    names = {name.lstrip("-").lower(): name for name in known if bare[:1] == name.lstrip("-").lower()[:1] != ""}
    return [names[found] for found in difflib.get_close_matches(bare, names, n=1, cutoff=0.75)]


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each WAN_TRAIN_ variable that nothing reads."""
    settings = {environment_name(each.name) for each in fields(Settings) if each.name != "sources"}
    unknown = sorted(name for name in environ if name.startswith(_PREFIX) and name not in settings | _OF_SCRIPTS)
    if not unknown:
        return []
    from wan_train.cli.options import TABLE

    known = settings | {each.variable for each in TABLE if each.variable is not None}
    lines = []
    for name in unknown:
        if name not in known:
            ours = {each.removeprefix(_PREFIX): each for each in known}
            meant = "".join(f"; did you mean {ours[each]}?" for each in closest(name.removeprefix(_PREFIX), ours))
            lines.append(f"warning: {one_line(name)} is not a variable of wan-train{meant}")
    return lines


def _command(arguments: Sequence[str]) -> str:
    """Return the intended command if Typer does not report it."""
    named = bool(arguments) and not arguments[0].startswith("-")
    return f"wan-train {arguments[0]}" if named else "wan-train train"


def _meant(word: str, known: Iterable[str], command: str) -> list[str]:
    return [f"Did you mean `{command} {name}`?" for name in closest(word, known)]


def _dataset_hint(word: str) -> list[str]:
    """Return a hint for a user who names only a dataset."""
    if "/" not in word and not Path(word).exists():
        return []
    return [f"To train on a dataset: `wan-train --dataset {shlex.quote(one_line(word, 1000))}`."]


def _wrong_value(error: Exception) -> str | None:
    """Return `--epochs 'ten' is not a whole number`, or the same with the variable that set the value."""
    parameter: Any = getattr(error, "param", None)
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ != "BadParameter" or parameter is None or context is None:
        return None
    source = context.get_parameter_source(parameter.name)
    from_variable = getattr(source, "name", "") == "ENVIRONMENT" and isinstance(parameter.envvar, str)
    name = parameter.envvar if from_variable else parameter.opts[0]
    theirs = str(getattr(error, "message", error))
    for pattern, what in _KINDS:
        if found := pattern.match(theirs):
            value = one_line(found[1])
            return f"{name} is {value}, which {what}" if from_variable else f"{name} {value} {what}"
    return f"{name}: {one_line(theirs.removesuffix('.'))}"
