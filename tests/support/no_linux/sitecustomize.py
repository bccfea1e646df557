"""Python as on macOS, as far as this machine allows. It is on PYTHONPATH, so that child programs use it too.

It removes what only Linux has: functions of `os` and `signal`, /proc and /sys, prctl, and the NVIDIA library. psutil
works on both systems and keeps what it needs.
"""

from __future__ import annotations

import importlib.abc
import os
import select
import signal
import sys
import sysconfig
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import Any

import psutil  # noqa: F401  it chooses its system at its first import, so this must be Linux

_GONE = {
    os: (
        "copy_file_range",
        "eventfd",
        "fdatasync",
        "getxattr",
        "listxattr",
        "memfd_create",
        "O_PATH",
        "pidfd_open",
        "pipe2",
        "posix_fadvise",
        "posix_fallocate",
        "sched_getaffinity",
        "sched_setaffinity",
        "setxattr",
        "splice",
    ),
    signal: ("pidfd_send_signal", "sigtimedwait", "sigwaitinfo"),
    select: ("epoll",),
}
_LINUX_PLACES = ("/proc", "/sys", "/run")


def _is_psutil() -> bool:
    frame = sys._getframe(2)  # the caller of our caller
    while frame is not None and frame.f_code.co_filename.startswith("<frozen"):
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__", "")).startswith("psutil")


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"open", "os.listdir", "os.scandir"}:
        path = arguments[0]
        if isinstance(path, str) and path.startswith(_LINUX_PLACES) and not _is_psutil():
            raise FileNotFoundError(2, "No such file or directory", path)
    if event == "ctypes.dlsym" and arguments[1] == "prctl":
        raise AttributeError("prctl")


class _NoNvml(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002  the protocol
        if name == "pynvml":
            raise ModuleNotFoundError(name, name=name)
        return None


for module, names in _GONE.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
# On macOS, urllib asks this module for the system's proxies.
proxies = types.ModuleType("_scproxy")
proxies.__dict__.update(_get_proxies=dict, _get_proxy_settings=dict)
sys.modules["_scproxy"] = proxies
sysconfig.get_config_vars()  # cached now, since the running Python is built for Linux
sys.platform = "darwin"
sys.meta_path.insert(0, _NoNvml())
sys.addaudithook(_refuse)
