"""`wan-train train`: ask, plan, confirm, run, watch."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from wan_train.base.errors import BadInputError, ExitCode
from wan_train.base.home import expand
from wan_train.base.settings import Settings
from wan_train.cli import prompts
from wan_train.cli.last_answers import remember
from wan_train.cli.output import Sink
from wan_train.cli.request import Asked, Given, ask
from wan_train.cli.watch import watch
from wan_train.dataset.model import DatasetError
from wan_train.dataset.resolve import NewConfig
from wan_train.dataset.scan import group
from wan_train.dataset.writing import write_for_directory
from wan_train.run.cadence import measured_speed
from wan_train.run.control import start_supervisor
from wan_train.run.directory import RunDirectory, planned
from wan_train.run.disk import existing_parent
from wan_train.run.plan import Plan
from wan_train.run.planner import Prepared, make_plan, prepare, write_run

if TYPE_CHECKING:
    from wan_train.views.summary import AtStart


def train(
    given: Given,
    settings: Settings,
    sink: Sink,
    *,
    yes: bool,
    dry_run: bool = False,
    script: str | None = None,
    detach: bool = False,
) -> int:
    """The main job; returns the exit code of the run, or of what kept it from starting."""
    if script is not None and not dry_run:
        raise BadInputError("--script writes a plan down and starts nothing", hint="Add --dry-run.")
    if sink.quiet and not yes and not dry_run:
        raise BadInputError("nothing was started: --quiet shows no plan that could be agreed to", hint="Add --yes.")
    interactive = sink.is_terminal and not yes and not dry_run and not sink.as_json
    asked = ask(given, settings, interactive=interactive)
    if script is not None:
        return _write_script(expand(script).absolute(), asked, settings, sink)
    prepared = prepare(asked.request, say=sink.note)
    run, created = planned(settings.runs, asked.request.answers.title)
    plan = make_plan(prepared, run, created=created)
    if dry_run:
        return _show_plan(plan, prepared, asked, settings, sink)
    at_start = None if sink.as_json else _at_start(plan, prepared, asked, settings)
    if at_start is not None:
        from wan_train.views.summary import plan_lines

        sink.show(plan_lines(plan, at_start))
    if not yes:
        if not interactive:
            raise BadInputError(
                "nothing was started: there is no terminal to ask at, and --yes was not given",
                hint="Add --yes to start, or --dry-run to see the plan only.",
            )
        if not _may_start(plan, at_start, sink):
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


def _write_dataset(wanted: NewConfig) -> None:
    try:
        write_for_directory(wanted.directory, wanted.toml_path)
    except DatasetError:
        # Another run of the same folder wrote it since we looked. This run has its own snapshot in any case.
        if not wanted.toml_path.is_file():
            raise


def _may_start(plan: Plan, at_start: AtStart | None, sink: Sink) -> bool:
    """Ask; `d` shows everything and asks again."""
    from wan_train.views.plan_details import plan_details

    while (answer := prompts.ask_start()) is prompts.Start.DETAILS:
        sink.show(plan_details(plan, at_start))
    return answer is prompts.Start.YES


def _show_plan(plan: Plan, prepared: Prepared, asked: Asked, settings: Settings, sink: Sink) -> int:
    from wan_train.views.json_records import plan_json
    from wan_train.views.plan_details import plan_text

    at_start = _at_start(plan, prepared, asked, settings)
    if sink.as_json:
        sink.data(plan_json(plan, at_start.gpus))
    else:
        sink.text(plan_text(plan, at_start))
    return ExitCode.DONE


def _write_script(script: Path, asked: Asked, settings: Settings, sink: Sink) -> int:
    from wan_train.run.shell_script import files_of, write_script

    plan = write_script(prepare(asked.request, say=sink.note), script, created=time.time())
    if sink.as_json:
        from wan_train.cli.gpus import gpus_now
        from wan_train.views.json_records import plan_json

        gpus = gpus_now(asked.request.usable, plan.devices, settings)
        sink.data({**plan_json(plan, gpus), "script": str(script)})
    else:
        sink.text(f"Wrote {script}\nand its files in {files_of(script)}/\nStart it with: sh {shlex.quote(str(script))}")
    return ExitCode.DONE


def _at_start(plan: Plan, prepared: Prepared, asked: Asked, settings: Settings) -> AtStart:
    from wan_train.cli.gpus import gpus_now
    from wan_train.views.summary import AtStart

    return AtStart(
        gpus=gpus_now(prepared.request.usable, plan.devices, settings),
        dataset=prepared.summary,
        problems=len(group(prepared.inventory.problems)),
        disk_free_bytes=shutil.disk_usage(existing_parent(plan.run_dir)).free,
        seconds_per_batch=measured_speed(settings.runs, plan.speed_key),
        new_toml=asked.dataset_to_write.toml_path if asked.dataset_to_write is not None else None,
    )


def detached(run: RunDirectory, sink: Sink) -> int:
    """Leave a run to itself: its id is all that stdout gets."""
    if sink.as_json:
        sink.data({"event": "detached", "run_id": run.run_id, "run_dir": str(run.path)})
    else:
        sys.stdout.write(f"{run.run_id}\n")
        sink.note("Running. Watch it with:")
        sink.note(f"  wan-train attach {run.run_id}")
    return ExitCode.DONE
