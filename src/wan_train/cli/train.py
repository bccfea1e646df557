"""`wan-train train` and `wan-train rehearse`: ask, plan, confirm, run, watch."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.files import existing_parent
from wan_train.base.home import expand
from wan_train.base.settings import Settings
from wan_train.base.settings import Source as SettingSource
from wan_train.cli import options, questions
from wan_train.cli.call import Call
from wan_train.cli.duty_options import check_before, duties_of, hand_over
from wan_train.cli.output import Result, Sink
from wan_train.cli.price import Known, PriceQuestion, budget_of, may_exceed, require_price, seconds_for
from wan_train.cli.request import make_request
from wan_train.cli.watch import watch
from wan_train.dataset.model import DatasetError
from wan_train.dataset.resolve import NewConfig
from wan_train.dataset.scan import group
from wan_train.dataset.writing import write_for_directory
from wan_train.engine import trainer as trainers
from wan_train.gpu.free import why_busy
from wan_train.gpu.leases import LeaseRoom
from wan_train.gpu.model import Gpu
from wan_train.recipe.effective import Layer, resolve
from wan_train.recipe.model import Origin, Source
from wan_train.recipe.terms import EngineKind
from wan_train.recipe.until import ALL
from wan_train.run.control import start_supervisor
from wan_train.run.directory import RunDirectory, planned
from wan_train.run.duties import Duties
from wan_train.run.end_epochs import OFFERED, early_end
from wan_train.run.gpu_pool import gpu_label
from wan_train.run.plan import Devices, Plan
from wan_train.run.planner import Request, make_plan, write_run
from wan_train.run.price_watch import runs_that_pay
from wan_train.run.quote import Cards, quote
from wan_train.run.scheduler import BOTH_CACHINGS_BYTES
from wan_train.run.speeds import read_speeds

if TYPE_CHECKING:
    from wan_train.views.model import GpuNow
    from wan_train.views.summary import AtStart


def train(call: Call) -> Result:
    """Plan a run, then start and watch it, unless only the plan is requested."""
    sink, settings, yes, dry_run = call.sink, call.settings, call[options.YES], call[options.DRY_RUN]
    if call.get(options.SCRIPT) is not None and not dry_run:
        raise BadInputError("--script writes a plan and starts nothing", hint="Add --dry-run.")
    if sink.quiet and not yes and not dry_run:
        raise BadInputError("nothing was started: with --quiet no plan is shown to confirm", hint="Add --yes.")
    interactive = sink.can_ask and not yes and not dry_run
    budget, question, duties = budget_of(call), PriceQuestion(settings), duties_of(call)
    request = make_request(call, interactive=interactive)
    if interactive:
        duties = _with_last_targets(duties, settings)
    if (script := call.get(options.SCRIPT)) is not None:
        return _write_script(expand(script).absolute(), request, settings, sink)
    plan, at_start = _planned(request, call, question, duties)
    if dry_run:
        return _plan(plan, at_start)
    sink.render(Result(text=lambda sink: _show_summary(plan, at_start, sink)))
    ends_early = False
    if not yes:
        sink.require_person("nothing was started", "Add --yes to start, or --dry-run to see the plan only.")
        answer = _ask_start(plan, at_start, request, sink)
        if answer is questions.Start.NO:
            sink.note("Nothing was started.")
            return Result()
        if ends_early := answer is questions.Start.EARLY_END:
            source = Source(origin=Origin.FLAG, text="the last question")
            layer = Layer(source=source, values={"until": OFFERED})
            request = replace(request, recipe=resolve(request.recipe, [layer]))
            run, paid = RunDirectory(plan.run_dir), seconds_for(budget, at_start.price)
            again = make_plan(request, run, created=plan.created, paid_seconds=paid, say=sink.note)
            plan = _quoted(again, request, at_start, settings)
    if not may_exceed(plan.quote, at_start.price, budget, sink, runs=at_start.runs, ask=interactive):
        sink.note("Nothing was started.")
        return Result()
    if interactive:
        asked, until = request.answers, OFFERED if ends_early else ALL
        questions.remember(
            questions.LastAnswers(
                title=asked.title,
                author=asked.author,
                dataset=asked.dataset,
                until=until,
                uploads=duties.uploads,
            )
        )
    return _start(request, plan, duties, call)


def rehearse(call: Call) -> Result:
    """Run the rehearsal engine; without a dataset, draw eight captioned pictures for it."""
    budget, question, duties = budget_of(call), PriceQuestion(call.settings), duties_of(call)
    dataset = call.get(options.OWN_PICTURES) or str(_drawn_pictures(call.settings))
    request = make_request(call, interactive=False, engine=EngineKind.REHEARSAL, dataset=dataset)
    plan, at_start = _planned(request, call, question, duties)
    call.sink.render(Result(text=lambda sink: _show_summary(plan, at_start, sink)))
    runs = at_start.runs
    if not may_exceed(plan.quote, at_start.price, budget, call.sink, runs=runs, ask=call.sink.can_ask):
        call.sink.note("Nothing was started.")
        return Result()
    return _start(request, plan, duties, call)


def _planned(request: Request, call: Call, question: PriceQuestion, duties: Duties) -> tuple[Plan, AtStart]:
    """Return the plan with its quote, and the facts shown with it. Raises what `make_plan` raises."""
    run, created = planned(call.settings.runs, request.answers.title)
    known = question.answer()
    paid = seconds_for(budget_of(call), known.price)
    plan = make_plan(request, run, created=created, paid_seconds=paid, say=call.sink.note)
    at_start = _at_start(plan, request, call, known, duties)
    return _quoted(plan, request, at_start, call.settings), at_start


def _with_last_targets(duties: Duties, settings: Settings) -> Duties:
    """Offer the last run's upload targets; ask only if it had any and none are set now."""
    last = questions.recall()
    if last is None or not last.uploads or settings.source_of("upload") is not SettingSource.DEFAULT:
        return duties
    return replace(duties, uploads=questions.ask_targets(last.uploads))


def _start(request: Request, plan: Plan, duties: Duties, call: Call) -> Result:
    check_before(duties, call)
    if request.dataset_to_write is not None:
        _write_dataset(request.dataset_to_write)
    run = write_run(request, plan, call.settings)
    hand_over(run, duties, call.settings)
    start_supervisor(run, call.settings, budget=budget_of(call))
    return detached(run) if call[options.DETACH] else watch(run, call.settings, call.sink, owner=True)


def _write_dataset(wanted: NewConfig) -> None:
    try:
        write_for_directory(wanted.directory, wanted.toml_path)
    except DatasetError:
        # Another run of this folder may have written it meanwhile. This run has its own snapshot in any case.
        if not wanted.toml_path.is_file():
            raise


def _ask_start(plan: Plan, at_start: AtStart, request: Request, sink: Sink) -> questions.Start:
    """Ask whether to start; `d` shows everything and asks again. Never returns DETAILS."""
    from wan_train.views.plan_details import plan_details
    from wan_train.views.summary import shorter_training, whole_training

    offered = early_end(plan.recipe, plan.dataset.batches_per_epoch, request.trainer.capabilities)
    ends = (whole_training(plan), shorter_training(offered)) if offered is not None else None
    last = questions.recall()
    early = last is not None and last.until == OFFERED
    while (answer := questions.ask_start(ends, early=early)) is questions.Start.DETAILS:
        sink.show(plan_details(plan, at_start))
    return answer


def _show_summary(plan: Plan, at_start: AtStart, sink: Sink) -> None:
    from wan_train.views.summary import plan_lines

    sink.show(plan_lines(plan, at_start))


def _plan(plan: Plan, at_start: AtStart) -> Result:
    from wan_train.views.json_records import plan_json
    from wan_train.views.plan_details import plan_text

    return Result(
        data=lambda: plan_json(plan, at_start),
        text=lambda sink: sink.text(plan_text(plan, at_start)),
    )


def _write_script(script: Path, request: Request, settings: Settings, sink: Sink) -> Result:
    from wan_train.run.shell_script import files_of, write_script
    from wan_train.views.json_records import plan_json
    from wan_train.views.summary import AtStart

    plan = write_script(request, script, created=time.time(), say=sink.note)
    return Result(
        data=lambda: {
            **plan_json(plan, AtStart(gpus=_gpus_now(request.usable, plan.devices, settings))),
            "script": str(script),
        },
        text=lambda sink: sink.text(
            f"Wrote {script}\nand its files in {files_of(script)}/\nStart it with: sh {shlex.quote(str(script))}"
        ),
    )


def _at_start(plan: Plan, request: Request, call: Call, known: Known, duties: Duties) -> AtStart:
    from wan_train.views.summary import AtStart

    settings, budget = call.settings, budget_of(call)
    require_price(budget, known)
    new = request.dataset_to_write
    return AtStart(
        gpus=_gpus_now(request.usable, plan.devices, settings),
        dataset=request.counted(),
        problems=len(group(request.inventory.problems)),
        disk_free_bytes=shutil.disk_usage(existing_parent(plan.run_dir)).free,
        new_toml=new.toml_path if new is not None else None,
        price=known.price,
        price_problem=known.problem,
        runs=1 + _others(settings),
        budget=budget,
        duties=duties,
    )


def _others(settings: Settings) -> int:
    """Return how many other runs are alive on this box; 0 if the leases cannot be read."""
    try:
        return runs_that_pay(LeaseRoom(settings.lease_dir))
    except NotReadyError:
        return 0


def _quoted(plan: Plan, request: Request, now: AtStart, settings: Settings) -> Plan:
    """Return the plan with the quote for its time."""
    card = request.usable[0]
    cards = Cards(
        name=card.name,
        free=sum(gpu.busy_because is None for gpu in now.gpus),
        hold_both=card.total_bytes >= BOTH_CACHINGS_BYTES and not plan.dataset.has_videos,
    )
    return replace(plan, quote=quote(plan, read_speeds(settings.runs), cards))


def _gpus_now(gpus: Sequence[Gpu], devices: Devices, settings: Settings) -> list[GpuNow]:
    from wan_train.views.model import GpuNow

    room = LeaseRoom(settings.lease_dir)
    return [
        GpuNow(
            label=gpu_label(gpu, devices),
            name=gpu.name,
            used_bytes=gpu.used_bytes,
            total_bytes=gpu.total_bytes,
            busy_because=_why_busy(gpu, room),
        )
        for gpu in gpus
    ]


def _why_busy(gpu: Gpu, room: LeaseRoom) -> str | None:
    holder = room.holder(gpu.uuid)
    if holder is not None:
        return f"in use by run {holder.run_id}" if holder.run_id else "in use by another wan-train"
    return why_busy(gpu)


def detached(run: RunDirectory) -> Result:
    """Detach from a run; stdout gets only its ID."""

    def text(sink: Sink) -> None:
        sink.outcome(run.run_id)
        sink.note("Running. Watch it with:")
        sink.note(f"  wan-train attach {run.run_id}")

    about = {"event": "detached", "run_id": run.run_id, "run_dir": str(run.path)}
    return Result(data=lambda: about, text=text)


def _drawn_pictures(settings: Settings) -> Path:
    """Return the folder of the drawn pictures, created once."""
    trainer = trainers.find(EngineKind.REHEARSAL, settings)
    folder = settings.runs / "rehearsal-pictures"
    if (folder / "dataset.toml").is_file():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotReadyError(
            f"the pictures cannot be written to {folder}: {error.strerror}", hint="Choose another --runs-dir."
        ) from error
    trainers.draw_pictures(trainer, folder)
    return folder
