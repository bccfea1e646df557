"""Which trainer is installed, and with which packages: `configs/engines/*.toml` or a file of the user's own."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_train.base.errors import BadInputError
from wan_train.base.home import expand
from wan_train.base.settings import shipped_configs
from wan_train.base.text import one_line

DEFAULT = "guide"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_VERSION = re.compile(r"3\.\d{1,2}")
_EXACT = re.compile(r"[a-z0-9][a-z0-9+.-]+=[0-9][A-Za-z0-9.+:~-]*")

_HINT = "Begin with a copy of a shipped engine: configs/engines/guide.toml."


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentRecord:
    """The identity of an environment made from an engine file."""

    commit: str
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFile:
    """One installable trainer. `python_minimum` and `python_maximum` are minor versions of Python 3, inclusive."""

    name: str
    repository: str
    commit: str
    python_minimum: int
    python_maximum: int
    first: tuple[str, ...]
    first_index: str | None
    extra: tuple[str, ...]
    arguments: tuple[str, ...]
    system: tuple[str, ...] = ()
    """`package=version` for apt, installed only if exactly that version is offered."""

    @property
    def python_range(self) -> str:
        return f"3.{self.python_minimum} to 3.{self.python_maximum}"

    def record(self) -> EnvironmentRecord:
        return EnvironmentRecord(commit=self.commit, packages=(*self.first, *self.extra))


def shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted((shipped_configs() / "engines").glob("*.toml"))}


def load(reference: str) -> EngineFile:
    """Load an engine by shipped name or file; raises BadInputError that names the invalid key."""
    path = shipped().get(reference)
    if path is None:
        path = expand(reference) if reference.endswith(".toml") else None
    if path is None:
        raise BadInputError(
            f"{one_line(reference)!r} is neither a shipped engine nor a .toml file",
            hint=f"Shipped engines: {', '.join(shipped())}.",
        )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8 or not TOML
        raise BadInputError(f"the engine file {path} cannot be read: {error}", hint=_HINT) from error
    return _parse(data, path)


def for_commit(commit: str | None) -> EngineFile | None:
    """The shipped engine of a commit; None if there is none."""
    return next((engine for name in shipped() if (engine := load(name)).commit == commit), None)


def _parse(data: dict[str, Any], path: Path) -> EngineFile:
    known = {
        "musubi": {"repository", "commit"},
        "python": {"minimum", "maximum"},
        "packages": {"first", "first_index", "extra", "arguments"},
        "system": {"exact"},
    }
    for table, entries in data.items():
        unknown = set(entries) - known.get(table, set()) if isinstance(entries, dict) else {table}
        if table not in known or unknown:
            raise BadInputError(
                f"{path} has an unknown entry: {one_line(' '.join([table, *sorted(unknown)]))}", hint=_HINT
            )

    def text(table: str, key: str, shape: re.Pattern[str] | None = None) -> str:
        value = data.get(table, {}).get(key)
        # A word that begins with a dash would be read as an option by git or pip.
        if not isinstance(value, str) or not value or value.startswith("-") or (shape and not shape.fullmatch(value)):
            raise BadInputError(
                f"{path}: {key} in [{table}] is missing or has the wrong form: {one_line(str(value))}", hint=_HINT
            )
        return value

    def words(table: str, key: str, shape: re.Pattern[str] | None = None) -> tuple[str, ...]:
        value = data.get(table, {}).get(key, [])
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise BadInputError(f"{path}: {key} in [{table}] is not a list of strings", hint=_HINT)
        wrong = next((word for word in value if shape and not shape.fullmatch(word)), None)
        if wrong is not None:
            raise BadInputError(
                f"{path}: {key} in [{table}] has an entry of the wrong form: {one_line(wrong)}", hint=_HINT
            )
        return tuple(value)

    return EngineFile(
        name=path.stem,
        repository=text("musubi", "repository"),
        commit=text("musubi", "commit", _COMMIT),
        python_minimum=int(text("python", "minimum", _VERSION).split(".")[1]),
        python_maximum=int(text("python", "maximum", _VERSION).split(".")[1]),
        first=words("packages", "first"),
        first_index=text("packages", "first_index") if "first_index" in data.get("packages", {}) else None,
        extra=words("packages", "extra"),
        arguments=words("packages", "arguments"),
        system=words("system", "exact", _EXACT),
    )
