"""The verbs of `wan-train recipe` and their flags."""

from __future__ import annotations

from typing import Annotated

import typer

from wan_train.base import settings as settings_module
from wan_train.cli import options
from wan_train.cli.command_group import Group
from wan_train.cli.completion import run_names
from wan_train.cli.invocation import invocation_of
from wan_train.cli.output import Sink

app = typer.Typer(
    cls=Group,
    help="Show and compare the settings of recipes and runs.\n\nExample: wan-train recipe show",
    no_args_is_help=False,
)

_WHAT = "A recipe file, the name of a shipped recipe, or a run."


@app.command()
def show(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help=_WHAT, autocompletion=run_names)] = "t2v-a14b",
    musubi_dir: options.MusubiDir = None,
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
) -> None:
    """Show every setting with its source.

    Example: wan-train recipe show last
    """
    from wan_train.cli.recipe import show as run_show

    sink = invocation_of(context).use(Sink(as_json=as_json))
    run_show(settings_module.resolve(flags={"runs_dir": runs_dir, "musubi_dir": musubi_dir}), sink, recipe)


@app.command()
def diff(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help=_WHAT, autocompletion=run_names)],
    other: Annotated[
        str, typer.Argument(metavar="RECIPE|RUN", help="What to compare it with.", autocompletion=run_names)
    ] = "t2v-a14b",
    musubi_dir: options.MusubiDir = None,
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
) -> None:
    """Name every setting in which two recipes or runs differ.

    Example: wan-train recipe diff mine.toml t2v-a14b
    """
    from wan_train.cli.recipe import diff as run_diff

    sink = invocation_of(context).use(Sink(as_json=as_json))
    settings = settings_module.resolve(flags={"runs_dir": runs_dir, "musubi_dir": musubi_dir})
    run_diff(settings, sink, recipe, other)
