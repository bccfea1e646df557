"""`wan-train provision`: what a box lacks, shown, asked about, and put there."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from wan_train.box import provision as box
from wan_train.box.board import Board
from wan_train.box.provision import Provision
from wan_train.box.steps import Finding, Step, all_hints, has_work, is_ready, refuse_blocked
from wan_train.cli import prompts
from wan_train.cli.sink import Sink
from wan_train.errors import BadInputError, ExitCode, NotReadyError, WanTrainError
from wan_train.settings import Settings

_GB = 1e9
_HINT = "Run `wan-train provision` to put there what is missing."


class TerminatedError(WanTrainError):
    """TERM while a step was at work."""

    exit_code = ExitCode.TERMINATED


def provision(
    settings: Settings,
    sink: Sink,
    *,
    task: str,
    engine: str | None,
    skip_models: bool,
    models_only: bool,
    check: bool,
    yes: bool,
) -> int:
    """Make the box ready, or with `check` only look; the exit code."""
    if skip_models and models_only:
        raise BadInputError("--skip-models and --models-only leave nothing to do", hint="Give one of them.")
    wanted = Provision(
        settings=settings,
        task=task,
        engine=box.choose_engine(engine, settings),
        with_trainer=not models_only,
        with_models=not skip_models,
    )
    made = wanted.steps()
    found = wanted.look(made)
    if check:
        return _report(sink, made, found)
    _show(sink, made, found)
    refuse_blocked(found)
    missing = [step for step in made if has_work(step, found[step.id])]
    if missing and not yes and sink.is_terminal and not sink.as_json:
        size = sum(finding.size for finding in found.values())
        if not prompts.confirm(f"Put there what is missing (about {size / _GB:.1f} GB)?"):
            return ExitCode.DONE
    board = Board()
    say = sink.note if sink.as_json else sink.line
    board.listen(lambda title, line: say(f"{title}: {line}"))
    with _terminable():
        wanted.perform(board)
    if sink.as_json:
        sink.data(_data(made, wanted.look(made)))
    sink.line("This box is ready." if not (skip_models or models_only) else "What was asked for is there.")
    return ExitCode.DONE


def _report(sink: Sink, made: list[Step], found: Mapping[str, Finding]) -> int:
    ready = is_ready(found)
    if sink.as_json:
        sink.data(_data(made, found))
        return ExitCode.DONE if ready else ExitCode.NOT_READY
    _show(sink, made, found)
    if not ready:
        hint = all_hints(found.values())
        raise NotReadyError("this box is not ready", hint=f"{hint} {_HINT}" if hint else _HINT)
    sink.line("This box is ready.")
    return ExitCode.DONE


def _show(sink: Sink, made: list[Step], found: Mapping[str, Finding]) -> None:
    titles = {box.DISK: "Disk", **{step.id: step.title for step in made}}
    for name, finding in found.items():
        sink.line(f"{finding.state.value:10}  {titles[name]}: {finding.detail}")


def _data(made: list[Step], found: Mapping[str, Finding]) -> dict[str, Any]:
    titles = {box.DISK: "Disk", **{step.id: step.title for step in made}}
    return {
        "event": "provision",
        "schema": 1,
        "ready": is_ready(found),
        "steps": [
            {
                "id": name,
                "title": titles[name],
                "state": finding.state.value,
                "detail": finding.detail,
                "bytes": finding.size,
                "hint": finding.hint,
            }
            for name, finding in found.items()
        ],
    }


@contextmanager
def _terminable() -> Iterator[None]:
    """Let TERM end what a step has started, as Ctrl-C does."""

    def ended(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise TerminatedError("ended by TERM", hint="Run `wan-train provision` again; it goes on where it was.")

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
