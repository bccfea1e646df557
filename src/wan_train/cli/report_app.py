"""`wan-train report` and `wan-train compare`: their flags."""

from __future__ import annotations

from typing import Annotated

import typer

from wan_train.base import settings as settings_module
from wan_train.cli import options
from wan_train.cli.invocation import invocation_of
from wan_train.cli.output import Sink


def report(
    context: typer.Context,
    run: options.RunName = None,
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
) -> None:
    """Write an HTML report: curves, files, settings. Every run does so at its end; this works at any time.

    It writes report.html, one file for any browser, and report.json into the run's directory.

    Example: wan-train report
    """
    from wan_train.cli.report import report as run_report

    sink = invocation_of(context).use(Sink(as_json=as_json))
    settings = settings_module.resolve(flags={"runs_dir": runs_dir})
    raise typer.Exit(run_report(settings, sink, run))


def compare(
    context: typer.Context,
    run: Annotated[list[str], typer.Argument(metavar="RUN", help="Two or more runs, by ids or parts of them.")],
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Also write a page with their curves.")
    ] = None,
    runs_dir: options.RunsDir = None,
    yes: options.Yes = False,  # noqa: FBT002  a flag of the command line
    as_json: options.Json = False,  # noqa: FBT002  the same
) -> None:
    """Compare runs: the settings that differ, and the results.

    Example: wan-train compare cat-rank16 cat-rank32 --html compared.html
    """
    from wan_train.cli.report import compare as run_compare

    sink = invocation_of(context).use(Sink(as_json=as_json))
    settings = settings_module.resolve(flags={"runs_dir": runs_dir})
    raise typer.Exit(run_compare(settings, sink, run, html=html, yes=yes))
