"""Failures of the GPU: its memory, the driver, CUDA and cuDNN."""

from __future__ import annotations

from wan_train.engine.failures import Cause
from wan_train.engine.failures.kinds import kind

_OTHER_BOX = "Rent a box with a newer driver"
_PROVISION = "`wan-train doctor` says which CUDA the trainer's PyTorch needs and which the driver has."

_INITIALIZATION = (
    kind(
        r"Error 804\b|forward compatibility was attempted on non supported HW",
        Cause.DRIVER,
        "the driver is older than this CUDA build, and this card cannot make up for it (CUDA error 804)",
        f"{_OTHER_BOX}, or use an engine whose PyTorch is built for an older CUDA. {_PROVISION}",
    ),
    kind(
        r"Error 803\b|unsupported display driver / cuda driver combination|Driver/library version mismatch",
        Cause.DRIVER,
        "the driver's library and its kernel module are of different versions (CUDA error 803)",
        "Restart the machine, or rent another box: a container cannot fix this. `nvidia-smi` shows whether it is over.",
    ),
    kind(
        r"Error 802\b|system not yet initialized|cudaErrorSystemNotReady",
        Cause.CUDA_ERROR,
        "the GPUs of this machine are not initialized yet (CUDA error 802)",
        "Machines with NVSwitch need NVIDIA's Fabric Manager, of the driver's own version. On your own machine: "
        "`systemctl status nvidia-fabricmanager`. On a rented one: take another box.",
    ),
    kind(
        r"CUDA driver version is insufficient|The NVIDIA driver on your system is too old|cudaErrorInsufficientDriver"
        r"|the provided PTX was compiled with an unsupported toolchain",
        Cause.DRIVER,
        "the NVIDIA driver is too old for this PyTorch",
        f"{_OTHER_BOX} (CUDA 12.8 or later), or use an engine whose PyTorch is built for an older CUDA. {_PROVISION}",
    ),
    kind(
        r"Found no NVIDIA driver on your system|libcuda\.so(?:\.1)?: cannot open shared object file",
        Cause.NO_GPU,
        "there is no NVIDIA driver here",
        "If `nvidia-smi` fails, the container was started without GPUs (Docker: `--gpus all`): start it again with "
        "them, or rent another box.",
    ),
)
"""Why CUDA could not start. torch prints this as a warning; its later exception only says that there is no GPU."""

GPU_KINDS = (
    kind(
        r"CUDA error: out of memory|cudaErrorMemoryAllocation|CUDA error: invalid argument",
        Cause.HOST_OUT_OF_MEMORY,
        "the machine's RAM (not the GPU's memory) could not be locked for copies to the GPU (pinned memory)",
        "Use a box with more RAM, or start a new run with fewer `--blocks-to-swap`. `ulimit -l` shows the limit.",
        at=r"pin_memory|HostAlloc|HostRegister",
    ),
    kind(
        r"cudaHostAlloc|cudaHostRegister|CUDAHostAllocator|CachingHostAllocator",
        Cause.HOST_OUT_OF_MEMORY,
        "the machine's RAM (not the GPU's memory) could not be locked for copies to the GPU (pinned memory)",
        "Use a box with more RAM, or start a new run with fewer `--blocks-to-swap`. `ulimit -l` shows the limit.",
    ),
    kind(
        r"OutOfResources: out of resource: (?P<what>[\w ]+)",
        Cause.SETTING,
        "a compiled kernel needs more {what} than this GPU has",
        "Start a new run without `--compile`, or with `--attention sdpa`; `wan-train resume` keeps both.",
    ),
    kind(
        r"^(?:[\w.]*\.)?OutOfMemoryError\b|(?:CUDA|HIP) out of memory|CUDA error: out of memory"
        r"|cudaErrorMemoryAllocation"
        r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION"
        r"|CUSOLVER_STATUS_ALLOC_FAILED|CUSPARSE_STATUS_INSUFFICIENT_RESOURCES|Unable to find a valid cuDNN algorithm",
        Cause.OUT_OF_MEMORY,
        "the GPU's memory was not enough",
        "A run tries the next memory setting by itself. When none is left: start a new run with a smaller "
        "`--resolution` or more `--blocks-to-swap`, or use a GPU with more memory.",
    ),
    *_INITIALIZATION,
    kind(
        r"no kernel image is available for execution|is not compatible with the current PyTorch installation"
        r"|cudaErrorNoKernelImageForDevice|nvrtc: error: invalid value for --gpu-architecture"
        r"|Value 'sm_\w+' is not defined for option",
        Cause.ENVIRONMENT,
        "this PyTorch, or a package beside it, has no kernels for this GPU",
        "The trainer needs a PyTorch built for this GPU (cu128 or later for Blackwell): `wan-train doctor` says "
        "what is there. If it is xformers or flash-attn, start a new run with `--attention sdpa`.",
    ),
    kind(
        r"Torch not compiled with CUDA enabled",
        Cause.ENVIRONMENT,
        "the trainer's PyTorch is built for the CPU only",
        "`wan-train provision` installs the build with CUDA.",
    ),
    kind(
        r"No CUDA GPUs are available|no CUDA-capable device is detected|torch\.cuda\.is_available\(\) is False"
        r"|cudaErrorNoDevice|mixed precision requires a GPU|requires a GPU \(not 'cpu'\)|CUDA is not available"
        r"|Unexpected error from cudaGetDeviceCount|CUDA unknown error",
        Cause.NO_GPU,
        "the trainer sees no GPU",
        "Check whether `nvidia-smi` lists one, and the value of CUDA_VISIBLE_DEVICES. If none is listed, the container "
        "was started without GPUs (Docker: `--gpus all`).",
        reasons=_INITIALIZATION,
    ),
    kind(
        r"invalid device ordinal",
        Cause.NO_GPU,
        "the trainer asked for a GPU with a number that this box does not have",
        "Compare CUDA_VISIBLE_DEVICES with `nvidia-smi -L`; do not name a device after `--`.",
    ),
    kind(
        r"CUDA-capable device\(s\) is/are busy|all CUDA-capable devices are busy|cudaErrorDevicesUnavailable",
        Cause.CUDA_ERROR,
        "another program has the GPU for itself, or the GPU hangs",
        "`nvidia-smi` shows which program and whether the compute mode is exclusive; end it, or restart the machine.",
    ),
    kind(
        r"device-side assert triggered|cudaErrorAssert",
        Cause.CUDA_ERROR,
        "a kernel on the GPU found an invalid value (device-side assert)",
        "If it happens again at the same step, an index or a label is wrong: the lines before it in the log name it.",
    ),
    kind(
        r"uncorrectable ECC|cudaErrorECCUncorrectable",
        Cause.CUDA_ERROR,
        "the GPU's memory is broken (uncorrectable ECC error)",
        "`nvidia-smi -q -d ECC` counts them. If they continue after a restart, change the machine.",
    ),
    kind(
        r"GPU is lost|fallen off the bus|GPU has fallen",
        Cause.CUDA_ERROR,
        "the machine lost its GPU",
        "`dmesg | grep -i xid` says why; restart or change the machine.",
    ),
    kind(
        r"CUDA error: (?:unspecified launch failure|an illegal memory access|an illegal instruction|misaligned address"
        r"|the launch timed out|hardware stack error)|cudaErrorIllegalAddress|cudaErrorLaunchFailure",
        Cause.CUDA_ERROR,
        "the GPU or its driver failed, or a kernel has a bug",
        "Look at `nvidia-smi` and `dmesg | grep -i xid`. If the GPU does not answer, restart or change the machine; if "
        "an attention kernel is named, start a new run with `--attention sdpa`.",
    ),
    kind(
        r"cuDNN version incompatibility|CUDNN_STATUS_\w*VERSION_MISMATCH|Could not load library libcudnn"
        r"|Unable to load any of \{?libcudnn",
        Cause.ENVIRONMENT,
        "another cuDNN than the trainer's own was loaded",
        "`unset LD_LIBRARY_PATH` and resume: torch bundles its cuDNN. `wan-train provision` repairs a missing one.",
    ),
    kind(
        r"CUDNN_STATUS_NOT_INITIALIZED",
        Cause.CUDA_ERROR,
        "cuDNN could not start: the GPU's memory is full, or the driver is incompatible",
        "`nvidia-smi` shows whether another program holds memory. Otherwise `unset LD_LIBRARY_PATH` and resume.",
    ),
    kind(
        r"CUDA error|cuDNN error|cuDNN Frontend error|CUBLAS_STATUS|CUDNN_STATUS|CUSOLVER_STATUS|CUDA driver error",
        Cause.CUDA_ERROR,
        "a CUDA operation failed",
        "Its text names the operation. If it is an attention kernel, start a new run with `--attention sdpa`.",
    ),
)
