"""`wan-train` without its start: a process forked from one that has the program loaded.

Half of a short command's time is Python importing the program. Tests call it some thousand times, so each test process
keeps one server that has imported it and forks a process of its own for every call: own session, environment, working
directory and descriptors. What it cannot stand for is what happens before `main`: see `suits`.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_PROGRAM = (
    "wan_train.cli.app",
    "wan_train.cli.train",
    "wan_train.cli.runs",
    "wan_train.cli.watch",
    "wan_train.cli.dataset",
    "wan_train.cli.explain",
    "wan_train.views.json_records",
    "wan_train.views.summary",
    "PIL.Image",
    "rich.console",
    "rich.markdown",
    "tomlkit",
)
REHEARSAL = ("accelerate", "safetensors.torch", "torch", "tqdm")
"""What the embedded trainer's programs load."""
_MOST_BYTES = 1 << 20
_servers: dict[tuple[str, ...], tuple[socket.socket, subprocess.Popen[bytes]]] = {}


def suits(env: Mapping[str, str]) -> bool:
    """Whether the environment asks nothing of the interpreter's own start: its locale and its flags.

    LD_LIBRARY_PATH, which puts the NVML stub in place, concerns the child that reads the driver; that one is executed.
    """
    flags = {name for name in env if name.startswith("PYTHON")} - {"PYTHONPATH", "PYTHONUNBUFFERED"}
    return env.get("LANG") == "C.UTF-8" and not flags and not any(name.startswith("LC_") for name in env)


class Forked:
    """A `wan-train` that the server forked, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, words: Sequence[str], report: int) -> None:
        self.pid = pid
        self.args = ["wan-train", *words]
        self.returncode: int | None = None
        self._report = report

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(os.read(self._report, 16))
            os.close(self._report)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    words: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdout: IO[bytes],
    stderr: IO[bytes],
    script: Path | None = None,
    loaded: tuple[str, ...] = _PROGRAM,
) -> Forked:
    """Fork a `wan-train WORDS` with nothing on stdin; its whole environment is `env`.

    With `script` it is `python SCRIPT WORDS`, forked from a process that has loaded the modules `loaded`.
    """
    server = _connection(loaded)
    report, written = os.pipe()
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123  a descriptor is wanted
        named = str(script) if script is not None else None
        request = json.dumps({"words": list(words), "env": dict(env), "cwd": str(cwd), "script": named}).encode()
        descriptors = array.array("i", [nothing.fileno(), stdout.fileno(), stderr.fileno(), written])
        server.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    os.close(written)
    return Forked(int(server.recv(32)), words, report)


def run(
    words: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    timeout: float | None = None,
    script: Path | None = None,
    loaded: tuple[str, ...] = _PROGRAM,
) -> subprocess.CompletedProcess[str]:
    """Fork one and wait for its end."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        child = start(words, env=env, cwd=cwd, stdout=stdout, stderr=stderr, script=script, loaded=loaded)
        return completed(child, words, stdout, stderr, timeout)


def completed(
    child: subprocess.Popen[bytes] | Forked,
    words: Sequence[str],
    stdout: IO[bytes],
    stderr: IO[bytes],
    timeout: float | None,
) -> subprocess.CompletedProcess[str]:
    """The end of a call whose output went to these files."""
    code = child.wait(timeout)
    texts = []
    for file in (stdout, stderr):
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(["wan-train", *words], code, *texts)


def _connection(loaded: tuple[str, ...]) -> socket.socket:
    """One server for a test process, however many boxes it makes; it ends when this end of the socket closes."""
    if loaded not in _servers:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_BYTES)
        with theirs:
            argv = [sys.executable, __file__, str(theirs.fileno()), *loaded]
            child = subprocess.Popen(
                argv,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},  # read when torch is loaded
            )
        _servers[loaded] = ours, child
    return _servers[loaded][0]


def _serve(connection: socket.socket, loaded: Sequence[str]) -> None:
    """Fork for every request until the tests are over, and report every end."""
    for name in loaded:
        __import__(name)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    reports: dict[int, int] = {}
    while True:
        ready = select.select([connection, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            _report_ends(reports)
        if connection in ready:
            request, ancillary, _, _ = connection.recvmsg(_MOST_BYTES, socket.CMSG_SPACE(4 * 4))
            if not request:
                return
            descriptors = array.array("i")
            for _, _, data in ancillary:
                descriptors.frombytes(data)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                connection.close()
                _become(json.loads(request), descriptors)
            reports[pid] = descriptors[3]
            for descriptor in descriptors[:3]:
                os.close(descriptor)
            connection.send(str(pid).encode())


def _report_ends(reports: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            pid, status = ended
            report = reports.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # the test did not wait for it
                os.write(report, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(report)


def _become(request: dict[str, object], descriptors: Sequence[int]) -> None:
    """The forked process: what the kernel and the interpreter do for a new one, then the program."""
    script = request["script"]
    code = 70 if script is None else 1
    try:
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        os.chdir(str(request["cwd"]))
        for number, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, number)
        for descriptor in descriptors:
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(request["env"])  # type: ignore[call-overload]  # both sides of the socket are this file
        time.tzset()
        sys.argv = [str(script or "wan-train"), *request["words"]]  # type: ignore[misc]  # the same
        if script is None:
            from wan_train.cli.main import main  # noqa: PLC0415  only the server loads it

            main()
        else:
            runpy.run_path(str(script), run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
