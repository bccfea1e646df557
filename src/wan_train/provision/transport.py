"""The ways by which a file's bytes come: one try at a time, going on with what is there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wan_train.base.errors import NotReadyError
from wan_train.engine.tokenizer import HUB_ENV
from wan_train.provision.hub import Answer, RemoteFile, explain
from wan_train.provision.part import Part
from wan_train.provision.work import Work

_GB = 1e9
_ROOM_BYTES = 64 * 1024 * 1024


class DiskError(NotReadyError):
    """The bytes came and could not be written; trying again does not help."""


class UnexplainedError(NotReadyError):
    """The program failed though its address answers."""


class Transport(Protocol):
    """One way. `name` is shown."""

    @property
    def name(self) -> str: ...

    def fetch(self, remote: RemoteFile, part: Part, work: Work, alive: Callable[[], bool]) -> None:
        """One try at the bytes that are missing; those that came stay in the part. Nothing is compared here.

        Raises:
            HubError: the hub or the host with the bytes refused, or could not be reached.
            UnexplainedError: it failed and the address is in order.
            DiskError: no room, or the place cannot be written.
            StalledError: `alive` said so.
            EndedError: the user ended the provision.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class HubClient:
    """huggingface_hub's own HTTP client in a child process: one connection, always there.

    `timeout` is how many seconds the connection may be silent. Not `hf_hub_download`: from 1.18 on it begins anew
    after a kill, and so does Xet.
    """

    timeout: float
    name: str = "huggingface_hub"

    def fetch(self, remote: RemoteFile, part: Part, work: Work, alive: Callable[[], bool]) -> None:
        part.for_appending()
        answer = part.folder / "answer.json"
        answer.unlink(missing_ok=True)
        task = {"repo": remote.repo, "file": remote.file, "commit": remote.commit, "size": remote.size}
        code, tail = work.run(
            [sys.executable, "-P", "-m", "wan_train.provision.fetch_child", part.path, answer],
            what=f"fetching {Path(remote.file).name}",
            stdin=json.dumps({**task, "timeout": self.timeout}),
            env=HUB_ENV,
            alive=alive,
            check=False,
        )
        if code != 0:  # a full disk has no room for an answer either
            if _is_full(part):
                raise disk_error(part, "no room")
            raise NotReadyError(f"the download ended with exit code {code}:{tail}", hint=f"The log is {work.log}.")
        said = json.loads(answer.read_text(encoding="utf-8"))
        answer.unlink()
        if said["disk"]:
            raise disk_error(part, said["disk"])
        if said["failed"]:
            found = Answer(status=said["status"], words=said["words"], retry_after=said["retry_after"])
            raise explain(remote.repo, remote.file, found, final=said["is_hub"])


def disk_error(part: Part, words: str) -> DiskError:
    """What keeps a part from growing, in the user's words; with the numbers when it is room."""
    if _is_full(part):
        free, left = shutil.disk_usage(part.folder).free / _GB, (part.size - part.done()) / _GB
        return DiskError(
            f"the disk is full: {left:.2f} GB of this file are still to come, {free:.2f} GB are free",
            hint="Make room and run `wan-train provision` again; what is there is kept.",
        )
    return DiskError(f"{part.folder} cannot be written: {words}", hint="Look at the disk and at permissions there.")


def _is_full(part: Part) -> bool:
    return shutil.disk_usage(part.folder).free < _ROOM_BYTES
