"""`wan-train preview`: draw both LoRAs of a run together, epoch by epoch."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self

from wan_train.base import locks
from wan_train.base.clock import SystemClock
from wan_train.base.errors import BadInputError, ExitCode, InterruptionError, NotReadyError, WanTrainError
from wan_train.base.home import expanded
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.base.units import duration
from wan_train.cli import options
from wan_train.cli.call import Call
from wan_train.cli.option import Option
from wan_train.cli.output import Result, Sink
from wan_train.cli.price import PriceQuestion
from wan_train.cli.request import gpus_and_driver
from wan_train.cli.signals import Signals, caught
from wan_train.engine import generate
from wan_train.engine import trainer as trainers
from wan_train.engine.sample_prompts import number_problems
from wan_train.engine.trainer import Trainer
from wan_train.gpu.borrow import Borrower, leased
from wan_train.gpu.leases import LeaseRoom
from wan_train.gpu.model import Gpu
from wan_train.preview.comfyui import write_workflow
from wan_train.preview.drawing_session import Session
from wan_train.preview.estimate import Estimate, estimate, from_training, loads_of, timed_cells, work_of
from wan_train.preview.model import Precision, Preview, PreviewDirectory, drawn, lock_of, previews_of
from wan_train.preview.prepared import PreparedPreview, drawn_places, prepare, refreshed, write_inputs
from wan_train.preview.recorder import Progress, Recorder
from wan_train.preview.request import PreviewRequest, Source, fast_style
from wan_train.preview.sheet import draw_sheet
from wan_train.recipe.terms import Expert
from wan_train.run.directory import all_runs, find
from wan_train.run.launcher import WardenLauncher
from wan_train.run.picks import Epochs
from wan_train.run.plan import Devices, Plan
from wan_train.run.speeds import read_speeds
from wan_train.run.supervise import probe_for
from wan_train.views import preview as views
from wan_train.views.lines import Screenful
from wan_train.views.model import RunView, view_of
from wan_train.views.preview import Shown

if TYPE_CHECKING:
    from rich.status import Status

_LOOK_SECONDS = 1.0
_MOST_STRENGTH = 10.0
_EXAMPLES = {
    "width": "--size 832x480",
    "height": "--size 832x480",
    "frame_count": "--frames 17",
    "sample_steps": "--steps 20",
    "seed": "--seed 1",
}
_MOST_RUNS = 20
"""Newest runs whose previews count for the estimate."""


def preview(call: Call) -> Result:
    """Choose, check, quote, draw. Raises BadInputError and NotReadyError before anything is drawn."""
    request = _request(call)
    settings, sink = call.settings, call.sink
    price = PriceQuestion(settings)
    view = view_of(find(settings.runs, call.get(options.RUN)))
    plan = view.plan
    trainer = _trainer(plan, settings)
    usable, _ = gpus_and_driver(plan.devices, settings)
    source = Source(run=view.run, plan=plan, state=view.state)
    smallest = min(gpu.total_bytes for gpu in usable)
    style = fast_style(plan.recipe.task, trainer, say=sink.step) if call[options.FAST] else None
    ready = prepare(source, request, trainer, smallest_card=smallest, now=time.time(), style=style, say=sink.step)
    known = price.answer().price
    shown = Shown(
        directory=ready.directory,
        preview=ready.preview,
        cells=drawn(ready.directory, ready.preview),
        have=len(drawn_places(ready)),
        notes=ready.notes,
        estimate=_estimate(ready, trainer, usable[0].name, settings),
        per_hour=known.per_hour if known is not None else None,
    )
    sink.show(Screenful(partial(views.before_lines, shown)))
    if call[options.DRY_PREVIEW]:
        return Result(data=lambda: views.preview_json(shown))
    return _draw(ready, trainer, usable, shown, call=call, view=view)


def _trainer(plan: Plan, settings: Settings) -> Trainer:
    """Return the trainer that trained the run, unless an option names another; raises NotReadyError."""
    own = plan.trainer
    if not own.is_real:
        return trainers.find(own.kind, settings)
    if settings.musubi_dir is None and own.root.is_dir():
        python = settings.musubi_python or (own.python if own.python.exists() else None)
        settings = replace(settings, musubi_dir=own.root, musubi_python=python)
    return trainers.locate_musubi(settings)


def _draw(
    ready: PreparedPreview, trainer: Trainer, usable: Sequence[Gpu], shown: Shown, *, call: Call, view: RunView
) -> Result:
    sink, began = call.sink, time.monotonic()
    with caught() as signals, _Screen(sink, ready.preview) as screen, _alone(ready, signals, screen.waiting) as lock:
        try:
            ready = refreshed(ready)
            write_inputs(ready)
            recorder = Recorder(ready=ready, clock=SystemClock(), show=screen.show, say=screen.say)
            recorder.adopt()
            left, earlier = len(recorder.left()), len(ready.directory.read_drawings())
            try:
                if recorder.left():
                    _with_gpu(
                        recorder, trainer, usable, call=call, view=view, lock=lock, signals=signals, screen=screen
                    )
            finally:
                screen.waiting("making the sheet")
                _write_sheet(recorder.ready)
            ready = recorder.ready
        except OSError as error:
            raise NotReadyError(
                f"{one_line(str(error.filename or ready.directory.path))} cannot be written: {error.strerror}",
                hint="Free some disk space: wan-train clean\nThen repeat the command: finished pictures are kept.",
            ) from error
    done = replace(
        shown,
        preview=ready.preview,
        cells=drawn(ready.directory, ready.preview),
        failed=recorder.flawed,
        seconds=time.monotonic() - began,
        drawing_seconds=sum(drawing.seconds for drawing in ready.directory.read_drawings()[earlier:]),
        drawn_now=left - len(recorder.left()) - len(recorder.flawed),
    )
    return Result(
        data=lambda: views.preview_json(done),
        text=lambda sink: sink.show(Screenful(partial(views.after_lines, done))),
        exit_code=ExitCode.PARTLY_FAILED if recorder.flawed else ExitCode.DONE,
    )


def _write_sheet(ready: PreparedPreview) -> None:
    """Write the sheet of all finished pictures, even after an early end; raises OSError."""
    if drawn(ready.directory, ready.preview):
        draw_sheet(ready.directory, ready.preview)
        if ready.models is not None:
            write_workflow(ready.directory, ready.preview, ready.models)


def _with_gpu(
    recorder: Recorder,
    trainer: Trainer,
    usable: Sequence[Gpu],
    *,
    call: Call,
    view: RunView,
    lock: int,
    signals: Signals,
    screen: _Screen,
) -> None:
    settings, plan, preview = call.settings, view.plan, recorder.ready.preview

    def wait(why: str) -> None:
        _stop_if(signals)
        screen.waiting(f"waiting for a GPU: {why}")

    with leased(
        usable,
        LeaseRoom(settings.lease_dir),
        partial(probe_for, plan, settings),
        borrower=Borrower(name=f"wan-train preview {plan.run_id}", step="preview"),
        settle_seconds=settings.settle_seconds,
        waiting=wait,
    ) as (gpu, lease):
        recorder.card = gpu.name
        largest = max(generate.tokens_of(each.width, each.height, each.frames) for each in preview.prompts)
        Session(
            recorder=recorder,
            trainer=trainer,
            memory=generate.fitted(gpu.total_bytes, fp8=preview.precision is Precision.FP8_SCALED, tokens=largest),
            device="" if plan.devices is Devices.CPU_SLOTS else gpu.uuid,
            env=plan.env,
            inherit=(lease.fileno(), lock),
            launcher=WardenLauncher(grace_seconds=settings.term_grace_seconds),
            clock=SystemClock(),
            sleep=time.sleep,
            stall_seconds=settings.stall_seconds,
            is_interrupted=lambda: signals.any,
        ).run()


@contextmanager
def _alone(ready: PreparedPreview, signals: Signals, waiting: Callable[[str], None]) -> Iterator[int]:
    """Hold the lock of the run's previews. A drawing that outlives its command holds it until its end."""
    lock_file = lock_of(ready.run.path)
    lock_file.parent.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as held:
        while True:
            try:
                lock = held.enter_context(locks.held(lock_file))
                break
            except BlockingIOError:
                _stop_if(signals)
                have = f"{len(drawn_places(ready))} of {len(list(ready.preview.places()))} pictures are there"
                waiting(f"waiting: another preview of this run is drawing; {have}")
                time.sleep(_LOOK_SECONDS)
        yield lock


def _stop_if(signals: Signals) -> None:
    if signals.any:
        raise InterruptionError("interrupted; nothing was drawn", hint="To continue, repeat the command.")


class _Screen:
    """Progress for people: one live line at a terminal, else one line per picture."""

    def __init__(self, sink: Sink, preview: Preview) -> None:
        self._sink = sink
        self._preview = preview
        self._status: Status | None = None
        self._said = ""

    def __enter__(self) -> Self:
        if self._sink.can_ask and not self._sink.quiet:
            self._status = self._sink.console.status("starting …")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        self._sink.note(text)

    def waiting(self, text: str) -> None:
        """Show the reason for waiting; only once if nothing is redrawn."""
        if self._status is not None:
            self._status.update(f"{text} …")
        elif text != self._said:
            self._said = text
            self._sink.step(text)

    def show(self, progress: Progress) -> None:
        if self._status is not None:
            left = f", about {duration(progress.seconds_left)} left" if progress.seconds_left else ""
            self._status.update(f"{progress.done} of {progress.total} pictures{left}: {progress.doing} …")
        elif progress.cell is not None:
            row, prompt = progress.row or "", (progress.prompt or 0) + 1
            took = duration(progress.cell.seconds)
            self._sink.step(f"{progress.done} of {progress.total}: row {row}, prompt {prompt}, {took}")


def _request(call: Call) -> PreviewRequest:
    epochs = call[options.PREVIEW_EPOCHS].strip()
    numbers = (
        None if epochs == "auto" else tuple(_whole(word, options.PREVIEW_EPOCHS.flag) for word in epochs.split(","))
    )
    prompts, pairs = call.get(options.PREVIEW_PROMPTS), call.get(options.PAIRS)
    files = {Expert.HIGH: call.get(options.HIGH_FILE), Expert.LOW: call.get(options.LOW_FILE)}
    size = call.get(options.PREVIEW_SIZE)
    strength = call[options.STRENGTH]
    if not 0 < strength <= _MOST_STRENGTH:  # also refuses nan
        raise BadInputError(
            f"--strength must be more than 0 and at most {_MOST_STRENGTH:g}, not {strength:g}", hint="1 is as trained."
        )
    return PreviewRequest(
        prompts=None if prompts is None else expanded(prompts),
        epochs=numbers,
        pairs=tuple(Epochs.parse(word.strip()) for word in pairs.split(",")) if pairs is not None else (),
        files={expert: expanded(name).absolute() for expert, name in files.items() if name is not None},
        size=None if size is None else _size(size),
        frames=_number(call, options.FRAMES, "frame_count"),
        steps=_number(call, options.STEPS, "sample_steps"),
        seed=_number(call, options.PREVIEW_SEED, "seed"),
        strength=strength,
    )


def _whole(text: str, flag: str) -> int:
    if not re.fullmatch(r"\s*\d{1,6}\s*", text, re.ASCII):
        raise BadInputError(
            f"{flag} {one_line(text)!r} is not an epoch", hint=f"Use auto or numbers, as in {flag} 20,40,100."
        )
    return int(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*", text, re.ASCII)  # noqa: RUF001  people type the sign too
    if match is None:
        raise BadInputError(f"--size {one_line(text)!r} is not a size", hint="Use WIDTHxHEIGHT, such as 832x480.")
    width, height = int(match[1]), int(match[2])
    _check("width", width, f"--size {width}x{height}: the width")
    _check("height", height, f"--size {width}x{height}: the height")
    return width, height


def _number(call: Call, option: Option[int], key: str) -> int | None:
    number = call.get(option)
    if number is not None:
        _check(key, number, option.flag)
    return number


def _check(key: str, number: int, name: str) -> None:
    """Raise BadInputError for a number that would be invalid in a prompt too."""
    for problem in number_problems(key, number, name):
        raise BadInputError(problem, hint=f"For example {_EXAMPLES[key]}")


def _estimate(ready: PreparedPreview, trainer: Trainer, card: str, settings: Settings) -> Estimate | None:
    """Estimate the time from earlier drawings on this box, else from trainings."""
    earlier: list[tuple[PreviewDirectory, Preview]] = []
    for run in all_runs(settings.runs)[:_MOST_RUNS]:
        for directory in previews_of(run.path):
            with suppress(WanTrainError):
                earlier.append((directory, directory.read()))
    have = drawn_places(ready)
    wanted = [
        work_of(ready.preview, ready.preview.prompts[number], card)
        for row, number in ready.preview.places()
        if (row.name, number) not in have
    ]
    drawings = [drawing for directory, _ in earlier for drawing in directory.read_drawings()]
    found = estimate(wanted, timed_cells(earlier, card), loads_of(drawings, card))
    if found is None and trainer.is_real:
        found = from_training(wanted, read_speeds(settings.runs), trainer)
    return found
