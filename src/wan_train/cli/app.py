"""The commands of `wan-train` and their options; each calls into one room and ends with its exit code."""

from __future__ import annotations

from typing import Annotated

import typer

from wan_train.base import settings as settings_module
from wan_train.base.settings import Settings
from wan_train.cli import box_app, completion, dataset_app, options, recipe_app, report_app
from wan_train.cli.command_group import Verbs
from wan_train.cli.invocation import invocation_of
from wan_train.cli.output import Sink
from wan_train.recipe.terms import Attention, EngineKind, Expert

app = typer.Typer(
    name="wan-train",
    cls=Verbs,
    help="Turn a folder of captioned pictures or clips into Wan 2.2 LoRAs.\n"
    "`wan-train` alone asks three questions and starts.",
    no_args_is_help=False,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(dataset_app.app, name="dataset", rich_help_panel="Train")
app.add_typer(recipe_app.app, name="recipe", rich_help_panel="Train")


@app.callback()
def root(
    *,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and exit.")] = False,
) -> None:
    """Flags of the program itself; `main` answers `--version` before Typer is loaded."""


@app.command(rich_help_panel="Train")
def train(
    context: typer.Context,
    title: options.Title = None,
    author: options.Author = None,
    dataset: options.Dataset = None,
    task: options.TaskOption = options.TaskWord.T2V,
    experts: options.Experts = options.ExpertsWord.BOTH,
    recipe: options.Recipe = None,
    engine: options.Engine = EngineKind.MUSUBI,
    epochs: options.Epochs = None,
    save_every: options.SaveEvery = None,
    sample_prompts: options.SamplePrompts = None,
    sample_every: options.SampleEvery = None,
    rank: options.Rank = None,
    alpha: options.Alpha = None,
    learning_rate: options.LearningRate = None,
    seed: options.Seed = None,
    resolution: options.Resolution = None,
    batch_size: options.BatchSize = None,
    repeats: options.Repeats = None,
    attention: options.AttentionOption = Attention.AUTO,
    blocks_to_swap: options.BlocksToSwap = "auto",
    fp8: options.Fp8 = None,
    network_weights: options.NetworkWeights = None,
    high: options.High = None,
    low: options.Low = None,
    gpus: options.Gpus = None,
    workspace: options.Workspace = None,
    musubi_dir: options.MusubiDir = None,
    musubi_python: options.MusubiPython = None,
    runs_dir: options.RunsDir = None,
    cache_dir: options.CacheDir = None,
    yes: options.Yes = False,  # noqa: FBT002  a flag of the command line
    dry_run: options.DryRun = False,  # noqa: FBT002  the same
    script: options.Script = None,
    as_json: options.Json = False,  # noqa: FBT002  the same
    quiet: options.Quiet = False,  # noqa: FBT002  the same
    detach: options.Detach = False,  # noqa: FBT002  the same
) -> None:
    """Train both experts on a dataset. This is what `wan-train` alone does.

    Example: wan-train --title cat --author me --dataset /workspace/cats --yes

    A flag may also be a variable: WAN_TRAIN_EPOCHS=50 is --epochs 50.

    Everything after `--` goes to the trainer as it is: wan-train --yes -- --optimizer_type=adamw8bit
    """
    from wan_train.cli.request import Given
    from wan_train.cli.train import train as run_training

    invocation = invocation_of(context)
    sink = invocation.use(Sink(as_json=as_json, aside=detach, quiet=quiet))
    given = Given(
        title=title,
        author=author,
        dataset=dataset,
        task=task,
        experts=experts,
        recipe=recipe,
        engine=engine,
        changes={
            "max_train_epochs": epochs,
            "save_every_n_epochs": save_every,
            "sample_prompts": sample_prompts,
            "sample_every_n_epochs": sample_every,
            "network_dim": rank,
            "network_alpha": alpha,
            "learning_rate": learning_rate,
            "seed": seed,
            "fp8_base": fp8,
        },
        resolution=resolution,
        batch_size=batch_size,
        repeats=repeats,
        attention=attention,
        blocks_to_swap=blocks_to_swap,
        passthrough=invocation.passthrough,
        network_weights=network_weights,
        of_expert={Expert.HIGH: high or (), Expert.LOW: low or ()},
    )
    settings = settings_module.resolve(
        flags={
            "gpus": gpus,
            "workspace": workspace,
            "musubi_dir": musubi_dir,
            "musubi_python": musubi_python,
            "runs_dir": runs_dir,
            "cache_dir": cache_dir,
        }
    )
    raise typer.Exit(run_training(given, settings, sink, yes=yes, dry_run=dry_run, script=script, detach=detach))


@app.command(rich_help_panel="Train")
def rehearse(
    context: typer.Context,
    dataset: Annotated[
        str | None, typer.Argument(help="Your own pictures; without it, eight are drawn.", show_default=False)
    ] = None,
    title: options.Title = None,
    author: options.Author = None,
    epochs: options.Epochs = None,
    resolution: options.Resolution = None,
    sample_prompts: options.SamplePrompts = None,
    sample_every: options.SampleEvery = None,
    gpus: options.Gpus = None,
    runs_dir: options.RunsDir = None,
    cache_dir: options.CacheDir = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
    quiet: options.Quiet = False,  # noqa: FBT002  the same
    detach: options.Detach = False,  # noqa: FBT002  the same
) -> None:
    """Try the whole pipeline without a GPU, in about a minute.

    A tiny trainer takes the place of the real one; what it makes is no real LoRA.

    Example: wan-train rehearse
    """
    from wan_train.cli.rehearse import rehearse as run_rehearsal

    invocation = invocation_of(context)
    sink = invocation.use(Sink(as_json=as_json, aside=detach, quiet=quiet))
    settings = settings_module.resolve(flags={"gpus": gpus, "runs_dir": runs_dir, "cache_dir": cache_dir})
    raise typer.Exit(
        run_rehearsal(
            settings,
            sink,
            dataset=dataset,
            title=title,
            author=author,
            epochs=epochs,
            resolution=resolution,
            samples={"sample_prompts": sample_prompts, "sample_every_n_epochs": sample_every},
            passthrough=invocation.passthrough,
            detach=detach,
        )
    )


@app.command(rich_help_panel="Runs")
def attach(
    context: typer.Context,
    run: options.RunName = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Stop watching then, with exit code 124; the run goes on."),
    ] = None,
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
    quiet: options.Quiet = False,  # noqa: FBT002  the same
) -> None:
    """Watch a run again, from any terminal. Ends with the run's exit code.

    Example: wan-train attach
    """
    from wan_train.cli import runs as verbs

    sink, settings = _for_runs(context, runs_dir, as_json=as_json, quiet=quiet)
    raise typer.Exit(verbs.attach(settings, sink, run, timeout=timeout))


@app.command(rich_help_panel="Runs")
def resume(
    context: typer.Context,
    run: options.RunName = None,
    every: Annotated[bool, typer.Option("--all", help="Every unfinished run whose supervisor is gone.")] = False,  # noqa: FBT002  a flag
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Train a run that is over to this larger total.")
    ] = None,
    other_gpus: options.OtherGpus = None,
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
    quiet: options.Quiet = False,  # noqa: FBT002  the same
    detach: options.Detach = False,  # noqa: FBT002  the same
) -> None:
    """Resume a run that crashed, failed or was stopped. It continues from its latest checkpoint.

    Example: wan-train resume
    """
    from wan_train.cli import resume as verb

    sink, settings = _for_runs(context, runs_dir, as_json=as_json, aside=detach, quiet=quiet)
    if every:
        verb.check_nothing_for_one(run, epochs=epochs, gpus=other_gpus)
        raise typer.Exit(verb.resume_all(settings, sink))
    raise typer.Exit(verb.resume(settings, sink, run, epochs=epochs, gpus=other_gpus, detach=detach))


@app.command(rich_help_panel="Runs")
def explain(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|LOG",
            help="A run, or any trainer's log file.",
            show_default=False,
            autocompletion=completion.run_names,
        ),
    ] = None,
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
) -> None:
    """Explain a failure and how to fix it. It reads any log file of the trainer, too.

    Example: wan-train explain train.log
    """
    from wan_train.cli.explain import explain as run_explain

    sink, settings = _for_runs(context, runs_dir, as_json=as_json)
    raise typer.Exit(run_explain(settings, sink, run))


for verb in (report_app.report, report_app.compare):
    app.command(rich_help_panel="Runs")(verb)


@app.command(rich_help_panel="Runs")
def status(
    context: typer.Context,
    run: options.RunName = None,
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
) -> None:
    """Show where a run stands, once.

    Example: wan-train status --json
    """
    from wan_train.cli import runs as verbs

    sink, settings = _for_runs(context, runs_dir, as_json=as_json)
    raise typer.Exit(verbs.status(settings, sink, run))


@app.command(rich_help_panel="Runs")
def runs(
    context: typer.Context,
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
) -> None:
    """List all runs, newest first.

    Example: wan-train runs
    """
    from wan_train.cli import runs as verbs

    sink, settings = _for_runs(context, runs_dir, as_json=as_json)
    raise typer.Exit(verbs.runs(settings, sink))


@app.command(rich_help_panel="Runs")
def logs(
    context: typer.Context,
    run: options.RunName = None,
    step: options.Step = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,  # noqa: FBT002  a flag
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
) -> None:
    """Print the trainer's own output.

    Example: wan-train logs -f --step train-high
    """
    from wan_train.cli import runs as verbs

    sink, settings = _for_runs(context, runs_dir, as_json=as_json)
    raise typer.Exit(verbs.logs(settings, sink, run, step, follow=follow))


@app.command(rich_help_panel="Runs")
def stop(
    context: typer.Context,
    run: options.RunName = None,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for the next saved state.")] = False,  # noqa: FBT002  a flag
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,  # noqa: FBT002  a flag of the command line
) -> None:
    """Stop a run after its next checkpoint, or at once.

    Example: wan-train stop --now
    """
    from wan_train.cli import runs as verbs

    sink, settings = _for_runs(context, runs_dir, as_json=as_json)
    raise typer.Exit(verbs.stop(settings, sink, run, now=now))


for box_command in (box_app.provision, box_app.doctor, box_app.clean):
    app.command(rich_help_panel="Box")(box_command)


def _for_runs(
    context: typer.Context, runs_dir: str | None, *, as_json: bool, aside: bool = False, quiet: bool = False
) -> tuple[Sink, Settings]:
    sink = invocation_of(context).use(Sink(as_json=as_json, aside=aside, quiet=quiet))
    return sink, settings_module.resolve(flags={"runs_dir": runs_dir})
