"""The model files: fetched beside their place, compared by sha256, and only then given their name."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wan_train.box.hub import Hub, HubError, RemoteFile, fetch_once
from wan_train.box.lane import Lane
from wan_train.box.steps import Finding, State, Step
from wan_train.box.work import EndedError, Work
from wan_train.errors import NotReadyError
from wan_train.files import write_whole
from wan_train.recipe.models import ModelFile, known_models

_TRIES = 5
_PAUSE_SECONDS = 2.0
_STALL_SECONDS = 300.0
_BLOCK = 16 * 1024 * 1024
_GB = 1e9
# huggingface_hub from 1.18 on never goes on with such a file, it only leaves it after a kill.
_ORPHAN = re.compile(r".*\.[0-9a-f]{8}\.incomplete")


def wanted(task: str) -> list[ModelFile]:
    """The files of `t2v`, `i2v` or `both`, the small ones that caching needs first."""
    tasks = ("t2v", "i2v") if task == "both" else (task,)
    names = ["wan21-vae", "umt5-xxl", *(f"wan22-{each}-{expert}" for each in tasks for expert in ("high", "low"))]
    models = known_models()
    return [models[name] for name in names]


@dataclass(slots=True, kw_only=True)
class Model:
    """One model file of the box. What the hub says of it is asked once."""

    model: ModelFile
    trainer_dir: Path
    hub: Hub
    lane: Lane
    _remote: RemoteFile | None = field(default=None, init=False)

    @property
    def path(self) -> Path:
        return self.model.path(self.trainer_dir)

    @property
    def _marker(self) -> Path:
        return self.path.with_name(f"{self.path.name}.verified")

    @property
    def _staging(self) -> Path:
        return self.trainer_dir / self.model.place / ".wan-train-fetch" / self.model.name

    def step(self) -> Step:
        return Step(
            id=self.model.name, title=f"Model {self.path.name}", check=self.check, apply=self.apply, lane=self.lane
        )

    def check(self) -> Finding:
        size = self._size()
        if size is not None and self._is_marked():
            return Finding(state=State.READY, detail=f"{self.path} ({size / _GB:.2f} GB) is verified")
        try:
            remote = self._ask()
        except HubError as error:
            if size is None:
                return Finding(state=State.BLOCKED, detail=error.message, hint=error.hint)
            return Finding(state=State.UNVERIFIED, detail=f"{self.path} is there; not compared: {error.message}")
        if size == remote.size:
            return Finding(state=State.UNVERIFIED, detail=f"{self.path} is there, not compared with the hub's yet")
        reason = f"{self.path} has {size} bytes instead of {remote.size}" if size is not None else "missing"
        return Finding(state=State.MISSING, detail=f"{reason}; {remote.size / _GB:.2f} GB", size=remote.size)

    def apply(self, work: Work) -> None:
        remote = self._ask()
        if self._size() is not None:
            if self._size() == remote.size and self._compare(self.path, remote, work):
                self._mark(remote)
                return
            bad = self.path.with_name(f"{self.path.name}.bad")
            self.path.replace(bad)
            self._marker.unlink(missing_ok=True)
            work.remark(f"wrong bytes: moved aside as {bad}; delete it when you do not need it")
        for last in (False, True):
            with self.lane.turn(self.model.name, work.look):
                fetched = self._fetch(remote, work)
            if fetched.stat().st_size == remote.size and self._compare(fetched, remote, work):
                self._place(fetched, remote)
                return
            shutil.rmtree(self._staging)
            if not last:
                work.say("the bytes that came are wrong; fetching once more")
        raise NotReadyError(
            f"{self.path.name} came twice with wrong bytes: they differ from the hub's sha256",
            hint="Something on the way changes them: look at proxies and HF_ENDPOINT, then at the disk and RAM.",
        )

    def _ask(self) -> RemoteFile:
        if self._remote is None:
            self._remote = self.hub.describe(self.model.repo, self.model.file)
        return self._remote

    def _size(self) -> int | None:
        return self.path.stat().st_size if self.path.is_file() else None

    def _is_marked(self) -> bool:
        try:
            marked = json.loads(self._marker.read_text(encoding="utf-8"))
            found = self.path.stat()
            return bool(marked["size"] == found.st_size and marked["mtime_ns"] == found.st_mtime_ns)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _mark(self, remote: RemoteFile) -> None:
        found = self.path.stat()
        marked = {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": remote.sha256}
        write_whole(self._marker, json.dumps(marked), mode=0o644)

    def _compare(self, path: Path, remote: RemoteFile, work: Work) -> bool:
        if remote.sha256 is None:
            return True  # the hub keeps no sha256 of small files; the size was right
        work.say(f"comparing {remote.size / _GB:.2f} GB with the hub's sha256")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                work.look()
                digest.update(block)
        return digest.hexdigest() == remote.sha256

    def _place(self, fetched: Path, remote: RemoteFile) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fetched.replace(self.path)
        self._mark(remote)
        shutil.rmtree(self._staging)
        with suppress(OSError):  # another model may be half fetched beside it
            self._staging.parent.rmdir()

    def _fetch(self, remote: RemoteFile, work: Work) -> Path:
        """The file in the staging folder, after bounded tries; raises NotReadyError."""
        self._staging.mkdir(parents=True, exist_ok=True)
        failure: NotReadyError | None = None
        for number in range(_TRIES):
            work.look()
            if failure is not None:
                pause = _PAUSE_SECONDS * 2 ** (number - 1)
                work.say(f"{failure.message}; again in {pause:.0f} s ({number} of {_TRIES - 1})")
                work.pause(pause)
            self._remove_orphans()
            watch = _Watch(self._staging, remote.size, work)
            try:
                path = fetch_once(remote, self._staging, work, watch.alive, xet=number == 0)
            except HubError as error:
                if error.final:
                    raise
                failure = error
            except EndedError:
                raise
            except NotReadyError as error:  # it stood still, or was killed for memory
                failure = error
            else:
                work.fetched(remote.size)
                work.progress(remote.size, remote.size)
                return path
        raise NotReadyError(
            f"{self.path.name} could not be fetched in {_TRIES} tries: {failure.message if failure else ''}",
            hint="Run `wan-train provision` again; what is complete is kept.",
        )

    def _remove_orphans(self) -> None:
        for path in self._staging.rglob("*.incomplete"):
            if _ORPHAN.fullmatch(path.name):
                path.unlink(missing_ok=True)


class _Watch:
    """Looks at how a download grows, tells it, and sees when it stands still for too long."""

    def __init__(self, folder: Path, total: int, work: Work) -> None:
        self._folder = folder
        self._total = total
        self._work = work
        self._grown = time.monotonic()
        self._bytes = 0

    def alive(self) -> bool:
        now = time.monotonic()
        size = self._on_disk()
        if size != self._bytes:
            self._bytes, self._grown = size, now
        self._work.progress(min(size, self._total), self._total)
        return now - self._grown < _STALL_SECONDS

    def _on_disk(self) -> int:
        total = 0
        for path in self._folder.rglob("*"):
            with suppress(FileNotFoundError):  # renamed while we look
                total += path.stat().st_blocks * 512 if path.is_file() else 0
        return total
