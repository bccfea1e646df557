"""Packages that the user wants beside the trainer: installed into its environment, and again when that is made anew."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_train.base.errors import BadInputError
from wan_train.base.files import write_whole
from wan_train.base.text import one_line
from wan_train.provision.environment import Environment, package_name
from wan_train.provision.steps import Finding, State, Step
from wan_train.provision.work import Work

NAME = "packages.json"
_REQUIREMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:==[A-Za-z0-9][A-Za-z0-9.+!_]*)?")
_ROOM = 200_000_000
"""Of a package without libraries of its own for CUDA; a guess."""


def check_names(words: Iterable[str]) -> tuple[str, ...]:
    """The words as requirements; raises BadInputError for options, addresses, paths and the like."""
    asked = tuple(words)
    wrong = [one_line(word) for word in asked if not _REQUIREMENT.fullmatch(word)]
    if wrong:
        raise BadInputError(
            f"--with takes names of packages, not {', '.join(map(repr, wrong))}",
            hint="A name, or a name with its exact version: wan-train provision --with prodigyopt==1.1.2",
        )
    return asked


def recorded(folder: Path) -> tuple[str, ...]:
    """What earlier provisions were asked for; nothing when there is no record that can be read."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return tuple(each for each in found if isinstance(each, str) and _REQUIREMENT.fullmatch(each))
    except (OSError, ValueError, TypeError):
        return ()


def merged(before: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    """One requirement of each package, the one that was asked for last."""
    return tuple({package_name(each): each for each in (*before, *asked)}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """The step. `packages` are requirements, each `NAME` or `NAME==VERSION`; `folder` keeps them."""

    environment: Environment
    folder: Path
    packages: tuple[str, ...]

    def step(self) -> Step:
        return Step(
            id="added", title="Added packages", check=self.check, apply=self.apply, needs=("checkout", "environment")
        )

    def check(self) -> Finding:
        is_coming = not self.environment.stays()
        # One that is made anew has none of them, whatever the old one has.
        lacking = list(self.packages) if is_coming else self._lacking()
        if lacking and not is_coming and not self.environment.is_ours():
            return Finding(
                state=State.BLOCKED,
                detail=f"{self.environment.python} lacks {', '.join(lacking)}, and this environment is your own",
                hint=f"Install them yourself: {self.environment.python} -m pip install {' '.join(lacking)}",
            )
        if lacking:
            return Finding(state=State.MISSING, detail=f"missing: {', '.join(lacking)}", size=_ROOM)
        if set(self.packages) != set(recorded(self.folder)):
            return Finding(state=State.UNVERIFIED, detail=f"{', '.join(self.packages)}: installed, not recorded yet")
        return Finding(state=State.READY, detail=", ".join(self.packages))

    def apply(self, work: Work) -> None:
        lacking = self._lacking()
        if lacking:
            self.environment.add(lacking, work)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / NAME, json.dumps(list(self.packages)), mode=0o644)

    def _lacking(self) -> list[str]:
        installed = self.environment.installed()
        return [each for each in self.packages if not _is_there(each, installed)]


def _is_there(requirement: str, installed: dict[str, str]) -> bool:
    version = installed.get(package_name(requirement))
    wanted = requirement.partition("==")[2]
    return version is not None and wanted in {"", version}
