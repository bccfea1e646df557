"""`wan-train tune`: measure speed settings on this card, show what was measured."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wan_train.base.clock import SystemClock
from wan_train.base.errors import BadInputError, InterruptionError, NotReadyError
from wan_train.cli import options
from wan_train.cli.call import Call
from wan_train.cli.output import Result, Sink
from wan_train.cli.request import gpus_and_driver, make_request, parse_resolution, read_recipe
from wan_train.cli.signals import caught
from wan_train.dataset.model import Inventory
from wan_train.engine import trainer as trainers
from wan_train.engine.extra_arguments import TrainerOptions
from wan_train.gpu.borrow import Borrower, leased
from wan_train.gpu.leases import LeaseRoom
from wan_train.gpu.probe import NvmlProbe
from wan_train.recipe.levers import describe
from wan_train.recipe.measured import Length, Measurement, Outcome, Shape
from wan_train.recipe.terms import EngineKind, Task
from wan_train.run.launcher import WardenLauncher
from wan_train.run.plan import Devices
from wan_train.run.tuning import basis_of
from wan_train.tune import candidate_data, records
from wan_train.tune.bench import TrainerBench
from wan_train.tune.prepare import prepare
from wan_train.tune.search import Candidate
from wan_train.tune.session import Session
from wan_train.views import tune as views
from wan_train.views.formatting import gpu_name
from wan_train.views.lines import Screenful

if TYPE_CHECKING:
    from rich.status import Status

_MOST_MINUTES = 24 * 60


def tune(call: Call) -> Result:
    """Measure, or show what was measured before."""
    if call[options.SHOW] or call[options.EXPORT]:
        measured = records.read()
        if not measured:
            raise BadInputError("nothing was measured on this machine yet", hint="Measure: `wan-train tune`.")
        return _export(measured) if call[options.EXPORT] else _show(measured)
    minutes = call[options.MINUTES]
    if not 0 < minutes <= _MOST_MINUTES:
        raise BadInputError(
            f"--minutes must be more than 0 and at most {_MOST_MINUTES}, not {minutes:g}",
            hint="Six minutes try about four candidates on a fast disk.",
        )
    return _measure(call, budget=60 * minutes)


def _show(measured: Sequence[Measurement]) -> Result:
    return Result(
        data=lambda: views.tune_json(measured, Length(), is_left=False),
        text=lambda sink: sink.show(Screenful(partial(views.all_lines, measured))),
    )


def _export(measured: Sequence[Measurement]) -> Result:
    return Result(
        data=lambda: views.tune_json(measured, Length(), is_left=False),
        text=lambda sink: sink.text(views.export_text(measured)),
    )


def _measure(call: Call, *, budget: float) -> Result:
    settings, sink = call.settings, call.sink
    trainer = trainers.find(EngineKind.MUSUBI, settings)
    recipe = read_recipe(call, TrainerOptions(capabilities=trainer.capabilities))
    dataset = call.get(options.TUNE_DATASET)
    size = parse_resolution(call.get(options.RESOLUTION))
    data: Inventory | Shape = candidate_data.MADE_UP if size is None else Shape(width=size[0], height=size[1])
    if dataset is not None:
        data = make_request(call, interactive=False, dataset=dataset).inventory
    usable, driver = gpus_and_driver(Devices.NVML, settings)
    probe = partial(NvmlProbe, timeout=settings.probe_timeout_seconds)
    with (
        _scratch() as folder,
        leased(
            usable,
            LeaseRoom(settings.lease_dir),
            probe,
            borrower=Borrower(name="wan-train tune", step="tune"),
            settle_seconds=settings.settle_seconds,
        ) as (gpu, lease),
        caught() as signals,
    ):
        scratch = Path(folder)
        ready = prepare(recipe, trainer, gpu, data, scratch)
        basis = basis_of(trainer, (gpu,), driver)
        assert basis is not None, "one card, with a driver"
        try:
            made = candidate_data.write(scratch, ready.picked, image_to_video=recipe.task is Task.I2V)
        except OSError as error:
            raise NotReadyError(
                f"the training data for measuring cannot be written to {folder}: {error.strerror}",
                hint="Free some disk space, or name another place: `export TMPDIR=DIR`.",
            ) from error
        session = Session(
            space=ready.space,
            basis=basis,
            workload=ready.workload,
            budget=budget,
            bench=TrainerBench(
                job=ready.job,
                scratch=scratch,
                gpu=gpu,
                lease=lease,
                launcher=WardenLauncher(grace_seconds=settings.term_grace_seconds),
                probe=probe,
                stall_seconds=settings.stall_seconds,
                is_interrupted=lambda: signals.any,
            ),
            clock=SystemClock(),
            keep=records.keep,
        )
        before = [
            row
            for row in records.of(basis)
            # A failure of the guide's own settings says nothing about others, so measure them again.
            if row.workload == ready.workload and not (row.is_guide and row.outcome is Outcome.FAILED)
        ]
        source = "your caches" if made.copied == made.items else "made-up caches"
        sink.line(f"GPU {gpu.number} ({gpu_name(gpu.name)}), {trainer.title}: {ready.workload.commonest}, {source}")
        return _rows(session, before, sink)


def _scratch() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="wan-train-tune-")
    except OSError as error:
        raise NotReadyError(
            f"no temporary folder can be created: {error.strerror}",
            hint="Free some disk space, or name another place: `export TMPDIR=DIR`.",
        ) from error


def _rows(session: Session, before: Sequence[Measurement], sink: Sink) -> Result:
    """Show each row once it is measured; Ctrl-C keeps the finished rows."""
    rows = list(before)
    sink.show(Screenful(lambda width: [views.heading(width)]))
    for row in before:
        _show_row(row, sink)
    with sink.console.status("starting …") if sink.can_ask else nullcontext() as status:
        try:
            for row in session.run(before, partial(_say, status)):
                rows.append(row)
                _show_row(row, sink)
        except InterruptionError:
            raise InterruptionError(
                f"interrupted; {len(rows)} {'row is' if len(rows) == 1 else 'rows are'} kept",
                hint="To continue: wan-train tune",
            ) from None
    failed = next((row for row in rows if row.is_guide and row.outcome is Outcome.FAILED), None)
    if failed is not None:
        raise NotReadyError(
            f"the guide's settings could not be measured: {failed.note}", hint="Check the box: `wan-train doctor`."
        )
    length, is_left = session.space.length, session.left(rows)
    return Result(
        data=lambda: views.tune_json(rows, length, is_left=is_left),
        text=lambda sink: sink.show(
            Screenful(lambda width: views.result_lines(rows, length, is_left=is_left, width=width))
        ),
    )


def _show_row(row: Measurement, sink: Sink) -> None:
    sink.show(Screenful(lambda width: views.row_lines(row, width)))


def _say(status: Status | None, candidate: Candidate, text: str) -> None:
    if status is not None:
        status.update(f"{describe(candidate.settings)}: {text} …")
