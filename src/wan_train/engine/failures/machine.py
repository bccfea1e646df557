"""Failures of the box: RAM, disks, limits of the container."""

from __future__ import annotations

import re
from collections.abc import Mapping

from wan_train.base.units import GB
from wan_train.engine.failures import Cause
from wan_train.engine.failures.kinds import kind
from wan_train.engine.traits import MUSUBI

_CHECKPOINT = (MUSUBI.state_bytes(16) + MUSUBI.lora_bytes(16, "fp16")) / GB
_NEEDED = (
    f"One checkpoint of one expert takes about {_CHECKPOINT:.1f} GB at rank 16; `wan-train --dry-run` says what "
    f"a whole "
    "run needs."
)
_RAM = (
    "Use a box with more RAM, or train the experts one after the other (`--gpus` with one GPU). Fewer blocks swapped "
    "need less, too."
)


def _file(found: re.Match[str]) -> Mapping[str, str]:
    """The file that an OSError's text names."""
    quoted = re.search(r"'([^'\n]+)'", found.string[found.start() :])
    return {"file": quoted[1] if quoted else "its text names it"}


MACHINE_KINDS = (
    kind(
        r"/dev/(?:shm)\b|insufficient shared memory|unable to (?:open|allocate|resize) shared memory"
        r"|DataLoader worker .*is killed by signal: Bus error|shared memory object .*No space left",
        Cause.HOST_OUT_OF_MEMORY,
        "the container's shared memory (/dev/shm) is full",
        "Start the container with more of it (Docker: `--shm-size 8g`), or rent another box. `df -h /dev/shm` "
        "shows it.",
    ),
    kind(
        r"unable to mmap (?P<bytes>\d+) bytes from file <(?P<file>[^>]*)>: Cannot allocate memory",
        Cause.HOST_OUT_OF_MEMORY,
        "the machine's RAM (not the GPU's memory) was too small to map the {gigabytes} GB of {file}",
        _RAM,
        facts=lambda found: {"gigabytes": f"{int(found['bytes']) / GB:.1f}"},
    ),
    kind(
        r"can't allocate memory: you tried to allocate (?P<bytes>\d+) bytes",
        Cause.HOST_OUT_OF_MEMORY,
        "the machine's RAM (not the GPU's memory) was too small: {gigabytes} GB more were asked for",
        _RAM,
        facts=lambda found: {"gigabytes": f"{int(found['bytes']) / GB:.1f}"},
    ),
    kind(
        r"MemoryError\b|bad_alloc|Unable to allocate [\d.]+ \wiB|DefaultCPUAllocator: not enough memory"
        r"|Cannot allocate memory|\[Errno 12\]|os error 12\b"
        r"|DataLoader worker .*(?:is killed by signal: Killed|exited unexpectedly)",
        Cause.HOST_OUT_OF_MEMORY,
        "the machine's RAM (not the GPU's memory) was not enough",
        _RAM,
    ),
    kind(
        r"\[Errno 122\]|Disk quota exceeded|code: 122\b|os error 122\b|QuotaExceeded",
        Cause.DISK_FULL,
        "the disk quota is used up",
        "`quota -s` or `du -sh` shows what takes it. Free some disk space (`wan-train clean` removes unneeded files) "
        f"and resume, or start a new run with `--runs-dir` on another disk. {_NEEDED}",
    ),
    kind(
        r"Not enough free space to write (?P<bytes>\d+) bytes",
        Cause.DISK_FULL,
        "the disk is full: {gigabytes} GB more were to be written",
        f"Free some disk space (`wan-train clean` removes unneeded files), then resume. {_NEEDED}",
        facts=lambda found: {"gigabytes": f"{int(found['bytes']) / GB:.2f}"},
    ),
    kind(
        r"No space left on device|StorageFull|\[Errno 28\]|os error 28\b|Not enough free disk space"
        r"|inline_container\.cc.*(?:write|unexpected pos)|Disk full|database or disk is full",
        Cause.DISK_FULL,
        "the disk is full",
        f"Free some disk space (`wan-train clean` removes unneeded files), then resume. {_NEEDED}",
    ),
    kind(
        r"\[Errno 30\]|Read-only file system|ReadOnlyFilesystem|os error 30\b",
        Cause.NO_ACCESS,
        "a file is on a disk that may only be read: {file}",
        "Mount it for writing, or start a new run with another `--runs-dir`. A disk that was writable before has "
        "errors: `dmesg | tail` shows them.",
        facts=_file,
    ),
    kind(
        r"PermissionError|\[Errno (?:13|1)\]|code: 13, kind: PermissionDenied|Permission denied"
        r"|Operation not permitted",
        Cause.NO_ACCESS,
        "this user may not read or write a file: {file}",
        "`ls -ld` shows its owner: give it to the user who trains (`chown`), or train as that user; then resume.",
        facts=_file,
    ),
    kind(
        r"\[Errno 116\]|Stale file handle|os error 116\b|StaleNetworkFileHandle",
        Cause.STORAGE,
        "a network disk lost the file (stale file handle)",
        "The server or the mount was changed. Mount the disk again, then resume.",
    ),
    kind(
        r"\[Errno (?:5|107|121)\]|Input/output error|Transport endpoint is not connected|Remote I/O error"
        r"|os error (?:5|107|121)\b",
        Cause.STORAGE,
        "the disk could not be read or written (input/output error)",
        "`dmesg | tail` says which. If it happens again, copy what you need and change the disk or the box.",
    ),
    kind(
        r"\[Errno (?:24|23)\]|Too many open files|received 0 items of ancdata",
        Cause.FILE_LIMIT,
        "too many files are open at once",
        "`ulimit -n 65536` in the shell that starts wan-train, or start a new run with fewer data-loader workers "
        "(`-- --max_data_loader_n_workers 1`).",
    ),
    kind(
        r"can't start new thread|Resource temporarily unavailable|\[Errno 11\]|os error 11\b|pthread_create failed"
        r"|Thread creation failed|cannot create thread",
        Cause.PROCESS_LIMIT,
        "this container's limit of processes or threads is used up",
        "Start a new run with fewer data-loader workers (`-- --max_data_loader_n_workers 1`), or start the container "
        "with a higher limit (Docker: `--pids-limit`).",
    ),
)
