"""`wan-train train`: ask, plan, confirm, run, watch."""

from __future__ import annotations

import shutil
import sys

from wan_train.cli import prompts
from wan_train.cli.asking import Asked, Given, ask
from wan_train.cli.remembered import remember
from wan_train.cli.sink import Sink
from wan_train.cli.watch import watch
from wan_train.dataset.locate import ToWrite
from wan_train.dataset.model import DatasetError
from wan_train.dataset.writing import write_for_directory
from wan_train.errors import BadInputError, ExitCode
from wan_train.run.creation import write_run
from wan_train.run.directory import RunDirectory, planned
from wan_train.run.plan import Plan
from wan_train.run.planner import Prepared, make_plan, prepare
from wan_train.run.preflight import existing_parent
from wan_train.run.start import start_supervisor
from wan_train.settings import Settings


def train(given: Given, settings: Settings, sink: Sink, *, yes: bool, dry_run: bool, detach: bool) -> int:
    """The main job; returns the exit code of the run, or of what kept it from starting."""
    if sink.quiet and not yes and not dry_run:
        raise BadInputError("nothing was started: --quiet shows no plan that could be agreed to", hint="Add --yes.")
    interactive = sink.is_terminal and not yes and not dry_run and not sink.as_json
    asked = ask(given, settings, interactive=interactive)
    prepared = prepare(asked.request)
    run, created = planned(settings.runs, asked.request.answers.title)
    plan = make_plan(prepared, run, created=created)
    if dry_run:
        return _show_plan(plan, asked, settings, sink)
    _show_summary(plan, prepared, settings, sink)
    if not yes:
        if not interactive:
            raise BadInputError(
                "nothing was started: there is no terminal to ask at, and --yes was not given",
                hint="Add --yes to start, or --dry-run to see the plan only.",
            )
        if not prompts.confirm("Start?"):
            sink.note("Nothing was started.")
            return ExitCode.DONE
    if interactive:
        remember(asked.request.answers)
    if asked.dataset_to_write is not None:
        _write_dataset(asked.dataset_to_write)
    run, plan = write_run(prepared, settings, created=created)
    start_supervisor(run, settings)
    if detach:
        return detached(run, sink)
    return watch(run, settings, sink, owner=True)


def _write_dataset(wanted: ToWrite) -> None:
    try:
        write_for_directory(wanted.directory, wanted.toml_path)
    except DatasetError:
        # Another run of the same folder wrote it since we looked. This run has its own snapshot in any case.
        if not wanted.toml_path.is_file():
            raise


def _show_plan(plan: Plan, asked: Asked, settings: Settings, sink: Sink) -> int:
    from wan_train.cli.gpus import gpus_now  # noqa: PLC0415  only `--dry-run` needs it
    from wan_train.views.as_json import plan_json  # noqa: PLC0415  the same
    from wan_train.views.summary import plan_text  # noqa: PLC0415  the same

    if sink.as_json:
        sink.data(plan_json(plan, gpus_now(asked.request.usable, plan.devices, settings)))
    else:
        sink.text(plan_text(plan))
    return ExitCode.DONE


def _show_summary(plan: Plan, prepared: Prepared, settings: Settings, sink: Sink) -> None:
    if sink.as_json:
        return
    from wan_train.cli.gpus import gpus_now  # noqa: PLC0415  rich is not needed for JSON
    from wan_train.views.summary import plan_lines  # noqa: PLC0415  the same

    gpus = gpus_now(prepared.request.usable, plan.devices, settings)
    free = shutil.disk_usage(existing_parent(plan.run_dir)).free
    width = sink.console.width
    sink.show(plan_lines(plan, gpus, width=width, dataset=prepared.summary, disk_free_bytes=free))


def detached(run: RunDirectory, sink: Sink) -> int:
    """Leave a run to itself: its id is all that stdout gets."""
    if sink.as_json:
        sink.data({"event": "detached", "run_id": run.run_id, "run_dir": str(run.path)})
    else:
        sys.stdout.write(f"{run.run_id}\n")
        sink.note(f"Running. Watch it with: wan-train attach {run.run_id}")
    return ExitCode.DONE
