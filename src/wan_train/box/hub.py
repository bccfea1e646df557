"""The Hugging Face hub as provision sees it: what a file should be, and one try at fetching it."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_train.box.work import Work
from wan_train.errors import NotReadyError
from wan_train.printable import one_line

_SHA256 = re.compile(r"[0-9a-f]{64}")
_METADATA_TIMEOUT_SECONDS = 30.0
_PAUSES = (1.0, 3.0, 9.0)
"""Between tries for metadata."""
_FINAL = {
    401: "the hub asks who you are",
    403: "the hub does not let this token read it",
    404: "the hub does not have it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file as the hub has it now. `size` in bytes; `sha256` is None for small files that are not in LFS."""

    repo: str
    file: str
    size: int
    sha256: str | None
    commit: str


class HubError(NotReadyError):
    """The hub could not be asked; `final` when asking again cannot help."""

    def __init__(self, message: str, *, hint: str, final: bool) -> None:
        super().__init__(message, hint=hint)
        self.final = final


@dataclass(slots=True)
class Hub:
    """Tells what files should be. Token, endpoint and proxies come from the environment."""

    _patient: bool = True

    def describe(self, repo: str, file: str) -> RemoteFile:
        """What the hub says about a file; raises HubError. Once out of reach, it is not waited for again."""
        for pause in _PAUSES if self._patient else ():
            try:
                return _describe(repo, file)
            except HubError as error:
                if error.final:
                    raise
                time.sleep(pause)
        try:
            return _describe(repo, file)
        except HubError as error:
            self._patient = self._patient and error.final
            raise


def _describe(repo: str, file: str) -> RemoteFile:
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url  # noqa: PLC0415  takes 0.3 s

    try:
        found = get_hf_file_metadata(
            hf_hub_url(repo, file), token=get_token() or False, timeout=_METADATA_TIMEOUT_SECONDS
        )
    except Exception as error:  # noqa: BLE001  requests, httpx or the hub's own, by its version
        raise explain(repo, file, status_of(error), f"{type(error).__name__}: {error}") from None
    if found.size is None or found.commit_hash is None:
        raise explain(repo, file, None, "the answer has no size or no commit: is something else at HF_ENDPOINT?")
    etag = found.etag or ""
    return RemoteFile(
        repo=repo,
        file=file,
        size=found.size,
        sha256=etag if _SHA256.fullmatch(etag) else None,
        commit=found.commit_hash,
    )


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an exception of huggingface_hub, None when there was no answer."""
    seen: BaseException | None = error
    while seen is not None:
        status: Any = getattr(getattr(seen, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        seen = seen.__cause__ or seen.__context__
    return None


def explain(repo: str, file: str, status: int | None, words: str) -> HubError:
    """An error of the hub in the user's words; never with the token."""
    what = f"{file} of {repo}"
    if status in _FINAL:
        hint = {
            401: "Make a read token at the hub's settings and `export HF_TOKEN=...`; or correct the one that is set.",
            403: "Accept the repository's terms on its page in the browser, with the account of HF_TOKEN.",
            404: "Without a valid HF_TOKEN private repositories look like this too. Was the file renamed upstream?",
        }[status]
        return HubError(f"{what} cannot be fetched: {_FINAL[status]} (HTTP {status})", hint=hint, final=True)
    reason = f"HTTP {status}" if status is not None else one_line(words)
    hint = "Look at the network, HF_ENDPOINT and proxies; then run `wan-train provision` again."
    if "OfflineMode" in words:
        return HubError(
            f"{what} cannot be fetched: HF_HUB_OFFLINE is set", hint="`unset HF_HUB_OFFLINE` and run again.", final=True
        )
    return HubError(f"{what} cannot be fetched: {reason}", hint=hint, final=False)


def fetch_once(remote: RemoteFile, staging: Path, work: Work, alive: Callable[[], bool], *, xet: bool) -> Path:
    """One try at the whole file in a child of our own; its path below `staging`. Bytes are not compared here.

    Raises HubError; StalledError when `alive` says so.
    """
    answer = staging / "answer.json"
    answer.unlink(missing_ok=True)
    env = {
        "HF_HUB_DOWNLOAD_TIMEOUT": "60",
        "HF_HUB_ETAG_TIMEOUT": "30",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        **({} if xet else {"HF_HUB_DISABLE_XET": "1"}),
    }
    child = [sys.executable, "-m", "wan_train.box.fetch_child"]
    work.run(
        [*child, remote.repo, remote.file, remote.commit, str(staging), str(answer)],
        what=f"fetching {Path(remote.file).name}",
        env=env,
        alive=alive,
    )
    said = json.loads(answer.read_text(encoding="utf-8"))
    if said["path"] is None:
        raise explain(remote.repo, remote.file, said["status"], said["words"])
    return Path(said["path"])
