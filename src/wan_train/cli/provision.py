"""`wan-train provision`: show what a box lacks, ask, and install it."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wan_train.base import units
from wan_train.base.errors import BadInputError, ExitCode, NotReadyError, WanTrainError
from wan_train.base.settings import Source
from wan_train.cli import options, questions
from wan_train.cli.call import Call
from wan_train.cli.option import ModelsChoice
from wan_train.cli.output import Result, Sink
from wan_train.cli.provision_reporter import Reporter
from wan_train.cli.signals import HANGUP_EXIT, Signals, caught
from wan_train.provision import provision as box
from wan_train.provision.executor import Outcome, failure
from wan_train.provision.leftovers import remove
from wan_train.provision.models import Digests
from wan_train.provision.provision import Provision
from wan_train.provision.status_table import Row, StatusTable
from wan_train.provision.steps import Finding, State, Step, all_hints, has_work, is_ready, refuse_blocked
from wan_train.provision.trainer_steps import check_names
from wan_train.provision.workspace import LOG_NAME, LockedWorkspace
from wan_train.views.lines import Screenful, plain
from wan_train.views.provision import Heading, Report, found_lines, report_json, summary_lines

_TEXT_WIDTH = 100
_LIGHTNING = "lightning"
"""The `--with` value that downloads model files; all others are packages."""


class InterruptedProvisionError(WanTrainError):
    """Ctrl-C during a step."""

    exit_code = ExitCode.INTERRUPTED


class TerminatedProvisionError(WanTrainError):
    """TERM during a step."""

    exit_code = ExitCode.TERMINATED


def provision(call: Call) -> Result:
    """Make the box ready, or with `--check` only look."""
    task, engine, extras = (
        call[options.MODELS_TASK],
        call.get(options.INSTALLED_VERSION),
        call.all(options.WITH),
    )
    skip_models, models_only, verify = call[options.SKIP_MODELS], call[options.MODELS_ONLY], call[options.VERIFY]
    if skip_models and models_only:
        raise BadInputError("--skip-models and --models-only leave nothing to do", hint="Give one of them.")
    if verify and skip_models:
        raise BadInputError("--verify reads the models, and --skip-models leaves them out", hint="Give one of them.")
    packages = [extra for extra in extras if extra != _LIGHTNING]
    if packages and models_only:
        raise BadInputError("--with installs into the trainer's environment", hint="Leave --models-only out.")
    if _LIGHTNING in extras and skip_models:
        raise BadInputError(
            "--with lightning downloads models, and --skip-models leaves them out", hint="Leave --skip-models out."
        )
    settings, ended = call.settings, threading.Event()
    wanted = Provision(
        settings=settings,
        added=check_names(packages),
        tasks=task.tasks,
        engine=box.choose_engine(engine, settings),
        with_trainer=not models_only,
        with_models=not skip_models,
        with_lightning=_LIGHTNING in extras,
        ended=ended,
        digests=Digests(ended) if verify else None,
    )
    flags = [
        *([] if task is ModelsChoice.T2V else ["--task", task.value]),
        *([] if engine is None else ["--engine", engine]),
        *(["--workspace", str(settings.workspace)] if settings.source_of("workspace") is Source.FLAG else []),
        *(["--skip-models"] if skip_models else []),
        *(["--models-only"] if models_only else []),
        *(["--verify"] if verify else []),
        *(word for extra in extras for word in ("--with", extra)),
    ]
    if settings.source_of("upload") is Source.FLAG:
        flags += [word for target in settings.upload for word in ("--upload", target)]
    preparation = _Preparation(
        wanted=wanted, task=task, sink=call.sink, rerun=shlex.join(["wan-train", "provision", *flags])
    )
    try:
        return preparation.look_only() if call[options.CHECK_ONLY] else preparation.prepare(yes=call[options.YES])
    except WanTrainError as error:
        failed = error
        return Result(data=lambda: preparation.report(failed.exit_code, failed), error=failed)


@dataclass(slots=True, kw_only=True)
class _Preparation:
    """One call of the command. `rerun` is the command that resumes it."""

    wanted: Provision
    task: ModelsChoice
    sink: Sink
    rerun: str
    found: Mapping[str, Finding] = field(default_factory=dict)
    made: Sequence[Step] = ()
    rows: Sequence[Row] = ()
    failures: Mapping[str, WanTrainError] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    worked: bool = False

    @property
    def log(self) -> Path:
        return self.wanted.logs / LOG_NAME

    def look_only(self) -> Result:
        self._look()
        error = None if is_ready(self.found) else self._not_ready()
        exit_code = ExitCode.DONE if error is None else error.exit_code
        return Result(data=lambda: self.report(exit_code), text=self._show_found, error=error, exit_code=exit_code)

    def prepare(self, *, yes: bool) -> Result:
        self._look()
        self._show()
        refuse_blocked(self.found)
        if self._missing() and not yes and self.sink.can_ask and not questions.confirm(self._question()):
            self.sink.line("Nothing was changed.")
            return Result()
        self.began = time.monotonic()
        with self.wanted.locked() as locked:
            self._look(again=True)  # another provision may have finished since the question
            refuse_blocked(self.found)
            self.worked = True
            locked.log(f"--- {self.rerun}")
            with caught() as signals:
                outcome = self._work(locked, signals)
            error = self._error(outcome, signals)
            if signals.hung_up:  # no reader is left
                locked.log("the terminal was closed")
                return Result(exit_code=HANGUP_EXIT)
            self._print_end(locked, error)
            if error is None and self.wanted.with_models:
                self._offer_leftovers()
        if error is not None:
            raise error
        return Result(data=lambda: self.report(ExitCode.DONE))

    def report(self, exit_code: ExitCode, error: WanTrainError | None = None) -> dict[str, Any]:
        """The JSON document."""
        return report_json(
            Report(
                task=self.task.value,
                engine=self.wanted.engine.name,
                workspace=str(self.wanted.settings.workspace),
                titles=self._titles,
                found=self.found,
                exit_code=exit_code,
                rows=self.rows,
                failures=self.failures,
                seconds=time.monotonic() - self.began if self.worked else None,
                log=str(self.log) if self.worked else None,
                error=error,
            )
        )

    def _not_ready(self) -> NotReadyError:
        install = f"Install what is missing: `{self.rerun}`."
        hints = filter(None, (all_hints(self.found.values()), install))
        return NotReadyError("this box is not ready", hint="\n".join(hints))

    def _show_found(self, sink: Sink) -> None:
        self._show()
        if not is_ready(self.found):
            return
        unverified = any(finding.state is State.UNVERIFIED for finding in self.found.values())
        verified = self.wanted.digests is None or not unverified
        sink.outcome("This box is ready." if verified else "Nothing is missing, but not everything could be verified.")

    def _look(self, *, again: bool = False) -> None:
        if self.sink.is_screen and not again:
            self.sink.line("Checking this box ..." if self.sink.ascii_only else "Checking this box …")
            if self.wanted.digests is not None:
                self.sink.line("Every model file is read and compared with its sha256; this takes minutes.")
        self.made = self.wanted.steps()
        self.found = self.wanted.look(list(self.made))

    def _work(self, locked: LockedWorkspace, signals: Signals) -> Outcome:
        table = StatusTable()
        reporter = Reporter(
            table=table,
            heading=self._heading(),
            sink=self.sink,
            workspace=locked,
            signals=signals,
            ended=self.wanted.ended,
        )
        try:
            with reporter.reporting():
                outcome = self.wanted.perform(self.made, self.found, table, locked, tick=reporter.tick)
        finally:
            self.rows = table.rows()
        self.found, self.failures = {**self.found, **outcome.found}, outcome.failures
        return outcome

    def _error(self, outcome: Outcome, signals: Signals) -> WanTrainError | None:
        failed = failure(self.made, outcome.failures)
        kept = f"Completed work is kept. Resume with `{self.rerun}`."
        if not outcome.is_complete:
            also = f"; before that, {failed.message}" if failed is not None else ""
            if signals.interrupted:
                return InterruptedProvisionError(f"stopped by Ctrl-C before the box was ready{also}", hint=kept)
            return TerminatedProvisionError(f"stopped by TERM before the box was ready{also}", hint=kept)
        if failed is None:
            return None
        hint = "\n".join(filter(None, (failed.hint, kept, f"Log: {self.log}")))
        return NotReadyError(failed.message, hint=hint)

    def _print_end(self, locked: LockedWorkspace, error: WanTrainError | None) -> None:
        seconds = time.monotonic() - self.began
        lines = list(summary_lines(self.rows, seconds, _TEXT_WIDTH))
        for line in plain(lines).splitlines():
            locked.log(line)
        if lines:
            self.sink.show(Screenful(lambda width: summary_lines(self.rows, seconds, width)))
            self.sink.line("")
        if error is not None:
            locked.log(f"error: {error.message}")
            return
        whole = self.wanted.with_trainer and self.wanted.with_models
        said = "This box is ready." if whole else "Everything requested is installed."
        locked.log(said)
        self.sink.outcome(f"{said} Next: `{self._next()}`" if whole else said)

    def _offer_leftovers(self) -> None:
        """Delete other programs' files only after a yes: they may still be needed."""
        left = self.wanted.leftovers.of_others()
        if not left or not self.sink.can_ask:
            return
        self.sink.line(
            f"\n{units.file_size(sum(each.bytes for each in left))} of unfinished downloads of other programs:"
        )
        for each in left:
            self.sink.line(f"  {units.file_size(each.bytes):>9}  {each.path}")
        if questions.confirm("Delete them?", default=False):
            for each in left:
                remove(each.path)

    def _next(self) -> str:
        settings = self.wanted.settings
        task = ["--task", self.task.value] if self.task is ModelsChoice.I2V else []
        place = ["--workspace", str(settings.workspace)] if settings.source_of("workspace") is Source.FLAG else []
        return shlex.join(["wan-train", *task, *place])

    def _missing(self) -> list[Step]:
        return [step for step in self.made if has_work(step, self.found[step.id])]

    def _question(self) -> str:
        """Return what would be done, with sizes: the hub reports downloads, installs are estimates."""
        missing = self._missing()
        bytes_ = sum(self.found[step.id].size for step in missing if step.downloads)
        space = sum(self.found[step.id].size for step in missing if not step.downloads)
        parts = [
            *([f"download {units.file_size(bytes_)} of models"] if bytes_ else []),
            *([f"install what is missing (about {units.file_size(space)} of disk)"] if space else []),
        ]
        question = " and ".join(parts or ["install what is missing"])
        return f"{question[0].upper()}{question[1:]}?"

    def _heading(self) -> Heading:
        wanted = self.wanted
        tasks = "text and image to video" if self.task is ModelsChoice.BOTH else wanted.tasks[0].words
        what = {
            (True, True): f"{tasks} ({self.task.value})",
            (True, False): "the trainer only",
            (False, True): f"models for {tasks} ({self.task.value})",
        }[wanted.with_trainer, wanted.with_models]
        engine = f"engine {wanted.engine.name} (musubi-tuner {wanted.engine.commit[:7]})"
        return Heading(what=what, engine=engine, workspace=str(wanted.settings.workspace), began=self.began)

    @property
    def _titles(self) -> dict[str, str]:
        return {box.DISK: "Disk", **{step.id: step.title for step in self.made}}

    def _show(self) -> None:
        found, titles = self.found, self._titles
        self.sink.show(Screenful(lambda width: found_lines(found, titles, width)))
