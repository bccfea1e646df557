"""`wan-train recipe show` and `wan-train recipe diff`: effective settings with their sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.cli.output import Sink
from wan_train.cli.weights import path_of
from wan_train.engine import trainer as trainers
from wan_train.engine.capabilities import KNOWN_COMMITS, stored
from wan_train.engine.extra_arguments import TrainerOptions
from wan_train.recipe import load as recipes
from wan_train.recipe.effective import Effective, effective
from wan_train.recipe.model import Recipe
from wan_train.run.directory import find
from wan_train.views import formatting
from wan_train.views.lines import Line, Row, Screenful, Span, line, table


def show(settings: Settings, sink: Sink, name: str) -> None:
    """Every setting of one recipe or run, and who set it."""
    rows = list(effective([_named(settings, name)]))
    if sink.as_json:
        sink.data(_json([name], rows))
        return
    labelled = [Row(label=row.label, value=_said(row, 0)) for row in rows]
    sink.show(Screenful(lambda width: table(labelled, width)))


def diff(settings: Settings, sink: Sink, name: str, other: str) -> None:
    """Every setting in which two recipes or runs differ."""
    names = [name, other]
    rows = [row for row in effective([_named(settings, each) for each in names]) if row.differs]
    if sink.as_json:
        sink.data(_json(names, rows))
    elif not rows:
        sink.line("They agree in every setting.")
    else:
        sink.show(Screenful(lambda width: _differences(names, rows, width)))


def _differences(names: Sequence[str], rows: Sequence[Effective], width: int) -> Iterator[Line]:
    for row in rows:
        yield line(Span(row.label, "bold"))
        yield from table(
            [Row(label=formatting.safe(each), value=_said(row, at)) for at, each in enumerate(names)], width
        )


def _said(row: Effective, at: int) -> str:
    value, source = row.values[at], row.sources[at]
    return (
        f"{formatting.safe(value)}  ({formatting.safe(source)})"
        if source is not None
        else formatting.safe(value or "-")
    )


def _json(names: Sequence[str], rows: Sequence[Effective]) -> dict[str, Any]:
    return {
        "event": "recipe",
        "recipes": list(names),
        "settings": [
            {
                "name": row.name,
                "expert": row.expert,
                "values": list(row.values),
                "sources": [None if source is None else source.text for source in row.sources],
            }
            for row in rows
        ],
    }


def _named(settings: Settings, name: str) -> Recipe:
    """A recipe file, a shipped recipe or the recipe of a run, in that order; raises BadInputError."""
    if name in recipes.shipped_names():
        return recipes.load(recipes.shipped_path(name), None)
    path = path_of(name)
    if path.is_file() or path.suffix == ".toml":
        return recipes.load(path, _options(settings))
    try:
        return find(settings.runs, name).read_plan().recipe
    except BadInputError as error:
        raise BadInputError(
            f"{one_line(name)!r} is neither a recipe nor a run: {error.message}",
            hint=f"The shipped recipes are {', '.join(recipes.shipped_names())}; `wan-train runs` lists the runs.",
        ) from error


def _options(settings: Settings) -> TrainerOptions:
    """Those of the installed trainer, else of the newest known version."""
    try:
        capabilities = trainers.find_musubi(settings).capabilities
    except NotReadyError:
        capabilities = stored(list(KNOWN_COMMITS.values())[-1])
    return TrainerOptions(capabilities=capabilities)
