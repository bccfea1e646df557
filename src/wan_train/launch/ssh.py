"""ssh and rsync to one box, as argument lists. The user's own ssh configuration is not used."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wan_train.base import process
from wan_train.base.process import Outcome
from wan_train.base.text import one_line
from wan_train.launch.model import Address

PARTIAL = ".wan-train-partial"
"""Where rsync keeps a partly copied file after a broken copy."""
_STILL_SECONDS = 180
"""A copy that receives nothing for this long is broken."""
_LOST = 255
"""ssh's own exit code: no connection, or it broke."""
_RSYNC_LOST = frozenset({10, 12, 30, 35, 255})
"""rsync's exit codes for a missing or broken connection (rsync(1))."""
_HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:_-]*")
_USER = re.compile(r"[a-z_][a-z0-9_-]*")


class RemoteError(Exception):
    """A command on a box failed. The message may be shown and recorded."""


class UnreachableError(RemoteError):
    """The box did not answer, or the connection broke. Whether the command ran is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssh:
    """A connection to one box. `known_hosts` is the launch's: the first host key is remembered, others are refused."""

    address: Address
    known_hosts: Path
    connect_seconds: int = 15

    def options(self) -> list[str]:
        """Options of ssh, without the address."""
        return [
            "-F",
            "none",
            "-i",
            str(self.address.key),
            "-p",
            str(self.address.port),
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "StrictHostKeyChecking=accept-new",
            "-o",
            f"HostKeyAlias={self.address.name}",
            "-o",
            f"UserKnownHostsFile={shlex.quote(str(self.known_hosts))}",
            "-o",
            f"ConnectTimeout={self.connect_seconds}",
            "-o",
            "ServerAliveInterval=15",
            "-o",
            "ServerAliveCountMax=4",
            "-o",
            "LogLevel=ERROR",
            *(("-o", f"ProxyCommand={self.address.proxy}") if self.address.proxy else ()),
        ]

    @property
    def target(self) -> str:
        """`user@host`; raises RemoteError for text that ssh could read as an option."""
        user, host = self.address.user, self.address.host
        if not _USER.fullmatch(user) or not _HOST.fullmatch(host):
            raise RemoteError(f"{one_line(user)}@{one_line(host)} is an invalid address of a box")
        return f"{user}@{host}"

    def run(self, script: str, *, seconds: float, stdin: str | None = None) -> Outcome:
        """Run a shell script on the box. Raises UnreachableError; the script's own exit code is in the outcome."""
        argv = ["ssh", *self.options(), self.target, f"sh -c {shlex.quote(script)}"]
        outcome = process.run(argv, seconds=seconds, stdin=stdin)
        if outcome.code is None or outcome.code == _LOST:
            raise UnreachableError(_why(outcome, "the box does not answer"))
        return outcome

    def output(self, script: str, *, seconds: float, stdin: str | None = None) -> str:
        """Return what a script printed. Raises RemoteError if it failed."""
        outcome = self.run(script, seconds=seconds, stdin=stdin)
        if not outcome.succeeded:
            raise RemoteError(_why(outcome, f"a command on the box ended with {outcome.code}"))
        return outcome.output

    def send(self, folder: Path, there: PurePosixPath, *, names: Sequence[str], seconds: float) -> None:
        """Copy these files of a folder to one on the box, continuing a broken copy. Raises RemoteError."""
        # A picture may be a link to another folder, which the box does not have.
        self._rsync([f"{folder}/", f"{self.target}:{there}/"], ["--copy-links"], seconds, names=names)

    def fetch(
        self,
        there: PurePosixPath,
        folder: Path,
        *,
        seconds: float,
        names: Sequence[str] | None = None,
        only: Sequence[str] = (),
        excluded: Sequence[str] = (),
    ) -> None:
        """Copy a folder of the box into one here; nothing here is removed.

        `names`, or patterns in `only`, limit what is copied. Patterns in `excluded` are left out.

        Each file is whole here or unchanged. A link that leads out of the folder is left out: a box is not trusted.
        Raises RemoteError, and OSError when the disk here is full.
        """
        links = ["--links", "--safe-links"]
        try:
            patterns = [*(f"--exclude={each}" for each in excluded), *(f"--include={each}" for each in only)]
            patterns += ["--exclude=*"] if only else []
            self._rsync([f"{self.target}:{there}/", f"{folder}/"], [*links, *patterns], seconds, names=names)
        except RemoteError as error:
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            raise

    def _rsync(
        self,
        places: Sequence[str],
        options: Sequence[str],
        seconds: float,
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        """Run rsync. Names go through a pipe, so no shell on either side reads them."""
        given = ["--from0", "--files-from=-"] if names is not None else []
        argv = [
            "rsync",
            "--recursive",
            *options,
            "--times",
            f"--partial-dir={PARTIAL}",
            f"--timeout={_STILL_SECONDS}",
            *given,
            "--rsh",
            shlex.join(["ssh", *self.options()]),
            "--",
            *places,
        ]
        outcome = process.run(argv, seconds=seconds, stdin="".join(f"{name}\0" for name in names or ()))
        if outcome.code is None or outcome.code in _RSYNC_LOST:
            raise UnreachableError(_why(outcome, "the copy broke"))
        if not outcome.succeeded:
            raise RemoteError(_why(outcome, f"rsync ended with {outcome.code}"))


def _why(outcome: Outcome, otherwise: str) -> str:
    told = one_line(outcome.tail(2).replace("\n", "; "))
    return told or otherwise
