"""What the live view costs while it is watched: processor time over a run that has 10,000 steps behind it."""

from __future__ import annotations

import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pexpect

from figures import Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tensorboardX import SummaryWriter

from support.runs import events_of, make_gpus, make_plan
from support.trainers import PROGRAM
from wan_train.base.files import write_whole
from wan_train.base.host import myself
from wan_train.run.directory import RunDirectory
from wan_train.run.events import Journal, SupervisorStarted, TrainingBegan
from wan_train.run.live import Live, write_live
from wan_train.run.plan import Plan
from wan_train.run.progress import Progress
from wan_train.run.state import JobState

_WINDOW_SECONDS = 120.0
_SETTLE_SECONDS = 15.0
_STEP_SECONDS = 0.5
_STEPS_BEFORE, _STEPS = 10_000, 20_000
_TICKS = os.sysconf("SC_CLK_TCK")
_EXPERTS = ("train-high", "train-low")


def measure(seconds: float = _WINDOW_SECONDS) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="wan-train-view-") as folder:
        trainings = _Trainings(RunDirectory(Path(folder) / "20251122-120000-mylora"))
        view = pexpect.spawn(
            str(PROGRAM),
            ["attach", "--runs-dir", folder],
            dimensions=(30, 100),
            env={**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8"},
        )
        trainings.go_on(view, _SETTLE_SECONDS)
        started, before, drawn = time.monotonic(), _cpu_seconds(view.pid), trainings.bytes_drawn
        trainings.go_on(view, seconds)
        wall = time.monotonic() - started
        share = 100 * (_cpu_seconds(view.pid) - before) / wall
        sent = (trainings.bytes_drawn - drawn) / wall
        view.close(force=True)
    yield Figure(
        what=f"processor time of the live view over {wall:.0f} s, two experts after {_STEPS_BEFORE:,} steps, "
        f"a step each {_STEP_SECONDS} s",
        measured=f"{share:.2f} % of one core",
        against=f"{sent:.0f} bytes a second to the terminal",
        goal="< 2 %",
        met=share < 2,
    )


class _Trainings:
    """Two experts that train as far as anybody can see, with this process as their supervisor."""

    def __init__(self, run: RunDirectory) -> None:
        self.bytes_drawn = 0
        self._run, self._step, self._chance = run, _STEPS_BEFORE, random.Random(1)
        run.path.mkdir()
        run.write_plan(_plan(run))
        journal = Journal(run.events)
        jobs = {"cache-latents": JobState.SUCCEEDED, "cache-text": JobState.SUCCEEDED}
        events = events_of(_plan(run), {**jobs, **dict.fromkeys(_EXPERTS, JobState.RUNNING)}, gpus={"train-low": 1})
        since = time.time() - events[0].at - _STEPS_BEFORE * _STEP_SECONDS
        for event in events:
            journal.append(replace(event, at=event.at + since))
        journal.append(SupervisorStarted(at=time.time(), identity=myself()))
        self._writers = {}
        for expert in _EXPERTS:
            journal.append(TrainingBegan(at=time.time(), step=expert, attempt=1, steps=_STEPS))
            attempt = run.attempt(expert, 1)
            attempt.path.mkdir(parents=True)
            write_whole(attempt.log, "")
            self._writers[expert] = SummaryWriter(str(attempt.path / "logs"))
            for step in range(1, _STEPS_BEFORE + 1):
                self._write(expert, step)
        journal.close()
        self._observe()

    def go_on(self, view: pexpect.spawn, seconds: float) -> None:
        """Train, and take what the view draws as a terminal would."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._step += 1
            for expert in _EXPERTS:
                self._write(expert, self._step)
            self._observe()
            due = time.monotonic() + _STEP_SECONDS
            while time.monotonic() < due:
                try:
                    self.bytes_drawn += len(view.read_nonblocking(65_536, timeout=max(0.01, due - time.monotonic())))
                except pexpect.TIMEOUT:
                    break

    def _write(self, expert: str, step: int) -> None:
        loss = (0.07 + 0.08 * math.exp(-step / 2000)) * self._chance.lognormvariate(0.0, 0.4)
        for tag, value in (("loss/current", loss), ("loss/average", loss), ("lr/unet", 3e-4)):
            self._writers[expert].add_scalar(tag, value, step)

    def _observe(self) -> None:
        left = (_STEPS - self._step) * _STEP_SECONDS
        progress = Progress(
            epoch=self._step // 24,
            epochs=_STEPS // 24,
            step=self._step,
            steps=_STEPS,
            loss=0.08,
            seconds_per_step=_STEP_SECONDS,
            eta_seconds=left,
        )
        live = Live(
            at=time.time(),
            gpus=make_gpus(used=(27, 27)),
            progress=dict.fromkeys(_EXPERTS, progress),
            disk_free_bytes=200_000_000_000,
        )
        write_live(self._run, live)


def _plan(run: RunDirectory) -> Plan:
    return make_plan(run_dir=run.path, epochs=_STEPS // 24)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / _TICKS
