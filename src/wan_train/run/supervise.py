"""The supervisor as a program: `python -m wan_train.run.supervise RUN_DIRECTORY`, detached, one for each run."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from wan_train.base import process
from wan_train.base import settings as settings_module
from wan_train.base.clock import SystemClock
from wan_train.base.errors import ExitCode, WanTrainError
from wan_train.base.locks import held
from wan_train.base.settings import ReportTime, Settings
from wan_train.engine.commands import DEVICE_VARIABLE
from wan_train.gpu.leases import LeaseRoom
from wan_train.gpu.model import GpuProbe
from wan_train.gpu.probe import CpuSlots, NvmlProbe
from wan_train.run.directory import RunDirectory
from wan_train.run.follow import read_run
from wan_train.run.guardian_process import try_ensure_guardian
from wan_train.run.launcher import WardenLauncher
from wan_train.run.plan import Devices, Plan
from wan_train.run.supervisor import Supervisor

_LOCK_SECONDS = 2.0
_REPORT_SECONDS = 120.0
_GUARDIAN_SECONDS = 15.0
"""Between two checks that the guardian of the box is alive."""


def main(argv: list[str]) -> int:
    given = _arguments(argv)
    run = RunDirectory(given.run)
    plan = run.read_plan()
    settings = settings_module.resolve(flags={})
    with ExitStack() as lock:
        if not _take(lock, run):
            print(f"another supervisor already runs {run.path}", flush=True)  # noqa: T201  stdout is supervisor.log
            return ExitCode.BAD_INPUT
        exit_code = _supervise(run, plan, settings, given)
    # The lock is free by now: resuming this run need not wait for its preview and its report.
    if exit_code is not None and run.draws_preview(exit_code):
        draw_preview(run, plan)
    if settings.report is ReportTime.AT_END:
        make_report(run)
    return exit_code or ExitCode.DONE


def _take(stack: ExitStack, run: RunDirectory) -> bool:
    """Hold the run's lock until the stack or this process ends; False if another supervisor has it.

    Another supervisor whose run is over may still be exiting, so wait for it briefly.
    """
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            stack.enter_context(held(run.lock))
        except BlockingIOError:
            if time.monotonic() > deadline or not read_run(run)[1].is_over:
                return False
            time.sleep(_LOCK_SECONDS / 40)
        else:
            return True


def _supervise(run: RunDirectory, plan: Plan, settings: Settings, given: argparse.Namespace) -> int | None:
    supervisor = Supervisor(
        run=run,
        plan=plan,
        clock=SystemClock(),
        launcher=WardenLauncher(grace_seconds=settings.term_grace_seconds),
        probe=probe_for(plan, settings),
        room=LeaseRoom(settings.lease_dir),
        settings=settings,
        visible=os.environ.get(DEVICE_VARIABLE),
    )
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # undo any signal mask inherited from the starter
    wakeup = _wakeup()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: supervisor.stop_now(received))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        gpus = tuple(given.gpus.split(",")) if given.gpus is not None else None
        ends = {step: int(epoch) for step, _, epoch in (each.partition("=") for each in given.end)}
        supervisor.begin(resume=given.resume, epochs=given.epochs, ends=ends, gpus=gpus, budget=given.budget)
        guarded = time.monotonic()
        while (pause := supervisor.tick()) is not None:
            if time.monotonic() - guarded >= _GUARDIAN_SECONDS:
                guarded = time.monotonic()
                if run.duties.exists():
                    try_ensure_guardian(settings)
            _wait(wakeup, pause)
    finally:
        supervisor.close()
    return supervisor.exit_code


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m wan_train.run.supervise")
    parser.add_argument("run", type=Path)
    parser.add_argument("--resume", action="store_true", help="resume a finished run")
    parser.add_argument("--epochs", type=int, help="a larger total")
    parser.add_argument("--budget", type=float, help="dollars that the run may cost in all")
    parser.add_argument("--end", action="append", default=[], metavar="STEP=EPOCH", help="where a training now ends")
    parser.add_argument("--gpus", help="UUIDs of the GPUs to use in place of those it used, comma-separated")
    return parser.parse_args(argv)


def probe_for(plan: Plan, settings: Settings) -> GpuProbe:
    match plan.devices:
        case Devices.NVML:
            return NvmlProbe(timeout=settings.probe_timeout_seconds)
        case Devices.CPU_SLOTS:
            return CpuSlots()


def _wakeup() -> int:
    """Return a descriptor that becomes readable on every signal, SIGCHLD included, so that a signal ends a wait."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    return reader


def _wait(wakeup: int, seconds: float) -> None:
    select.select([wakeup], [], [], seconds)
    try:
        while os.read(wakeup, 512):
            pass
    except BlockingIOError:
        pass


def draw_preview(run: RunDirectory, plan: Plan) -> None:
    """Run `wan-train preview` for a finished run, on its GPUs. Never raises; the outcome goes into supervisor.log.

    It waits for a GPU like a run, and keeps every picture, so a later call of the command continues.
    """
    print("drawing the preview", flush=True)  # noqa: T201  stdout is supervisor.log
    argv = [sys.executable, "-m", "wan_train", "preview", str(run.path), "--prompts", str(run.preview_prompts)]
    try:
        _, state = read_run(run)
    except (WanTrainError, OSError) as error:
        print(f"the preview was not drawn: {error}", flush=True)  # noqa: T201  the same
        return
    if plan.devices is Devices.NVML and (state.gpus_named or plan.gpus_named):
        argv += ["--gpus", ",".join(state.gpu_uuids or plan.gpu_uuids)]
    made = process.run(argv, seconds=None, cwd=Path("/"))
    print(made.tail() or f"the preview was not drawn (exit code {made.code})", flush=True)  # noqa: T201  the same


def make_report(run: RunDirectory) -> None:
    """Run `wan-train report` for a finished run. Never raises; problems go into supervisor.log.

    It is a process of its own, because decoding pictures and drawing may hang, crash or need much memory.
    """
    argv = [sys.executable, "-m", "wan_train", "report", "--json", str(run.path)]
    made = process.run(argv, seconds=_REPORT_SECONDS, cwd=Path("/"))
    if not made.succeeded:
        print(made.tail() or f"the report was not made (exit code {made.code})", flush=True)  # noqa: T201  stdout is supervisor.log


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
