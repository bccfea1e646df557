"""Vast.ai's HTTP API, and what a box may request for itself. One deadline covers a request and its whole answer.

The key goes into one header, never into an address, a message or a record. Redirects are not followed, because they
would receive the key.

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
"""Some services in front of APIs refuse urllib's default name."""


class VastError(Exception):
    """A failed request to Vast. Its message may be shown and recorded."""


class StatusError(VastError):
    """Vast answered with an error status. `retry_after` is in seconds; None if Vast gave none."""

    def __init__(self, status: int, retry_after: float | None = None) -> None:
        super().__init__(f"Vast answered with status {status}")
        self.status = status
        self.retry_after = retry_after


class NoAnswerError(VastError):
    """It is unknown whether Vast received the request: it hung, or the connection broke or failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One server and one key; `key_name` says in messages where the key came from."""

    address: str
    key: str = field(repr=False)
    key_name: str

    def ask(self, method: str, path: str, seconds: float, body: object = None) -> Any:  # noqa: ANN401  JSON of any shape
        """The answer's JSON, within about `seconds`. Raises VastError."""
        if not (self.key.isascii() and self.key.isprintable()):
            raise VastError(f"{self.key_name} is not a key")  # the library's error would contain it
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
    """Why Vast did not execute a command, in words; None if it did."""
    if isinstance(answer, dict) and answer.get("success") is True:
        return None
    said = answer.get("msg") if isinstance(answer, dict) else None
    return f"Vast refused: {one_line(said)}" if isinstance(said, str) and said else "Vast refused"


def _read(answer: HTTPResponse, until: float) -> bytes:
    """The whole answer. Raises TimeoutError after `until` (monotonic), as a server may send a byte now and then."""
    body = bytearray()
    while chunk := answer.read1(_CHUNK):
        body += chunk
        if len(body) > _MOST_BYTES:
            raise VastError("Vast's answer is too long")
        if time.monotonic() > until:
            raise TimeoutError
    return bytes(body)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Blocks redirects: urllib would send the key to the new address."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirect)


def _retry_after(headers: Message) -> float | None:
    """The header in seconds; None for a date, which Vast does not send."""
    text = (headers.get("Retry-After") or "").strip()
    return float(text) if text.isascii() and text.isdecimal() else None


ID_VARIABLE = "CONTAINER_ID"
KEY_VARIABLE = "CONTAINER_API_KEY"
DEADLINE_SECONDS = 5.0
_DOWN = frozenset({"stopped", "exited", "offline"})


class UnknownBoxError(VastError):
    """Vast does not know this box: it was destroyed, or its ID is wrong."""


class RefusedKeyError(VastError):
    """Vast does not accept this box's key."""


class Power(StrEnum):
    """The state of a box according to Vast."""

    ON = "on"
    GOING = "going"
    """Being stopped, or already stopped."""
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vast:
    """The part of the API that a box may use for itself."""

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
        """The price of this box and the end of its rental. Raises VastError, within about `seconds`."""
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
        """Check that Vast knows this box and accepts its key. Raises VastError."""
        self._ask("GET", self._path, seconds)

    def stop(self, *, seconds: float = DEADLINE_SECONDS) -> None:
        """Ask Vast to stop this box. Its disk stays and is billed. Raises VastError."""
        self._order("PUT", {"state": "stopped"}, seconds)

    def destroy(self, *, seconds: float = DEADLINE_SECONDS) -> None:
        """Ask Vast to destroy this box and its disk. Raises VastError."""
        self._order("DELETE", {}, seconds)

    @property
    def _path(self) -> str:
        return f"/api/v0/instances/{self.instance}/"

    def _order(self, method: str, body: Mapping[str, str], seconds: float) -> None:
        try:
            answer = self._ask(method, self._path, seconds, body)
        except UnknownBoxError:
            if method == "DELETE":
                return  # a repeated command
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
    """A rental request to Vast in its own thread, so that the caller need not wait."""

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
        """The answer; None until it arrives."""
        return self._answer

    def wait(self) -> Rental | VastError:
        """The answer, after at most the deadline plus one second."""
        self._thread.join(DEADLINE_SECONDS + 1)
        return self._answer or VastError(f"Vast did not answer within {DEADLINE_SECONDS:g} s")
