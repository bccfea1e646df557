"""Commands as shell text, one option a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from shlex import quote

from wan_train.engine.commands import Command

_NEEDS_THE_INDEX = frozenset({"--skip_existing", "--keep_cache"})
_OPTION = re.compile(r"--?[A-Za-z]")


def one_option_a_line(command: Command) -> str:
    """The command, variables and program first; nothing in it is hidden."""
    words = [f"{name}={quote(value)}" for name, value in sorted(command.env.items())]
    words += [" ".join(quote(word) for word in group) for group in _groups(command.argv)]
    return " \\\n  ".join(words)


def _groups(argv: Sequence[str]) -> list[list[str]]:
    groups: list[list[str]] = []
    for word in argv:
        # The program that accelerate launches stands after an option of its own.
        if not groups or _OPTION.match(word) or word.endswith(".py"):
            groups.append([word])
        else:
            groups[-1].append(word)
    return groups


def standalone(command: Command) -> Command:
    """The command for a place where nobody removes stale caches before it: caching then encodes everything anew and
    removes what is of no item, as in the guide.
    """
    return replace(command, argv=tuple(word for word in command.argv if word not in _NEEDS_THE_INDEX))
