"""Runs whose processes are killed at random moments, and a driver that only does what a box does: start things again.

CHAOS_RUNS=100 python benchmarks/chaos.py --engine rehearsal

Prints what came of them; exits with 1 when a run did not finish, a kill cost more than one interval between states, a
process was left over, or a file was lost or changed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from box import box
from support.trainers import Process, ScriptedBox
from wan_train.engine.tensors import BrokenFileError, read_header

PATIENCE_SECONDS = 900.0
MOST_KILLS = 4
VICTIMS = ("trainer", "supervisor", "viewer", "everything")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How a training is started and how long one lasts, in seconds; kills fall into that time."""

    words: tuple[str, ...]
    epochs: int
    keep: int
    lasts: float
    env: dict[str, str]


ENGINES = {
    "scripted": Engine(words=(), epochs=8, keep=2, lasts=8.0, env={"SCRIPTED_STEP_SECONDS": "0.15"}),
    "rehearsal": Engine(
        words=("--engine", "rehearsal", "--resolution", "64x64", "--rank", "4"), epochs=150, keep=10, lasts=40.0, env={}
    ),
}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one run."""

    seed: int
    finished: bool = False
    kills: Counter[str] = field(default_factory=Counter)
    by_hand: int = 0
    repeated: int = 0
    worst: float = 0.0
    orphans: int = 0
    lost: list[str] = field(default_factory=list)
    trouble: str = ""


@dataclass(slots=True, kw_only=True)
class Driver:
    """One box, one run, one viewer that somebody keeps open."""

    place: ScriptedBox
    engine: Engine
    chance: random.Random
    outcome: Outcome
    seen: dict[Path, str] = field(default_factory=dict)
    viewer: Process | None = None

    def play(self) -> None:
        words = ["--epochs", str(self.engine.epochs), "--save-every", str(self.engine.keep), *self.engine.words]
        env = self.engine.env | {"WAN_TRAIN_PAUSE_SECONDS": "0.2"}
        self.viewer = self.place.popen_cli(*self.place.train_words(*words), **env)
        deadline = time.monotonic() + PATIENCE_SECONDS
        kills = self.chance.randint(1, MOST_KILLS)
        due = self._later()
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if not self.place.run_directories():
                continue
            self._look_at_files()
            if self._is_over():
                if self.place.events("run_finished")[-1]["exit_code"] == 0:
                    break
                self.outcome.by_hand += 1
                self.viewer = self.place.popen_cli("resume", **env)
                self.place.wait_for(lambda: not self._is_over(), what="the resumed run")
            if kills and time.monotonic() > due:
                kills -= 1
                self._kill(self.chance.choice(VICTIMS))
                due = self._later()
            self._mend(env)
        self._judge()

    def _later(self) -> float:
        return time.monotonic() + self.chance.uniform(0.05, self.engine.lasts / 2)

    def _is_over(self) -> bool:
        kinds = [event["kind"] for event in self.place.events("run_finished", "run_resumed")]
        return bool(kinds) and kinds[-1] == "run_finished"

    def _kill(self, victim: str) -> None:
        match victim:
            case "trainer":
                pids = list(self.place.trainers())
                pids = [self.chance.choice(pids)] if pids else []
            case "supervisor":
                pids = self._supervisors()
            case "viewer":
                pids = [self.viewer.pid] if self.viewer is not None else []
            case _:
                pids = list(self.place.processes())
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.outcome.kills[victim] += bool(pids)
        while victim == "everything" and (left := self.place.processes()):
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.01)

    def _supervisors(self) -> list[int]:
        return [pid for pid, words in self.place.processes().items() if "wan_train.run.supervise" in words]

    def _mend(self, env: dict[str, str]) -> None:
        """A machine that starts runs `resume --all`; a person opens the view again."""
        if self.viewer is not None and self.viewer.poll() is None:
            return
        if not self._supervisors() and not self._is_over():
            self.place.run_cli("resume", "--all", timeout=120, **env)
        self.viewer = self.place.popen_cli("attach", **env)

    def _look_at_files(self) -> None:
        for path in self.place.run().glob("*.safetensors"):
            if path not in self.seen:
                self.seen[path] = _digest(path)

    def _judge(self) -> None:
        outcome, run = self.outcome, self.place.run()
        if self.viewer is not None and self.viewer.poll() is None:
            try:
                self.viewer.wait(60)
            except subprocess.TimeoutExpired:
                outcome.trouble = "the viewer does not end"
                self.viewer.kill()
        time.sleep(0.5)
        outcome.orphans = len(self.place.processes())
        self._look_at_files()
        changed = [path.name for path, digest in self.seen.items() if not path.exists() or _digest(path) != digest]
        outcome.lost += changed
        names = {step["result"] for step in _results(self.place)}
        outcome.finished = self._is_over() and len(names) == 2
        for name in names:
            outcome.lost += _wrong(run / name, self.engine.epochs)
            stem = name.removesuffix(".safetensors")
            for epoch in range(self.engine.keep, self.engine.epochs, self.engine.keep):
                outcome.lost += _wrong(run / f"{stem}-{epoch:06d}.safetensors", epoch)
        for step in ("train-high", "train-low"):
            self._count_repeats(run, step)

    def _count_repeats(self, run: Path, step: str) -> None:
        before = 0
        interval = 1
        for event in self.place.events("step_started"):
            if event["step"] != step:
                continue
            folder = run / step / str(event["attempt"])
            again = max(0, min(before, self.engine.epochs) - event["epochs_before"])
            self.outcome.repeated += again
            self.outcome.worst = max(self.outcome.worst, again / interval)
            words = shlex.split((folder / "command.sh").read_text())
            interval = int(words[words.index("--save_every_n_epochs") + 1])
            before = event["epochs_before"] + _epochs_in(folder / "output.log")


def _epochs_in(log: Path) -> int:
    """Epochs that an attempt completed: the trainer announces the next one after each."""
    text = log.read_text(errors="replace") if log.exists() else ""
    begun = [int(number) for number in re.findall(r"^epoch (\d+)/", text, re.MULTILINE)]
    return max(begun, default=1) - 1


def _results(place: ScriptedBox) -> list[dict[str, Any]]:
    return [{"result": Path(event["path"]).name} for event in place.events("result_placed")]


def _wrong(path: Path, epoch: int) -> list[str]:
    try:
        found = read_header(path).metadata["ss_epoch"]
    except (BrokenFileError, KeyError) as error:
        return [f"{path.name}: {error}"]
    return [] if found == str(epoch) else [f"{path.name} is of epoch {found}"]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def play(engine: Engine, seed: int) -> Outcome:
    outcome = Outcome(seed=seed)
    with box(gpus=2) as place:
        try:
            Driver(place=place, engine=engine, chance=random.Random(seed), outcome=outcome).play()
        except (TimeoutError, ValueError, OSError, subprocess.TimeoutExpired) as error:
            outcome.trouble = f"{type(error).__name__}: {error}"
        kept = os.environ.get("CHAOS_KEEP")
        if kept and (not outcome.finished or outcome.orphans or outcome.lost or outcome.worst > 1):
            subprocess.run(["cp", "-a", str(place.root), f"{kept}/{seed}"], check=False)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", choices=sorted(ENGINES), default="rehearsal")
    parser.add_argument("--runs", type=int, default=int(os.environ.get("CHAOS_RUNS", "100")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CHAOS_SEED", "0")))
    parser.add_argument("--at-once", type=int, default=max(1, len(os.sched_getaffinity(0)) // 2))
    given = parser.parse_args()
    engine = ENGINES[given.engine]
    seeds = range(given.seed, given.seed + given.runs)
    outcomes = []
    with ThreadPoolExecutor(given.at_once) as pool:
        for outcome in pool.map(lambda seed: play(engine, seed), seeds):
            outcomes.append(outcome)
            sys.stderr.write(f"\r{len(outcomes)} of {given.runs}")
            if not outcome.finished or outcome.orphans or outcome.lost or outcome.worst > 1 or outcome.trouble:
                print(outcome, flush=True)
    kills = sum((outcome.kills for outcome in outcomes), Counter[str]())
    finished = sum(outcome.finished for outcome in outcomes)
    worst = max(outcome.worst for outcome in outcomes)
    orphans = sum(outcome.orphans for outcome in outcomes)
    lost = sum(len(outcome.lost) for outcome in outcomes)
    print(f"engine                  {given.engine}, {engine.epochs} epochs, two experts")
    print(f"kills                   {kills.total()}: {', '.join(f'{n} {name}' for name, n in sorted(kills.items()))}")
    print(f"runs finished           {finished} of {len(outcomes)}")
    print(f"resumed by hand         {sum(outcome.by_hand for outcome in outcomes)} (retries used up)")
    print(f"epochs repeated         {sum(outcome.repeated for outcome in outcomes)}")
    print(f"most after one kill     {worst:.2f} intervals between states")
    print(f"orphans left            {orphans}")
    print(f"files lost or changed   {lost}")
    return int(finished < len(outcomes) or worst > 1 or bool(orphans) or bool(lost))


if __name__ == "__main__":
    sys.exit(main())
