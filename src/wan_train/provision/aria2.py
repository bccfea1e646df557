"""aria2c: several connections at once. Addresses, tokens and proxies reach it on stdin, never by its argv."""

from __future__ import annotations

import os
import shutil
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from wan_train.base.errors import NotReadyError
from wan_train.provision.hub import Address, Hub, RemoteFile
from wan_train.provision.part import Part
from wan_train.provision.transport import UnexplainedError, disk_error
from wan_train.provision.work import Work

CONNECTIONS = 8
_DEBIAN_ROOTS = Path("/etc/ssl/certs/ca-certificates.crt")
_SPLIT_BYTES = "1M"
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_DISK = {9: "no room", 15: "it cannot be opened", 16: "it cannot be created", 17: "input or output failed"}
"""Exit codes of aria2c, https://aria2.github.io/manual/en/html/aria2c.html#exit-status"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aria2:
    """`program` is aria2c; `timeout` how many seconds one connection may be silent, `tries` how often it is renewed."""

    program: Path
    hub: Hub
    timeout: float
    tries: int = 5
    name: str = "aria2c"

    def fetch(self, remote: RemoteFile, part: Part, work: Work, alive: Callable[[], bool]) -> None:
        address = self.hub.address(remote)
        proxy = proxy_for(address.url)
        if proxy and not proxy.startswith("http://"):
            raise UnexplainedError("aria2c knows only proxies whose address begins with http://")
        part.for_ranges()
        code, _ = work.run(
            [self.program, *self._options(part)],
            what=f"fetching {Path(remote.file).name}",
            stdin=_input(address, proxy, part),
            env=dict.fromkeys(_PROXIES, ""),  # it reads these in small letters only and knows no `*`: told per address
            alive=alive,
            check=False,
        )
        if code == 0:
            return
        if code in _DISK:
            raise disk_error(part, _DISK[code])
        # It neither says which status came nor how long to wait.
        raise self.hub.look(remote, address) or UnexplainedError(
            f"aria2c failed with exit code {code}, though the address answers now"
        )

    def _options(self, part: Part) -> list[str]:
        seconds = max(1, round(self.timeout))
        certificates = _certificates()
        return [
            "--no-conf",
            "--quiet",  # its messages quote addresses
            "--input-file=-",
            f"--dir={part.folder}",
            "--continue=true",
            "--allow-overwrite=true",
            "--auto-file-renaming=false",
            "--file-allocation=none",
            "--disk-cache=0",  # what it counts as there is written
            "--auto-save-interval=1",
            f"--stop-with-process={os.getpid()}",
            f"--split={CONNECTIONS}",
            f"--max-connection-per-server={CONNECTIONS}",
            f"--min-split-size={_SPLIT_BYTES}",
            f"--timeout={seconds}",
            f"--connect-timeout={seconds}",
            f"--max-tries={self.tries}",
            "--retry-wait=1",
            "--max-file-not-found=0",
            "--no-netrc=true",
            *([f"--ca-certificate={certificates}"] if certificates else []),
        ]


def find(hub: Hub, timeout: float) -> Aria2 | None:
    """aria2c where it is on the path."""
    program = shutil.which("aria2c")
    return Aria2(program=Path(program), hub=hub, timeout=timeout) if program else None


def _certificates() -> str | None:
    """The roots that the hub's client trusts too, `SSL_CERT_FILE` first; an aria2c built elsewhere may know none."""
    found = ssl.get_default_verify_paths().cafile
    return found or (str(_DEBIAN_ROOTS) if _DEBIAN_ROOTS.is_file() else None)


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an address, by the rules that the hub's client follows."""
    parts = urlsplit(url)
    proxies = getproxies()
    if proxy_bypass(parts.hostname or ""):
        return None
    found = proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{found}" if found and "://" not in found else found


def _input(address: Address, proxy: str | None, part: Part) -> str:
    lines = [address.url, f"  out={part.path.name}", *(f"  header={k}: {v}" for k, v in address.headers.items())]
    if proxy:
        lines.append(f"  all-proxy={proxy}")
    if any(not line.isprintable() for line in lines) or " " in address.url:
        raise NotReadyError("the hub gave an address that is none", hint="Look at HF_ENDPOINT.")
    return "\n".join(lines) + "\n"
