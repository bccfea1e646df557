"""The model files: downloaded to a staging folder, verified by sha256, and only then moved into place."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wan_train.base import codec
from wan_train.base.errors import NotReadyError
from wan_train.base.files import sync_file, write_whole
from wan_train.base.units import GB, MIB
from wan_train.provision.downloads import Download, Part, Patience, find_aria2c
from wan_train.provision.hub import Hub, HubError, RemoteFile
from wan_train.provision.leftovers import STAGING
from wan_train.provision.steps import Finding, State, Step, blocked, ready
from wan_train.provision.work import EndedError, Work
from wan_train.recipe.model_files import ModelFile, known_models, lightning
from wan_train.recipe.terms import Expert, Task

_BLOCK: Final = 16 * MIB


def wanted(tasks: Sequence[Task], *, with_lightning: bool = False) -> list[ModelFile]:
    """The files of these tasks, the small ones that caching needs first."""
    names = ["wan21-vae", "umt5-xxl", *(f"wan22-{task.word}-{expert.value}" for task in tasks for expert in Expert)]
    models = known_models()
    extra = [model for task in tasks for model in lightning(task).values()] if with_lightning else []
    return [*(models[name] for name in names), *extra]


@dataclass(slots=True)
class Digests:
    """Checksums of files; an unchanged file is read only once."""

    ended: threading.Event
    _known: dict[tuple[Path, int, int], str] = field(default_factory=dict)

    def of(self, path: Path) -> str:
        """The file's sha256; raises EndedError if the check was interrupted."""
        found = path.stat()
        key = (path, found.st_size, found.st_mtime_ns)
        if key not in self._known:
            self._known[key] = _sha256(path, self._look, lambda _: None)
        return self._known[key]

    def _look(self) -> None:
        if self.ended.is_set():
            raise EndedError("stopped before it was done")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The record beside a verified model file."""

    size: int
    mtime_ns: int
    sha256: str | None


@dataclass(slots=True, kw_only=True)
class Model:
    """One model file of the box. `tools` is where our own aria2c may be.

    The hub is asked about it once, and again if the downloaded bytes are wrong.
    """

    model: ModelFile
    trainer_dir: Path
    hub: Hub
    tools: Path
    patience: Patience = field(default_factory=Patience)
    digests: Digests | None = None
    """If given, every byte is read again despite the record."""
    _remote: RemoteFile | None = field(default=None, init=False)

    @property
    def path(self) -> Path:
        return self.model.path(self.trainer_dir)

    @property
    def _marker(self) -> Path:
        return self.path.with_name(f"{self.path.name}.verified")

    @property
    def _staging(self) -> Path:
        return self.trainer_dir / self.model.place / STAGING / self.model.name

    def step(self) -> Step:
        return Step(
            id=self.model.name,
            title=f"Model {self.path.name}",
            check=self.check,
            apply=self.apply,
            after=("packages",),  # they bring aria2c
            downloads=True,
        )

    def check(self) -> Finding:
        size = self._size()
        if size is not None and self.digests is not None:
            return self._verify(size, self.digests)
        if size is not None and self._is_marked():
            return ready(f"{self.path} ({size / GB:.2f} GB) is verified")
        try:
            remote = self._ask()
        except HubError as error:
            if size is None:
                left = int(self.model.gb * GB)
                return blocked(error.message, error.hint, size=left)
            return Finding(State.UNVERIFIED, f"{self.path} exists, not verified: {error.message}")
        if size == remote.size:
            return Finding(State.UNVERIFIED, f"{self.path} exists, not verified yet")
        reason = f"{self.path} has {size} bytes instead of {remote.size}" if size is not None else "missing"
        there = self._part(remote).done()
        begun = f", {there / GB:.2f} GB of them are there" if there else ""
        detail = f"{reason}; {remote.size / GB:.2f} GB to fetch{begun}"
        return Finding(State.MISSING, detail, size=remote.size - there)

    def _verify(self, size: int, digests: Digests) -> Finding:
        """Compare every byte with the sha256 recorded at the download, or else the hub's."""
        recorded, whose = self._recorded(), "recorded when it was fetched"
        sha256 = recorded.sha256 if recorded is not None else None
        if sha256 is None:
            whose = "of the hub"
            try:
                sha256 = self._ask().sha256
            except HubError as error:
                detail = f"{self.path} is not verified: no sha256 was recorded, and {error.message}"
                return Finding(State.UNVERIFIED, detail, hint=error.hint)
        if sha256 is None:
            return Finding(State.UNVERIFIED, f"{self.path} is not verified: the hub has no sha256 of it")
        if digests.of(self.path) == sha256:
            detail = f"{self.path} ({size / GB:.2f} GB) has the sha256 {whose}"
            return ready(detail)
        return Finding(State.MISSING, f"{self.path} is damaged: its sha256 is not the one {whose}", size=size)

    def apply(self, work: Work) -> None:
        """Verify or download the file; raises NotReadyError, also if the bytes are wrong twice."""
        remote = self._ask()
        if self._size() is not None:
            if self._size() == remote.size and self._compare(self.path, remote, work):
                self._mark(remote)
                self._remove_staging()
                return
            self._move_aside(work)
        if self._fetch(remote, work):
            return
        work.say("wrong sha256; downloading again")
        self._remote = None  # it may have been changed upstream
        if not self._fetch(self._ask(), work):
            raise NotReadyError(
                f"{self.path.name} was downloaded twice with a wrong sha256",
                hint="Check proxies and HF_ENDPOINT, then the disk and RAM.",
            )

    def _fetch(self, remote: RemoteFile, work: Work) -> bool:
        """Download the file into its place; False if the bytes are wrong and were removed."""
        part = self._part(remote)
        self._clear_others(part)
        aria2c = find_aria2c(self.tools)
        Download(remote=remote, part=part, hub=self.hub, work=work, patience=self.patience, aria2c=aria2c).run()
        if not self._compare(part.path, remote, work):
            part.clear()
            return False
        self._place(part)
        self._mark(remote)
        return True

    def _ask(self) -> RemoteFile:
        if self._remote is None:
            self._remote = self.hub.describe(self.model.repo, self.model.file)
        return self._remote

    def _part(self, remote: RemoteFile) -> Part:
        return Part(folder=self._staging / remote.key, size=remote.size)

    def _clear_others(self, part: Part) -> None:
        """Remove parts of versions that the hub no longer has."""
        if self._staging.is_dir():
            for other in self._staging.iterdir():
                if other != part.folder:
                    shutil.rmtree(other) if other.is_dir() else other.unlink()

    def _move_aside(self, work: Work) -> None:
        bad = self.path.with_name(f"{self.path.name}.bad")
        self.path.replace(bad)
        self._marker.unlink(missing_ok=True)
        work.remark(f"wrong sha256: moved aside as {bad}; delete it when you do not need it")

    def _size(self) -> int | None:
        return self.path.stat().st_size if self.path.is_file() else None

    def _recorded(self) -> Verified | None:
        """The record of the download; the file there now may be another one."""
        return codec.read(self._marker, Verified)

    def _is_marked(self) -> bool:
        recorded, found = self._recorded(), self.path.stat()
        return recorded is not None and (recorded.size, recorded.mtime_ns) == (found.st_size, found.st_mtime_ns)

    def _mark(self, remote: RemoteFile) -> None:
        found = self.path.stat()
        verified = Verified(size=found.st_size, mtime_ns=found.st_mtime_ns, sha256=remote.sha256)
        write_whole(self._marker, codec.to_json(verified), mode=0o644)

    def _compare(self, path: Path, remote: RemoteFile, work: Work) -> bool:
        if path.stat().st_size != remote.size:
            return False
        if remote.sha256 is None:
            return True  # the hub keeps no sha256 of small files; the size was right
        work.say(f"verifying the sha256 of {remote.size / GB:.2f} GB")
        return _sha256(path, work.look, lambda done: work.progress(done, remote.size)) == remote.sha256

    def _place(self, part: Part) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        sync_file(part.path)  # a power cut must not leave the name without the bytes
        part.path.replace(self.path)
        self._remove_staging()

    def _remove_staging(self) -> None:
        if self._staging.is_dir():
            shutil.rmtree(self._staging)
        with suppress(OSError):  # another model may be half fetched beside it
            self._staging.parent.rmdir()


def _sha256(path: Path, look: Callable[[], None], progress: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            look()
            digest.update(block)
            done += len(block)
            progress(done)
    return digest.hexdigest()
