"""What an NVML error code means to the person at the box, and what mends it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import IntEnum

from wan_train.gpu.model import GpuUnavailableError

REHEARSE = "`wan-train rehearse` runs the whole pipeline without a GPU."


class NvmlCode(IntEnum):
    """The NVML return codes that have a remedy of their own (nvml.h, nvmlReturn_t)."""

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
"""What NVIDIA's container toolkit reads when a container starts; `void` and `none` are its words for no GPU."""
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
        "or mend the permissions of /dev/nvidia{index}"
    ),
    NvmlCode.NOT_FOUND: (
        "MIG is enabled on it, and it has no instance that may be used here; make one "
        "(`sudo nvidia-smi mig -cgi 0 -C`), start the container with one, "
        "or switch MIG off (`sudo nvidia-smi -i {index} -mig 0`)"
    ),
    NvmlCode.NOT_SUPPORTED: (
        "the driver does not report its memory, so nobody can tell whether it is free; "
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
    """Why GPU `index` cannot be used and what mends it. `text` is NVML's own name of the error."""
    known = _LOST.get(code)
    remedy = known.format(index=index) if known else f"reset its driver or reboot the machine ({_XID})"
    return f"NVML says {text!r}: {remedy}"


def unavailable(*, code: int, text: str, environ: Mapping[str, str] = os.environ) -> GpuUnavailableError:
    """The error for an NVML that cannot be opened or used at all."""
    devices = environ.get(_CONTAINER_DEVICES)
    if code in {NvmlCode.LIBRARY_NOT_FOUND, NvmlCode.DRIVER_NOT_LOADED} and devices in {"", "void", "none"}:
        return GpuUnavailableError(
            f"{_CONTAINER_DEVICES}={devices!r} keeps every GPU out of this container (NVML: {text})",
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
