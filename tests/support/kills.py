"""Kills the processes of runs, and checks what must be true in the end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

from support.trainers import ScriptedBox
from wan_train.engine.tensors import read_header

SLOW = {"SCRIPTED_STEP_SECONDS": "0.04", "WAN_TRAIN_PAUSE_SECONDS": "0.1"}


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def kill_everything(box: ScriptedBox) -> None:
    """Kill every process, in no order, until none is left, as when a machine goes down."""
    while left := box.processes():
        kill(left)
        time.sleep(0.01)


def check_whole_training(box: ScriptedBox, epochs: int, *, interval: int = 1, kills: int = 1) -> None:
    """Check that the LoRAs hold exactly `epochs` epochs, and that no kill cost more than an interval."""
    for place, label in (("high", "HighNoise"), ("low", "LowNoise")):
        path = box.run() / f"WAN2.2-{label}_cat.safetensors"
        metadata = read_header(path).metadata
        assert metadata["scripted_epochs_in_all"] == str(epochs)
        assert metadata["ss_epoch"] == str(epochs)
        assert metadata["ss_steps"] == str(3 * epochs)
        assert metadata["ss_output_name"] == metadata["modelspec.title"] == f"WAN2.2-{label}_cat"
        trained = [entry["in_all"] for entry in box.recorded("epoch") if entry["place"] == place]
        assert set(range(1, epochs + 1)) <= set(trained)
        repeated = sum(1 for n, epoch in enumerate(trained) if epoch <= epochs and epoch in trained[:n])
        assert repeated <= kills * interval
    assert not box.recorded("overlap")


def epochs_reached(box: ScriptedBox, place: str, epoch: int) -> None:
    box.wait_for(
        lambda: any(e["place"] == place and e["in_all"] >= epoch for e in box.recorded("epoch")),
        what=f"epoch {epoch} of {place}",
    )


def saved(box: ScriptedBox, step: str, epoch: int) -> None:
    box.wait_for(
        lambda: (
            box.run_directories() and any(e["step"] == step and e["epoch"] >= epoch for e in box.events("state_saved"))
        ),
        what=f"the state of epoch {epoch} of {step}",
    )
