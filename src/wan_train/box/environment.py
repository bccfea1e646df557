"""The trainer's own Python environment: made beside, named `venv` only when it is whole.

`<checkout>/venv` is a link to a folder `venv-XXXX` whose record is written last. An environment made by hand is
recognised when it imports torch and holds what the trainer asks for; it is never changed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.box.engine_file import EngineFile
from wan_train.box.steps import Finding, State, Step
from wan_train.box.work import Work
from wan_train.errors import NotReadyError
from wan_train.files import write_whole

NEEDED_BYTES = 15_000_000_000
"""torch for CUDA 12.8, xformers and the rest, the downloaded archives included; an estimate with room."""

_RECORD = "wan-train.json"
_OURS = f"venv-{'[0-9a-f]' * 8}"
"""Folders that provision made; any other name is the user's."""

_LOOK_TIMEOUT_SECONDS = 180.0
_PIP_HINT = "Look at the network, at proxies and at the disk; then run `wan-train provision` again."

# Printed last, so that noise of sitecustomize or of imports does no harm.
_LOOK = """
import importlib.metadata as metadata, json, sys
missing = []
for name in sys.argv[1:]:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        missing.append(name)
try:
    import torch
    version = torch.__version__
except ImportError as error:
    missing.append(f"torch ({error})")
    version = None
print(json.dumps({"missing": missing, "torch": str(version)}))
"""

_PROBE = "import sys, ensurepip, venv; print(sys.version_info[0], sys.version_info[1])"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The environment of the checkout at `root`; `chosen` is a Python that the user named instead."""

    root: Path
    engine: EngineFile
    chosen: Path | None = None

    @property
    def python(self) -> Path:
        if self.chosen is not None:
            return self.chosen
        return next(
            (python for name in ("venv", ".venv") if os.access(python := self.root / name / "bin/python", os.X_OK)),
            self.root / "venv/bin/python",
        )

    def step(self) -> Step:
        return Step(
            id="environment",
            title="Environment of the trainer",
            check=self.check,
            apply=self.apply,
            needs=("checkout",),
        )

    def check(self) -> Finding:
        if os.access(self.python, os.X_OK):
            if self._recorded(self.python.parent.parent):
                return Finding(state=State.READY, detail=f"{self.python.parent.parent} is whole")
            missing, torch = self._look()
            if not missing:
                return Finding(state=State.READY, detail=f"{self.python} has torch {torch} and what the trainer needs")
            reason = f"{self.python} lacks {', '.join(missing)}"
            if self.chosen is not None:
                return Finding(state=State.BLOCKED, detail=reason, hint="It was named by you and is not touched.")
        else:
            reason = f"no environment at {self.root / 'venv'}"
        if shutil.which("uv") is None and self._base_python() is None:
            return Finding(
                state=State.BLOCKED,
                detail=f"{reason}, and there is neither uv nor Python {self.engine.python_range} with venv to make one",
                hint="Install uv (`pip install uv`), or `apt-get install -y python3-venv`.",
            )
        return Finding(state=State.MISSING, detail=reason, size=NEEDED_BYTES)

    def _recorded(self, environment: Path) -> bool:
        try:
            record = json.loads((environment / _RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(record == self.engine.record())

    def _look(self) -> tuple[list[str], str]:
        """What an environment without our record lacks, and its torch."""
        names = [re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0] for requirement in self._requirements()]
        extra = [re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0] for requirement in self.engine.extra]
        try:
            done = subprocess.run(
                [str(self.python), "-c", _LOOK, *names, *extra],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_LOOK_TIMEOUT_SECONDS,
                check=False,
            )
            answer = json.loads((done.stdout.strip().splitlines() or [""])[-1])
            return list(answer["missing"]), str(answer["torch"])
        except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError):
            return ["a Python that works"], "unknown"

    def _requirements(self) -> list[str]:
        try:
            data = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))
            return [str(requirement) for requirement in data["project"]["dependencies"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def apply(self, work: Work) -> None:
        for left in self.root.glob(_OURS):
            if left.is_dir() and (self.root / "venv").resolve() != left.resolve() and not self._recorded(left):
                shutil.rmtree(left)
        made = next((found for found in self.root.glob(_OURS) if self._recorded(found)), None)
        if made is None:
            made = self.root / f"venv-{secrets.token_hex(4)}"
            self._make(made, work)
        self._put_in_place(made, work)

    def _make(self, folder: Path, work: Work) -> None:
        engine = self.engine
        uv = shutil.which("uv")
        if uv is not None:
            wanted = f">=3.{engine.python_minimum},<3.{engine.python_maximum + 1}"
            work.run([uv, "venv", "--python", wanted, folder], what="making the environment", hint=_PIP_HINT)
            install = [uv, "pip", "install", "--python", str(folder / "bin/python"), "--no-sources"]
        else:
            base = self._base_python()
            if base is None:
                raise NotReadyError(f"there is no Python {engine.python_range} on this box")
            work.run([base, "-m", "venv", folder], what="making the environment")
            install = [str(folder / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check"]
        held = folder / "held.txt"
        held.write_text("".join(f"{package}\n" for package in engine.first), encoding="utf-8")
        install += engine.arguments
        index = ["--index-url", engine.first_index] if engine.first_index else []
        if engine.first:
            self._install(install, [*index, *engine.first], "installing torch", work)
        hold = ["--constraint", str(held)]
        self._install(install, [*hold, "-e", str(self.root)], "installing what the trainer needs", work)
        if engine.extra:
            self._install(install, [*hold, *engine.extra], f"installing {', '.join(engine.extra)}", work)
        write_whole(folder / _RECORD, json.dumps(engine.record()), mode=0o644)

    def _install(self, install: Sequence[str], words: Sequence[str], what: str, work: Work) -> None:
        work.say(what)
        work.run([*install, *words], what=what, cwd=self.root, hint=f"{_PIP_HINT} The log is {work.log}.")

    def _put_in_place(self, made: Path, work: Work) -> None:
        place = self.root / "venv"
        if place.is_dir() and not place.is_symlink():
            aside = self.root / f"venv.broken-{secrets.token_hex(4)}"
            place.rename(aside)
            work.remark(f"the incomplete {place} is now {aside}; delete it when you do not need it")
        link = self.root / f".venv-link-{secrets.token_hex(4)}"
        link.symlink_to(made.name)
        link.replace(place)

    def _base_python(self) -> str | None:
        """A Python of the wanted range that can make environments, the box's own `python3` before others."""
        versions = range(self.engine.python_maximum, self.engine.python_minimum - 1, -1)
        for name in ("python3", *(f"python3.{minor}" for minor in versions), getattr(sys, "_base_executable", "")):
            found = shutil.which(name) if name else None
            if found is None:
                continue
            try:
                done = subprocess.run(
                    [found, "-c", _PROBE],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=30,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired):
                continue
            words = done.stdout.split()
            if done.returncode == 0 and words[:1] == ["3"] and int(words[1]) in versions:
                return found
        return None
