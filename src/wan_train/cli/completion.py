"""Completion beyond commands, options and fixed choices: run names, steps of a run, versions.

A shell puts what is offered into the user's command line as it is, so only words that no shell would obey are offered.
Whatever goes wrong offers nothing: a message would land in the middle of the line that is being typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import typer

_PLAIN = re.compile(r"\w[\w.-]*")


def run_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the runs below `--runs-dir`, or where they are without it.

    One that only holds `incomplete` is not offered: shells drop what does not begin with the typed word.
    """
    from wan_train.base.settings import resolve
    from wan_train.run.directory import all_runs

    try:
        runs = resolve(flags={"runs_dir": ctx.params.get("runs_dir")}).runs
        return _offered((run.run_id for run in all_runs(runs)), incomplete)
    except Exception:  # noqa: BLE001  a message would land in the line being typed
        return []


def step_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the steps of the run that the line names, or of the newest one."""
    from wan_train.base.settings import resolve
    from wan_train.run.directory import find

    try:
        runs = resolve(flags={"runs_dir": ctx.params.get("runs_dir")}).runs
        plan = find(runs, ctx.params.get("run")).read_plan()
        return _offered((step.id for step in plan.steps), incomplete)
    except Exception:  # noqa: BLE001  a message would land in the line being typed
        return []


def launch_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the launches of this machine."""
    from wan_train.base.settings import resolve
    from wan_train.launch.launch_directory import all_launches

    try:
        runs = resolve(flags={"runs_dir": ctx.params.get("runs_dir")}).runs
        return _offered((each.path.name for each in all_launches(runs)), incomplete)
    except Exception:  # noqa: BLE001  a message would land in the line being typed
        return []


def shipped_engines(incomplete: str) -> list[str]:
    """Versions of the trainer that come with wan-train; a file of one's own is left to the shell."""
    from wan_train.base.settings import shipped_configs

    return _offered((path.stem for path in (shipped_configs() / "engines").glob("*.toml")), incomplete)


def _offered(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete) and _PLAIN.fullmatch(word)]
