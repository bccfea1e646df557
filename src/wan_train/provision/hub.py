"""The Hugging Face hub as provision sees it: what a file should be, and where its bytes are just now."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from wan_train.base.errors import NotReadyError
from wan_train.base.text import one_line
from wan_train.provision import hub_variables
from wan_train.provision.work import EndedError

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIMEOUT_SECONDS = 30.0
_PAUSES = (1.0, 3.0, 9.0)
"""Between tries for metadata."""
_LONGEST_PAUSE_SECONDS = 30.0
_LOOK_SECONDS = 0.2
_FINAL = {
    401: "the hub asks who you are",
    403: "the hub does not let this token read it",
    404: "the hub does not have it",
}
_WORDS = {
    "ConnectTimeout": "no connection in time",
    "ReadTimeout": "the connection was silent for too long",
    "RemoteProtocolError": "the connection ended too early",
}
"""For exceptions of the HTTP client behind which the system has none."""
_RATE_LIMIT = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
"""The hub tells when a limit is over by `RateLimit: "resolvers";r=0;t=SECONDS` and not by Retry-After."""


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
        """Names these bytes: nothing else that the file ever was or will be has the same."""
        return self.sha256 or f"commit-{self.commit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the bytes are, for some minutes. A secret: one that is signed opens the file to whoever reads it.

    `is_hub` when it is on the hub's own host, which alone may see the token in `headers`.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    is_hub: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a request failed: `status` is None when no answer came, `retry_after` in seconds."""

    status: int | None
    words: str
    retry_after: float | None = None


class HubError(NotReadyError):
    """The hub could not be asked. `reason` is the message without the file's name, `retry_after` in seconds.

    `final` when asking again cannot help.
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
    """Tells what files should be. Token, endpoint and proxies come from the environment.

    `ended` set by anybody ends every wait for metadata with EndedError.
    """

    _patient: bool = True
    ended: threading.Event = field(default_factory=threading.Event)

    def describe(self, repo: str, file: str) -> RemoteFile:
        """What the hub says about a file; raises HubError. Once out of reach, it is not waited for again."""
        _refuse_trouble(repo, file)
        for pause in _PAUSES if self._patient else ():
            try:
                return self._ask(repo, file)
            except HubError as error:
                if error.final:
                    raise
                self.ended.wait(min(max(pause, error.retry_after or 0), _LONGEST_PAUSE_SECONDS))
        try:
            return self._ask(repo, file)
        except HubError as error:
            self._patient = self._patient and error.final
            raise

    def _ask(self, repo: str, file: str) -> RemoteFile:
        """One request, left behind when all is ended: it cannot be called off, and a silent hub takes half a minute."""
        answer: Future[RemoteFile] = Future()

        def ask() -> None:
            try:
                answer.set_result(_describe(repo, file))
            except BaseException as error:  # noqa: BLE001  raised again by whoever waits
                answer.set_exception(error)

        if not self.ended.is_set():
            threading.Thread(target=ask, daemon=True).start()
        while not self.ended.is_set():
            with suppress(TimeoutError):
                return answer.result(timeout=_LOOK_SECONDS)
        raise EndedError(f"ended while the hub was asked about {file}")

    def address(self, remote: RemoteFile) -> Address:
        """Where these very bytes are, asked anew; raises HubError."""
        from huggingface_hub import get_token, hf_hub_url

        url = _metadata(remote.repo, remote.file, remote.commit).location
        token = get_token()
        here = hf_hub_url(remote.repo, remote.file)
        if not token or not _same_host(url, here):
            return Address(url=url, headers={}, is_hub=_same_host(url, here))
        headers = {"Authorization": f"Bearer {token}"}
        # A host that answers HEAD itself may still redirect GET, and whoever follows must not take the token along.
        try:
            target = _ask_for_one_byte(url, headers).get("Location")
        except Exception as error:  # noqa: BLE001  httpx's or its successor's, by the hub's version
            raise explain(remote.repo, remote.file, answer_of(error), final=False) from None
        if target is None:
            return Address(url=url, headers=headers, is_hub=True)
        return Address(url=urljoin(url, target), headers={}, is_hub=_same_host(urljoin(url, target), here))

    def look(self, remote: RemoteFile, address: Address) -> HubError | None:
        """Ask an address for one byte: what is wrong with it, None when an answer came that has it."""
        try:
            answered = _ask_for_one_byte(address.url, address.headers)
        except Exception as error:  # noqa: BLE001  httpx's or its successor's, by the hub's version
            # Another host refuses an address that ran out; what the hub itself refuses stays refused.
            return explain(remote.repo, remote.file, answer_of(error), final=address.is_hub)
        total = answered.get("Content-Range", "").rpartition("/")[2]
        if total.isdecimal() and int(total) != remote.size:
            return explain(remote.repo, remote.file, Answer(status=None, words=wrong_length(total, remote.size)))
        return None


def _refuse_trouble(repo: str, file: str) -> None:
    """Raise HubError for a variable with which the client's library could not even be imported."""
    found = hub_variables.trouble(os.environ)
    if found is not None:
        raise HubError(f"{file} of {repo}", found.reason, hint=found.hint)


def wrong_length(told: str, size: int) -> str:
    return f"the file has {told} bytes there instead of the {size} that the hub told"


def _same_host(one: str, other: str) -> bool:
    return urlsplit(one)[:2] == urlsplit(other)[:2]


def _ask_for_one_byte(url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers of the answer, redirects not followed; raises what httpx and huggingface_hub raise."""
    from huggingface_hub import get_session

    asked = {**headers, "Range": "bytes=0-0", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=asked, timeout=_TIMEOUT_SECONDS, follow_redirects=False) as response:
        if not response.is_redirect:
            response.raise_for_status()
        return response.headers


def _describe(repo: str, file: str) -> RemoteFile:
    found = _metadata(repo, file, None)
    if found.size is None or found.commit_hash is None:
        words = "the answer has no size or no commit: is something else at HF_ENDPOINT?"
        raise explain(repo, file, Answer(status=None, words=words))
    etag = found.etag or ""
    sha256 = etag if _SHA256.fullmatch(etag) else None
    return RemoteFile(repo=repo, file=file, size=found.size, sha256=sha256, commit=found.commit_hash)


def _metadata(repo: str, file: str, commit: str | None) -> HfFileMetadata:
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url

    try:
        return get_hf_file_metadata(
            hf_hub_url(repo, file, revision=commit), token=get_token() or False, timeout=_TIMEOUT_SECONDS
        )
    except Exception as error:  # noqa: BLE001  requests, httpx or the hub's own, by its version
        raise explain(repo, file, answer_of(error)) from None


def answer_of(error: BaseException) -> Answer:
    """What is behind an exception of huggingface_hub; not its text, which quotes addresses."""
    seen: BaseException | None = error
    root = error
    while seen is not None:
        response: Any = getattr(seen, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(status, int):
            return Answer(status=status, words=type(error).__name__, retry_after=_retry_after(response.headers))
        root, seen = seen, seen.__cause__ or seen.__context__
    name = type(error).__name__
    words = root.strerror.lower() if isinstance(root, OSError) and root.strerror else _WORDS.get(name, name)
    return Answer(status=None, words=words)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After")
    if text is None:
        limit = _RATE_LIMIT.search(headers.get("RateLimit", ""))
        return float(limit[1]) if limit else None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def explain(repo: str, file: str, answer: Answer, *, final: bool = True) -> HubError:
    """An error of the hub in the user's words; never with the token. `final` is whether a refusal of it is one."""
    what = f"{file} of {repo}"
    status = answer.status
    token = hub_variables.token_of(os.environ) if final and status in {401, 403} else None
    if status == 401 and token is not None:  # noqa: PLR2004  see _FINAL
        return HubError(
            what,
            f"the hub refuses the token from {token.source} (HTTP 401)",
            hint=f"These models are public and need no token: {token.remove} and run again.",
        )
    if final and status in _FINAL:
        hint = {
            401: "The known models are public and need no token, so something else may answer: look at HF_ENDPOINT. A "
            "mirror that wants a token takes it from `export HF_TOKEN=...`.",
            403: "Accept the repository's terms on its page in the browser, with the account of HF_TOKEN.",
            404: "Without a valid HF_TOKEN private repositories look like this too. Was the file renamed upstream?",
        }[status]
        return HubError(what, f"{_FINAL[status]} (HTTP {status})", hint=hint)
    if "OfflineMode" in answer.words:
        return HubError(what, "HF_HUB_OFFLINE is set", hint="`unset HF_HUB_OFFLINE` and run again.")
    reason = f"HTTP {status}" if status is not None else one_line(answer.words)
    hint = "Look at the network, HF_ENDPOINT and proxies; then run `wan-train provision` again."
    return HubError(what, reason, hint=hint, final=False, retry_after=answer.retry_after)
