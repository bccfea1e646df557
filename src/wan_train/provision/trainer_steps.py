"""The steps after the trainer's environment: more packages, the scripts' options, accelerate's file, the tokenizer."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from wan_train.base import codec
from wan_train.base.errors import BadInputError, NotReadyError
from wan_train.base.files import write_whole
from wan_train.base.huggingface import HUB_ENV, hub_home, variable_problem
from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.engine.capabilities import KNOWN_COMMITS, Script
from wan_train.engine.commands import ACCELERATE_CONFIG
from wan_train.engine.failures import Cause
from wan_train.engine.failures.diagnosis import diagnose
from wan_train.engine.tokenizer import OFFLINE_ENV, REPO, SUBFOLDER, is_cached
from wan_train.engine.trainer import help_text, keep_help, locate_musubi, read_commit, recall_help
from wan_train.provision.driver_checks import GpuFacts
from wan_train.provision.engine_file import EngineFile
from wan_train.provision.environment import Environment, package_name
from wan_train.provision.steps import Finding, State, Step, blocked, ready, warning
from wan_train.provision.work import Work

NAME = "packages.json"
_REQUIREMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:==[A-Za-z0-9][A-Za-z0-9.+!_]*)?")
_ROOM = 200_000_000
"""An estimate for a package without its own CUDA libraries."""


def check_names(words: Iterable[str]) -> tuple[str, ...]:
    """Return the words as requirements; raises BadInputError for options, addresses, paths and the like."""
    asked = tuple(words)
    wrong = [one_line(word) for word in asked if not _REQUIREMENT.fullmatch(word)]
    if wrong:
        raise BadInputError(
            f"--with takes package names, not {', '.join(map(repr, wrong))}",
            hint="A name, or a name with its exact version: wan-train provision --with prodigyopt==1.1.2",
        )
    return asked


def recorded(folder: Path) -> tuple[str, ...]:
    """The packages requested from earlier provisions; none without a readable record."""
    found: tuple[str, ...] | None = codec.read(folder / NAME, tuple[str, ...])
    return tuple(each for each in found or () if _REQUIREMENT.fullmatch(each))


def merged(before: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    """One requirement for each package: the last one requested."""
    return tuple({package_name(each): each for each in (*before, *asked)}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherPackages:
    """The step. `packages` are requirements, each `NAME` or `NAME==VERSION`; `folder` keeps them."""

    environment: Environment
    folder: Path
    packages: tuple[str, ...]

    def step(self) -> Step:
        return Step("added", "Further packages", self.check, apply=self.apply, needs=("checkout", "environment"))

    def check(self) -> Finding:
        is_coming = not self.environment.stays()
        # A new environment has none of them.
        lacking = list(self.packages) if is_coming else self._lacking()
        if lacking and not is_coming and not self.environment.is_ours():
            return blocked(
                f"{self.environment.python} lacks {', '.join(lacking)}, and this environment is your own",
                f"Install them yourself: {self.environment.python} -m pip install {' '.join(lacking)}",
            )
        if lacking:
            return Finding(State.MISSING, f"missing: {', '.join(lacking)}", size=_ROOM)
        if set(self.packages) != set(recorded(self.folder)):
            return Finding(State.UNVERIFIED, f"{', '.join(self.packages)}: installed, not recorded yet")
        return ready(", ".join(self.packages))

    def apply(self, work: Work) -> None:
        lacking = self._lacking()
        if lacking:
            self.environment.add(lacking, work)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / NAME, codec.dumps(list(self.packages)), mode=0o644)

    def _lacking(self) -> list[str]:
        installed = self.environment.installed()
        return [each for each in self.packages if not _is_there(each, installed)]


def _is_there(requirement: str, installed: dict[str, str]) -> bool:
    version = installed.get(package_name(requirement))
    wanted = requirement.partition("==")[2]
    return version is not None and wanted in {"", version}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOptions:
    """The step. Without a checkout, the engine's commit counts."""

    settings: Settings
    engine: EngineFile
    facts: GpuFacts

    def step(self) -> Step:
        return Step("flags", "Options of the trainer", self.check, apply=self.apply, needs=("environment",))

    def check(self) -> Finding:
        root = self.settings.trainer_dir
        there = read_commit(root)
        commit = there or self.engine.commit
        if there is None and commit in KNOWN_COMMITS:
            return Finding(
                State.UNTESTED,
                f"no checkout yet; {KNOWN_COMMITS[commit]}, which will be installed, is a tested version",
            )
        if commit in KNOWN_COMMITS:
            return ready(f"{KNOWN_COMMITS[commit]} is a tested version")
        if recall_help(self.settings.box_dir, root, read_commit(root)) is not None:
            return ready(f"{commit[:7]} options are on record")
        if not self.facts.usable():
            # The caching scripts ask CUDA for its current device while they are imported (wan/modules/t5.py).
            return warning(
                f"{commit[:7]} is not a tested version, and its scripts do not start without a GPU",
                "On a box with a GPU: `wan-train provision`. Tested: `--engine guide` and `--engine v0.3.4`.",
            )
        return Finding(State.UNVERIFIED, f"{commit[:7]} is not a tested version; its options are not on record")

    def apply(self, work: Work) -> None:
        trainer = locate_musubi(self.settings)
        texts = {}
        for script in Script:
            work.look()
            work.say(f"reading the options of {script}")
            texts[script] = help_text(trainer, script)
        keep_help(self.settings.box_dir, trainer.root, trainer.commit, texts)


# The trainer's own call (wan/modules/t5.py), so that exactly what it needs is downloaded.
_LOAD = """
import sys
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1], subfolder=sys.argv[2])
"""


def tokenizer_step(python: Callable[[], Path]) -> Step:
    def check() -> Finding:
        if is_cached():
            return ready("the T5 tokenizer is in the Hugging Face cache")
        return Finding(State.MISSING, "the T5 tokenizer is not in the Hugging Face cache")

    def apply(work: Work) -> None:
        words = [str(python()), "-c", _LOAD, REPO, SUBFOLDER]
        what = "fetching the T5 tokenizer"
        unusable = variable_problem(os.environ)
        if unusable is not None:
            raise NotReadyError(f"{what} failed: {unusable.reason}", hint=unusable.hint)
        # These timeouts replace the environment's, which the library parses on import.
        online = {**HUB_ENV, "HF_HUB_DOWNLOAD_TIMEOUT": "60", "HF_HUB_ETAG_TIMEOUT": "30"}
        code, tail = work.run(words, what=what, env=online, check=False)
        if code != 0:
            found = diagnose(textwrap.dedent(tail))
            known = found.cause is not Cause.UNKNOWN
            reason = f" {found.meaning}:" if known else ""
            hint = found.advice if known else "Check the network, HF_TOKEN and HF_ENDPOINT."
            raise NotReadyError(f"{what} failed:{reason}{tail}", hint=hint)
        work.run(words, what="loading the T5 tokenizer without network", env=OFFLINE_ENV)

    return Step("tokenizer", "T5 tokenizer", check, apply=apply, needs=("environment",))


_NAMES = ("default_config.yaml", "default_config.yml", "default_config.json")
# One setting a line, in YAML or indented JSON.
_SETTING = re.compile(r"^[^\w\n#]*(distributed_type|num_processes)[^\w\n#]+([\w-]+)", re.MULTILINE)
_NOT_OURS = "wan-train's own runs never read it; commands that you type by hand do"
_TEXT = (
    "# Written by `wan-train provision`, since there was none: one process, one GPU. Change it as you like.\n"
    + (ACCELERATE_CONFIG.partition("\n")[2])
)


def accelerate_step(environ: Mapping[str, str]) -> Step:
    """The step; writes a configuration only if there is none."""
    folder = hub_home(environ) / "accelerate"

    def check() -> Finding:
        found = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
        if found is None:
            return Finding(
                State.UNVERIFIED, f"none in {folder}: `accelerate launch` typed by hand would use every GPU at once"
            )
        return judge(found, found.read_text(encoding="utf-8", errors="replace"))

    def apply(_work: Work) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / _NAMES[0], _TEXT, mode=0o644)

    return Step("accelerate", "accelerate", check, apply=apply)


def judge(path: Path, text: str) -> Finding:
    """Whether commands typed by hand would do what the guide means: one process on one GPU."""
    settings = dict(_SETTING.findall(text))
    kind = settings.get("distributed_type", "NO")
    processes = settings.get("num_processes", "1")
    if kind.upper() == "NO" and processes == "1":
        return ready(f"{path}: one process")
    return warning(
        f"{path} says distributed_type {kind}, num_processes {processes}; {_NOT_OURS}",
        f"If you type the guide's commands by hand: `mv {quote(str(path))} {quote(f'{path}.mine')}`, "
        "then `wan-train provision`.",
    )
