"""The options of the trainer's scripts: known for tested commits, else asked once and kept."""

from __future__ import annotations

from dataclasses import dataclass

from wan_train.base.settings import Settings
from wan_train.engine import probe_cache
from wan_train.engine.capabilities import KNOWN_COMMITS, Script
from wan_train.engine.trainer import help_text, locate_musubi, read_commit
from wan_train.provision.driver_checks import GpuFacts
from wan_train.provision.engine_file import EngineFile
from wan_train.provision.steps import Finding, State, Step
from wan_train.provision.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """The step. Before there is a checkout, the engine's commit counts."""

    settings: Settings
    engine: EngineFile
    facts: GpuFacts

    def step(self) -> Step:
        return Step(
            id="flags",
            title="Options of the trainer",
            check=self.check,
            apply=self.apply,
            needs=("environment",),
        )

    def check(self) -> Finding:
        root = self.settings.trainer_dir
        there = read_commit(root)
        commit = there or self.engine.commit
        if there is None and commit in KNOWN_COMMITS:
            return Finding(
                state=State.UNTESTED,
                detail=f"no checkout yet; {KNOWN_COMMITS[commit]}, which will be installed, is a tested version",
            )
        if commit in KNOWN_COMMITS:
            return Finding(state=State.READY, detail=f"{KNOWN_COMMITS[commit]} is a tested version")
        if probe_cache.recall(self.settings.box_dir, root, read_commit(root)) is not None:
            return Finding(state=State.READY, detail=f"{commit[:7]} was asked for its options")
        if not self.facts.usable():
            # The caching scripts ask CUDA for its current device while they are imported (wan/modules/t5.py).
            return Finding(
                state=State.WARNING,
                detail=f"{commit[:7]} is no tested version, and its scripts do not start without a GPU",
                hint="On a box with a GPU: `wan-train provision`. Tested: `--engine guide` and `--engine v0.3.4`.",
            )
        return Finding(state=State.UNVERIFIED, detail=f"{commit[:7]} is no tested version; its options were not asked")

    def apply(self, work: Work) -> None:
        trainer = locate_musubi(self.settings)
        texts = {}
        for script in Script:
            work.look()
            work.say(f"asking {script} for its options")
            texts[script] = help_text(trainer, script)
        probe_cache.keep(self.settings.box_dir, trainer.root, trainer.commit, texts)
