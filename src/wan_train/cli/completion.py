"""Completion beyond commands, options and fixed choices: run names, steps of a run, versions.

A shell inserts completions into the command line verbatim, so words with shell syntax are never offered.
On any error nothing is offered: a message would land in the middle of the line being typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import typer

_PLAIN = re.compile(r"\w[\w.-]*")


def run_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the IDs of the runs in `--runs-dir` or the default directory.

    Only IDs that begin with `incomplete` are offered: shells drop all others.
    """
    from wan_train.base.settings import resolve
    from wan_train.run.directory import all_runs

    try:
        runs = resolve(flags={"runs_dir": ctx.params.get("runs_dir")}).runs
        return _offered((run.run_id for run in all_runs(runs)), incomplete)
    except Exception:  # noqa: BLE001  a message would land in the line being typed
        return []


def step_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the step IDs of the run named in the command line, or of the newest run."""
    from wan_train.base.settings import resolve
    from wan_train.run.directory import find

    try:
        runs = resolve(flags={"runs_dir": ctx.params.get("runs_dir")}).runs
        plan = find(runs, ctx.params.get("run")).read_plan()
        return _offered((step.id for step in plan.steps), incomplete)
    except Exception:  # noqa: BLE001  a message would land in the line being typed
        return []


def launch_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the IDs of this machine's launches."""
    from wan_train.base.settings import resolve
    from wan_train.launch.launch_directory import all_launches

    try:
        runs = resolve(flags={"runs_dir": ctx.params.get("runs_dir")}).runs
        return _offered((each.path.name for each in all_launches(runs)), incomplete)
    except Exception:  # noqa: BLE001  a message would land in the line being typed
        return []


def shipped_engines(incomplete: str) -> list[str]:
    """Return the trainer versions that come with wan-train; the shell completes file names itself."""
    from wan_train.base.settings import shipped_configs

    return _offered((path.stem for path in (shipped_configs() / "engines").glob("*.toml")), incomplete)


def _offered(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete) and _PLAIN.fullmatch(word)]
