"""One provision: the steps of its tasks are checked, then run under the workspace's lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from wan_train.base.settings import Settings
from wan_train.engine.trainer import read_commit
from wan_train.gpu.leases import LeaseRoom
from wan_train.provision import boot, engine_file, steps, workspace
from wan_train.provision.capacity import ram_step, rooms
from wan_train.provision.checkout import Checkout
from wan_train.provision.driver_checks import GpuFacts, Gpus, build_of, of_this_box, recipe_for
from wan_train.provision.engine_file import EngineFile
from wan_train.provision.environment import Environment
from wan_train.provision.executor import Graph, Outcome
from wan_train.provision.gpu_check import GpuCheck
from wan_train.provision.hub import Hub
from wan_train.provision.leftovers import Leftovers
from wan_train.provision.models import Digests, Model, wanted
from wan_train.provision.packages import ARIA2, FOR_TRAINER, ExactPackages, Packages, Rclone, find_apt
from wan_train.provision.status_table import StatusTable
from wan_train.provision.steps import Finding, State, Step
from wan_train.provision.trainer_steps import (
    FurtherPackages,
    TrainerOptions,
    accelerate_step,
    merged,
    recorded,
    tokenizer_step,
)
from wan_train.provision.workspace import LockedWorkspace
from wan_train.recipe.model_files import ModelFile
from wan_train.recipe.terms import Task
from wan_train.upload.destinations import RcloneTarget, parse_all
from wan_train.upload.rclone import rclone_folder

DISK = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """What one call wants. `with_trainer` is machine, checkout and environment; `with_models` is the hub's files.

    With `digests`, every byte of the models is read again.
    With `needs_gpu`, a box without a usable GPU is not ready. Else it gets a warning, since a volume may be prepared.
    """

    settings: Settings
    tasks: tuple[Task, ...]
    engine: EngineFile
    with_trainer: bool = True
    with_models: bool = True
    needs_gpu: bool = False
    digests: Digests | None = None
    with_lightning: bool = False
    """Also the LoRAs of `wan-train preview --fast`."""
    added: tuple[str, ...] = ()
    """Packages to install beside the trainer, in addition to those of earlier provisions."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set to end everything: checks that wait for the network, and running steps."""

    @property
    def logs(self) -> Path:
        """The folder with one log for each step: the output of git, uv and the downloads."""
        return self.settings.box_dir

    @property
    def tools(self) -> Path:
        """Where our own aria2c is installed."""
        return self.settings.box_dir / "tools"

    @property
    def models(self) -> list[ModelFile]:
        return wanted(self.tasks, with_lightning=self.with_lightning)

    @property
    def leftovers(self) -> Leftovers:
        return Leftovers(trainer_dir=self.settings.trainer_dir, after=tuple(model.name for model in self.models))

    def steps(self, *, hub: Hub | None = None, gpus: Gpus | None = None) -> list[Step]:
        """All steps, machine checks first. `hub` and `gpus` are shared with the caller, if given."""
        root, pause = self.settings.trainer_dir, self.settings.pause_seconds
        hub = hub or Hub(ended=self.ended)
        facts = self.facts(gpus or of_this_box(self.settings))
        environment = Environment(
            root=root, engine=self.engine, chosen=self.settings.musubi_python, pause_seconds=pause
        )
        apt = find_apt()
        needs = (FOR_TRAINER if self.with_trainer else ()) + ((ARIA2,) if self.with_models else ())
        made: list[Step] = []
        if self.with_trainer:
            made += [ram_step(facts, recipe_for(self.tasks), environment.python), *facts.steps()]
        made.append(Packages(apt=apt, needs=needs, tools=self.tools).step())
        if self.with_trainer:
            made += [Checkout(root=root, engine=self.engine, pause_seconds=pause).step(), environment.step()]
            packages = merged(recorded(self.settings.box_dir), self.added)
            if packages:
                added = FurtherPackages(environment=environment, folder=self.settings.box_dir, packages=packages)
                made.append(added.step())
            made += self._proofs(facts, environment.python)
        if any(isinstance(target, RcloneTarget) for target in parse_all(self.settings.upload)):
            made.append(Rclone(folder=rclone_folder(self.settings), apt=apt, environ=self.environ).step())
        if self.with_models:
            made += [
                Model(model=model, trainer_dir=root, hub=hub, tools=self.tools, digests=self.digests).step()
                for model in self.models
            ]
            made.append(self.leftovers.step())
        if self.with_trainer and self.with_models:
            made.append(tokenizer_step(lambda: environment.python))
        if self.with_trainer and self.engine.system:
            made.append(ExactPackages(apt=apt, exact=self.engine.system).step())
        if self.with_trainer and boot.is_vast(self.environ):
            made.append(boot.Boot(logs=self.logs, variables=boot.variables(self.settings, self.environ)).step())
        return made

    def facts(self, gpus: Gpus) -> GpuFacts:
        return GpuFacts(
            gpus=gpus,
            build=build_of(self.engine),
            needed=self.needs_gpu,
            chosen=self.settings.gpus,
            environ=self.environ,
        )

    def _proofs(self, facts: GpuFacts, python: Path) -> list[Step]:
        kernel = GpuCheck(
            python=python,
            folder=self.settings.box_dir,
            facts=facts,
            room=LeaseRoom(self.settings.lease_dir),
            recipe=recipe_for(self.tasks),
        )
        flags = TrainerOptions(settings=self.settings, engine=self.engine, facts=facts)
        return [kernel.step(), flags.step(), accelerate_step(self.environ)]

    def look(self, made: list[Step]) -> dict[str, Finding]:
        """The findings of all steps, and of the disk space they need together; changes nothing."""
        found = steps.look(made, self.ended)
        return {DISK: self.room(self.needed(found), found), **found}

    def room(self, needed: Mapping[Path, int], found: Mapping[str, Finding]) -> Finding:
        """Whether `needed` bytes by place fit; says so if sizes are from configs/models.toml, not from the hub."""
        disk = rooms(needed)
        asked = all(found[model.name].state is not State.BLOCKED for model in self.models if model.name in found)
        return disk if asked else replace(disk, detail=f"{disk.detail} (model sizes from configs/models.toml)")

    def needed(self, found: Mapping[str, Finding]) -> dict[Path, int]:
        """Bytes still to be downloaded, by destination: `models` may be a link to another disk."""
        root = self.settings.trainer_dir
        places = {model.name: model.path(root).parent for model in self.models}
        needed = {root: 0}
        for name, finding in found.items():
            place = places.get(name, root)
            needed[place] = needed.get(place, 0) + finding.size
        return needed

    @contextmanager
    def locked(self) -> Iterator[LockedWorkspace]:
        """Lock the workspace; raises NotReadyError if another provision runs, or if it cannot be written."""
        path = self.logs / workspace.LOG_NAME
        with workspace.locked(self.settings.workspace) as lock, workspace.open_log(path, rotate=True) as log:
            yield LockedWorkspace(lock, log)

    def perform(
        self,
        made: Sequence[Step],
        found: Mapping[str, Finding],
        table: StatusTable,
        locked: LockedWorkspace,
        *,
        tick: Callable[[], None],
    ) -> Outcome:
        """Do what was found missing; the lock is held. `tick` is called a few times a second."""
        graph = Graph(steps=made, table=table, logs=self.logs, lock=locked.lock, tick=tick, ended=self.ended)
        return graph.perform(found)


def choose_engine(reference: str | None, settings: Settings) -> EngineFile:
    """The requested engine, else the one of the checked-out commit, else the guide's."""
    if reference is not None:
        return engine_file.load(reference)
    found = engine_file.for_commit(read_commit(settings.trainer_dir))
    return found or engine_file.load(engine_file.DEFAULT)
