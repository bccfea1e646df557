"""A rented box on this machine: its own root in its own namespaces, with a real sshd behind a loopback port.

It needs root, overlayfs and util-linux. Its network is its own loopback, which reaches only Vast's API.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

API_PORT = 18999
"""The port of Vast's API inside every box."""
PACKAGES = "/opt/packages"
"""This machine's wan-train packages, inside a box, read-only."""
PYTHON = "/opt/python"
"""A link inside a box to the Python of those packages."""
_CLONE_NEWNET = 0x40000000
_WAIT_SECONDS = 60.0

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# One process of the box has the variables that Vast gives to a container. bash reaps what the box's programs left over.
_BOOT = r"""set -e
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$FOLDER/machine:$ROOTFS,upperdir=$FOLDER/upper,workdir=$FOLDER/work" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs tmpfs "$ROOT/run"
mount -t tmpfs tmpfs "$ROOT/tmp"
mkdir -p "$ROOT/run/sshd"
mount --bind "$HOST_PACKAGES" "$ROOT/opt/packages"
mount -o remount,ro,bind "$ROOT/opt/packages"
if [ "$HOST_PYTHON" != /usr ]; then
    mount --bind "$HOST_PYTHON" "$ROOT$HOST_PYTHON"
    mount -o remount,ro,bind "$ROOT$HOST_PYTHON"
fi
ip link set lo up
hostname "C.$ID"
env -i HOME=/root PATH="$INNER" chroot "$ROOT" bash /opt/onstart
cd /
touch "$FOLDER/ready"
exec chroot "$ROOT" env -i HOME=/root PATH="$INNER" CONTAINER_ID="$ID" CONTAINER_API_KEY="$KEY" \
    HF_ENDPOINT="http://127.0.0.1:$API_PORT/hub" WAN_TRAIN_VAST_URL="http://127.0.0.1:$API_PORT" \
    bash -c 'sleep infinity & wait'
"""


@dataclass(slots=True, kw_only=True)
class NamespaceBox:
    """One box in `folder`. Its nvidia-smi shows `card`, `cards` times. `key` is its own API key at Vast."""

    id: int
    folder: Path
    rootfs: Path
    card: str
    cards: int
    key: str
    disk_gb: float
    onstart: str
    maker: ThreadPoolExecutor
    """Has one thread that starts boxes: a box ends with the thread that started it."""
    opens: bool = True
    """Whether its ssh answers."""
    port: int = 0
    pid: int | None = None
    _listener: socket.socket | None = None
    _outer: subprocess.Popen[bytes] | None = None
    _guests: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def upper(self) -> Path:
        """The files written on the box."""
        return self.folder / "upper"

    @property
    def is_running(self) -> bool:
        return self.pid is not None and self._outer is not None and self._outer.poll() is None

    def boot(self) -> None:
        """Start the box, or restart it with its disk, and wait until it runs. Raise RuntimeError with its log."""
        self._write_machine()
        (self.folder / "ready").unlink(missing_ok=True)
        self._outer = self.maker.submit(self._start).result()
        until = time.monotonic() + _WAIT_SECONDS
        while not (self.folder / "ready").exists():
            if self._outer is None or self._outer.poll() is not None or time.monotonic() > until:
                self.halt()
                raise RuntimeError((self.folder / "boot.log").read_text(errors="replace")[-2000:])
            time.sleep(0.05)
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        self.pid = int(children[0])
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
            self.port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def inside_socket(self) -> socket.socket:
        """Return a listening socket in the box's own network, for Vast's API."""
        made: list[socket.socket] = []

        def enter() -> None:
            with Path(f"/proc/{self.pid}/ns/net").open("rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server(("127.0.0.1", API_PORT)))

        # A separate thread, because it can never return to this machine's network.
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return made[0]

    def halt(self) -> None:
        """End everything in the box at once. Its disk stays."""
        outer, self._outer, pid, self.pid = self._outer, None, self.pid, None
        if outer is None:
            return
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # every process of the namespace ends with its first one
        outer.kill()
        outer.wait()
        self._hang_up()

    def cut(self) -> None:
        """Make the box unreachable. It keeps running."""
        self.opens = False
        self._hang_up()

    def reopen(self) -> None:
        self.opens = True

    def _hang_up(self) -> None:
        guests, self._guests = self._guests, []
        for guest in guests:
            guest.kill()
            guest.wait()

    def remove(self) -> None:
        self.halt()
        if self._listener is not None:
            self._listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def files_with(self, text: bytes) -> list[str]:
        """Return the files written on the box that contain this text."""
        files = (path for path in self.upper.rglob("*") if path.is_file() and not path.is_symlink())
        return [str(path.relative_to(self.upper)) for path in files if text in path.read_bytes()]

    def _start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "boot.log").open("ab") as log:
            return subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    "unshare",
                    "-m",
                    "-p",
                    "-n",
                    "-u",
                    "-i",
                    "-f",
                    "--kill-child",
                    "bash",
                    "-c",
                    _BOOT,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    "PATH": _PATH,
                    "INNER": _PATH,
                    "FOLDER": str(self.folder),
                    "ROOT": str(self.folder / "root"),
                    "ROOTFS": str(self.rootfs),
                    "ID": str(self.id),
                    "KEY": self.key,
                    "API_PORT": str(API_PORT),
                    "HOST_PYTHON": sys.base_prefix,
                    "HOST_PACKAGES": sysconfig.get_paths()["purelib"],
                },
            )

    def _write_machine(self) -> None:
        """Write the box's own layer: its card, name and host key, and the address of Vast's API."""
        machine = self.folder / "machine"
        if machine.exists():
            return
        for name in (
            "upper",
            "work",
            "root",
            "machine/etc/ssh",
            "machine/usr/local/bin",
            "machine/opt/packages",
            f"machine{sys.base_prefix}",
            "machine/root/.config/wan-train",
        ):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (machine / "root").chmod(0o700)
        (machine / "etc/hosts").write_text(f"127.0.0.1 localhost C.{self.id}\n")
        (machine / "opt/onstart").write_text(self.onstart or "true\n")
        (machine / "opt/python").symlink_to(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
        (machine / "root/.config/wan-train/settings.toml").write_text(f'vast_url = "http://127.0.0.1:{API_PORT}"\n')
        # Show the rented disk size. This machine's own disk is often smaller.
        _program(machine / "usr/local/bin/df", f"echo overlay 1 1 {round(self.disk_gb * 1_000_000)} 1% /workspace")
        rows = "".join(f"{self.card}, 24564, 570.124.06\n" for _ in range(self.cards))
        _program(machine / "usr/local/bin/nvidia-smi", f"cat <<'END'\n{rows}END")
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", machine / "etc/ssh/ssh_host_ed25519_key"], check=True
        )

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                guest, _ = listener.accept()
            except OSError:
                return
            with guest:
                if self.opens and self.pid is not None:
                    self._guests = [each for each in self._guests if each.poll() is None]
                    self._guests.append(self._sshd(guest, self.pid))

    def _sshd(self, guest: socket.socket, pid: int) -> subprocess.Popen[bytes]:
        with (self.folder / "sshd.log").open("ab") as log:
            return subprocess.Popen(
                ["nsenter", "-t", str(pid), "-m", "-p", "-n", "-u", "-i", "-r", "-w", "/usr/sbin/sshd", "-i", "-e"],
                stdin=guest,
                stdout=guest,
                stderr=log,
                start_new_session=True,
                env={"PATH": _PATH},
            )


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
