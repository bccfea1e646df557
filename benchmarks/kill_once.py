"""Wall time of one training whose trainer is killed at 60 %, beside an undisturbed one and the guide's plain command.

One second here stands for five minutes: 100 epochs of 36 pictures at 3 s a step are three hours. The start-up of Python
itself does not shrink with that, so it is measured (a run of one epoch) and shown apart.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from box import box
from support.trainers import ScriptedBox, make_dataset

SCALE = 300.0
EPOCHS = 100
PICTURES = 36
KILLED_AT = 60
ENV = {
    "SCRIPTED_STEP_SECONDS": str(3 / SCALE),
    "SCRIPTED_LOAD_SECONDS": str(60 / SCALE),
    "SCRIPTED_CACHE_SECONDS": str(1 / SCALE),
    "WAN_TRAIN_PAUSE_SECONDS": str(10 / SCALE),
}


def words(place: ScriptedBox, epochs: int) -> list[str]:
    dataset = place.root / "more-pictures"
    if not dataset.exists():
        make_dataset(dataset, PICTURES)
    return ["--title", "cat", "--author", "me", "--dataset", str(dataset), "--epochs", str(epochs), "--experts", "high",
            "--yes"]  # fmt: skip


def supervised(*, epochs: int = EPOCHS, kill: bool = False) -> float:
    """Seconds from the command to the LoRA; with `kill` its trainer gets a SIGKILL at 60 %."""
    with box(gpus=1) as place:
        given = words(place, epochs)
        begin = time.monotonic()
        running = place.popen_cli(*given, **ENV)
        if kill:
            _wait_for_epoch(place)
            for pid, line in place.trainers().items():
                if "wan_train_network.py" in line and "accelerate" not in line:
                    os.kill(pid, signal.SIGKILL)
        if running.wait() != 0:
            raise RuntimeError("the run failed")
        return time.monotonic() - begin


def plain(*, kill: bool) -> float:
    """The guide's command by hand: no states, and started over by somebody who sees at once that it died."""
    with box(gpus=1) as place:
        done = place.run_cli(*words(place, 1), timeout=600, **ENV)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        script = place.run() / "train-high" / "1" / "command.sh"
        argv = shlex.split(script.read_text().splitlines()[-1])
        folder = place.root / "by-hand"
        place.record.unlink()
        begin = time.monotonic()
        child = _start(place, argv, folder)
        if kill:
            _wait_for_epoch(place)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            child = _start(place, argv, folder)
        if child.wait() != 0:
            raise RuntimeError("the command failed")
        return time.monotonic() - begin


def _start(place: ScriptedBox, argv: list[str], folder: Path) -> subprocess.Popen[bytes]:
    changed = {"--max_train_epochs": str(EPOCHS), "--save_every_n_epochs": str(EPOCHS), "--output_dir": str(folder)}
    replaced = [changed.get(before, word) for before, word in zip(["", *argv], argv, strict=False)]
    variables = replaced[: next(i for i, w in enumerate(replaced) if "python" in Path(w).name)]
    command = [word for word in replaced[len(variables) :] if word != "--save_state"]
    env = place.env(**ENV) | dict(word.split("=", 1) for word in variables if "=" in word)
    log = (place.root / "by-hand.log").open("ab")
    with log:
        return subprocess.Popen(
            command, cwd=place.checkout, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip


def _wait_for_epoch(place: ScriptedBox) -> None:
    while not any(entry["in_all"] >= KILLED_AT for entry in place.recorded("epoch")):
        time.sleep(0.05)


def main() -> int:
    startup = supervised(epochs=1) - PICTURES * 3 / SCALE
    whole, killed = supervised(), supervised(kill=True)
    plain_whole, plain_killed = plain(kill=False), plain(kill=True)
    ratio, plain_ratio = killed / whole, plain_killed / plain_whole
    without = (killed - startup) / whole
    print(f"start-up of a run                        {startup:6.1f} s")
    print(f"wan-train, undisturbed                   {whole:6.1f} s")
    print(f"wan-train, killed at {KILLED_AT} %                 {killed:6.1f} s   x {ratio:.2f}")
    print(f"  without the second start-up                    x {without:.2f}   goal: at most 1.05")
    print(f"plain command, undisturbed               {plain_whole:6.1f} s")
    print(f"plain command, killed and started over   {plain_killed:6.1f} s   x {plain_ratio:.2f}")
    return int(without > 1.05)


if __name__ == "__main__":
    sys.exit(main())
