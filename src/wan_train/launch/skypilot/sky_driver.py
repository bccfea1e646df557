"""Drives SkyPilot for wan-train with JSON lines in and out. It runs in SkyPilot's own environment.

    {"id": 1, "do": "rent", "name": "wt-1", "task": {...}}   ->  {"id": 1, "ok": {"host": ..., "port": ..., ...}}
    {"id": 2, "do": "down", "name": "wt-1"}                  ->  {"id": 2, "ok": {}}
    {"id": 3, "do": "boxes"}                                 ->  {"id": 3, "ok": {"boxes": {"wt-1": "UP"}}}
    {"id": 4, "do": "offers", "infra": "aws", "spot": true}  ->  {"id": 4, "ok": {"offers": [{"gpu": "L4", ...}]}}
    {"id": 5, "do": "stop"}                                  ->  {"id": 5, "ok": {}}, after the API server has ended

A request that fails is answered with {"id": 1, "error": "...", "down": false}. `down` says that the API server ended
before it answered: the box's state is unknown, and the request may be repeated. Requests run concurrently.

At the end of the input the driver ends at once, whatever is under way: the caller is gone, and the next one repeats
its requests. A rental that failed later would destroy the next caller's box. Boxes and the API server stay.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

AT_ONCE = 32
END_SECONDS = 10.0
_DOWN = frozenset({"ApiServerConnectionError", "ChunkedEncodingError", "ClientConnectionError", "ConnectionError"})
"""Names of errors from SkyPilot and from the libraries that it uses to ask its server."""
_MOST_TEXT = 1000
_SERVER, _OWN_NAME = "sky.server.server", "sky_driver.py"
"""Text in the command lines of the server and of drivers."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CAUSE = re.compile(r"[\w.]*(?:Error|Exception)\b")


class Driver:
    """Answers requests with SkyPilot's SDK, `sky`."""

    def __init__(self, sky: Any, out: TextIO) -> None:  # noqa: ANN401  a module from another environment
        self.sky = sky
        self.out = out
        self.lock = threading.Lock()

    def answer(self, request: Mapping[str, Any]) -> None:
        try:
            ok = self.do(request)
        except Exception as error:  # noqa: BLE001  SkyPilot raises anything; the reader must get an answer
            if is_down(error):
                with self.lock:
                    end_orphans(dict(os.environ))
            self.say({"id": request.get("id"), "error": words(error), "down": is_down(error)})
        else:
            self.say({"id": request.get("id"), "ok": ok})

    def do(self, request: Mapping[str, Any]) -> dict[str, Any]:
        match request.get("do"):
            case "rent":
                return self.rent(str(request["name"]), request["task"])
            case "down":
                self.down(str(request["name"]))
                return {}
            case "boxes":
                listed = self.sky.get(self.sky.status(refresh=self.sky.StatusRefreshMode.FORCE))
                return {"boxes": {record["name"]: record["status"].name for record in listed}}
            case "offers":
                return {"offers": self.offers(str(request["infra"]), spot=bool(request["spot"]))}
            case "stop":
                self.sky.api_stop()
                return {"ended": end_all(processes_of(dict(os.environ)))}
            case other:
                raise ValueError(f"unknown request {other!r}")

    def rent(self, name: str, task: Mapping[str, Any]) -> dict[str, Any]:
        """Rent a box that answers ssh. Destroy it if its set-up fails: SkyPilot leaves it running and billed."""
        try:
            made = self.sky.launch(self.sky.Task.from_yaml_config(dict(task)), cluster_name=name)
            self.sky.stream_and_get(made, output_stream=io.StringIO())
            [record] = self.sky.get(self.sky.status([name], _include_credentials=True))
            handle, credentials = record["handle"], record["credentials"]
            return {
                "host": handle.cached_external_ips[0],
                "port": handle.cached_external_ssh_ports[0],
                "user": credentials["ssh_user"],
                "key": credentials.get("ssh_private_key_content"),
                "key_path": credentials.get("ssh_private_key"),
                "proxy": credentials.get("ssh_proxy_command"),
            }
        except BaseException as error:
            if not is_down(error):
                self.down(name)
            raise

    def offers(self, infra: str, *, spot: bool) -> list[dict[str, Any]]:
        """What an infrastructure has, as JSON values. Raise an error if it cannot end a box by itself."""
        told = io.StringIO()
        # Use the SDK's own functions: `sky.check` is a module, and `sky.list_accelerators` asks no server.
        sdk = self.sky.client.sdk
        enabled = self.sky.stream_and_get(sdk.check((infra,), verbose=False), output_stream=told)
        if not any(name.lower() == infra for clouds in enabled.values() for name in clouds):
            raise RuntimeError(f"{infra} is not enabled in SkyPilot: {reason_in(told.getvalue())}")
        features = self.sky.clouds.CloudImplementationFeatures
        wanted = {features.AUTODOWN, features.SPOT_INSTANCE} if spot else {features.AUTODOWN}
        cloud = self.sky.CLOUD_REGISTRY.from_str(infra)
        cloud.check_features_are_supported(self.sky.Resources(infra=infra), wanted)
        listed = sdk.list_accelerators(gpus_only=True, clouds=[infra], require_price=False)
        return [
            {
                "type": each.instance_type,
                "gpu": each.accelerator_name,
                "gpus": each.accelerator_count,
                "gpu_gib": finite(each.device_memory),
                "ram_gib": finite(each.memory),
                "price": finite(each.price),
                "spot": finite(each.spot_price),
            }
            for rows in self.sky.get(listed).values()
            for each in rows
        ]

    def down(self, name: str) -> None:
        """Destroy a box. A box that SkyPilot does not know counts as gone."""
        try:
            self.sky.get(self.sky.down(name))
        except Exception as error:
            if type(error).__name__ != "ClusterDoesNotExist":
                raise

    def say(self, answer: Mapping[str, Any]) -> None:
        with self.lock:
            self.out.write(json.dumps(answer) + "\n")
            self.out.flush()


def finite(value: float | None) -> float | None:
    """Return a finite number; None for a value that a catalogue does not know."""
    return value if value is not None and math.isfinite(value) else None


def reason_in(text: str) -> str:
    """Why a check failed and how to fix it: SkyPilot's text below a line such as `RunPod: disabled`."""
    lines = [_COLOUR.sub("", line).strip() for line in text.splitlines()]
    below = itertools.dropwhile(lambda line: ": disabled" not in line, lines)
    return " ".join(itertools.takewhile(bool, itertools.islice(below, 1, None)))


def is_down(error: BaseException | None) -> bool:
    """Whether the API server ended before it answered."""
    while error is not None:
        if type(error).__name__ in _DOWN:
            return True
        error = error.__cause__ or error.__context__
    return False


def words(error: BaseException) -> str:
    """The first line of an error and its last line that names another error: a box's output may be many lines."""
    lines = [line.strip() for line in "".join(traceback.format_exception_only(error)).splitlines() if line.strip()]
    causes = [line for line in lines[1:] if _CAUSE.match(line)]
    return "; ".join([*lines[:1], *causes[-1:]])[:_MOST_TEXT]


def processes_of(environ: Mapping[str, str]) -> list[Any]:
    """Processes started with this home and port, except this program: the server, its workers, their ssh.

    Workers overwrite their environment with their title (setproctitle), but share the server's session. SkyPilot's
    persistent ssh also does so, in its own session; its socket's folder is named after the user.
    """
    import psutil  # a dependency of SkyPilot

    there = {process: session_of(process.pid) for process in psutil.process_iter()}
    own = os.getsid(0)
    sessions = {session for process, session in there.items() if has(process, environ)} - {own, None}
    try:
        ssh = f"/sky_ssh_{Path(environ['HOME'], '.sky/user_hash').read_text(encoding='utf-8').strip()}/"
    except OSError:
        ssh = ""
    return [
        process
        for process, session in there.items()
        if session in sessions or (ssh and (words := words_of(process)).startswith("ssh: ") and ssh in words)
    ]


def has(process: Any, environ: Mapping[str, str]) -> bool:  # noqa: ANN401  psutil's, from another environment
    """Whether a process has our home and port in its environment."""
    import psutil

    try:
        theirs = process.environ()
    except psutil.Error:
        return False
    return all(theirs.get(name) == environ.get(name) for name in ("HOME", "SKYPILOT_API_SERVER_LOCAL_PORT"))


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def end_all(processes: Sequence[Any]) -> int:
    """Kill processes; return how many. SkyPilot's api_stop ends only children of the server, not a dead server's."""
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    until = time.monotonic() + END_SECONDS
    while any(is_alive(process) for process in processes) and time.monotonic() < until:
        time.sleep(0.05)
    return len(processes)


def end_orphans(environ: Mapping[str, str]) -> None:
    """End workers that outlived a killed server: what they do to a box would interfere with the next request."""
    found = {process: words_of(process) for process in processes_of(environ)}
    if not any(_SERVER in words for words in found.values()):
        end_all([process for process, words in found.items() if _OWN_NAME not in words])


def words_of(process: Any) -> str:  # noqa: ANN401  psutil's, from another environment
    import psutil

    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def is_alive(process: Any) -> bool:  # noqa: ANN401  psutil's, from another environment
    """Whether a process runs. A zombie does not; it stays listed in a container whose first process reaps nothing."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def serve(driver: Driver, lines: TextIO) -> None:
    """Answer every line; return at the end of the input."""
    pool = ThreadPoolExecutor(AT_ONCE)
    for line in lines:
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            driver.say({"id": None, "error": "not a request", "down": False})
            continue
        pool.submit(driver.answer, request)


def main() -> None:
    out = sys.stdout
    # SkyPilot prints to stdout, which carries our answers to wan-train.
    sys.stdout = sys.stderr
    import sky  # type: ignore[import-not-found]

    serve(Driver(sky, out), sys.stdin)
    os._exit(0)


if __name__ == "__main__":
    main()
