"""Reads the GPUs through a child process that may hang or crash, or stands CPU slots in for them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wan_train.gpu.model import Gpu, GpuReading, GpuUnavailableError, LostGpu
from wan_train.gpu.nvml_errors import REHEARSE, lost_reason, unavailable

_KILL_GRACE_SECONDS = 2.0
# An interpreter that saw the end of its input, or met its own, is gone after some milliseconds.
_LEAVE_SECONDS = 0.2
# Without persistence mode the driver initialises every GPU when the first client opens it: seconds for each.
_START_GRACE_SECONDS = 20.0


def reader_command() -> list[str]:
    """How to start the NVML child: by file, so that it needs nothing importable but nvidia-ml-py."""
    # -P: a file named json.py in the user's working directory must not be imported.
    return [sys.executable, "-P", str(Path(__file__).with_name("nvml.py"))]


class NvmlProbe:
    """The GPUs as NVML sees them. Starts its child at the first read. Not for several threads at once."""

    def __init__(self, timeout: float = 10.0, command: Sequence[str] | None = None) -> None:
        """`timeout`: seconds that NVML may take to answer; opening the driver may take 20 s more."""
        self._timeout = timeout
        self._command = list(command) if command is not None else reader_command()
        self._child: subprocess.Popen[bytes] | None = None
        self._stuck: subprocess.Popen[bytes] | None = None
        self._uuids: dict[int, str] = {}

    def read(self) -> GpuReading:
        """All GPUs now. Raises GpuUnavailableError; after a hang or a crash the next read starts afresh."""
        reading = _parse(self._ask())
        reading = _name_lost(reading, self._uuids)
        self._uuids |= {gpu.index: gpu.uuid for gpu in reading.gpus if gpu.mig is None}
        return reading

    def close(self) -> None:
        """End the child, if any. May be called twice; a later read starts a new one."""
        child, self._child = self._child, None
        if child is not None:
            self._end(child)

    def _ask(self) -> dict[str, Any]:
        answer = self._exchange()
        if not answer and self._child is not None and _has_left(self._child):
            # It left after its last answer, as it does to load the library of an updated driver.
            self.close()
            answer = self._exchange()
        try:
            decoded = json.loads(answer)
        except ValueError:
            decoded = None
        if not answer.endswith(b"\n") or not isinstance(decoded, dict):
            raise self._crashed()
        return decoded

    def _exchange(self) -> bytes:
        """What the child wrote until the newline, or until its end if that came first."""
        child, patience = self._running_child()
        try:
            return _exchange(child, time.monotonic() + patience)
        except BrokenPipeError:
            return b""
        except TimeoutError:
            self.close()
            raise GpuUnavailableError(
                f"the GPUs cannot be read: NVML did not answer within {patience:g} s "
                "(a GPU has probably fallen off the bus)",
                hint="If `nvidia-smi` hangs too, reboot the machine, or report it and rent another. " + REHEARSE,
            ) from None
        except BaseException:
            # Half an answer may lie in the pipe (Ctrl-C): the next read must not take it for its own.
            self.close()
            raise

    def _running_child(self) -> tuple[subprocess.Popen[bytes], float]:
        """The child and the seconds it may take for its next answer."""
        if self._stuck is not None:
            # One that even SIGKILL does not end sits in the kernel; a second would join it there.
            if self._stuck.poll() is None:
                raise GpuUnavailableError(
                    "the GPUs cannot be read: an earlier NVML call still hangs inside the NVIDIA driver "
                    f"(process {self._stuck.pid})",
                    hint="Reboot the machine, or report it and rent another. " + REHEARSE,
                )
            self._stuck = None
        if self._child is not None and self._child.poll() is None:
            return self._child, self._timeout
        self.close()  # It died between two reads: nothing was asked of it, so nothing is wrong yet.
        self._child = self._start()
        return self._child, self._timeout + _START_GRACE_SECONDS

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                process_group=0,  # Ctrl-C at the terminal is for the person's program, not for this child.
            )
        except OSError as error:
            raise GpuUnavailableError(
                f"the GPUs cannot be read: {self._command[0]} cannot be started ({error.strerror})",
                hint="Mend or reinstall wan-train's Python environment. " + REHEARSE,
            ) from error

    def _crashed(self) -> GpuUnavailableError:
        child, self._child = self._child, None
        status = self._end(child) if child is not None else None
        if status is not None and status < 0:
            how = f"crashed ({signal.Signals(-status).name})"
        else:
            how = f"ended with exit status {status}" if status else "ended without an answer"
        return GpuUnavailableError(
            f"the GPUs cannot be read: the process that reads NVML {how}",
            hint="Check `nvidia-smi`; if it fails too, reset the driver or reboot the machine. "
            f"Otherwise reinstall nvidia-ml-py. {REHEARSE}",
        )

    def _end(self, child: subprocess.Popen[bytes]) -> int | None:
        """The exit status it had by itself, or that of the kill; None when it cannot be killed."""
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            # A child that closed its pipe is on its way out: its own status says more than our SIGKILL.
            return child.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
        try:
            return child.wait(_KILL_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._stuck = child
            return None


class CpuSlots:
    """Two CPU slots in place of two GPUs, so that a rehearsal schedules as a box with GPUs does."""

    def __init__(self, count: int = 2) -> None:
        self._reading = GpuReading(
            gpus=tuple(
                Gpu(
                    index=index,
                    uuid=f"cpu-slot-{index}",
                    name="CPU slot",
                    total_bytes=0,
                    used_bytes=0,
                    pids=(),
                )
                for index in range(count)
            )
        )

    def read(self) -> GpuReading:
        """The same slots each time; never raises."""
        return self._reading

    def close(self) -> None:
        """Nothing to end."""


def _has_left(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child, whose pipe has ended, ends by itself and well."""
    try:
        return child.wait(_LEAVE_SECONDS) == 0
    except subprocess.TimeoutExpired:
        return False


def _exchange(child: subprocess.Popen[bytes], deadline: float) -> bytes:
    """One request, and its answer up to and with the newline, or what came before the pipe's end.

    Raises:
        BrokenPipeError, TimeoutError: the child has ended; it has not answered by the deadline.
    """
    if child.stdin is None or child.stdout is None:
        raise BrokenPipeError
    child.stdin.write(b"read\n")
    descriptor = child.stdout.fileno()
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    received = bytearray()
    while not received.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise TimeoutError
        chunk = os.read(descriptor, 65536)
        if not chunk:
            break
        received += chunk
    return bytes(received)


def _parse(answer: dict[str, Any]) -> GpuReading:
    if (error := answer.get("error")) is not None:
        raise unavailable(code=error["code"], text=error["text"])
    return GpuReading(
        driver=answer["driver"],
        gpus=tuple(_gpu(entry) for entry in answer["gpus"]),
        lost=tuple(
            LostGpu(
                index=entry["index"],
                uuid=entry["uuid"],
                reason=lost_reason(index=entry["index"], code=entry["code"], text=entry["text"]),
            )
            for entry in answer["lost"]
        ),
    )


def _gpu(entry: dict[str, Any]) -> Gpu:
    capability, pids, power = entry["compute_capability"], entry["pids"], entry["power_milliwatts"]
    return Gpu(
        index=entry["index"],
        uuid=entry["uuid"],
        mig=entry["mig"],
        name=entry["name"],
        total_bytes=entry["total_bytes"],
        used_bytes=entry["used_bytes"],
        utilization=entry["utilization"],
        temperature=entry["temperature"],
        power_watts=None if power is None else power / 1000,
        compute_capability=None if capability is None else (capability[0], capability[1]),
        pids=None if pids is None else tuple(pids),
    )


def _name_lost(reading: GpuReading, known: dict[int, str]) -> GpuReading:
    """A lost GPU that cannot tell its UUID any more gets the one last seen at its index."""
    present = {gpu.uuid for gpu in reading.gpus} | {gpu.uuid for gpu in reading.lost}
    lost = tuple(
        replace(gpu, uuid=known[gpu.index])
        if gpu.uuid is None and known.get(gpu.index, "") not in present | {""}
        else gpu
        for gpu in reading.lost
    )
    return replace(reading, lost=lost)
