"""Read the GPUs through a child process that may hang or crash, or provide CPU slots in their place."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from wan_train.gpu.model import Gpu, GpuReading, GpuUnavailableError, LostGpu

_KILL_GRACE_SECONDS = 2.0
# A child whose input or program has ended exits within milliseconds.
_LEAVE_SECONDS = 0.2
# Without persistence mode the driver initialises every GPU for its first client, which takes seconds for each.
_START_GRACE_SECONDS = 20.0


def reader_command() -> list[str]:
    """The command of the NVML child. It runs by file path, so that only nvidia-ml-py must be importable."""
    # -P: a file named json.py in the user's working directory must not be imported.
    return [sys.executable, "-P", str(Path(__file__).with_name("nvml.py"))]


class NvmlProbe:
    """The GPUs as NVML reports them. Starts its child at the first read. Not thread-safe."""

    def __init__(self, timeout: float = 10.0, command: Sequence[str] | None = None) -> None:
        """`timeout`: seconds that NVML may take to answer; opening the driver may take 20 s more."""
        self._timeout = timeout
        self._command = list(command) if command is not None else reader_command()
        self._child: subprocess.Popen[bytes] | None = None
        self._stuck: subprocess.Popen[bytes] | None = None
        self._uuids: dict[int, str] = {}

    def read(self) -> GpuReading:
        """All GPUs now. Raises GpuUnavailableError. After a hang or a crash the next read starts a new child."""
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
            # It exited after its last answer, as it does after a driver update, to load the new library.
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
        """The child's answer up to the newline, or up to the end of its output if that comes first."""
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
            # Half an answer may be left in the pipe (Ctrl-C). The next read must not use it.
            self.close()
            raise

    def _running_child(self) -> tuple[subprocess.Popen[bytes], float]:
        """The child and the seconds it may take for its next answer."""
        if self._stuck is not None:
            # A child that survives SIGKILL hangs in the kernel. A second one would hang there too.
            if self._stuck.poll() is None:
                raise GpuUnavailableError(
                    "the GPUs cannot be read: an earlier NVML call still hangs inside the NVIDIA driver "
                    f"(process {self._stuck.pid})",
                    hint="Reboot the machine, or report it and rent another. " + REHEARSE,
                )
            self._stuck = None
        if self._child is not None and self._child.poll() is None:
            return self._child, self._timeout
        self.close()  # It died between two reads, with no request pending: not an error yet.
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
                process_group=0,  # Ctrl-C at the terminal must not reach this child.
            )
        except OSError as error:
            raise GpuUnavailableError(
                f"the GPUs cannot be read: {self._command[0]} cannot be started ({error.strerror})",
                hint="Fix or reinstall wan-train's Python environment. " + REHEARSE,
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
        """End the child. Return its own exit status or that of the kill; None if it cannot be killed."""
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            # A child that closed its pipe is exiting. Its own status says more than our SIGKILL.
            return child.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
        try:
            return child.wait(_KILL_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._stuck = child
            return None


class CpuSlots:
    """Two CPU slots in place of two GPUs, so that a rehearsal schedules like a box with GPUs."""

    def __init__(self) -> None:
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
                for index in range(2)
            )
        )

    def read(self) -> GpuReading:
        """The same slots each time; never raises."""
        return self._reading

    def close(self) -> None:
        """Nothing to end."""


def _has_left(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child exits without an error once its pipe is closed."""
    try:
        return child.wait(_LEAVE_SECONDS) == 0
    except subprocess.TimeoutExpired:
        return False


def _exchange(child: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Send one request. Return the answer including its newline, or what came before the pipe's end.

    Raises:
        BrokenPipeError: the child has ended.
        TimeoutError: it has not answered by the deadline.
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
    """A lost GPU without a readable UUID gets the one last seen at its index."""
    present = {gpu.uuid for gpu in reading.gpus} | {gpu.uuid for gpu in reading.lost}
    lost = tuple(
        replace(gpu, uuid=known[gpu.index])
        if gpu.uuid is None and known.get(gpu.index, "") not in present | {""}
        else gpu
        for gpu in reading.lost
    )
    return replace(reading, lost=lost)


REHEARSE = "`wan-train rehearse` runs the whole pipeline without a GPU."


class NvmlCode(IntEnum):
    """The NVML return codes with their own remedy (nvml.h, nvmlReturn_t)."""

    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    DRIVER_NOT_LOADED = 9
    LIBRARY_NOT_FOUND = 12
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    LIB_RM_VERSION_MISMATCH = 18
    UNKNOWN = 999


_CONTAINER_DEVICES = "NVIDIA_VISIBLE_DEVICES"
"""NVIDIA's container toolkit reads it when a container starts; `void` and `none` mean no GPU."""
_XID = "`sudo dmesg | grep -i xid` shows the driver's own words"

_LOST: dict[int, str] = {
    NvmlCode.GPU_IS_LOST: (
        "it has fallen off the bus; reboot the machine, or on a rented one report it and take another "
        f"({_XID}, usually Xid 79)"
    ),
    NvmlCode.RESET_REQUIRED: (
        f"it needs a reset; run `sudo nvidia-smi --gpu-reset -i {{index}}` or reboot the machine ({_XID})"
    ),
    NvmlCode.NO_PERMISSION: (
        "this user or container may not open it; start the container with this GPU (`--gpus all`) "
        "or fix the permissions of /dev/nvidia{index}"
    ),
    NvmlCode.NOT_FOUND: (
        "MIG is enabled on it, and it has no instance that may be used here; make one "
        "(`sudo nvidia-smi mig -cgi 0 -C`), start the container with one, "
        "or switch MIG off (`sudo nvidia-smi -i {index} -mig 0`)"
    ),
    NvmlCode.NOT_SUPPORTED: (
        "the driver does not report its memory, so it is unknown whether it is free; "
        "update the NVIDIA driver or use another GPU"
    ),
}

_UNAVAILABLE: dict[int, tuple[str, str]] = {
    NvmlCode.LIBRARY_NOT_FOUND: (
        "no NVIDIA driver found: libnvidia-ml.so.1 is not on this machine",
        "Install the NVIDIA driver, or in a container start it with `--gpus all` (NVIDIA container toolkit). "
        + REHEARSE,
    ),
    NvmlCode.DRIVER_NOT_LOADED: (
        "the NVIDIA driver is installed but not loaded, so no GPU can be used",
        "Run `sudo modprobe nvidia` or reboot; in a container start it with `--gpus all`. " + REHEARSE,
    ),
    NvmlCode.LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA kernel driver and its library differ in version: the driver was updated but not reloaded",
        "Reboot the machine; in a container restart the container. " + REHEARSE,
    ),
    NvmlCode.NO_PERMISSION: (
        "this user may not open the NVIDIA driver (/dev/nvidiactl)",
        "Run as a user who may, or in a container start it with `--gpus all`. " + REHEARSE,
    ),
    NvmlCode.UNKNOWN: (
        "the NVIDIA driver answers with an unknown error",
        "Check `nvidia-smi`. In a container that worked before, restart it: the host took its "
        f"access to the GPUs away. Otherwise reboot; {_XID}. " + REHEARSE,
    ),
}


def lost_reason(*, index: int, code: int, text: str) -> str:
    """Why GPU `index` cannot be used and how to fix it. `text` is NVML's own name for the error."""
    known = _LOST.get(code)
    remedy = known.format(index=index) if known else f"reset its driver or reboot the machine ({_XID})"
    return f"NVML says {text!r}: {remedy}"


def unavailable(*, code: int, text: str, environ: Mapping[str, str] = os.environ) -> GpuUnavailableError:
    """The error for an NVML that cannot be opened or used at all."""
    devices = environ.get(_CONTAINER_DEVICES)
    if code in {NvmlCode.LIBRARY_NOT_FOUND, NvmlCode.DRIVER_NOT_LOADED} and devices in {"", "void", "none"}:
        return GpuUnavailableError(
            f"{_CONTAINER_DEVICES}={devices!r} hides every GPU from this container (NVML: {text})",
            hint=f"Start the container with `--gpus all`, or with `-e {_CONTAINER_DEVICES}=all`. {REHEARSE}",
        )
    known = _UNAVAILABLE.get(code)
    if known is not None:
        message, hint = known
        return GpuUnavailableError(f"{message} (NVML: {text})", hint=hint)
    return GpuUnavailableError(
        f"the GPUs cannot be read: NVML answers {text!r} (code {code})",
        hint=f"Check `nvidia-smi`, then reset the driver or reboot; {_XID}. {REHEARSE}",
    )
