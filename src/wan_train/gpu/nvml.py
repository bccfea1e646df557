"""A child program that reads NVML for its parent: one request line in, one JSON line out.

NVML can hang or crash its caller when a GPU falls off the bus, so it runs in a process that can be killed.
This program needs only the standard library and nvidia-ml-py. It keeps NVML open between requests, because
opening it on a cold driver takes seconds.

An answer is `{"driver", "gpus": [...], "lost": [...]}` or `{"error": {"code", "text"}}`, where code is the
NVML return code (nvml.h, nvmlReturn_t). Memory is in bytes, utilisation in percent, temperature in degrees
Celsius. A GPU with MIG is replaced by its instances, each with its `mig` number: CUDA cannot use the whole GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

Answer = dict[str, Any]
Device = ctypes.c_void_p
T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
_SESSION_IS_BAD = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_UNKNOWN,
    }
)
# Without UNKNOWN: some drivers (WSL, vGPU) return it for a missing sensor on a healthy GPU.
_GPU_IS_BAD = _SESSION_IS_BAD - {pynvml.NVML_ERROR_UNKNOWN}


def main() -> int:
    """Answer every line of standard input until it ends; exit code 0."""
    _die_with_parent()
    session = Session()
    for _request in iter(sys.stdin.readline, ""):
        answer = session.read()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        if answer.get("error", {}).get("code") == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            # The old library stays mapped here. Only a new process can load the driver's current one.
            break
    return 0


class Session:
    """NVML, opened at the first request and reopened after an answer with a session error."""

    def __init__(self) -> None:
        self._open = False
        self._unwell = False

    def read(self) -> Answer:
        """All GPUs now, or NVML's error."""
        if self._unwell:
            self._close()
        was_open = self._open
        try:
            try:
                return self._read()
            except pynvml.NVMLError_Uninitialized:
                if not was_open:
                    raise
                # The driver was reloaded since the last request.
                self._close()
                return self._read()
        except pynvml.NVMLError as error:
            self._unwell = True
            return {"error": {"code": error.value, "text": str(error)}}

    def _read(self) -> Answer:
        if not self._open:
            pynvml.nvmlInit()
            self._open, self._unwell = True, False
        answer: Answer = {"driver": pynvml.nvmlSystemGetDriverVersion(), "gpus": [], "lost": []}
        for index in range(pynvml.nvmlDeviceGetCount()):
            uuid: str | None = None
            try:
                device = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = pynvml.nvmlDeviceGetUUID(device)
                answer["gpus"] += _gpus(index, uuid, device)
            except pynvml.NVMLError_Uninitialized:
                raise
            except pynvml.NVMLError as error:
                self._unwell = self._unwell or error.value in _SESSION_IS_BAD
                answer["lost"].append({"index": index, "uuid": uuid, "code": error.value, "text": str(error)})
        return answer

    def _close(self) -> None:
        if self._open:
            # Ignore errors: the session is discarded anyway.
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
        self._open, self._unwell = False, False


def _gpus(index: int, uuid: str, device: Device) -> list[Answer]:
    mode = _if_told(lambda: pynvml.nvmlDeviceGetMigMode(device)[0])
    if mode != pynvml.NVML_DEVICE_MIG_ENABLE:
        return [{"index": index, "uuid": uuid, "mig": None, **_describe(device, device)}]
    found: list[Answer] = []
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        # A number without an instance, or one that this container may not use.
        with contextlib.suppress(pynvml.NVMLError_NotFound, pynvml.NVMLError_NoPermission):
            instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, number)
            name = pynvml.nvmlDeviceGetUUID(instance)
            found.append({"index": index, "uuid": name, "mig": number, **_describe(instance, device)})
    if not found:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
    return found


def _describe(device: Device, card: Device) -> Answer:
    """`card` is the whole GPU, which has the sensors. `device` is the same or one of its MIG instances."""
    total_bytes, used_bytes = _memory(device)
    return {
        "name": pynvml.nvmlDeviceGetName(device),
        "total_bytes": total_bytes,
        "used_bytes": used_bytes,
        "utilization": _if_told(lambda: pynvml.nvmlDeviceGetUtilizationRates(device).gpu),
        "temperature": _if_told(lambda: pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU)),
        "power_milliwatts": _if_told(lambda: pynvml.nvmlDeviceGetPowerUsage(card)),
        "compute_capability": _if_told(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(card)),
        "pids": _if_told(lambda: _pids(device)),
    }


def _memory(device: Device) -> tuple[int, int]:
    """Total and used bytes. Version 2 excludes the driver's own reserve; old drivers lack version 2."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2)
    except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NotSupported):
        memory = pynvml.nvmlDeviceGetMemoryInfo(device)
    return memory.total, memory.used


def _pids(device: Device) -> list[int]:
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(device)
    except pynvml.NVMLError_FunctionNotFound:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses_v2(device)
    # With MIG a process is listed once for each of its instances.
    return sorted({process.pid for process in processes})


def _if_told(ask: Callable[[], T]) -> T | None:
    """The value, or None if this driver or GPU does not report it. Errors of a bad GPU are raised."""
    try:
        return ask()
    except pynvml.NVMLError as error:
        if error.value in _GPU_IS_BAD:
            raise
        return None


def _die_with_parent() -> None:
    # The end of standard input is enough, except when NVML hangs and nothing reads it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
