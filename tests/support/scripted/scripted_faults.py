"""Faults on request: SCRIPTED_FAULT says which one happens where and when."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

TRAINING = frozenset({"high", "low"})
NAMES = frozenset(
    {
        "ansi", "bad_image", "bad_sample", "die", "enospc", "exit_zero_nothing", "flood", "grandchild", "hang",
        "half_state", "ignore_term", "invalid_utf8", "missing_caption", "nan", "nan_once", "no_output_file", "oom",
        "sigkill", "tokens", "truncated_lora",
    }
)  # fmt: skip
_PLACES = {"bad_image": frozenset({"latents"}), "missing_caption": frozenset({"text"})}
_FLOOD_BYTES = 100_000_000
_GRANDCHILD_SECONDS = 300.0


class CudaOutOfMemoryError(RuntimeError):
    """Shown by Python as `torch.OutOfMemoryError`, as torch names its own."""


CudaOutOfMemoryError.__qualname__ = "OutOfMemoryError"
CudaOutOfMemoryError.__module__ = "torch"


class Fault(NamedTuple):
    """One fault. Without a time it strikes at the first moment, without an attempt in any."""

    name: str
    places: frozenset[str]
    epoch: int | None = None
    step: int | None = None
    attempt: int | None = None


class Faults:
    """The faults of one program. `place` is high, low, latents or text."""

    def __init__(self, place: str, attempt: int) -> None:
        self._due = [
            fault
            for fault in map(parse, filter(None, os.environ.get("SCRIPTED_FAULT", "").split(",")))
            if place in fault.places and fault.attempt in {None, attempt}
        ]

    def __contains__(self, name: str) -> bool:
        return any(fault.name == name for fault in self._due)

    def at_start(self) -> None:
        for fault in self._due:
            if fault.epoch is None and fault.step is None:
                self._early(fault.name)

    def before_step(self, *, epoch: int, step: int, first_of_epoch: bool) -> None:
        """`epoch` and `step` count from 1 in this process."""
        for fault in self._due:
            by_step = fault.step == step
            by_epoch = fault.step is None and fault.epoch == epoch and first_of_epoch
            undated = fault.step is None and fault.epoch is None and step == 1
            if by_step or by_epoch:
                self._early(fault.name)
            if by_step or by_epoch or undated:
                strike(fault.name)

    def in_sample(self, epoch: int) -> None:
        """Let `bad_sample` strike while the epoch's samples are made. The trainer dies of it as of any other error."""
        if any(fault.name == "bad_sample" and fault.epoch in {None, epoch} for fault in self._due):
            strike("oom")

    def loss_is_nan(self, *, epoch: int, step: int) -> bool:
        """Whether the loss is NaN. The trainer shows a moving average, so one NaN stays forever."""
        return any(
            fault.name in {"nan", "nan_once"} and step >= (fault.step or 0) and epoch >= (fault.epoch or 0)
            for fault in self._due
        )

    def _early(self, name: str) -> None:
        match name:
            case "ignore_term":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case "grandchild":
                _leave_grandchild()
            case "flood":
                for _ in range(_FLOOD_BYTES // 1_000_000):
                    os.write(2, b"x" * 1_000_000)
            case "invalid_utf8":
                os.write(2, b"\xff\xfe broken \xc3 text \x80\n")
            case "ansi":
                os.write(2, b"\x1b[2J\x1b[31mred\x1b[0m\x1b]0;a title\x07 \x1b[1A\x9b2K\n")
            case "tokens":
                for variable, value in os.environ.items():
                    if variable.endswith(("TOKEN", "API_KEY", "PASSWORD")):
                        sys.stdout.write(f"{variable}={value}\n")
            case "exit_zero_nothing":
                sys.exit(0)


def strike(name: str) -> None:
    """End or hang this process. Other faults do nothing here."""
    match name:
        case "oom":
            raise CudaOutOfMemoryError(
                "CUDA out of memory. Tried to allocate 1.17 GiB. GPU 0 has a total capacity of 31.36 GiB of which "
                "561.44 MiB is free."
            )
        case "die":
            raise RuntimeError("a scripted failure")
        case "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "enospc":
            raise OSError(28, "No space left on device", "output/T.safetensors")
        case "bad_image":
            raise OSError("image file is truncated")
        case "missing_caption":
            raise FileNotFoundError(2, "No such file or directory", "/dataset/picture.txt")
        case "hang":
            while True:
                time.sleep(60)


def parse(text: str) -> Fault:
    name, *marks = text.strip().split("@")
    if name not in NAMES:
        raise ValueError(f"SCRIPTED_FAULT: no fault is called {name!r}")
    places = _PLACES.get(name, TRAINING)
    numbers: dict[str, int] = {}
    for mark in marks:
        if found := re.fullmatch(r"(epoch|step|attempt)=(\d+)", mark):
            numbers[found[1]] = int(found[2])
        elif mark in {"high", "low", "latents", "text"}:
            places = frozenset({mark})
        else:
            raise ValueError(f"SCRIPTED_FAULT: {mark!r} is neither a place nor a time")
    return Fault(name, places, **numbers)


def attempt_of(output_dir: str | None) -> int:
    """Return the number in `.../train-high/2/output`, or 1 if there is none."""
    number = Path(output_dir or "").parent.name
    return int(number) if number.isdecimal() else 1


def _leave_grandchild() -> None:
    """Leave a process in its own session that ignores TERM, INT and HUP and outlives its parent."""
    if os.fork():
        return
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(_GRANDCHILD_SECONDS)
    os._exit(0)
