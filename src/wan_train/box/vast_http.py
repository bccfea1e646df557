"""Vast.ai's HTTP API: one deadline for a question and its whole answer.

The key goes into one header and nowhere else: no address, no message, no record. Redirects are not followed, because
the key would go along.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPException, HTTPResponse
from typing import Any

from wan_train.base.text import one_line

REFUSED = frozenset({401, 403})
MISSING = 404
_MOST_BYTES = 4_000_000
_CHUNK = 65_536
_AGENT = "wan-train"
"""urllib's own name is refused by some of the services that stand before an API."""


class VastError(Exception):
    """Why Vast did not help, in words that may be shown and recorded."""


class StatusError(VastError):
    """Vast answered with a status that is no success. `retry_after` is in seconds, where it named them."""

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
