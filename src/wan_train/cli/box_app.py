"""The commands about the box: provision, doctor, clean."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from wan_train.base import settings as settings_module
from wan_train.cli import completion, options
from wan_train.cli.invocation import invocation_of
from wan_train.cli.output import Sink


class ProvisionTask(StrEnum):
    """`--task` of `provision`."""

    T2V = "t2v"
    I2V = "i2v"
    BOTH = "both"


def provision(
    context: typer.Context,
    task: Annotated[
        ProvisionTask, typer.Option("--task", help="Whose models: text-to-video, image-to-video, or both.")
    ] = ProvisionTask.T2V,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="NAME|FILE",
            help="Versions to install: guide, v0.3.4, or a .toml file.",
            autocompletion=completion.shipped_engines,
        ),
    ] = None,
    workspace: options.Workspace = None,
    skip_models: Annotated[bool, typer.Option("--skip-models", help="Only the trainer, nothing of the hub.")] = False,  # noqa: FBT002  a flag
    models_only: Annotated[bool, typer.Option("--models-only", help="Only the model files.")] = False,  # noqa: FBT002  a flag
    packages: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME", help="A package to install beside the trainer; repeatable."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only look: exit code 3 when something is missing.")] = False,  # noqa: FBT002  a flag
    verify: Annotated[bool, typer.Option("--verify", help="Read all of each model, compare its sha256.")] = False,  # noqa: FBT002  a flag
    yes: options.Yes = False,  # noqa: FBT002  a flag of the command line
    as_json: options.Json = False,  # noqa: FBT002  the same
    quiet: options.Quiet = False,  # noqa: FBT002  the same
) -> None:
    """Make a box ready: musubi-tuner, its environment, the models. Safe to run again at any time.

    Example: wan-train provision --check
    """
    from wan_train.cli.provision import provision as run_provision

    sink = invocation_of(context).use(Sink(as_json=as_json, quiet=quiet))
    settings = settings_module.resolve(flags={"workspace": workspace})
    raise typer.Exit(
        run_provision(
            settings,
            sink,
            task=task.value,
            engine=engine,
            skip_models=skip_models,
            models_only=models_only,
            packages=packages or (),
            check=check,
            verify=verify,
            yes=yes,
        )
    )


def doctor(
    context: typer.Context,
    task: Annotated[
        ProvisionTask, typer.Option("--task", help="What to train: text-to-video, image-to-video, or both.")
    ] = ProvisionTask.T2V,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="NAME|FILE",
            help="Versions to expect: guide, v0.3.4, or a .toml file.",
            autocompletion=completion.shipped_engines,
        ),
    ] = None,
    workspace: options.Workspace = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
) -> None:
    """Check a box and name likely problems. Changes nothing; exit code 3 when it is not ready.

    Example: wan-train doctor
    """
    from contextlib import nullcontext

    from wan_train.base.errors import ExitCode
    from wan_train.provision.doctor import Doctor
    from wan_train.provision.provision import choose_engine
    from wan_train.views.doctor import doctor_json, doctor_lines
    from wan_train.views.lines import Screenful

    sink = invocation_of(context).use(Sink(as_json=as_json))
    settings = settings_module.resolve(flags={"workspace": workspace})
    given = {"--task": None if task is ProvisionTask.T2V else task.value, "--engine": engine, "--workspace": workspace}
    words = [word for flag, value in given.items() if value is not None for word in (flag, value)]
    examination = Doctor(settings=settings, task=task.value, engine=choose_engine(engine, settings), words=words)
    # An environment that was made by hand has to import torch, which takes a minute from a cold disk.
    is_waiting = sink.is_terminal and not sink.as_json
    with sink.console.status("checking this box …") if is_waiting else nullcontext():
        report = examination.examine()
    if sink.as_json:
        sink.data(doctor_json(report))
    else:
        sink.show(Screenful(lambda width: doctor_lines(report, width)))
    raise typer.Exit(ExitCode.DONE if report.is_ready else ExitCode.NOT_READY)


def clean(
    context: typer.Context,
    run: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Runs to remove, LoRAs included; without it, unneeded files.",
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
    from wan_train.cli.clean import clean as run_clean

    sink = invocation_of(context).use(Sink(as_json=as_json))
    settings = settings_module.resolve(flags={"workspace": workspace, "runs_dir": runs_dir})
    raise typer.Exit(run_clean(settings, sink, names=run or (), older_than=older_than, yes=yes, dry_run=dry_run))
