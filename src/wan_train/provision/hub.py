"""The Hugging Face hub: what a file should be, and where its bytes are."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from wan_train.base.errors import NotReadyError
from wan_train.base.huggingface import Answer, answer_of, token_of, variable_problem
from wan_train.base.text import one_line
from wan_train.provision.work import EndedError

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

_T = TypeVar("_T")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIMEOUT_SECONDS = 30.0
_PAUSES = (1.0, 3.0, 9.0)
"""Seconds between tries for metadata."""
_LONGEST_PAUSE_SECONDS = 30.0
_LOOK_SECONDS = 0.2
_FINAL = {
    401: "the hub requires a login",
    403: "this token may not read it",
    404: "not found on the hub",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file as the hub has it now. `size` in bytes; `sha256` is None for small files that are not in LFS."""

    repo: str
    file: str
    size: int
    sha256: str | None
    commit: str

    @property
    def key(self) -> str:
        """A name for these bytes; no other version of the file ever has the same."""
        return self.sha256 or f"commit-{self.commit}"


class HubError(NotReadyError):
    """A request to the hub failed. `reason` is the message without the file's name; `retry_after` is in seconds.

    `final` means that a retry cannot help.
    """

    def __init__(
        self, what: str, reason: str, *, hint: str, final: bool = True, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{what} cannot be fetched: {reason}", hint=hint)
        self.reason = reason
        self.final = final
        self.retry_after = retry_after


@dataclass(slots=True)
class Hub:
    """Describes files of the hub. Token, endpoint and proxies come from the environment.

    Setting `ended` ends every wait with EndedError.
    """

    _patient: bool = True
    ended: threading.Event = field(default_factory=threading.Event)

    def describe(self, repo: str, file: str) -> RemoteFile:
        """Ask the hub about a file; raises HubError. Once the hub was out of reach, there are no more retries."""
        problem = variable_problem(os.environ)
        if problem is not None:  # huggingface_hub could not even be imported with it
            raise HubError(f"{file} of {repo}", problem.reason, hint=problem.hint)
        for pause in _PAUSES if self._patient else ():
            try:
                return self._answered(_describe, repo, file)
            except HubError as error:
                if error.final:
                    raise
                self.ended.wait(min(max(pause, error.retry_after or 0), _LONGEST_PAUSE_SECONDS))
        try:
            return self._answered(_describe, repo, file)
        except HubError as error:
            self._patient = self._patient and error.final
            raise

    def address(self, remote: RemoteFile) -> str | None:
        """The address of these bytes, valid for some minutes; None if it needs a token. Raises HubError.

        Anyone who sees a signed address can download the file: never show or log it.
        """
        return self._answered(_address, remote.repo, remote.file, remote.commit)

    def _answered(self, ask: Callable[..., _T], *words: str) -> _T:
        """Make one request in its own thread: it cannot be cancelled, and a silent hub takes half a minute."""
        answer: Future[_T] = Future()

        def run() -> None:
            try:
                answer.set_result(ask(*words))
            except BaseException as error:  # noqa: BLE001  raised again by the caller
                answer.set_exception(error)

        if not self.ended.is_set():
            threading.Thread(target=run, daemon=True).start()
        while not self.ended.is_set():
            with suppress(TimeoutError):
                return answer.result(timeout=_LOOK_SECONDS)
        raise EndedError(f"ended while the hub was asked about {words[1]}")


def _describe(repo: str, file: str) -> RemoteFile:
    found = _metadata(repo, file, None)
    if found.size is None or found.commit_hash is None:
        words = "the answer has no size or no commit: is something else at HF_ENDPOINT?"
        raise explain(repo, file, Answer(status=None, words=words))
    etag = found.etag or ""
    sha256 = etag if _SHA256.fullmatch(etag) else None
    return RemoteFile(repo=repo, file=file, size=found.size, sha256=sha256, commit=found.commit_hash)


def _address(repo: str, file: str, commit: str) -> str | None:
    from huggingface_hub import get_token

    url = _metadata(repo, file, commit).location
    is_hub = urlsplit(url)[:2] == urlsplit(_url(repo, file, commit))[:2]
    return None if is_hub and get_token() else url


def _metadata(repo: str, file: str, commit: str | None) -> HfFileMetadata:
    from huggingface_hub import get_hf_file_metadata, get_token

    try:
        url = _url(repo, file, commit)
        return get_hf_file_metadata(url, token=get_token() or False, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # noqa: BLE001  requests, httpx or the hub's own, by its version
        raise explain(repo, file, answer_of(error)) from None


def _url(repo: str, file: str, commit: str | None) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repo, file, revision=commit, endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None)


def explain(repo: str, file: str, answer: Answer) -> HubError:
    """Explain an error of the hub to the user, without the token."""
    what = f"{file} of {repo}"
    status = answer.status
    token = token_of(os.environ) if status == 401 else None  # see _FINAL
    if token is not None:
        return HubError(
            what,
            f"the hub refuses the token from {token.source} (HTTP 401)",
            hint=f"These models are public and need no token: {token.remove} and run again.",
        )
    if status in _FINAL:
        hint = {
            401: "The known models are public and need no token, so something else may answer: check HF_ENDPOINT. A "
            "mirror that wants a token takes it from `export HF_TOKEN=...`.",
            403: "Accept the repository's terms on its page in the browser, with the account of HF_TOKEN.",
            404: "Private repositories also look like this without a valid HF_TOKEN. Was the file renamed upstream?",
        }[status]
        return HubError(what, f"{_FINAL[status]} (HTTP {status})", hint=hint)
    if "OfflineMode" in answer.words:
        return HubError(what, "HF_HUB_OFFLINE is set", hint="`unset HF_HUB_OFFLINE` and run again.")
    reason = f"HTTP {status}" if status is not None else one_line(answer.words)
    hint = "Check the network, HF_ENDPOINT and proxies; then run `wan-train provision` again."
    return HubError(what, reason, hint=hint, final=False, retry_after=answer.retry_after)
