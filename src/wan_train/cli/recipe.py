"""`wan-train recipe show` and `wan-train recipe diff`: effective settings with their sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.home import expanded
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.cli import options
from wan_train.cli.call import Call
from wan_train.cli.output import Result, Sink
from wan_train.dataset.model import DatasetPreset
from wan_train.dataset.writing import preset_path, preset_terms
from wan_train.engine import trainer as trainers
from wan_train.engine.capabilities import KNOWN_COMMITS, stored
from wan_train.engine.extra_arguments import TrainerOptions
from wan_train.recipe import load as recipes
from wan_train.recipe.effective import Effective, effective
from wan_train.recipe.model import Recipe
from wan_train.recipe.terms import Preset, Task
from wan_train.run.directory import find
from wan_train.views import formatting
from wan_train.views.lines import Line, Row, Screenful, Span, line, table


def show(call: Call) -> Result:
    """Show every setting of one recipe or run with its source."""
    name = call[options.RECIPE_OR_RUN]
    rows = list(effective([_named(call.settings, name)]))
    labelled = [Row(label=row.label, value=_shown(row, 0)) for row in rows]
    return Result(
        data=lambda: _json([name], rows),
        text=lambda sink: sink.show(Screenful(lambda width: table(labelled, width))),
    )


def presets(_call: Call) -> Result:
    """List the presets for training and for datasets, with their purpose."""
    training = [(preset.value, recipes.preset_summary(preset), recipes.preset_path(preset)) for preset in Preset]
    datasets = [(preset.value, preset_terms(preset).summary, preset_path(preset)) for preset in DatasetPreset]

    def layout(width: int) -> Iterator[Line]:
        yield line(Span("How to train", "bold"))
        yield from table([Row(label=name, value=summary) for name, summary, _ in training], width)
        yield line()
        yield line(Span("Sizes of pictures and clips", "bold"))
        yield from table([Row(label=name, value=summary) for name, summary, _ in datasets], width)

    def text(sink: Sink) -> None:
        sink.show(Screenful(layout))
        sink.line("")
        sink.line("Use one:      wan-train --preset character")
        sink.line("              wan-train dataset write /workspace/cats --preset balanced")
        sink.line("Its settings: wan-train recipe diff guide character")
        sink.line(f"Its sources:  the comments in {training[0][2].parent}")
        sink.line(f"              and {datasets[0][2].parent}")

    def data() -> dict[str, Any]:
        def of(found: Sequence[tuple[str, str, Path]]) -> list[dict[str, str]]:
            return [{"name": name, "summary": summary, "path": str(path)} for name, summary, path in found]

        return {"event": "presets", "presets": of(training), "dataset_presets": of(datasets)}

    return Result(data=data, text=text)


def diff(call: Call) -> Result:
    """Show every setting in which two recipes or runs differ."""
    names = [call[options.RECIPE_OR_RUN], call[options.OTHER_RECIPE_OR_RUN]]
    rows = [row for row in effective([_named(call.settings, each) for each in names]) if row.differs]

    def text(sink: Sink) -> None:
        if rows:
            sink.show(Screenful(lambda width: _differences(names, rows, width)))
        else:
            sink.line("No setting differs.")

    return Result(data=lambda: _json(names, rows), text=text)


def _differences(names: Sequence[str], rows: Sequence[Effective], width: int) -> Iterator[Line]:
    for row in rows:
        yield line(Span(row.label, "bold"))
        yield from table(
            [Row(label=formatting.safe(each), value=_shown(row, at)) for at, each in enumerate(names)], width
        )


def _shown(row: Effective, at: int) -> str:
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
    """Return a shipped recipe, a preset, a recipe file or a run's recipe, in that order; raises BadInputError."""
    if name in recipes.shipped_names():
        return recipes.load(recipes.shipped_path(name), None)
    if name in list(Preset):
        return recipes.load_preset(Preset(name), Task.T2V, _options(settings))
    path = expanded(name)
    if path.is_file() or path.suffix == ".toml":
        return recipes.load(path, _options(settings))
    try:
        return find(settings.runs, name).read_plan().recipe
    except BadInputError as error:
        raise BadInputError(
            f"{one_line(name)!r} is neither a recipe nor a run: {error.message}",
            hint=f"The shipped recipes are {', '.join([*recipes.shipped_names(), *Preset])}; "
            "`wan-train runs` lists the runs.",
        ) from error


def _options(settings: Settings) -> TrainerOptions:
    """Return the options of the installed trainer, else of the newest known version."""
    try:
        capabilities = trainers.find_musubi(settings).capabilities
    except NotReadyError:
        capabilities = stored(list(KNOWN_COMMITS.values())[-1])
    return TrainerOptions(capabilities=capabilities)
