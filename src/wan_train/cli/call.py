"""One call of a command, as its options were given: what every command gets."""

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
    """One call of the program: the words after `--`, and where output goes once the options are read."""

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
        """The value of an option that is a switch, has a default or is required."""
        value = self.get(option)
        assert value is not None, f"{option.word} has no default"
        return value

    def get(self, option: Option[T]) -> T | None:
        """None where it was not given, and for an option that the command does not have.

        Variants of an option have one name, so any of them may be asked for.
        """
        value: T | None = self._values.get(option.name, option.default)
        return value

    def all(self, option: Option[T]) -> Sequence[T]:
        """The values of a repeatable option."""
        return self._values.get(option.name) or ()

    @cached_property
    def settings(self) -> Settings:
        """Raises BadInputError for a setting that cannot be used."""
        return resolve(flags={each.name: self._flag(each) for each in self.options if each.is_setting})

    def _flag(self, option: Option[str]) -> str | None:
        """As `resolve` takes it: several values in one text, as in a variable."""
        return "\n".join(self.all(option)) or None if option.is_repeatable else self.get(option)
