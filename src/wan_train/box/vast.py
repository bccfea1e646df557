"""Vast.ai's HTTP API, and what a box may ask it about itself: one deadline for a question and its whole answer.

The key goes into one header and nowhere else: no address, no message, no record. Redirects are not followed, because
the key would go along.

Inside a box `CONTAINER_ID` names the instance and `CONTAINER_API_KEY` is a key for it alone (docs.vast.ai, instance
portal).
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from enum import StrEnum
from http.client import HTTPException, HTTPResponse
from typing import Any

from wan_train.base.text import one_line
from wan_train.box.rental import Rental, read_rental

REFUSED = frozenset({401, 403})
MISSING = 404
_MOST_BYTES = 4_000_000
_CHUNK = 65_536
_AGENT = "wan-train"
"""urllib's own name is refused by some of the services that stand before an API."""


class VastError(Exception):
    """Why Vast did not help, in words that may be shown and recorded."""


class StatusError(VastError):
    """Vast answered with a status that reports an error. `retry_after` is in seconds, where it named them."""

    def __init__(self, status: int, retry_after: float | None = None) -> None:
        super().__init__(f"Vast answered with status {status}")
        self.status = status
        self.retry_after = retry_after


class NoAnswerError(VastError):
    """Nobody knows whether Vast received the question: it hung, the connection broke, or there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One server and one key; `key_name` says in messages where the key came from."""

    address: str
    key: str = field(repr=False)
    key_name: str

    def ask(self, method: str, path: str, seconds: float, body: object = None) -> Any:  # noqa: ANN401  JSON of any shape
        """The answer's JSON, after about `seconds` at the latest. Raises VastError."""
        if not (self.key.isascii() and self.key.isprintable()):
            raise VastError(f"{self.key_name} is not a key")  # the library would quote it in its error
        until = time.monotonic() + seconds
        headers = {"Authorization": f"Bearer {self.key}", "Accept": "application/json", "User-Agent": _AGENT}
        data = json.dumps(body).encode() if body is not None else None
        headers |= {"Content-Type": "application/json"} if data is not None else {}
        request = urllib.request.Request(f"{self.address}{path}", data=data, headers=headers, method=method)  # noqa: S310  http and https only, see Settings
        try:
            with _opener().open(request, timeout=seconds) as answer:
                text = _read(answer, until)
        except urllib.error.HTTPError as error:
            with error:
                raise StatusError(error.code, _retry_after(error.headers)) from None
        except TimeoutError:
            raise NoAnswerError(f"Vast did not answer within {seconds:g} s") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise NoAnswerError(f"Vast did not answer within {seconds:g} s") from None
            raise NoAnswerError(f"Vast cannot be reached: {one_line(str(error.reason))}") from None
        except (OSError, HTTPException) as error:
            words = one_line(str(error)) or type(error).__name__
            raise NoAnswerError(f"the connection to Vast broke: {words}") from None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise VastError("Vast's answer is not JSON") from None


def why_refused(answer: object) -> str | None:
    """Why an order was not obeyed, in words; None where it was."""
    if isinstance(answer, dict) and answer.get("success") is True:
        return None
    said = answer.get("msg") if isinstance(answer, dict) else None
    return f"Vast refused: {one_line(said)}" if isinstance(said, str) and said else "Vast refused"


def _read(answer: HTTPResponse, until: float) -> bytes:
    """All of an answer that comes before `until` on the monotonic clock; a server may send a byte now and then."""
    body = bytearray()
    while chunk := answer.read1(_CHUNK):
        body += chunk
        if len(body) > _MOST_BYTES:
            raise VastError("Vast's answer is too long")
        if time.monotonic() > until:
            raise TimeoutError
    return bytes(body)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the key along to wherever it is redirected."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirect)


def _retry_after(headers: Message) -> float | None:
    """The header in seconds; a date, which Vast does not send, counts as none."""
    text = (headers.get("Retry-After") or "").strip()
    return float(text) if text.isascii() and text.isdecimal() else None


ID_VARIABLE = "CONTAINER_ID"
KEY_VARIABLE = "CONTAINER_API_KEY"
DEADLINE_SECONDS = 5.0
_DOWN = frozenset({"stopped", "exited", "offline"})


class UnknownBoxError(VastError):
    """Vast does not know this box: it was destroyed, or its ID is wrong."""


class RefusedKeyError(VastError):
    """Vast does not take this box's key."""


class Power(StrEnum):
    """What Vast says of a box's state."""

    ON = "on"
    GOING = "going"
    """It is to be stopped, or is stopped already."""
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vast:
    """The API as one box may use it."""

    address: str
    instance: str
    key: str = field(repr=False)

    @classmethod
    def of_this_box(cls, environ: Mapping[str, str], address: str) -> Vast | None:
        """None on a box that is not from Vast. `address` is `Settings.vast_url`."""
        instance, key = environ.get(ID_VARIABLE, "").strip(), environ.get(KEY_VARIABLE, "").strip()
        if not instance.isdecimal() or not instance.isascii() or not key:
            return None
        return cls(address=address, instance=instance, key=key)

    def rental(self, *, seconds: float = DEADLINE_SECONDS) -> Rental:
        """What this box costs and when its rental ends. Raises VastError, after about `seconds` at the latest."""
        found = read_rental(self._ask("GET", self._path, seconds))
        if found is None:
            raise VastError("Vast's answer has no price for this box")
        return found

    def power(self, *, seconds: float = DEADLINE_SECONDS) -> Power:
        """Whether this box runs, by its `intended_status` and `actual_status`. Raises VastError."""
        try:
            answer = self._ask("GET", self._path, seconds)
        except UnknownBoxError:
            return Power.GONE
        found = answer.get("instances") if isinstance(answer, dict) else None
        if not isinstance(found, dict):
            raise VastError("Vast's answer has no state of this box")
        down = found.get("intended_status") in _DOWN or found.get("actual_status") in _DOWN
        return Power.GOING if down else Power.ON

    def check(self, *, seconds: float = DEADLINE_SECONDS) -> None:
        """Make sure that Vast knows this box and takes its key. Raises VastError."""
        self._ask("GET", self._path, seconds)

    def stop(self, *, seconds: float = DEADLINE_SECONDS) -> None:
        """Ask that this box be stopped: its disk stays and is paid for. Raises VastError."""
        self._order("PUT", {"state": "stopped"}, seconds)

    def destroy(self, *, seconds: float = DEADLINE_SECONDS) -> None:
        """Ask that this box be destroyed with its disk. Raises VastError."""
        self._order("DELETE", {}, seconds)

    @property
    def _path(self) -> str:
        return f"/api/v0/instances/{self.instance}/"

    def _order(self, method: str, body: Mapping[str, str], seconds: float) -> None:
        try:
            answer = self._ask(method, self._path, seconds, body)
        except UnknownBoxError:
            if method == "DELETE":
                return  # a repeated order
            raise
        if (why := why_refused(answer)) is not None:
            raise VastError(why)

    def _ask(self, method: str, path: str, seconds: float, body: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401  JSON of any shape
        api = Api(address=self.address, key=self.key, key_name=KEY_VARIABLE)
        try:
            return api.ask(method, path, seconds, body)
        except StatusError as error:
            if error.status == MISSING:
                raise UnknownBoxError(f"Vast does not know this box ({ID_VARIABLE}, status {MISSING})") from None
            if error.status in REFUSED:
                raise RefusedKeyError(f"Vast refused this box's key ({KEY_VARIABLE}, status {error.status})") from None
            raise


class Asking:
    """A question to Vast in a thread of its own, so that its caller need not wait."""

    def __init__(self, vast: Vast) -> None:
        self._vast = vast
        self._answer: Rental | VastError | None = None
        self._thread = threading.Thread(target=self._ask, name="vast", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self._answer = self._vast.rental()
        except VastError as error:
            self._answer = error

    @property
    def answer(self) -> Rental | VastError | None:
        """None while there is none yet."""
        return self._answer

    def wait(self) -> Rental | VastError:
        """The answer, after at most the deadline and a moment."""
        self._thread.join(DEADLINE_SECONDS + 1)
        return self._answer or VastError(f"Vast did not answer within {DEADLINE_SECONDS:g} s")
