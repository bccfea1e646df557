"""Stands in for SkyPilot's driver: the same JSON lines, with Vast's API and ssh but without SkyPilot.

It is started like `python sky_driver.py`, in the driver's environment: VAST_URL and VAST_API_KEY.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SSH_SECONDS = 8.0
"""A running box must answer by ssh in this time. SkyPilot waits for 10 minutes."""
RUN_SECONDS = 8.0
_LOOK_SECONDS = 0.5

lock = threading.Lock()


def ask(method: str, path: str, body: object = None) -> Any:
    headers = {"Authorization": f"Bearer {os.environ['VAST_API_KEY']}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(os.environ["VAST_URL"] + path, data=data, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def of(name: str) -> list[dict[str, Any]]:
    return [row for row in ask("GET", "/api/v1/instances/")["instances"] if row["label"] == f"{name}-head"]


def rent(name: str, task: dict[str, Any]) -> dict[str, Any]:
    try:
        options = task["config"]["vast"]["create_instance_kwargs"]
        if not of(name):
            key = (Path.home() / ".ssh/id_ed25519.pub").read_text().strip()
            start = f"mkdir -p ~/.ssh && chmod 700 ~/.ssh && echo '{key}' >>~/.ssh/authorized_keys"
            body = {"label": f"{name}-head", "onstart": start, "image": "image", "disk": task["resources"]["disk_size"]}
            if "wan_train_price" in options:
                body["price"] = options["wan_train_price"]
            ask("PUT", f"/api/v0/asks/{options['wan_train_offer']}/", body)
        row = running(name)
        answers(row)
    except BaseException:
        down(name)
        raise
    key = (Path.home() / ".ssh/id_ed25519").read_text()
    return {"host": row["ssh_host"], "port": row["ssh_port"], "user": "root", "key": key}


def running(name: str) -> dict[str, Any]:
    until = time.monotonic() + RUN_SECONDS
    while time.monotonic() < until:
        rows = of(name)
        if not rows or rows[0]["actual_status"] in {"exited", "stopped"}:
            raise RuntimeError("it was stopped before it ran")
        if rows[0]["actual_status"] == "running":
            return rows[0]
        time.sleep(_LOOK_SECONDS)
    raise RuntimeError("it did not run in time")


def answers(row: dict[str, Any]) -> None:
    until = time.monotonic() + SSH_SECONDS
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=ERROR"]
    words = ["ssh", "-F", "none", "-i", str(Path.home() / ".ssh/id_ed25519"), "-p", str(row["ssh_port"])]
    for option in options:
        words += ["-o", option]
    while subprocess.run([*words, "root@127.0.0.1", "true"], capture_output=True, check=False).returncode != 0:
        if time.monotonic() > until:
            raise RuntimeError("ssh did not open")
        time.sleep(_LOOK_SECONDS)


def down(name: str) -> dict[str, Any]:
    for row in of(name):
        ask("DELETE", f"/api/v0/instances/{row['id']}/", {})
    return {}


def answer(request: dict[str, Any]) -> None:
    try:
        match request["do"]:
            case "rent":
                ok = rent(request["name"], request["task"])
            case "down":
                ok = down(request["name"])
            case "boxes":
                ok = {"boxes": {}}
            case _:
                ok = {"ended": 0}
        said: dict[str, Any] = {"id": request["id"], "ok": ok}
    except Exception as error:  # noqa: BLE001  the reader gets an answer for any error
        said = {"id": request["id"], "error": f"{type(error).__name__}: {error}", "down": False}
    with lock:
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


def make_key() -> None:
    folder = Path.home() / ".ssh"
    if not (folder / "id_ed25519").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "id_ed25519")], check=True)


def main() -> None:
    make_key()
    pool = ThreadPoolExecutor(16)
    for line in sys.stdin:
        pool.submit(answer, json.loads(line))
    os._exit(0)


main()
