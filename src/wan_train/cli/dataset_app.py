"""The verbs of `wan-train dataset` and their flags."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from wan_train import settings as settings_module
from wan_train.cli import options
from wan_train.cli.invocation import invocation_of
from wan_train.cli.sink import Sink

app = typer.Typer(
    help="See what is wrong with a dataset and what will be trained; write its dataset.toml.\n\n"
    "Example: wan-train dataset check /workspace/cats",
    no_args_is_help=False,
)


class VersionWord(StrEnum):
    """`--engine` of `dataset check`: whose reading of the dataset counts."""

    GUIDE = "guide"
    NEWEST = "v0.3.4"


Source = Annotated[
    str, typer.Argument(metavar="PATH", help="Folder of captioned pictures or clips, or a dataset.toml.")
]
Version = Annotated[
    VersionWord | None,
    typer.Option("--engine", help="Trainer version that will read it. \\[default: the installed one, else guide]"),
]


@app.command()
def check(
    context: typer.Context,
    path: Source,
    task: options.TaskOption = options.TaskWord.T2V,
    engine: Version = None,
    resolution: options.Resolution = None,
    batch_size: options.BatchSize = None,
    repeats: options.Repeats = None,
    workspace: options.Workspace = None,
    musubi_dir: options.MusubiDir = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
) -> None:
    """Say everything that is wrong with a dataset and how to mend it. Changes nothing.

    Exit code 2 when something would stop the training.

    Example: wan-train dataset check /workspace/cats
    """
    from wan_train.cli.dataset import Asked  # noqa: PLC0415  `--help` must not load the rooms
    from wan_train.cli.dataset import check as run_check  # noqa: PLC0415  the same

    sink = invocation_of(context).use(Sink(as_json=as_json))
    settings = settings_module.resolve(flags={"workspace": workspace, "musubi_dir": musubi_dir})
    asked = Asked(
        path=path,
        task=task,
        engine=engine.value if engine is not None else None,
        resolution=resolution,
        batch_size=batch_size,
        repeats=repeats,
    )
    raise typer.Exit(run_check(asked, settings, sink))
