"""Launches with random faults, and a user's computer whose program is killed or asleep at random moments.

CHAOS_RUNS=50 python benchmarks/chaos_launch.py ROOTS

Real ssh and rsync, boxes as namespaces of this machine, and the real wan-train with its tiny trainer on them; Vast's
API on loopback. ROOTS is what tests/launch/prepare.sh made. SkyPilot is a stand-in that speaks the same JSON lines,
because its own renting takes minutes of CPU; CHAOS_ENGINE=sky takes the real one. The client's waits are shortened.

Prints what came of the launches; exits with 1 when a box or a process was left, a LoRA was lost or changed, two boxes
trained one job, more than one interval was repeated or overspent, or the account's key was found on a box.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.launch_client import Client, draw_dataset
from support.loopback_vast import LoopbackVast, Mood, Rented, loopback_vast
from wan_train.base.codec import from_json
from wan_train.engine.tensors import BrokenFileError, read_header
from wan_train.launch.model import BoxState, JobState, Launch

PATIENCE_SECONDS = 1500.0
FETCH_SECONDS = 6.0
LOST_SECONDS = 25.0
EPOCHS, SAVE_EVERY = 80, 10
OPTIONS = ("--resolution", "64x64", "--rank", "4", "--epochs", str(EPOCHS), "--save-every", str(SAVE_EVERY))
WAITS = {
    "transitions.WATCH_SECONDS": 1.0,
    "transitions.LOST_SECONDS": LOST_SECONDS,
    "transitions.SEARCH_SECONDS": 2.0,
    "transitions.RESERVE_SECONDS": 20.0,
    "transitions._BACK_OFF_SECONDS": 0.5,
    "transitions._LONGEST_BACK_OFF_SECONDS": 5.0,
    "transitions.MOST_FAILURES": 9,
    "box_check._FAST_MBPS": 400.0,
    "controller.LIST_SECONDS": 4.0,
    "controller.SOON_SECONDS": 1.0,
    "controller.ASLEEP_SECONDS": 10.0,
    "action_runner._UNREACHABLE_SECONDS": 30.0,
    "action_runner._LOOK_SECONDS": 1.0,
    "market.DEADLINE_SECONDS": 4.0,
}
SPARE_SECONDS = 8.0
"""Allowance in each interval for the copy itself, and for a machine on which everything runs at once."""

STATES = ("renting", "provisioning", "sending", "training", "trained", "trained", "fetching", "destroying")
"""States in which a fault happens. "trained": a checkpoint of the training is on the box, so a loss counts."""

_CREATE = """
import json, sys, time
from pathlib import Path
from wan_train.launch.jobs import JobRequest, JobOptions, prepare
from wan_train.launch.model import GpuWant, Launch, Wants
from wan_train.launch.launch_directory import new
told = json.loads(sys.argv[1])
requests = [JobRequest(where=name, folder=Path(told["folder"]), dataset=name, title=name,
                       options=tuple(told["options"]))
          for name in told["datasets"]]
ready = prepare(requests, read_options=lambda _: JobOptions())
wants = Wants(gpus=(GpuWant(name="RTX4090"),), max_hours=2, disk_gb=1, fetch_seconds=told["fetch_seconds"],
              spot=told["spot"], boxes=told["boxes"], budget=told["budget"])
directory = new(Path(told["runs"]))
jobs = tuple(each.job for each in ready)
directory.write(Launch(id=directory.path.name, created=time.time(), wants=wants, jobs=jobs))
print(directory.path)
"""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Result of one launch. Money is in dollars; `repeated` and `over` count intervals."""

    seed: int
    jobs: int = 0
    boxes: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    seconds: float = 0.0
    left: int = 0
    processes: int = 0
    lost: list[str] = field(default_factory=list)
    doubles: list[str] = field(default_factory=list)
    repeated: float = 0.0
    epochs_repeated: int = 0
    over: float = 0.0
    unrecorded: float = 0.0
    leaks: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    trouble: str = ""

    @property
    def is_good(self) -> bool:
        bad = self.left or self.processes or self.lost or self.doubles or self.leaks or self.trouble
        return not bad and self.repeated <= 1 and self.over <= 1


@dataclass(slots=True, kw_only=True)
class Story:
    """One launch and what happens to it."""

    vast: LoopbackVast
    client: Client
    chance: random.Random
    outcome: Outcome
    directory: Path = Path()
    program: subprocess.Popen[bytes] | None = None
    seen: dict[Path, str | None] = field(default_factory=dict)
    blind: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of times without fetches: the client was dead or asleep, or a box was silent."""
    budget: float | None = None
    done_at: dict[str, float] = field(default_factory=dict)

    def play(self) -> None:
        began = time.monotonic()
        self._create()
        if self.chance.random() < 0.5:
            boxes = (self._wrong_card, self._never_runs, self._closed_ssh, self._setup_fails, self._refused)
            self.chance.choice(boxes)()
        self._begin()
        faults = [self._fault() for _ in range(self.chance.randint(1, 4))]
        due = time.monotonic() + self.chance.uniform(0, 8)
        deadline = began + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.2)
            launch = self._read()
            self._look_at_files(launch)
            if self._program_ended():
                if launch.is_over:
                    break
                self._begin()
            if faults and time.monotonic() > due and faults[0](launch):
                faults.pop(0)
                due = time.monotonic() + self.chance.uniform(1, 25)
        else:
            self.outcome.trouble = f"not over after {PATIENCE_SECONDS:.0f} s"
            self.kill()
        self.outcome.seconds = time.monotonic() - began
        self._judge(self._read())

    def _create(self) -> None:
        jobs = self.chance.choices((1, 2, 3), (5, 3, 2))[0]
        names = [f"lora{number}" for number in range(jobs)]
        for name in names:
            draw_dataset(self.client.folder / name)
        spot = self.chance.random() < 0.6
        self.budget = round(self.chance.uniform(0.008, 0.03), 4) if self.chance.random() < 0.15 else None
        told = {
            "folder": str(self.client.folder),
            "runs": str(self.client.runs),
            "datasets": names,
            "options": OPTIONS,
            "fetch_seconds": FETCH_SECONDS,
            "spot": spot,
            "boxes": self.chance.randint(1, min(2, jobs)),
            "budget": self.budget,
        }
        made = subprocess.run(
            [sys.executable, "-c", _CREATE, json.dumps(told)],
            env=self.client.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        self.directory = Path(made.stdout.strip())
        self.outcome.jobs = jobs

    def _begin(self) -> None:
        log = self.directory / "launch.log"
        self.program = self.client.popen("-m", "wan_train.launch.background", str(self.directory), log=log)

    def _program_ended(self) -> bool:
        return self.program is None or self.program.poll() is not None

    def _read(self) -> Launch:
        path = self.directory / "launch.json"
        return from_json(path.read_bytes(), Launch, where=str(path))

    def _fault(self) -> Callable[[Launch], bool]:
        """Return a fault: a function that causes it at its moment and returns whether it did."""
        kinds: dict[Callable[[Launch], bool], float] = {
            self._kill_client: 4,
            self._outbid: 4,
            self._lose: 2,
            self._silence: 1.5,
            self._stops: 1,
            self._sleep: 1,
            self._moods: 2,
            self._undead: 1.5,
            self._kill_driver: 1,
        }
        kind = self.chance.choices(list(kinds), list(kinds.values()))[0]
        if kind not in {self._kill_client, self._outbid, self._lose}:
            return kind
        # Choose a state beforehand, so that short ones occur too. After a minute, any state will do.
        state = self.chance.choice(STATES)
        given_up = time.monotonic() + 60
        wait = self.chance.uniform(0, 15 if state.startswith("train") else 1)
        since: list[float] = []

        def when_there(launch: Launch) -> bool:
            if not since and (state in self._states(launch) or time.monotonic() > given_up):
                since.append(time.monotonic())
            return (
                bool(since)
                and time.monotonic() - since[0] > (wait if state == "training" else wait / 6)
                and kind(launch)
            )

        return when_there

    def _states(self, launch: Launch) -> set[str]:
        found = {*(job.state.value for job in launch.jobs), *(box.state.value for box in launch.living)}
        if "training" in found:
            saved = "workspace/wan-train-runs/*/train-*/*/output/*-state"
            found |= {"trained"} if any(any(each.box.upper.glob(saved)) for each in self.vast.boxes) else set()
        return found

    def _box(self, *states: BoxState) -> Rented | None:
        launch = self._read()
        named = [box.name for box in launch.boxes if not states or box.state in states]
        there = [each for each in self.vast.boxes if any(each.label.startswith(f"{name}-") for name in named)]
        return self.chance.choice(there) if there else None

    def _kill_client(self, launch: Launch) -> bool:
        if self.program is None or launch.is_over:
            return True
        for job in launch.jobs:
            self.outcome.faults[f"kill -9, {job.state}"] += 1
        self.kill()
        self.outcome.kills += 1
        at = time.time()
        time.sleep(self.chance.choice((0.0, self.chance.uniform(0, 4), self.chance.uniform(10, 30))))
        self._begin()
        self.blind.append((at, time.time() + 5))
        return True

    def kill(self) -> None:
        if self.program is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.program.pid, signal.SIGKILL)
            self.program.wait()
            self.program = None

    def _kill_driver(self, _: Launch) -> bool:
        pids = [pid for pid, words in processes_with(str(self.client.data)).items() if "driver.py" in words]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.outcome.faults["driver killed"] += bool(pids)
        return bool(pids)

    def _sleep(self, launch: Launch) -> bool:
        if self.program is None or self.program.poll() is not None or launch.is_over:
            return True
        os.killpg(self.program.pid, signal.SIGSTOP)
        at = time.time()
        time.sleep(LOST_SECONDS + 10)
        self.blind.append((at, time.time() + 5))
        os.killpg(self.program.pid, signal.SIGCONT)
        self.outcome.faults["asleep"] += 1
        return True

    def _outbid(self, launch: Launch) -> bool:
        box = self._box()
        if box is None:
            return launch.is_over
        word = "outbid" if box.body.get("price") is not None else "stopped by Vast"
        self.outcome.faults[f"{word}, {state_of(launch, box)}"] += 1
        self.vast.outbid(box)
        return True

    def _lose(self, launch: Launch) -> bool:
        box = self._box()
        if box is None:
            return launch.is_over
        self.outcome.faults[f"lost, {state_of(launch, box)}"] += 1
        self.vast.lose(box)
        return True

    def _stops(self, launch: Launch) -> bool:
        """Let the box stop itself but keep its disk, so that it can be started again."""
        box = self._box(BoxState.READY)
        if box is None:
            return launch.is_over
        self.outcome.faults[f"stopped, {state_of(launch, box)}"] += 1
        box.intended = "stopped"
        self.vast.stop(box)
        return True

    def _silence(self, launch: Launch) -> bool:
        """Let the box train without answering. It answers again later, perhaps after it was given up."""
        box = self._box(BoxState.READY)
        if box is None:
            return launch.is_over
        self.outcome.faults["silent"] += 1
        at = time.time()
        box.box.cut()
        seconds = self.chance.uniform(5, LOST_SECONDS + 20)
        self.blind.append((at, at + seconds + 5))
        threading.Timer(seconds, box.box.reopen).start()
        return True

    def _moods(self, _: Launch) -> bool:
        moods = [self.chance.choice(list(Mood)) for _ in range(self.chance.randint(1, 8))]
        self.outcome.faults.update(f"API {mood}" for mood in moods)
        self.vast.plan.moods += moods
        return True

    def _undead(self, _: Launch) -> bool:
        self.vast.plan.undead += self.chance.randint(1, 3)
        self.outcome.faults["destroy answered, box alive"] += 1
        return True

    def _wrong_card(self) -> None:
        self.vast.plan.delivers.append("RTX 3060")
        self.outcome.faults["wrong GPU"] += 1

    def _never_runs(self) -> None:
        self.vast.plan.never_runs += 1
        self.outcome.faults["never runs"] += 1

    def _closed_ssh(self) -> None:
        self.vast.plan.closed_ssh += 1
        self.outcome.faults["ssh never opens"] += 1

    def _setup_fails(self) -> None:
        self.vast.plan.setup_fails += 1
        self.outcome.faults["provision fails"] += 1

    def _refused(self) -> None:
        self.vast.plan.refused_orders += self.chance.randint(1, 2)
        self.outcome.faults["order refused"] += 1

    def _look_at_files(self, launch: Launch) -> None:
        for job in launch.jobs:
            if job.home is not None and job.state.is_end:
                self.done_at.setdefault(job.name, time.time())
            if job.home is None or not job.home.is_dir():
                continue
            for path in job.home.glob("*.safetensors"):
                if path not in self.seen:
                    self.seen[path] = digest(path)

    def _judge(self, launch: Launch) -> None:
        outcome, vast = self.outcome, self.vast
        time.sleep(1)
        outcome.boxes, outcome.left = len(vast.rented), len(vast.boxes)
        outcome.processes = len(processes_with(str(self.client.folder)))
        outcome.leaks = vast.leaks
        outcome.ends.update(job.state.value for job in launch.jobs)
        self._judge_files(launch)
        self._judge_money(launch)
        for run in sorted({path.parent.name for path in (vast.folder / "records").glob("*/*/events.jsonl")}):
            self._judge_run(run)

    def _judge_files(self, launch: Launch) -> None:
        self._look_at_files(launch)
        outcome = self.outcome
        outcome.lost += [p.name for p, was in self.seen.items() if not p.exists() or digest(p) != was]
        for job in launch.jobs:
            if job.state is JobState.STOPPED and self.budget is not None:
                continue
            if job.state is not JobState.DONE or job.home is None:
                outcome.trouble = outcome.trouble or f"{job.name} is {job.state}: {job.problem}"
                continue
            events = [json.loads(line) for line in (job.home / "events.jsonl").read_text().splitlines()]
            results = {
                Path(event["path"]).name: event["sha256"] for event in events if event["kind"] == "result_placed"
            }
            if len(results) != 2:
                outcome.lost.append(f"{job.name}: {len(results)} results")
            for name, was in results.items():
                if digest(job.home / name) != was:
                    outcome.lost.append(name)
                stem = name.removesuffix(".safetensors")
                names = [f"{stem}-{epoch:06d}.safetensors" for epoch in range(SAVE_EVERY, EPOCHS, SAVE_EVERY)]
                for path in [job.home / each for each in (name, *names)]:
                    if not path.exists():
                        outcome.lost.append(path.name)
                        continue
                    try:
                        read_header(path)
                    except BrokenFileError:
                        outcome.lost.append(f"{path.name} is broken")

    def _judge_money(self, launch: Launch) -> None:
        recorded = sum(((box.ended or time.time()) - box.began) / 3600 * box.offer.per_hour for box in launch.boxes)
        bill = self.vast.bill()
        self.outcome.unrecorded = bill - recorded
        interval = (
            (FETCH_SECONDS + SPARE_SECONDS) / 3600 * max((each.per_hour for each in self.vast.rented), default=1.0)
        )
        self.outcome.over = max(0.0, bill - recorded) / interval
        if self.budget is not None:
            # A client that is dead or asleep cannot keep to a budget.
            blind = sum(end - begin for begin, end in self.blind) / 3600 * 2 * 0.4
            self.outcome.over = max(self.outcome.over, (bill - self.budget - blind) / interval / 2)

    def _judge_run(self, run: str) -> None:
        """Count what was trained again after a box was lost, and check whether two boxes ever trained at once."""
        boxes = [each for each in self.vast.rented if (self.vast.folder / "records" / str(each.box.id) / run).is_dir()]
        reached: dict[str, int] = {}
        speed: dict[str, float] = {}
        until = 0.0
        for rented in boxes:
            folder = self.vast.folder / "records" / str(rented.box.id) / run
            events = [
                json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if line.endswith("}")
            ]
            mine = [event for event in events if event["at"] >= rented.began]
            if not mine:
                continue
            if mine[0]["at"] < until:
                self.outcome.doubles.append(f"{run} on {rented.box.id}")
            until = max(until, rented.ended or time.time())
            for event in mine:
                if event["kind"] != "step_started" or not event["step"].startswith("train-"):
                    continue
                step = event["step"]
                again = max(0, reached.get(step, 0) - event["epochs_before"])
                if again and step in speed:
                    self._count(again, speed[step], until_of(boxes, rented))
                log = folder / step / str(event["attempt"]) / "output.log"
                done = epochs_in(log)
                if done:
                    speed[step] = seconds_per_epoch(mine, event, log, event["epochs_before"] + done)
                reached[step] = event["epochs_before"] + done

    def _count(self, again: int, per_epoch: float, lost_at: float) -> None:
        self.outcome.epochs_repeated += again
        blind = sum(end - begin for begin, end in self.blind if begin <= lost_at)
        interval = FETCH_SECONDS + SAVE_EVERY * per_epoch + SPARE_SECONDS + blind
        self.outcome.repeated = max(self.outcome.repeated, again * per_epoch / interval)


def until_of(boxes: list[Rented], rented: Rented) -> float:
    """When the box before this one ended."""
    before = boxes[max(0, boxes.index(rented) - 1)]
    return before.ended or time.time()


def state_of(launch: Launch, rented: Rented) -> str:
    for box in launch.boxes:
        if rented.label.startswith(f"{box.name}-"):
            return launch.job(box.job).state.value if box.state is BoxState.READY and box.job else box.state.value
    return "unknown"


def seconds_per_epoch(events: list[dict[str, Any]], started: dict[str, Any], log: Path, reached: int) -> float:
    """Measure from an attempt's first checkpoint, if it has one: before that, the trainer's start takes longest."""
    saved = [
        event
        for event in events
        if event["kind"] == "state_saved" and all(event[name] == started[name] for name in ("step", "attempt"))
    ]
    first, epoch = (saved[0]["at"], saved[0]["epoch"]) if saved else (started["at"], started["epochs_before"])
    return float(max(0.02, (log.stat().st_mtime - first) / max(1, reached - epoch)))


def epochs_in(log: Path) -> int:
    """Epochs that an attempt completed: the trainer announces the next one after each."""
    text = log.read_text(errors="replace") if log.exists() else ""
    begun = [int(number) for number in re.findall(r"^epoch (\d+)/", text, re.MULTILINE)]
    return max(begun, default=1) - 1


def digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def processes_with(text: str) -> dict[int, str]:
    """Processes of this machine with `text` in their command line."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with suppress(OSError):
                words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if text in words and int(path.name) != os.getpid():
                    found[int(path.name)] = words
    return found


def play(seed: int, roots: Path, engine: str, *, keep: bool) -> Outcome:
    outcome = Outcome(seed=seed)
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-launch-{seed}-"))
    try:
        with loopback_vast(folder / "vast", roots / "rootfs") as vast:
            client = Client(folder=folder / "client", vast=vast.address, key=vast.key)
            client.install(roots / "sky/env" if engine == "sky" else None, WAITS)
            story = Story(vast=vast, client=client, chance=random.Random(seed), outcome=outcome)
            try:
                story.play()
            finally:
                story.kill()
                for pid in processes_with(str(client.folder)):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
    except Exception as error:  # noqa: BLE001  a story that breaks is reported with the others
        outcome.trouble = f"{type(error).__name__}: {error}"
    if outcome.is_good:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    else:
        outcome.trouble = f"{outcome.trouble} [{folder}]".strip()
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("roots", type=Path)
    parser.add_argument("--runs", type=int, default=int(os.environ.get("CHAOS_RUNS", "50")))
    parser.add_argument("--at-once", type=int, default=int(os.environ.get("CHAOS_AT_ONCE", "2")))
    parser.add_argument("--engine", choices=("stand-in", "sky"), default=os.environ.get("CHAOS_ENGINE", "stand-in"))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CHAOS_SEED", "0")))
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    seeds = range(given.seed, given.seed + given.runs)
    outcomes = []
    with ThreadPoolExecutor(given.at_once) as pool:
        for outcome in pool.map(lambda seed: play(seed, given.roots, given.engine, keep=given.keep), seeds):
            outcomes.append(outcome)
            print(line_of(outcome), flush=True)
    print("\n".join(table(outcomes)))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def line_of(outcome: Outcome) -> str:
    mark = "good" if outcome.is_good else "BAD "
    faults = ", ".join(f"{name}{f' x{count}' if count > 1 else ''}" for name, count in outcome.faults.items())
    text = f"{outcome.seed:4} {mark} {outcome.jobs} jobs {outcome.boxes} boxes {outcome.seconds:5.0f} s"
    text += f" repeated {outcome.repeated:.2f} over {outcome.over:.2f}: {faults}"
    for name in ("left", "processes", "lost", "doubles", "leaks", "trouble"):
        if value := getattr(outcome, name):
            text += f"; {name} {value}"
    return text


def table(outcomes: list[Outcome]) -> Iterator[str]:
    faults: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for outcome in outcomes:
        faults += outcome.faults
        ends += outcome.ends
    rows: dict[str, Any] = {
        "launches": len(outcomes),
        "good": sum(outcome.is_good for outcome in outcomes),
        "jobs": ", ".join(f"{count} {state}" for state, count in ends.most_common()),
        "boxes rented": sum(outcome.boxes for outcome in outcomes),
        "faults": faults.total(),
        "kill -9 of the client": sum(outcome.kills for outcome in outcomes),
        "boxes left": sum(outcome.left for outcome in outcomes),
        "processes left": sum(outcome.processes for outcome in outcomes),
        "LoRAs lost or changed": sum(len(outcome.lost) for outcome in outcomes),
        "jobs on two boxes": sum(len(outcome.doubles) for outcome in outcomes),
        "epochs repeated": sum(outcome.epochs_repeated for outcome in outcomes),
        "most repeated, intervals": f"{max((outcome.repeated for outcome in outcomes), default=0):.2f}",
        "most overspent, intervals": f"{max((outcome.over for outcome in outcomes), default=0):.2f}",
        "account key on a box": sum(len(outcome.leaks) for outcome in outcomes),
        "minutes": f"{sum(outcome.seconds for outcome in outcomes) / 60:.0f}",
    }
    yield ""
    yield from (f"{name:28} {value}" for name, value in rows.items())
    yield ""
    yield from (f"  {count:4} {name}" for name, count in faults.most_common())


if __name__ == "__main__":
    sys.exit(main())
