"""Known problems of a box, checked without changing anything."""

from __future__ import annotations

import os
import shlex
import socket
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import assert_never
from urllib.parse import urlsplit

from wan_train.base.settings import Settings
from wan_train.base.text import one_line
from wan_train.engine.traits import MUSUBI
from wan_train.gpu.free import why_busy
from wan_train.gpu.leases import LeaseRoom
from wan_train.gpu.model import Gpu, GpuUnavailableError, LostGpu
from wan_train.provision import steps
from wan_train.provision.capacity import judge_spare
from wan_train.provision.driver_checks import GpuFacts, build_of, card, judge_gpu, judge_lost, of_this_box, recipe_for
from wan_train.provision.engine_file import EngineFile
from wan_train.provision.host_checks import HostChecks
from wan_train.provision.hub import Hub, HubError, RemoteFile
from wan_train.provision.models import wanted
from wan_train.provision.provision import DISK, Provision
from wan_train.provision.steps import Finding, State, Step, warning
from wan_train.recipe.terms import Task
from wan_train.run.disk import disk_need

_REACH_SECONDS = 5.0


class Group(StrEnum):
    """What a check is about, in display order."""

    MACHINE = "machine"
    GPUS = "GPUs"
    TRAINER = "trainer"
    MODELS = "models"
    WAN_TRAIN = "wan-train"


class Level(StrEnum):
    """How bad a finding is for training on this box."""

    OK = "ok"
    UNTESTED = "not tested"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding with its group and title. `next` is what to do about it, or None."""

    group: Group
    id: str
    title: str
    finding: Finding
    next: str | None

    @property
    def level(self) -> Level:
        match self.finding.state:
            case State.READY:
                return Level.OK
            case State.UNTESTED:
                return Level.UNTESTED
            case State.WARNING | State.UNVERIFIED:
                return Level.WARNING
            case State.MISSING | State.BLOCKED:
                return Level.ERROR
            case _:
                assert_never(self.finding.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All checks of one examination. The box is ready if none is an error."""

    checks: tuple[Check, ...]
    provision: str
    """The command that installs what is missing."""

    @property
    def is_ready(self) -> bool:
        return not self.count(Level.ERROR)

    def count(self, level: Level) -> int:
        return sum(check.level is level for check in self.checks)


@dataclass(slots=True)
class ImpatientHub(Hub):
    """The hub, asked only if it can be reached: without a network, `doctor` must not wait."""

    reach: Callable[[], str | None] = field(default=lambda: why_unreachable(os.environ))
    _problem: list[str | None] = field(default_factory=list)

    def describe(self, repo: str, file: str) -> RemoteFile:
        """Like `Hub.describe`, but raises HubError at once if the hub cannot be reached."""
        if not self._problem:
            self._problem.append(self.reach())
        if (problem := self._problem[0]) is not None:
            raise HubError(
                f"{file} of {repo}",
                f"the hub cannot be reached ({problem})",
                hint="Check the network, HF_ENDPOINT and proxies; then run `wan-train provision`.",
            )
        return Hub.describe(self, repo, file)


def why_unconnected(where: str) -> str | None:
    """Why an address, or the proxy in front of it, cannot be reached; None if a connection can be made."""
    try:
        address = urlsplit(where)
        proxy = urllib.request.getproxies().get(address.scheme or "https")
        if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
            address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        where = address.hostname or ""
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((where, port), timeout=_REACH_SECONDS):
            return None
    except OSError as error:
        return f"{one_line(where)}: {(error.strerror or str(error)).lower()}"
    except ValueError as error:  # invalid brackets or port
        return f"{one_line(where)} is not a valid address: {error}"


def why_unreachable(
    environ: Mapping[str, str],
    connect: Callable[[str], str | None] = why_unconnected,
    seconds: float = _REACH_SECONDS,
) -> str | None:
    """Why the hub cannot be reached within `seconds`; None if a connection can be made."""
    where = environ.get("HF_ENDPOINT") or "https://huggingface.co"
    said: list[str | None] = [f"{one_line(where)}: no answer within {seconds:g} s"]
    # A name lookup has no timeout, so the thread is abandoned if it takes too long.
    thread = threading.Thread(target=lambda: said.append(connect(where)), daemon=True)
    thread.start()
    thread.join(seconds)
    return said[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """Examines a box for training `tasks` with `engine`. `words` are options for the commands it suggests."""

    settings: Settings
    tasks: tuple[Task, ...]
    engine: EngineFile
    words: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def examine(self) -> Report:
        """Run all checks. The hub is asked only about models that were never verified."""
        gpus = of_this_box(self.settings)
        later = HostChecks(settings=self.settings, gpus=gpus, environ=self.environ)
        provision = Provision(
            settings=self.settings, tasks=self.tasks, engine=self.engine, needs_gpu=True, environ=self.environ
        )
        made = provision.steps(hub=ImpatientHub(_patient=False, ended=provision.ended), gpus=gpus)
        models = {model.name for model in wanted(self.tasks)}
        facts = provision.facts(gpus)
        cards = [*_take(made, {"driver", "gpus"}), *self._cards(facts), *later.of_gpus()]
        groups = {
            Group.MACHINE: [*_take(made, {"ram"}), *later.of_machine()],
            Group.GPUS: [*cards, *_take(made, {"kernel"})],
            Group.TRAINER: _take(made, {step.id for step in made} - models - _ELSEWHERE),
            Group.MODELS: [*_take(made, models | {"tokenizer", "leftovers"}), *later.of_hub()],
            Group.WAN_TRAIN: later.of_program(),
        }
        found = steps.look([step for each in groups.values() for step in each], provision.ended)
        needed = provision.needed({step.id: found[step.id] for step in made})
        spare = judge_spare(self.settings.runs, needed, self._bytes_of_a_run())
        checks = [
            self._check(Group.MACHINE, DISK, "Disk", provision.room(needed, found)),
            self._check(Group.MACHINE, "runs-disk", "Disk for runs", spare),
        ]
        for group, each in groups.items():
            checks += [self._check(group, step.id, _title(step, models), found[step.id]) for step in each]
        if facts.usable():  # each GPU's own check says the same
            checks = [check for check in checks if check.id != "gpus"]
        return Report(checks=tuple(checks), provision=self._provision)

    @property
    def _provision(self) -> str:
        return shlex.join(["wan-train", "provision", *self.words])

    def _check(self, group: Group, name: str, title: str, finding: Finding) -> Check:
        if group is Group.MODELS and finding.state is State.BLOCKED:
            _, of_the_hub, reason = finding.detail.rpartition(" cannot be fetched: ")
            if of_the_hub:  # the check's title names the file
                finding = replace(finding, detail=f"missing; {reason}")
        todo = f"`{self._provision}`" if finding.state in steps.TO_DO else None
        hint = finding.hint.replace("`wan-train provision`", f"`{self._provision}`") if finding.hint else None
        return Check(group=group, id=name, title=title, finding=finding, next=hint or todo)

    def _cards(self, facts: GpuFacts) -> list[Step]:
        try:
            reading = facts.gpus.read()
        except GpuUnavailableError:
            return []
        seen: list[Gpu | LostGpu] = sorted((*reading.gpus, *reading.lost), key=lambda gpu: gpu.index)
        usable = facts.usable()
        return [Step(f"gpu-{gpu.number}", f"GPU {gpu.number}", partial(self._card, gpu, usable)) for gpu in seen]

    def _card(self, gpu: Gpu | LostGpu, usable: Sequence[Gpu]) -> Finding:
        """Whether one GPU can train and is free. If it cannot train, that is a warning: the others may."""
        if isinstance(gpu, LostGpu):
            return judge_lost(gpu)
        fit = judge_gpu(gpu, build_of(self.engine))
        if fit.state is State.BLOCKED:
            others = ",".join(other.number for other in usable)
            hint = f"Keep trainings away from it: `wan-train --gpus {others}`." if others else fit.hint
            return replace(fit, state=State.WARNING, hint=hint)
        holder = LeaseRoom(self.settings.lease_dir).holder(gpu.uuid)
        if holder is not None:
            step = f", {one_line(holder.step)}" if holder.step else ""
            return replace(fit, detail=f"{fit.detail}, used by {one_line(holder.run_id or 'a run')}{step}")
        busy = why_busy(gpu)
        if busy is None:
            return replace(fit, detail=f"{fit.detail}, free" if fit.state is State.READY else fit.detail)
        free = ",".join(other.number for other in usable if why_busy(other) is None)
        others = f" Until then: `wan-train --gpus {free}`." if free else ""
        return warning(
            f"{card(gpu)}, in use by another program: {busy.partition(': ')[2]}",
            "A training waits until it is free. `nvidia-smi` and `ps aux` show its user. A restart of the box "
            f"frees memory that no program uses.{others}",
        )

    def _bytes_of_a_run(self) -> int:
        need = disk_need(MUSUBI, recipe_for(self.tasks), 0)
        return need.states + need.loras


_TITLES = {"environment": "Environment", "flags": "Trainer's options"}
"""Shorter than the steps' own titles, to fit a table column."""

_ELSEWHERE = frozenset({"leftovers", "ram", "driver", "gpus", "kernel", "tokenizer"})
"""Provision steps that are not shown in the trainer's group."""


def _title(step: Step, models: set[str]) -> str:
    return step.id if step.id in models else _TITLES.get(step.id, step.title)


def _take(made: Sequence[Step], names: set[str] | frozenset[str]) -> list[Step]:
    return [step for step in made if step.id in names]
