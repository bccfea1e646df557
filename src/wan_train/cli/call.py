"""One call of a command with its options, as every command receives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from wan_train.base.settings import Settings, resolve
from wan_train.cli.option import Option
from wan_train.cli.options import DETACH, JSON, QUIET, options_of
from wan_train.cli.output import Sink

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Invocation:
    """One call of the program: the arguments after `--`, and the output sink once the options are parsed."""

    passthrough: tuple[str, ...] = ()
    sink: Sink | None = None


class Call:
    """One call of a command: values of its options, settings, output."""

    def __init__(self, command: str, values: Mapping[str, Any], invocation: Invocation) -> None:
        self._values = values
        self.options = options_of(command)
        self.passthrough = invocation.passthrough
        self.sink = invocation.sink = Sink(
            as_json=self.get(JSON) is True,
            aside=self.get(DETACH) is True,
            quiet=self.get(QUIET) is True,
        )

    def __getitem__(self, option: Option[T]) -> T:
        """Return the value of a switch, or of an option that is required or has a default."""
        value = self.get(option)
        assert value is not None, f"{option.word} has no default"
        return value

    def get(self, option: Option[T]) -> T | None:
        """Return an option's value or default, even if the command does not have it; None without either.

        Variants of an option share one name, so any of them works.
        """
        value: T | None = self._values.get(option.name, option.default)
        return value

    def all(self, option: Option[T]) -> Sequence[T]:
        """Return the values of a repeatable option."""
        return self._values.get(option.name) or ()

    @cached_property
    def settings(self) -> Settings:
        """The resolved settings; raises BadInputError for an invalid one."""
        return resolve(flags={each.name: self._flag(each) for each in self.options if each.is_setting})

    def _flag(self, option: Option[str]) -> str | None:
        """Return the value for `resolve`: several values are joined into one text, as in a variable."""
        return "\n".join(self.all(option)) or None if option.is_repeatable else self.get(option)
