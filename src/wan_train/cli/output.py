"""The only module that prints: data to stdout, everything else to stderr, control characters escaped."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from wan_train.base.errors import BadInputError, ExitCode, WanTrainError
from wan_train.base.text import redact, visible

if TYPE_CHECKING:  # rich takes 30 ms to import; `--json` and `--help` do not need it
    from rich.console import Console, RenderableType

SCHEMA = 1
"""Version of docs/json-schema.json, in every line: raised when a key is removed or changed, not when one is added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a command or of one of its steps. Only the printed form is computed."""

    data: Callable[[], Mapping[str, Any]] | None = None
    """The JSON document."""
    text: Callable[[Sink], None] | None = None
    """Prints the same for people."""
    error: WanTrainError | None = None
    """Why it failed. Its exit code applies; the JSON document has the details for programs."""
    exit_code: int = ExitCode.DONE


class Sink:
    """Prints for people or, with `as_json`, for programs: then stdout contains only JSON lines."""

    def __init__(self, *, as_json: bool = False, aside: bool = False, quiet: bool = False) -> None:
        """`aside`: text for people goes to stderr, as stdout has only the ID for a script (`--detach`).

        `quiet`: of the text for people, only `text`, `outcome` and errors are printed.
        """
        self.as_json = as_json
        self.quiet = quiet
        self._aside = aside

    @cached_property
    def console(self) -> Console:
        """The console for people: stdout, or stderr if stdout is for a program."""
        from rich.console import Console

        return Console(stderr=self.as_json or self._aside, highlight=False, soft_wrap=False)

    def render(self, result: Result) -> int:
        """Print a result as text or as JSON; returns its exit code."""
        if self.as_json:
            if result.data is not None:
                self.data(result.data())
        elif result.text is not None:
            result.text(self)
        if result.error is None:
            return result.exit_code
        self.complain(result.error)
        return result.error.exit_code

    @property
    def can_ask(self) -> bool:
        """Whether a person can answer questions and watch a live view."""
        return self.is_terminal and not self.as_json

    def require_person(self, what: str, hint: str) -> None:
        """Raise BadInputError without a terminal to ask at."""
        if not self.can_ask:
            raise BadInputError(f"{what}: without a terminal, --yes is required", hint=hint)

    @property
    def is_terminal(self) -> bool:
        return sys.stdin.isatty() and self.is_screen

    @property
    def is_screen(self) -> bool:
        """Whether stdout can be redrawn; stdin may still not be a terminal (`curl … | bash`)."""
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def can_draw(self) -> bool:
        """Whether progress may be shown on a redrawn screen."""
        return self.is_screen and not self.as_json and not self.quiet

    @property
    def ascii_only(self) -> bool:
        encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
        # Python writes UTF-8 even in the C locale. A user who sets C explicitly has a terminal without UTF-8.
        locale = os.environ.get("LC_ALL") or os.environ.get("LANG")
        return "utf" not in encoding or locale in {"C", "POSIX"}

    def show(self, renderable: RenderableType) -> None:
        """Print for people only, unless quiet. Paths stay whole on one line, so that they can be copied."""
        if self.as_json or self.quiet:
            return
        from wan_train.views.lines import Screenful

        if self.ascii_only and isinstance(renderable, Screenful):
            renderable = renderable.in_ascii()
        self.console.print(renderable, soft_wrap=True)

    def line(self, text: str) -> None:
        """One plain line of information, never interpreted as markup."""
        if not self.quiet:
            self.outcome(text)

    def step(self, text: str) -> None:
        """Print one line of progress; on stderr if the data are JSON."""
        if self.as_json:
            self.note(text)
        else:
            self.line(text)

    def outcome(self, text: str) -> None:
        """Print the one line with the outcome, even if quiet; nothing for JSON."""
        if not self.as_json:
            sys.stdout.write(f"{_safe(text)}\n")
            sys.stdout.flush()

    def text(self, block: str) -> None:
        """Print several lines meant to be copied or piped."""
        if not self.as_json:
            sys.stdout.write("".join(f"{_safe(line)}\n" for line in block.rstrip("\n").split("\n")))
            sys.stdout.flush()

    def data(self, value: Mapping[str, Any]) -> None:
        """Print one JSON object with an `event` on one line of stdout; docs/json-schema.json describes each."""
        from wan_train.base.codec import dumps

        sys.stdout.write(dumps({"schema": SCHEMA, **value}) + "\n")
        sys.stdout.flush()

    def counter(self, what: str, *, patience: float = 0.0) -> Callable[[int, int], None]:
        """Return a counter `(done, all)` that uses one terminal line after `patience` seconds; cleared at the end."""
        if not self.can_ask:
            return lambda _done, _all: None
        began = time.monotonic()

        def show(done: int, to_do: int) -> None:
            is_last = done == to_do
            if time.monotonic() - began >= patience and (is_last or to_do < 100 or done % 50 == 0):
                sys.stderr.write("\r\x1b[K" if is_last else f"\r{what}: {done:,} of {to_do:,}")
                sys.stderr.flush()

        return show

    def note(self, text: str) -> None:
        """Print a remark on stderr, unless quiet."""
        if not self.quiet:
            sys.stderr.write(f"{_safe(text)}\n")

    def error(self, error: WanTrainError) -> None:
        """Report an error and its hint on stderr; with `as_json` also as JSON."""
        self.complain(error)
        if self.as_json:
            self.data(
                {
                    "event": "error",
                    "exit_code": int(error.exit_code),
                    "message": redact(error.message),
                    "hint": redact(error.hint) if error.hint is not None else None,
                }
            )

    def complain(self, error: WanTrainError) -> None:
        """Report an error and its hint on stderr only."""
        told = "".join(
            _folded(f"{'' if number else 'error: '}{line}") for number, line in enumerate(error.message.split("\n"))
        )
        if error.hint:
            told += "\n" + "".join(_folded(f"hint: {line}") for line in error.hint.split("\n"))
        sys.stderr.write(told)


def _folded(line: str) -> str:
    """Return a line for stderr, wrapped between words at a terminal. Paths and commands stay whole for copying."""
    line = _safe(line)
    if not sys.stderr.isatty():
        return f"{line}\n"
    whole = re.sub(r"`[^`]*`|wan-train .*", lambda command: command[0].replace(" ", _KEPT), line)
    indent = " " * (len(line) - len(line.lstrip()))
    width = shutil.get_terminal_size().columns
    folded = textwrap.wrap(whole, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "".join(f"{each}\n" for each in folded or [""]).replace(_KEPT, " ")


_KEPT = "\0"
"""Stands for a space without a line break; the output of `_safe` never contains it."""


def _safe(text: str) -> str:
    return visible(redact(text))
