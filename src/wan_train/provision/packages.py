"""What the box's system must have: git, aria2, and the libraries that the trainer's wheels expect to find there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from wan_train.base.errors import NotReadyError
from wan_train.provision.apt import Apt
from wan_train.provision.steps import Finding, State, Step
from wan_train.provision.work import Work

PACKAGES = "packages"
"""The step's id: steps that need git, or gain by aria2, come after it."""

_LOAD_TIMEOUT_SECONDS = 60.0
# The loader's own answer, LD_LIBRARY_PATH included; in a child, since a graphics driver stays where it was loaded.
_LOAD = """
import ctypes, sys
for name in sys.argv[1:]:
    try:
        ctypes.CDLL(name)
    except OSError:
        print(name)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """`names` are apt packages; `without` says what happens where they are missing."""

    what: str
    names: tuple[str, ...]
    without: str
    program: str | None = None
    library: str | None = None
    required: bool = False


FOR_MODELS = (
    Need(
        what="aria2",
        names=("aria2",),
        without="the models come over one connection instead of eight, which is slower",
        program="aria2c",
    ),
)
_CV2 = "the trainer's OpenCV will not load"
# opencv-python 4.10, which the trainer pins, brings Qt but not what Qt stands on; bare CUDA images have neither.
FOR_TRAINER = (
    Need(
        what="git",
        # git only recommends the certificates, and can fetch nothing by https without them.
        names=("git", "ca-certificates"),
        without="the trainer cannot be fetched",
        program="git",
        required=True,
    ),
    Need(what="libGL", names=("libgl1",), without=_CV2, library="libGL.so.1"),
    Need(what="GLib", names=("libglib2.0-0",), without=_CV2, library="libgthread-2.0.so.0"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """`apt` is None where we may not install; then what is missing is told with its command."""

    apt: Apt | None
    needs: tuple[Need, ...]

    def step(self) -> Step:
        return Step(id=PACKAGES, title="System packages", check=self.check, apply=self.apply if self.apt else None)

    def check(self) -> Finding:
        missing = self._missing()
        if not missing:
            return Finding(state=State.READY, detail=f"installed: {_listed(self.needs)}")
        detail = (
            f"missing: {_listed(missing)}; without, {' and '.join(dict.fromkeys(need.without for need in missing))}"
        )
        hint = f"As root: `apt-get update && apt-get install -y {' '.join(_names(missing))}`."
        if not any(need.required for need in missing):
            return Finding(state=State.WARNING, detail=detail, hint=hint, mendable=self.apt is not None)
        if self.apt is None:
            return Finding(state=State.BLOCKED, detail=detail, hint=hint)
        return Finding(state=State.MISSING, detail=detail)

    def apply(self, work: Work) -> None:
        apt, missing = self.apt, self._missing()
        if apt is None or not missing:
            return
        work.say(f"apt installs {' '.join(_names(missing))}")
        apt.update(work)
        if apt.install(_names(missing), work) is None:
            return
        failures = {need.what: apt.install(need.names, work) for need in missing}  # one that fails stops all of a call
        for need in self._missing():
            if need.required:
                raise NotReadyError(
                    f"apt-get install {need.what} failed:{failures.get(need.what) or ' it said nothing'}",
                    hint=f"Look at the network and at apt's sources. The whole output is in {work.log}.",
                )

    def _missing(self) -> list[Need]:
        absent = _absent([need.library for need in self.needs if need.library])
        return [
            need
            for need in self.needs
            if (need.program and not shutil.which(need.program)) or (need.library and need.library in absent)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactPackages:
    """The engine's `[system]` packages, `name=version`: wanted only where exactly that version is offered."""

    apt: Apt | None
    exact: tuple[str, ...]

    def step(self) -> Step:
        return Step(
            id="system",
            title=f"System's {self.exact[0].partition('=')[0]}",
            check=self.check,
            apply=self.apply if self.apt else None,
            after=(PACKAGES,),  # apt works for one at a time
        )

    def check(self) -> Finding:
        own = "torch uses the cuDNN that it brings"
        if self.apt is None:
            return Finding(state=State.READY, detail=f"left out, since apt cannot be used here; {own}")
        wanted = dict(word.split("=", 1) for word in self.exact)
        if all(self.apt.installed(name) == version for name, version in wanted.items()):
            return Finding(state=State.READY, detail=f"{' '.join(self.exact)} installed")
        if not self.apt.has_lists():
            unknown = "apt's lists are not fetched yet, so its offer is unknown"
            return Finding(state=State.WARNING, detail=unknown, mendable=True)
        if all(version in self.apt.offers(name) for name, version in wanted.items()):
            offered = f"{' '.join(self.exact)} offered and not installed; {own}"
            return Finding(state=State.WARNING, detail=offered, mendable=True)
        return Finding(state=State.READY, detail=f"left out, since this system offers another version or none; {own}")

    def apply(self, work: Work) -> None:
        if self.apt is None:
            return
        if not self.apt.has_lists():
            self.apt.update(work)
        if self.check().state is State.WARNING and self.apt.has_lists():
            work.say(f"apt installs {' '.join(self.exact)}")
            self.apt.install(self.exact, work, words=("--allow-change-held-packages",))


def _absent(libraries: Sequence[str]) -> frozenset[str]:
    """Those that the loader does not find."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LOAD, *libraries],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LOAD_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(done.stdout.split())


def _listed(needs: Sequence[Need]) -> str:
    return ", ".join(need.what for need in needs)


def _names(needs: Sequence[Need]) -> list[str]:
    return [name for need in needs for name in need.names]
