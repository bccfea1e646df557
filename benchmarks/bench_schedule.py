"""How soon trainings start: beside a serial shell script, on two GPUs and on one."""

from __future__ import annotations

import time
from collections.abc import Iterator

from box import DEFAULT_PATIENCE, box
from figures import Figure
from serial_script import run_serially
from support.trainers import ScriptedBox

# Half of what one caching script takes on a rented box (imports 10-15 s, model load, then the pictures): 30-45 s.
_CACHING_SECONDS = 15.0
_PICTURES = 3
_PATIENCE_SECONDS = 300.0
_SPEED = {"SCRIPTED_CACHE_SECONDS": str(_CACHING_SECONDS / _PICTURES), "SCRIPTED_LOAD_SECONDS": "1"}


def measure() -> Iterator[Figure]:
    yield from _two_gpus()
    yield from _one_gpu()


def _two_gpus() -> Iterator[Figure]:
    with box(2) as machine:
        started = time.monotonic()
        done = machine.run_cli(*machine.train_words(), timeout=_PATIENCE_SECONDS, **_SPEED, **DEFAULT_PATIENCE)
        assert done.returncode == 0, done.stderr
        ours = _first_steps(machine, started)
        machine.record.unlink()
        started = time.monotonic()
        run_serially(machine, machine.run(), **_SPEED)
        script = _first_steps(machine, started)
    for name, pick in (("first", min), ("last", max)):
        mine, other = pick(ours.values()), pick(script.values())
        yield Figure(
            what=f"two GPUs, caching 15 s + 15 s: command to first step of the {name} expert",
            measured=f"{mine:.2f} s",
            against=f"serial script {other:.2f} s",
            ratio=other / mine,
            goal=">= 1.5 times sooner",
            met=other / mine >= 1.5,
        )


def _one_gpu() -> Iterator[Figure]:
    # About 11 s of training, so that its end falls between two polls of the script.
    speed = {"SCRIPTED_LOAD_SECONDS": "1", "SCRIPTED_STEP_SECONDS": "1"}
    with box(1) as machine:
        done = machine.run_cli(*machine.train_words(), timeout=_PATIENCE_SECONDS, **speed, **DEFAULT_PATIENCE)
        assert done.returncode == 0, done.stderr
        ours = _gap(machine)
        machine.record.unlink()
        run_serially(machine, machine.run(), **speed)
        script = _gap(machine)
    yield Figure(
        what="one GPU: high-noise trainer's last words to low-noise trainer's first",
        measured=f"{ours:.2f} s",
        against=f"serial script {script:.2f} s (polls every 10 s: 5 s on average)",
        ratio=script / ours,
        goal="< 1 s",
        met=ours < 1,
    )


def _first_steps(machine: ScriptedBox, started: float) -> dict[str, float]:
    """Seconds from the command to the end of the first epoch, three steps of 2 ms, of each expert."""
    return {entry["place"]: entry["at"] - started for entry in machine.recorded("epoch") if entry["epoch"] == 1}


def _gap(machine: ScriptedBox) -> float:
    """Interpreter start of the low-noise trainer included, end of the high-noise one's too."""
    ended = next(entry["at"] for entry in machine.recorded("end") if entry["place"] == "high")
    began = next(entry["at"] for entry in machine.recorded("start") if entry["place"] == "low")
    return float(began - ended)
