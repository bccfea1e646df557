"""The box's package manager, where there is one that we may use: Debian's and Ubuntu's apt, as root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from wan_train.provision.work import Work

_QUIET = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l"}
# The lock: an image's own unattended upgrade ends in minutes, and apt would give up at once.
_OPTIONS = ("-y", "-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3", "-o", "Dpkg::Options::=--force-confold")
_LOOK_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Apt:
    """apt as a step uses it. Installing may be killed at any moment and done again."""

    def update(self, work: Work) -> None:
        """Fetch the lists. One source that fails leaves the others good, so what counts is what installs then."""
        work.run(["apt-get", *_OPTIONS, "update"], what="apt-get update", env=_QUIET, check=False)

    def install(self, packages: Sequence[str], work: Work, *, words: Sequence[str] = ()) -> str | None:
        """What went wrong in apt's words, None when it worked. `words` are further options."""
        # Repairs what a kill in the middle of an earlier installation left, and is quick otherwise.
        work.run(["dpkg", "--configure", "-a", "--force-confold"], what="dpkg --configure", env=_QUIET, check=False)
        argv = ["apt-get", *_OPTIONS, "install", "--no-install-recommends", *words, *packages]
        code, tail = work.run(argv, what="apt-get install", env=_QUIET, check=False)
        return tail if code != 0 else None

    def offers(self, package: str) -> frozenset[str]:
        """The versions that the lists on this box have of a package."""
        rows = _say("apt-cache", "madison", package).splitlines()
        return frozenset(words[1].strip() for row in rows if len(words := row.split("|")) > 1)

    def has_lists(self) -> bool:
        """Images are often shipped without lists; every distribution's lists have apt itself."""
        return bool(self.offers("apt"))

    def installed(self, package: str) -> str | None:
        """The installed version, None when there is none."""
        status, _, version = (
            _say("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package).strip().partition(" ")
        )
        return version if status == "installed" else None


def find_apt() -> Apt | None:
    """None without root's rights, and on a system that has no apt."""
    usable = os.geteuid() == 0 and all(shutil.which(name) for name in ("apt-get", "apt-cache", "dpkg", "dpkg-query"))
    return Apt() if usable else None


def _say(*argv: str) -> str:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LOOK_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
