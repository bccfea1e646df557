"""`wan-train` without its start-up time: forks of a process that has the program loaded.

Half of a short command's time is Python importing the program. Tests call it some thousand times, so each test process
keeps one server that has imported it. The server forks a process for every call, with its own session, environment,
working directory and descriptors. It cannot reproduce what happens before `main`: see `suits`. The same server forks
supervisors and reports that such a process starts, since loading them takes longer than most runs of a test. A second
server forks the child that reads NVML. It is started with the library's folder in LD_LIBRARY_PATH.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, get_args

_PROGRAM = (
    *(
        f"wan_train.cli.{name}"
        for name in ("main", "app", "cancel_ending", "clean", "dataset", "doctor", "explain", "preview", "provision")
    ),
    *(f"wan_train.cli.{name}" for name in ("report", "runs", "train", "tune", "usage_errors", "watch")),
    "wan_train.run.supervise",
    "wan_train.views.json_records",
    "wan_train.views.summary",
    "encodings.utf_8_sig",
    "importlib.resources.readers",
    "jinja2",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "numpy",
    "PIL.Image",
    "questionary",
    "rich.console",
    "rich.markdown",
    "tomlkit",
)
"""The modules that commands load."""
REHEARSAL = ("accelerate", "safetensors.torch", "torch", "tqdm")
"""The modules that the embedded trainer's programs load."""
REGISTER = "FORKED_PROCESSES"
"""The variable for the folder where a forked process writes its arguments to a file; `registered` reads it.

/proc shows the server's environment and arguments instead.
"""
_SUPERVISOR = "wan_train.run.supervise"
_READER = "/wan_train/gpu/nvml.py"
_NVML = ("ctypes", "json", "pynvml")
"""The modules of the child that reads NVML. pynvml opens the library later, on its first call."""
_MOST_BYTES = 1 << 20
_servers: dict[tuple[str, ...], tuple[socket.socket, subprocess.Popen[bytes]]] = {}
_readers: dict[str, tuple[socket.socket, subprocess.Popen[bytes]]] = {}
"""Servers that a server started for reading NVML, by LD_LIBRARY_PATH."""


def suits(env: Mapping[str, str]) -> bool:
    """Whether a fork can serve this environment: it changes neither the interpreter's locale nor its flags.

    LD_LIBRARY_PATH selects the NVML stub and affects only the child that reads the driver.
    """
    flags = {name for name in env if name.startswith("PYTHON")} - {"PYTHONPATH", "PYTHONUNBUFFERED"}
    return env.get("LANG") == "C.UTF-8" and not flags and not any(name.startswith("LC_") for name in env)


class Forked:
    """A program that the server forked, with the part of `subprocess.Popen` that tests and `start_supervisor` use."""

    def __init__(self, args: Sequence[str], report: int) -> None:
        """The server writes the pid to `report`, and at the end the exit code."""
        self.args = list(args)
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self._report = report
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(report, 1) or b"the server has ended\n"
        self.pid = int(line)

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
    """Fork a `wan-train WORDS` with empty stdin. Its whole environment is `env`.

    With `script`, fork a `python SCRIPT WORDS` from a process that has loaded the modules `loaded`.
    """
    request = {"words": list(words), "cwd": str(cwd), "script": str(script) if script is not None else None}
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123  it needs a descriptor
        return _ask(_connection(loaded), request, env, [nothing.fileno(), stdout.fileno(), stderr.fileno()])


def start_at_terminal(words: Sequence[str], *, env: Mapping[str, str], cwd: Path, terminal: int) -> Forked:
    """Fork a `wan-train WORDS` with this controlling terminal."""
    return _ask(_connection(_PROGRAM), {"words": list(words), "cwd": str(cwd), "script": None}, env, [terminal] * 3)


def _ask(
    server: socket.socket, request: Mapping[str, Any], env: Mapping[str, str], descriptors: Sequence[int]
) -> Forked:
    report, written = os.pipe()
    message = json.dumps({"module": None, "library": None, **request, "env": dict(env)}).encode()
    rights = array.array("i", [*descriptors, written])
    server.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    os.close(written)
    return Forked([request.get("module", "wan-train"), *request["words"]], report)


def run(
    words: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    timeout: float | None = None,
    script: Path | None = None,
    loaded: tuple[str, ...] = _PROGRAM,
) -> subprocess.CompletedProcess[str]:
    """Fork a program and wait for it to end."""
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
    """Wait for a program to end. Return its exit code and its output from these files."""
    code = child.wait(timeout)
    texts = []
    for file in (stdout, stderr):
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(["wan-train", *words], code, *texts)


def _connection(loaded: tuple[str, ...]) -> socket.socket:
    """Return the test process's one server for these modules. It ends when this end of the socket closes."""
    if loaded not in _servers:
        _servers[loaded] = _started(loaded, {"OMP_NUM_THREADS": "1"})  # read when torch is loaded
    return _servers[loaded][0]


def _started(loaded: Sequence[str], env: Mapping[str, str]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_BYTES)
    with theirs:
        argv = [sys.executable, __file__, str(theirs.fileno()), *loaded]
        child = subprocess.Popen(
            argv,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **env},
        )
    return ours, child


def _serve(connection: socket.socket, loaded: Sequence[str]) -> None:
    """Fork for every request until the tests end, and report every exit code."""
    for name in loaded:
        importlib.import_module(name)
    if tuple(loaded) == _PROGRAM:
        _warm_up()
    gc.freeze()  # a collection in a child would copy the pages of all loaded modules
    asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_BYTES)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    reports: dict[int, int] = {}
    while True:
        ready = select.select([connection, asked, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            _report_ends(reports)
        for source in {connection, asked}.intersection(ready):
            request, ancillary, _, _ = source.recvmsg(_MOST_BYTES, socket.CMSG_SPACE(4 * 4))
            if not request:
                return
            descriptors = array.array("i")
            for _, _, data in ancillary:
                descriptors.frombytes(data)
            wanted = json.loads(request)
            if wanted["library"] is not None:
                _pass_on(wanted, descriptors)
                continue
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for ours in (connection, asked, *(reader for reader, _ in _readers.values())):
                    ours.close()
                _become(wanted, descriptors, asking)
            reports[pid] = descriptors[3]
            for descriptor in descriptors[:3]:
                os.close(descriptor)
            with contextlib.suppress(BrokenPipeError):  # the client was killed meanwhile
                os.write(descriptors[3], f"{pid}\n".encode())


def _pass_on(wanted: dict[str, Any], descriptors: array.array[int]) -> None:
    """Pass a request and its descriptors to the server of this library."""
    library = wanted["library"]
    if library not in _readers:
        _readers[library] = _started(_NVML, {"LD_LIBRARY_PATH": library})
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
    _readers[library][0].sendmsg([json.dumps(wanted | {"library": None}).encode()], rights)
    for descriptor in descriptors:
        os.close(descriptor)


def _warm_up() -> None:
    """Make once what would take a third of every call: Typer's commands, readers and writers of records."""
    import logging  # noqa: PLC0415  only this server loads it, like all of the following

    import PIL.Image  # noqa: PLC0415
    import rich.cells  # noqa: PLC0415
    import typer.main  # noqa: PLC0415

    from wan_train.base import codec  # noqa: PLC0415
    from wan_train.caching.index import CacheIndex  # noqa: PLC0415
    from wan_train.cli.app import app  # noqa: PLC0415
    from wan_train.run.events import Event  # noqa: PLC0415
    from wan_train.run.live import Live  # noqa: PLC0415
    from wan_train.run.plan import Plan  # noqa: PLC0415

    importlib.import_module("huggingface_hub.hf_api")
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]  # it reads its variables at import; its dependencies stay loaded
    logging.getLogger("huggingface_hub").handlers.clear()
    typer.main.get_command = functools.cache(typer.main.get_command)
    typer.main.get_command(app)
    converter = codec._converter()
    for record in (Plan, Live, CacheIndex, *get_args(Event)):
        converter.get_structure_hook(record)
        converter.get_unstructure_hook(record)
    PIL.Image.preinit()
    rich.cells.cell_len("…")


def _report_ends(reports: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            pid, status = ended
            if pid not in reports:  # a server for reading NVML
                continue
            report = reports.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # the test did not wait for it
                os.write(report, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(report)


def _become(request: dict[str, Any], descriptors: Sequence[int], server: socket.socket) -> None:
    """Run the forked process: set up what the kernel and interpreter do for a new one, then run the program."""
    script, module = request["script"], request["module"]
    code = 70 if script is None else 1
    try:
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        os.chdir(request["cwd"])
        for number, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, number)
        for descriptor in descriptors:
            os.close(descriptor)
        if os.isatty(0):
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.environ.clear()
        os.environ.update(request["env"])
        time.tzset()
        sys.argv = [script or module or "wan-train", *request["words"]]
        _register()
        subprocess.Popen = _forking(server)  # type: ignore[assignment,misc]  # replaces it in this process
        if script is not None:
            runpy.run_path(script, run_name="__main__")
        elif module is not None:
            sys.exit(importlib.import_module(module).main(request["words"]))
        else:
            from wan_train.cli.main import main  # noqa: PLC0415  only the server loads it

            main()
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


def _forking(server: socket.socket) -> type[subprocess.Popen[Any]]:
    """Return a `Popen` that lets the server fork our own programs and executes everything else."""

    class Popen(subprocess.Popen):  # type: ignore[type-arg]  # as generic as the original
        def __new__(cls, args: Sequence[str], **options: Any) -> Any:  # the class or its replacement
            env = options.get("env") or os.environ
            request = _forkable(list(map(str, args)), env)
            if request is None or options.get("pass_fds"):
                return super().__new__(cls)
            return _piped(server, {**request, "cwd": str(options.get("cwd") or Path.cwd())}, env, options)

    return Popen


def _forkable(args: list[str], env: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the server request that replaces this command, or None for other programs."""
    library = env.get("LD_LIBRARY_PATH", "")
    is_stub = Path(library.partition(os.pathsep)[0], "libnvidia-ml.so.1").is_file()
    if args[-1].endswith(_READER) and (is_stub or not library):
        return {"words": [], "script": args[-1], "library": library}
    if args[:2] == [sys.executable, "-m"] and args[2] in {"wan_train", _SUPERVISOR} and suits(env):
        return {"words": args[3:], "script": None, "module": _SUPERVISOR if args[2] == _SUPERVISOR else None}
    return None


def _piped(
    server: socket.socket, request: Mapping[str, Any], env: Mapping[str, str], options: Mapping[str, Any]
) -> Forked:
    """Fork a program with the streams that `Popen` was asked for: descriptors, pipes, or nothing."""
    given, ours = [], {}
    for name, mode in (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY)):
        stream = options[name]
        if stream == subprocess.PIPE:
            ends = os.pipe()
            ours[name], theirs = ends if name != "stdin" else ends[::-1]
        else:
            theirs = os.open(os.devnull, mode) if stream == subprocess.DEVNULL else os.dup(stream)
        given.append(theirs)
    child = _ask(server, request, env, given)
    for descriptor in given:
        os.close(descriptor)
    for name, descriptor in ours.items():
        setattr(child, name, os.fdopen(descriptor, "wb" if name == "stdin" else "rb", options.get("bufsize", -1)))
    return child


def _register() -> None:
    if REGISTER in os.environ:
        folder = Path(os.environ[REGISTER])
        folder.mkdir(exist_ok=True)
        started = _start_time(os.getpid())
        (folder / f"{os.getpid()}-{started}").write_text(" ".join(sys.argv), encoding="utf-8")


def registered(folder: Path) -> dict[int, str]:
    """Return the arguments of every living process registered in the folder, by pid."""
    found = {}
    for path in folder.glob("*"):
        pid, _, started = path.name.partition("-")
        with contextlib.suppress(OSError):
            if _start_time(int(pid)) == started:
                found[int(pid)] = path.read_text(encoding="utf-8")
    return found


def _start_time(pid: int) -> str | None:
    """Return the start time in ticks since boot, to tell two processes with one pid apart. None for a zombie."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
