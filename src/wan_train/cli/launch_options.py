"""Options of `wan-train train` in a launch: checked before anything is rented, and passed to a box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

from wan_train.base.errors import BadInputError
from wan_train.cli import options
from wan_train.cli.call import Call, Invocation
from wan_train.cli.option import Group, Option
from wan_train.cli.options import options_of
from wan_train.cli.request import dataset_overrides, read_recipe
from wan_train.cli.usage_errors import usage_error
from wan_train.engine import capabilities
from wan_train.engine.extra_arguments import TrainerOptions
from wan_train.launch.jobs import VERSION, JobOptions

_COMMAND = "train"
_OF_LAUNCH = (options.AUTHOR, options.RECIPE)
"""Options of both commands that do not go to the box as arguments."""


def train_options(call: Call) -> tuple[str, ...]:
    """A launch's options for its trainings, as arguments of `wan-train train`."""
    return (*_words(call), *(("--", *call.passthrough) if call.passthrough else ()))


def _words(call: Call) -> Iterator[str]:
    for option in _shared(call):
        if option.is_repeatable:
            for value in call.all(option):
                yield from (option.flag, str(value))
            continue
        value = call.get(option)
        if value is None or value == option.default:
            continue
        if option.kind is bool:
            yes, no = option.word.split("/")
            yield yes if value else no
        else:
            yield from (option.flag, str(value))


def _shared(call: Call) -> list[Option[Any]]:
    known = options_of(_COMMAND)
    return [
        each
        for each in call.options
        if each in known and each not in _OF_LAUNCH and each.group in {Group.WHAT, Group.HOW}
    ]


def read_options(words: Sequence[str]) -> JobOptions:
    """Parse one job's options as `wan-train train` does. Invalid ones become problems, with train's own messages."""
    from wan_train.cli.main import split

    ours, passthrough = split(words)
    try:
        call = _call(ours, passthrough)
        recipe = read_recipe(call, TrainerOptions(capabilities=capabilities.stored(VERSION)))
        return JobOptions(recipe=recipe, overrides=dataset_overrides(call))
    except BadInputError as error:
        return JobOptions(problems=tuple(line.strip() for line in error.message.split("\n")))


def _call(words: Sequence[str], passthrough: tuple[str, ...]) -> Call:
    """Parse without environment variables, because this computer's are not the box's. Raises BadInputError."""
    import typer

    from wan_train.cli.app import app

    program: Any = typer.main.get_command(app)
    try:
        parsed = program.commands[_COMMAND].make_context(_COMMAND, list(words))
    except Exception as error:
        problem = usage_error(error, [_COMMAND, *words])
        if problem is None:
            raise
        raise problem from None
    values = {option.name: _value(option, parsed.params[option.name]) for option in options_of(_COMMAND)}
    typed = {name: value for name, value in values.items() if _is_typed(parsed, name)}
    return Call(_COMMAND, typed, Invocation(passthrough=passthrough))


def _value(option: Option[Any], value: Any) -> Any:  # noqa: ANN401  of the option's own type
    """A parsed value as the command gets it: Typer turns words into members of an enumeration only when it calls it."""
    if isinstance(value, str) and issubclass(option.kind, Enum):
        return option.kind(value)
    return value


def _is_typed(parsed: Any, name: str) -> bool:  # noqa: ANN401  a type of Typer's own parsing library
    return getattr(parsed.get_parameter_source(name), "name", "") == "COMMANDLINE"
