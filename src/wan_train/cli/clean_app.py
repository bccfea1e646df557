"""`wan-train clean`: its options."""

from __future__ import annotations

from typing import Annotated

import typer

from wan_train import settings as settings_module
from wan_train.cli import completion, options
from wan_train.cli.invocation import invocation_of
from wan_train.cli.sink import Sink


def clean(
    context: typer.Context,
    run: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Runs to remove, LoRAs included; what nobody needs when left out.",
            show_default=False,
            autocompletion=completion.run_names,
        ),
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", metavar="DAYS", help="Also failed and stopped runs without a LoRA, this old."),
    ] = None,
    workspace: options.Workspace = None,
    runs_dir: options.RunsDir = None,
    yes: options.Yes = False,  # noqa: FBT002  a flag of the command line
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what may go, and stop.")] = False,  # noqa: FBT002  the same
    as_json: options.Json = False,  # noqa: FBT002  the same
) -> None:
    """Remove unneeded files, or whole runs by name. Asks first.

    Without names: rehearsals, earlier attempts of finished runs, downloads that never ended.

    Example: wan-train clean --dry-run
    """
    from wan_train.cli.clean import clean as run_clean  # noqa: PLC0415  `--help` must not load the rooms

    sink = invocation_of(context).use(Sink(as_json=as_json))
    settings = settings_module.resolve(flags={"workspace": workspace, "runs_dir": runs_dir})
    raise typer.Exit(run_clean(settings, sink, names=run or (), older_than=older_than, yes=yes, dry_run=dry_run))
