"""Typer's own errors in wan-train's words: an unknown flag, a value that is no number, a word too many."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wan_train.errors import BadInputError
from wan_train.printable import one_line

_KINDS = (
    (re.compile(r"^(.+) is not a valid int"), "is not a whole number"),
    (re.compile(r"^(.+) is not a valid float"), "is not a number"),
    (re.compile(r"^(.+) is not a valid boolean"), "is neither 1 nor 0"),
)
"""Typer's words for a value of the wrong kind, which begin with the value in quotes, and ours."""

_WORDS = (
    (re.compile(r"^No such command (.*?)\.?( Did|$)"), r"there is no verb \1.\2"),
    (re.compile(r"^No such option: (\S+)"), r"there is no flag \1"),
    (re.compile(r"^Option '(.+)' requires an argument"), r"\1 needs a value"),
    (re.compile(r"^Missing argument '(.+)'"), r"\1 is missing"),
    (re.compile(r"^Missing parameter: (\w+)"), r"\1 is missing"),
)
"""Typer's words, and ours: one word for each thing."""


def usage_error(error: Exception, arguments: Sequence[str]) -> BadInputError | None:
    """What is wrong with the words of a command line; None for any other error."""
    message = getattr(error, "format_message", None)
    if message is None:
        return None
    context = getattr(error, "ctx", None)
    verb = context.command_path if context is not None else _verb(arguments)
    told = _wrong_value(error) or str(message())
    hint = f"`{verb} --help` explains its flags."
    match type(error).__name__, told:
        case "NoSuchCommand" | "UsageError", _ if told.startswith("No such command"):
            word = told.split("'")[1] if "'" in told else ""
            hint = f"{_dataset_hint(word)}`{verb} --help` lists the verbs."
        case _, "Missing command.":
            verbs = " or ".join(getattr(context.command, "commands", ())) if context is not None else ""
            told, hint = f"`{verb}` needs a verb: {verbs}", f"`{verb} --help` explains them."
        case "UsageError", _ if told.startswith("Got unexpected extra argument"):
            word = told.partition("(")[2].partition("(")[2].rstrip(")")
            told = f"{one_line(word)!r} is more than `{verb}` takes"
            hint = f"{_dataset_hint(word) if verb == 'wan-train train' else ''}{hint}"
        case _:
            pass
    for theirs, ours in _WORDS:
        told = theirs.sub(ours, told)
    return BadInputError(told.removesuffix("."), hint=hint)


def _verb(arguments: Sequence[str]) -> str:
    """The verb that is meant, where Typer does not say it."""
    named = bool(arguments) and not arguments[0].startswith("-")
    return f"wan-train {arguments[0]}" if named else "wan-train train"


def _dataset_hint(word: str) -> str:
    """For who names the dataset only."""
    return f"To train on a dataset: `wan-train --dataset {word}`. " if "/" in word or Path(word).exists() else ""


def _wrong_value(error: Exception) -> str | None:
    """`--epochs 'ten' is not a whole number`, with the name of the variable where the value came from one."""
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
