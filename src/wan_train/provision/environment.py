"""The trainer's own Python environment: made by uv, and linked as `venv` only when it is complete and tested.

`<checkout>/venv` is a link to a folder `venv-XXXX`, whose record is written last. An environment made by hand is
accepted if it imports torch and has what the trainer requires. It is never changed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import uv

from wan_train.base import codec, process
from wan_train.base.files import write_whole
from wan_train.provision.engine_file import EngineFile, EnvironmentRecord
from wan_train.provision.packages import index_variables
from wan_train.provision.steps import Finding, State, Step, blocked, ready, warning
from wan_train.provision.work import Work

NEEDED_BYTES = 10_000_000_000
"""Disk space for torch, xformers and the rest. Measured with torch 2.7.0 for CUDA 12.6: 3.3 GB of downloads, which uv
unpacks on arrival, and 5.9 GB on the disk. CUDA 12.8 needs somewhat more."""

_RECORD = "wan-train.json"
_OURS = f"venv-{'[0-9a-f]' * 8}"
"""Folders that provision made; any other name is the user's."""
_CACHE = ".wan-train-uv"

_LOOK_SECONDS = 180.0
_HINT = "Check the network, the proxies and the disk; then run `wan-train provision` again."
_CHOSEN_HINT = (
    "You chose it, so it is not changed. For an environment that provision makes: `unset WAN_TRAIN_MUSUBI_PYTHON`, "
    "or remove `musubi_python` from the settings file."
)

# The result is printed last, so that output of sitecustomize or of imports does no harm.
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

# Imports that need no GPU. OpenCV depends on system libraries, so it is what fails on bare images.
_PROVE = """
import importlib.util, sys
import musubi_tuner, torch
if importlib.util.find_spec("cv2"):
    import cv2
found, wanted = str(torch.__version__), sys.argv[1]
if wanted and found.partition("+")[0] != wanted.partition("+")[0]:
    sys.exit(f"torch is {found}, not {wanted}")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The environment of the checkout at `root`; `chosen` is a Python that the user named instead.

    `pause_seconds` is the wait before the one retry of an installation.
    """

    root: Path
    engine: EngineFile
    chosen: Path | None = None
    pause_seconds: float = 10.0

    @property
    def python(self) -> Path:
        if self.chosen is not None:
            return self.chosen
        return next(
            (python for name in ("venv", ".venv") if os.access(python := self.root / name / "bin/python", os.X_OK)),
            self.root / "venv/bin/python",
        )

    def step(self) -> Step:
        return Step("environment", "Trainer environment", self.check, apply=self.apply, needs=("checkout",))

    def check(self) -> Finding:
        if not os.access(self.python, os.X_OK):
            if self.chosen is not None:
                return self._unusable(f"{self.chosen} does not exist or cannot be run")
            return self._missing(f"no environment at {self.root / 'venv'}")
        folder = self.python.parent.parent
        record = _record(folder)
        if record == self.engine.record():
            return self._whole(folder)
        if record is not None:
            return self._unusable(f"{folder} was made for another engine")
        missing, torch = self._look()
        if not missing:
            return ready(f"{self.python} has torch {torch} and what the trainer needs")
        reason = f"{self.python} lacks {', '.join(missing)}"
        return self._missing(reason) if self.chosen is None else blocked(reason, _CHOSEN_HINT)

    def _unusable(self, reason: str) -> Finding:
        """MISSING, or BLOCKED for a Python that the user named: one made in the checkout would not be used."""
        if self.chosen in {None, self.root / "venv/bin/python"}:
            return self._missing(reason)
        return blocked(reason, _CHOSEN_HINT)

    def _whole(self, folder: Path) -> Finding:
        """READY, or WARNING if a provision killed at the very end left uv's cache of several gigabytes."""
        if (self.root / _CACHE).is_dir():
            return warning(
                f"{folder} is complete; uv's cache is left in {self.root / _CACHE}",
                "`wan-train provision` removes it.",
                fixable=True,
            )
        return ready(f"{folder} is complete")

    def _missing(self, reason: str) -> Finding:
        """MISSING, or BLOCKED if uv has no Python and may not download one."""
        if os.environ.get("UV_PYTHON_DOWNLOADS", "").lower() in {"never", "manual"} and not self._has_python():
            return blocked(
                f"{reason}, and there is no Python {self.engine.python_range} to make one with",
                "Install one, or let uv fetch it: unset UV_PYTHON_DOWNLOADS.",
            )
        return Finding(State.MISSING, reason, size=NEEDED_BYTES)

    def _look(self) -> tuple[list[str], str]:
        """What an environment without our record lacks, and its torch."""
        wanted = ("musubi-tuner", *self._requirements(), *self.engine.extra)
        names = [re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0] for requirement in wanted]
        try:
            done = process.run([self.python, "-c", _LOOK, *names], seconds=_LOOK_SECONDS)
            answer = json.loads((done.output.strip().splitlines() or [""])[-1])
            return list(answer["missing"]), str(answer["torch"])
        except (ValueError, KeyError, TypeError):
            return ["a working Python"], "unknown"

    def _requirements(self) -> list[str]:
        try:
            data = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))
            return [str(requirement) for requirement in data["project"]["dependencies"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def apply(self, work: Work) -> None:
        if os.access(self.python, os.X_OK) and _record(self.python.parent.parent) == self.engine.record():
            work.say(f"removing {self.root / _CACHE}")
            shutil.rmtree(self.root / _CACHE)
            return
        whole = None
        for folder in filter(Path.is_dir, self.root.glob(_OURS)):
            record = _record(folder)
            if record == self.engine.record():
                whole = folder
            elif record is None and (self.root / "venv").resolve() != folder.resolve():
                shutil.rmtree(folder)  # half-made; other engines' stay: a training may use one
        if whole is None or whole.resolve() == (self.root / "venv").resolve():  # in place, but broken
            whole = self.root / f"venv-{secrets.token_hex(4)}"
            self._make(whole, work)
        self._put_in_place(whole, work)
        shutil.rmtree(self.root / _CACHE, ignore_errors=True)

    def _make(self, folder: Path, work: Work) -> None:
        engine = self.engine
        if not self._has_python():
            work.say(f"no Python {engine.python_range} on this box; uv downloads one")
        self._uv(["venv", "--no-project", "--python", self._python_range(), folder], "making the environment", work)
        held = folder / "held.txt"
        held.write_text("".join(f"{package}\n" for package in engine.first), encoding="utf-8")
        install: list[str | Path] = [
            "pip",
            "install",
            "--python",
            folder / "bin/python",
            "--no-sources",
            *engine.arguments,
        ]
        if engine.first:
            index: list[str | Path] = []
            only: dict[str, str] = {}
            if engine.first_index:
                # uv prefers the user's own indexes to the default one; they would bring torch for another CUDA.
                index, only = ["--default-index", engine.first_index], {"UV_INDEX": "", "UV_EXTRA_INDEX_URL": ""}
            self._uv([*install, *index, *engine.first], "installing torch", work, env=only)
        hold: list[str | Path] = ["--constraint", held]
        self._uv([*install, *hold, "--editable", self.root], "installing what the trainer needs", work)
        if engine.extra:
            self._uv([*install, *hold, *engine.extra], f"installing {', '.join(engine.extra)}", work)
        self._prove(folder, work)
        write_whole(folder / _RECORD, codec.to_json(engine.record()), mode=0o644)

    def _uv(self, words: Sequence[str | Path], what: str, work: Work, *, env: Mapping[str, str] | None = None) -> None:
        work.say(what)
        argv = [uv.find_uv_bin(), *words]
        environment = {**_uv_variables(self.root / _CACHE, os.environ), **(env or {})}
        hint = f"{_HINT} The log is {work.log}."

        def run() -> None:
            # Not in the checkout: its uv settings are for the trainer's developers.
            work.run(argv, what=what, cwd=self.root.parent, env=environment, hint=hint)

        work.run_twice(self.pause_seconds, run)

    def _prove(self, folder: Path, work: Work) -> None:
        torch = next((word.partition("==")[2] for word in self.engine.first if word.startswith("torch==")), "")
        work.run(
            [folder / "bin/python", "-c", _PROVE, torch],
            what="importing torch and the trainer in the new environment",
            cwd=self.root.parent,
            hint="A system library may be missing: as root, `apt-get install -y libgl1 libglib2.0-0`. "
            f"The log is {work.log}.",
        )

    def stays(self) -> bool:
        """Whether provision keeps it: ours for this engine, chosen by the user, or made by hand and complete."""
        if not os.access(self.python, os.X_OK):
            return False
        record = _record(self.python.parent.parent)
        if record is not None:
            return record == self.engine.record()
        return self.chosen is not None or not self._look()[0]

    def is_ours(self) -> bool:
        """Whether provision made this environment, for any engine."""
        return self.chosen is None and _record(self.python.parent.parent) is not None

    def installed(self) -> dict[str, str]:
        """Versions by normalized name, both read from the names of the packages' metadata folders."""
        found = {}
        for folder in (self.python.parent.parent / "lib").glob("python3*/site-packages/*.dist-info"):
            name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
            found[package_name(name)] = version
        return found

    def add(self, packages: Sequence[str], work: Work) -> None:
        """Install further packages; installed packages keep their versions, or this fails."""
        folder = self.python.parent.parent
        names = {package_name(package) for package in packages}
        held = folder / "held-all.txt"
        held.write_text(
            "".join(f"{name}=={version}\n" for name, version in self.installed().items() if name not in names),
            encoding="utf-8",
        )
        words: list[str | Path] = ["pip", "install", "--python", folder / "bin/python", "--no-sources"]
        words += [*self.engine.arguments, "--constraint", held, "--", *packages]
        try:
            self._uv(words, f"installing {', '.join(packages)}", work)
        finally:
            shutil.rmtree(self.root / _CACHE, ignore_errors=True)

    def _python_range(self) -> str:
        return f">=3.{self.engine.python_minimum},<3.{self.engine.python_maximum + 1}"

    def _has_python(self) -> bool:
        argv = [uv.find_uv_bin(), "python", "find", "--no-project", "--system", "--no-python-downloads"]
        return process.run([*argv, self._python_range()], seconds=_LOOK_SECONDS).succeeded

    def _put_in_place(self, made: Path, work: Work) -> None:
        place = self.root / "venv"
        if place.is_dir() and not place.is_symlink():
            aside = self.root / f"venv.broken-{secrets.token_hex(4)}"
            place.rename(aside)
            work.remark(f"the incomplete {place} is now {aside}; delete it when you do not need it")
        link = self.root / f".venv-link-{secrets.token_hex(4)}"
        link.symlink_to(made.name)
        link.replace(place)


def package_name(requirement: str) -> str:
    """The normalized name of `NAME` or `NAME==VERSION`, as indexes compare it."""
    return re.sub(r"[-_.]+", "-", requirement.partition("==")[0]).lower()


def _record(folder: Path) -> EnvironmentRecord | None:
    return codec.read(folder / _RECORD, EnvironmentRecord)


def _uv_variables(cache: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for uv. An index address may contain a password, so none is in an argv.

    Vast's images set UV_NO_CACHE and UV_LINK_MODE=copy, which would download everything again after a kill and write it
    twice. Our cache is in the checkout, so files are hard-linked from it and take no extra space. It is removed once
    the environment is complete. A cache that the user chose is used as it is.
    """
    variables = {} if environ.get("UV_HTTP_TIMEOUT") else {"UV_HTTP_TIMEOUT": "120"}
    no_cache = environ.get("UV_NO_CACHE", "").lower() not in {"", "0", "false", "no", "off"}
    if no_cache or not environ.get("UV_CACHE_DIR"):
        variables |= {"UV_CACHE_DIR": str(cache), "UV_NO_CACHE": "false", "UV_LINK_MODE": "hardlink"}
    return variables | index_variables(environ)
