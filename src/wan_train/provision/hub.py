"""The Hugging Face hub: what a file should be, where its bytes are, and variables that keep the hub out of reach.

huggingface_hub reads some variables when it is imported and fails with an unhelpful error; they are checked before.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from wan_train.base.errors import NotReadyError
from wan_train.base.text import one_line
from wan_train.engine.tokenizer import expanded, hub_home
from wan_train.provision.work import EndedError

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

_T = TypeVar("_T")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIMEOUT_SECONDS = 30.0
_PAUSES = (1.0, 3.0, 9.0)
"""Between tries for metadata."""
_LONGEST_PAUSE_SECONDS = 30.0
_LOOK_SECONDS = 0.2
_FINAL = {
    401: "the hub requires a login",
    403: "this token may not read it",
    404: "not found on the hub",
}
_WORDS = {
    "ConnectTimeout": "no connection in time",
    "ReadTimeout": "the connection was silent for too long",
    "RemoteProtocolError": "the connection ended too early",
}
"""For exceptions of the HTTP client behind which the system has none."""
_RATE_LIMIT = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
"""The hub says when a limit ends by `RateLimit: "resolvers";r=0;t=SECONDS` and not by Retry-After."""


_NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PROXY_SCHEMES = frozenset({"http", "https", "socks5", "socks5h"})


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
    """Describes files of the hub. Token, endpoint and proxies come from the environment.

    A set `ended` ends every wait with EndedError.
    """

    _patient: bool = True
    ended: threading.Event = field(default_factory=threading.Event)

    def describe(self, repo: str, file: str) -> RemoteFile:
        """What the hub says about a file; raises HubError. Once out of reach, it is not waited for again."""
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
        """Where these very bytes are for some minutes; None when only a token opens them. Raises HubError.

        A signed address opens the file to everyone who reads it: never show or log it.
        """
        return self._answered(_address, remote.repo, remote.file, remote.commit)

    def _answered(self, ask: Callable[..., _T], *words: str) -> _T:
        """One request in its own thread: it cannot be cancelled, and a silent hub takes half a minute."""
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


def explain(repo: str, file: str, answer: Answer) -> HubError:
    """An error of the hub in the user's words, without the token."""
    what = f"{file} of {repo}"
    status = answer.status
    token = token_of(os.environ) if status == 401 else None  # noqa: PLR2004  see _FINAL
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
            404: "Without a valid HF_TOKEN private repositories look like this too. Was the file renamed upstream?",
        }[status]
        return HubError(what, f"{_FINAL[status]} (HTTP {status})", hint=hint)
    if "OfflineMode" in answer.words:
        return HubError(what, "HF_HUB_OFFLINE is set", hint="`unset HF_HUB_OFFLINE` and run again.")
    reason = f"HTTP {status}" if status is not None else one_line(answer.words)
    hint = "Check the network, HF_ENDPOINT and proxies; then run `wan-train provision` again."
    return HubError(what, reason, hint=hint, final=False, retry_after=answer.retry_after)


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableProblem:
    """A variable that no client can work with, and what to type."""

    reason: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """Where the token for the hub comes from; `remove` is the command that leaves it out. Never shown itself."""

    value: str
    source: str
    remove: str


def variable_problem(environ: Mapping[str, str]) -> VariableProblem | None:
    """The first variable that keeps the hub from being asked at all."""
    return _number(environ) or _endpoint(environ) or _certificates(environ) or _proxy(environ) or _token(environ)


def token_of(environ: Mapping[str, str]) -> Token | None:
    """The token that the hub's client will send, found in the order in which it looks."""
    for name in _TOKENS:
        if value := environ.get(name, "").strip():
            return Token(value=value, source=name, remove=f"`unset {name}`")
    path = expanded(environ.get("HF_TOKEN_PATH") or str(hub_home(environ) / "token"))
    try:
        value = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return Token(value=value, source=f"the file {one_line(str(path))}", remove="`hf auth logout`") if value else None


def _number(environ: Mapping[str, str]) -> VariableProblem | None:
    for name in _NUMBERS:
        value = environ.get(name)
        if not value:
            continue
        try:
            int(value)
        except ValueError:
            return VariableProblem(
                reason=f"{name} is {one_line(value)!r}, which is not a whole number of seconds",
                hint=f"`unset {name}`, or give it a number: `export {name}=60`.",
            )
    return None


def _endpoint(environ: Mapping[str, str]) -> VariableProblem | None:
    value = environ.get("HF_ENDPOINT")
    if not value:
        return None
    try:
        parts = urlsplit(value.strip())
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port  # raises for one that is not a number
    except ValueError:
        usable = False
    if usable:
        return None
    return VariableProblem(
        reason=f"HF_ENDPOINT is {one_line(value)!r}, which is not an address with https:// before it",
        hint="`unset HF_ENDPOINT`, or write the whole address: `export HF_ENDPOINT=https://huggingface.co`.",
    )


def _certificates(environ: Mapping[str, str]) -> VariableProblem | None:
    path = environ.get("SSL_CERT_FILE")
    if not path or Path(path).is_file():
        return None
    return VariableProblem(
        reason=f"SSL_CERT_FILE names a missing file: {one_line(path)}",
        hint="`unset SSL_CERT_FILE`, or correct it.",
    )


def _proxy(environ: Mapping[str, str]) -> VariableProblem | None:
    if "*" in (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(","):
        return None
    for name in _PROXIES:
        # Lower case wins, as for every client.
        spelled = name.lower() if environ.get(name.lower()) else name
        value = environ.get(spelled, "").strip()
        if not value:
            continue
        try:
            parts = urlsplit(value if "://" in value else f"http://{value}")
            usable = parts.scheme in _PROXY_SCHEMES and bool(parts.hostname)
            _ = parts.port  # raises for one that is not a number
        except ValueError:
            usable = False
        if not usable:
            return VariableProblem(
                reason=f"{spelled} is not the address of a proxy: {one_line(value)!r}",
                hint=f"`unset {spelled}`, or write it as http://HOST:PORT.",
            )
        if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            return VariableProblem(
                reason=f"{spelled} names a SOCKS proxy, and the Python package socksio for it is not installed",
                hint=f"`unset {spelled}`, set an http:// proxy, or install socksio beside wan-train.",
            )
    return None


def _token(environ: Mapping[str, str]) -> VariableProblem | None:
    token = token_of(environ)
    if token is None or (token.value.isascii() and token.value.isprintable()):
        return None
    return VariableProblem(
        reason=f"the token from {token.source} has invalid characters (outside ASCII, or a line end)",
        hint=f"{token.remove}: these models are public and need none. Or copy the token again.",
    )
