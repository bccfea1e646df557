"""The trainer's checkout at the pinned commit. A user's changes and files are never touched."""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from wan_train.base import process
from wan_train.base.errors import NotReadyError
from wan_train.engine.trainer import read_commit
from wan_train.provision.engine_file import EngineFile
from wan_train.provision.packages import PACKAGES
from wan_train.provision.steps import Finding, State, Step, blocked, ready
from wan_train.provision.work import Work

_UNFINISHED = "wan-train-unfinished"
_GIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """The checkout at `root`. A clone is made beside it and moved in; the next run finishes a partial one.

    `pause_seconds` is the wait before the one retry of a network operation.
    """

    root: Path
    engine: EngineFile
    pause_seconds: float = 10.0

    def step(self) -> Step:
        return Step(
            "checkout", f"musubi-tuner {self.engine.commit[:7]}", self.check, apply=self.apply, needs=(PACKAGES,)
        )

    def check(self) -> Finding:
        root = self.root
        if not root.exists() or not (root / ".git").exists():
            return self._without_git()
        if (root / ".git" / _UNFINISHED).exists():
            return Finding(State.MISSING, f"the clone in {root} is not finished")
        commit = read_commit(root)
        if commit != self.engine.commit:
            return blocked(
                f"{root} is at commit {(commit or 'unknown')[:7]}, the engine {self.engine.name} "
                f"needs {self.engine.commit[:7]}",
                "The checkout is yours and was not changed. Choose its engine with `--engine`, move the "
                f"checkout away, or run `git -C {root} fetch && git -C {root} checkout {self.engine.commit}`.",
            )
        match self._changed_files():
            case None:
                remark = "; git could not check for changed files"
            case 0:
                remark = ""
            case changed:
                remark = f"; {changed} changed file(s), left as they are"
        return ready(f"{root} is at {commit[:7]}{remark}")

    def _without_git(self) -> Finding:
        if (self.root / "src" / "musubi_tuner").exists() or (self.root.exists() and not self.root.is_dir()):
            return blocked(
                f"{self.root} exists but is not a git checkout",
                "It is yours and was not changed. Move it away, or choose another `--workspace`.",
            )
        return Finding(State.MISSING, f"no checkout at {self.root}")

    def _changed_files(self) -> int | None:
        # Only tracked files: models, datasets and environments lie in the checkout by design.
        argv = ["git", "-C", str(self.root), "status", "--porcelain", "--untracked-files=no"]
        done = process.run(argv, seconds=_GIT_SECONDS, env={"GIT_OPTIONAL_LOCKS": "0"})
        return len(done.output.splitlines()) if done.succeeded else None

    def apply(self, work: Work) -> None:
        self._remove_left_clones()
        if not (self.root / ".git").exists():
            self._clone(work)
        self._finish(work)

    def _remove_left_clones(self) -> None:
        for left in self.root.parent.glob(f".{self.root.name}.cloning-*"):
            shutil.rmtree(left)

    def _clone(self, work: Work) -> None:
        beside = self.root.with_name(f".{self.root.name}.cloning-{secrets.token_hex(4)}")
        self.root.parent.mkdir(parents=True, exist_ok=True)
        try:
            work.run_twice(self.pause_seconds, lambda: self._fetch(beside, work))
            work.run(
                ["git", "-C", beside, "update-ref", "--no-deref", "HEAD", f"{self.engine.commit}^{{commit}}"],
                what=f"finding commit {self.engine.commit[:7]}",
                hint=f"Does {self.engine.repository} have this commit?",
            )
            work.run(["git", "-C", beside, "read-tree", "HEAD"], what="reading the commit")
            self._refuse_to_overwrite(beside)
            (beside / ".git" / _UNFINISHED).touch()
            # The folder may hold models and datasets already, so only the repository moves; its files follow.
            self.root.mkdir(exist_ok=True)
            (beside / ".git").rename(self.root / ".git")
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _fetch(self, beside: Path, work: Work) -> None:
        work.run(
            ["git", "clone", "--no-checkout", "--", self.engine.repository, beside],
            what="cloning musubi-tuner",
            hint="Check the network, the proxies and the repository's address in the engine file.",
        )

    def _refuse_to_overwrite(self, clone: Path) -> None:
        listed = process.run(["git", "-C", clone, "ls-files", "-z"], seconds=_GIT_SECONDS)
        for name in listed.output.split("\0"):
            path = self.root / name
            if name and os.path.lexists(path):
                raise NotReadyError(
                    f"{path} already exists and is not part of a checkout",
                    hint=f"Nothing was overwritten. Move it away, or move {self.root} away as a whole.",
                )

    def _finish(self, work: Work) -> None:
        mark = self.root / ".git" / _UNFINISHED
        if not mark.exists():
            return
        git = ["git", "-C", str(self.root)]
        # Only a killed earlier try has worked here, so its lock and its partial submodules can be removed.
        (self.root / ".git" / "index.lock").unlink(missing_ok=True)
        # A kill during the last try may have left torn files.
        work.run([*git, "checkout-index", "--all", "--force"], what="writing the files of musubi-tuner")
        work.run([*git, "update-index", "--refresh"], what="comparing the files of musubi-tuner")
        if (self.root / ".gitmodules").exists():
            work.run_twice(self.pause_seconds, lambda: self._submodules(work))
        mark.unlink()

    def _submodules(self, work: Work) -> None:
        git = ["git", "-C", str(self.root), "submodule"]
        work.run([*git, "deinit", "--force", "--all"], what="clearing musubi-tuner's submodules")
        if (self.root / ".git" / "modules").exists():
            shutil.rmtree(self.root / ".git" / "modules")
        work.run(
            [*git, "update", "--init", "--recursive"],
            what="fetching musubi-tuner's submodules",
            hint="Check the network and the proxies.",
        )
